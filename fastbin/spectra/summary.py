"""What a structure's spectrum says in single figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbin.spectra.graph import Graph, Signs
from fastbin.spectra.lanczos import smallest
from fastbin.spectra.spectrum import Network, Spectrum, as_graph, laplacian_name, laplacian_spectrum


@dataclass(frozen=True)
class Summary:
    """Figures of a network's graph.

    Attributes:
        nodes: how many, those without edges too.
        edges: how many have a weight.
        signs: how the weights of real matrices were taken.
        components: connected components; a node without edges is one.
        gap: smallest eigenvalue of the normalised Laplacian that is not one of the components' zeros; 0 without any edge.
        algebraic_connectivity: second smallest eigenvalue of the Laplacian D - A; 0 if the graph is not connected.
        spectral_entropy: -Σ p ln p with p the normalised Laplacian's eigenvalues over their sum; ln(nodes) at most.
        log_spanning_trees: natural logarithm of the number of spanning trees, each counted as the product of its weights; of
            the number of spanning forests, a tree for each component, if the graph is not connected.
        method: how the normalised Laplacian's spectrum was found.
    """

    nodes: int
    edges: int
    signs: Signs
    components: int
    gap: float
    algebraic_connectivity: float
    spectral_entropy: float
    log_spanning_trees: float
    method: str


def summarise(network: Network, signed: Signs | None = None, spectrum: Spectrum | None = None) -> Summary:
    """The figures of a network's graph.

    Args:
        network: layers as for `fastbin.spectra.network_graph`, or a `Graph`.
        signed: as for `network_graph`; absolute without.
        spectrum: of its normalised Laplacian, if it is at hand; an estimate gives estimates.

    Raises:
        TypeError, ValueError: as `network_graph`; negative weights under ``signed``; a spectrum of something else.
    """
    graph = as_graph(network, signed)
    if any(isinstance(b.matrix, Tensor) and bool((b.matrix < 0).any()) for b in graph.blocks):
        raise ValueError(
            "connectivity and spanning trees need weights of at least 0: take signed='absolute' or 'support'"
        )
    spectrum = spectrum or laplacian_spectrum(graph)
    expected = (laplacian_name(normalized=True), graph.signs, graph.nodes)
    if (spectrum.of, spectrum.signs, len(spectrum.values)) != expected:
        raise ValueError(
            f"spectrum must be of {expected[0]}, {graph.signs}, with {graph.nodes} values, got {spectrum!r}"
        )
    components = int(graph.components.max()) + 1
    rest = spectrum.values[components:]
    share = spectrum.values / spectrum.values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Summary(
        nodes=graph.nodes,
        edges=graph.edges,
        signs=graph.signs,
        components=components,
        gap=float(rest[0]) if len(rest) else 0.0,
        algebraic_connectivity=_connectivity(graph) if components == 1 and graph.nodes > 1 else 0.0,
        spectral_entropy=float(torch.special.entr(share).sum()),
        log_spanning_trees=_log_trees(graph, rest),
        method=spectrum.method,
    )


def _connectivity(graph: Graph) -> float:
    if graph.nodes <= 32:  # ARPACK wants room for its vectors
        return float(laplacian_spectrum(graph, normalized=False).values[1])
    return float(smallest(graph, 2, normalized=False)[1])


def _log_trees(graph: Graph, nonzero: Tensor) -> float:
    """Kirchhoff's theorem, by the normalised Laplacian (Chung 1997).

    Of a component with degrees d the number is Π d / Σ d times the product of the normalised eigenvalues that are not 0.
    """
    degrees, labels = graph.degrees.cpu(), graph.components
    present = degrees > 0
    volumes = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, degrees)
    return float(nonzero.log().sum() + degrees[present].log().sum() - volumes[volumes > 0].log().sum())
