"""The torch.library side of the ops: schema, kernel, fake kernel and autograd of each ``fastbin::<op>``.

These take packed words instead of `BitMatrix` and check nothing; `fastbin.ops` and `fastbin.bits` check and call them.
With them the ops work under torch.compile and torch.export. One kernel is registered for all devices: it asks
`fastbin.backends` for the implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbin import backends
from fastbin.reference import words_for

_UPDATE_STATE = "Tensor(c!)[] buffers, Tensor(d!) step, Tensor seed, Tensor hyper, str rule, bool sample"

_library = torch.library.Library("fastbin", "DEF")


def _define(schema: str, fake: Callable[..., Any]) -> Any:
    """Define ``fastbin::<schema>`` with the backends' kernel and `fake`; returns the op."""
    name = schema.partition("(")[0]

    def kernel(*args: Any) -> Any:
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        return backends.find(name, device)(*args)

    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    _library.define(schema, tags=tags)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastbin::{name}", fake, lib=_library)
    return getattr(torch.ops.fastbin, name).default


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.int32 if x.dtype == torch.int8 else x.dtype


def _fake_update(scores: Tensor | None, grad: Tensor, words: Tensor, *_: Any) -> Tensor:
    return words.new_empty(words.shape[:-2], dtype=torch.int64)


def _fake_grad_update(scores: Tensor | None, gy: Tensor, x: Tensor, words: Tensor, *_: Any) -> Tensor:
    return words.new_empty(words.shape[:-2], dtype=torch.int64)


pack = _define(
    "pack(Tensor x, float? threshold) -> Tensor",
    lambda x, threshold: x.new_empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32),
)
unpack = _define(
    "unpack(Tensor words, SymInt cols, ScalarType dtype) -> Tensor",
    lambda words, cols, dtype: words.new_empty((*words.shape[:-1], cols), dtype=dtype),
)
transpose = _define(
    "transpose(Tensor words, SymInt cols) -> Tensor",
    lambda words, cols: words.new_empty((*words.shape[:-2], cols, words_for(words.shape[-2]))),
)
popcount = _define(
    "popcount(Tensor words) -> Tensor",
    lambda words: words.new_empty(words.shape[:-2], dtype=torch.int64),
)
bit_linear = _define(
    "bit_linear(Tensor x, Tensor words) -> Tensor",
    lambda x, words: x.new_empty((*x.shape[:-1], words.shape[-2]), dtype=_product_dtype(x)),
)
bit_linear_t = _define(
    "bit_linear_t(Tensor g, Tensor words, SymInt cols) -> Tensor",
    lambda g, words, cols: g.new_empty((*g.shape[:-1], cols), dtype=_product_dtype(g)),
)
bit_matmul = _define(
    "bit_matmul(Tensor a, Tensor b) -> Tensor",
    lambda a, b: a.new_empty((*a.shape[:-1], b.shape[-2])),
)
mask_update_ = _define(
    f"mask_update_(Tensor(a!)? scores, Tensor grad, Tensor(b!) words, {_UPDATE_STATE}) -> Tensor",
    _fake_update,
)
mask_grad_update_ = _define(
    f"mask_grad_update_(Tensor(a!)? scores, Tensor gy, Tensor x, Tensor(b!) words, {_UPDATE_STATE}) -> Tensor",
    _fake_grad_update,
)


# The bits are constants to autograd: only the real operand has a derivative.


def _save_words(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.cols = inputs[0].shape[-1]


def _bit_linear_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
    (words,) = ctx.saved_tensors
    return bit_linear_t(gy, words, ctx.cols), None


def _bit_linear_t_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
    (words,) = ctx.saved_tensors
    return bit_linear(gy, words), None, None


torch.library.register_autograd("fastbin::bit_linear", _bit_linear_backward, setup_context=_save_words, lib=_library)
torch.library.register_autograd(
    "fastbin::bit_linear_t", _bit_linear_t_backward, setup_context=_save_words, lib=_library
)
