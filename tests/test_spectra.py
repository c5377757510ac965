"""Graphs of networks, their exact spectra, summaries, and networkx."""

from __future__ import annotations

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from networks import NETWORKS, assert_values, bits, ones, reals

from fastbin import BitMatrix
from fastbin.nn import WeightFreeNet
from fastbin.spectra import (
    Block,
    Graph,
    adjacency_spectrum,
    estimate_spectrum,
    extreme_eigenvalues,
    from_networkx,
    laplacian_spectrum,
    network_graph,
    singular_values,
    summarise,
    to_networkx,
)

# --------------------------------------------------------------------------------------------------------- closed forms

N = 7
COSINES = np.cos(np.pi * np.arange(N) / (N - 1))
CLOSED = {
    # graph: eigenvalues of the Laplacian, of the normalised one, of the adjacency matrix
    "complete": (nx.complete_graph(N), [0] + [N] * (N - 1), [0] + [N / (N - 1)] * (N - 1), [-1] * (N - 1) + [N - 1]),
    "complete bipartite": (
        nx.complete_bipartite_graph(3, 5),
        [0, *[3] * 4, *[5] * 2, 8],
        [0, *[1] * 6, 2],
        [-math.sqrt(15), *[0] * 6, math.sqrt(15)],
    ),
    "path": (
        nx.path_graph(N),
        2 - 2 * np.cos(np.pi * np.arange(N) / N),
        1 - COSINES,
        2 * np.cos(np.pi * np.arange(1, N + 1) / (N + 1)),
    ),
    "star": (
        nx.star_graph(N - 1),
        [0, *[1] * (N - 2), N],
        [0, *[1] * (N - 2), 2],
        [-math.sqrt(N - 1), *[0] * (N - 2), math.sqrt(N - 1)],
    ),
    "cycle": (
        nx.cycle_graph(N),
        2 - 2 * np.cos(2 * np.pi * np.arange(N) / N),
        1 - np.cos(2 * np.pi * np.arange(N) / N),
        2 * np.cos(2 * np.pi * np.arange(N) / N),
    ),
    "hypercube": (
        nx.hypercube_graph(4),
        np.repeat([0, 2, 4, 6, 8], [1, 4, 6, 4, 1]),
        np.repeat([0, 0.5, 1, 1.5, 2], [1, 4, 6, 4, 1]),
        np.repeat([-4, -2, 0, 2, 4], [1, 4, 6, 4, 1]),
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    graph, laplacian, normalised, adjacency = CLOSED[name]
    ours = from_networkx(graph)
    assert_values(laplacian_spectrum(ours, normalized=False).values, laplacian)
    assert_values(laplacian_spectrum(ours).values, normalised)
    assert_values(adjacency_spectrum(ours).values, adjacency)


def test_closed_forms_of_disconnected_unions():
    parts = [CLOSED[name] for name in ("complete", "path", "hypercube")]
    union = from_networkx(nx.disjoint_union_all([graph for graph, *_ in parts] + [nx.empty_graph(3)]))
    for i, normalized in ((1, False), (2, True)):
        expected = np.concatenate([part[i] for part in parts] + [np.zeros(3)])
        assert_values(laplacian_spectrum(union, normalized).values, expected)
    assert summarise(union).components == 6


def test_closed_forms_as_layers():
    """The half-size singular values, against the same closed forms."""
    levels = [[v for v in range(16) if bin(v).count("1") == k] for k in range(5)]
    hypercube = [
        BitMatrix.pack([[bin(u ^ v).count("1") == 1 for u in below] for v in above])
        for below, above in pairwise(levels)
    ]
    cases = {
        "complete bipartite": ones((5, 3)),
        "path": ones(*[(1, 1)] * (N - 1)),
        "star": ones((N - 1, 1)),
        "hypercube": hypercube,
    }
    for name, layers in cases.items():
        _, laplacian, normalised, adjacency = CLOSED[name]
        found = laplacian_spectrum(layers)
        assert found.method.startswith("svdvals") and found.of == "the normalised Laplacian" and found.error == 0
        assert_values(found.values, normalised)
        assert_values(laplacian_spectrum(layers, normalized=False).values, laplacian)
        assert_values(adjacency_spectrum(layers).values, adjacency)


# ----------------------------------------------------------------------------------------- agreement with other programs


@pytest.mark.parametrize("name", NETWORKS)
def test_networkx_agrees(name):
    layers = NETWORKS[name]
    graph = network_graph(layers)
    theirs = to_networkx(graph)
    assert graph.nodes == theirs.number_of_nodes() and graph.edges == theirs.number_of_edges()
    degrees = np.array([d for _, d in theirs.degree(weight="weight")], dtype=np.float64)
    assert np.abs(graph.degrees.numpy() - degrees).max() <= 1e-12
    assert int(graph.components.max()) + 1 == nx.number_connected_components(theirs)
    adjacency = nx.to_numpy_array(theirs, nodelist=range(graph.nodes))
    assert np.abs(graph.adjacency().numpy() - adjacency).max() == 0
    laplacian = np.diag(degrees) - adjacency
    roots = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    assert_values(laplacian_spectrum(layers, normalized=False).values, np.linalg.eigvalsh(laplacian))
    assert_values(laplacian_spectrum(layers).values, np.linalg.eigvalsh(roots[:, None] * laplacian * roots))
    assert_values(adjacency_spectrum(layers).values, np.linalg.eigvalsh(adjacency))
    if theirs.number_of_edges():
        assert_values(laplacian_spectrum(layers).values, nx.normalized_laplacian_spectrum(theirs))


@pytest.mark.parametrize("name", NETWORKS)
def test_traces(name):
    """The trace of D - A is the sum of degrees; of the normalised Laplacian, the number of nodes with edges."""
    graph = network_graph(NETWORKS[name])
    total = float(graph.degrees.sum())
    assert float(laplacian_spectrum(graph, normalized=False).values.sum()) == pytest.approx(total, abs=1e-9)
    present = int((graph.degrees > 0).sum())
    assert float(laplacian_spectrum(graph).values.sum()) == pytest.approx(present, abs=1e-9)
    assert float(adjacency_spectrum(graph).values.square().sum()) == pytest.approx(
        float(graph.adjacency().square().sum()), abs=1e-9
    )


@pytest.mark.parametrize("layers", [bits((40, 65, 31, 7), 0.2), reals((40, 65, 31, 7))], ids=["bits", "real"])
def test_permuting_hidden_units_changes_nothing(layers):
    order = torch.randperm(65, generator=torch.Generator().manual_seed(1))

    def of(w):
        return w.unpack(torch.float64) if isinstance(w, BitMatrix) else w

    permuted = [of(layers[0])[order], of(layers[1])[:, order], of(layers[2])]
    if isinstance(layers[0], BitMatrix):
        permuted = [BitMatrix.pack(w) for w in permuted]
    assert network_graph(permuted).adjacency().ne(network_graph(layers).adjacency()).any()
    for normalized in (True, False):
        first, second = (laplacian_spectrum(net, normalized).values for net in (layers, permuted))
        assert float((first - second).abs().max()) <= 1e-9
    first, second = (adjacency_spectrum(net).values for net in (layers, permuted))
    assert float((first - second).abs().max()) <= 1e-9


def test_singular_values():
    for layers in (bits((20, 30, 7)), reals((20, 30, 7))):
        for i, (found, w) in enumerate(zip(singular_values(layers, "signed"), layers, strict=True), 1):
            dense = w.unpack(torch.float64) if isinstance(w, BitMatrix) else w
            assert found.of == f"the matrix of layer {i}"
            assert_values(found.values, np.linalg.svd(dense.numpy(), compute_uv=False))


def test_signs():
    layers = reals((9, 14, 5))
    adjacency = network_graph(layers, signed="signed").adjacency()
    assert bool((adjacency < 0).any()) and adjacency.abs().equal(network_graph(layers).adjacency())
    assert network_graph(layers, signed="support").adjacency().equal((adjacency != 0).double())
    degrees = adjacency.abs().sum(1)
    signed = laplacian_spectrum(layers, normalized=False, signed="signed")
    assert_values(signed.values, np.linalg.eigvalsh((degrees.diag() - adjacency).numpy()))
    for choice in ("absolute", "signed", "support"):
        for normalized in (True, False):
            found = laplacian_spectrum(layers, normalized, choice)
            assert found.signs == choice and choice in repr(found) and float(found.values[0]) >= 0
    # All signs the same, up to a flip of every node of a side: balanced, with the spectrum of |w|.
    flipped = [-layers[0].abs(), layers[1].abs()]
    for normalized in (True, False):
        first, second = (
            laplacian_spectrum(net, normalized, "signed").values for net in (flipped, [w.abs() for w in layers])
        )
        assert float((first - second).abs().max()) <= 1e-10
    with pytest.raises(ValueError, match="made with signed='signed', asked for is 'support'"):
        laplacian_spectrum(network_graph(layers, signed="signed"), signed="support")
    for choice in ("signed", "support"):
        assert_values(laplacian_spectrum(bits((9, 14)), signed=choice).values, laplacian_spectrum(bits((9, 14))).values)


def test_biases_are_edges_from_a_constant_node():
    layers, g = reals((6, 9, 4)), torch.Generator().manual_seed(2)
    first, second = torch.randn(9, generator=g), torch.randn(4, generator=g)
    graph = network_graph(layers, biases=[first, second])
    assert graph.sizes == (6, 9, 4, 1) and graph.sides is None
    expected = torch.zeros(20, 20, dtype=torch.float64)
    expected[:19, :19] = network_graph(layers).adjacency()
    expected[19, 6:19] = expected[6:19, 19] = torch.cat([first, second]).abs().double()
    assert graph.adjacency().equal(expected)
    found = laplacian_spectrum(graph)
    assert found.method == "eigvalsh of 20 x 20"
    assert_values(found.values, nx.normalized_laplacian_spectrum(nx.from_numpy_array(expected.numpy())))
    assert len(singular_values(graph)) == 2
    only_last = network_graph(layers, biases=[None, second])  # still bipartite: the constant joins the odd layers
    assert only_last.sides == ([0, 2], [1, 3])
    assert_values(
        laplacian_spectrum(only_last).values, nx.normalized_laplacian_spectrum(to_networkx(only_last)), tolerance=1e-9
    )


def test_networks_go_in():
    net = WeightFreeNet([5, 7, 3])
    assert laplacian_spectrum(net).values.equal(laplacian_spectrum(net.weights()).values)


# ------------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply(name):
    graph = network_graph(NETWORKS[name])
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, graph.nodes, generator=g, dtype=torch.float64) * torch.tensor(
        [[1e-200], [1.0], [1e200]], dtype=torch.float64
    )
    dense = graph.adjacency()
    # 2^-55 of the largest value for each of the terms, and the rounding of the truth's sums.
    bound = 2**-50 * x.abs().amax(1, keepdim=True) * (1 + dense.abs().sum(0).max())
    assert bool(((graph.multiply(x) - x @ dense).abs() <= bound).all())
    assert graph.multiply(torch.zeros(graph.nodes, dtype=torch.float64)).count_nonzero() == 0
    small = torch.randn(graph.nodes, generator=g)
    assert graph.multiply(small).dtype == torch.float32
    assert float((graph.multiply(small) - small.double() @ dense).abs().max()) <= 1e-5 * (1 + float(dense.sum(0).max()))
    assert graph.sides is not None
    left, right = (graph.nodes_of(side) for side in graph.sides)
    for here, there, side in ((left, right, 0), (right, left, 1)):
        difference = graph.multiply(x[:, here], side) - x[:, here] @ dense[here][:, there]
        assert bool((difference.abs() <= bound).all())
    assert graph.biadjacency().equal(dense[left][:, right])


# -------------------------------------------------------------------------------------------------------------- figures

TREES = {
    "complete": (nx.complete_graph(N), (N - 2) * math.log(N)),
    "complete bipartite": (nx.complete_bipartite_graph(3, 5), 4 * math.log(3) + 2 * math.log(5)),
    "cycle": (nx.cycle_graph(N), math.log(N)),
    "path": (nx.path_graph(N), 0.0),
    "one node": (nx.empty_graph(1), 0.0),
    "forest": (nx.disjoint_union(nx.cycle_graph(5), nx.complete_graph(4)), math.log(5) + 2 * math.log(4)),
}


@pytest.mark.parametrize("name", TREES)
def test_summary(name):
    graph, trees = TREES[name]
    found = summarise(from_networkx(graph))
    assert (found.nodes, found.edges) == (graph.number_of_nodes(), graph.number_of_edges())
    assert found.components == nx.number_connected_components(graph)
    assert found.log_spanning_trees == pytest.approx(trees, abs=1e-10)
    expected = nx.algebraic_connectivity(graph, method="lanczos") if found.nodes > 1 else 0.0
    assert found.algebraic_connectivity == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["bits", "real"])
