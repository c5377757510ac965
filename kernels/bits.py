"""Pack, unpack, transpose and count bits, and the moves between words and elements that the other kernels share.

A Triton program handles whole words, as tiles ``[words, 32]``: bits become a word by a sum over the last axis, without
atomics, and bits past the last column are 0 because they are masked.

Every launch says whether multiplications and additions may fuse, since the default differs between versions of Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.reference import refuse_first, words_for

TILE_WORDS = 32  # words a program: 1024 elements, 8 for each of its 128 threads
COUNT_WORDS = 4096
TRANSPOSE_WORDS = 8


@triton.jit
def decode(words, dtype: tl.constexpr):
    """Values 0 and 1 ``[N, 32·K]`` in `dtype` from words ``[N, K]``.

    A float 1.0 is made as its bit pattern: cheaper than converting an integer.
    """
    bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    bits = tl.reshape(bits, (words.shape[0], words.shape[1] * 32))
    if dtype == tl.float32:
        return (bits * 0x3F800000).to(tl.float32, bitcast=True)
    elif dtype == tl.bfloat16:
        return (bits * 0x3F80).to(tl.int16).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float16:
        return (bits * 0x3C00).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        return bits.to(dtype)


@triton.jit
def _gather_pairs(first, second):
    """Two words ``[.., 2]``: bits i and 16 + i of the one are bit i of first and of second, of the other bit 16 + i."""
    low = (first & 0xFFFF) | (second << 16)
    high = ((first >> 16) & 0xFFFF) | (second & -65536)
    return tl.join(low, high)


@triton.jit
def _pairs(words, place, dtype: tl.constexpr):
    """Values 0 and 1 ``[.., 2]`` in a dtype of 16 or 8 bits: bits `place` (below 8) and 16 + place of each word ``[..]``."""
    if dtype == tl.int8:
        pairs = (words >> place) & 0x10001
    else:  # the lowest bit of 1.0 in these dtypes is bit 7, or 10: one multiplication moves a bit there and fills the rest
        one: tl.constexpr = 0x3F80 if dtype == tl.bfloat16 else 0x3C00
        pairs = (words & (0x10001 << place)) * (one >> place)
    pairs = tl.join(pairs, pairs >> 16)
    return pairs.to(tl.int8) if dtype == tl.int8 else pairs.to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def decode_pairs(words, dtype: tl.constexpr):
    """`decode` for an operand of the matrix units, in a dtype of 16 or 8 bits.

    Two neighbours of 16 bits lie in one register and are made there at once, by a mask and a multiplication, once their bits
    lie 16 apart. Joins, unlike broadcasts, also keep Triton from staging the result in shared memory.
    """
    gathered = _gather_pairs(words, words >> 1)
    halves = gathered[:, :, :, None] >> (8 * tl.arange(0, 2))[None, None, None, :]
    pairs = _pairs(halves[:, :, :, :, None], (2 * tl.arange(0, 4))[None, None, None, None, :], dtype)
    return tl.reshape(pairs, (words.shape[0], words.shape[1] * 32))


@triton.jit
def decode_row_pairs(even, odd, dtype: tl.constexpr):
    """As `decode_pairs`, a transposed matrix ``[32·N, 2·K]`` from words ``[N, K]`` of its even and its odd columns."""
    gathered = tl.permute(_gather_pairs(even, odd), (0, 2, 1))
    halves = gathered[:, :, None, :] >> (8 * tl.arange(0, 2))[None, None, :, None]
    pairs = _pairs(halves[:, :, :, None, :], tl.arange(0, 8)[None, None, None, :, None], dtype)
    return tl.reshape(pairs, (even.shape[0] * 32, even.shape[1] * 2))


@triton.jit
def encode(bits):
    """Words ``[N]`` from bits (int1) ``[N, 32]``: the terms have no bit in common, so their sum is their union."""
    return tl.sum(bits.to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)


@triton.jit
def _tile(words, row_words, cols, TILE: tl.constexpr):
    """The program's words ``[TILE]`` (int64), their elements ``[TILE, 32]``, and which of either exist."""
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    col = (word % row_words)[:, None] * 32 + tl.arange(0, 32)[None, :]
    element = (word // row_words)[:, None] * cols + col
    exists = word < words
    return word, exists, element, exists[:, None] & (col < cols)


@triton.jit
def _pack(x_ptr, words_ptr, bad_ptr, threshold, words, row_words, cols, COMPARE: tl.constexpr, TILE: tl.constexpr):
    word, exists, element, inside = _tile(words, row_words, cols, TILE)
    x = tl.load(x_ptr + element, mask=inside, other=0)
    if x_ptr.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)  # Triton's interpreter compares bfloat16 as integers
    if COMPARE:
        bits = (x > threshold) & inside
        bad = x != x
    else:
        bits = x != 0
        bad = bits & (x != 1)
    tl.store(words_ptr + word, encode(bits), mask=exists)
    if bad_ptr is not None:
        found = tl.max(tl.max(bad.to(tl.int32), axis=1), axis=0)
        tl.store(bad_ptr, found, mask=found != 0)  # programs that store at all store the same 1


