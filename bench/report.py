"""Tables (rich's Markdown, so that they can be pasted), CSV files, and what figures depend on besides the code."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import fastbin
from bench.case import OURS
from bench.run import Row
from fastbin import _cpu

CONSOLE = Console(width=180, highlight=False, markup=False)


def environment() -> dict[str, str]:
    """What a figure depends on besides the code."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "isa": _cpu.isa(),
        "torch": torch.__version__,
        "fastbin": fastbin.__version__,
        "commit": _commit() or "unknown",
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """A table in Markdown; a column whose name begins with < is left-aligned, the others are right-aligned."""
    table = Table(box=box.MARKDOWN)
    for column in columns:
        table.add_column(column.lstrip("<"), justify="left" if column.startswith("<") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(f"\n{title}\n")
    CONSOLE.print(table)
    if caption:
        CONSOLE.print(f"\n{caption}")


def print_rows(title: str, rows: Sequence[Row], caption: str) -> None:
    """Ours on the first line of a case, with its first peer; the other peers below."""
    lines = []
    for row in rows:
        first = row.contender == OURS
        if first:
            head = [str(row.case), _time(row), _number(row.rate, row.case.unit), _percent(row.share)]
            if row.problem:
                lines.append([*head, row.problem, "", ""])
                head = [""] * 4
        else:
            lines.append([*head, _name(row), _time(row), "" if row.ratio is None else f"{row.ratio:.2f}"])
            head = [""] * 4
    columns = ("<case", "fastbin ms", "rate", "of limit", "<peer", "peer ms", "ratio")
    print_table(title, columns, lines, caption)
    missing = sorted({f"{row.contender} ({row.problem})" for row in rows if row.problem.startswith("missing")})
    if missing:
        CONSOLE.print(f"\nMissing peers: {'; '.join(missing)}: pip install -e '.[bench]' brings them.")


def _name(row: Row) -> str:
    few = f" ({row.timing.calls} calls)" if row.timing and row.timing.calls < 20 else ""
    return f"{row.contender}{few}" + (f": {row.problem}" if row.problem else "")


def _time(row: Row) -> str:
    return "" if row.timing is None else f"{1e3 * row.timing.p50:.3g}"


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def write_csv(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Write `records`, with the environment on each, as CSV; an empty field where there is no value."""
    facts = environment()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*records[0], *facts])
        writer.writeheader()
        writer.writerows({**record, **facts} for record in records)
