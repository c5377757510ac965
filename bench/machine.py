"""What the machine can do at most, measured in the same process with as many threads as are in force."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

COPIED = 2**28  # bytes: past every cache


def _fastest(call: Callable[[], object], seconds: float = 0.3) -> float:
    call()
    started, best = time.perf_counter(), float("inf")
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def copy_bandwidth() -> float:
    """Bytes a second that torch's `copy_` moves between two buffers in memory, read and written ones counted."""
    return _copy_bandwidth(torch.get_num_threads())


@cache
def _copy_bandwidth(threads: int) -> float:
    source, target = torch.zeros(COPIED, dtype=torch.uint8), torch.ones(COPIED, dtype=torch.uint8)
    return 2 * COPIED / _fastest(lambda: target.copy_(source))


def read_seconds(size: int) -> float:
    """Seconds in which torch's `sum` reads `size` bytes over and over, out of whatever cache holds as many."""
    return _read_seconds(size, torch.get_num_threads())


@cache
def _read_seconds(size: int, threads: int) -> float:
    source: Tensor = torch.zeros(size // 4)
    return _fastest(source.sum, 0.1)


def fma_rate() -> float:
    """Multiply-adds in float32 a second, as torch's product of two 2048 x 2048 matrices reaches."""
    return _fma_rate(torch.get_num_threads())


@cache
def _fma_rate(threads: int) -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2048**3 / _fastest(lambda: torch.mm(a, b))
