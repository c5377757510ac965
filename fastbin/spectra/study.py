"""The study of a folder's networks: which kinds of structure are alike, and what of it is density, degrees or more.

All of it is about normalised Laplacians, of the whole network and of each layer alone, so that networks of any size and any
weights are on one scale, from 0 to 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from fastbin.descent import derived_seed
from fastbin.spectra.distances import Metric, distance_matrix, permutation_test
from fastbin.spectra.files import Stored, find_evolutions, find_networks
from fastbin.spectra.graph import Block, Graph, Signs
from fastbin.spectra.lanczos import estimate_spectrum
from fastbin.spectra.nulls import same_degrees, same_density
from fastbin.spectra.spectrum import Spectrum, laplacian_spectrum
from fastbin.spectra.summary import Summary, summarise

NULLS = {"same density": same_density, "same degrees": same_degrees}
WHOLE = "whole"
_NULL_SEEDS = 20  # the first of the purposes that seeds are derived for


@dataclass(frozen=True, eq=False)
class Group:
    """The networks of one kind on one data set.

    Attributes:
        data: what they were made on.
        kind: what they are.
        seeds: which they are.
        spectra: of each part (the whole, each layer alone) a spectrum for each network.
        nulls: of each null model the same, drawn once for each network; empty for networks that are no stack of layers.
        summaries: of each network.
    """

    data: str
    kind: str
    seeds: list[int]
    spectra: dict[str, list[Spectrum]]
    nulls: dict[str, dict[str, list[Spectrum]]]
    summaries: list[Summary]


@dataclass(frozen=True, eq=False)
class Evolution:
    """Spectra of the whole network along a search; the first may be of epoch 0, before it."""

    name: str
    epochs: list[int]
    spectra: list[Spectrum]


@dataclass(frozen=True, eq=False)
class Study:
    """What was found.

    Attributes:
        signed: how the weights of real networks were taken.
        metric: of the distances.
        groups: kinds on data sets.
        pairs: for each data set, part and pair of kinds, or of a kind and its null model: the distance and what it comes
            from, see `_pair`.
        evolutions: along searches.
    """

    signed: Signs
    metric: Metric
    groups: list[Group]
    pairs: list[dict[str, Any]]
    evolutions: list[Evolution] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able figures, eigenvalues left out."""
        return {
            "signed": self.signed,
            "metric": self.metric,
            "networks": [
                {"data": g.data, "kind": g.kind, "seed": seed, "error": spectrum.error, **asdict(summary)}
                for g in self.groups
                for seed, spectrum, summary in zip(g.seeds, g.spectra[WHOLE], g.summaries, strict=True)
            ],
            "pairs": self.pairs,
            "evolutions": [
                {
                    "name": e.name,
                    "epochs": e.epochs,
                    "from_the_first": distance_matrix(e.spectra, self.metric)[0].tolist(),
                    "from_the_last": distance_matrix(e.spectra, self.metric)[-1].tolist(),
                }
                for e in self.evolutions
            ],
        }


