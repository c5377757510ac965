"""Products of two bit matrices: both are decoded to int8 in registers, and the matrix units sum in int32.

On CUDA cores a popcount does 16 words, 512 products, a cycle and multiprocessor; the int8 units of sm_80 do 2048, those of
sm_90 4096.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels import configs
from fastbin.kernels.bits import decode_pairs, members


@triton.jit
def _load(words_ptr, row, word, rows, row_words):
    mask = (row < rows)[:, None] & (word < row_words)[None, :]
    return tl.load(words_ptr + row.to(tl.int64)[:, None] * row_words + word[None, :], mask=mask, other=0)


@triton.jit
def _bit_matmul(
    a_ptr,
    b_ptr,
    y_ptr,
    rows_a,
    rows_b,
    row_words,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    tiles_a, tiles_b = tl.cdiv(rows_a, BLOCK_A), tl.cdiv(rows_b, BLOCK_B)
    pid = tl.program_id(0)
    member = (pid // (tiles_a * tiles_b)).to(tl.int64)
    m = (pid // tiles_b % tiles_a) * BLOCK_A + tl.arange(0, BLOCK_A)
    n = (pid % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)
    a_ptr += member * rows_a * row_words
    b_ptr += member * rows_b * row_words

    acc = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.int32)
    for start in range(0, row_words, BLOCK_WORDS):
        word = start + tl.arange(0, BLOCK_WORDS)
        a = decode_pairs(_load(a_ptr, m, word, rows_a, row_words), tl.int8)
        b = decode_pairs(_load(b_ptr, n, word, rows_b, row_words), tl.int8)
        acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)

    y = y_ptr + (member * rows_a + m[:, None]) * rows_b + n[None, :]
    tl.store(y, acc, mask=(m < rows_a)[:, None] & (n < rows_b)[None, :])


def bit_matmul(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    y = a.new_empty((*a.shape[:-1], b.shape[-2]))
    if y.numel():
        config = configs.find("bit_matmul", a.dtype, a.shape[-2], a.device)
        tiles = triton.cdiv(a.shape[-2], config["block_a"]) * triton.cdiv(b.shape[-2], config["block_b"])
        with torch.cuda.device_of(a):
            _bit_matmul[(members(a) * tiles,)](
                a,
                b,
                y,
                a.shape[-2],
                b.shape[-2],
                a.shape[-1],
                BLOCK_A=config["block_a"],
                BLOCK_B=config["block_b"],
                BLOCK_WORDS=config["block_words"],
                num_warps=config["num_warps"],
                num_stages=config["num_stages"],
                enable_fp_fusion=False,
            )
    return y
