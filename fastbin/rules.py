"""Score rules: how a gradient moves the scores, and which bits follow from them.

A rule is a frozen record of constants. What a rule remembers between steps lives in an `UpdateState`, so that a rule can
change from step to step (schedules) while its state goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastbin.bits import BitMatrix
from fastbin.reference import BUFFERS, HYPER_FIELDS


@dataclass(frozen=True)
class UpdateState:
    """What a rule remembers of one `BitMatrix`; every tensor is updated in place by the update ops.

    Attributes:
        buffers: float32 tensors shaped like the logical matrix ``[R, C]`` or ``[P, R, C]``: momentum for `SGD`; first and
            second moment for `Adam`; running mean of the gradient for `Bop`.
        step: int64 ``[1]``, updates done so far.
        seed: int64 ``[P]`` (``[1]`` without a population): the key of each member's random numbers.
    """

    buffers: tuple[torch.Tensor, ...]
    step: torch.Tensor
    seed: torch.Tensor


def _check(
    name: str, value: float, low: float, high: float, *, low_open: bool = False, high_open: bool = False
) -> None:
    inside = (value > low if low_open else value >= low) and (value < high if high_open else value <= high)
    if not inside:  # also true for NaN
        span = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{name} must lie in {span}, got {value!r}")


@dataclass(frozen=True)
class Rule:
    """What all rules have in common; use `SGD`, `Adam` or `Bop`."""

    name: ClassVar[str]
    buffer_count: ClassVar[int]
    sample: ClassVar[bool] = False  # overridden by a field where a rule can sample

    def init_state(self, w: BitMatrix, seed: int | list[int] = 0) -> UpdateState:
        """Fresh state for `w`: buffers of zeros, step 0, `seed` (one for each member, or member p gets seed + p)."""
        members = w.population or 1
        seeds = [seed + p for p in range(members)] if isinstance(seed, int) else list(seed)
        if len(seeds) != members:
            raise ValueError(f"seed: expected {members} (one for each member), got {len(seeds)}")
        device = w.words.device
        buffers = tuple(torch.zeros(w.shape, device=device) for _ in range(self.buffer_count))
        step = torch.zeros(1, dtype=torch.int64, device=device)
        return UpdateState(buffers, step, torch.tensor(seeds, dtype=torch.int64, device=device))

    def constants(self) -> tuple[float, ...]:
        """The rule's row of the `hyper` tensor: lr, tau, clip, then its own constants: `reference.HYPER_FIELDS`."""
        raise NotImplementedError

    def hyper(self, members: int, device: torch.device) -> torch.Tensor:
        """float64 ``[members, HYPER_FIELDS]``, a row for each member of a population."""
        return torch.tensor([self.constants()] * members, dtype=torch.float64, device=device).view(
            members, HYPER_FIELDS
        )


@dataclass(frozen=True)
class ScoreRule(Rule):
    """What the rules that keep scores have in common.

    Attributes:
        lr: step size, > 0.
        tau: temperature τ of the surrogate sigmoid(θ/τ), > 0.
        clip: scores stay within [-clip, clip]; > 0, infinity for none.
        sample: draw each bit from Bernoulli(sigmoid(θ/τ)) instead of setting it to 1[θ > 0].
    """

    lr: float = 0.01
    tau: float = 1.0
    clip: float = math.inf
    sample: bool = False  # type: ignore[misc]  # a field here, a constant in the base

    def __post_init__(self) -> None:
        _check("lr", self.lr, 0, math.inf, low_open=True, high_open=True)
        _check("tau", self.tau, 0, math.inf, low_open=True, high_open=True)
        _check("clip", self.clip, 0, math.inf, low_open=True)


@dataclass(frozen=True)
class SGD(ScoreRule):
    """Gradient descent on the scores with (heavy-ball) momentum: m ← momentum·m + g, θ ← θ - lr·m."""

    name: ClassVar[str] = "sgd"
    buffer_count: ClassVar[int] = BUFFERS["sgd"]
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("momentum", self.momentum, 0, 1, high_open=True)

    def constants(self) -> tuple[float, ...]:
        return (self.lr, self.tau, self.clip, self.momentum, 0.0, 0.0)


@dataclass(frozen=True)
class Adam(ScoreRule):
    """Adam on the scores (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""

    name: ClassVar[str] = "adam"
    buffer_count: ClassVar[int] = BUFFERS["adam"]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("betas[0]", self.betas[0], 0, 1, high_open=True)
        _check("betas[1]", self.betas[1], 0, 1, high_open=True)
        _check("eps", self.eps, 0, math.inf, low_open=True, high_open=True)

    def constants(self) -> tuple[float, ...]:
        return (self.lr, self.tau, self.clip, *self.betas, self.eps)


@dataclass(frozen=True)
class Bop(Rule):
    """Flip a bit when the gradient's running mean passes a threshold against it (Helwegen et al. 2019, arXiv 1906.02107).

    No score is kept: a 1 turns 0 when mean > threshold, a 0 turns 1 when mean < -threshold. The paper flips signs
    of {-1, 1} weights; the reading for {0, 1} is ours.

    Attributes:
        gamma: adaptivity rate of the running mean, in (0, 1].
        threshold: how far the mean must pass 0, ≥ 0.
    """

    name: ClassVar[str] = "bop"
    buffer_count: ClassVar[int] = BUFFERS["bop"]
    gamma: float = 1e-3
    threshold: float = 1e-6

    def __post_init__(self) -> None:
        _check("gamma", self.gamma, 0, 1, low_open=True)
        _check("threshold", self.threshold, 0, math.inf, high_open=True)

    def constants(self) -> tuple[float, ...]:
        return (0.0, 1.0, math.inf, self.gamma, self.threshold, 0.0)
