"""Bounds on the Hessian of the loss over [0,1]^d: proved ones for small forms, estimates for all smooth ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastbin.theory.relaxed import SIGMOID_CURVATURE, SIGMOID_SLOPE, RelaxedLoss

SMOOTH = ("tanh", "gelu")  # twice differentiable
TANH_CURVATURE = 4 / (3 * math.sqrt(3))  # greatest second derivative of tanh


@dataclass(frozen=True, eq=False)
class Curvature:
    """Bounds that hold on all of [0,1]^d if they are certified, and were seen at some points if they are estimated.

    Attributes:
        rows: β_i, of the norm of row i of the Hessian ``[d]``.
        diagonal: β_ii, of its i-th diagonal entry ``[d]``.
        slopes: of |∂L/∂w_i| ``[d]``.
        kind: certified or estimated.
    """

    rows: Tensor
    diagonal: Tensor
    slopes: Tensor
    kind: Literal["certified", "estimated"]

    def smoothness(self, tau: float) -> float:
        """Λ of F_τ(θ) = L(σ_τ(θ)).

        Its Hessian is D H D + diag(σ'' ∂L) with D = diag(σ'), where σ' ≤ 1/(4τ) and |σ''| ≤ 1/(6√3 τ²); the norm of H is at
        most √Σβ_i².
        """
        hessian = SIGMOID_SLOPE**2 * float(self.rows.norm())
        return (hessian + SIGMOID_CURVATURE * float(self.slopes.max())) / tau**2


def certifiable(loss: RelaxedLoss) -> str | None:
    """Why a loss's curvature cannot be certified; None if it can."""
    norms = {loss.net.norm_of(layer) for layer in range(len(loss.shapes))}
    if norms != {"none"}:
        return f"norm {max(norms - {'none'})} is not covered by the certified bounds, only none"
    if len(loss.shapes) > 2:
        return f"{len(loss.shapes)} layers are not covered by the certified bounds, only 1 or 2"
    if len(loss.shapes) == 2 and loss.net.activation != "tanh":
        return f"activation {loss.net.activation} is not covered by the certified bounds, only tanh"
    return None


def certified(loss: RelaxedLoss) -> Curvature:
    """Certified curvature of a network of one layer, or of two with tanh, without norm.

    Let c = 1/√n_0, k = s/√n_1 (s c for one layer), p the softmax, S = diag(p) - p pᵀ and v, w in [0,1]^K. The bounds use
    that a row of S and S w have norms of at most √2/4, |(S w)_k| and |vᵀ S w| are at most 1/4, ‖p - y‖ ≤ √2,
    |Σ (p - y)_k w_k| ≤ 1, |tanh'| ≤ 1, |tanh''| ≤ 4/(3√3), and |h_j| ≤ η, which is tanh of c times the greater one of the
    sums of x's positive and of its negative values. The logits' own second derivatives are k c x_i tanh' between w2_kj and
    w1_ji, and k w2_kj c² x_i x_m tanh'' between w1_ji and w1_jm.

    Raises:
        ValueError: another form.
    """
    reason = certifiable(loss)
    if reason is not None:
        raise ValueError(reason)
    x, scale = loss.x.abs(), loss.net.logit_scale
    n_in, classes = loss.net.widths[0], loss.net.widths[-1]
    c, norm = 1 / math.sqrt(n_in), x.norm(dim=1, keepdim=True)
    row = math.sqrt(2) / 4
    if len(loss.shapes) == 1:
        k = scale * c
        rows, diagonal, slopes = (k**2 * row * x * norm, k**2 / 4 * x.square(), k * x)
        rows, diagonal, slopes = (t.mean(0).repeat(classes) for t in (rows, diagonal, slopes))
        return Curvature(rows, diagonal, slopes, "certified")
    units = loss.net.widths[1]
    k = scale / math.sqrt(units)
    sums = torch.stack([loss.x.clamp_min(0).sum(1), (-loss.x).clamp_min(0).sum(1)]).amax(0)
    eta = torch.tanh(c * sums)[:, None]
    root = math.sqrt(units)
    # Row of w2_kj: with the second layer, and with the first.
    with_second = k**2 * eta.square() * root * row
    with_first = k**2 * c * eta * root * norm / 4 + k * c * norm
    second = (torch.hypot(with_second, with_first), k**2 / 4 * eta.square(), k * eta)
    # Row of w1_ji.
    with_second = c * x * (k**2 * eta * root * row + math.sqrt(2) * k)
    with_first = k * c**2 * x * norm * (k * root / 4 + TANH_CURVATURE)
    first = (torch.hypot(with_second, with_first), c**2 * x.square() * (k**2 / 4 + TANH_CURVATURE * k), c * k * x)
    rows, diagonal, slopes = (
        torch.cat([a.mean(0).repeat(units), b.mean(0).expand(classes * units)])
        for a, b in zip(first, second, strict=True)
    )
    return Curvature(rows, diagonal, slopes, "certified")


def estimated(
    loss: RelaxedLoss, start: Tensor, end: Tensor, *, probes: int = 8, points: int = 3, seed: int = 0
) -> Curvature:
    """Curvature as measured at some points between two weight vectors ``[d]``: the greatest at any of them.

    With v of independent standard normal entries, E (H v)_i² is the squared norm of row i, and E v_i (H v)_i the diagonal
    entry; the mean is over `probes`.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        w = start + t * (end - start)
        v = torch.randn(probes, loss.d, generator=generator, dtype=torch.float64).to(w.device)
        products = loss.hessian_times(w, v)
        rows, diagonal = products.square().mean(0).sqrt(), (v * products).mean(0).abs()
        seen.append((rows, diagonal, loss.gradient(w).abs()))
    rows, diagonal, slopes = (torch.stack(at).amax(0) for at in zip(*seen, strict=True))
    return Curvature(rows, diagonal, slopes, "estimated")
