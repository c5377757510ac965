"""What a search or an evaluation shows and leaves behind: progress, tables, result.json and learning curves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastbin import backends, checkpoint, doctor
from fastbin.data import Dataset
from fastbin.result import EpochRecord, SearchResult
from fastbin.runs import CHECKPOINT, CONFIG, METRICS, NETWORK, member_folder

RESULT = "result.json"  # the outcome in figures, and what it was made with
SHOWN = 10  # members of a population in its table
CURVES = "curves.png"  # loss, accuracy, flips and density over the epochs


@contextlib.contextmanager
def progress(console: Console, epochs: int) -> Iterator[Callable[[EpochRecord], None]]:
    """Show the progress of a search: a bar on a terminal, else a line for each epoch.

    The value of the ``with`` statement is to be called with each record.
    """
    if not console.is_terminal:
        yield lambda record: print(_epoch_line(record, epochs), flush=True)
        return
    columns = (
        TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda record: bar.update(task, completed=record.epoch, description=_accuracy(record))


@contextlib.contextmanager
def population_progress(console: Console, epochs: int) -> Iterator[Callable[[dict[int, EpochRecord]], None]]:
    """Show the progress of a population, as `progress` does that of a search, by the best of its members."""
    with progress(console, epochs) as on_epoch:

        def on_members(records: dict[int, EpochRecord]) -> None:
            best = max(records.values(), key=lambda record: record.standing)
            if not console.is_terminal:
                print(f"the best of {len(records)}:", end=" ")
            on_epoch(dataclasses.replace(best, seconds=sum(record.seconds for record in records.values())))

        yield on_members


def _accuracy(record: EpochRecord) -> str:
    if record.validation_accuracy is None:
        return f"training accuracy {percent(record.train_accuracy)}"
    return f"validation accuracy {percent(record.validation_accuracy)}"


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    parts = [
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}",
        f"train loss {record.train_loss:.4f}",
        f"accuracy {percent(record.train_accuracy)}",
    ]
    if record.validation_loss is not None:
        parts += [f"validation loss {record.validation_loss:.4f}", f"accuracy {percent(record.validation_accuracy)}"]
    parts += [f"flips {sum(record.flips)}", f"density {_densities(record.density)}", f"{record.seconds:.1f} s"]
    return "  ".join(parts)


def percent(share: float | None) -> str:
    """A share as text."""
    return "none" if share is None else f"{100 * share:.2f} %"


def _densities(density: Sequence[float]) -> str:
    return " ".join(f"{share:.3f}" for share in density)


def summary(result: SearchResult) -> dict[str, Any]:
    """The outcome of a search as JSON-able figures."""
    weights = result.net.weights()
    best = result.history[result.best_epoch - 1]
    return {
        "data": result.data_name,
        "test_accuracy": result.test_accuracy,
        "validation_accuracy": best.validation_accuracy,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "widths": list(result.net.widths),
        "edges": sum(w.shape.numel() for w in weights),
        "edges_present": sum(int(w.count()) for w in weights),
        "bytes": sum(w.words.nbytes for w in weights),
        "density": best.density,
        "seconds": sum(record.seconds for record in result.history),
    }


def made_with(command: str) -> dict[str, Any]:
    """What figures were made with, as JSON-able values; `command` is what was typed."""
    return {
        "versions": doctor.versions(),
        "instruction_set": doctor.instruction_set(),
        "backend": backends.requested(),
        "threads": torch.get_num_threads(),
        "command": command,
    }


def write(folder: Path, result: SearchResult, command: str) -> None:
    """Write result.json and curves.png; raises OSError if that fails, leaving older ones as they were."""
    checkpoint.write_text(folder / RESULT, json.dumps({**summary(result), **made_with(command)}, indent=2) + "\n")
    with checkpoint.replacing(folder / CURVES) as file:
        draw(result.history, result.best_epoch, file)


def show(result: SearchResult, folder: Path, console: Console) -> None:
    """Print the outcome of a search and where it was written."""
    figures = summary(result)
    table = Table(show_header=False)
    rows = {
        "test accuracy": percent(figures["test_accuracy"]),
        "validation accuracy": percent(figures["validation_accuracy"]),
        "best epoch": f"{figures['best_epoch']} of {figures['epochs']}",
        "units": "-".join(map(str, figures["widths"])),
        "edges": f"{figures['edges_present']} of {figures['edges']}",
        "density per layer": _densities(figures["density"]),
        "packed bits": f"{figures['bytes']} bytes",
        "seconds": f"{figures['seconds']:.1f}",
        "files": "\n".join((NETWORK, RESULT, CURVES, METRICS, CONFIG, CHECKPOINT)),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)
    print(f"written to {folder}")


def write_population(folder: Path, results: Sequence[SearchResult], command: str) -> None:
    """Write result.json with an entry for each member; raises OSError if that fails, leaving an older one as it was."""
    members = [{"seed": result.config.seed, **summary(result)} for result in results]
    text = json.dumps({"members": members, **made_with(command)}, indent=2) + "\n"
    checkpoint.write_text(folder / RESULT, text)


def show_population(results: Sequence[SearchResult], folder: Path, console: Console) -> None:
    """Print the outcome of a population, the best members first, and where it was written."""
    table = Table("member", "seed", "validation accuracy", "test accuracy", "best epoch", "edges")
    members = [(p, result, summary(result)) for p, result in enumerate(results)]
    members.sort(key=lambda member: member[1].history[member[1].best_epoch - 1].standing, reverse=True)
    for p, result, figures in members[:SHOWN]:
        table.add_row(
            str(p),
            str(result.config.seed),
            percent(figures["validation_accuracy"]),
            percent(figures["test_accuracy"]),
            f"{figures['best_epoch']} of {figures['epochs']}",
            f"{figures['edges_present']} of {figures['edges']}",
        )
    console.print(table)
    if len(members) > SHOWN:
        print(f"and {len(members) - SHOWN} more, all in {RESULT}")
    print(f"the best is {member_folder(folder, members[0][0]) / NETWORK}")


def draw(history: Sequence[EpochRecord], best_epoch: int, file: IO[bytes]) -> None:
    """Draw the learning curves to `file` as PNG, the chosen epoch marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (loss, accuracy), (flips, density) = figure.subplots(2, 2, sharex=True)
    for axes, name, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for part in ("train", "validation"):
            values = [getattr(record, f"{part}_{name}") for record in history]
            if values[0] is not None:
                axes.plot(epochs, [factor * value for value in values], ".-", label=part)
    for i in range(len(history[0].flips)):
        flips.plot(epochs, [record.flips[i] for record in history], ".-", label=f"layer {i + 1}")
        density.plot(epochs, [record.density[i] for record in history], ".-", label=f"layer {i + 1}")
    flips.set_yscale("symlog", linthresh=1)  # logarithmic, but shows an epoch without flips
    flips.set_ylim(bottom=0)
    labels = ("cross-entropy", "accuracy / %", "flipped bits an epoch", "share of ones")
    for axes, label in zip((loss, accuracy, flips, density), labels, strict=True):
        axes.axvline(best_epoch, color="0.5", linestyle="--", linewidth=1, label=f"chosen: epoch {best_epoch}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    for axes in (flips, density):
        axes.set_xlabel("epoch")
    figure.savefig(file, format="png", dpi=120)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A network's accuracy on the test part of a data set.

    Attributes:
        accuracy: share of right predictions.
        samples: how many there were.
        split_seed: of the split, if the data set has no test part of its own.
        per_class: label, samples and accuracy of each class.
    """

    accuracy: float
    samples: int
    split_seed: int
    per_class: list[dict[str, Any]]


def evaluation(result: SearchResult, dataset: Dataset) -> Evaluation:
    """Evaluate on the test part; raises ValueError for other features, or labels that the network does not know."""
    truth = np.asarray(dataset.labels)[dataset.y_test.numpy()]
    accuracy = result.score(dataset.x_test, truth)
    right = result.predict(dataset.x_test) == truth
    per_class = [
        {"label": label, "samples": int(members.sum()), "accuracy": float(right[members].mean())}
        for i, label in enumerate(dataset.labels)
        if (members := dataset.y_test.numpy() == i).any()
    ]
    return Evaluation(accuracy, len(truth), result.config.seed, per_class)


def show_evaluation(found: Evaluation, console: Console) -> None:
    """Print an evaluation."""
    print(f"accuracy {percent(found.accuracy)} on the {found.samples} samples of the test part")
    print(f"split seed {found.split_seed}, that of the search (for a data set without a test part of its own)")
    table = Table("class", "samples", "accuracy")
    for row in found.per_class:
        table.add_row(Text(str(row["label"])), str(row["samples"]), percent(row["accuracy"]))
    console.print(table)
