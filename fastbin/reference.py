"""The truth: every op in plain torch, on any device, slow and clear.

Functions take what the `fastbin::` ops of `fastbin.library` take (words, not `BitMatrix`) and have been given checked
arguments. Products of floats are computed in float64 and rounded once. The arithmetic of the updates is spelled out
operation by operation in float32: kernels repeat it in this order, without fused multiply-adds, and so are equal to it
bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORD_BITS = 32
HYPER_FIELDS = 6  # lr, tau, clip and three constants of the rule's own: the columns of the updates' `hyper` tensor
BUFFERS = {"sgd": 1, "adam": 2, "bop": 1}  # what a rule remembers: momentum; two moments; running mean


def words_for(cols: int) -> int:
    """Words in a row of `cols` bits."""
    return (cols + WORD_BITS - 1) // WORD_BITS


# ---------------------------------------------------------------------------------------------------- moving bits about


def pack(x: Tensor, threshold: float | None, check: bool = True) -> Tensor:
    """Bits of ``x > threshold``, or of x itself if its values are all 0 or 1, as int32 words ``[.., R, ceil(C/32)]``.

    With `check`, other values, or NaN against a threshold, are a ValueError. Without, NaN is not above a threshold.
    """
    bits = x != 0 if threshold is None else x > threshold
    if check:
        bad, expected = (bits & (x != 1), "values of 0 and 1") if threshold is None else (x.isnan(), "numbers")
        refuse_first(x, bad, expected)
    cols = x.shape[-1]
    padded = torch.nn.functional.pad(bits, (0, words_for(cols) * WORD_BITS - cols))
    lanes = padded.unflatten(-1, (words_for(cols), WORD_BITS)).to(torch.int64)
    weights = 2 ** torch.arange(WORD_BITS, device=x.device)
    # Sums reach 2^32 - 1; the conversion to int32 keeps the low 32 bits.
    words: Tensor = (lanes * weights).sum(-1).to(torch.int32)
    return words


def refuse_first(x: Tensor, bad: Tensor, expected: str) -> None:
    """Raise ValueError naming the first value of `x` where `bad` holds, and its place."""
    if bad.any():
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"pack expects {expected}, got {x[at].item()!r} at {at}")


def unpack(words: Tensor, cols: int, dtype: torch.dtype) -> Tensor:
    """The logical matrix ``[.., R, cols]`` in `dtype`."""
    shifts = torch.arange(WORD_BITS, device=words.device, dtype=torch.int32)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :cols].to(dtype)


def transpose(words: Tensor, cols: int) -> Tensor:
    """Words of the transposed matrix: ``[.., R, ceil(cols/32)]`` to ``[.., cols, ceil(R/32)]``."""
    return pack(unpack(words, cols, torch.bool).transpose(-1, -2), None)


def popcount(words: Tensor) -> Tensor:
    """Set bits of each matrix, int64: a scalar, or ``[P]`` for a population."""
    return unpack(words, words.shape[-1] * WORD_BITS, torch.int64).sum((-1, -2))


# ------------------------------------------------------------------------------------------------------------- products


def _product(x: Tensor, w: Tensor) -> Tensor:
    # Exact for int8 inputs too: |sum| < 2^53.
    y = x.double() @ w
    return y.to(torch.int32 if x.dtype == torch.int8 else x.dtype)


def bit_linear(x: Tensor, words: Tensor) -> Tensor:
    """``x @ wᵀ``: ``[.., B, C]`` with ``[.., R, C]`` to ``[.., B, R]`` in x's dtype (int32 for int8)."""
    return _product(x, unpack(words, x.shape[-1], torch.float64).mT)


def bit_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    """``g @ w``: ``[.., B, R]`` with ``[.., R, C]`` to ``[.., B, C]`` in g's dtype (int32 for int8)."""
    return _product(g, unpack(words, cols, torch.float64))


