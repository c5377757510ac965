"""What can be known exactly of small networks: everything, by enumeration of {0,1}^d."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbin.theory.curvature import Curvature
from fastbin.theory.relaxed import RelaxedLoss, surrogate

MOST_EDGES = 16


def corners(d: int) -> Tensor:
    """All of {0,1}^d, float64 ``[2^d, d]``; bit i of row n is that of the number n, most significant first.

    Raises:
        ValueError: d is not from 1 to 16.
    """
    if not 1 <= d <= MOST_EDGES:
        raise ValueError(f"enumeration takes from 1 to {MOST_EDGES} edges, got {d}")
    numbers = torch.arange(2**d)
    return (numbers[:, None] >> torch.arange(d - 1, -1, -1) & 1).double()


def expectation(values: Tensor, p: Tensor) -> Tensor:
    """E[values(b)] for independent bits b_i ~ Bernoulli(p_i), summed exactly, one bit after the other.

    Args:
        values: ``[2^d, ..]`` in the order of `corners`.
        p: ``[d]`` in [0, 1].

    Returns:
        ``[..]``. With the loss's values this is J(p): of degree one in each p_i.
    """
    for share in p:
        zero, one = values.chunk(2)
        values = (1 - share) * zero + share * one
    return values[0]


def expected_gradient(values: Tensor, p: Tensor) -> Tensor:
    """∂J/∂p ``[d]``: J is of degree one in p_i, so its derivative is the difference of J at p_i = 1 and p_i = 0."""
    differences = []
    for i in range(len(p)):
        at = [torch.where(torch.arange(len(p)) == i, end, p) for end in (1.0, 0.0)]
        differences.append(expectation(values, at[0]) - expectation(values, at[1]))
    return torch.stack(differences)


@dataclass(frozen=True)
class SampleError:
    """The error of the estimator ``sample`` in the mean, against its bound, for each edge.

    Attributes:
        error: |E g_i - ∂J/∂θ_i| ``[d]``, exact.
        bound: σ'_τ(θ_i) β_ii / 2 ``[d]``.
        bound_kind: that of β: certified or estimated.
    """

    error: Tensor
    bound: Tensor
    bound_kind: str


def sample_error(loss: RelaxedLoss, scores: Tensor, tau: float, curvature: Curvature) -> SampleError:
    """Error and bound of the estimator ``sample`` on a network of at most 16 edges.

    Args:
        loss: of the network on a batch.
        scores: θ ``[d]``.
        tau: temperature.
        curvature: of the loss.
    """
    p, slope = surrogate(scores.double(), tau)
    all_bits = corners(loss.d)
    mean = expectation(loss.gradients(all_bits), p)
    error = slope * (mean - expected_gradient(loss.values(all_bits), p)).abs()
    return SampleError(error, slope * curvature.diagonal / 2, curvature.kind)


def discrete_minimum(loss: RelaxedLoss) -> float:
    """The least loss over {0,1}^d."""
    return float(loss.values(corners(loss.d)).min())
