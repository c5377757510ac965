"""What the tests of the ops share: targets, sizes, rules, strategies; how results are judged is `bench.checks`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.checks import (
    Search,
    assert_gradient,
    assert_product,
    assert_same,
    generator,
    matrix,
    numpy_bits,
    numpy_words,
    poisoned,
    product_tolerance,
    random_bits,
    shape_of,
    threads,
    values,
)
from fastbin import backends, library
from fastbin.rules import SGD, Adam, Bop, Rule

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OPERANDS = (*FLOATS, torch.int8)
PACKABLE = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip

SIZES = (0, 1, 31, 32, 33, 63, 64, 65)  # around a word, and around two
POPULATIONS = (None, 0, 1, 3)

# Beyond any tile of a kernel: primes, and one off the powers of two.
WIDE_SHAPES = ((1, 257, 1031), (7, 129, 515), (17, 300, 2049), (67, 66, 127), (130, 40, 4099), (3, 1, 131073))

RULES: dict[str, Rule] = {
    "sgd": SGD(lr=0.5, momentum=0.9),
    "sgd clipped": SGD(lr=2.0, momentum=0.0, tau=0.3, clip=0.75),
    "sgd sampling": SGD(lr=0.5, tau=2.0, sample=True),
    "adam": Adam(lr=0.1),
    "adam clipped": Adam(lr=0.3, tau=0.25, clip=0.5, betas=(0.0, 0.5), eps=1e-3),
    "adam sampling": Adam(lr=0.1, tau=0.7, clip=3.0, sample=True),
    "bop": Bop(gamma=0.3, threshold=0.1),
    "bop at once": Bop(gamma=1.0, threshold=0.0),
}


@dataclass(frozen=True)
class Target:
    """An implementation under test, and the device it runs on."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


def targets(op: str = "bit_linear") -> list[Target]:
    """Every kernel of `op` that this machine has hardware for.

    CUDA C++ serves some shapes only, so ``auto``, which takes it for those, stands for it.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = [(device, name) for device in present for name, _ in backends.TABLE.get((op, device), ())]
    return [Target("auto" if (device, name) == ("cuda", "cpp") else name, device) for device, name in rows]


# ----------------------------------------------------------------------------------------------------------- strategies

sizes = st.one_of(st.sampled_from(SIZES), st.integers(0, 150))
seeds = st.integers(0, 2**32 - 1)
densities = st.sampled_from((0.0, 0.03, 0.5, 0.97, 1.0))
populations = st.sampled_from(POPULATIONS)


# -------------------------------------------------------------------------------------------------------------- running


def run(target: Target, op: str, *args: object) -> Tensor:
    """``fastbin::<op>`` by one implementation, with operands moved to its device and the result brought back."""
    there = [a.to(target.device) if isinstance(a, Tensor) else a for a in args]
    with poisoned(), backends.override(target.backend):
        result: Tensor = getattr(library, op)(*there)
    return result.cpu()
