"""A sweep on a cluster of two nodes, made on this machine, that loses a worker and a node on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading

import pytest
import torch

ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'fastbin-nets[cluster]'")

from ray import cluster_utils  # noqa: E402

from fastbin import load_result, runs  # noqa: E402
from fastbin.cli import main  # noqa: E402
from fastbin.sweep import Cluster, sweep  # noqa: E402

# Ray's own, in this process and at the end of its workers.
pytestmark = pytest.mark.filterwarnings("ignore")

SPACE = """
data = "digits"
method = "grid"
[config]
hidden = [48]
epochs = 25
[space]
seed = [0, 1]
lr = [0.01, 0.03]
"""


@pytest.fixture
def two_nodes():
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


def workers():
    """Process numbers of the workers that run trials."""
    psutil = pytest.importorskip("psutil", reason="finds the workers to kill")
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::") and "ImplicitFunc" in title and os.getpgid(process.info["pid"]):
            found.append(process.info["pid"])
    return found


def test_no_trial_is_lost_when_a_worker_and_a_node_die(two_nodes, tmp_path):
    cluster, other = two_nodes
    space = tmp_path / "space.toml"
    space.write_text(SPACE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = sweep(space, tmp_path / "here")
    torch.set_num_threads(threads)
    told, killed, removed = [], [], threading.Event()

    def remove():
        cluster.remove_node(other, allow_graceful=False)
        removed.set()

    def tell(progress):
        told.append(progress)
        epochs = [p for p in told if p.record is not None]
        if len(epochs) >= 6 and not killed:
            killed.extend(workers()[:1])
            os.kill(killed[0], signal.SIGKILL)
        if len(epochs) >= 30 and not removed.is_set() and not any(t.name == "remove" for t in threading.enumerate()):
            threading.Thread(target=remove, name="remove").start()

    out = tmp_path / "out"
    outcomes = sweep(space, out, cluster=Cluster(cluster.address), tell=tell)
    assert killed and removed.wait(60)
    assert [o.number for o in outcomes] == [0, 1, 2, 3] and {o.status for o in outcomes} == {"done"}
    untimed = [[dataclasses.replace(o, seconds=0.0) for o in found] for found in (outcomes, here)]
    assert untimed[0] == untimed[1]
    assert [p.number for p in told if p.outcome is not None].count(0) == 1
    assert sorted(p.number for p in told if p.outcome is not None) == [0, 1, 2, 3]  # each came to its end once
    for o in outcomes:
        networks = [load_result(tmp_path / where / o.folder / runs.NETWORK) for where in ("out", "here")]
        assert networks[0].net.weights() == networks[1].net.weights()
        lines = (out / o.folder / runs.METRICS).read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 26))
    # All is there: a resumed sweep runs nothing.
    before = {path: path.stat().st_mtime_ns for path in out.glob("trial*/*")}
    assert main(["sweep", str(space), "--out", str(out), "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("trial*/*")} == before
