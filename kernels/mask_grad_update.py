"""The update with its gradient gyᵀ x, summed over the batch on the matrix units.

Either in one kernel, whose tile of the gradient stays in registers and updates its edges there, or as a product that stores
the gradient and an update that reads it back: `fused_pays` says which.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels import configs
from fastbin.kernels.bits import decode, members
from fastbin.kernels.mask_update import begin_step, mask_update_, update_words

# What `fused_pays` reckons with, for an H100 SXM: shares assumed, not measured, of the rates in its data sheet.
PRODUCT_RATE = {
    True: 0.6 * 989e12,
    False: 0.6 * 67e12,
}  # operations a second with tiles of full size, by 16-bit operands
FUSED_RATE = {True: 0.35 * 989e12, False: 0.45 * 67e12}  # with the smaller tiles that leave registers for the update
MEMORY_BANDWIDTH = 0.9 * 3.35e12  # bytes a second
CACHE_BANDWIDTH = 5.5e12
CACHE = 25e6  # bytes of a gradient that is still in the L2 cache when the update reads it


def fused_pays(batch: int, rows: int, cols: int, dtype: torch.dtype) -> bool:
    """Whether one kernel is reckoned faster than product and update apart.

    Both do 2·batch·rows·cols operations, and both move what an update moves. Apart, the gradient is also written and read: 8
    bytes an edge. Fused, the product runs at a lower rate, since scores and moments take the registers of half a tile, and
    since the tensor units idle while a tile is updated. The edges cancel: what decides is the batch, some 1100 samples of 16
    bits (600 if the gradient fits in the L2 cache) or 160 of float32.

    Args:
        batch: samples.
        rows: rows of the bits, those of all members together.
        cols: columns of the bits.
        dtype: of the operands.
    """
    half = dtype != torch.float32
    edges = rows * cols
    lost = 2 * batch * edges * (1 / FUSED_RATE[half] - 1 / PRODUCT_RATE[half])
    saved = 8 * edges / (CACHE_BANDWIDTH if 4 * edges <= CACHE else MEMORY_BANDWIDTH)
    return lost <= saved


@triton.jit
def _tile_start(rows, cols, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Member (int64), first row and first column of the program's tile."""
    tiles_r, tiles_c = tl.cdiv(rows, BLOCK_R), tl.cdiv(cols, BLOCK_C)
    pid = tl.program_id(0)
    member = (pid // (tiles_r * tiles_c)).to(tl.int64)
    return member, (pid // tiles_c % tiles_r) * BLOCK_R, (pid % tiles_c) * BLOCK_C


@triton.jit
def _gradient_tile(
    gy_ptr,
    x_ptr,
    batch,
    member,
    r_start,
    c_start,
    rows,
    cols,
    row_words,
    BITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Float32 ``[BLOCK_R, BLOCK_C]`` of gyᵀ x: gy ``[P, batch, rows]``; x ``[P, batch, cols]``, or words if BITS."""
    r, c = r_start + tl.arange(0, BLOCK_R), c_start + tl.arange(0, BLOCK_C)
    w = c_start // 32 + tl.arange(0, BLOCK_C // 32)
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
    return acc


@triton.jit
def _gradient(
    gy_ptr,
    x_ptr,
    grad_ptr,
    batch,
    rows,
    cols,
    row_words,
    BITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """A tile of grad ``[P, rows, cols]``."""
    member, r_start, c_start = _tile_start(rows, cols, BLOCK_R, BLOCK_C)
    acc = _gradient_tile(
        gy_ptr, x_ptr, batch, member, r_start, c_start, rows, cols, row_words, BITS, BLOCK_R, BLOCK_C, BLOCK_B
    )
    r, c = r_start + tl.arange(0, BLOCK_R), c_start + tl.arange(0, BLOCK_C)
    grad = grad_ptr + (member * rows + r)[:, None] * cols + c[None, :]
    tl.store(grad, acc, mask=(r < rows)[:, None] & (c < cols)[None, :])


@triton.jit
def _mask_grad_update(
    gy_ptr,
    x_ptr,
    batch,
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
    BITS: tl.constexpr,
    RULE: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    TILE_WORDS: tl.constexpr = BLOCK_C // 32
    member, r_start, c_start = _tile_start(rows, cols, BLOCK_R, BLOCK_C)
    acc = _gradient_tile(
        gy_ptr, x_ptr, batch, member, r_start, c_start, rows, cols, row_words, BITS, BLOCK_R, BLOCK_C, BLOCK_B
    )
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


def _launch(kernel: str, gy: Tensor, x: Tensor, words: Tensor, cols: int) -> tuple[tuple[int], dict[str, object]]:
    """The grid of a kernel over the tiles of the bits, and its options."""
    config = configs.find(kernel, gy.dtype, gy.shape[-2], words.device)
    block_r, block_c = config["block_r"], config["block_c"]
    grid = (members(words) * triton.cdiv(words.shape[-2], block_r) * triton.cdiv(cols, block_c),)
    options = {
        "BITS": x.dtype == torch.int32,
        "BLOCK_R": block_r,
        "BLOCK_C": block_c,
        "BLOCK_B": config["block_b"],
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
        "enable_fp_fusion": False,
    }
    return grid, options


def gradient(gy: Tensor, x: Tensor, cols: int, words: Tensor) -> Tensor:
    """Float32 gyᵀ x ``[.., R, C]``; gy and x contiguous."""
    grad = gy.new_empty((*words.shape[:-1], cols), dtype=torch.float32)
    if grad.numel():
        grid, options = _launch("gradient", gy, x, words, cols)
        with torch.cuda.device_of(words):
            _gradient[grid](gy, x, grad, gy.shape[-2], words.shape[-2], cols, words.shape[-1], **options)
    return grad


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
    if x.dtype not in (torch.int32, gy.dtype):
        gy, x = gy.float(), x.float()
    gy, x, cols = gy.contiguous(), x.contiguous(), buffers[0].shape[-1]
    if not fused_pays(gy.shape[-2], words.shape[:-1].numel(), cols, gy.dtype):
        grad = gradient(gy, x, cols, words)
        return mask_update_(scores, grad, words, buffers, step, seed, hyper, rule, sample)
    with torch.cuda.device_of(words):
        flips, arguments = begin_step(scores, words, buffers, step, seed, hyper, rule)
        if words.numel():
            grid, options = _launch("mask_grad_update", gy, x, words, cols)
            _mask_grad_update[grid](gy, x, gy.shape[-2], *arguments, RULE=rule, SAMPLE=sample, **options)
    return flips
