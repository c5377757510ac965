"""Run the benchmarks: ``python -m bench step``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from bench import step
from bench.timing import environment, write_csv


@dataclass(frozen=True)
class Step:
    """One search step (estimator hard, rule adam) against the same algorithm in eager torch."""

    quick: bool = False
    """About a second a case instead of five."""
    csv: Path | None = None
    """Also write the figures here."""


def main(command: Annotated[Step, tyro.conf.subcommand("step")]) -> None:
    """Benchmarks of fastbin against peers in the same process."""
    rows = [step.run(case, seconds=1.0 if command.quick else 5.0) for case in step.CASES]
    table = Table(title="search step, medians", caption="  ".join(f"{k} {v}" for k, v in environment().items()))
    for column in ("case", "fastbin ms", "eager torch ms", "ratio"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(row["case"], f"{row['fastbin_ms']:.2f}", f"{row['peer_ms']:.2f}", f"{row['ratio']:.2f} x")
    Console().print(table)
    if command.csv is not None:
        write_csv(command.csv, rows)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m bench")
