"""The folder of a run: who may write to it, and what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastbin import checkpoint
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.result import EpochRecord

CHECKPOINT = "checkpoint.safetensors"  # a search to be resumed, with its best network so far
NETWORK = "network.safetensors"  # the found network
METRICS = "metrics.jsonl"  # a line for each epoch
CONFIG = "config.json"  # the resolved configuration
SNAPSHOTS = "snapshots"  # a folder: the bits before the search and after each epoch, where they were asked for
POPULATION = "population.json"  # the members of a population, whose folders lie beside it


class RunFolderError(RuntimeError):
    """A folder cannot take the run; the message says why and what to do."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other runs out of it for the ``with`` block; the lock dies with the process.

    Raises:
        RunFolderError: another run holds it.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"{folder} is in use by another run") from error
        yield


def member_folder(folder: Path, member: int) -> Path:
    """The folder of a member of a population, as that of a search of its own."""
    return folder / f"member{member:04}"


def write_config(folder: Path, config: SearchConfig, data_name: str) -> None:
    """Write the resolved configuration."""
    values = {"data": data_name, **config.to_json()}
    checkpoint.write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def read_config(folder: Path) -> SearchConfig | None:
    """The configuration of the folder's run, or of its population's first member, None if there is none yet.

    Raises:
        RunFolderError: it is damaged.
    """
    path = (member_folder(folder, 0) if (folder / POPULATION).exists() else folder) / CONFIG
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return SearchConfig.from_json({name: value for name, value in values.items() if name != "data"})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def write_snapshot(
    folder: Path, epoch: int, weights: Sequence[BitMatrix], config: SearchConfig, data_name: str
) -> None:
    """Write the bits after an epoch of a search, 0 for its start, in the form of a comparison's networks."""
    path = folder / SNAPSHOTS / f"epoch{epoch:04}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"data": data_name, "kind": f"weight_free_{config.estimator}", "seed": config.seed, "form": "bits"}
    widths = [weights[0].cols, *(w.rows for w in weights)]
    checkpoint.save(path, {f"layers.{i}.words": w.words for i, w in enumerate(weights)}, {**about, "widths": widths})


def write_metrics(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write the metrics of all epochs so far, replacing what is there."""
    checkpoint.write_text(folder / METRICS, "".join(metrics_line(record) for record in history))


def append_metrics(folder: Path, record: EpochRecord) -> None:
    """Append the metrics of one epoch."""
    path = folder / METRICS
    with checkpoint.naming(path), path.open("a") as file:
        file.write(metrics_line(record))


def metrics_line(record: EpochRecord) -> str:
    """One line of the metrics file."""
    return json.dumps(record.to_json(), allow_nan=False) + "\n"
