"""What a comparison tells people: a summary over seeds, as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastbin import checkpoint
from fastbin.baselines import KINDS

REPORT, MARKDOWN = "report.html", "report.md"
ORDER = (
    "dense",
    "pruned",
    "weight_free_hard",
    "weight_agnostic",
    "random",
)  # from best to worst, as the paper has them
Row = dict[str, Any]


def summary(runs: Sequence[Row]) -> list[Row]:
    """Means over the seeds of each data set and kind, in the order of `runs`; shares are of 1.

    Each row has data, kind, seeds (done), failed, and the means test_accuracy (with interval, the half-width of its 95 %
    confidence interval by Student's t, null for one seed), mean_test_accuracy, validation_accuracy, shared_mean,
    shared_best, shared_ensemble, connections, density (of all connections), bits, operations (in budgets) and seconds. All
    are null if no seed is done, mean_test_accuracy if the kind has no draws.
    """
    rows = []
    for data, kind in dict.fromkeys((run["data"], run["kind"]) for run in runs):
        mine = [run for run in runs if (run["data"], run["kind"]) == (data, kind)]
        done = [run for run in mine if run["status"] == "done"]
        accuracies = [run["test_accuracy"] for run in done]
        rows.append(
            {
                "data": data,
                "kind": kind,
                "seeds": len(done),
                "failed": len(mine) - len(done),
                "test_accuracy": _mean(accuracies),
                "interval": half_width(accuracies),
                "mean_test_accuracy": _mean([run["mean_test_accuracy"] for run in done]),
                "validation_accuracy": _mean([run["validation_accuracy"] for run in done]),
                **{f"shared_{k}": _mean([run["shared"][k] for run in done]) for k in ("mean", "best", "ensemble")},
                "connections": _mean([run["connections"] for run in done]),
                "density": _mean([run["connections"] / run["edges"] for run in done]),
                "bits": _mean([run["bits"] for run in done]),
                "operations": _mean([run["operations"] / run["budget"] for run in done]),
                "seconds": _mean([run["seconds"] for run in done]),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean by Student's t; None for fewer than two values."""
    from scipy.stats import t  # here: slow to import

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def percent(share: float | None, interval: float | None = None) -> str:
    """A share as a percentage, with its interval if there is one."""
    if share is None:
        return "–"
    return f"{100 * share:.2f}" + ("" if interval is None else f" ± {100 * interval:.2f}")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


# Title and text of each column.
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "kind": lambda row: str(row["kind"]),
    "seeds": lambda row: str(row["seeds"]) + (f" ({row['failed']} failed)" if row["failed"] else ""),
    "test accuracy / %": lambda row: percent(row["test_accuracy"], row["interval"]),
    "mean of draws / %": lambda row: percent(row["mean_test_accuracy"]),
    "validation / %": lambda row: percent(row["validation_accuracy"]),
    "one weight: mean / %": lambda row: percent(row["shared_mean"]),
    "best / %": lambda row: percent(row["shared_best"]),
    "ensemble / %": lambda row: percent(row["shared_ensemble"]),
    "connections": lambda row: _count(row["connections"]),
    "density / %": lambda row: percent(row["density"]),
    "bits": lambda row: _count(row["bits"]),
    "budget used / %": lambda row: percent(row["operations"]),
    "seconds": lambda row: "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
}


def order(rows: Sequence[Row]) -> list[str]:
    """One sentence for each pair of neighbours in `ORDER`, of the rows of one data set: whether the means are so ordered."""
    means = {row["kind"]: row["test_accuracy"] for row in rows if row["test_accuracy"] is not None}
    present = [kind for kind in ORDER if kind in means]
    return [
        f"{better} {percent(means[better])} % {'≥' if means[better] >= means[worse] else '<'} "
        f"{worse} {percent(means[worse])} %" + ("" if means[better] >= means[worse] else ": not as expected")
        for better, worse in pairwise(present)
    ]


_NOTES = (
    "Accuracies are of the test part, which is used once, after all choices; the choice of epoch, draw and shared weight is "
    "by the validation part. ± is half of the 95 % confidence interval over the seeds (Student's t).",
    "One weight: all connections of the network get the same weight, of six values; the mean over them, the best by "
    "validation, and the mean of the six networks' probabilities. Behind a norm over the layer only its sign matters.",
    "Bits: one a possible connection for the structure, unless all are there; 32 a connection for real weights, 1 for "
    "weights of two values; in a graph, each connection is the number of one of the possible ones.",
    "Budget: connections passed by samples, against those of the search.",
)