def test_summary_of_networks(name):
    graph = network_graph(NETWORKS[name])
    found, values = summarise(graph), laplacian_spectrum(graph).values
    laplacian = graph.degrees.diag() - graph.adjacency()
    assert found.components == 1 and found.signs == "absolute"
    assert found.log_spanning_trees == pytest.approx(float(torch.linalg.slogdet(laplacian[1:, 1:])[1]), rel=1e-10)
    assert found.algebraic_connectivity == pytest.approx(float(torch.linalg.eigvalsh(laplacian)[1]), rel=1e-9)
    assert found.gap == float(values[1])
    p = values[1:] / values.sum()
    assert found.spectral_entropy == pytest.approx(-float((p * p.log()).sum()), rel=1e-12)
    estimated = summarise(graph, spectrum=estimate_spectrum(graph, probes=64))
    assert "Lanczos" in estimated.method
    assert estimated.log_spanning_trees == pytest.approx(found.log_spanning_trees, rel=0.05)
    with pytest.raises(ValueError, match="spectrum must be of the normalised Laplacian"):
        summarise(graph, spectrum=laplacian_spectrum(graph, normalized=False))
    with pytest.raises(ValueError, match="weights of at least 0: take signed='absolute' or 'support'"):
        summarise(reals((5, 4)), "signed")


