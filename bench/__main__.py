"""Run the benchmarks: ``python -m bench ops`` or ``python -m bench step``."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from bench import ops, step
from bench.timing import environment, write_csv


def _report(title: str, rows: list[dict[str, object]], csv: Path | None) -> None:
    table = Table(title=title, caption="  ".join(f"{key} {value}" for key, value in environment().items()))
    for column in ("case", "fastbin ms", "peer", "peer ms", "ratio"):
        table.add_column(column, justify="left" if column in ("case", "peer") else "right")
    for row in rows:
        ours, peer = f"{row['fastbin_ms']:.3f}", f"{row['peer_ms']:.3f}"
        table.add_row(str(row["case"]), ours, str(row["peer"]), peer, f"{row['ratio']:.2f} x")
    Console().print(table)
    if csv is not None:
        write_csv(csv, rows)


def run_ops(*, quick: bool = False, csv: Path | None = None) -> None:
    """The ops against dense torch.

    Args:
        quick: half a second a case instead of three.
        csv: also write the figures here.
    """
    _report("ops, medians", [ops.run(case, 0.5 if quick else 3.0) for case in ops.CASES], csv)


def run_step(*, quick: bool = False, csv: Path | None = None) -> None:
    """One search step (estimator hard, rule adam) against the same algorithm in eager torch.

    Args:
        quick: a second a case instead of five.
        csv: also write the figures here.
    """
    _report("search step, medians", [step.run(case, 1.0 if quick else 5.0) for case in step.CASES], csv)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"ops": run_ops, "step": run_step}, prog="python -m bench")
