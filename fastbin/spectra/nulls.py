"""Null models: random structures that share a network's density, or the degrees of all its units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastbin.bits import BitMatrix
from fastbin.nn import WeightFreeNet
from fastbin.spectra.graph import CHUNK, Matrix, network_graph

SWEEPS = 30  # trades of each row


def same_density(layers: WeightFreeNet | Sequence[Matrix], seed: int = 0) -> list[Matrix]:
    """Each layer's edges at random places: as many of them, all places as likely; real weights go with their edges.

    Args:
        layers: as for `fastbin.spectra.network_graph`; at most 10^9 entries each if of bits.
        seed: of the places.
    """
    return _each(layers, seed, _deal_bits, _deal)


def same_degrees(layers: WeightFreeNet | Sequence[Matrix], seed: int = 0, sweeps: int = SWEEPS) -> list[Matrix]:
    """Each layer's edges swapped at random: every unit keeps the number of its inputs and of its outputs.

    Pairs of rows trade the edges that only one of them has, which is many edge swaps at once and leads to every structure of
    these degrees with the same probability (curveball: Strona et al. 2014; all rows at once: Carstens et al. 2018). Real
    weights are dealt anew to the edges of their row, so a unit keeps the weights of its inputs too.

    Args:
        layers: as for `fastbin.spectra.network_graph`.
        seed: of the trades.
        sweeps: trades of each row.
    """

    def weighted(w: Tensor, generator: torch.Generator) -> Tensor:
        here = w != 0
        there = _trade(BitMatrix.pack(here), generator, sweeps).unpack(torch.bool)
        # In each row the weights in random order, then the zeros.
        order = torch.rand(w.shape, generator=generator).masked_fill(~here, 2.0).argsort(1)
        dealt = torch.zeros_like(w)
        dealt[there] = w.gather(1, order)[torch.arange(w.shape[1]) < here.sum(1, keepdim=True)]
        return dealt

    return _each(layers, seed, lambda w, generator: _trade(w, generator, sweeps), weighted)


def _each(
    layers: WeightFreeNet | Sequence[Matrix],
    seed: int,
    bits: Callable[[BitMatrix, torch.Generator], BitMatrix],
    real: Callable[[Tensor, torch.Generator], Tensor],
) -> list[Matrix]:
    network_graph(layers)  # for its checks
    generator = torch.Generator().manual_seed(seed)
    made: list[Matrix] = []
    for w in layers.weights() if isinstance(layers, WeightFreeNet) else layers:
        if isinstance(w, BitMatrix):
            made.append(bits(w.to("cpu"), generator).to(w.device))
        else:
            made.append(real(w.detach().cpu(), generator).to(w.device))
    return made


def _deal(w: Tensor, generator: torch.Generator) -> Tensor:
    return w.flatten()[torch.randperm(w.numel(), generator=generator)].view(w.shape)


def _deal_bits(w: BitMatrix, generator: torch.Generator) -> BitMatrix:
    rows, cols = w.shape
    rng = np.random.default_rng(_draw(generator))
    # How many of all places fall into each row, then which places of the row.
    counts = torch.from_numpy(rng.multivariate_hypergeometric(np.full(rows, cols), int(w.count()), method="marginals"))
    dealt = [_choose(torch.ones(len(n), cols, dtype=torch.bool), n, generator) for n in counts.split(_rows(cols))]
    return BitMatrix(torch.cat([d.words for d in dealt]), cols)


def _trade(w: BitMatrix, generator: torch.Generator, sweeps: int) -> BitMatrix:
    words = w.words.clone()
    for _ in range(sweeps):
        pairs = torch.randperm(w.rows, generator=generator)[: w.rows // 2 * 2].view(-1, 2)
        for part in pairs.split(_rows(w.cols)):
            a, b = words[part[:, 0]], words[part[:, 1]]
            apart = a ^ b
            number = BitMatrix(a & apart, w.cols).unpack(torch.bool).sum(1)
            mine = _choose(BitMatrix(apart, w.cols).unpack(torch.bool), number, generator).words
            words[part[:, 0]] = (a & b) | mine
            words[part[:, 1]] = (a & b) | (apart ^ mine)
    return BitMatrix(words, w.cols)


def _choose(allowed: Tensor, number: Tensor, generator: torch.Generator) -> BitMatrix:
    """Bits, so many in each row at random among the places allowed."""
    order = torch.rand(allowed.shape, generator=generator).masked_fill_(~allowed, 2.0).argsort(1)
    first = torch.arange(allowed.shape[1]) < number[:, None]
    return BitMatrix.pack(torch.zeros_like(allowed).scatter_(1, order, first))


def _rows(cols: int) -> int:
    return max(1, CHUNK // max(cols, 1))


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))
