"""Networks that are graphs of units with activations of their own and one weight: weight-agnostic networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastbin import ops
from fastbin.bits import BitMatrix
from fastbin.encodings import upright

Bools = npt.NDArray[np.bool_]
SIDE = 16  # of the deskewed images, in pixels

# Those of Gaier and Ha 2019. A unit's activation is an index; outputs are linear.
ACTIVATIONS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("linear", lambda a: a),
    ("step", lambda a: (a > 0).to(a.dtype)),
    ("sine", lambda a: torch.sin(math.pi * a)),
    ("gauss", lambda a: torch.exp(-a.square() / 2)),
    ("tanh", torch.tanh),
    ("sigmoid", torch.sigmoid),
    ("inverse", torch.neg),
    ("abs", torch.abs),
    ("relu", torch.relu),
    ("cosine", lambda a: torch.cos(math.pi * a)),
)
LINEAR = 0


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph of U units, the first ones being the outputs; outputs feed nothing.

    Attributes:
        outputs: number of outputs.
        inputs: bool ``[U, n + 1]``: whether a unit takes an input; the last input is the constant 1.
        units: bool ``[U, U]``: whether a unit (row) takes another one's value (column).
        activation: int64 ``[U]``, of `ACTIVATIONS`.
    """

    outputs: int
    inputs: Bools
    units: Bools
    activation: npt.NDArray[np.int64]

    @property
    def hidden(self) -> int:
        """Number of units that are not outputs."""
        return len(self.inputs) - self.outputs

    @property
    def connections(self) -> int:
        """Number of connections."""
        return int(self.inputs.sum() + self.units.sum())

    @property
    def edges(self) -> int:
        """Connections that an acyclic graph of these units can have."""
        h = self.hidden
        return self.inputs.size + h * self.outputs + h * (h - 1) // 2

    def levels(self) -> npt.NDArray[np.int64]:
        """Length of the longest way from an input to each unit ``[U]``; outputs come after all others.

        Raises:
            ValueError: the graph has a cycle, or an output feeds a unit.
        """
        if self.units[:, : self.outputs].any():
            raise ValueError("an output feeds a unit")
        level = np.ones(len(self.units), dtype=np.int64)
        for _ in range(len(self.units) + 1):
            longest = 1 + np.where(self.units, level, 0).max(1, initial=0)
            if (longest == level).all():
                level[: self.outputs] = level.max() + 1
                return level
            level = longest
        raise ValueError("the graph has a cycle")


class Population:
    """Graphs of as many inputs and outputs each, laid out to be evaluated together.

    Units of one level of all graphs are computed at once. Where a graph has fewer units in a level than another one, the
    rest of its places have no connections.
    """

    def __init__(self, graphs: Sequence[Graph], device: torch.device | str = "cpu") -> None:
        first, members = graphs[0], len(graphs)
        levels = [graph.levels() for graph in graphs]
        deepest = max(int(level[graph.outputs :].max(initial=0)) for graph, level in zip(graphs, levels, strict=True))
        counts = np.array([np.bincount(lv[first.outputs :], minlength=deepest + 1)[1:] for lv in levels])
        self.starts = np.concatenate([[0], np.cumsum(counts.max(0, initial=0))]).astype(int).tolist()
        self.hidden, self.outputs = self.starts[-1], first.outputs
        places = self.hidden + self.outputs
        inputs = np.zeros((members, places, first.inputs.shape[1]), dtype=bool)
        units = np.zeros((members, places, self.hidden), dtype=np.float32)
        activation = np.full((members, places), LINEAR)
        for m, (graph, level) in enumerate(zip(graphs, levels, strict=True)):
            place = np.empty(len(level), dtype=np.int64)
            place[: self.outputs] = self.hidden + np.arange(self.outputs)
            for i, start in enumerate(self.starts[:-1], 1):
                at = self.outputs + np.flatnonzero(level[self.outputs :] == i)
                place[at] = start + np.arange(len(at))
            inputs[m, place] = graph.inputs
            units[m][np.ix_(place, place[self.outputs :])] = graph.units[:, self.outputs :]
            activation[m, place] = graph.activation
        self.members = members
        self.inputs = BitMatrix.pack(torch.from_numpy(inputs).flatten(0, 1)).to(device)
        self.units = torch.from_numpy(units).to(device)
        self.activation = activation

    @torch.no_grad()
    def __call__(self, x: Tensor, weights: Sequence[float]) -> Tensor:
        """Outputs ``[P, W, B, outputs]`` of all members with each shared weight on inputs ``[B, n]``."""
        ones = torch.ones(len(x), 1, device=x.device)
        sums = ops.bit_linear(torch.cat([x, ones], 1), self.inputs).T.contiguous().view(self.members, -1, 1, len(x))
        weight = torch.tensor(weights, device=x.device).view(-1, 1)
        h = torch.empty(self.members, self.hidden, len(weights) * len(x), device=x.device)
        for start, end in zip(self.starts, [*self.starts[1:], self.hidden + self.outputs], strict=True):
            a = sums[:, start:end] * weight
            if start:
                a += torch.bmm(self.units[:, start:end, :start], h[:, :start]).view_as(a) * weight
            a = self._activate(a.flatten(2), self.activation[:, start:end])
            if end <= self.hidden:
                h[:, start:end] = a
        return a.view(self.members, self.outputs, len(weights), len(x)).permute(0, 2, 3, 1)

    def _activate(self, a: Tensor, activation: npt.NDArray[np.int64]) -> Tensor:
        flat, kinds = a.flatten(0, 1), activation.flatten()
        for kind in np.unique(kinds[kinds != LINEAR]):
            rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(a.device)
            flat[rows] = ACTIVATIONS[kind][1](flat[rows])
        return flat.view_as(a)


