"""Products of reals and bits: words are decoded in registers and go to the matrix units.

The decoded weights are the left operand of the matrix units, yᵀ = w xᵀ: on sm_90 wgmma reads its left operand from
registers, its right one from shared memory only, so this way round decoded bits never touch shared memory, and a batch of 16
fills an instruction that is 64 outputs high. A pair of neighbours is decoded in four operations (`decode_pairs`).

float32 takes no tf32: x is cut into three bfloat16 parts of 8 bits each, which hold all its 24, and bits are exact in
bfloat16. Three products on the matrix units cost a third of their rate, still several times that of float32 outside them.
Their sums over a tile are added to the accumulator in float32, rounded to nearest: the matrix units may truncate.

A sum runs in one order, so that equal inputs give equal outputs. Where there are fewer tiles than the device can run, the
inner dimension is cut as well: partial sums go to a workspace, and a second kernel adds them, in order and without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels import configs
from fastbin.kernels.bits import decode_pairs, decode_row_pairs, members

GROUP = tl.constexpr(8)  # tiles of outputs whose programs run together, on the same samples: those stay in the L2 cache
REDUCE = 1024  # elements a program of the reduction


@triton.jit
def _top_bits(x):
    """The upper 8 bits of a float32's significand, exact in bfloat16; no rounding, so the largest number stays finite."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


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
    split_inner,
    splits,
    TRANSPOSED: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of y ``[splits, P, batch, outputs]`` = x ``[P, batch, inner]`` @ wᵀ, or @ w if TRANSPOSED, w ``[P, rows, ..]``.

    Split s sums over inner indices from s·split_inner, a multiple of BLOCK_K.
    """
    tiles_o, tiles_b = tl.cdiv(outputs, BLOCK_OUT), tl.cdiv(batch, BLOCK_BATCH)
    tiles = tiles_o * tiles_b
    pid = tl.program_id(0)
    member, split, tile = pid // tiles // splits, pid // tiles % splits, pid % tiles
    group_start = tile // (GROUP * tiles_b) * GROUP
    group_size = tl.minimum(tiles_o - group_start, GROUP)
    o_start = (group_start + tile % (GROUP * tiles_b) % group_size) * BLOCK_OUT
    o = o_start + tl.arange(0, BLOCK_OUT)
    b = (tile % (GROUP * tiles_b) // group_size) * BLOCK_BATCH + tl.arange(0, BLOCK_BATCH)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    weight_dtype: tl.constexpr = tl.bfloat16 if dtype == tl.float32 else dtype
    member = member.to(tl.int64)
    x_row = x_ptr + (member * batch + b[None, :]) * inner
    words_ptr += member * rows * row_words

    acc = tl.zeros((BLOCK_OUT, BLOCK_BATCH), dtype=tl.int32 if dtype == tl.int8 else tl.float32)
    k_end = tl.minimum(inner, (split + 1) * split_inner)
    for k_start in range(split * split_inner, k_end, BLOCK_K):
        k = k_start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row + k[:, None], mask=(b < batch)[None, :] & (k < inner)[:, None], other=0)
        if TRANSPOSED:
            word = o_start // 32 + tl.arange(0, BLOCK_OUT // 32)
            row = k_start + 2 * tl.arange(0, BLOCK_K // 2)
            at = words_ptr + row.to(tl.int64)[None, :] * row_words + word[:, None]
            exists = (word < row_words)[:, None]
            even = tl.load(at, mask=exists & (row < rows)[None, :], other=0)
            odd = tl.load(at + row_words, mask=exists & (row + 1 < rows)[None, :], other=0)
            w = decode_row_pairs(even, odd, weight_dtype)
        else:
            word = k_start // 32 + tl.arange(0, BLOCK_K // 32)
            packed = tl.load(
                words_ptr + o.to(tl.int64)[:, None] * row_words + word[None, :],
                mask=(o < rows)[:, None] & (word < row_words)[None, :],
                other=0,
            )
            w = decode_pairs(packed, weight_dtype)
        if dtype == tl.float32:
            high = _top_bits(x)
            middle = _top_bits(x - high)
            part = tl.dot(w, (x - high - middle).to(tl.bfloat16))
            part = tl.dot(w, middle.to(tl.bfloat16), part)
            acc += tl.dot(w, high.to(tl.bfloat16), part)
        else:
            acc = tl.dot(w, x, acc, out_dtype=acc.dtype)

    population = tl.num_programs(0) // tiles // splits
    y_row = (split.to(tl.int64) * population + member) * batch + b
    y = y_ptr + y_row[None, :] * outputs + o[:, None]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=(b < batch)[None, :] & (o < outputs)[:, None])


@triton.jit
def _sum_splits(parts_ptr, y_ptr, size, splits, BLOCK: tl.constexpr):
    """Sum parts ``[splits, size]`` into y ``[size]``, in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=parts_ptr.dtype.element_ty)
    for _ in range(splits):
        acc += tl.load(parts_ptr + at, mask=at < size, other=0)
        parts_ptr += size
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=at < size)


def split_inner(inner: int, tiles: int, config: configs.Config) -> int:
    """How many inner indices a program sums over: all, unless so few tiles leave multiprocessors idle.

    A split is at least four tiles deep, so that writing and reading its partial sums costs less than computing them.
    """
    splits = min(config["programs"] // tiles, inner // (4 * config["block_k"]))
    if splits <= 1:
        return max(inner, 1)
    return triton.cdiv(triton.cdiv(inner, splits), config["block_k"]) * config["block_k"]


def _launch(x: Tensor, words: Tensor, outputs: int, kernel: str) -> Tensor:
    x, words = x.contiguous(), words.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs), dtype=torch.int32 if x.dtype == torch.int8 else x.dtype)
    if not y.numel():
        return y
    batch, inner = x.shape[-2:]
    config = configs.find(kernel, x.dtype, batch, x.device)
    tiles = triton.cdiv(outputs, config["block_out"]) * triton.cdiv(batch, config["block_batch"]) * members(words)
    depth = split_inner(inner, tiles, config)
    splits = max(triton.cdiv(inner, depth), 1)
    parts = y
    if splits > 1:
        parts = y.new_empty((splits, *y.shape), dtype=torch.int32 if x.dtype == torch.int8 else torch.float32)
    with torch.cuda.device_of(x):
        _product[(tiles * splits,)](
            x,
            words,
            parts,
            batch,
            inner,
            outputs,
            *words.shape[-2:],
            depth,
            splits,
            TRANSPOSED=kernel == "bit_linear_t",
            BLOCK_OUT=config["block_out"],
            BLOCK_BATCH=config["block_batch"],
            BLOCK_K=config["block_k"],
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
            enable_fp_fusion=True,
        )
        if splits > 1:
            _sum_splits[(triton.cdiv(y.numel(), REDUCE),)](
                parts, y, y.numel(), splits, BLOCK=REDUCE, enable_fp_fusion=False
            )
    return y


def bit_linear(x: Tensor, words: Tensor) -> Tensor:
    return _launch(x, words, words.shape[-2], "bit_linear")


def bit_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    return _launch(g, words, cols, "bit_linear_t")
