"""The bounds behind the search, checked: exactly where a network can be enumerated, by measurement elsewhere.

The relaxation and its bounds are those of README.md, "What it does": F_τ(θ) = L(σ_τ(θ)) is the mean-field loss, J_τ(θ) the
expected loss with bits drawn from Bernoulli(σ_τ(θ)).
"""

from fastbin.theory.convergence import ConvergenceReport, Optimum, convergence_report, optimum
from fastbin.theory.curvature import Curvature, certified, estimated
from fastbin.theory.exact import (
    SampleError,
    corners,
    discrete_minimum,
    expectation,
    expected_gradient,
    sample_error,
)
from fastbin.theory.gradient import GradientError, GradientLog, gradient_error
from fastbin.theory.relaxed import RelaxedLoss, surrogate

__all__ = [
    "ConvergenceReport",
    "Curvature",
    "GradientError",
    "GradientLog",
    "Optimum",
    "RelaxedLoss",
    "SampleError",
    "certified",
    "convergence_report",
    "corners",
    "discrete_minimum",
    "estimated",
    "expectation",
    "expected_gradient",
    "gradient_error",
    "optimum",
    "sample_error",
    "surrogate",
]
