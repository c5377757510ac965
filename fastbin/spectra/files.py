"""The networks of a results folder: of ``fastbin compare``, or of runs of ``fastbin search``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from fastbin import checkpoint
from fastbin.bits import BitMatrix
from fastbin.result import load_result
from fastbin.runs import NETWORK, SNAPSHOTS
from fastbin.spectra.graph import Block, Graph, Matrix, Signs, network_graph

NETWORKS = "networks"  # folder of a comparison: networks/<data>/<kind>/seed<seed>.safetensors


@dataclass(frozen=True, eq=False)
class Stored:
    """A network of a folder.

    Attributes:
        data: what it was made on.
        kind: what kind of network it is.
        seed: which of its kind.
        layers: its matrices; None for a network that is no stack of layers.
        structure: such a network's graph.
    """

    data: str
    kind: str
    seed: int
    layers: list[Matrix] | None
    structure: Graph | None = None

    def graph(self, signed: Signs) -> Graph:
        """Its graph; of bits alone it is the same for all `signed`."""
        if self.structure is not None:
            return Graph(self.structure.sizes, self.structure.blocks, signed)
        assert self.layers is not None
        return network_graph(self.layers, signed=signed)


def find_networks(folder: Path) -> list[Stored]:
    """All networks of a comparison's folder, of a search's folder, or of the searches' folders in a folder, sorted.

    Raises:
        FileNotFoundError: there is no such folder, or no network in it.
        CheckpointError: a file is damaged, or of a form that is not known.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if (folder / NETWORKS).is_dir():
        found = [read_network(path) for path in (folder / NETWORKS).glob("*/*/seed*.safetensors")]
    else:
        found = [_searched(path) for path in (folder / NETWORK, *folder.glob(f"*/{NETWORK}")) if path.exists()]
    if not found:
        raise FileNotFoundError(
            f"no networks in {folder}: expected {NETWORKS}/<data>/<kind>/seed<n>.safetensors or {NETWORK}"
        )
    return sorted(found, key=lambda s: (s.data, s.kind, s.seed))


def find_evolutions(folder: Path) -> dict[str, list[tuple[int, Stored]]]:
    """Networks along searches, by the folder that holds them: the epoch and the network after it, in order.

    They lie in folders called ``snapshots`` (of ``fastbin search --snapshots``), as ``epoch<number>.safetensors``.
    """
    found: dict[str, list[tuple[int, Stored]]] = {}
    for path in sorted(folder.glob(f"**/{SNAPSHOTS}/epoch*.safetensors")):
        epoch = int(path.stem.removeprefix("epoch"))
        found.setdefault(str(path.parent.relative_to(folder)), []).append((epoch, read_network(path)))
    return {name: sorted(networks, key=lambda pair: pair[0]) for name, networks in found.items()}


def read_network(path: Path) -> Stored:
    """The network of a file of a comparison, or of a snapshot.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or of a form that is not known.
    """
    reader = checkpoint.Reader(path)
    about = (reader.entry("data", str), reader.entry("kind", str), reader.entry("seed", int))
    form = reader.entry("form", str)
    if form == "graph":
        return Stored(*about, None, _graph(reader))
    if form not in ("bits", "real"):
        raise reader.fail(f"metadata 'form' is {form!r}, known are bits, real and graph")
    widths = reader.entry("widths", list)
    if len(widths) < 2 or not all(isinstance(n, int) and n >= 0 for n in widths):
        raise reader.fail(f"metadata 'widths' is {widths!r}")
    layers: list[Matrix] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        if form == "bits":
            layers.append(reader.bits(f"layers.{i}.words", n_out, n_in))
        else:
            layers.append(reader.tensor(f"layers.{i}.weight", torch.float32, (n_out, n_in)))
    return Stored(*about, layers)


def _graph(reader: checkpoint.Reader) -> Graph:
    """A weight-agnostic network: its inputs, with the constant as the last, are one group and its units the other."""
    inputs = reader.entry("inputs", int) + 1
    units = len(reader.tensors.get("graph.activation", ()))
    among = reader.bits("graph.units", units, units)
    both_ways = BitMatrix(among.words | among.T.words, units)
    return Graph((inputs, units), (Block(1, 0, reader.bits("graph.inputs", units, inputs)), Block(1, 1, both_ways)))


def _searched(path: Path) -> Stored:
    result = load_result(path)
    kind = f"weight_free_{result.config.estimator}"
    return Stored(result.data_name, kind, result.config.seed, list(result.net.weights()))
