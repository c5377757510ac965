"""Spectra that are estimated, and eigenvalues at the ends, against exact ones."""

from __future__ import annotations

import pytest
from networks import NETWORKS, assert_values, bits, ones, reals

from fastbin.spectra import estimate_spectrum, extreme_eigenvalues, laplacian_spectrum


@pytest.mark.parametrize(
    ("layers", "normalized"),
    [(bits((300, 400, 200, 10), 0.5), True), (bits((300, 400, 200, 10), 0.02), True), (reals((150, 200, 50)), True),
     (bits((150, 200, 50), 0.3), False)],
    ids=["dense", "sparse", "real", "not normalised"],
)  # fmt: skip
def test_estimates(layers, normalized):
    exact = laplacian_spectrum(layers, normalized).values
    scale = float(exact[-1])
    for seed in range(3):
        found = estimate_spectrum(layers, normalized, probes=24, steps=40, seed=seed)
        assert_values(found.values, found.values)
        distance = float((found.values - exact).abs().mean())
        # The estimated error is the expected one, with the quadrature's on top: what happens may be somewhat more.
        assert distance <= 1.5 * found.error and 0 < found.error < 0.02 * scale
    again = estimate_spectrum(layers, normalized, probes=24, steps=40, seed=2)
    assert again.values.equal(found.values) and again.error == found.error
    assert not estimate_spectrum(layers, normalized, probes=24, steps=40, seed=3).values.equal(found.values)


def test_estimates_get_better_with_probes():
    layers = bits((60, 90, 30), 0.2)
    exact = laplacian_spectrum(layers).values
    errors = []
    for probes in (2, 128):
        found = [estimate_spectrum(layers, probes=probes, seed=seed) for seed in range(6)]
        errors.append(sum(float((f.values - exact).abs().mean()) for f in found))
    assert errors[1] < 0.4 * errors[0]  # by 1/8 if all were chance


@pytest.mark.parametrize("layers", [ones((9, 6)), NETWORKS["zeros"], NETWORKS["empty layer"], ones((1, 1))], ids=str)
def test_estimates_of_few_different_eigenvalues(layers):
    """Lanczos ends early, with vectors of zeros."""
    exact, found = laplacian_spectrum(layers), estimate_spectrum(layers)
    assert float((exact.values - found.values).abs().mean()) <= max(2 * found.error, 1e-6)
    whole = estimate_spectrum(layers, normalized=False)
    exact = laplacian_spectrum(layers, normalized=False)
    assert float((exact.values - whole.values).abs().mean()) <= max(2 * whole.error, 1e-5)


@pytest.mark.parametrize("name", ["bits", "one layer", "real", "mixed", "ones"])
@pytest.mark.parametrize("normalized", [True, False])
def test_extremes(name, normalized):
    layers = NETWORKS[name]
    exact = laplacian_spectrum(layers, normalized).values
    k = 1 if name == "ones" else 3  # its eigenvalues but the ends come several times
    smallest, largest = extreme_eigenvalues(layers, k, normalized)
    tolerance = 1e-9 * float(exact[-1])
    assert_values(smallest, exact[:k], tolerance)
    assert_values(largest, exact[-k:], tolerance)
    for roughly, end in zip(extreme_eigenvalues(layers, k, normalized, tol=1e-6), (exact[:k], exact[-k:]), strict=True):
        assert_values(roughly, end, 1e-5 * float(exact[-1]))
    again = extreme_eigenvalues(layers, k, normalized)
    assert again[0].equal(smallest) and again[1].equal(largest)


def test_extremes_without_edges():
    smallest, largest = extreme_eigenvalues(NETWORKS["zeros"], 2)
    assert smallest.tolist() == largest.tolist() == [0, 0]
