"""A trial of a sweep: one search in a folder of its own, which is also where it is resumed from."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastbin import checkpoint
from fastbin.config import SearchConfig, is_number, is_whole
from fastbin.data import DataError
from fastbin.result import EpochRecord, SearchResult, load_result
from fastbin.runs import CHECKPOINT, METRICS, NETWORK, RunFolderError, locked
from fastbin.search import SearchError, run_search
from fastbin.sweep.space import Space, Values

TRIAL = "trial.json"  # number, data and configuration, before a trial begins
OUTCOME = "outcome.json"  # what became of it; a trial that has one is not run again

Status = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        number: 0 for the first.
        values: of what the sweep varies.
        status: done; stopped early (by halving); or failed.
        validation_accuracy: of the best network so far; None without one.
        validation_loss: likewise.
        test_accuracy: likewise; None also for a trial that was stopped.
        best_epoch: that it is of.
        epochs: that were run.
        seconds: of these epochs.
        folder: of the trial, in the sweep's.
        error: why it failed.
    """

    number: int
    values: Values
    status: Status
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    test_accuracy: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    folder: str = ""
    error: str | None = None

    @property
    def standing(self) -> tuple[float, float]:
        """The higher, the better: validation accuracy, then less loss; failed trials come last."""
        return (
            (-1.0, 0.0)
            if self.status == "failed"
            else (self.validation_accuracy or 0.0, -(self.validation_loss or 0.0))
        )


class Stopped(Exception):
    """A trial is not worth going on with."""


def trial_folder(sweep: Path, number: int) -> Path:
    """The folder of a trial."""
    return sweep / f"trial{number:04}"


def prepare(sweep: Path, space: Space, number: int, choose: Callable[[int], Values]) -> Values:
    """The values of a trial: those that it was begun with, else chosen and written."""
    folder = trial_folder(sweep, number)
    if (folder / TRIAL).exists():
        begun: Values = _read(folder / TRIAL)["values"]
        return begun
    folder.mkdir(parents=True, exist_ok=True)
    values = choose(number)
    about = {"number": number, "values": values, "data": space.data, "config": {**space.fixed, **values}}
    checkpoint.write_text(folder / TRIAL, json.dumps(about, indent=2) + "\n")
    return values


def run_trial(folder: Path, data_dir: Path | None, on_epoch: Callable[[EpochRecord], None]) -> Outcome:
    """Run a trial, or go on with it, to its end; one that has come to its end before is not run again.

    Args:
        folder: of the trial, see `prepare`.
        data_dir: as of `fastbin.run_search`.
        on_epoch: called with each new record; raises Stopped to end the trial there.

    Raises:
        OSError, RunFolderError, CheckpointError: the folder cannot be used; nothing is lost, and it can be tried again.
    """
    if (outcome := read_outcome(folder)) is not None:
        return outcome
    about = _read(folder / TRIAL)
    try:
        config = SearchConfig.from_json(about["config"])
        result = run_search(about["data"], config, out=folder, resume=True, data_dir=data_dir, on_epoch=on_epoch)
    except Stopped:
        return stop(folder)
    except (SearchError, DataError, ValueError, TypeError) as error:
        return _write(folder, Outcome(about["number"], about["values"], "failed", error=f"{error}"))
    return _write(folder, _outcome(about, "done", result))


def stop(folder: Path, wait: float = 30.0) -> Outcome:
    """End a trial where it is; what it has found so far is its network.

    Waits up to `wait` seconds for whoever still writes to the folder; raises RunFolderError after that.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            with locked(folder):
                if (outcome := read_outcome(folder)) is not None:
                    return outcome
                about = _read(folder / TRIAL)
                result = load_result(folder / CHECKPOINT)
                result.save(folder / NETWORK)
                return _write(folder, _outcome(about, "stopped", result))
        except RunFolderError:  # noqa: PERF203
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def fail(folder: Path, error: str) -> Outcome:
    """End a trial that could not be run, after all attempts."""
    about = _read(folder / TRIAL)
    return read_outcome(folder) or _write(folder, Outcome(about["number"], about["values"], "failed", error=error))


def read_outcome(folder: Path) -> Outcome | None:
    """What became of the trial in a folder, None if it has not come to an end; RunFolderError if that is damaged."""
    path = folder / OUTCOME
    if not path.exists():
        return None
    try:
        outcome = Outcome(**_read(path))
    except TypeError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    numbers = (outcome.validation_accuracy, outcome.validation_loss, outcome.test_accuracy, outcome.seconds)
    sound = (
        all(map(is_whole, (outcome.number, outcome.epochs, outcome.best_epoch)))
        and all(n is None or (is_number(n) and math.isfinite(n)) for n in numbers)
        and isinstance(outcome.values, dict)
        and outcome.status in get_args(Status)
        and outcome.folder == folder.name
        and isinstance(outcome.error, (str, type(None)))
    )
    if not sound:
        raise RunFolderError(f"{path} is damaged: it holds {outcome}")
    return outcome


def history(folder: Path) -> list[EpochRecord]:
    """The epochs that a trial has done."""
    return load_result(folder / CHECKPOINT).history if (folder / CHECKPOINT).exists() else []


def standing_at(folder: Path, epoch: int) -> tuple[float, float] | None:
    """How a trial stood after an epoch, None if it did not come so far."""
    path = folder / METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) < epoch:
        return None
    return EpochRecord(**json.loads(lines[epoch - 1])).standing


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r}")
        return values
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def _write(folder: Path, outcome: Outcome) -> Outcome:
    outcome = dataclasses.replace(outcome, folder=folder.name)
    checkpoint.write_text(folder / OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")
    return outcome


def _outcome(about: dict[str, Any], status: Status, result: SearchResult) -> Outcome:
    best = result.history[result.best_epoch - 1]
    return Outcome(
        about["number"],
        about["values"],
        status,
        best.validation_accuracy,
        best.validation_loss,
        result.test_accuracy,
        result.best_epoch,
        len(result.history),
        sum(record.seconds for record in result.history),
    )
