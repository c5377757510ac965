"""Real file systems that are full or cannot be written, and data that have vanished, under the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastbin import checkpoint, load_result, runs
from fastbin.cli import main
from fastbin.compare import read_results

KEPT = ["--hidden", "64", "64", "--epochs", "4", "--batch-size", "16"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x=rng.normal(0, 1, (3, 40))[y] + rng.normal(0, 1, (60, 40)), y=y)
    return tmp_path / "own.npz"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system can be mounted by root alone: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastbin: error: "), lines
    return lines[0]


def test_a_full_disk(data: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = disk / "run"
    assert main(["search", str(data), *KEPT, "--out", str(tmp_path / "whole")]) == 0
    size = (tmp_path / "whole" / runs.CHECKPOINT).stat().st_size
    with (disk / "ballast").open("wb") as ballast:  # all but what one checkpoint and a half take
        ballast.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 3 * size // 2))
    capsys.readouterr()
    assert main(["search", str(data), *KEPT, "--out", str(out)]) == 1
    assert re.search(rf"{out}/\S+: No space left on device", said(capsys)) and not list(out.glob(".*.tmp"))
    assert len(checkpoint.Reader(out / runs.CHECKPOINT).entry("history", list)) == 1
    (disk / "ballast").unlink()
    assert main(["search", str(data), *KEPT, "--out", str(out), "--resume"]) == 0
    found = [load_result(folder / runs.NETWORK).net.weights() for folder in (out, tmp_path / "whole")]
    assert found[0] == found[1]


def test_a_disk_that_cannot_be_written(data: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(data), *KEPT, "--out", str(disk / "run")]) == 0
    before = {path.name: path.read_bytes() for path in (disk / "run").iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (
        ["search", str(data), *KEPT, "--out", str(disk / "other")],
        ["search", str(data), *KEPT, "--out", str(disk / "run"), "--resume"],
        ["compare", "--data", str(data), "--out", str(disk / "compared")],
        ["export", str(disk / "run" / runs.NETWORK), str(disk / "net.c")],
    ):
        capsys.readouterr()
        assert main(command) == 1
        assert "Read-only file system" in said(capsys)
    assert {path.name: path.read_bytes() for path in (disk / "run").iterdir()} == before


def test_data_that_have_vanished(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["search", str(data), *KEPT, "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    data.unlink()
    for command in (
        ["search", str(data), *KEPT, "--out", str(out), "--resume"],
        ["eval", str(out / runs.NETWORK), str(data)],
        ["compare", "--data", str(data), "--out", str(tmp_path / "compared")],
    ):
        capsys.readouterr()
        assert main(command) == 1
        assert str(data) in said(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_full_disk_under_a_comparison(data: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = disk / "compared"
    command = ["compare", "--data", str(data), "--kinds", "dense", *KEPT, "--seeds", "2", "--out", str(out)]
    with (disk / "ballast").open("wb") as ballast:  # some runs fit
        ballast.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 100_000))
    assert main(command) == 1
    assert re.search(rf"{out}/\S+: No space left on device", said(capsys))
    assert not list(out.rglob(".*.tmp"))
    done = read_results(out)["runs"]
    assert 1 <= len(done) < 4
    (disk / "ballast").unlink()
    assert main(command) == 0
    assert [run for run in read_results(out)["runs"] if run in done] == done  # none is made again


@pytest.mark.parametrize("command", ["search", "compare"])
def test_two_processes_in_one_folder(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = {
        "search": [str(data), "--resume"],
        "compare": ["--data", str(data), "--kinds", "dense", "--seeds", "1000"],
    }
    arguments = [command, *source[command], *KEPT, "--out", str(out)]
    endless = [*arguments, "--epochs", "100000"] if command == "search" else arguments
    first = subprocess.Popen(
        [sys.executable, "-u", "-m", "fastbin.cli", *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        while not re.match(r"epoch +2|.*dense", line := first.stdout.readline()):
            assert line, first.communicate()[1]
        assert main(endless) == 1
        assert said(capsys) == f"fastbin: error: {out} is in use by another run"
        assert first.stdout.readline()  # the first goes on
    finally:
        first.kill()
        first.communicate()
    with runs.locked(out):  # the lock has died with the process
        pass
