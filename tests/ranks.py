"""What the tests run in several processes: ``torchrun tests/ranks.py DIR``. Each writes what it has to DIR."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist

from fastbin import SearchConfig, run_search
from fastbin.distributed import RankError

SHARDS = ("batch", "rows")
# 61 samples, of which 49 train: the last batch has one. Layers have 13, 9 and 3 rows.
BASE = SearchConfig(hidden=(13, 9), epochs=3, batch_size=16, validation=0.2, lr=0.01, init_std=0.1, output_norm="none")
SETTINGS = {
    "adam": {},
    "thin": {"rule": "sgd", "lr": 1.0, "hidden": (13, 1), "norm": "none"},
    "sgd": {"rule": "sgd", "lr": 1.0, "norm": "none"},
    "bop": {"rule": "bop", "gamma": 0.1, "threshold": 1e-3},
    "step": {"activation": "step"},
    "dropout": {"input_dropout": 0.3, "hidden": ()},
    "bfloat16": {"activations": "bfloat16"},
    "sample": {"estimator": "sample"},
    "soft": {"estimator": "soft"},
}
DIGITS = SearchConfig(hidden=(33, 17), epochs=30, batch_size=256)


def config(name):
    return replace(BASE, **SETTINGS[name])


def blobs(samples=61, shift=0.0):
    rng = np.random.default_rng(0)
    y = np.arange(samples) % 3
    return rng.normal(0, 40, (3, 8))[y] + rng.normal(100 + shift, 15, (samples, 8)), y


def tell(folder, name, result):
    words = [w.words.tolist() for w in result.net.weights()]
    history = [{**record.to_json(), "seconds": 0} for record in result.history]
    rank = dist.get_rank()
    facts = {"words": words, "history": history, "test": result.test_accuracy, "best": result.best_epoch}
    (folder / f"{name}.rank{rank}.json").write_text(json.dumps(facts))


def fail(record):
    raise RuntimeError(f"no more after epoch {record.epoch}")


def error_of(data, c):
    try:
        run_search(data, c, shard="rows")
    except (ValueError, RankError) as error:
        return str(error)
    raise AssertionError("nothing was wrong")


def main(folder):
    for shard in SHARDS:
        for name in SETTINGS:
            if (shard, name) != ("rows", "soft"):
                result = run_search(blobs(), config(name), shard=shard, out=folder / f"{name}-{shard}")
                tell(folder, f"{name}-{shard}", result)
        tell(folder, f"digits-{shard}", run_search("digits", DIGITS, shard=shard, out=folder / f"digits-{shard}"))
        result = run_search(blobs(), config("sgd"), shard=shard, out=folder / f"begun-{shard}", resume=True)
        tell(folder, f"begun-{shard}", result)
    for name, data, c in (("data", blobs(shift=dist.get_rank()), BASE), ("soft", blobs(), config("soft"))):
        with contextlib.suppress(SystemExit):  # the other one tells
            (folder / f"{name}.error").write_text(error_of(data, c))
    run_search(blobs(), BASE, shard="batch", out=folder / "failed", on_epoch=fail)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
