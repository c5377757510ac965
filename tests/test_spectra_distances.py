"""Distances between spectra, the permutation test and classical scaling."""

from __future__ import annotations

import math
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from fastbin.spectra import (
    Spectrum,
    classical_scaling,
    density,
    distance_matrix,
    from_networkx,
    heat_trace,
    heat_trace_distance,
    jensen_shannon,
    laplacian_spectrum,
    permutation_test,
    wasserstein,
)


def spectrum(values, of="the normalised Laplacian"):
    return Spectrum(torch.tensor(sorted(values), dtype=torch.float64), of, "absolute", "hand")


def graphs(seed):
    """Random graphs of different sizes."""
    return [nx.gnp_random_graph(20 + 7 * i, 0.2 + 0.1 * (i % 3), seed=seed + i) for i in range(4)]


def test_wasserstein():
    assert wasserstein(spectrum([0, 1]), spectrum([0, 1])) == 0
    assert wasserstein(spectrum([0.0]), spectrum([2.0])) == 2
    assert wasserstein(spectrum([0, 0, 3]), spectrum([0, 1])) == pytest.approx(1 / 6 + 2 / 3)  # by hand
    rng = np.random.default_rng(0)
    for n, m in ((5, 5), (7, 30), (1, 100)):
        a, b = rng.random(n), rng.random(m) ** 2
        assert wasserstein(spectrum(a), spectrum(b)) == pytest.approx(wasserstein_distance(a, b), abs=1e-14)


def test_heat_trace_is_netlsd():
    """The trace of exp(-t L) at 250 times, over that of as many nodes without edges; here by a matrix exponential."""
    times = np.logspace(-2, 2, 250)
    signatures, ours = [], []
    for graph in graphs(0):
        laplacian = torch.from_numpy(nx.normalized_laplacian_matrix(graph).toarray())
        n = graph.number_of_nodes()
        signatures.append(np.array([float(torch.linalg.matrix_exp(-t * laplacian).trace()) / n for t in times]))
        ours.append(laplacian_spectrum(from_networkx(graph)))
        assert np.abs(heat_trace(ours[-1]).numpy() - signatures[-1]).max() <= 1e-10
    matrix = distance_matrix(ours, "heat_trace")
    for i, j in combinations(range(len(ours)), 2):
        distance = np.linalg.norm(signatures[i] - signatures[j])
        assert heat_trace_distance(ours[i], ours[j]) == pytest.approx(distance, abs=1e-9)
        assert float(matrix[i, j]) == pytest.approx(distance, abs=1e-9)


def test_density():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.2, 1.7, 300)
    points, smooth = density(spectrum(values), 0.0, 2.0, bandwidth=0.05)
    assert float(smooth.sum() * points.diff()[0]) == pytest.approx(1, abs=1e-12)
    exact = np.exp(-0.5 * ((points.numpy()[:, None] - values) / 0.05) ** 2).mean(1) / (0.05 * math.sqrt(2 * math.pi))
    # Values are rounded to a grid of a quarter of the bandwidth, and tails beyond four of them cut off.
    assert np.abs(smooth.numpy() - exact).max() <= 0.02 * exact.max()
    edge = density(spectrum([0.0, 2.0]), 0.0, 2.0)
    assert float(edge[1].sum() * edge[0].diff()[0]) == pytest.approx(1, abs=1e-12)  # no tail is lost
    with pytest.raises(ValueError, match=r"reach from 0.0 to 3.0, beyond \[0.0, 2.0\]"):
        density(spectrum([0, 3]), 0.0, 2.0)
    for bandwidth in (0.0, math.nan):
        with pytest.raises(ValueError, match="bandwidth must be positive"):
            density(spectrum([0, 1]), 0.0, 2.0, bandwidth)


def test_jensen_shannon():
    a, b = spectrum([0, 0.5, 1]), spectrum([0.25, 1.75])
    assert jensen_shannon(a, a) == 0
    assert jensen_shannon(a, b) == pytest.approx(1, abs=1e-6)  # nothing in common
    assert jensen_shannon(a, spectrum([0, 0.5, 1] * 4)) == pytest.approx(0, abs=1e-7)
    first, second = spectrum(np.linspace(0, 1, 50)), spectrum(np.linspace(0.3, 1.2, 80))
    p, q = (density(s, 0.0, 1.2)[1].numpy() for s in (first, second))
    assert jensen_shannon(first, second) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-9)
    assert 0 < jensen_shannon(first, second, bandwidth=0.5) < jensen_shannon(first, second)


