"""The score rules on the GPU: one pass over the edges, from the gradient to the packed bits.

The arithmetic is that of `fastbin.reference`, operation by operation, with fused multiply-adds off and with division and
square root rounded to nearest, which in Triton are calls of their own.

Bytes an edge: Adam reads scores, gradient, two moments and a bit, and writes scores, moments and the bit: 28.25. SGD moves
20.25, Bop 12.25. Where the columns are a multiple of 16, every access but that of the words is 16 bytes a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastbin.kernels import configs
from fastbin.kernels.bits import encode, members
from fastbin.reference import HYPER_FIELDS

CONSTANTS = tl.constexpr(9)  # float32 numbers a member, in the order in which `_begin_step` stores them
HYPER = tl.constexpr(HYPER_FIELDS)


@triton.jit
def _power(base, t):
    """base**t for float64 base and integer t ≥ 0, by squaring; its relative error is below t·2⁻⁵²."""
    result = tl.full(base.shape, 1.0, tl.float64)
    while t > 0:
        result = tl.where((t & 1) == 1, result * base, result)
        base = base * base
        t = t >> 1
    return result


@triton.jit
def _begin_step(step_ptr, hyper_ptr, constants_ptr, flips_ptr, members, ADAM: tl.constexpr, BLOCK: tl.constexpr):
    """In one program, so that nothing waits for the host: count the step, derive its constants, clear the counters."""
    t = tl.load(step_ptr) + 1
    tl.store(step_ptr, t)
    for start in range(0, members, BLOCK):
        member = start + tl.arange(0, BLOCK)
        inside = member < members
        hyper = hyper_ptr + member * HYPER
        lr = tl.load(hyper, mask=inside, other=0.5)
        tau = tl.load(hyper + 1, mask=inside, other=0.5)
        clip = tl.load(hyper + 2, mask=inside, other=0.5)
        c0 = tl.load(hyper + 3, mask=inside, other=0.5)
        c1 = tl.load(hyper + 4, mask=inside, other=0.5)
        c2 = tl.load(hyper + 5, mask=inside, other=0.5)
        rate, inv_sqrt_bias = lr, c2
        if ADAM:
            rate = lr / (1.0 - _power(c0, t))
            inv_sqrt_bias = 1.0 / tl.sqrt(1.0 - _power(c1, t))
        out = constants_ptr + member * CONSTANTS
        tl.store(out, (1.0 / tau).to(tl.float32), mask=inside)
        tl.store(out + 1, clip.to(tl.float32), mask=inside)
        tl.store(out + 2, rate.to(tl.float32), mask=inside)
        tl.store(out + 3, c0.to(tl.float32), mask=inside)
        tl.store(out + 4, (1.0 - c0).to(tl.float32), mask=inside)
        tl.store(out + 5, c1.to(tl.float32), mask=inside)
        tl.store(out + 6, (1.0 - c1).to(tl.float32), mask=inside)
        tl.store(out + 7, c2.to(tl.float32), mask=inside)
        tl.store(out + 8, inv_sqrt_bias.to(tl.float32), mask=inside)
        tl.store(flips_ptr + member, tl.zeros((BLOCK,), tl.int64), mask=inside)


@triton.jit
def _exp_neg(a):
    t = tl.where(a < 87.0, a, 87.0)
    n = (t * 1.44269504 + 12582912.0) - 12582912.0
    r = n * 0.693145751953125 - t
    r = r + n * 1.42860677e-6
    p = r * (1 / 720) + (1 / 120)
    p = p * r + (1 / 24)
    p = p * r + (1 / 6)
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * ((127 - n.to(tl.int32)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _uniform(seed, t, word):
    """float32 ``[words, 32]`` in [0, 1): block 8·w + j of the member's stream serves elements j, 8 + j, 16 + j, 24 + j."""
    block = word.to(tl.int64)[:, None] * 8 + tl.arange(0, 8)[None, :]
    low, high = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    t_low, t_high = (t & 0xFFFFFFFF).to(tl.uint32), (t >> 32).to(tl.uint32)
    u0, u1, u2, u3 = tl.philox(seed, low, high, t_low, t_high)
    # join puts its new axis last: [words, j, q & 1, q >> 1] for q of the four numbers of a block
    bits = tl.join(tl.join(u0, u1), tl.join(u2, u3))
    bits = tl.reshape(tl.permute(bits, (0, 3, 2, 1)), (word.shape[0], 32))
    return (bits >> 8).to(tl.float32) * (1 / 16777216)


