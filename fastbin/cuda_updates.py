"""The fused updates of `fastbin._cuda` as implementations, like `fastbin.cuda` for the products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastbin import _cuda
from fastbin.cuda import _SCALARS, _members, _queue


def mask_grad_update_(
    scores: Tensor | None,
    gy: Tensor,
    x: Tensor,
    words: Tensor,
    buffers: list[Tensor],
    step: Tensor,
    seed: Tensor,
    hyper: Tensor,
    rule: str,
    sample: bool,
) -> Tensor:
    """One update by the gradient gyᵀ x, as `fastbin.reference.mask_grad_update_`.

    Real operands of two types are both taken as float32. float32 is split into three bfloat16, of whose products the three
    smallest are left out: a product is off by at most 2^-22 of it, and sums are float32.
    """
    if x.dtype not in (torch.int32, gy.dtype):
        gy, x = gy.float(), x.float()
    gy, x = gy.contiguous(), x.contiguous()
    first, second = buffers[0], buffers[1] if len(buffers) > 1 else None
    state = [t for t in (scores, words, *buffers, step, seed, hyper) if t is not None]
    queue = _queue(gy, x, *state)
    members, (rows, cols) = _members(words), first.shape[-2:]
    if not words.numel():
        step += 1
        return words.new_zeros(words.shape[:-2], dtype=torch.int64)
    flips = words.new_empty(words.shape[:-2], dtype=torch.int64)
    constants = words.new_empty((members, _cuda.update_constants), dtype=torch.float32)
    tensors = (scores, words, first, second, hyper, seed, step, constants, flips)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    sizes = (members, rows, cols)
    operands = (gy.data_ptr(), x.data_ptr(), gy.shape[-2], _SCALARS[gy.dtype], x.dtype == torch.int32)
    update: Callable[..., None] = _cuda.mask_grad_update
    update(rule, sample, *addresses, *sizes, *operands, *queue)
    return flips
