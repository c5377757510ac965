"""The error of the search's gradient against its bound, at any moment of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastbin.descent import Search
from fastbin.rules import Rule, ScoreRule
from fastbin.theory.curvature import SMOOTH, certifiable, certified, estimated
from fastbin.theory.relaxed import RelaxedLoss, surrogate


@dataclass(frozen=True)
class GradientError:
    """The gradient g of the estimator ``hard`` against ∇F_τ, both of the scores and on one batch.

    Attributes:
        tau: temperature.
        error: ‖g - ∇F_τ‖.
        bound: √Σ(σ'_i β_i)² ‖q‖, q_i = sigmoid(-|θ_i|/τ).
        ratio: error / bound.
        cosine: of the angle between g and ∇F_τ.
        loss: F_τ.
        gradient: ‖∇F_τ‖.
        smoothness: Λ of F_τ, of the same kind as the bound.
        bound_kind: certified, estimated (β measured at some points), or none: the loss has no second derivatives, and the
            bound is only what it would be were those that it has almost everywhere all.
    """

    tau: float
    error: float
    bound: float
    ratio: float
    cosine: float
    loss: float
    gradient: float
    smoothness: float
    bound_kind: str


def gradient_error(search: Search, batch: tuple[Tensor, Tensor], tau: float) -> GradientError:
    """Measure the error of the gradient that a search would take on a batch.

    Args:
        search: its scores and the form of its network.
        batch: standardised inputs ``[B, n_0]`` and class indices ``[B]``.
        tau: temperature of F_τ and of the surrogate.

    Raises:
        ValueError: an estimator other than hard, a rule without scores, activation step, or tau not above 0.
    """
    if search.config.estimator != "hard":
        raise ValueError(f"the error is that of the estimator hard, got {search.config.estimator!r}")
    scores = [s for s in search.scores if s is not None]
    if len(scores) < len(search.scores):
        raise ValueError("rule bop keeps no scores, so there is no F_τ to compare with")
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau!r}")
    loss = RelaxedLoss(search.net, *batch)
    theta = loss.flat(scores)
    p, slope = surrogate(theta, tau)
    bits = (theta > 0).double()
    exact, taken = slope * loss.gradient(p), slope * loss.gradient(bits)
    curvature = certified(loss) if certifiable(loss) is None else estimated(loss, bits, p)
    smooth = loss.net.activation in SMOOTH or len(loss.shapes) == 1
    error = float((taken - exact).norm())
    bound = float((slope * curvature.rows).norm() * torch.sigmoid(-theta.abs() / tau).norm())
    return GradientError(
        tau=tau,
        error=error,
        bound=bound,
        ratio=error / bound if bound else 0.0,
        cosine=float(torch.nn.functional.cosine_similarity(taken, exact, dim=0)),
        loss=float(loss(p)),
        gradient=float(exact.norm()),
        smoothness=curvature.smoothness(tau),
        bound_kind=curvature.kind if smooth else "none",
    )


@dataclass(eq=False)
class GradientLog:
    """Measures the gradient's error every so many steps of a search: to be given to `run_search` as `on_step`.

    Attributes:
        every: steps between measurements; the first one is before the first step.
        steps: updates done before each measurement.
        errors: the measurements.
    """

    every: int = 1
    steps: list[int] = field(default_factory=list)
    errors: list[GradientError] = field(default_factory=list)
    search: Search | None = None
    batch: tuple[Tensor, Tensor] | None = None

    def __call__(self, search: Search, x: Tensor, y: Tensor, rule: Rule) -> None:
        """Look at a search before its step on a batch."""
        self.search, self.batch = search, (x, y)
        done = int(search.states[0].step)
        if done % self.every == 0:
            if not isinstance(rule, ScoreRule):
                raise ValueError("rule bop keeps no scores, so there is no F_τ to compare with")
            self.steps.append(done)
            self.errors.append(gradient_error(search, (x, y), rule.tau))

    def sweep(self, factors: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)) -> list[GradientError]:
        """The error at other temperatures, with the scores as they are now: factors of the mean |θ|.

        Raises:
            ValueError: no search has been looked at.
        """
        if self.search is None or self.batch is None:
            raise ValueError("no search has been looked at yet")
        scores = torch.cat([s.flatten() for s in self.search.scores if s is not None])
        mean = float(scores.abs().mean())
        return [gradient_error(self.search, self.batch, factor * mean) for factor in factors]

    def to_json(self) -> list[dict[str, Any]]:
        """The measurements as JSON-able values, each with its step."""
        return [{"step": step, **asdict(error)} for step, error in zip(self.steps, self.errors, strict=True)]
