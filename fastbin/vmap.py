"""What `torch.func.vmap` makes of the ops: samples join the batch, bits become a population.

The updates have no rule: each changes its arguments in place, and takes a population itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastbin import library, signed

Dims = tuple[int | None, ...]
Batched = tuple[Tensor, int]


def _product(op: library.Op, matrices: int) -> None:
    """Rule of an op (x, one or more `matrices` of words, ..)."""

    def rule(info: Any, dims: Dims, x: Tensor, *rest: Any) -> Batched:
        words, others = rest[:matrices], rest[matrices:]
        if all(dim is None for dim in dims[1:]):
            assert dims[0] is not None
            x = x.movedim(dims[0], -3)  # beside the samples, in each member of a population
            y: Tensor = op(x.flatten(-3, -2), *words, *others).unflatten(-2, x.shape[-3:-1])
            return y, y.dim() - 3
        front = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((x, *words), dims, strict=False)
        ]
        if front[0].dim() == 3:
            return op(*front, *others), 0
        y = op(*(t.flatten(0, 1) for t in front), *others)
        return y.unflatten(0, front[0].shape[:2]), 0

    library.vectorise(op.name, rule)


def _of_bits(op: library.Op) -> None:
    """Rule of an op (words, ..)."""

    def rule(info: Any, dims: Dims, words: Tensor, *others: Any) -> Batched:
        assert dims[0] is not None
        front = words.movedim(dims[0], 0)
        if front.dim() == 3:
            return op(front, *others), 0
        y: Tensor = op(front.flatten(0, 1), *others)
        return y.unflatten(0, front.shape[:2]), 0

    library.vectorise(op.name, rule)


def _pack(info: Any, dims: Dims, x: Tensor, *others: Any) -> Batched:
    assert dims[0] is not None
    return library.pack(x.movedim(dims[0], 0), *others), 0


library.vectorise("pack", _pack)
for _op in (library.unpack, library.transpose, library.popcount):
    _of_bits(_op)
for _op in (library.bit_linear, library.bit_linear_t, library.bit_matmul, signed.sign_linear, signed.sign_linear_t):
    _product(_op, 1)
for _op in (signed.ternary_linear, signed.ternary_linear_t):
    _product(_op, 2)
