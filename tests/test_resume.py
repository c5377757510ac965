"""Searches that are stopped: killed, refused, out of disk; and that they end as if nothing had happened."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastbin import RunFolderError, SearchConfig, checkpoint, run_search, runs
from tests.kills import RULES, assert_same_run, timeless

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (12, 10), "epochs": 6, "batch_size": 16, "validation": 0.2}


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(60) % 3
    return rng.normal(0, 1, (3, 8))[y] + rng.normal(0, 1, (60, 8)), y


class Stopped(Exception):
    pass


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch >= epoch:
            raise Stopped

    return on_epoch


def test_runs_killed_at_random_moments_end_as_if_never_killed():
    command = [sys.executable, "-m", "tests.kills", "--runs", "6"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (found := re.fullmatch(r"6 runs, (\d+) kills \((.*)\): all ended as if never killed\n", done.stdout))
    assert int(found[1]) >= 6 and re.search("between writes|within a write", found[2])


@pytest.mark.parametrize("validation", [0.2, 0])
@pytest.mark.parametrize("rule", RULES)
def test_stopped_after_every_epoch(tmp_path, rule, validation):
    c = SearchConfig(**{**SMALL, **RULES[rule], "validation": validation})
    whole = run_search(blobs(), c, out=tmp_path / "whole")
    for epoch in range(1, c.epochs + 1):
        with pytest.raises(Stopped):
            run_search(blobs(), c, out=tmp_path / "stopped", resume=True, on_epoch=stop_after(epoch))
        lines = (tmp_path / "stopped" / runs.METRICS).read_text().splitlines()
        assert len(lines) == epoch
    result = run_search(blobs(), c, out=tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert result.net.weights() == whole.net.weights() and result.best_epoch == whole.best_epoch
    without_folder = run_search(blobs(), c)
    assert without_folder.net.weights() == whole.net.weights()
    assert [timeless(r.to_json()) for r in without_folder.history] == [timeless(r.to_json()) for r in result.history]


def test_stopped_between_checkpoint_and_metrics(tmp_path, monkeypatch):
    def fail(folder, record):
        with (folder / runs.METRICS).open("a") as file:
            file.write('{"epoch": ')  # half a line
        raise Stopped

    c = SearchConfig(**SMALL)
    run_search(blobs(), c, out=tmp_path / "whole")
    monkeypatch.setattr("fastbin.run.append_metrics", fail)
    with pytest.raises(Stopped):
        run_search(blobs(), c, out=tmp_path / "stopped")
    monkeypatch.undo()
    run_search(blobs(), c, out=tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_patience_counts_on_after_a_stop(tmp_path):
    c = SearchConfig(**{**SMALL, "lr": 1e-12, "epochs": 20, "patience": 3})
    with pytest.raises(Stopped):
        run_search(blobs(), c, out=tmp_path, on_epoch=stop_after(2))
    result = run_search(blobs(), c, out=tmp_path, resume=True)
    assert len(result.history) == 4 and result.best_epoch == 1


def test_a_finished_run_resumed_is_its_result(tmp_path):
    c = SearchConfig(hidden=(16,), epochs=2)
    first = run_search("digits", c, out=tmp_path)
    records = []
    again = run_search("digits", c, out=tmp_path, resume=True, on_epoch=records.append)
    assert records == [] and again.history == first.history and again.net.weights() == first.net.weights()
    assert (again.test_accuracy, again.best_epoch, again.labels) == (
        first.test_accuracy, first.best_epoch, first.labels
    )  # fmt: skip


def test_resume_begins_where_there_is_nothing(tmp_path):
    result = run_search(blobs(), SearchConfig(**SMALL), out=tmp_path / "a" / "b", resume=True)
    assert len(result.history) == 6
    with pytest.raises(ValueError, match="out"):
        run_search(blobs(), SearchConfig(**SMALL), resume=True)


# Folders that cannot take the run


@pytest.fixture
def folder(tmp_path):
    """A run that was stopped after its first epoch."""
    with pytest.raises(Stopped):
        run_search(blobs(), SearchConfig(**SMALL), out=tmp_path / "run", on_epoch=stop_after(1))
    return tmp_path / "run"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OTHERS = [
    ("epochs", 7), ("seed", 1), ("lr", 0.5), ("hidden", (12, 11)), ("hidden", (12,)), ("rule", "sgd"), ("tau", 2.0),
    ("estimator", "sample"), ("activation", "tanh"), ("batch_size", 17), ("patience", 2), ("clip", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_another_configuration(folder, name, value):
    before = files_of(folder)
    with pytest.raises(RunFolderError, match=rf"{folder}.* {name}=") as caught:
        run_search(blobs(), SearchConfig(**{**SMALL, name: value}), out=folder, resume=True)
    assert repr(value) in str(caught.value)
    assert files_of(folder) == before


def test_other_data(folder):
    before = files_of(folder)
    x, y = blobs()
    nearly = x.copy()
    nearly[3, 3] += 1e-3
    others = [blobs(1), (nearly, y), (x, np.roll(y, 1)), (x[:57], y[:57]), (x[:, :7], y), (np.tile(x, 2), y)]
    for other in others:
        with pytest.raises(RunFolderError, match=rf"{folder}.*other data"):
            run_search(other, SearchConfig(**SMALL), out=folder, resume=True)
    assert files_of(folder) == before


def test_a_run_is_not_overwritten(folder):
    before = files_of(folder)
    with pytest.raises(RunFolderError, match=rf"{folder} holds a run already: resume it"):
        run_search(blobs(), SearchConfig(**SMALL), out=folder)
    assert files_of(folder) == before


def test_two_runs_in_one_folder(tmp_path):
    c = SearchConfig(**{**SMALL, "epochs": 1})
    refused = []

    def second(record):
        with pytest.raises(RunFolderError, match=rf"{tmp_path} is in use"):
            run_search(blobs(), c, out=tmp_path, resume=True)
        refused.append(record)

    run_search(blobs(), c, out=tmp_path, on_epoch=second)
    assert len(refused) == 1
    run_search(blobs(), c, out=tmp_path, resume=True)  # free again


def test_a_damaged_checkpoint_is_refused_and_kept(folder):
    path = folder / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    before = files_of(folder)
    with pytest.raises(checkpoint.CheckpointError, match=str(path)):
        run_search(blobs(), SearchConfig(**SMALL), out=folder, resume=True)
    assert files_of(folder) == before


# Disks


@pytest.mark.parametrize("place", ["file", "file/run", "file/deeper/run"])
def test_out_below_a_file(tmp_path, place):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="file"):
        run_search(blobs(), SearchConfig(**SMALL), out=tmp_path / place)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_system_without_room(tmp_path):
    c = SearchConfig(**SMALL)
    run_search(blobs(), c, out=tmp_path / "whole")
    out = tmp_path / "full"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(
        record,
    ):  # from the second epoch on, files end in the middle of a checkpoint (SIGXFSZ is ignored by Python)
        if record.epoch == 2:
            room = (out / runs.CHECKPOINT).stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    try:
        with pytest.raises(OSError) as caught:
            run_search(blobs(), c, out=out, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    reader = checkpoint.Reader(out / runs.CHECKPOINT)
    assert len(reader.entry("history", list)) == 2 and not list(out.glob(".*.tmp"))
    run_search(blobs(), c, out=out, resume=True)
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.parametrize("calls", range(9))
def test_a_disk_that_fails_at_any_write(tmp_path, monkeypatch, calls):
    def fail(*args):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(*args)

    fsync = os.fsync
    c = SearchConfig(**SMALL)
    run_search(blobs(), c, out=tmp_path / "whole")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        run_search(blobs(), c, out=tmp_path / "full")
    monkeypatch.undo()
    run_search(blobs(), c, out=tmp_path / "full", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "full")
