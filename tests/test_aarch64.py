"""The portable kernels on another architecture: cross-compiled to aarch64, where their vectors are NEON, and emulated.

A small program runs the drivers on operands that it is sent. All results here are exact, so they equal the reference's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import cases
import pytest
import torch
from cases import RULES, SIZES, Search, assert_same, numpy_words, random_bits, values
from torch import Tensor

from fastbin import reference
from fastbin.bits import BitMatrix
from fastbin.rules import SGD, Bop

ROOT = Path(__file__).parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is missing"),
    pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is missing"),
]

SHAPES = ((1, 257, 1031), (2, 33, 300), (7, 129, 515), (33, 64, 65), (67, 66, 127), (130, 40, 2051))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    sources = [s for s in (ROOT / "csrc/cpu").glob("*.cpp") if not re.search(r"_avx(2|512|512bf16)$", s.stem)]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Wpedantic", "-Werror"]

    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        done = subprocess.run(
            [COMPILER, *flags, "-I", ROOT / "csrc", "-c", source, "-o", out], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sources, Path(__file__).with_name("aarch64_calls.cpp")]))
    linked = folder / "calls"
    subprocess.run([COMPILER, "-static", *objects, "-o", linked, "-pthread"], check=True)
    return linked


class Calls:
    """Calls of kernels, what they are to change, and what they must make of it."""

    def __init__(self) -> None:
        self.stream = b""
        self.wanted: list[tuple[str, Tensor, Tensor | None]] = []

    def add(self, op: str, sizes: tuple[int, ...], *operands: tuple[Tensor, Tensor | None]) -> None:
        """`operands` pairs: as they are before, and as they are to be after, or None for an operand that stays."""
        before = [b.contiguous().numpy().tobytes() for b, _ in operands]
        self.stream += f"{op} {' '.join(map(str, sizes))} ; {' '.join(str(len(b)) for b in before)}\n".encode()
        self.stream += b"".join(before)
        self.wanted += [(f"{op} {sizes}", b, after) for b, after in operands]

    def check(self, program: Path) -> None:
        done = subprocess.run([str(EMULATOR), str(program)], input=self.stream, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr.decode()
        assert len(done.stdout) == sum(b.numel() * b.element_size() for _, b, _ in self.wanted)
        begin = 0
        for what, before, after in self.wanted:
            end = begin + before.numel() * before.element_size()
            raw = bytearray(done.stdout[begin:end])
            got = torch.frombuffer(raw, dtype=before.dtype).view(before.shape) if raw else before
            assert_same(got, before if after is None else after, what)
            begin = end


def poison(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(like, torch.nan if like.is_floating_point() else torch.iinfo(like.dtype).max), like


def test_bits(program: Path) -> None:
    calls = Calls()
    for rows, cols in (*product(SIZES, SIZES), (515, 1031)):
        bits = random_bits((rows, cols), rows + cols)
        words, sizes = numpy_words(bits), (rows, cols)
        calls.add("pack_threshold", sizes, (bits.float() - 0.5, None), poison(words))
        calls.add("pack_u8", sizes, (bits.to(torch.uint8), None), poison(words))
        calls.add("unpack", sizes, (words, None), poison(bits.float()))
        calls.add("transpose", sizes, (words, None), poison(numpy_words(bits.mT)))
        calls.add("popcount", (words.numel(),), (words, None), poison(bits.sum()))
    calls.check(program)


def test_products(program: Path) -> None:
    calls = Calls()
    for batch, rows, cols in (*product((0, 1, 2, 33), SIZES, SIZES), *SHAPES):
        bits = random_bits((2, rows, cols), rows + cols)
        words, sizes = numpy_words(bits), (2, batch, rows, cols)
        for dtype, name, out in ((torch.float32, "f32", torch.float32), (torch.int8, "i8", torch.int32)):
            x, g = (values((2, batch, n), dtype, n, "integers") for n in (cols, rows))  # whole numbers: exact sums
            y, y_t = ((a.double() @ b.double()).to(out) for a, b in ((x, bits.mT), (g, bits)))
            calls.add(f"bit_linear_{name}", sizes, (x, None), (words, None), poison(y))
            calls.add(f"bit_linear_t_{name}", sizes, (g, None), (words, None), poison(y_t))
        a = numpy_words(random_bits((2, batch, cols), 1))
        calls.add(
            "bit_matmul", (2, batch, rows, words.shape[-1]), (a, None), (words, None),
            poison(reference.bit_matmul(a, words)),
        )  # fmt: skip
    calls.check(program)


def test_updates(program: Path) -> None:
    calls = Calls()
    for i, (batch, rows, cols) in enumerate((*product((0, 1, 33), SIZES, SIZES), *SHAPES)):
        rule = list(RULES.values())[i % len(RULES)]
        before = Search.start(rule, (2, rows, cols), i)
        kind = 2 if isinstance(rule, Bop) else 0 if isinstance(rule, SGD) else 1
        hyper = rule.hyper(2, torch.device("cpu")).contiguous()
        x_bits = cases.matrix((2, batch, cols), 3)
        gy, x = (values((2, batch, n), torch.float32, n, "integers") for n in (rows, cols))
        grad = values((2, rows, cols), torch.float32, 4)
        sizes = (kind, int(getattr(rule, "sample", False)), 2)
        runs: list[tuple[str, str, tuple[int, ...], list[Tensor | BitMatrix]]] = [
            ("mask_update", "mask_update_", (rows, cols), [grad]),
            ("grad_update_f32", "mask_grad_update_", (batch, rows, cols), [gy, x]),
            ("grad_update_bits", "mask_grad_update_", (batch, rows, cols), [gy, x_bits]),
        ]
        for name, op, shape, operands in runs:
            after = before.to("cpu")
            flips = after.update("reference", op, rule, *operands)
            none = torch.empty(0)
            buffers = [*zip(before.state.buffers, after.state.buffers, strict=True), (none, none)][:2]
            calls.add(
                name,
                (*sizes, *shape),
                *((o.words if isinstance(o, BitMatrix) else o, None) for o in operands),
                (none, none) if before.scores is None else (before.scores, after.scores),
                (before.w.words, after.w.words),
                *buffers,
                (hyper, None),
                (before.state.seed, None),
                (before.state.step, after.state.step),
                poison(flips),
            )
    calls.check(program)
