"""Timing: peers run in turns in one process, warmed up, and are compared by medians."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fastbin
from fastbin import _cpu


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def measure(calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 20) -> dict[str, Timing]:
    """Time each call at least `least` times and for about `seconds` in all, in turns, after one unmeasured round.

    In turns, so that what else the machine does falls on all alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(next(iter(samples.values()))) < least:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - before)
    return {name: Timing(*_percentiles(values)) for name, values in samples.items()}


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    tenths = statistics.quantiles(values, n=10)
    return tenths[1], statistics.median(values), tenths[7]


def check_moments(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Raise AssertionError if the first moments after one update (a tenth of the gradient) differ by more than rounding."""
    error = float((ours - theirs).norm() / theirs.norm())
    assert error <= tolerance, f"the gradients differ by {error:.1e} of their norm, allowed are {tolerance:.0e}"


def environment() -> dict[str, str]:
    """What a figure depends on besides the code."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    return {
        "cpu": cpu,
        "isa": _cpu.isa(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "fastbin": fastbin.__version__,
        "commit": commit or "unknown",
    }


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows`, with the environment on each, as CSV."""
    facts = environment()
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
