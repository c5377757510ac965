"""Kill searches at random moments and resume them: ``python -m tests.kills [--runs N] [--seed SEED]``.

A run is a small search of the digits with snapshots, in a process that is killed (SIGKILL) once to three times, each time at
a moment drawn uniformly from as long as the search takes when it is left alone, resumed after each, and at last left to end.
After each kill all files must be whole; at the end the folder must hold what the search left alone has left: the same bits,
the same state, the same history but for wall-clock times. Runs take the rules of `RULES` in turn.
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
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fastbin import SearchConfig, checkpoint, run_search, runs
from fastbin.data import load_dataset

RULES: dict[str, dict[str, Any]] = {
    "hard-adam": {"estimator": "hard", "rule": "adam", "lr": 0.05},
    "sample-sgd": {"estimator": "sample", "rule": "sgd", "input_dropout": 0.2},
    "bop": {"rule": "bop", "gamma": 0.1, "threshold": 1e-3},
}


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the history without its wall-clock time."""
    return {key: value for key, value in record.items() if key != "seconds"}


def read(folder: Path) -> dict[str, Any]:
    """All that a run left, by path within its folder, but for wall-clock times."""
    left: dict[str, Any] = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            tensors, metadata = checkpoint.load(path)
            if "history" in metadata:
                metadata["history"] = [timeless(record) for record in metadata["history"]]
            left[name] = {n: (t.dtype, t.shape, t.numpy().tobytes()) for n, t in tensors.items()}, metadata
        elif name == runs.METRICS:
            left[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            left[name] = path.read_text()
    return left


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two folders hold the same run, and nothing beside it."""
    a, b = read(one), read(other)
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    assert not any(name.endswith(".tmp") for name in a), sorted(a)
    for name, left in a.items():
        assert left == b[name], f"{name} differs: {one}, {other}"


def start(config: SearchConfig, out: Path) -> int:
    """Begin or resume a search in a process of its own, forked from this one, which has imported all; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_search(
                "digits",
                config,
                out=out,
                resume=True,
                on_bits=lambda epoch, weights: runs.write_snapshot(out, epoch, weights, config, "digits"),
            )
            status = 0
        except BaseException as error:
            print(f"{out}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return child


def ended(child: int) -> bool:
    """Wait for a search's process: whether it came to its end, rather than being killed."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the search ended with {status}"
    return status == 0


def check_whole(out: Path) -> str:
    """Check what a killed search left, and say when it was killed."""
    for path in out.rglob("*.safetensors"):
        checkpoint.load(path)  # raises if it is not whole
    if any(out.rglob(".*.tmp")):
        return "within a write"
    if (out / runs.NETWORK).exists():
        return "after the network was written"
    return "between writes" if (out / runs.CHECKPOINT).exists() else "before the first checkpoint"


def kill_and_resume(config: SearchConfig, out: Path, length: float, generator: random.Random) -> list[str]:
    """One run; returns when each kill hit it."""
    moments: list[str] = []
    for _ in range(generator.randint(1, 3)):
        child = start(config, out)
        time.sleep(generator.uniform(0, length))
        os.kill(child, signal.SIGKILL)  # it is not waited for yet, so that the id is still its own
        if not ended(child):
            moments.append(check_whole(out))
        elif moments:
            return moments  # the kills before have let it go on so far that it was done sooner
        else:
            shutil.rmtree(out)  # it was faster than when it was left alone: not one of the killed
            return kill_and_resume(config, out, length, generator)
    assert ended(start(config, out))
    return moments


def main() -> int:
    """Kill and resume runs, and print how many, and when."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # no thread is started before a fork
    load_dataset("digits")  # imports what it takes
    generator, moments = random.Random(asked.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="fastbin-kill-") as folder:
        wholes: list[tuple[SearchConfig, Path, float]] = []
        for name, values in RULES.items():
            config, whole, began = (
                SearchConfig(hidden=(48, 32), epochs=8, **values),
                Path(folder, name),
                time.monotonic(),
            )
            assert ended(start(config, whole))
            wholes.append((config, whole, time.monotonic() - began))
        for number in range(asked.runs):
            config, whole, length = wholes[number % len(wholes)]
            killed = Path(folder, f"run{number}")
            moments.update(kill_and_resume(config, killed, length, generator))
            assert_same_run(whole, killed)
            shutil.rmtree(killed)
            if (number + 1) % 20 == 0:
                print(f"{number + 1} runs, {moments.total()} kills", flush=True)
    when = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    print(f"{asked.runs} runs, {moments.total()} kills ({when}): all ended as if never killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
