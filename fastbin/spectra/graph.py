"""The graph of a network: its units are the nodes, its weights the edges, packed bits stay packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from fastbin import ops
from fastbin.bits import BitMatrix
from fastbin.nn import WeightFreeNet

Signs = Literal["absolute", "signed", "support"]
Matrix = BitMatrix | Tensor
Array = np.ndarray[Any, Any]

CHUNK = 2**24  # entries that are unpacked at once where edges are listed
_DIGITS, _BASE = 8, 2.0**7  # of a float64 as int8 digits: 56 bits


@dataclass(frozen=True, eq=False)
class Block:
    """The edges between two groups of nodes.

    Attributes:
        rows: group of the matrix's rows.
        cols: group of its columns; may be the same group, and the matrix is then symmetric.
        matrix: BitMatrix, or float64 weights ``[nodes of rows, nodes of cols]``.
    """

    rows: int
    cols: int
    matrix: Matrix


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected weighted graph whose nodes come in groups: the layers of a network, in their order.

    Attributes:
        sizes: nodes of each group.
        blocks: the edges, each pair of groups once.
        signs: how the weights of real matrices were taken (`network_graph`).
    """

    sizes: tuple[int, ...]
    blocks: tuple[Block, ...]
    signs: Signs = "absolute"

    def __post_init__(self) -> None:
        if self.nodes == 0:
            raise ValueError(f"a graph needs at least one node, got groups of {list(self.sizes)}")
        devices = {str(b.matrix.device) for b in self.blocks}
        if len(devices) > 1:
            raise ValueError(f"all matrices must be on one device, got {', '.join(sorted(devices))}")

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return sum(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.blocks[0].matrix.device if self.blocks else torch.device("cpu")

    @property
    def offsets(self) -> list[int]:
        """The number of the first node of each group."""
        return [sum(self.sizes[:i]) for i in range(len(self.sizes))]

    @property
    def layers(self) -> list[Block]:
        """The blocks that lead from a group to the next, those of biases left out."""
        return [b for b in self.blocks if b.rows == b.cols + 1]

    @cached_property
    def degrees(self) -> Tensor:
        """float64 ``[nodes]``: the sum of each node's ``|weights|``; of bits exact."""
        groups = [torch.zeros(n, dtype=torch.float64, device=self.device) for n in self.sizes]
        for b in self.blocks:
            if isinstance(b.matrix, BitMatrix):
                by_row = ops.bit_linear(_ones(b.matrix.cols, b.matrix), b.matrix)[0]
                by_col = ops.bit_linear_t(_ones(b.matrix.rows, b.matrix), b.matrix)[0]
            else:
                by_row, by_col = b.matrix.abs().sum(1), b.matrix.abs().sum(0)
            groups[b.rows] += by_row
            if b.rows != b.cols:
                groups[b.cols] += by_col
        return torch.cat(groups)

    @cached_property
    def edges(self) -> int:
        """How many edges have a weight other than 0; a loop counts once."""
        ends = 0
        for b in self.blocks:
            ones = int(b.matrix.count() if isinstance(b.matrix, BitMatrix) else b.matrix.count_nonzero())
            ends += 2 * ones if b.rows != b.cols else ones + int(dense(b.matrix).diagonal().count_nonzero())
        return ends // 2

    @cached_property
    def sides(self) -> tuple[list[int], list[int]] | None:
        """The groups in two parts without an edge inside either (the even and the odd layers), None if there are none."""
        colour: dict[int, int] = {}
        for start in range(len(self.sizes)):
            colour.setdefault(start, 0)
            stack = [start]
            while stack:
                group = stack.pop()
                for b in self.blocks:
                    if group in (b.rows, b.cols):
                        other = b.cols if group == b.rows else b.rows
                        if other not in colour:
                            colour[other] = 1 - colour[group]
                            stack.append(other)
                        elif colour[other] == colour[group]:
                            return None
        return sorted(g for g in colour if colour[g] == 0), sorted(g for g in colour if colour[g] == 1)

    def nodes_of(self, groups: Sequence[int]) -> Tensor:
        """int64: the numbers of the nodes of some groups, in the order of `groups`."""
        starts = self.offsets
        ranges = [torch.arange(starts[g], starts[g] + self.sizes[g], device=self.device) for g in groups]
        return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64, device=self.device)

    def adjacency(self) -> Tensor:
        """The weights as a dense symmetric matrix, float64 ``[nodes, nodes]``."""
        whole = torch.zeros(self.nodes, self.nodes, dtype=torch.float64, device=self.device)
        starts = self.offsets
        for b in self.blocks:
            r = slice(starts[b.rows], starts[b.rows] + self.sizes[b.rows])
            c = slice(starts[b.cols], starts[b.cols] + self.sizes[b.cols])
            whole[r, c] = dense(b.matrix)
            whole[c, r] = dense(b.matrix).T
        return whole

    def biadjacency(self) -> Tensor:
        """The weights between the two `sides` as a dense matrix, float64; raises ValueError if there are none."""
        if self.sides is None:
            raise ValueError("the graph is not bipartite by groups: it has no biadjacency matrix")
        starts = {g: sum(self.sizes[h] for h in side if h < g) for side in self.sides for g in side}
        left, right = (sum(self.sizes[g] for g in side) for side in self.sides)
        half = torch.zeros(left, right, dtype=torch.float64, device=self.device)
        for b in self.blocks:
            r, c, part = (b.rows, b.cols, dense(b.matrix))
            if r not in self.sides[0]:
                r, c, part = c, r, part.T
            half[starts[r] : starts[r] + self.sizes[r], starts[c] : starts[c] + self.sizes[c]] = part
        return half

    def multiply(self, x: Tensor, side: int | None = None) -> Tensor:
        """``x`` times the adjacency matrix, by the packed products.

        Args:
            x: ``[.., nodes]``; ``[.., nodes of side]`` with `side`. float32 (products as exact as `ops.bit_linear`), or
                float64, where bits cost eight times as much and are exact to 2^-55 of each row's largest value.
            side: 0 or 1: x stands for vectors that are 0 outside this one of the `sides`, the result for the other's values.

        Returns:
            x's dtype, ``[.., nodes]`` or ``[.., nodes of the other side]``.
        """
        if x.dtype == torch.float32:
            return self._through(x, self.blocks, side)
        digits, scale = _digits(x)
        sums = self._through(digits, [b for b in self.blocks if isinstance(b.matrix, BitMatrix)], side)
        return _value(sums, scale) + self._through(x, [b for b in self.blocks if isinstance(b.matrix, Tensor)], side)

    def _through(self, x: Tensor, blocks: Sequence[Block], side: int | None) -> Tensor:
        groups = range(len(self.sizes))
        sources, targets = (groups, groups) if side is None else (self._side(side), self._side(1 - side))
        parts = dict(zip(sources, x.split([self.sizes[g] for g in sources], -1), strict=True))
        dtype = torch.int32 if x.dtype == torch.int8 else x.dtype
        out = {g: x.new_zeros(*x.shape[:-1], self.sizes[g], dtype=dtype) for g in targets}
        for b in blocks:
            if 0 in b.matrix.shape:
                continue
            if b.cols in parts:
                out[b.rows] += _times(parts[b.cols], b.matrix)
            if b.rows in parts and b.rows != b.cols:
                out[b.cols] += _times_t(parts[b.rows], b.matrix)
        return torch.cat([out[g] for g in targets], -1) if out else x.new_zeros(*x.shape[:-1], 0, dtype=dtype)

    def _side(self, side: int) -> list[int]:
        if self.sides is None:
            raise ValueError("the graph is not bipartite by groups: it has no sides")
        return self.sides[side]

    @cached_property
    def components(self) -> Tensor:
        """int64 ``[nodes]``: a number from 0 for the connected component of each node, whatever its weights' signs."""
        labels = np.arange(self.nodes)
        starts = self.offsets
        for b in self.blocks:
            rows, cols = b.matrix.shape
            columns = starts[b.cols] + np.arange(cols)
            step = max(1, CHUNK // max(cols, 1))
            for first in range(0, rows, step):
                # Once all columns hang together, a row needs one of its edges only.
                together = np.unique(labels[columns]).size == 1
                r, c = _edges(b.matrix, first, first + step, one_each=together)
                labels = _merge(labels, starts[b.rows] + first + r, starts[b.cols] + c)
        return torch.from_numpy(np.unique(labels, return_inverse=True)[1])


def network_graph(
    layers: WeightFreeNet | Sequence[Matrix],
    *,
    signed: Signs = "absolute",
    biases: Sequence[Matrix | None] | None = None,
) -> Graph:
    """The graph of a network: all units as nodes, edges weighted by the layers' matrices.

    Args:
        layers: a network of bits, or a matrix ``[n_l, n_(l-1)]`` for each layer, from the input on: BitMatrix or real.
            Layers may have no units.
        signed: what the weights of real matrices mean. ``absolute``: ``|w|``; ``signed``: w, with degrees from ``|w|``, so
            that the Laplacians stay positive semi-definite (Kunegis et al. 2010); ``support``: 1 where w is not 0. Bits are
            the same in all three.
        biases: ``[n_l]`` for each layer, or None for a layer without: edges from one more node, the constant.

    Raises:
        TypeError: a matrix is neither a BitMatrix nor a real tensor.
        ValueError: no layer, shapes that do not chain, a weight that is not finite, matrices on several devices.
    """
    if signed not in get_args(Signs):
        raise ValueError(f"signed must be one of {', '.join(get_args(Signs))}, got {signed!r}")
    matrices = layers.weights() if isinstance(layers, WeightFreeNet) else list(layers)
    if not matrices:
        raise ValueError("layers must hold at least one matrix, got none")
    weights = [_weights(f"layer {i + 1}", w, signed) for i, w in enumerate(matrices)]
    sizes = [weights[0].shape[1]]
    for i, w in enumerate(weights):
        if w.shape[1] != sizes[-1]:
            raise ValueError(
                f"layer {i + 1} has {w.shape[1]} inputs {list(w.shape)}, the layer before it {sizes[-1]} units"
            )
        sizes.append(w.shape[0])
    blocks = [Block(i + 1, i, w) for i, w in enumerate(weights)]
    if biases is not None:
        if len(biases) != len(weights):
            raise ValueError(f"biases must be one for each of the {len(weights)} layers, got {len(biases)}")
        for i, bias in enumerate(biases):
            if bias is None:
                continue
            if not isinstance(bias, Tensor) or bias.shape != (sizes[i + 1],):
                found = list(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
                raise ValueError(f"the bias of layer {i + 1} must be a tensor of shape {[sizes[i + 1]]}, got {found}")
            blocks.append(Block(i + 1, len(sizes), _weights(f"the bias of layer {i + 1}", bias[:, None], signed)))
        sizes.append(1)
    return Graph(tuple(sizes), tuple(blocks), signed)


def _weights(name: str, w: Matrix, signed: Signs) -> Matrix:
    if isinstance(w, BitMatrix):
        if w.population is not None:
            raise ValueError(f"{name} is a population {list(w.shape)}: take one of its members")
        return w
    if not isinstance(w, Tensor) or w.is_complex():
        kind = w.dtype if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"{name} must be a BitMatrix or a real tensor, got {kind}")
    if w.dim() != 2:
        raise ValueError(f"{name} must be a matrix, got shape {list(w.shape)}")
    w = w.detach().to(torch.float64)
    wrong = w[~w.isfinite()]
    if wrong.numel():
        raise ValueError(f"{name} has {wrong.numel()} weights that are not finite, the first is {float(wrong[0])}")
    if signed == "support":
        return BitMatrix.pack(w != 0)
    return w.abs() if signed == "absolute" else w


def _ones(n: int, like: BitMatrix) -> Tensor:
    return torch.ones(1, n, dtype=torch.int8, device=like.device)


def dense(w: Matrix) -> Tensor:
    """The matrix in float64."""
    return w.unpack(torch.float64) if isinstance(w, BitMatrix) else w


def _times(x: Tensor, w: Matrix) -> Tensor:
    """``x @ wᵀ``."""
    return ops.bit_linear(x, w) if isinstance(w, BitMatrix) else x @ w.T.to(x.dtype)


def _times_t(x: Tensor, w: Matrix) -> Tensor:
    """``x @ w``."""
    return ops.bit_linear_t(x, w) if isinstance(w, BitMatrix) else x @ w.to(x.dtype)


def _digits(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 rows as int8 digits, whose products with bits are exact in int32, and their scale ``[.., 1]``.

    x = 2 scale · Σ_k d_k 2^(-7 k) with |d_k| ≤ 64: a digit is what is left, times 2^7, rounded, and at most 1/2 is left over
    each time, after the last 2^-56 of the scale. A sum of digits stays below 2^31 up to degrees of 2^25.
    """
    scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    left, digits = x / scale / 2, []
    for _ in range(_DIGITS):
        left = left * _BASE
        digits.append(left.round())
        left = left - digits[-1]
    return torch.stack(digits).to(torch.int8), scale


def _value(sums: Tensor, scale: Tensor) -> Tensor:
    """What sums ``[digits, .., n]`` of digits stand for."""
    powers = _BASE ** -torch.arange(1.0, _DIGITS + 1, dtype=torch.float64, device=sums.device)
    value: Tensor = torch.tensordot(powers, sums.to(torch.float64), 1) * scale * 2
    return value


def _edges(w: Matrix, first: int, end: int, *, one_each: bool) -> tuple[Array, Array]:
    """Rows (counted from `first`) and columns of the edges in some rows; with `one_each`, one edge a row that has any."""
    part = BitMatrix(w.words[first:end], w.cols).unpack(torch.bool) if isinstance(w, BitMatrix) else w[first:end] != 0
    part = part.cpu()
    if one_each and part.shape[1]:
        rows = part.any(1).nonzero()[:, 0]
        cols = part.to(torch.uint8).argmax(1)[rows]
    else:
        rows, cols = part.nonzero(as_tuple=True)
    return rows.numpy(), cols.numpy()


def _merge(labels: Array, a: Array, b: Array) -> Array:
    """Labels after joining the components of nodes a[i] and b[i]."""
    edges = coo_array((np.ones(len(a), dtype=bool), (labels[a], labels[b])), shape=(len(labels), len(labels)))
    joined: Array = connected_components(edges, directed=False)[1][labels]
    return joined