# ------------------------------------------------------------------------------------------------------------- networkx


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "empty layer"])
@pytest.mark.parametrize("signed", ["absolute", "signed", "support"])
def test_networkx_and_back(name, signed):
    graph = network_graph(NETWORKS[name], signed=signed)
    there = to_networkx(graph)
    assert there.graph["signs"] == signed and {layer for _, layer in there.nodes(data="layer")} == set(
        range(len(graph.sizes))
    )
    back = from_networkx(there)
    assert back.sizes == graph.sizes and back.adjacency().equal(graph.adjacency())


def test_networkx_graphs_of_any_kind():
    graph = nx.relabel_nodes(nx.karate_club_graph(), lambda v: f"member {v}")
    weighted, plain = from_networkx(graph), from_networkx(graph, weight=None)
    assert np.array_equal(weighted.adjacency().numpy(), nx.to_numpy_array(graph))
    assert plain.signs == "support" and isinstance(plain.blocks[0].matrix, BitMatrix)
    assert_values(laplacian_spectrum(plain).values, nx.normalized_laplacian_spectrum(graph, weight=None))
    loop = nx.path_graph(3)
    loop.add_edge(1, 1)
    assert_values(laplacian_spectrum(from_networkx(loop), False).values, nx.laplacian_spectrum(loop))
    assert from_networkx(loop).edges == loop.number_of_edges() == 3
    assert extreme_eigenvalues(plain, 2)[0][1] == pytest.approx(float(laplacian_spectrum(plain).values[1]), abs=1e-9)
    for wrong in (nx.DiGraph([(0, 1)]), nx.MultiGraph([(0, 1), (0, 1)])):
        with pytest.raises(TypeError, match="undirected"):
            from_networkx(wrong)
    graph = nx.path_graph(2)
    graph[0][1]["weight"] = math.inf
    with pytest.raises(ValueError, match="the weight of edge 0, 1 is inf"):
        from_networkx(graph)
    with pytest.raises(ValueError, match="at least one node"):
        from_networkx(nx.Graph())


