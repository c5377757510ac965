"""What a sweep shows while it runs, and when it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastbin.report import percent
from fastbin.runs import NETWORK
from fastbin.sweep import Outcome, Progress, Tell, best

SHOWN = 15  # trials in a table: those that run, and the best


class _Board:
    def __init__(self, trials: int) -> None:
        self.trials, self.last = trials, dict[int, Progress]()

    def table(self) -> Table:
        ended = [p.outcome for p in self.last.values() if p.outcome is not None]
        table = Table("trial", "values", "status", "epoch", "validation", "test", title=_counts(ended, self.trials))
        running = [p for p in self.last.values() if p.outcome is None]
        for progress in running:
            record = progress.record
            epoch, accuracy = ("", "") if record is None else (str(record.epoch), percent(record.validation_accuracy))
            _row(table, progress.number, progress.values, "running", epoch, accuracy, "")
        ended.sort(key=lambda outcome: outcome.standing, reverse=True)
        for o in ended[: max(1, SHOWN - len(running))]:
            accuracies = (percent(o.validation_accuracy), percent(o.test_accuracy))
            _row(table, o.number, o.values, o.status, str(o.epochs), *accuracies)
        return table


def _counts(ended: list[Outcome], trials: int) -> str:
    by_status = ", ".join(
        f"{n} {status}" for status in ("done", "stopped", "failed") if (n := sum(o.status == status for o in ended))
    )
    return f"{len(ended)} of {trials} trials" + (f": {by_status}" if ended else "")


def _row(table: Table, number: int, values: Mapping[str, Any], *cells: str) -> None:
    table.add_row(str(number), Text(_said(values)), *cells)


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


@contextlib.contextmanager
def live(console: Console, trials: int) -> Iterator[Tell]:
    """Show a sweep: a table that changes on a terminal, else a line for each trial that ends."""
    board = _Board(trials)
    if not console.is_terminal:

        def line(progress: Progress) -> None:
            if (o := progress.outcome) is None:
                return
            board.last[o.number] = progress
            found = f"validation {percent(o.validation_accuracy)}  epochs {o.epochs}" if o.error is None else o.error
            print(f"trial {o.number}  {len(board.last)}/{trials}  {_said(o.values)}  {o.status}  {found}", flush=True)

        yield line
        return
    with Live(board.table(), console=console, refresh_per_second=4, transient=True) as shown:

        def change(progress: Progress) -> None:
            board.last[progress.number] = progress
            shown.update(board.table(), refresh=progress.record is None)  # at once where a trial begins or ends

        yield change


def show(outcomes: list[Outcome], trials: int, folder: Path, console: Console) -> None:
    """Print the best trials, and where they are."""
    board = _Board(trials)
    board.last = {o.number: Progress(o.number, o.values, outcome=o) for o in outcomes}
    console.print(board.table())
    print(f"written to {folder}")
    if (first := best(outcomes)) is not None:
        print(f"the best is {folder / first.folder / NETWORK}; compare it: fastbin compare --sweep {folder} --out DIR")
