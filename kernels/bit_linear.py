"""Products of reals and bits: tiles of words are decoded in registers and go to the matrix units.

A sum runs in one order, tile by tile along the inner dimension, so that equal inputs give equal outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels.bits import decode, members


@triton.jit
def _product(
    x_ptr,
    words_ptr,
    y_ptr,
    batch,
    inner,
    outputs,
    rows,
    row_words,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of y ``[P, batch, outputs]`` = x ``[P, batch, inner]`` @ wᵀ, or @ w if TRANSPOSED, w ``[P, rows, ..]``."""
    tiles_m, tiles_n = tl.cdiv(batch, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    pid = tl.program_id(0)
    member = (pid // (tiles_m * tiles_n)).to(tl.int64)
    m = (pid // tiles_n % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_start = (pid % tiles_n) * BLOCK_N
    n = n_start + tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_row = x_ptr + (member * batch + m[:, None]) * inner
    words_ptr += member * rows * row_words

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if dtype == tl.int8 else tl.float32)
    for k_start in range(0, inner, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row + k[None, :], mask=(m < batch)[:, None] & (k < inner)[None, :], other=0)
        if TRANSPOSED:
            row, word = k, n_start // 32 + tl.arange(0, BLOCK_N // 32)
        else:
            row, word = n, k_start // 32 + tl.arange(0, BLOCK_K // 32)
        packed = tl.load(
            words_ptr + row.to(tl.int64)[:, None] * row_words + word[None, :],
            mask=(row < rows)[:, None] & (word < row_words)[None, :],
            other=0,
        )
        w = decode(packed, dtype)
        acc = tl.dot(x, w if TRANSPOSED else tl.trans(w), acc, input_precision="ieee", out_dtype=acc.dtype)

    y = y_ptr + (member * batch + m[:, None]) * outputs + n[None, :]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=(m < batch)[:, None] & (n < outputs)[None, :])


def _launch(x: Tensor, words: Tensor, outputs: int, *, transposed: bool) -> Tensor:
    x, words = x.contiguous(), words.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs), dtype=torch.int32 if x.dtype == torch.int8 else x.dtype)
    if not y.numel():
        return y
    batch, inner = x.shape[-2:]
    block_m = 16 if batch <= 16 else 64  # 16 is the least that the matrix units take
    full = x.dtype == torch.float32
    block_n, block_k = 64, 32 if full else 64
    tiles = triton.cdiv(batch, block_m) * triton.cdiv(outputs, block_n)
    with torch.cuda.device_of(x):
        _product[(members(words) * tiles,)](
            x,
            words,
            y,
            batch,
            inner,
            outputs,
            *words.shape[-2:],
            TRANSPOSED=transposed,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            # float32 has no matrix units: its operands lie in registers, which 4 warps, or a pipeline of loads, overfill
            num_warps=8 if full else 4,
            num_stages=1 if full else 3,
            enable_fp_fusion=True,
        )
    return y


def bit_linear(x: Tensor, words: Tensor) -> Tensor:
    return _launch(x, words, words.shape[-2], transposed=False)


def bit_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    return _launch(g, words, cols, transposed=True)
