"""How far apart spectra are, and whether two kinds of network differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastbin.spectra.spectrum import Spectrum

Metric = Literal["wasserstein", "heat_trace", "jensen_shannon"]
TIMES = torch.logspace(-2, 2, 250, dtype=torch.float64)  # of NetLSD
BANDWIDTH = 0.01  # of smoothing; a normalised Laplacian's eigenvalues lie in [0, 2]
_FINER = 4  # bins a bandwidth


def wasserstein(a: Spectrum, b: Spectrum) -> float:
    """Wasserstein-1 distance of the distributions of eigenvalues: the area between their distribution functions."""
    x, y = _values(a), _values(b)
    both = torch.cat([x, y]).sort().values
    below = [torch.searchsorted(v, both[:-1], right=True).double() / len(v) for v in (x, y)]
    return float(((below[0] - below[1]).abs() * both.diff()).sum())


def heat_trace(spectrum: Spectrum, times: Tensor = TIMES) -> Tensor:
    """Mean of exp(-t λ) for each time, float64: NetLSD's signature over that of a graph without edges.

    Tsitsulin et al. 2018, arXiv 1805.10712; at the same 250 times from 0.01 to 100 by default.
    """
    values = _values(spectrum)
    return torch.stack([torch.exp(-t * values).mean() for t in times])


def heat_trace_distance(a: Spectrum, b: Spectrum) -> float:
    """Euclidean distance of the two `heat_trace` signatures."""
    return float((heat_trace(a) - heat_trace(b)).norm())


def density(spectrum: Spectrum, low: float, high: float, bandwidth: float = BANDWIDTH) -> tuple[Tensor, Tensor]:
    """Eigenvalues smoothed by a Gaussian kernel.

    Args:
        spectrum: whose.
        low: of the range shown.
        high: of the range shown; the kernel's tails are kept beyond both.
        bandwidth: standard deviation of the kernel, which is cut off at four of them.

    Returns:
        Points, a quarter of `bandwidth` apart, and the density there, float64; it integrates to 1.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth!r}")
    step, tail = bandwidth / _FINER, 4 * _FINER
    bins = math.ceil((high - low) / step) + 1
    values = _values(spectrum)
    if float(values[0]) < low - step / 2 or float(values[-1]) > high + step / 2:
        raise ValueError(
            f"the eigenvalues reach from {float(values[0])} to {float(values[-1])}, beyond [{low}, {high}]"
        )
    at = ((values - low) / step).round().long().clamp(0, bins - 1)
    counts = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, torch.ones_like(values))
    kernel = torch.exp(-0.5 * (torch.arange(-tail, tail + 1, dtype=torch.float64) / _FINER).square())
    smooth = torch.nn.functional.conv1d(counts[None, None], (kernel / kernel.sum())[None, None], padding=2 * tail)
    points = low + step * torch.arange(-tail, bins + tail, dtype=torch.float64)
    return points, smooth[0, 0] / (len(values) * step)


def jensen_shannon(a: Spectrum, b: Spectrum, bandwidth: float = BANDWIDTH) -> float:
    """Jensen-Shannon distance of the smoothed densities: the square root of the divergence in bits, from 0 to 1.

    `bandwidth` is in the unit of the eigenvalues; its default suits normalised Laplacians.
    """
    low = min(float(_values(s)[0]) for s in (a, b))
    high = max(float(_values(s)[-1]) for s in (a, b))
    p, q = (density(s, low, high, bandwidth)[1] for s in (a, b))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    divergence = sum(torch.special.xlogy(d, d / middle.clamp_min(1e-300)).sum() for d in (p, q))
    return math.sqrt(max(float(divergence) / 2 / math.log(2), 0.0))


_METRICS: dict[str, Callable[[Spectrum, Spectrum], float]] = {
    "wasserstein": wasserstein,
    "heat_trace": heat_trace_distance,
    "jensen_shannon": jensen_shannon,
}


