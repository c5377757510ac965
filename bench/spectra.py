"""Spectra: exact ones against eigvalsh of the whole matrix, estimates against exact ones, and a network of 10^5 units."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch

from bench.scale import forget_peak, memory
from fastbin import BitMatrix
from fastbin.spectra import (
    Graph,
    estimate_spectrum,
    extreme_eigenvalues,
    laplacian_spectrum,
    network_graph,
    wasserstein,
)

EXACT = (784, 1024, 1024, 10)
QUADRATURE = (1000, 1500, 1500, 1000)  # 5,000 nodes
DENSITIES = (0.5, 0.05, 0.02)
LARGE = (20_000,) * 5  # 10^5 nodes, 1.6 · 10^9 possible edges


@dataclass(frozen=True)
class Row:
    """A call: its median seconds, and how many times longer the peer took.

    Attributes:
        peer: what it is compared with.
        error: distance of the two results: the largest between eigenvalues of exact ones, Wasserstein-1 of estimates.
        estimate: of that error by the call itself.
        peak: bytes of memory at most, over those of the process before, where it was measured.
    """

    what: str
    sizes: str
    density: float
    seconds: float
    peer: str = ""
    ratio: float | None = None
    error: float | None = None
    estimate: float | None = None
    peak: int | None = None

    def record(self) -> dict[str, object]:
        return {"table": "spectra", **vars(self)}


def network(sizes: Sequence[int], density: float, seed: int = 1) -> Graph:
    """Random bits; at density 1/2 by whole words, so that nothing larger than the packed matrix is made."""
    g = torch.Generator().manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        if density == 0.5 and n_in % 32 == 0:
            words = torch.randint(-(2**31), 2**31, (n_out, n_in // 32), generator=g, dtype=torch.int64)
            layers.append(BitMatrix.from_words(words.to(torch.int32), n_in))
        else:
            layers.append(BitMatrix.pack(torch.rand(n_out, n_in, generator=g) < density))
    return network_graph(layers)


def exact(sizes: Sequence[int], density: float, calls: int) -> Row:
    """The normalised spectrum by singular values of half the size, against eigvalsh of the whole Laplacian."""
    graph = network(sizes, density)
    roots = graph.degrees.rsqrt()
    laplacian = torch.eye(graph.nodes, dtype=torch.float64) - roots[:, None] * graph.adjacency() * roots
    found, peer = laplacian_spectrum(graph).values, torch.linalg.eigvalsh(laplacian)
    error = float((found - peer).abs().max())
    assert error <= 1e-10, f"the spectra of {_name(sizes)} differ by {error}"
    ours, theirs = _medians((lambda: laplacian_spectrum(graph), lambda: torch.linalg.eigvalsh(laplacian)), calls)
    return Row("exact spectrum", _name(sizes), density, ours, "eigvalsh of the whole", theirs / ours, error)


def quadrature(sizes: Sequence[int], density: float, calls: int) -> Row:
    """The estimate against the exact spectrum (by half-size singular values)."""
    graph = network(sizes, density)
    found, peer = estimate_spectrum(graph), laplacian_spectrum(graph)
    ours, theirs = _medians((lambda: estimate_spectrum(graph), lambda: laplacian_spectrum(graph)), calls)
    distance = wasserstein(found, peer)
    return Row("quadrature", _name(sizes), density, ours, "exact spectrum", theirs / ours, distance, found.error)


def large(sizes: Sequence[int]) -> list[Row]:
    """What a network takes that has no dense matrix, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_large, sizes).result()


def _large(sizes: Sequence[int]) -> list[Row]:
    estimate_spectrum(network((64, 32), 0.5))  # loads what libraries load at first use
    forget_peak()
    before = memory("/proc/self/status", "VmRSS")
    graph = network(sizes, 0.5)
    steps: dict[str, Callable[[], object]] = {
        "quadrature": lambda: estimate_spectrum(graph),
        "two extreme eigenvalues at either end": lambda: extreme_eigenvalues(graph, 2, tol=1e-6),
        "components": lambda: graph.components,
    }
    rows = []
    for what, call in steps.items():
        started = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - started
        estimate = getattr(found, "error", None)
        peak = memory("/proc/self/status", "VmHWM") - before
        rows.append(Row(what, _name(sizes), 0.5, seconds, estimate=estimate, peak=peak))
    return rows


def _medians(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of calls that take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def _name(sizes: Sequence[int]) -> str:
    return "-".join(map(str, sizes))
