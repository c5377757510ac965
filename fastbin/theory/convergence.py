"""The descent inequality along a real run, and how good the optimum is that a search finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbin.config import SearchConfig
from fastbin.descent import Search
from fastbin.result import SearchResult
from fastbin.theory.curvature import SMOOTH
from fastbin.theory.exact import discrete_minimum
from fastbin.theory.gradient import GradientLog
from fastbin.theory.relaxed import RelaxedLoss


@dataclass(frozen=True)
class ConvergenceReport:
    """Both sides of the descent inequality after T = 1, 2, .. steps, and what of its assumptions fails.

    (1/T) Σ ‖∇F_τ(θ_t)‖² ≤ 2 (F_τ(θ_0) - F*) / (η T) + (1/T) Σ ‖e_t‖², for steps θ - η g with η ≤ 1/Λ. For F*, 0 is taken:
    a cross-entropy is never below it, and the right side only grows.

    Attributes:
        left: ``[T]``.
        right: ``[T]``.
        failing: the assumptions that do not hold for the run, in words; empty if the inequality is proved for it.
    """

    left: list[float]
    right: list[float]
    failing: list[str]

    @property
    def holds(self) -> bool:
        """Whether left ≤ right after every step."""
        return all(a <= b for a, b in zip(self.left, self.right, strict=True))


def convergence_report(result: SearchResult, log: GradientLog) -> ConvergenceReport:
    """The descent inequality along a search.

    Args:
        result: of the search.
        log: what looked at every step of it (`GradientLog` with `every` = 1, as `on_step`).

    Raises:
        ValueError: the log is empty or has not seen every step.
    """
    if not log.steps or log.steps != list(range(len(log.steps))):
        raise ValueError(f"the log must have looked at every step from the first on, it has {log.steps[:3]} ..")
    config, errors = result.config, log.errors
    rules = [config.rule_at(i / config.epochs) for i in range(config.epochs)]
    rates = {getattr(rule, "lr", 0.0) for rule in rules}
    eta = max(rates)
    gradients = torch.tensor([e.gradient for e in errors], dtype=torch.float64)
    wrong = torch.tensor([e.error for e in errors], dtype=torch.float64)
    steps = torch.arange(1, len(errors) + 1)
    left = gradients.square().cumsum(0) / steps
    right = 2 * errors[0].loss / (eta * steps) + wrong.square().cumsum(0) / steps
    smoothness = max(e.smoothness for e in errors)
    checks = {
        f"activation {config.activation} is not twice differentiable": config.activation in SMOOTH or not config.hidden,
        f"rule {config.rule} is not plain gradient descent": config.rule == "sgd" and config.momentum == 0,
        "scores are clipped": config.clip is None,
        "the step size changes": len(rates) == 1,
        "the temperature, and so F, changes": len({e.tau for e in errors}) == 1,
        f"Λ is {errors[0].bound_kind}, not certified": all(e.bound_kind == "certified" for e in errors),
        f"the step size {eta:.3g} is above 1/Λ = {1 / smoothness:.3g}": eta * smoothness <= 1,
        "batches change, and F with them": len(errors) == len(result.history),
    }
    return ConvergenceReport(left.tolist(), right.tolist(), [text for text, holds in checks.items() if not holds])


@dataclass(frozen=True)
class Optimum:
    """How near searches came to the best {0,1} weights of a small problem.

    Attributes:
        best: the least loss over {0,1}^d.
        found: the least loss that any of the searches ended with.
    """

    best: float
    found: float

    @property
    def excess(self) -> float:
        """By which share the found loss is above the best one."""
        return self.found / self.best - 1


def optimum(x: Tensor, y: Tensor, widths: Sequence[int], config: SearchConfig, seeds: int = 5) -> Optimum:
    """Search on a problem of at most 16 edges with several seeds, and compare with the best of all {0,1} weights.

    A search ends with the bits that its scores stand for after as many steps as the configuration has epochs, each on the
    whole batch: there is no validation part to choose by.

    Args:
        x: standardised inputs ``[n, widths[0]]``.
        y: class indices ``[n]``.
        widths: of the network.
        config: of the searches; its own widths, seed and batch size play no part.
        seeds: number of seeds.
    """
    losses = []
    for seed in range(seeds):
        search = Search(dataclasses.replace(config, seed=seed), list(widths))
        for step in range(config.epochs):
            search.step(x, y, config.rule_at(step / config.epochs))
        loss = RelaxedLoss(search.net, x, y)
        losses.append(float(loss(loss.flat([w.unpack() for w in search.found()]))))
    return Optimum(discrete_minimum(loss), min(losses))
