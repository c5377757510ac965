"""A population of searches against the same searches one after the other."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

from fastbin import SearchConfig, run_search

CONFIG = SearchConfig(hidden=(128, 128))  # on digits: 64-128-128-10


@dataclass(frozen=True)
class Timed:
    """Seconds of both, from the data set to the results, and whether all members equal the single searches."""

    members: int
    together: list[float]
    apart: float
    equal: bool

    @property
    def ratio(self) -> float:
        """How many times as fast the population is, by the median."""
        return self.apart / statistics.median(self.together)


def measure(members: int, config: SearchConfig = CONFIG) -> Timed:
    """Time a population before, amid and after the single searches."""
    run_search("digits", dataclasses.replace(config, epochs=1), population=2)
    run_search("digits", dataclasses.replace(config, epochs=1))
    together, apart, alone, results = [], 0.0, [], []
    for part in (range(members // 2), range(members // 2, members), range(0)):
        started = time.perf_counter()
        results = run_search("digits", config, population=members)
        together.append(time.perf_counter() - started)
        started = time.perf_counter()
        alone += [run_search("digits", dataclasses.replace(config, seed=config.seed + p)) for p in part]
        apart += time.perf_counter() - started
    equal = all(a.net.weights() == b.net.weights() for a, b in zip(results, alone, strict=True))
    return Timed(members, together, apart, equal)
