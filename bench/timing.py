"""Timing: contenders run in turns in one process, warmed up, and are compared by medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

BURST = 0.02  # seconds of a turn


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of a case, at least.
        calls: of each contender, at least.
        cap: seconds after which a slow contender needs only `few` calls.
        few: calls of a slow contender, at least.
    """

    seconds: float
    calls: int
    cap: float
    few: int


FULL = Effort(seconds=2.0, calls=20, cap=6.0, few=3)
QUICK = Effort(seconds=0.1, calls=5, cap=0.3, few=1)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the 20th, 50th and 80th percentile of `calls` calls."""

    p20: float
    p50: float
    p80: float
    calls: int


def measure(contenders: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Timing]:
    """Time contenders, each of which has run once before.

    They run in turns, so that what else the machine does falls on all alike. A turn lasts about BURST seconds; where that is
    more than one call, the first is not counted: it finds the caches full of the others' operands.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    started = time.perf_counter()

    def enough(name: str) -> bool:
        calls = len(samples[name])
        return calls >= effort.calls or (calls >= effort.few and spent[name] >= effort.cap)

    while time.perf_counter() - started < effort.seconds or not all(map(enough, contenders)):
        for name, call in contenders.items():
            if spent[name] < effort.cap or not enough(name):
                turn = _turn(call)
                spent[name] += sum(turn)
                samples[name] += turn[1:] or turn
    return {name: _summary(values) for name, values in samples.items()}


def _turn(call: Callable[[], object]) -> list[float]:
    times: list[float] = []
    started = now = time.perf_counter()
    while now - started < BURST:
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - before)
    return times


def _summary(values: list[float]) -> Timing:
    p20, p50, p80 = (float(p) for p in np.percentile(values, (20, 50, 80)))
    return Timing(p20, p50, p80, len(values))