# -------------------------------------------------------------------------------------------------------- awkward cases


def test_isolated_nodes_have_eigenvalue_0():
    w = torch.ones(4, 3)
    w[1] = w[:, 2] = 0
    values = laplacian_spectrum([BitMatrix.pack(w)]).values
    assert_values(values, [0, 0, 0, 1, 1, 1, 2])
    assert_values(estimate_spectrum([BitMatrix.pack(w)]).values, values, 1e-6)
    assert summarise([BitMatrix.pack(w)]).components == 3


def test_one_node():
    for graph in (
        Graph((1,), ()),
        Graph((0, 1), (Block(1, 0, BitMatrix.zeros(1, 0)),)),
        from_networkx(nx.empty_graph(1)),
    ):
        for normalized in (True, False):
            assert laplacian_spectrum(graph, normalized).values.tolist() == [0]
            assert estimate_spectrum(graph, normalized).values.tolist() == [0]
        assert adjacency_spectrum(graph).values.tolist() == [0]
        assert summarise(graph).components == 1


@pytest.mark.parametrize(
    ("layers", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one matrix"),
        (bits((5, 4)) + bits((3, 2)), {}, ValueError, "layer 2 has 3 inputs .* the layer before it 4 units"),
        ([torch.tensor([[1.0, math.nan]])], {}, ValueError, "layer 1 has 1 weights that are not finite, the first is nan"),
        ([*bits((2, 1)), torch.tensor([[-math.inf]])], {}, ValueError, "layer 2 .* not finite, the first is -inf"),
        ([torch.ones(3)], {}, ValueError, r"layer 1 must be a matrix, got shape \[3\]"),
        ([BitMatrix.zeros(2, 3, 4)], {}, ValueError, r"layer 1 is a population \[2, 3, 4\]"),
        ([torch.ones(2, 2, dtype=torch.complex64)], {}, TypeError, "must be a BitMatrix or a real tensor, got torch"),
        ([[[1, 0]]], {}, TypeError, "layer 1 must be a BitMatrix or a real tensor, got list"),
        ([BitMatrix.zeros(0, 0)], {}, ValueError, "at least one node"),
        (bits((5, 4)), {"signed": "both"}, ValueError, "signed must be one of absolute, signed, support, got 'both'"),
        (bits((5, 4)), {"biases": []}, ValueError, "one for each of the 1 layers, got 0"),
        (bits((5, 4)), {"biases": [torch.ones(5)]}, ValueError, r"bias of layer 1 must be .* \[4\], got \[5\]"),
        (bits((5, 4)), {"biases": [torch.full((4,), math.nan)]}, ValueError, "the bias of layer 1 has 4 weights"),
    ],
)  # fmt: skip
def test_what_is_no_network(layers, options, error, message):
    with pytest.raises(error, match=message):
        network_graph(layers, **options)


def test_arguments_out_of_range():
    layers = bits((5, 4))
    for options, message in (
        ({"probes": 1}, "probes must be at least 2, got 1"),
        ({"steps": 3}, "steps must be at least 4"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate_spectrum(layers, **options)
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"k must be at least 1 and below the 9 nodes, got {k}"):
            extreme_eigenvalues(layers, k)
    with pytest.raises(ValueError, match="not bipartite"):
        from_networkx(nx.path_graph(3)).biadjacency()
