"""What a search is asked to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

from fastbin.encodings import Encoding
from fastbin.nn import Activation, Norm
from fastbin.rules import SGD, Adam, Bop, Rule

Schedule = Literal["constant", "linear", "cosine", "geometric"]
Activations = Literal["float32", "bfloat16"]

# Found by trials: adam's on the validation parts of digits, MNIST and Fashion-MNIST, the others on digits.
DEFAULT_LR = {"sgd": 1.0, "adam": 0.02}
DEFAULT_TAU = {"hard": (1.0, 1.0), "sample": (0.03, 0.03), "soft": (0.1, 0.02)}  # start and end

_NUMBERS = (
    "logit_scale", "lr", "lr_end", "tau", "tau_end", "clip", "momentum", "gamma", "threshold", "density", "init_std",
    "input_dropout", "validation",
)  # fmt: skip


def schedule(kind: Schedule, start: float, end: float, progress: float) -> float:
    """Value at `progress` in [0, 1) on the way from `start` to `end`."""
    if kind == "constant":
        return start
    if kind == "geometric":
        return start * math.pow(end / start, progress)
    share = progress if kind == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * share


@dataclass(frozen=True)
class SearchConfig:
    """Configuration of a search.

    Attributes:
        hidden: units of each hidden layer.
        activation: of the hidden layers; with step they stay packed.
        norm: of the hidden layers: layer (LayerNorm without parameters) or none (division by sqrt of the inputs).
        output_norm: of the output layer, likewise; unset: norm, but none for two classes (layer leaves only their order).
        encoding: of the raw inputs, fixed: none, or upright (square images are moved to the centre of their mass and sheared
            until strokes stand upright).
        logit_scale: constant factor on the outputs.
        activations: dtype of inputs, hidden layers and their derivatives (of the tensor cores of a GPU: bfloat16); scores,
            loss and validation stay float32.
        estimator: hard (bits 1[θ > 0]), sample (bits drawn anew each step) or soft (dense sigmoid(θ/τ), for comparison).
        rule: how a gradient moves the scores.
        lr: step size at the start; unset: 0.02 for adam, 1 for sgd. Not used by bop.
        lr_end: step size at the end.
        lr_schedule: the way from lr to lr_end.
        tau: temperature τ of the surrogate sigmoid(θ/τ) at the start; unset: 1 for hard, 0.03 for sample, 0.1 for soft.
        tau_end: temperature at the end; unset: that of the start, but 0.02 for soft with tau unset.
        tau_schedule: the way from tau to tau_end.
        clip: scores stay within [-clip, clip]; unset: no limit.
        momentum: of sgd.
        betas: of adam.
        gamma: adaptivity rate of bop.
        threshold: flip threshold of bop.
        density: share of the initial scores that are above 0, in expectation.
        init_std: standard deviation of the initial scores.
        input_dropout: share of a training sample's standardised inputs that are set to 0, their mean, drawn anew each epoch;
            the others are scaled up.
        epochs: passes over the training part.
        batch_size: samples a step.
        validation: share of the training part that is held out to choose the returned network; 0: the last one is returned.
        patience: stop after so many epochs without a better validation accuracy; unset: never.
        seed: of the initial scores, the order of the data, sampled bits and the split.
        device: where the search runs, as torch names it.
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "gelu"
    norm: Norm = "layer"
    output_norm: Norm | None = None
    encoding: Encoding = "none"
    logit_scale: float = 2.0
    activations: Activations = "float32"
    estimator: Literal["hard", "sample", "soft"] = "hard"
    rule: Literal["sgd", "adam", "bop"] = "adam"
    lr: float | None = None
    lr_end: float = 0.0
    lr_schedule: Schedule = "cosine"
    tau: float | None = None
    tau_end: float | None = None
    tau_schedule: Schedule = "geometric"
    clip: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    gamma: float = 1e-3
    threshold: float = 1e-4
    density: float = 0.5
    init_std: float = 0.3
    input_dropout: float = 0.0
    epochs: int = 30
    batch_size: int = 64
    validation: float = 0.1
    patience: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "betas", tuple(self.betas))
        choices = {
            "activation": Activation,
            "norm": Norm,
            "encoding": Encoding,
            "activations": Activations,
            "lr_schedule": Schedule,
            "tau_schedule": Schedule,
            "estimator": Literal["hard", "sample", "soft"],
            "rule": Literal["sgd", "adam", "bop"],
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choice))}, got {getattr(self, name)!r}")
        if self.output_norm not in (None, *get_args(Norm)):
            raise ValueError(
                f"output_norm must be one of {', '.join(get_args(Norm))}, or unset, got {self.output_norm!r}"
            )
        for n in self.hidden:
            _check("hidden", n, is_whole(n) and n >= 1, "whole numbers, at least 1")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _check(name, value, is_whole(value) and value >= 1, "a whole number, at least 1")
        if self.patience is not None:
            _check("patience", self.patience, is_whole(self.patience) and self.patience >= 1, "at least 1, or unset")
        _check("seed", self.seed, is_whole(self.seed) and 0 <= self.seed < 2**63, "a whole number in [0, 2^63)")
        for name in _NUMBERS:
            value = getattr(self, name)
            _check(
                name,
                value,
                is_number(value) or (value is None and name in ("lr", "tau", "tau_end", "clip")),
                "a number",
            )
        _check("betas", self.betas, len(self.betas) == 2 and all(map(is_number, self.betas)), "two numbers")
        for name in ("input_dropout", "validation"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _check("density", self.density, 0 < self.density < 1, "in (0, 1)")
        _check("init_std", self.init_std, 0 < self.init_std < math.inf, "positive and finite")
        _check("lr_end", self.lr_end, 0 <= self.lr_end < math.inf, "at least 0 and finite")
        for name in ("tau", "tau_end", "logit_scale"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 < value < math.inf, "positive and finite")
        if self.lr_schedule == "geometric":
            _check("lr_end", self.lr_end, self.lr_end > 0, "positive for a geometric schedule")
        if self.rule == "bop" and self.estimator != "hard":
            raise ValueError(f"rule bop keeps no scores, so its estimator must be hard, got {self.estimator!r}")
        if self.activation == "step" and self.estimator == "soft":
            raise ValueError("estimator soft has dense weights, step packs its layers: choose relu, tanh or gelu")
        if self.activations == "bfloat16" and self.estimator == "soft":
            raise ValueError("estimator soft has dense float32 weights: choose activations float32")
        self.rule_at(0.0)  # the rule checks its own constants

    @property
    def init_mean(self) -> float:
        """Mean of the initial scores: as far from 0 as `density` asks of normal ones."""
        return self.init_std * NormalDist().inv_cdf(self.density)

    def rule_at(self, progress: float) -> Rule:
        """The rule at `progress` in [0, 1) of all steps."""
        if self.rule == "bop":
            return Bop(gamma=self.gamma, threshold=self.threshold)
        start = DEFAULT_LR[self.rule] if self.lr is None else self.lr
        lr = schedule(self.lr_schedule, start, self.lr_end, progress)
        tau, tau_end = DEFAULT_TAU[self.estimator] if self.tau is None else (self.tau, self.tau)
        tau = schedule(self.tau_schedule, tau, tau_end if self.tau_end is None else self.tau_end, progress)
        clip = math.inf if self.clip is None else self.clip
        sample = self.estimator == "sample"
        if self.rule == "sgd":
            return SGD(lr=lr, tau=tau, clip=clip, sample=sample, momentum=self.momentum)
        return Adam(lr=lr, tau=tau, clip=clip, sample=sample, betas=self.betas)

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchConfig:
        """The configuration from what `to_json` gave.

        Raises:
            ValueError: an unknown field, or a value that does not fit.
        """
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration field {unknown[0]!r}")
        return cls(**values)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number (a boolean is none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a float or a whole number."""
    return isinstance(value, float) or is_whole(value)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
