"""Exact spectra of networks, by torch.linalg in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbin.nn import WeightFreeNet
from fastbin.spectra.graph import Graph, Matrix, Signs, dense, network_graph

Network = Graph | WeightFreeNet | Sequence[Matrix]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues, or an estimate of how they are distributed, each standing for as large a share.

    Attributes:
        values: float64 ``[n]``, ascending.
        of: the matrix that they are of.
        signs: how the weights of real matrices were taken: absolute, signed or support.
        method: how they were found.
        error: estimated Wasserstein-1 distance from the exact spectrum; 0 for an exact one, which is right up to rounding.
    """

    values: Tensor
    of: str
    signs: Signs
    method: str
    error: float = 0.0

    def __repr__(self) -> str:
        low, high = (float(self.values[i]) for i in (0, -1)) if len(self.values) else (0.0, 0.0)
        return f"Spectrum({len(self.values)} values in [{low:.6g}, {high:.6g}] of {self.of}, {self.signs}, by {self.method})"


def as_graph(network: Network, signed: Signs | None) -> Graph:
    """The graph of a network (``absolute`` without `signed`), or the graph itself.

    Raises:
        ValueError: a graph's weights were taken in another way than `signed`; and as `network_graph`.
    """
    if not isinstance(network, Graph):
        return network_graph(network, signed=signed or "absolute")
    if signed not in (None, network.signs):
        raise ValueError(f"the graph was made with signed={network.signs!r}, asked for is {signed!r}")
    return network


def inverse_roots(degrees: Tensor) -> Tensor:
    """``degrees ** -0.5``, and 0 for a node without edges."""
    return torch.where(degrees > 0, degrees.rsqrt(), 0.0)


def laplacian_spectrum(network: Network, normalized: bool = True, signed: Signs | None = None) -> Spectrum:
    """All eigenvalues of a network's Laplacian.

    With A the adjacency matrix and D the degrees: ``D^-1/2 (D - A) D^-1/2``, where a node without edges has a row of zeros,
    or ``D - A``. The normalised Laplacian of a layered network, which has edges between even and odd layers only, has the
    eigenvalues 1 ± the singular values of the half-size matrix between the two: those are found instead.

    Args:
        network: layers as for `network_graph`, or a `Graph`.
        normalized: which of the two Laplacians.
        signed: as for `network_graph`; absolute without.

    Returns:
        As many values as there are nodes.

    Raises:
        TypeError, ValueError: as `network_graph`.
    """
    graph = as_graph(network, signed)
    if normalized and graph.sides is not None:
        sigma, method = _halves(graph, normalized=True)
        isolated = int((graph.degrees == 0).sum())
        rest = torch.ones(graph.nodes - isolated - 2 * len(sigma), dtype=torch.float64)
        values = torch.cat([1 - sigma, 1 + sigma, rest, torch.zeros(isolated, dtype=torch.float64)])
    else:
        laplacian = _laplacian(graph, normalized)
        values, method = torch.linalg.eigvalsh(laplacian).cpu(), f"eigvalsh of {_by(laplacian)}"
    # Both are positive semi-definite: what is below 0 is rounding.
    return Spectrum(values.sort().values.clamp_min(0), laplacian_name(normalized), graph.signs, method)


def adjacency_spectrum(network: Network, signed: Signs | None = None) -> Spectrum:
    """All eigenvalues of a network's adjacency matrix; arguments and errors as for `laplacian_spectrum`."""
    graph = as_graph(network, signed)
    if graph.sides is not None:
        sigma, method = _halves(graph, normalized=False)
        rest = torch.zeros(graph.nodes - 2 * len(sigma), dtype=torch.float64)
        return Spectrum(torch.cat([-sigma, sigma, rest]).sort().values, "the adjacency matrix", graph.signs, method)
    adjacency = graph.adjacency()
    values = torch.linalg.eigvalsh(adjacency).cpu()
    return Spectrum(values, "the adjacency matrix", graph.signs, f"eigvalsh of {_by(adjacency)}")


def singular_values(network: Network, signed: Signs | None = None) -> list[Spectrum]:
    """The singular values of each layer's matrix, ascending, min(rows, columns) of them.

    Arguments and errors as for `laplacian_spectrum`.
    """
    graph = as_graph(network, signed)
    found = []
    for i, block in enumerate(graph.layers, 1):
        w = dense(block.matrix)
        values = torch.linalg.svdvals(w).cpu().flip(0)
        found.append(Spectrum(values, f"the matrix of layer {i}", graph.signs, f"svdvals of {_by(w)}"))
    return found


def laplacian_name(normalized: bool) -> str:
    """What a spectrum of it is of."""
    return "the normalised Laplacian" if normalized else "the Laplacian"


def _halves(graph: Graph, *, normalized: bool) -> tuple[Tensor, str]:
    """Singular values between the two sides, nodes without edges left out, and how they were found."""
    assert graph.sides is not None
    half = graph.biadjacency()
    left, right = (graph.degrees[graph.nodes_of(side)] for side in graph.sides)
    if normalized:
        half = inverse_roots(left)[:, None] * half * inverse_roots(right)
    half = half[left > 0][:, right > 0]
    return torch.linalg.svdvals(half).cpu(), f"svdvals of {_by(half)}"


def _laplacian(graph: Graph, normalized: bool) -> Tensor:
    laplacian = graph.degrees.diag() - graph.adjacency()
    if normalized:
        roots = inverse_roots(graph.degrees)
        laplacian = roots[:, None] * laplacian * roots
    return laplacian


def _by(matrix: Tensor) -> str:
    return " x ".join(map(str, matrix.shape))
