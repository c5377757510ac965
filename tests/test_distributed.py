"""One search by two processes: against one process, against each other, and when one of them dies.

Stated tolerance: after three epochs of four steps, scores lie within 1/100 of their layer's largest move of those that one
process has, whose sums have another order (1/10 where products are rounded to bfloat16).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from fastbin import checkpoint, run_search
from fastbin.cli import main
from fastbin.descent import Search
from fastbin.distributed import VARIABLES, Ranks
from fastbin.result import load_result

SHARDED = [(name, shard) for name in ranks.SETTINGS for shard in ranks.SHARDS if (name, shard) != ("soft", "rows")]
FASTBIN = str(Path(sys.executable).with_name("fastbin"))


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def ours(err):
    """What fastbin, and not torchrun, has to say."""
    return [line for line in err.splitlines() if line.startswith("fastbin: ")]


class Stopped(Exception):
    pass


def stop(record):
    raise Stopped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What tests/ranks.py left."""
    folder = tmp_path_factory.mktemp("ranks")
    for shard in ranks.SHARDS:  # a run that one process began
        with pytest.raises(Stopped):
            run_search(ranks.blobs(), ranks.config("sgd"), out=folder / f"begun-{shard}", on_epoch=stop)
    process = torchrun(ranks.__file__, folder)
    _, err = process.communicate(timeout=300)
    assert (folder / "failed").exists(), err
    (folder / "returned").write_text(str(process.returncode))
    (folder / "err").write_text(err)
    return folder