@triton.jit
def _unpack(words_ptr, y_ptr, words, row_words, cols, TILE: tl.constexpr):
    word, exists, element, inside = _tile(words, row_words, cols, TILE)
    packed = tl.load(words_ptr + word, mask=exists, other=0)
    tl.store(y_ptr + element, decode(packed[:, None], y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _transpose(words_ptr, out_ptr, rows, cols, row_words, out_words, TILE: tl.constexpr):
    tiles = tl.cdiv(out_words, TILE)
    column = tl.program_id(0) // tiles  # of words, over all members
    member, word = (column // row_words).to(tl.int64), column % row_words
    out_word = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    lane = tl.arange(0, 32)

    row = out_word[:, None] * 32 + lane[None, :]
    packed = tl.load(words_ptr + (member * rows + row) * row_words + word, mask=row < rows, other=0)
    bits = (packed[:, :, None] >> lane[None, None, :]) & 1  # [out words, 32 rows, 32 columns]
    turned = tl.sum(bits << lane[None, :, None], axis=1)

    col = word * 32 + lane
    out = out_ptr + (member * cols + col[None, :]) * out_words + out_word[:, None]
    tl.store(out, turned, mask=(col < cols)[None, :] & (out_word < out_words)[:, None])


@triton.jit
def _popcount(words_ptr, counts_ptr, words, TILE: tl.constexpr):
    tiles = tl.cdiv(words, TILE)
    member = (tl.program_id(0) // tiles).to(tl.int64)
    word = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    n = tl.load(words_ptr + member * words + word, mask=word < words, other=0)
    # Sums over 2, 4, 8, 16 and 32 neighbours at once; the sign that >> drags in never outlives the next mask.
    n = n - ((n >> 1) & 0x55555555)
    n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
    n = (n + (n >> 4)) & 0x0F0F0F0F
    n = n + (n >> 8)
    n = (n + (n >> 16)) & 0x3F
    tl.atomic_add(counts_ptr + member, tl.sum(n, axis=0).to(tl.int64))


def members(t: Tensor) -> int:
    """P, or 1 without a population axis."""
    return t.shape[0] if t.dim() == 3 else 1


def pack(x: Tensor, threshold: float | None, check: bool = True) -> Tensor:
    """As `fastbin.reference.pack`; only `check` waits for the GPU."""
    if threshold is not None and x.dtype != torch.float32:  # torch knows how each dtype compares with a float
        if check:
            refuse_first(x, x.isnan(), "numbers")
        x, threshold = x > threshold, None
    x = x.contiguous()
    cols = x.shape[-1]
    words = x.new_empty((*x.shape[:-1], words_for(cols)), dtype=torch.int32)
    bad = words.new_zeros(1) if check and x.dtype != torch.bool else None
    if words.numel():
        with torch.cuda.device_of(x):
            _pack[(triton.cdiv(words.numel(), TILE_WORDS),)](
                x.view(torch.uint8) if x.dtype == torch.bool else x,
                words,
                bad,
                threshold or 0.0,
                words.numel(),
                words_for(cols),
                cols,
                COMPARE=threshold is not None,
                TILE=TILE_WORDS,
                enable_fp_fusion=False,
            )
    if bad is not None and bad.item():
        if threshold is None:
            refuse_first(x, (x != 0) & (x != 1), "values of 0 and 1")
        else:
            refuse_first(x, x.isnan(), "numbers")
    return words


def unpack(words: Tensor, cols: int, dtype: torch.dtype) -> Tensor:
    words = words.contiguous()
    y = words.new_empty((*words.shape[:-1], cols), dtype=dtype)
    if y.numel():
        with torch.cuda.device_of(words):
            _unpack[(triton.cdiv(words.numel(), TILE_WORDS),)](
                words,
                y.view(torch.uint8) if dtype == torch.bool else y,
                words.numel(),
                words.shape[-1],
                cols,
                TILE=TILE_WORDS,
                enable_fp_fusion=False,
            )
    return y


def transpose(words: Tensor, cols: int) -> Tensor:
    words = words.contiguous()
    rows, row_words = words.shape[-2:]
    out = words.new_empty((*words.shape[:-2], cols, words_for(rows)))
    if out.numel():
        tiles = triton.cdiv(words_for(rows), TRANSPOSE_WORDS)
        with torch.cuda.device_of(words):
            _transpose[(members(words) * row_words * tiles,)](
                words, out, rows, cols, row_words, words_for(rows), TILE=TRANSPOSE_WORDS, enable_fp_fusion=False
            )
    return out


def popcount(words: Tensor) -> Tensor:
    words = words.contiguous()
    counts = words.new_zeros(words.shape[:-2], dtype=torch.int64)
    if words.numel():
        size = words.shape[-2] * words.shape[-1]
        with torch.cuda.device_of(words):
            _popcount[(members(words) * triton.cdiv(size, COUNT_WORDS),)](
                words, counts, size, TILE=COUNT_WORDS, enable_fp_fusion=False
            )
    return counts
