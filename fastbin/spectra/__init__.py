"""Spectra: how alike two networks are as graphs, whatever their weights.

The graph of a network has its units as nodes and its weights as edges (`network_graph`); the eigenvalues of its Laplacian
(`laplacian_spectrum`, or `estimate_spectrum` for large ones) can be compared between networks of any kind and size.
"""

from fastbin.spectra.distances import (
    PermutationTest,
    classical_scaling,
    density,
    distance_matrix,
    heat_trace,
    heat_trace_distance,
    jensen_shannon,
    permutation_test,
    wasserstein,
)
from fastbin.spectra.graph import Block, Graph, network_graph
from fastbin.spectra.lanczos import estimate_spectrum, extreme_eigenvalues
from fastbin.spectra.networks import from_networkx, to_networkx
from fastbin.spectra.nulls import same_degrees, same_density
from fastbin.spectra.spectrum import Spectrum, adjacency_spectrum, laplacian_spectrum, singular_values
from fastbin.spectra.summary import Summary, summarise

__all__ = [
    "Block",
    "Graph",
    "PermutationTest",
    "Spectrum",
    "Summary",
    "adjacency_spectrum",
    "classical_scaling",
    "density",
    "distance_matrix",
    "estimate_spectrum",
    "extreme_eigenvalues",
    "from_networkx",
    "heat_trace",
    "heat_trace_distance",
    "jensen_shannon",
    "laplacian_spectrum",
    "network_graph",
    "permutation_test",
    "same_degrees",
    "same_density",
    "singular_values",
    "summarise",
    "to_networkx",
    "wasserstein",
]
