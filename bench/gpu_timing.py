"""Time on a GPU: CUDA events around single calls, medians, with a cold or a warm L2 cache, and the card's own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

CALLS = 25
WARM_UP = 3
AHEAD = 400_000  # clock cycles that the GPU idles before a timed call, so that the host has enqueued it whole


class Timer(Protocol):
    """Seconds of a call: ``seconds(call, cold=...)`` by the GPU's clock, ``steps(call)`` by the host's."""

    def seconds(self, call: Callable[[int], object], *, cold: bool) -> float:
        """Median of `call`(i), i = 0, 1, …: the call picks among its operands by i."""

    def steps(self, call: Callable[[int], object]) -> float:
        """Seconds a call of many in a row, launches from the host included."""


class EventTimer:
    """The timer of a CUDA device."""

    def __init__(self) -> None:
        self.scratch = torch.ones(torch.cuda.get_device_properties(0).L2_cache_size // 2, device="cuda")

    def seconds(self, call: Callable[[int], object], *, cold: bool) -> float:
        """As `Timer` says. Cold: twice the L2 cache is read before each call, and operands rotate.

        Read, not written: lines that are still to be written back would cost the timed call bandwidth.
        """
        times = []
        for i in range(WARM_UP + CALLS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if cold:
                self.scratch.sum()
            torch.cuda._sleep(AHEAD)
            start.record()
            call(i if cold else 0)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        return statistics.median(times[WARM_UP:])

    def steps(self, call: Callable[[int], object]) -> float:
        """As `Timer` says: the median of five runs of ten calls."""
        for i in range(WARM_UP):
            call(i)
        runs = []
        for _ in range(5):
            torch.cuda.synchronize()
            before = time.perf_counter()
            for i in range(10):
                call(i)
            torch.cuda.synchronize()
            runs.append((time.perf_counter() - before) / 10)
        return statistics.median(runs)


@dataclass(frozen=True)
class Limits:
    """What the card reaches: bytes a second that a copy reads and writes, operations a second of a bf16 product."""

    bandwidth: float
    bf16_rate: float


def measure_limits(timer: Timer, device: str, copy_bytes: int = 1 << 30, n: int = 8192) -> Limits:
    """A copy of `copy_bytes`, and n³ by torch.matmul on random numbers (zeros would run faster)."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = timer.seconds(lambda i: target.copy_(source), cold=True)
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    product = timer.seconds(lambda i: a @ b, cold=True)
    return Limits(2 * copy_bytes / copy, 2 * n**3 / product)
