"""The ops and modules as other programs use them: exported to another process, under autocast, vmap and threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import pytest
import torch
from cases import RULES, Search, matrix, values
from torch import Tensor, nn
from torch.func import vmap

from fastbin import BitMatrix, ops
from fastbin.nn import BitLinear, SignLinear, TernaryLinear, WeightFreeNet

X = values((6, 70), torch.float32, 1, "integers")
W, M = matrix((33, 70), 2), matrix((33, 70), 3)
BIAS = torch.arange(33.0)

MODULES = {
    "bits": lambda: BitLinear(70, 33, weight=W, scale=0.5, bias=BIAS),
    "ternary": lambda: TernaryLinear(W, M, scale=torch.rand(33), bias=BIAS),
    "signs": lambda: SignLinear(W),
    "net": lambda: WeightFreeNet([70, 40, 5]),
    "net of step": lambda: WeightFreeNet([70, 40, 40, 5], activation="step"),
}

# -------------------------------------------------------------------------------------------------------------- export

LOAD = """
import sys, torch, fastbin
inputs, wanted = torch.load(sys.argv[2], weights_only=True)
for got, y in zip(torch.export.load(sys.argv[1]).module()(inputs), wanted, strict=True):
    assert torch.equal(got, y)
print(len(wanted), "equal")
"""


class Every(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(make() for make in MODULES.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x) for module in self.modules_)


def test_exported_programs_run_in_another_process(tmp_path: Path) -> None:
    every, program, outputs = Every(), tmp_path / "every.pt2", tmp_path / "outputs.pt"
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=100)
        torch.export.save(torch.export.export(every, (X,), dynamic_shapes=({0: batch},)), program)
        torch.save((X[:4], every(X[:4])), outputs)
    done = subprocess.run([sys.executable, "-c", LOAD, program, outputs], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(MODULES)} equal\n"


# ------------------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("name", MODULES)
def test_autocast(name: str) -> None:
    """A layer runs in the dtype of what reaches it: after a dense one under autocast, bfloat16."""
    dense, module = nn.Linear(70, 70), MODULES[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(dense(X))
        y.float().square().sum().backward()
    assert dense.weight.grad is not None and dense.weight.grad.abs().sum() > 0
    wanted = module(nn.functional.linear(X.bfloat16(), dense.weight.bfloat16(), dense.bias.bfloat16()))
    assert y.dtype == torch.bfloat16 and torch.equal(y, wanted)


# ----------------------------------------------------------------------------------------------------------------- vmap

MANY, PEOPLE = matrix((4, 33, 70), 4), matrix((2, 33, 70), 5)


def bits(words: Tensor) -> BitMatrix:
    return BitMatrix(words, 70)


def looped(f, *args: Tensor, dims: tuple[int | None, ...]) -> Tensor:
    parts = [f(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True))) for i in range(4)]
    return torch.stack(parts)


VMAPPED = {
    "samples": (lambda x: ops.bit_linear(x, W), (values((4, 70), torch.float32, 6),), (0,)),
    "batches": (lambda x: ops.bit_linear(x, W), (values((5, 4, 70), torch.float32, 7),), (1,)),
    "batches of int8": (lambda x: ops.bit_linear_t(x, W), (values((5, 33, 4), torch.int8, 8),), (2,)),
    "batches for a population": (
        lambda x: ops.bit_linear(x, PEOPLE), (values((2, 5, 4, 70), torch.float32, 9),), (2,)
    ),
    "bits": (lambda w: ops.bit_linear(X, bits(w)), (MANY.words,), (0,)),
    "both": (
        lambda x, w: ops.bit_linear_t(x, bits(w)), (values((4, 5, 33), torch.float32, 10), MANY.words.movedim(0, 2)), (0, 2)
    ),
    "a population": (
        lambda x, w: ops.bit_linear(x, bits(w)),
        (values((2, 5, 70), torch.float32, 11), MANY.words.expand(2, 4, 33, 3)), (None, 1),
    ),
    "ternary": (
        lambda x, p, m: ops.ternary_linear(x, bits(p), bits(m), 0.5),
        (values((4, 5, 70), torch.float32, 12), MANY.words, M.words), (0, 0, None),
    ),
    "signs": (lambda x: ops.sign_linear(x, W), (values((4, 5, 70), torch.float32, 13),), (0,)),
    "bits by bits": (lambda a: ops.bit_matmul(bits(a), W), (MANY.words,), (0,)),
    "bits by many bits": (lambda b: ops.bit_matmul(W, bits(b)), (MANY.words,), (0,)),
    "pack": (lambda x: BitMatrix.pack(x, 0.0).words, (values((5, 70, 4), torch.float32, 14),), (2,)),
    "unpack": (lambda w: bits(w).unpack(), (MANY.words,), (0,)),
    "unpack a population": (lambda w: bits(w).unpack(), (MANY.words.expand(2, 4, 33, 3),), (1,)),
    "transpose": (lambda w: bits(w).T.words, (MANY.words,), (0,)),
    "count": (lambda w: bits(w).count(), (MANY.words.expand(2, 4, 33, 3),), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("case", VMAPPED)
def test_vmap(case: str) -> None:
    f, args, dims = VMAPPED[case]
    got, wanted = vmap(f, in_dims=dims)(*args), looped(f, *args, dims=dims)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_jacobians() -> None:
    """The backward pass under vmap, a row of the matrix at a time."""
    for y_of, dense in (
        (lambda x: ops.bit_linear(x, W), W.unpack()),
        (lambda x: ops.ternary_linear(x, W, M), W.unpack() - M.unpack()),
    ):
        x = X[0].clone().requires_grad_()
        y = y_of(x)
        rows = vmap(lambda gy, x=x, y=y: torch.autograd.grad(y, x, gy)[0])(torch.eye(33))
        assert torch.equal(rows, dense)


# -------------------------------------------------------------------------------------------------------------- threads


def test_ten_threads_at_once() -> None:
    def work(seed: int) -> list[Tensor]:
        x, w, other = values((17, 300), torch.float32, seed), matrix((129, 300), seed), matrix((40, 300), seed + 1)
        search = Search.start(RULES["adam sampling"], (129, 300), seed)
        results = []
        for _ in range(5):
            y = ops.bit_linear(x, w)
            flips = ops.mask_grad_update_(search.scores, y, x, search.w, search.state, RULES["adam sampling"])
            more = (ops.bit_linear_t(y, w), ops.bit_linear(x.to(torch.int8), w), ops.bit_matmul(other, w), w.T.words)
            results += [y, flips, *more, ops.sign_linear(x, w), BitMatrix.pack(x, 0.0).words, other.unpack()]
        return [*results, *(t.clone() for t in search.tensors().values())]

    with cases.threads(2):
        alone = [work(seed) for seed in range(10)]
        with ThreadPoolExecutor(10) as pool:
            together = list(pool.map(work, [*range(10)] * 3))
    for i, got in enumerate(together):
        for a, b in zip(got, alone[i % 10], strict=True):
            cases.assert_same(a, b, i)
