"""Spectra of networks too large for a dense matrix: Lanczos on the packed products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from fastbin.bits import BitMatrix
from fastbin.spectra.graph import Array, Graph, Signs
from fastbin.spectra.spectrum import Network, Spectrum, as_graph, inverse_roots, laplacian_name

_SINGLE = 1e-6  # tolerance from which products in float32 are good enough
_Product = Callable[[Tensor], Tensor]


def estimate_spectrum(
    network: Network,
    normalized: bool = True,
    signed: Signs | None = None,
    *,
    probes: int = 32,
    steps: int = 32,
    seed: int = 0,
) -> Spectrum:
    """How a Laplacian's eigenvalues are distributed, by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    Each probe is a random vector of signs; so many steps of Lanczos from it give Gauss's quadrature of its spectral measure,
    whose mean over all vectors is the distribution of the eigenvalues. No dense matrix is made. For the normalised Laplacian
    of a layered network the products go between even and odd layers, as in `laplacian_spectrum`, and start from the smaller
    half: what the other has more and nodes without edges are known exactly.

    Args:
        network: layers as for `network_graph`, or a `Graph`.
        normalized: which Laplacian, as for `laplacian_spectrum`.
        signed: as for `network_graph`; absolute without.
        probes: random vectors, at least 2; the error falls with their square root.
        steps: of Lanczos, at least 4: each a product with the packed matrices, and two where the halves take turns.
        seed: of the probes.

    Returns:
        As many values as there are nodes: quantiles of the estimated distribution. `Spectrum.error` is the sum of the
        expected error by chance, from the spread between probes, and of the change that the second half of the steps made.

    Raises:
        TypeError, ValueError: as `network_graph`, and for numbers of probes or steps that are too small.
    """
    for name, value, least in (("probes", probes, 2), ("steps", steps, 4)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    graph = as_graph(network, signed)
    known, start, products = _problem(graph, normalized)
    count = int(start.count_nonzero())
    method = f"Lanczos quadrature, {probes} probes of {steps} steps"
    name = laplacian_name(normalized)
    if count == 0:
        return Spectrum(known, name, graph.signs, method)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (probes, len(start)), generator=generator).to(start) * 2 - 1
    halves = len(products) == 2
    diagonal, beside = _lanczos(products, start * signs / count**0.5, 2 * steps if halves else steps)
    # Between halves Lanczos finds ± the singular values of one half.
    n = 2 * count if halves else count

    def of(chosen: slice, length: int) -> Tensor:
        values = _quantiles(*_gauss(diagonal[chosen, :length], beside[chosen, : length - 1]), n)
        return 1 - values.flip(0) if halves else values

    everything = slice(None)
    values = of(everything, diagonal.shape[1])
    spread = [(of(slice(p, p + 1), diagonal.shape[1]) - values).abs().mean() for p in range(probes)]
    chance = float(torch.stack(spread).mean()) / (probes - 1) ** 0.5
    truncation = float((of(everything, diagonal.shape[1] // 4 * 2) - values).abs().mean())
    error = (chance + truncation) * n / graph.nodes
    return Spectrum(torch.cat([known, values]).sort().values.clamp_min(0), name, graph.signs, method, error)


def extreme_eigenvalues(
    network: Network,
    k: int = 2,
    normalized: bool = True,
    signed: Signs | None = None,
    *,
    tol: float = 1e-10,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The smallest and the largest eigenvalues of a Laplacian, by scipy's `eigsh` (ARPACK) on the packed products.

    Args:
        network: layers as for `network_graph`, or a `Graph`.
        k: how many at either end, below the number of nodes.
        normalized: which Laplacian, as for `laplacian_spectrum`.
        signed: as for `network_graph`; absolute without.
        tol: accuracy, relative to the largest eigenvalue; from 1e-6 on products of bits are in float32, which is many times
            as fast.
        seed: of the first vector.

    Returns:
        float64 ``[k]`` and ``[k]``, each ascending. An eigenvalue that comes several times, as 0 does for a graph that is
        not connected, may be given fewer times: Lanczos sees one vector of each.

    Raises:
        TypeError, ValueError: as `network_graph`, and for k < 1 or no smaller than the number of nodes.
        scipy.sparse.linalg.ArpackNoConvergence: (a RuntimeError) eigenvalues lie too close together for `tol`.
    """
    graph = as_graph(network, signed)
    if not 1 <= k < graph.nodes:
        raise ValueError(f"k must be at least 1 and below the {graph.nodes} nodes, got {k}")
    return smallest(graph, k, normalized, tol, seed), _extremes(graph, k, normalized, tol, seed, "SA")


def smallest(graph: Graph, k: int, normalized: bool, tol: float = 1e-10, seed: int = 0) -> Tensor:
    """The first result of `extreme_eigenvalues` alone."""
    return _extremes(graph, k, normalized, tol, seed, "LA").clamp_min(0)