def markdown(results: Row) -> str:
    """The tables of `results` (what results.json holds) as Markdown."""
    parts = ["# Comparison of networks", f"`{results['made_with'].get('command', '')}`"]
    for data, rows in _by_data(results):
        parts.append(f"## {data}")
        table = [list(_COLUMNS), ["---"] * len(_COLUMNS), *([text(row) for text in _COLUMNS.values()] for row in rows)]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in table))
        parts.append("\n".join(f"- {line}" for line in [*order(rows), *_failures(results, data)]))
    parts += _NOTES
    return "\n\n".join(filter(None, parts)) + "\n"


def _by_data(results: Row) -> Iterator[tuple[str, list[Row]]]:
    for data in dict.fromkeys(row["data"] for row in results["summary"]):
        yield data, [row for row in results["summary"] if row["data"] == data]


def _failures(results: Row, data: str) -> list[str]:
    failed = [run for run in results["runs"] if run["data"] == data and run["status"] == "failed"]
    return [f"{run['kind']}, seed {run['seed']}, failed: {run['error']}" for run in failed]


def page(results: Row) -> str:
    """`results` as one HTML page; figures are drawn into it as SVG."""
    parts = ["<h1>Comparison of networks</h1>", f"<pre>{_safe(results['made_with'].get('command', ''))}</pre>"]
    for data, rows in _by_data(results):
        parts.append(f"<h2>{_safe(data)}</h2>")
        parts.append(_table(data, rows))
        lines = "".join(f"<li>{_safe(line)}</li>" for line in order(rows))
        lines += "".join(f'<li class="failed">{_safe(line)}</li>' for line in _failures(results, data))
        parts.append(f"<ul>{lines}</ul>")
        done = [run for run in results["runs"] if run["data"] == data and run["status"] == "done"]
        if done:
            parts += [f"<figure>{_svg(draw)}</figure>" for draw in (_Curves(done), _Shared(done))]
        parts += [f"<figure>{_svg(_Gradient(g))}</figure>" for g in results["gradient"] if g["data"] == data]
    parts += [f"<p>{_safe(note)}</p>" for note in _NOTES]
    parts.append("<h2>How it was made</h2>")
    settings = {**results["made_with"], **results["config"], "seeds": sorted({run["seed"] for run in results["runs"]})}
    items = "".join(f"<tr><th>{_safe(name)}</th><td>{_safe(value)}</td></tr>" for name, value in settings.items())
    parts.append(f"<table>{items}</table>")
    return _PAGE.replace("BODY", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison of networks</title>
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px } th, td { border-bottom: 1px solid #ccc; padding: 3px 9px }
td { text-align: right; font-variant-numeric: tabular-nums } th { text-align: left; font-weight: 600 }
.scroll { overflow-x: auto } pre { background: #f2f2f2; padding: .6rem; overflow-x: auto } .failed { color: #b00020 }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
</style></head><body>
BODY
</body></html>
"""


def _safe(value: object) -> str:
    return html.escape(str(value))


def _table(data: str, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{_safe(title)}</th>" for title in _COLUMNS)
    body = ""
    for row in rows:
        texts = [_safe(text(row)) for text in _COLUMNS.values()]
        body += f"<tr><th>{texts[0]}</th>" + "".join(f"<td>{text}</td>" for text in texts[1:]) + "</tr>\n"
    return f'<div class="scroll"><table id="{_safe(data)}"><tr>{head}</tr>\n{body}</table></div>'


def _svg(draw: Callable[[Any], None]) -> str:
    """A drawing as an SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    # A fixed salt and no date: equal results give an equal file. Text as text: smaller, and can be searched.
    with matplotlib.rc_context({"svg.hashsalt": "fastbin", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


class _Curves:
    """Validation accuracy, density and flips over the epochs, means over the seeds."""

    def __init__(self, runs: Sequence[Row]) -> None:
        self.runs = [run for run in runs if run["history"]]

    def __call__(self, figure: Any) -> None:
        accuracy, density, flips = figure.subplots(1, 3)
        for kind in dict.fromkeys(run["kind"] for run in self.runs):
            histories = [run["history"] for run in self.runs if run["kind"] == kind]
            epochs = range(1, min(map(len, histories)) + 1)  # those that all seeds have
            style = _style(kind)
            accuracy.plot(epochs, _curve(histories, epochs, lambda r: 100 * r["validation_accuracy"]), **style)
            density.plot(
                epochs, _curve(histories, epochs, lambda r: 100 * sum(r["density"]) / len(r["density"])), **style
            )
            if histories[0][0]["flips"]:
                flips.plot(epochs, _curve(histories, epochs, lambda r: sum(r["flips"])), **style)
        flips.set_yscale("symlog", linthresh=1)
        titles = ("validation accuracy / %", "density, mean over layers / %", "flips an epoch (real weights: of sign)")
        for axes, title in zip((accuracy, density, flips), titles, strict=True):
            axes.set_xlabel("epoch")
            axes.set_title(title)
            axes.grid(alpha=0.3)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center", fontsize=8)


class _Gradient:
    """The gradient's error and its bound over the steps of a search, and at one of them over the temperatures."""

    def __init__(self, measured: Row) -> None:
        self.measured = measured

    def __call__(self, figure: Any) -> None:
        over_steps, over_taus = figure.subplots(1, 2)
        for axes, rows, name in (
            (over_steps, self.measured["log"], "step"),
            (over_taus, self.measured["sweep"], "tau"),
        ):
            at = [row[name] for row in rows]
            for value, label in (
                ("gradient", "‖∇F‖"),
                ("error", "‖g − ∇F‖"),
                ("bound", f"bound, {rows[0]['bound_kind']}"),
            ):
                axes.plot(at, [row[value] for row in rows], marker=".", label=label)
            axes.set_yscale("log")
            axes.set_xlabel({"step": "step", "tau": "temperature τ"}[name])
            axes.grid(alpha=0.3)
            axes.legend()
        over_taus.set_xscale("log")
        over_steps.set_title("error of the gradient (hard, tanh) in a search")
        over_taus.set_title(f"at step {self.measured['log'][-1]['step']}, at other temperatures")


def _style(kind: str) -> dict[str, Any]:
    """Colour and line of a kind, the same in all figures."""
    i = list(KINDS).index(kind)
    return {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "label": kind}


def _curve(histories: Sequence[list[Row]], epochs: range, value: Callable[[Row], float]) -> list[float]:
    return [sum(value(history[e - 1]) for history in histories) / len(histories) for e in epochs]


class _Shared:
    """Accuracy with one weight on all connections, means over the seeds."""

    def __init__(self, runs: Sequence[Row]) -> None:
        self.runs = runs

    def __call__(self, figure: Any) -> None:
        axes = figure.subplots()
        for kind in dict.fromkeys(run["kind"] for run in self.runs):
            shared = [run["shared"] for run in self.runs if run["kind"] == kind]
            means = [100 * sum(values) / len(shared) for values in zip(*(s["accuracy"] for s in shared), strict=True)]
            style = _style(kind)
            axes.plot(shared[0]["weights"], means, marker=".", **style)
        axes.set_xlabel("weight of all connections")
        axes.set_title("test accuracy with one shared weight / %")
        axes.grid(alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)


def tell(run: Row, number: int, planned: int) -> None:
    """Print a line for a run that has ended."""
    what = f"{number:{len(str(planned))}}/{planned}  {run['data']}  {run['kind']}  seed {run['seed']}"
    if run["status"] == "failed":
        print(f"{what}  failed: {run['error']}", flush=True)
        return
    validation, test = percent(run["validation_accuracy"]), percent(run["test_accuracy"])
    print(f"{what}  validation accuracy {validation} %  test accuracy {test} %  {run['seconds']:.1f} s", flush=True)


def show(results: Row, console: Console) -> None:
    """Print a table of accuracies for each data set."""
    for data, rows in _by_data(results):
        table = Table("kind", "seeds", "test accuracy / %", "connections", "seconds", title=data)
        for row in rows:
            cells = [str(row["seeds"]), percent(row["test_accuracy"], row["interval"]), _count(row["connections"])]
            table.add_row(row["kind"], *cells, _COLUMNS["seconds"](row))
        console.print(table)


def write(folder: Path, results: Row) -> None:
    """Write report.html and report.md."""
    checkpoint.write_text(folder / REPORT, page(results))
    checkpoint.write_text(folder / MARKDOWN, markdown(results))