def bit_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ bᵀ`` of two bit matrices ``[.., M, C]`` and ``[.., N, C]`` to int32 ``[.., M, N]``."""
    cols = a.shape[-1] * WORD_BITS
    return (unpack(a, cols, torch.float64) @ unpack(b, cols, torch.float64).mT).to(torch.int32)


def ternary_linear(x: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """``x @ (plus − minus)ᵀ``."""
    cols = x.shape[-1]
    return _product(x, (unpack(plus, cols, torch.float64) - unpack(minus, cols, torch.float64)).mT)


def ternary_linear_t(g: Tensor, plus: Tensor, minus: Tensor, cols: int) -> Tensor:
    """``g @ (plus − minus)``."""
    return _product(g, unpack(plus, cols, torch.float64) - unpack(minus, cols, torch.float64))


def sign_linear(x: Tensor, words: Tensor) -> Tensor:
    """``x @ (2 w − 1)ᵀ``."""
    return _product(x, 2 * unpack(words, x.shape[-1], torch.float64).mT - 1)


def sign_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    """``g @ (2 w − 1)``."""
    return _product(g, 2 * unpack(words, cols, torch.float64) - 1)


# -------------------------------------------------------------------------------------------------------------- updates


def exp_neg(a: Tensor) -> Tensor:
    """exp(-a) for float32 a ≥ 0, by range reduction to [-ln2/2, ln2/2] and a polynomial of degree 6.

    Relative error below 3e-7; inputs above 87 give exp(-87) ≈ 1.6e-38, still a normal number.
    """
    t = torch.where(a < 87.0, a, 87.0)
    magic = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to the nearest integer, ties to even
    n = (t * 1.44269504 + magic) - magic
    r = n * 0.693145751953125 - t  # ln 2 in two parts; the first has 16 bits, so its product with n ≤ 126 is exact
    r = r + n * 1.42860677e-6
    p = torch.full_like(r, 1 / 720)
    for c in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = p * r + c
    return p * ((127 - n.to(torch.int32)) << 23).view(torch.float32)


def philox_uniform(seed: Tensor, step: int, rows: int, cols: int) -> Tensor:
    """float32 ``[P, rows, cols]`` in [0, 1), from Philox 4x32-10 (Salmon et al. 2011).

    The key is the member's seed, the counter (block, step). Block 8·w + j serves elements j, 8 + j, 16 + j and 24 + j of
    word w = r·ceil(cols/32) + c // 32, so that a number depends on its place alone and not on threads or vector width.
    """
    mask = 0xFFFFFFFF
    members, count = seed.numel(), words_for(cols)
    block = torch.arange(rows * count * 8, dtype=torch.int64, device=seed.device).expand(members, -1)
    x = [block & mask, block >> 32, torch.full_like(block, step & mask), torch.full_like(block, step >> 32)]
    key0, key1 = (seed & mask).unsqueeze(1), ((seed >> 32) & mask).unsqueeze(1)
    for _ in range(10):
        (high0, low0), (high1, low1) = _mul32(0xD2511F53, x[0]), _mul32(0xCD9E8D57, x[2])
        x = [high1 ^ x[1] ^ key0, low1, high0 ^ x[3] ^ key1, low0]
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    bits = torch.stack(x, 1).view(members, 4, rows, count, 8).permute(0, 2, 3, 1, 4).flatten(2)
    return (bits[..., :cols] >> 8).to(torch.float32) * 2.0**-24


def _mul32(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    # High and low half of the 64-bit product of two 32-bit numbers; int64 holds only 63 bits, so by 16-bit halves.
    low, high = a * (x & 0xFFFF), a * (x >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def sample_bits(scores: Tensor, tau: float, seed: Tensor, step: int) -> Tensor:
    """Words of bits drawn from Bernoulli(sigmoid(scores/tau)), as an update with `sample` draws them at `step`."""
    rows, cols = scores.shape[-2:]
    z = scores * (1.0 / tau)
    e = exp_neg(z.abs())
    probability = torch.where(z > 0, 1.0, e) / (1.0 + e)
    uniform = philox_uniform(seed, step, rows, cols).view(scores.shape)
    return pack(uniform < probability, None)


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
    """One update in place; returns the number of flipped bits, int64 (a scalar, or ``[P]``)."""
    if words.dim() == 3:
        flips = [
            _member_update(None if scores is None else scores[p], grad[p], words[p], [b[p] for b in buffers],
                           int(step) + 1, seed[p : p + 1], hyper[p].tolist(), rule, sample)
            for p in range(words.shape[0])
        ]  # fmt: skip
        step += 1
        return torch.stack(flips) if flips else torch.zeros(0, dtype=torch.int64, device=words.device)
    step += 1
    return _member_update(scores, grad, words, buffers, int(step), seed, hyper[0].tolist(), rule, sample)


def _member_update(
    scores: Tensor | None,
    grad: Tensor,
    words: Tensor,
    buffers: list[Tensor],
    t: int,
    seed: Tensor,
    hyper: list[float],
    rule: str,
    sample: bool,
) -> Tensor:
    lr, tau, clip, c0, c1, c2 = hyper
    old = unpack(words, grad.shape[-1], torch.bool)
    if scores is None:  # bop
        (mean,) = buffers
        mean.copy_((1 - c0) * mean + c0 * grad)
        new = torch.where(old, ~(mean > c1), -mean > c1)
        words.copy_(pack(new, None))
        return (old ^ new).sum()
    inv_tau = 1.0 / tau
    e = exp_neg((scores * inv_tau).abs())
    d = 1.0 + e
    g = grad * ((e / (d * d)) * inv_tau)
    if rule == "sgd":
        (m,) = buffers
        m.copy_(c0 * m + g)
        moved = scores - lr * m
    else:
        m, v = buffers
        m.copy_(c0 * m + (1 - c0) * g)
        v.copy_(c1 * v + (1 - c1) * (g * g))
        step_size, inv_sqrt_bc2 = lr / (1 - math.pow(c0, t)), 1 / math.sqrt(1 - math.pow(c1, t))
        root = v.double().sqrt().float()  # rounded to nearest, which torch's float32 square root on the CPU is not
        moved = scores - (step_size * m) / (root * inv_sqrt_bc2 + c2)
    scores.copy_(torch.where(moved < -clip, -clip, torch.where(moved > clip, clip, moved)))
    words.copy_(sample_bits(scores, tau, seed, t) if sample else pack(scores > 0, None))
    return (old ^ unpack(words, grad.shape[-1], torch.bool)).sum()


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
    """`mask_update_` with grad = gyᵀ x; x is real ``[.., B, C]``, or bits as int32 words ``[.., B, ceil(C/32)]``."""
    dense = unpack(x, buffers[0].shape[-1], torch.float64) if x.dtype == torch.int32 else x.double()
    grad = (gy.double().mT @ dense).float()
    return mask_update_(scores, grad, words, buffers, step, seed, hyper, rule, sample)