def facts(folder, name):
    first, second = (json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    return first


def scores_of(path):
    tensors, _ = checkpoint.load(path)
    return [t for name, t in sorted(tensors.items()) if name.startswith("search.") and name.endswith("scores")]


@pytest.mark.parametrize(("name", "shard"), [*SHARDED, *(("digits", shard) for shard in ranks.SHARDS)])
def test_all_ranks_return_what_the_first_one_writes(folder, name, shard):
    found = facts(folder, f"{name}-{shard}")
    written = load_result(folder / f"{name}-{shard}" / "network.safetensors")
    assert [w.words.tolist() for w in written.net.weights()] == found["words"]
    lines = (folder / f"{name}-{shard}" / "metrics.jsonl").read_text().splitlines()
    assert [{**json.loads(line), "seconds": 0} for line in lines] == found["history"]
    assert (written.test_accuracy, written.best_epoch) == (found["test"], found["best"])


@pytest.mark.parametrize(("name", "shard"), SHARDED)
def test_ranks_search_as_one_process_does(folder, tmp_path, name, shard):
    config = ranks.config(name)
    alone = run_search(ranks.blobs(), config, out=tmp_path)
    shared = load_result(folder / f"{name}-{shard}" / "network.safetensors")
    pairs = list(zip(alone.history, shared.history, strict=True))
    if (name, shard) == ("sample", "rows"):  # other bits are drawn
        assert all(a.train_loss == pytest.approx(b.train_loss, rel=0.5) for a, b in pairs)
        return
    for a, b in pairs:
        assert b.train_loss == pytest.approx(a.train_loss, rel=0.05 if name == "bfloat16" else 1e-3)
        assert b.validation_loss == pytest.approx(a.validation_loss, rel=0.05 if name == "bfloat16" else 1e-3)
        assert b.train_accuracy == pytest.approx(a.train_accuracy, abs=2.5 / 49)
        assert sum(b.flips) == pytest.approx(sum(a.flips), abs=5 if name == "bfloat16" else 1)
    mine, theirs = (scores_of(f / "checkpoint.safetensors") for f in (tmp_path, folder / f"{name}-{shard}"))
    assert len(mine) == (0 if name == "bop" else len(config.hidden) + 1)
    widths = [8, *config.hidden, 3]
    for a, b, start in zip(mine, theirs, Search(config, widths).scores, strict=name != "bop"):
        moved = float((a - start).abs().max())
        assert moved > 0 and float((a - b).abs().max()) < moved / (10 if name == "bfloat16" else 100)


@pytest.mark.parametrize("shard", ranks.SHARDS)
def test_another_number_of_processes_may_go_on(folder, tmp_path, shard):
    whole = run_search(ranks.blobs(), ranks.config("sgd"), out=tmp_path / "whole")
    begun = facts(folder, f"begun-{shard}")
    assert begun["history"][0]["train_loss"] == whole.history[0].train_loss and len(begun["history"]) == 3
    paths = (tmp_path / "whole", folder / f"begun-{shard}")
    for a, b in zip(*(scores_of(path / "checkpoint.safetensors") for path in paths), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    shutil.copytree(folder / f"adam-{shard}", tmp_path / "adam")
    again = run_search(ranks.blobs(), ranks.BASE, out=tmp_path / "adam", resume=True)
    assert [w.words.tolist() for w in again.net.weights()] == facts(folder, f"adam-{shard}")["words"]


def test_a_rank_that_fails_ends_all(folder):
    assert int((folder / "returned").read_text()) == 1
    err = (folder / "err").read_text()
    path = folder / "failed" / "checkpoint.safetensors"
    told = [line for line in err.splitlines() if "RankError: " in line]
    assert told == [
        f"[rank0]: fastbin.distributed.RankError: rank 0 of 2 failed: no more after epoch 1; resume from {path}"
    ]
    assert "[rank1]" not in err
    assert len(load_result(path).history) == 1


def test_ranks_that_differ_are_told(folder):
    assert (folder / "data.error").read_text() == "ranks 0 and 1 of 2 differ in their data, configuration or checkpoint"
    assert (folder / "soft.error").read_text() == "estimator soft has dense weights: shard 'batch', got 'rows'"


def rank_of(torchrun, rank):
    """The process id of a rank."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    (child,) = (c for c in children if f"RANK={rank}" in Path(f"/proc/{c}/environ").read_text().split("\0"))
    return int(child)


@pytest.mark.parametrize(("shard", "killed"), [("batch", 1), ("rows", 0)])
def test_a_rank_that_dies_ends_all_and_the_search_can_be_resumed(folder, tmp_path, shard, killed):
    c = ranks.DIGITS
    flags = [
        "--hidden",
        *c.hidden,
        "--epochs",
        c.epochs,
        "--batch-size",
        c.batch_size,
        "--shard",
        shard,
        "--out",
        tmp_path,
    ]
    process = torchrun(FASTBIN, "search", "digits", *flags)
    while not process.stdout.readline().startswith("epoch  3/30"):
        assert process.poll() is None, process.stderr.read()
    os.kill(rank_of(process, killed), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    path = tmp_path / "checkpoint.safetensors"
    assert process.returncode == 1
    assert ours(err) == [f"fastbin: error: rank {killed} of 2 died; resume from {path}"]
    assert 3 <= len(load_result(path).history) < 30
    process = torchrun("-m", "fastbin.cli", "search", "digits", "--shard", shard, "--out", tmp_path, "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert ours(err) == [] and out.count("test accuracy") == 1
    whole, resumed = (checkpoint.load(f / "checkpoint.safetensors")[0] for f in (folder / f"digits-{shard}", tmp_path))
    assert whole.keys() == resumed.keys() and all(torch.equal(t, resumed[name]) for name, t in whole.items())


STUCK = """
import ctypes, os, signal, sys, types
from pathlib import Path
from torch.distributed import TCPStore
from fastbin import distributed

distributed._BEAT, distributed._SILENCE, distributed._GRACE = 0.1, 1.0, 1.0
server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(server.port))
watch = distributed._Watch(types.SimpleNamespace(rank=0, size=2), Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGTERM)
while True:
    ctypes.CDLL(None).sleep(60)  # as if it waited for a GPU
"""


def test_a_rank_that_waits_for_ever_ends_when_it_is_told_to(tmp_path):
    process = subprocess.run([sys.executable, "-c", STUCK, tmp_path], capture_output=True, text=True, timeout=60)
    line = f"fastbin: error: rank 1 of 2 died; there is no checkpoint yet in {tmp_path}\n"
    assert (process.returncode, process.stderr) == (1, line)


# Without ranks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard": "batch"}, "shard needs several processes, as torchrun starts them: RANK is not set"),
        ({"shard": "columns"}, "shard must be one of batch, rows, got 'columns'"),
        ({"shard": "rows", "on_step": print}, "a search shared by processes has no on_step, got shard 'rows'"),
        ({"shard": "rows", "population": 2}, "a population is not shared by processes, got shard 'rows'"),
    ],
)
def test_what_cannot_be_shared(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        run_search(ranks.blobs(), **arguments)


def test_a_shard_without_torchrun_is_bad_usage(capfd):
    assert main(["search", "digits", "--shard", "rows"]) == 2
    assert capfd.readouterr().err == (
        "fastbin: error: shard needs several processes, as torchrun starts them: RANK is not set\n"
    )


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="device must be 'cuda', of which each rank takes its own, got 'cuda:1'"):
        Ranks("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="each rank needs a GPU of its own: this machine has 2, and a rank 2"):
        Ranks("cuda")