@triton.jit
def update_words(
    grad,
    member,
    row,
    word,
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
    RULE: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """Update whole words: float32 grad ``[N, 32]`` of the words (row, word) ``[N]`` of a member (int64)."""
    lane = tl.arange(0, 32)[None, :]
    exists = (row < rows) & (word < row_words)
    col = word[:, None] * 32 + lane
    inside = exists[:, None] & (col < cols)
    member_row = member * rows + row
    at = member_row[:, None] * cols + col
    words_ptr += member_row * row_words + word
    constants_ptr += member * CONSTANTS
    inv_tau, clip, rate = tl.load(constants_ptr), tl.load(constants_ptr + 1), tl.load(constants_ptr + 2)
    c0, rest0 = tl.load(constants_ptr + 3), tl.load(constants_ptr + 4)
    c1, rest1 = tl.load(constants_ptr + 5), tl.load(constants_ptr + 6)
    c2, inv_sqrt_bias = tl.load(constants_ptr + 7), tl.load(constants_ptr + 8)

    packed = tl.load(words_ptr, mask=exists, other=0)
    old = ((packed[:, None] >> lane) & 1) != 0
    first = tl.load(first_ptr + at, mask=inside, other=0.0)
    if RULE == "bop":
        first = rest0 * first + c0 * grad
        flip = tl.where(old, first > c1, -first > c1) & inside
    else:
        scores = tl.load(scores_ptr + at, mask=inside, other=0.0)
        e = _exp_neg(tl.abs(scores * inv_tau))
        d = 1.0 + e
        g = grad * (tl.div_rn(e, d * d) * inv_tau)
        if RULE == "sgd":
            first = c0 * first + g
            moved = scores - rate * first
        else:
            second = tl.load(second_ptr + at, mask=inside, other=0.0)
            first = c0 * first + rest0 * g
            second = c1 * second + rest1 * (g * g)
            tl.store(second_ptr + at, second, mask=inside)
            moved = scores - tl.div_rn(rate * first, tl.sqrt_rn(second) * inv_sqrt_bias + c2)
        scores = tl.where(moved < -clip, -clip, tl.where(moved > clip, clip, moved))
        tl.store(scores_ptr + at, scores, mask=inside)
        if SAMPLE:
            z = scores * inv_tau
            e = _exp_neg(tl.abs(z))
            probability = tl.div_rn(tl.where(z > 0, 1.0, e), 1.0 + e)
            uniform = _uniform(tl.load(seed_ptr + member), tl.load(step_ptr), row * row_words + word)
            new = uniform < probability
        else:
            new = scores > 0
        flip = (new != old) & inside
    tl.store(first_ptr + at, first, mask=inside)
    tl.store(words_ptr, packed ^ encode(flip), mask=exists)
    flips = tl.sum(tl.sum(flip.to(tl.int32), axis=1), axis=0)
    tl.atomic_add(flips_ptr + member, flips.to(tl.int64))


@triton.jit
def _mask_update(
    grad_ptr,
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
    RULE: tl.constexpr,
    SAMPLE: tl.constexpr,
    TILE: tl.constexpr,
):
    # 32 bits number the words of a member: 2^31 words are 2^36 edges, whose scores alone would take 256 GiB.
    tiles = tl.cdiv(rows * row_words, TILE)
    member = (tl.program_id(0) // tiles).to(tl.int64)
    index = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    row, word = index // row_words, index % row_words
    col = word[:, None] * 32 + tl.arange(0, 32)[None, :]
    at = (member * rows + row)[:, None] * cols + col
    grad = tl.load(grad_ptr + at, mask=(row < rows)[:, None] & (col < cols), other=0.0)
    update_words(
        grad,
        member,
        row,
        word,
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


def begin_step(
    scores: Tensor | None,
    words: Tensor,
    buffers: list[Tensor],
    step: Tensor,
    seed: Tensor,
    hyper: Tensor,
    rule: str,
) -> tuple[Tensor, tuple[object, ...]]:
    """Count the step on the device and derive its constants there.

    Returns:
        Zeros for the flips, a scalar or ``[P]``; and the arguments of `update_words` from scores_ptr to row_words, in which
        the kernels that call it end.
    """
    constants = hyper.new_empty((members(words), CONSTANTS.value), dtype=torch.float32)
    flips = words.new_empty(words.shape[:-2], dtype=torch.int64)
    _begin_step[(1,)](
        step, hyper, constants, flips, members(words), ADAM=rule == "adam", BLOCK=128, enable_fp_fusion=False
    )
    first, second = (*buffers, None)[:2]
    rows, cols = first.shape[-2:]
    return flips, (scores, words, first, second, constants, flips, step, seed, rows, cols, words.shape[-1])


def mask_update_(
    scores: Tensor | None,
    grad: Tensor,
    words: Tensor,
    buffers: list[Tensor],
    step: Tensor,
    seed: Tensor,
    hyper: Tensor,
    rule: str,
    sample: bool,
) -> Tensor:
    config = configs.find("mask_update", grad.dtype, 1, words.device)
    with torch.cuda.device_of(words):
        flips, arguments = begin_step(scores, words, buffers, step, seed, hyper, rule)
        if words.numel():
            tiles = triton.cdiv(words.shape[-2] * words.shape[-1], config["tile_words"])
            _mask_update[(members(words) * tiles,)](
                grad.contiguous(),
                *arguments,
                RULE=rule,
                SAMPLE=sample,
                TILE=config["tile_words"],
                num_warps=config["num_warps"],
                enable_fp_fusion=False,
            )
    return flips
