"""Time and memory of a search step against edges, batch and threads, each point in a process of its own.

The network has one hidden layer, as many inputs as hidden units, and ten classes; the data are random. The dense peer is
that of the table `step`: the same algorithm in eager torch, from the same scores on the same data, and the two first losses
must agree.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.report import CONSOLE, environment, print_table
from bench.steps import LOGIT_SCALE, LR, TAU, DenseSearch
from fastbin import SearchConfig
from fastbin.descent import Search

CLASSES = 10
EDGE_BATCH = 64  # batch of the points against edges
SMALLEST = 16  # exponent of the smallest network
FIXED_EDGES = 2**20  # edges of the points against batch and threads
THREAD_BATCH = 512  # batch of the points against threads
LARGE = 10**8
# Bytes an edge that a process may need at its worst; what is there decides whether a point is measured. Ours: scores,
# moments, bits, and the random numbers that scores come from. Dense: scores, weights, gradients in both, two moments,
# temporaries.
NEED = {"fastbin": 20, "dense torch": 48}
SECONDS, CALLS, CAP = 0.3, 3, 4.0  # of a point: at least so long and so often, unless it takes longer than CAP


@dataclass(frozen=True)
class Point:
    """What is measured: `series` names the axis that it belongs to."""

    series: str
    contender: str
    width: int
    batch: int
    threads: int

    @property
    def edges(self) -> int:
        return self.width * (self.width + CLASSES)

    @property
    def fits(self) -> bool:
        return NEED[self.contender] * self.edges <= memory("/proc/meminfo", "MemAvailable")


@dataclass(frozen=True)
class Measured:
    """Of a search step.

    Attributes:
        loss: of the first step.
        seconds: median; None where the point does not fit into memory and `peak` is a model.
        state: bytes that the search keeps from step to step.
        peak: bytes of memory at most, over those of the process before it made the network.
    """

    point: Point
    loss: float
    seconds: float | None
    state: int
    peak: int

    def record(self) -> dict[str, object]:
        """The row for a CSV file."""
        p = self.point
        sizes = {"edges": p.edges, "batch": p.batch, "threads": p.threads}
        return {
            "table": "scale", "series": p.series, "contender": p.contender, **sizes,
            "p50_ms": None if self.seconds is None else 1e3 * self.seconds, "state_bytes": self.state,
            "peak_bytes": self.peak, "peak_is": "modelled" if self.seconds is None else "measured",
        }  # fmt: skip


def width_for(edges: int) -> int:
    """The width n for which n (n + CLASSES) comes closest to `edges`."""
    return round(math.sqrt(edges + CLASSES**2 / 4) - CLASSES / 2)


def points(max_edges: int, batches: Sequence[int], cores: int) -> list[Point]:
    """Points of ours: edges 2^16 to 2^max_edges by fours, and LARGE if it is not beyond; each batch; threads by twos."""
    sizes = [2**k for k in range(SMALLEST, max_edges + 1, 2)]
    if 2**max_edges >= LARGE:
        sizes = sorted([*sizes, LARGE])
    fixed = width_for(min(FIXED_EDGES, 2**max_edges))
    threads = sorted({*(2**k for k in range(cores.bit_length())), cores})
    return [
        *(Point("edges", "fastbin", width_for(edges), EDGE_BATCH, cores) for edges in sizes),
        *(Point("batch", "fastbin", fixed, batch, cores) for batch in batches),
        *(Point("threads", "fastbin", fixed, THREAD_BATCH, n) for n in threads),
    ]


def measure(ours: Point, before: Measured | None) -> tuple[Measured, Measured]:
    """Ours and the dense peer; a peer that does not fit into memory is modelled by the bytes an edge of the one `before`.

    Raises:
        MemoryError: ours does not fit.
        AssertionError: the losses of the first step differ.
    """
    if not ours.fits:
        need, there = NEED["fastbin"] * ours.edges / 1e9, memory("/proc/meminfo", "MemAvailable") / 1e9
        raise MemoryError(f"{ours.edges} edges may need {need:.2g} GB, {there:.2g} GB are there: lower --max-edges")
    dense = replace(ours, contender="dense torch")
    mine = _in_a_process(ours)
    if before is not None and not dense.fits:
        state, peak = (round(size / before.point.edges * dense.edges) for size in (before.state, before.peak))
        return mine, Measured(dense, math.nan, None, state, peak)
    theirs = _in_a_process(dense)
    difference = abs(mine.loss - theirs.loss)
    assert difference <= 1e-3 * abs(theirs.loss), f"{ours}: the first loss is {mine.loss}, dense torch's {theirs.loss}"
    return mine, theirs


def _in_a_process(point: Point) -> Measured:
    # A new interpreter: neither memory nor threads are left over from another point.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_here, point).result()


def _measure_here(point: Point) -> Measured:
    torch.set_num_threads(point.threads)
    _start(replace(point, width=32, batch=8))  # loads what libraries load at first use
    forget_peak()
    before = memory("/proc/self/status", "VmRSS")
    step, state = _start(point)
    first = step()
    times: list[float] = []
    while (sum(times) < SECONDS or len(times) < CALLS) and sum(times) < CAP:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    peak = memory("/proc/self/status", "VmHWM") - before
    return Measured(point, float(first), statistics.median(times), state, peak)


def _start(point: Point) -> tuple[Callable[[], Tensor], int]:
    """The step of the contender as a call that returns its loss, and the bytes of its state."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(point.batch, point.width, generator=generator)
    y = torch.randint(CLASSES, (point.batch,), generator=generator)
    config = SearchConfig(hidden=(point.width,), activation="relu", lr=LR, tau=TAU, logit_scale=LOGIT_SCALE)
    widths = [point.width, point.width, CLASSES]
    if point.contender == "fastbin":
        search, rule = Search(config, widths), config.rule_at(0.0)
        return lambda: search.step(x, y, rule)[0], sum(t.nbytes for t in search.tensors().values())
    dense = DenseSearch([s for s in Search(config, widths).scores if s is not None], config.activation)
    forget_peak()  # that of the search whose scores are the start
    # Scores, weights, their gradients and Adam's two moments.
    return lambda: dense.step(x, y), sum(6 * s.nbytes for s in dense.scores)