def _extremes(graph: Graph, k: int, normalized: bool, tol: float, seed: int, which: str) -> Tensor:
    if graph.edges == 0:  # ARPACK cannot start on a matrix of zeros
        return torch.zeros(k, dtype=torch.float64)
    roots, degrees = inverse_roots(graph.degrees), graph.degrees
    # An eigenvalue of 0 has no scale to be accurate to; c - L, with c a bound on L's eigenvalues, has it as its largest.
    bound = 2.0 if normalized else 2 * float(degrees.max())

    dtype = torch.float32 if tol >= _SINGLE else torch.float64

    def times(v: Tensor) -> Tensor:
        return graph.multiply(v.to(dtype)).to(torch.float64)

    def flipped(x: Array) -> Array:
        v = torch.from_numpy(x.reshape(-1)).to(graph.device)
        image = (degrees > 0) * v - roots * times(roots * v) if normalized else degrees * v - times(v)
        found: Array = (bound * v - image).cpu().numpy()
        return found

    n = graph.nodes
    operator = LinearOperator((n, n), matvec=flipped, dtype=np.float64)
    first = np.random.default_rng(seed).standard_normal(n)
    found = eigsh(operator, k, which=which, v0=first, tol=tol, return_eigenvectors=False)
    return torch.from_numpy(bound - np.sort(found)[::-1])


def _problem(graph: Graph, normalized: bool) -> tuple[Tensor, Tensor, tuple[_Product, ...]]:
    """Eigenvalues that are known, where probes are not 0 (of one half if there are two), and what Lanczos multiplies by.

    A single product is of the Laplacian; of two the first leads from the smaller half of ``D^-1/2 A D^-1/2`` to the larger,
    the second back.
    """
    dtype = torch.float32 if all(isinstance(b.matrix, BitMatrix) for b in graph.blocks) else torch.float64
    degrees, roots = graph.degrees.to(dtype), inverse_roots(graph.degrees).to(dtype)
    present = graph.degrees > 0
    if not normalized:
        everywhere = torch.ones(graph.nodes, dtype=dtype, device=graph.device)
        return torch.zeros(0, dtype=torch.float64), everywhere, (lambda x: degrees * x - graph.multiply(x),)
    isolated = torch.zeros(int((~present).sum()), dtype=torch.float64)
    if graph.sides is None:
        return isolated, present.to(dtype), (lambda x: present * x - roots * graph.multiply(roots * x),)
    at = [graph.nodes_of(side) for side in graph.sides]
    counts = [int(present[i].sum()) for i in at]
    small = 0 if counts[0] <= counts[1] else 1
    ones = torch.ones(abs(counts[0] - counts[1]), dtype=torch.float64)

    def across(side: int) -> _Product:
        here, there = roots[at[side]], roots[at[1 - side]]
        return lambda x: there * graph.multiply(here * x, side)

    return torch.cat([isolated, ones]), present[at[small]].to(dtype), (across(small), across(1 - small))


def _lanczos(products: tuple[_Product, ...], v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Diagonal ``[probes, steps]`` and what is beside it ``[probes, steps - 1]`` of Lanczos's matrices, from unit rows v.

    With two products, each vector lives on one half and its image on the other, so the diagonal is 0. Orthogonality gets
    lost by rounding, and eigenvalues that have been found come up again; they share one weight in the quadrature, which
    takes no harm (Greenbaum 1989), so nothing is done about it and two vectors a probe are kept.
    """
    diagonal, beside = [], []
    before, beta = None, v.new_zeros(len(v), 1)
    for k in range(steps):
        w = products[k % len(products)](v)
        if before is not None:
            w = w - beta * before
        alpha = (v * w).sum(1, keepdim=True) if len(products) == 1 else torch.zeros_like(beta)
        if len(products) == 1:
            w = w - alpha * v
        diagonal.append(alpha)
        beta = w.norm(dim=1, keepdim=True)
        beside.append(beta)
        # A vector of zeros ends a probe: what follows is decoupled, and has no weight.
        before, v = v, w / beta.clamp_min(torch.finfo(w.dtype).tiny)
    return torch.cat(diagonal, 1).double().cpu(), torch.cat(beside[:-1], 1).double().cpu()


def _gauss(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes, ascending, and weights of each probe's quadrature ``[probes, steps]``."""
    t = diagonal.diag_embed() + beside.diag_embed(1) + beside.diag_embed(-1)
    nodes, vectors = torch.linalg.eigh(t)
    return nodes, vectors[:, 0].square()


def _quantiles(nodes: Tensor, weights: Tensor, count: int) -> Tensor:
    """float64 ``[count]``: the quantiles (i + 1/2) / count of the mean of the probes' distributions.

    A node of Gauss's quadrature stands for eigenvalues on either side of it. So between neighbours as much as the lighter
    one weighs is spread evenly, half from each, and what is left of a node stays where it is: a smooth density comes out
    smooth, and an eigenvalue of high multiplicity keeps its weight.
    """
    gaps = nodes.diff(dim=1)
    spread = torch.minimum(weights[:, 1:], weights[:, :-1])
    spread = torch.where(gaps > 1e-9 * nodes.abs().amax(), spread, 0.0)
    slopes = torch.where(spread > 0, spread / gaps, 0.0)
    zero = torch.zeros_like(weights[:, :1])
    at, order = nodes.flatten().sort()
    jumps = (weights - (torch.cat([zero, spread], 1) + torch.cat([spread, zero], 1)) / 2).flatten()[order]
    turns = (torch.cat([slopes, zero], 1) - torch.cat([zero, slopes], 1)).flatten()[order]
    ramps = torch.cat([zero[0], (turns.cumsum(0)[:-1] * at.diff())]).cumsum(0)
    above = ramps + jumps.cumsum(0)
    shares = torch.stack([above - jumps, above], 1).flatten().cummax(0).values / len(nodes)
    wanted = (np.arange(count) + 0.5) / count
    return torch.from_numpy(np.interp(wanted, shares.numpy(), at.repeat_interleave(2).numpy()))