def distance_matrix(spectra: Sequence[Spectrum], metric: Metric = "wasserstein") -> Tensor:
    """Distances between all spectra, float64 ``[k, k]``, symmetric with a diagonal of zeros.

    Raises:
        ValueError: unknown metric, or spectra of different matrices or different readings of signs.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
    kinds = sorted({f"{s.of}, {s.signs}" for s in spectra})
    if len(kinds) > 1:
        raise ValueError(f"spectra of different things cannot be compared: {'; '.join(kinds)}")
    matrix = torch.zeros(len(spectra), len(spectra), dtype=torch.float64)
    if metric == "heat_trace":  # a signature for each, not for each pair
        signatures = [heat_trace(s) for s in spectra]
        return torch.cdist(
            torch.stack(signatures), torch.stack(signatures), compute_mode="donot_use_mm_for_euclid_dist"
        )
    for i, j in combinations(range(len(spectra)), 2):
        matrix[i, j] = matrix[j, i] = _METRICS[metric](spectra[i], spectra[j])
    return matrix


@dataclass(frozen=True)
class PermutationTest:
    """Whether two kinds differ.

    Attributes:
        statistic: energy distance: twice the mean distance between the kinds less the mean distance within either.
        p: share of the ways of dealing the networks to the two kinds whose statistic is at least as large.
        permutations: how many ways were looked at.
        exhaustive: whether these were all there are.
    """

    statistic: float
    p: float
    permutations: int
    exhaustive: bool


def permutation_test(
    distances: Tensor, first: Sequence[int], second: Sequence[int], *, permutations: int = 9999, seed: int = 0
) -> PermutationTest:
    """Test that two kinds of network have the same distribution of spectra (Székely and Rizzo 2013).

    Args:
        distances: ``[k, k]`` from `distance_matrix`.
        first: which of its rows are of one kind, at least 2.
        second: which are of the other, at least 2.
        permutations: so many at random, beside the one that was observed, if there are more than that; else all.
        seed: of the random ones.

    Raises:
        ValueError: a kind with fewer than 2 networks, or a network of both kinds.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"each kind needs at least 2 networks, got {len(first)} and {len(second)}")
    members = [*first, *second]
    if len(set(members)) < len(members):
        raise ValueError(f"a network is listed twice: {sorted(i for i in set(members) if members.count(i) > 1)}")
    among = distances[members][:, members].to(torch.float64)
    n, k = len(members), len(first)
    exhaustive = math.comb(n, k) <= permutations
    if exhaustive:
        chosen = np.array(list(combinations(range(n), k)))  # that observed is the first
    else:
        rng = np.random.default_rng(seed)
        chosen = np.array([np.arange(k), *(rng.permutation(n)[:k] for _ in range(permutations))])
    inside = torch.zeros(len(chosen), n, dtype=torch.float64)
    inside[torch.arange(len(chosen))[:, None], torch.from_numpy(chosen)] = 1
    outside = 1 - inside

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ among) * b).sum(1) / (a.sum(1) * b.sum(1))

    statistics = 2 * mean(inside, outside) - mean(inside, inside) - mean(outside, outside)
    observed = statistics[0]
    as_large = statistics >= observed - 1e-12 * among.max()  # the same split of the networks, summed in another order
    return PermutationTest(float(observed), float(as_large.double().mean()), len(chosen), exhaustive)


def classical_scaling(distances: Tensor, dimensions: int = 2) -> tuple[Tensor, float]:
    """Points whose Euclidean distances come closest to `distances` (Torgerson 1952).

    Returns:
        float64 ``[k, dimensions]``, and the share of the distances' (positive) spread that they show.
    """
    k = len(distances)
    centre = torch.eye(k, dtype=torch.float64) - 1 / k
    values, vectors = torch.linalg.eigh(-0.5 * centre @ distances.to(torch.float64).square() @ centre)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    points = torch.zeros(k, dimensions, dtype=torch.float64)
    kept = min(k, dimensions)
    points[:, :kept] = vectors[:, :kept] * values[:kept].sqrt()
    return points, float(values[:kept].sum() / values.sum().clamp_min(1e-300))


def _values(spectrum: Spectrum) -> Tensor:
    if len(spectrum.values) == 0:
        raise ValueError(f"there are no values to compare: {spectrum.of} is empty")
    return spectrum.values