class GraphNet(nn.Module):
    """A graph with one weight on all its connections, as a network.

    Args:
        graph: the structure.
        weight: the shared weight.
        pixels: mean and scale by which 28 × 28 pixels were standardised: the graph takes them deskewed, 16 × 16 and from 0
            to 1. Unset: it takes the standardised inputs.
        device: where it computes.
    """

    def __init__(
        self,
        graph: Graph,
        weight: float,
        pixels: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.graph, self.weight, self.pixels, self.device = graph, weight, pixels, device
        self.population = Population([graph], device)

    def share(self, weight: float) -> GraphNet:
        """The same graph with another weight."""
        return GraphNet(self.graph, weight, self.pixels, self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[B, classes]`` of standardised inputs ``[B, features]``."""
        return self.population(prepared(x, self.pixels), [self.weight])[0, 0]

    def extra_repr(self) -> str:  # noqa: D102
        return f"hidden={self.graph.hidden}, connections={self.graph.connections}, weight={self.weight}"


def prepared(x: Tensor, pixels: tuple[float, float] | None) -> Tensor:
    """What a graph takes of standardised inputs: deskewed images, or the inputs themselves without `pixels`."""
    return x if pixels is None else deskew((x * pixels[1] + pixels[0]) / 255)


def deskew(x: Tensor) -> Tensor:
    """Images ``[B, 784]`` made upright (`fastbin.encodings.upright`) and scaled to ``[B, 256]``."""
    side = math.isqrt(x.shape[1])
    return F.adaptive_avg_pool2d(upright(x).view(-1, 1, side, side), SIDE).flatten(1)


def graph_tensors(graph: Graph) -> dict[str, Tensor]:
    """The graph as named tensors: words of bits, and the activations."""
    return {
        "graph.inputs": BitMatrix.pack(torch.from_numpy(graph.inputs)).words,
        "graph.units": BitMatrix.pack(torch.from_numpy(graph.units)).words,
        "graph.activation": torch.from_numpy(graph.activation),
    }


def graph_of(outputs: int, inputs: BitMatrix, units: BitMatrix, activation: Tensor) -> Graph:
    """The graph of what `graph_tensors` gave; raises ValueError if it is none."""
    codes: Any = activation.numpy()
    if not ((codes >= 0) & (codes < len(ACTIVATIONS))).all():
        raise ValueError(f"activations must be from 0 to {len(ACTIVATIONS) - 1}, got {codes.min()} to {codes.max()}")
    graph = Graph(outputs, inputs.unpack(torch.bool).numpy(), units.unpack(torch.bool).numpy(), codes)
    graph.levels()
    return graph