def memory(file: str, field: str) -> int:
    """Bytes of a field in kB of a file in /proc."""
    lines = Path(file).read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))


def print_pairs(pairs: Sequence[tuple[Measured, Measured]]) -> None:
    """The table, and a search at LARGE edges in words."""
    facts = ", ".join(f"{key} {value}" for key, value in environment().items())
    columns = (
        "<series", "edges", "batch", "threads", "fastbin ms", "dense ms", "ratio", "fastbin peak MB", "bytes an edge",
        "dense peak MB", "bytes an edge",
    )  # fmt: skip
    print_table(
        f"scale: a search step, medians, {facts}",
        columns,
        [_line(ours, dense) for ours, dense in pairs],
        "Bytes an edge are those of the peak over what the process had before. Dense: the same algorithm in eager torch "
        "fp32; without a time, it would not fit, and its memory is the largest measured one's, scaled by the edges.",
    )
    for ours, dense in pairs:
        if ours.point.edges >= 0.99 * LARGE:
            how = "measured" if dense.seconds is not None else "modelled"
            kept, peak, dense_kept, dense_peak = (
                size / ours.point.edges for size in (ours.state, ours.peak, dense.state, dense.peak)
            )
            CONSOLE.print(
                f"\nA search of {ours.point.edges / 1e6:.0f} million edges keeps {kept:.2f} bytes an edge (a score and two "
                f"moments in float32, a bit) and peaks at {ours.peak / 1e9:.2f} GB, {peak:.1f} bytes an edge; dense torch "
                f"keeps {dense_kept:.1f} and peaks at {dense.peak / 1e9:.2f} GB, {dense_peak:.1f} bytes an edge ({how})."
            )


def _line(ours: Measured, dense: Measured) -> list[str]:
    p = ours.point
    times = ("", "", "")
    if ours.seconds is not None:
        theirs = (
            ("", "") if dense.seconds is None else (f"{1e3 * dense.seconds:.3g}", f"{dense.seconds / ours.seconds:.2f}")
        )
        times = (f"{1e3 * ours.seconds:.3g}", *theirs)
    memory = [text for m in (ours, dense) for text in (f"{m.peak / 1e6:.4g}", f"{m.peak / p.edges:.1f}")]
    return [p.series, str(p.edges), str(p.batch), str(p.threads), *times, *memory]


def plot(pairs: Sequence[tuple[Measured, Measured]], path: Path) -> None:
    """Time and peak memory against edges, batch and threads, log-log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, series in enumerate(("edges", "batch", "threads")):
        for contender, marker in (("fastbin", "o"), ("dense torch", "s")):
            chosen = [m for pair in pairs for m in pair if m.point.series == series]
            chosen = [m for m in chosen if m.point.contender == contender and m.seconds is not None]
            along = [getattr(m.point, series) for m in chosen]
            axes[0, column].plot(along, [1e3 * (m.seconds or 0.0) for m in chosen], marker=marker, label=contender)
            axes[1, column].plot(along, [m.peak / 1e6 for m in chosen], marker=marker, label=contender)
        for row, name in enumerate(("ms a step", "peak MB of a search")):
            axis = axes[row, column]
            axis.set(xscale="log", yscale="log", xlabel=series, ylabel=name if column == 0 else "")
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
