"""The update with its gradient: a tile of gyᵀ x is summed over the batch in registers and updates its edges there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels.bits import decode, members
from fastbin.kernels.mask_update import begin_step, update_words

# Rows and columns of the bits, samples. With 64 rows the tile would go to Blackwell's tensor memory, and Triton 3.6 crashes
# while it lays out the reshape to words that follows.
BLOCK_R, BLOCK_C, BLOCK_B = 32, 128, 32


@triton.jit
def _mask_grad_update(
    gy_ptr,
    x_ptr,
    scores_ptr,
    words_ptr,
    first_ptr,
    second_ptr,
    constants_ptr,
    flips_ptr,
    step_ptr,
    seed_ptr,
    batch,
    rows,
    cols,
    row_words,
    BITS: tl.constexpr,
    RULE: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """A tile of w: gy ``[P, batch, rows]``; x ``[P, batch, cols]``, or words ``[P, batch, row_words]`` if BITS."""
    TILE_WORDS: tl.constexpr = BLOCK_C // 32
    tiles_r, tiles_c = tl.cdiv(rows, BLOCK_R), tl.cdiv(cols, BLOCK_C)
    pid = tl.program_id(0)
    member = (pid // (tiles_r * tiles_c)).to(tl.int64)
    r_start, c_start = (pid // tiles_c % tiles_r) * BLOCK_R, (pid % tiles_c) * BLOCK_C
    r, c = r_start + tl.arange(0, BLOCK_R), c_start + tl.arange(0, BLOCK_C)
    w = c_start // 32 + tl.arange(0, TILE_WORDS)

    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for b_start in range(0, batch, BLOCK_B):
        b = b_start + tl.arange(0, BLOCK_B)
        sample = member * batch + b
        inside = b < batch
        gy = tl.load(
            gy_ptr + sample[None, :] * rows + r[:, None], mask=inside[None, :] & (r < rows)[:, None], other=0.0
        )
        if BITS:
            packed = tl.load(
                x_ptr + sample[:, None] * row_words + w[None, :],
                mask=inside[:, None] & (w < row_words)[None, :],
                other=0,
            )
            x = decode(packed, gy_ptr.dtype.element_ty)
        else:
            x = tl.load(
                x_ptr + sample[:, None] * cols + c[None, :], mask=inside[:, None] & (c < cols)[None, :], other=0.0
            )
        acc = tl.dot(gy, x, acc, input_precision="ieee")

    index = tl.arange(0, BLOCK_R * TILE_WORDS)
    update_words(
        tl.reshape(acc, (BLOCK_R * TILE_WORDS, 32)),
        member,
        r_start + index // TILE_WORDS,
        c_start // 32 + index % TILE_WORDS,
        scores_ptr,
        words_ptr,
        first_ptr,
        second_ptr,
        constants_ptr,
        flips_ptr,
        step_ptr,
        seed_ptr,
        rows,
        cols,
        row_words,
        RULE,
        SAMPLE,
    )


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
    bits = x.dtype == torch.int32
    if not bits and x.dtype != gy.dtype:
        gy, x = gy.float(), x.float()
    rows, cols = buffers[0].shape[-2:]
    with torch.cuda.device_of(words):
        constants, flips = begin_step(words, step, hyper, rule)
        if words.numel():
            _mask_grad_update[(members(words) * triton.cdiv(rows, BLOCK_R) * triton.cdiv(cols, BLOCK_C),)](
                gy.contiguous(),
                x.contiguous(),
                scores,
                words,
                buffers[0],
                buffers[1] if len(buffers) > 1 else None,
                constants,
                flips,
                step,
                seed,
                gy.shape[-2],
                rows,
                cols,
                words.shape[-1],
                BITS=bits,
                RULE=rule,
                SAMPLE=sample,
                BLOCK_R=BLOCK_R,
                BLOCK_C=BLOCK_C,
                BLOCK_B=BLOCK_B,
                num_warps=8,
                enable_fp_fusion=False,
            )
    return flips