@pytest.mark.parametrize("metric", ["wasserstein", "heat_trace", "jensen_shannon"])
def test_distance_matrix(metric):
    spectra = [laplacian_spectrum(from_networkx(g)) for g in graphs(5)]
    matrix = distance_matrix(spectra, metric)
    assert matrix.equal(matrix.T) and matrix.diagonal().count_nonzero() == 0 and bool((matrix >= 0).all())
    assert matrix.count_nonzero() == 12
    for i, j, k in ((0, 1, 2), (3, 0, 1), (2, 3, 1)):
        assert matrix[i, j] <= matrix[i, k] + matrix[k, j] + 1e-12
    assert distance_matrix([spectra[0]], metric).tolist() == [[0]]


def test_what_cannot_be_compared():
    a = spectrum([0, 1])
    with pytest.raises(ValueError, match="metric must be one of wasserstein, heat_trace, jensen_shannon, got 'euclid'"):
        distance_matrix([a, a], "euclid")
    with pytest.raises(ValueError, match="the Laplacian, absolute; the normalised Laplacian, absolute"):
        distance_matrix([a, spectrum([0, 1], "the Laplacian")])
    for measure in (wasserstein, heat_trace_distance, jensen_shannon):
        with pytest.raises(ValueError, match="the matrix of layer 1 is empty"):
            measure(a, spectrum([], "the matrix of layer 1"))


def test_permutation_test_by_hand():
    apart = torch.tensor([[abs(x - y) for y in (0, 1, 10, 11)] for x in (0, 1, 10, 11)], dtype=torch.float64)
    found = permutation_test(apart, [0, 1], [2, 3])
    # Means: 10 between; within either kind 1, and 0 with itself, in half of the pairs each.
    assert found.statistic == pytest.approx(2 * 10 - 0.5 - 0.5)
    assert (found.permutations, found.exhaustive) == (6, True)
    assert found.p == pytest.approx(2 / 6)  # the split itself and with the kinds exchanged
    assert permutation_test(apart, [0, 2], [1, 3]).p == 1 or permutation_test(apart, [0, 2], [1, 3]).p > 2 / 6


def test_permutation_test_of_kinds_that_differ_and_of_kinds_that_do_not():
    g = torch.Generator().manual_seed(0)
    ps = []
    for shift in (3.0, 0.0):
        for _ in range(40):
            x = torch.randn(10, generator=g, dtype=torch.float64)
            x[5:] += shift
            found = permutation_test((x[:, None] - x).abs(), range(5), range(5, 10))
            assert found.exhaustive and found.permutations == 252
            ps.append(found.p)
    assert np.mean(np.array(ps[:40]) <= 0.05) > 0.9
    # Uniform without a difference: of 40, at most 6 below 0.05 (probability 0.003 of more).
    assert np.sum(np.array(ps[40:]) <= 0.05) <= 6 and 0.3 < np.mean(ps[40:]) < 0.7


def test_permutation_test_at_random():
    g = torch.Generator().manual_seed(1)
    x = torch.cat([torch.randn(12, generator=g), torch.randn(12, generator=g) + 2]).double()
    found = permutation_test((x[:, None] - x).abs(), range(12), range(12, 24), permutations=499)
    assert (found.permutations, found.exhaustive) == (500, False) and found.p == 1 / 500
    assert permutation_test((x[:, None] - x).abs(), range(12), range(12, 24), permutations=499) == found
    for first, second, message in (
        ([0], [1, 2], "at least 2 networks, got 1 and 2"),
        ([0, 1], [1, 2], r"twice: \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            permutation_test(torch.zeros(3, 3), first, second)


def test_classical_scaling():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(7, 2, generator=g, dtype=torch.float64)
    found, share = classical_scaling(torch.cdist(points, points))
    assert share == pytest.approx(1)
    assert float((torch.cdist(found, found) - torch.cdist(points, points)).abs().max()) <= 1e-7
    in_space = torch.randn(7, 5, generator=g, dtype=torch.float64)
    assert 0.3 < classical_scaling(torch.cdist(in_space, in_space))[1] < 1
    assert classical_scaling(torch.zeros(1, 1))[0].tolist() == [[0, 0]]
