"""Products with ternary and ±1 matrices, torch ops made of the {0,1} products that `fastbin.backends` chooses.

W = P − N for W in {−1,0,1} with its ones P and its minus ones N as bits: two products and a difference. W = 2B − 1 for W in
{−1,1}: one product, and twice that less the sum of the sample. Both are taken in float32 (int32 for int8) and rounded
to the operand's dtype once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbin import backends
from fastbin.library import define, differentiate, holds, product_dtype, same_members

_HALVES = (torch.bfloat16, torch.float16)


def _kernel(op: str, x: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
    return backends.find(op, x.device.type), x.float() if x.dtype in _HALVES else x


def _ternary(op: str) -> Callable[..., Tensor]:
    def product(x: Tensor, plus: Tensor, minus: Tensor, *cols: int) -> Tensor:
        kernel, values = _kernel(op, x)
        return kernel(values, plus, *cols).sub_(kernel(values, minus, *cols)).to(product_dtype(x))

    return product


def _sign(op: str) -> Callable[..., Tensor]:
    def product(x: Tensor, words: Tensor, *cols: int) -> Tensor:
        kernel, values = _kernel(op, x)
        y = kernel(values, words, *cols)
        total = values.sum(-1, keepdim=True, dtype=y.dtype)
        return torch.add(-total, y, alpha=2, out=y).to(product_dtype(x))

    return product


def _outputs(x: Tensor, words: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], words.shape[-2]), dtype=product_dtype(x))


def _inputs(g: Tensor, *args: Any) -> Tensor:
    return g.new_empty((*g.shape[:-1], args[-1]), dtype=product_dtype(g))


def _twins(plus: Tensor, minus: Tensor) -> bool:
    return plus.shape == minus.shape and plus.dtype == minus.dtype


ternary_linear = define(
    "ternary_linear(Tensor x, Tensor plus, Tensor minus) -> Tensor",
    _outputs,
    lambda x, plus, minus: same_members(x, plus) and holds(plus, x.shape[-1]) and _twins(plus, minus),
    _ternary("bit_linear"),
)
ternary_linear_t = define(
    "ternary_linear_t(Tensor g, Tensor plus, Tensor minus, SymInt cols) -> Tensor",
    _inputs,
    lambda g, plus, minus, cols: (
        same_members(g, plus) and holds(plus, cols) and _twins(plus, minus) and g.shape[-1] == plus.shape[-2]
    ),
    _ternary("bit_linear_t"),
)
sign_linear = define(
    "sign_linear(Tensor x, Tensor words) -> Tensor",
    _outputs,
    lambda x, words: same_members(x, words) and holds(words, x.shape[-1]),
    _sign("bit_linear"),
)
sign_linear_t = define(
    "sign_linear_t(Tensor g, Tensor words, SymInt cols) -> Tensor",
    _inputs,
    lambda g, words, cols: same_members(g, words) and holds(words, cols) and g.shape[-1] == words.shape[-2],
    _sign("bit_linear_t"),
)
OPS = (ternary_linear, ternary_linear_t, sign_linear, sign_linear_t)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.cols = inputs[0].shape[-1]
    ctx.save_for_backward(*(t for t in inputs[1:] if isinstance(t, Tensor)))


def _ternary_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
    return ternary_linear_t(gy, *ctx.saved_tensors, ctx.cols), None, None


def _ternary_t_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None, None]:
    return ternary_linear(gy, *ctx.saved_tensors), None, None, None


def _sign_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
    return sign_linear_t(gy, *ctx.saved_tensors, ctx.cols), None


def _sign_t_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
    return sign_linear(gy, *ctx.saved_tensors), None, None


differentiate("ternary_linear", _ternary_backward, _save)
differentiate("ternary_linear_t", _ternary_t_backward, _save)
differentiate("sign_linear", _sign_backward, _save)
differentiate("sign_linear_t", _sign_t_backward, _save)
