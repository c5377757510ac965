"""Event files for TensorBoard, and a user's own callback in their place."""

import json
import sys

import pytest
from test_search import blobs

from fastbin import SearchConfig, run_search
from fastbin.cli import main
from fastbin.result import load_result
from fastbin.tensorboard import events

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
CONFIG = SearchConfig(hidden=(12, 10), epochs=5, batch_size=16, validation=0.2)


class Stopped(Exception):
    pass


def stop_after(epoch, then=lambda record: None):
    def on_epoch(record):
        then(record)
        if record.epoch == epoch:
            raise Stopped

    return on_epoch


def read(folder):
    """Steps and values of each scalar."""
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def expected(history):
    """Those of a history, in float32."""
    values = {"rule/lr": "lr", "rule/tau": "tau", "seconds": "seconds"}
    values |= {f"{what}/{part}": f"{part}_{what}" for what in ("loss", "accuracy") for part in ("train", "validation")}
    named = {name: [(r.epoch, getattr(r, field)) for r in history] for name, field in values.items()}
    for i in range(len(history[0].flips)):
        named[f"flips/layer {i + 1}"] = [(r.epoch, r.flips[i]) for r in history]
        named[f"density/layer {i + 1}"] = [(r.epoch, r.density[i]) for r in history]
    return {
        name: [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in line]
        for name, line in named.items()
        if line[0][1] is not None
    }


@pytest.mark.parametrize("validation", [0.2, 0.0])
def test_events_are_the_history(tmp_path, validation):
    config = SearchConfig(hidden=(12,), epochs=3, batch_size=16, validation=validation)
    with events(tmp_path) as on_epoch:
        result = run_search(blobs(), config, on_epoch=on_epoch)
    assert read(tmp_path) == expected(result.history)
    assert ("loss/validation" in read(tmp_path)) == (validation > 0)


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    with pytest.raises(Stopped), events(tmp_path) as on_epoch:
        run_search(blobs(), CONFIG, out=tmp_path, on_epoch=stop_after(2, on_epoch))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(Stopped), events(tmp_path) as on_epoch:
        run_search(blobs(), CONFIG, out=tmp_path, resume=True, on_epoch=stop_after(4, on_epoch))
    (tmp_path / "checkpoint.safetensors").write_bytes(before)  # as if the computer had lost what came after
    with events(tmp_path) as on_epoch:
        result = run_search(blobs(), CONFIG, out=tmp_path, resume=True, on_epoch=on_epoch)
    assert [epoch for epoch, _ in read(tmp_path)["loss/train"]] == [1, 2, 3, 4, 5]
    assert read(tmp_path) == expected(result.history)


def test_from_the_command_line(tmp_path, capfd):
    flags = ["--hidden", "8", "--epochs", "2", "--out", str(tmp_path)]
    assert main(["search", "digits", "--tensorboard", *flags]) == 0
    assert capfd.readouterr().out.count("train loss") == 2
    assert read(tmp_path) == expected(load_result(tmp_path / "network.safetensors").history)


def test_not_of_a_population(tmp_path, capfd):
    assert main(["search", "digits", "--tensorboard", "--population", "2", "--out", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err == "fastbin: error: a population keeps no event files: leave out --tensorboard\n"


def test_without_the_extra(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["search", "digits", "--tensorboard", "--out", str(tmp_path / "run")]) == 1
    err = capfd.readouterr().err
    assert err.startswith("fastbin: error: event files need the package tensorboard (")
    assert err.endswith("): pip install 'fastbin-nets[tensorboard]'\n")
    assert not (tmp_path / "run").exists()


# A callback of one's own


def test_an_own_callback(tmp_path):
    class Log:
        def __init__(self):
            self.lines = []

        def __call__(self, record):
            self.lines.append(json.dumps(record.to_json()))
            # Whatever it does, what it sees is on the disk already.
            assert len(load_result(tmp_path / "run" / "checkpoint.safetensors").history) == record.epoch

    log = Log()
    result = run_search(blobs(), CONFIG, out=tmp_path / "run", on_epoch=log)
    assert log.lines == [json.dumps(record.to_json()) for record in result.history]
    assert log.lines == (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()


def test_an_own_callback_that_raises(tmp_path):
    with pytest.raises(Stopped):
        run_search(blobs(), CONFIG, out=tmp_path, on_epoch=stop_after(3))
    assert len(load_result(tmp_path / "checkpoint.safetensors").history) == 3
    resumed = run_search(blobs(), CONFIG, out=tmp_path, resume=True)
    assert resumed.net.weights() == run_search(blobs(), CONFIG).net.weights()
