"""Runs that are killed at random moments and resumed: ``python -m tests.kills [--runs N] [--seed S]``.

One process imports all and forks a run each time: forked before any thread is started, and quick to start again. A run is
killed by SIGKILL one to three times, each time at a moment drawn from all that a run takes, and then left to end. Its files
must then be those of a run that was never killed, but for times of day.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fastbin import SearchConfig, checkpoint, run_search, runs

RULES = {
    "hard-adam": {"estimator": "hard", "rule": "adam", "lr": 0.05},
    "sample-sgd": {"estimator": "sample", "rule": "sgd", "input_dropout": 0.2},
    "bop": {"rule": "bop", "gamma": 0.1, "threshold": 1e-3},
}


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


def read(folder: Path) -> tuple[list[Any], list[Any], str]:
    """All that a run left, but for wall-clock times: (tensors, metadata) of both files, the metrics, the configuration."""
    files = []
    for name in (runs.CHECKPOINT, runs.NETWORK):
        tensors, metadata = checkpoint.load(folder / name)
        metadata["history"] = [timeless(record) for record in metadata["history"]]
        files.append((tensors, metadata))
    lines = (folder / runs.METRICS).read_text().splitlines()
    return files, [timeless(json.loads(line)) for line in lines], (folder / runs.CONFIG).read_text()


def assert_same_run(a: Path, b: Path) -> None:
    (files_a, *rest_a), (files_b, *rest_b) = read(a), read(b)
    assert rest_a == rest_b
    for (tensors_a, metadata_a), (tensors_b, metadata_b) in zip(files_a, files_b, strict=True):
        assert metadata_a == metadata_b and tensors_a.keys() == tensors_b.keys()
        for name, t in tensors_a.items():
            assert torch.equal(t, tensors_b[name]), name
    names = [".lock", runs.CHECKPOINT, runs.CONFIG, runs.METRICS, runs.NETWORK]
    assert sorted(os.listdir(a)) == sorted(os.listdir(b)) == sorted(names)


def begin(out: Path, config: SearchConfig) -> int:
    """Start a run, or go on with it, in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            run_search("digits", config, out=out, resume=True)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child: int) -> bool:
    """Wait for a run; whether it came to its end, rather than being killed."""
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFEXITED(status)


def kill_and_resume(folder: Path, config: SearchConfig, length: float, rng: random.Random) -> tuple[int, int]:
    """Kill a run that takes `length` seconds, and let it end; returns the kills that hit it, and those midway."""
    kills = midway = 0
    for _ in range(rng.randint(1, 3)):
        child = begin(folder, config)
        time.sleep(rng.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        if ended(child):
            break
        kills += 1
        midway += (folder / runs.CHECKPOINT).exists()
    assert ended(begin(folder, config))
    return kills, midway


def main() -> None:
    """Print how many runs there were, and how often they were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng, root = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="fastbin-kills-"))
    lengths, kills, midway = {}, 0, 0
    configs = {name: SearchConfig(hidden=(48, 32), epochs=8, **values) for name, values in RULES.items()}
    for name, config in configs.items():
        began = time.monotonic()
        assert ended(begin(root / name, config))
        lengths[name] = time.monotonic() - began
    for i in range(asked.runs):
        name = list(configs)[i % len(configs)]
        hit, within = kill_and_resume(root / "killed", configs[name], lengths[name], rng)
        kills, midway = kills + hit, midway + within
        assert_same_run(root / name, root / "killed")
        shutil.rmtree(root / "killed")
    shutil.rmtree(root)
    print(
        f"{asked.runs} runs, {kills} kills, {midway} of them after the first checkpoint: all ended with the same bits"
    )


if __name__ == "__main__":
    sys.exit(main())