def study(
    folder: Path,
    *,
    signed: Signs = "absolute",
    metric: Metric = "wasserstein",
    exact_nodes: int = 4000,
    on_network: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Study the networks of a folder.

    Args:
        folder: of ``fastbin compare``, of ``fastbin search``, or one that holds folders of searches.
        signed: how the weights of real networks are taken, see `fastbin.spectra.network_graph`.
        metric: distance between spectra.
        exact_nodes: graphs of up to so many nodes have exact spectra, larger ones estimates.
        on_network: called after each network with what it is, its number and the number of all.

    Raises:
        FileNotFoundError: there is no folder, or no network in it.
        CheckpointError: a network's file is damaged.
    """

    def spectrum(graph: Graph) -> Spectrum:
        return laplacian_spectrum(graph) if graph.nodes <= exact_nodes else estimate_spectrum(graph)

    networks, evolutions = find_networks(folder), find_evolutions(folder)
    total = len(networks) + sum(map(len, evolutions.values()))
    groups: dict[tuple[str, str], Group] = {}
    for number, net in enumerate(networks, 1):
        group = groups.setdefault((net.data, net.kind), Group(net.data, net.kind, [], {}, {}, []))
        _add(group, net, signed, spectrum)
        if on_network is not None:
            on_network(f"{net.data}, {net.kind}, seed {net.seed}", number, total)
    found, done = [], len(networks)
    for name, steps in evolutions.items():
        found.append(Evolution(name, [epoch for epoch, _ in steps], []))
        for epoch, net in steps:
            found[-1].spectra.append(spectrum(net.graph(signed)))
            done += 1
            if on_network is not None:
                on_network(f"{name}, epoch {epoch}", done, total)
    ordered = list(groups.values())
    pairs = [
        _pair(a, b, part, metric)
        for a, b in [*combinations(ordered, 2), *((g, null) for g in ordered for null in _null_groups(g))]
        if a.data == b.data
        for part in a.spectra
        if part in b.spectra
    ]
    return Study(signed, metric, ordered, pairs, found)


def _add(group: Group, net: Stored, signed: Signs, spectrum: Callable[[Graph], Spectrum]) -> None:
    graph = net.graph(signed)
    for part, piece in _parts(graph, net.layers is not None):
        group.spectra.setdefault(part, []).append(spectrum(piece))
    if net.layers is not None:
        for i, (name, draw) in enumerate(NULLS.items()):
            drawn = Stored(net.data, name, net.seed, draw(net.layers, derived_seed(net.seed, _NULL_SEEDS + i)))
            for part, piece in _parts(drawn.graph(signed), True):
                group.nulls.setdefault(name, {}).setdefault(part, []).append(spectrum(piece))
    # Connectivity and spanning trees need weights of at least 0.
    graph = net.graph("absolute") if signed == "signed" else graph
    own = group.spectra[WHOLE][-1] if signed != "signed" else spectrum(graph)
    group.seeds.append(net.seed)
    group.summaries.append(summarise(graph, spectrum=own))


def _parts(graph: Graph, layered: bool) -> list[tuple[str, Graph]]:
    """The whole, and each layer with its inputs alone."""
    alone = [Graph((b.matrix.shape[1], b.matrix.shape[0]), (Block(1, 0, b.matrix),), graph.signs) for b in graph.layers]
    return [(WHOLE, graph), *((f"layer {i}", g) for i, g in enumerate(alone, 1))] if layered else [(WHOLE, graph)]


def _null_groups(group: Group) -> list[Group]:
    """The null models of a kind, as kinds."""
    return [Group(group.data, f"{group.kind}, {name}", group.seeds, s, {}, []) for name, s in group.nulls.items()]


def _pair(a: Group, b: Group, part: str, metric: Metric) -> dict[str, Any]:
    """How far two kinds are apart in a part.

    `distance`: mean over all pairs of a network of either kind; `interval`: half-width of its 95 % confidence interval, by
    Student's t over a's networks, each with its mean distance to b's; `within`: mean distance between two networks of the
    same kind, for either; `statistic`, `p`, `permutations`: of the permutation test. `same density`, `same degrees`:
    distance between the null models of the two kinds, which is what their densities, or their degrees, make of it; `left`:
    for either kind the distance to its own null model of the same degrees. None where there are too few networks.
    """
    first, second = a.spectra[part], b.spectra[part]
    k = len(first)
    distances = distance_matrix([*first, *second], metric)
    across, blocks = distances[:k, k:], (distances[:k, :k], distances[k:, k:])
    test = permutation_test(distances, range(k), range(k, len(distances))) if min(k, len(second)) > 1 else None
    row: dict[str, Any] = {
        "data": a.data,
        "part": part,
        "kinds": [a.kind, b.kind],
        "distance": float(across.mean()),
        "interval": half_width(across.mean(1).tolist()),
        "within": [float(d.sum() / (len(d) * (len(d) - 1))) if len(d) > 1 else None for d in blocks],
        "statistic": test.statistic if test else None,
        "p": test.p if test else None,
        "permutations": test.permutations if test else None,
    }
    for name in NULLS:
        both = part in a.nulls.get(name, {}) and part in b.nulls.get(name, {})
        row[name] = _between(a.nulls[name][part], b.nulls[name][part], metric) if both else None
    row["left"] = [_own(g.spectra[part], g.nulls["same degrees"][part], metric) if g.nulls else None for g in (a, b)]
    return row


def _between(first: Sequence[Spectrum], second: Sequence[Spectrum], metric: Metric) -> float:
    return float(distance_matrix([*first, *second], metric)[: len(first), len(first) :].mean())


def _own(spectra: Sequence[Spectrum], nulls: Sequence[Spectrum], metric: Metric) -> float:
    """Mean distance of each network to the null model drawn for it."""
    return sum(float(distance_matrix(pair, metric)[0, 1]) for pair in zip(spectra, nulls, strict=True)) / len(spectra)


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    deviation = float(torch.tensor(values, dtype=torch.float64).std())
    return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


def nearest(found: Study, data: str, part: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The other kinds by their distance from `kind` in a part, the nearest first, with their rows of `Study.pairs`."""
    rows = [row for row in found.pairs if (row["data"], row["part"]) == (data, part) and kind in row["kinds"]]
    named = [(next(other for other in row["kinds"] if other != kind), row) for row in rows]
    return sorted(named, key=lambda pair: float(pair[1]["distance"]))


def kind_matrix(groups: Sequence[Group], part: str, metric: Metric) -> Tensor:
    """Mean distances between the kinds ``[k, k]``; within a kind, between its different networks (0 for a single one)."""
    spectra = [s for g in groups for s in g.spectra[part]]
    distances = distance_matrix(spectra, metric)
    sizes = [len(g.spectra[part]) for g in groups]
    means = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for i, rows in enumerate(distances.split(sizes)):
        for j, block in enumerate(rows.split(sizes, 1)):
            means[i, j] = block.sum() / max(block.numel() - (len(block) if i == j else 0), 1)
    return means
