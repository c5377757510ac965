"""Many searches over a space of configurations: in this process, or by Ray Tune on a cluster (``fastbin sweep``).

Folder layout:

    space.toml          what was asked for
    trial<number>/      the folder of a search, with trial.json before it begins and outcome.json when it has come to an end
    trials.jsonl        a line for each trial that has, by number
    trials.csv          the same as a table
    ray/                what Ray Tune keeps of its own, on a cluster
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

from fastbin import checkpoint
from fastbin.config import SearchConfig
from fastbin.result import EpochRecord
from fastbin.runs import RunFolderError, locked
from fastbin.sweep.samplers import Sampler
from fastbin.sweep.space import Space, read_space
from fastbin.sweep.trials import (
    Outcome,
    Stopped,
    history,
    prepare,
    read_outcome,
    run_trial,
    standing_at,
    stop,
    trial_folder,
)  # fmt: skip

__all__ = ["Cluster", "Outcome", "Progress", "Space", "best", "read_best", "read_space", "sweep"]

SPACE, LINES, TABLE = "space.toml", "trials.jsonl", "trials.csv"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where trials run, if not in this process.

    Attributes:
        address: of a Ray cluster; ``auto`` for the one that this machine belongs to, ``local`` for this machine alone.
        cpus: of each trial, which are its threads.
        gpus: of each trial; may be a fraction.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """What `sweep` tells while it runs.

    Attributes:
        number: of the trial.
        values: of what the sweep varies.
        record: of its last epoch; None before the first, and when the trial has ended.
        outcome: what became of it; None before that.
    """

    number: int
    values: dict[str, object]
    record: EpochRecord | None = None
    outcome: Outcome | None = None


Tell = Callable[[Progress], None]


def sweep(
    space: Path,
    out: Path,
    *,
    resume: bool = False,
    data_dir: Path | None = None,
    cluster: Cluster | None = None,
    tell: Tell = lambda progress: None,
) -> list[Outcome]:
    """Run all trials of a space.

    Args:
        space: a SPACE.toml, see `read_space`.
        out: folder of the sweep; on a cluster one that all machines see under this path.
        resume: go on with a sweep that was stopped: trials that have ended stay, the others go on from their checkpoints.
        data_dir: as of `fastbin.run_search`.
        cluster: where trials run; without, one after the other in this process.
        tell: called when a trial begins, after each of its epochs, and when it has ended.

    Returns:
        What became of each trial, by number. A trial that failed does not end the sweep.

    Raises:
        ValueError: the space is not sound.
        ModuleNotFoundError: Optuna is missing for method tpe, or Ray for a cluster.
        RunFolderError: the folder holds another sweep, or one that is not to be resumed, or is in use or damaged.
        OSError: the folder cannot be written.
    """
    asked, said = read_space(space), space.read_text(encoding="utf-8")
    sampler = Sampler(asked)
    with locked(out):
        kept = out / SPACE
        if kept.exists() and not resume:
            raise RunFolderError(f"{out} holds a sweep already: resume it, or choose another folder")
        if kept.exists() and kept.read_text(encoding="utf-8") != said:
            raise RunFolderError(f"{out} holds a sweep of another space than {space}: see {kept}")
        checkpoint.write_text(kept, said)
        if cluster is None:
            _run_here(asked, sampler, out, data_dir, tell)
        else:
            from fastbin.sweep.cluster import run_on  # here: it needs Ray

            run_on(cluster, asked, sampler, out, data_dir, tell)
        outcomes = [read_outcome(trial_folder(out, number)) for number in range(asked.trials)]
        return write_outcomes(out, [outcome for outcome in outcomes if outcome is not None])


def _run_here(space: Space, sampler: Sampler, out: Path, data_dir: Path | None, tell: Tell) -> None:
    ended: list[Outcome] = []
    for number in range(space.trials):
        outcome = read_outcome(trial_folder(out, number)) or _run_one(space, sampler, out, number, data_dir, tell)
        sampler.learn(outcome)
        ended.append(outcome)
        write_outcomes(out, ended)
        tell(Progress(number, outcome.values, outcome=outcome))


def _run_one(space: Space, sampler: Sampler, out: Path, number: int, data_dir: Path | None, tell: Tell) -> Outcome:
    values, folder = prepare(out, space, number, sampler.choose), trial_folder(out, number)
    tell(Progress(number, values))
    halving, rungs = space.halving, space.rungs(values)

    def goes_on(record: EpochRecord) -> bool:
        # As ASHA with one worker: whether it is among the best of the trials before it that have come so far, and itself.
        if halving is None or record.epoch not in rungs:
            return True
        before = [standing_at(trial_folder(out, other), record.epoch) for other in range(number)]
        stood = sorted([s for s in before if s is not None] + [record.standing], reverse=True)
        return record.standing >= stood[max(1, len(stood) // halving.factor) - 1]

    def on_epoch(record: EpochRecord) -> None:
        tell(Progress(number, values, record))
        if not goes_on(record):
            raise Stopped

    if not all(map(goes_on, history(folder))):  # it was killed before it was stopped
        return stop(folder)
    return run_trial(folder, data_dir, on_epoch)


def write_outcomes(out: Path, outcomes: list[Outcome]) -> list[Outcome]:
    """Write the trials that have ended, whole or not at all."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.number)
    rows = [dataclasses.asdict(outcome) for outcome in outcomes]
    checkpoint.write_text(out / LINES, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    text = io.StringIO()
    varied = sorted({name for outcome in outcomes for name in outcome.values})
    columns = [field.name for field in dataclasses.fields(Outcome) if field.name != "values"]
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, *varied])
    for row in rows:
        table.writerow([row[name] for name in columns] + [row["values"].get(name) for name in varied])
    checkpoint.write_text(out / TABLE, text.getvalue())
    return outcomes


def read_best(folder: Path) -> tuple[str, SearchConfig]:
    """Data and configuration of the best trial of a sweep's folder.

    Raises:
        FileNotFoundError: the folder holds no sweep.
        RunFolderError: no trial has come to an end, or the folder is damaged.
    """
    space = read_space(folder / SPACE)
    outcomes = [read_outcome(trial_folder(folder, number)) for number in range(space.trials)]
    found = best([outcome for outcome in outcomes if outcome is not None])
    if found is None:
        raise RunFolderError(f"{folder} holds a sweep without a trial that has succeeded")
    return space.data, space.config(found.values)


def best(outcomes: list[Outcome]) -> Outcome | None:
    """The trial that did best on the validation part; None if all failed."""
    found = max(outcomes, key=lambda outcome: outcome.standing, default=None)
    return None if found is None or found.status == "failed" else found
