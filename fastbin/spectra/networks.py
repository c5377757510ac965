"""To and from networkx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastbin.bits import BitMatrix
from fastbin.spectra.graph import Block, Graph, Signs, dense
from fastbin.spectra.spectrum import Network, as_graph

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(network: Network, signed: Signs | None = None) -> nx.Graph[Any]:
    """The graph of a network as a networkx graph, with the nodes 0, 1, .. in the order of the layers.

    Each node has the attribute ``layer`` (the number of its group), each edge of a real weight ``weight``; the graph has the
    attribute ``signs``. Arguments and errors as for `fastbin.spectra.laplacian_spectrum`.
    """
    import networkx as nx  # here: slow to import

    graph = as_graph(network, signed)
    made = nx.Graph(signs=graph.signs)
    starts = graph.offsets
    for group, (start, size) in enumerate(zip(starts, graph.sizes, strict=True)):
        made.add_nodes_from(range(start, start + size), layer=group)
    for b in graph.blocks:
        matrix = dense(b.matrix).cpu()
        rows, cols = matrix.nonzero(as_tuple=True)
        ends = zip((rows + starts[b.rows]).tolist(), (cols + starts[b.cols]).tolist(), strict=True)
        if isinstance(b.matrix, BitMatrix):
            made.add_edges_from(ends)
        else:
            made.add_weighted_edges_from((u, v, w) for (u, v), w in zip(ends, matrix[rows, cols].tolist(), strict=True))
    return made


def from_networkx(graph: nx.Graph[Any], weight: str | None = "weight") -> Graph:
    """A networkx graph as a `Graph`.

    Nodes are taken in the graph's order. If all of them have the whole number ``layer`` from 0 on as an attribute, as
    `to_networkx` gives, the graph is layered by it, and nodes are sorted by layer.

    Args:
        graph: undirected, without parallel edges.
        weight: name of the edges' weights, 1 for an edge without; None: the structure alone.

    Raises:
        TypeError: a directed graph, or one with parallel edges.
        ValueError: no nodes, a weight that is not finite, or a negative layer.
    """
    if graph.is_directed() or graph.is_multigraph():
        raise TypeError(f"the graph must be an undirected nx.Graph, got {type(graph).__name__}")
    layer = dict(graph.nodes(data="layer"))
    layered = bool(layer) and all(isinstance(n, int) for n in layer.values())
    if layered and min(layer.values()) < 0:
        raise ValueError(f"layers must be numbered from 0 on, got {min(layer.values())}")
    nodes = sorted(graph, key=layer.__getitem__) if layered else list(graph)
    sizes = np.bincount([layer[v] for v in nodes]).tolist() if layered else [len(nodes)]
    at = {v: i for i, v in enumerate(nodes)}
    group = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum([0, *sizes])
    matrices: dict[tuple[int, int], torch.Tensor] = {}
    for u, v, data in graph.edges(data=True):
        value = 1.0 if weight is None else float(data.get(weight, 1.0))
        if not np.isfinite(value):
            raise ValueError(f"the weight of edge {u!r}, {v!r} is {value}")
        i, j = sorted((at[u], at[v]), reverse=True)
        r, c = int(group[i]), int(group[j])
        if (r, c) not in matrices:
            matrices[r, c] = torch.zeros(sizes[r], sizes[c], dtype=torch.float64)
        matrices[r, c][i - starts[r], j - starts[c]] = value
        if r == c:
            matrices[r, c][j - starts[c], i - starts[r]] = value
    blocks = tuple(Block(r, c, _packed(w)) for (r, c), w in sorted(matrices.items()))
    signs: Signs = "signed" if any(bool((dense(b.matrix) < 0).any()) for b in blocks) else "absolute"
    return Graph(tuple(sizes), blocks, "support" if weight is None else signs)


def _packed(w: torch.Tensor) -> BitMatrix | torch.Tensor:
    return BitMatrix.pack(w) if bool(((w == 0) | (w == 1)).all()) else w
