"""Layers of networks that the tests of spectra share, and how eigenvalues are judged."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastbin import BitMatrix


def bits(widths, density=0.4, seed=0):
    """Layers of random bits."""
    g = torch.Generator().manual_seed(seed)
    return [BitMatrix.pack(torch.rand(n_out, n_in, generator=g) < density) for n_in, n_out in pairwise(widths)]


def reals(widths, density=0.5, seed=0):
    """Layers of random real weights, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n_out, n_in, generator=g, dtype=torch.float64) * (torch.rand(n_out, n_in, generator=g) < density)
        for n_in, n_out in pairwise(widths)
    ]


def ones(*shapes):
    return [BitMatrix.pack(torch.ones(shape)) for shape in shapes]


def assert_values(found: Tensor, expected, tolerance=1e-10):
    expected = torch.as_tensor(np.sort(np.asarray(expected, dtype=np.float64)))
    assert found.dtype == torch.float64 and found.shape == expected.shape
    assert bool((found.diff() >= 0).all()), "not ascending"
    assert float((found - expected).abs().max()) <= tolerance


NETWORKS = {
    "bits": bits((40, 33, 31, 7)),
    "sparse bits": bits((40, 33, 31, 7), 0.03),
    "one layer": bits((20, 50)),
    "real": reals((12, 31, 8)),
    "mixed": [bits((12, 31))[0], reals((31, 8))[0]],
    "empty layer": [BitMatrix.zeros(0, 9), BitMatrix.zeros(4, 0), *bits((4, 6))],
    "zeros": [BitMatrix.zeros(8, 5), BitMatrix.zeros(3, 8)],
    "ones": ones((8, 5), (3, 8)),
}
