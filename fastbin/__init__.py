"""fastbin: weight-free neural networks, classifiers whose weights are all 0 or 1, on bit-packed kernels."""

from importlib.metadata import version

from fastbin import array, backends, data, nn, ops, rules, spectra
from fastbin.backends import BackendError
from fastbin.bits import BitMatrix
from fastbin.checkpoint import CheckpointError
from fastbin.config import SearchConfig
from fastbin.conversion import Conversion, convert
from fastbin.data import DataError
from fastbin.result import SearchResult, load_result
from fastbin.runs import RunFolderError
from fastbin.search import SearchError, run_search

__version__ = version("fastbin-nets")

__all__ = [
    "BackendError",
    "BitMatrix",
    "CheckpointError",
    "Conversion",
    "DataError",
    "RunFolderError",
    "SearchConfig",
    "SearchError",
    "SearchResult",
    "array",
    "backends",
    "convert",
    "data",
    "load_result",
    "nn",
    "ops",
    "rules",
    "run_search",
    "spectra",
]
