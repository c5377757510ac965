"""Run a case: check every contender, time those that are right."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from bench.case import OURS, Case, Contender
from bench.checks import threads
from bench.timing import Effort, Timing, measure


@dataclass(frozen=True)
class Row:
    """A contender in a case.

    Attributes:
        timing: None where there is no speed to report, for the reason in `problem`.
        ratio: how many times ours is faster; None for ours, and where one of the two has no speed.
        share: of the limit that the case's model gives.
        problem: ``missing: ..``, ``wrong: ..`` or ``failed: ..``.
    """

    case: Case
    contender: str
    threads: int
    timing: Timing | None = None
    ratio: float | None = None
    share: float | None = None
    problem: str = ""

    @property
    def error(self) -> bool:
        """Whether there is no speed for another reason than a missing package."""
        return bool(self.problem) and not self.problem.startswith("missing")

    @property
    def rate(self) -> float | None:
        return None if self.timing is None else self.case.work / self.timing.p50

    def record(self, table: str) -> dict[str, object]:
        """The row for a CSV file."""
        case, timing = self.case, self.timing
        times = {f"{name}_ms": 1e3 * p for name, p in asdict(timing).items() if name != "calls"} if timing else {}
        return {
            "table": table,
            "case": str(case),
            "op": case.op,
            "batch": case.batch,
            "inputs": case.inputs,
            "outputs": case.outputs,
            "dtype": case.dtype,
            "contender": self.contender,
            "threads": self.threads,
            **{name: times.get(name, "") for name in ("p20_ms", "p50_ms", "p80_ms")},
            "calls": timing.calls if timing else 0,
            "rate": self.rate,
            "unit": case.unit,
            "ratio": self.ratio,
            "share_of_limit": self.share,
            "problem": self.problem,
        }


def run_case(case: Case, effort: Effort) -> list[Row]:
    """Ours first, then the peers; a contender whose result is wrong gets no speed, and a wrong one of ours no ratios."""
    with threads(case.threads or torch.get_num_threads()):
        return list(_rows(case, effort))


def _rows(case: Case, effort: Effort) -> Iterator[Row]:
    problems: dict[str, str] = {}
    ready: dict[str, Contender | None] = {}
    makers = case.contenders()
    for name, make in makers.items():
        ready[name], problems[name] = _checked(make)
    with _no_collection():
        timings = measure({name: c.call for name, c in ready.items() if c}, effort)
    ours = timings.get(OURS)
    limit = case.limit() if ours else None
    for name in makers:
        timing = timings.get(name)
        ratio = timing.p50 / ours.p50 if timing and ours and name != OURS else None
        share = limit / ours.p50 if limit and ours and name == OURS else None
        yield Row(case, name, torch.get_num_threads(), timing, ratio, share, problems[name])


def _checked(make: Callable[[], Contender]) -> tuple[Contender | None, str]:
    """The contender if its result is right, or why there is none."""
    try:
        contender = make()
        contender.check()
    except ImportError as error:
        return None, f"missing: {error}"
    except AssertionError as error:
        return None, f"wrong: {_first_line(error)}"
    except Exception as error:  # a peer's own failure must not cost the table
        return None, f"failed: {type(error).__name__}: {_first_line(error)}"
    return contender, ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
