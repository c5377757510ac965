"""Files of networks and searches: what is written comes back, and what is damaged is refused by name."""

import errno
import json
import math
import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbin
from fastbin import BitMatrix, CheckpointError, SearchConfig, SearchResult, checkpoint, load_result
from fastbin.checkpoint import Reader
from fastbin.data import Standardizer
from fastbin.descent import Search
from fastbin.nn import WeightFreeNet
from fastbin.result import EpochRecord, read_result
from fastbin.search import run_search

CONFIG = SearchConfig(hidden=(5,), epochs=2, batch_size=8, validation=0.25, estimator="sample")
WIDTHS = [3, 5, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = ["no" if above else "yes" for above in x[:, 0] > 0]
    run_search((x, y), CONFIG, out=path)
    return path


def read_search(path):
    """All that a resumed search reads."""
    reader = Reader(path)
    result = read_result(reader)
    search = Search(CONFIG, WIDTHS)
    search.restore(reader)
    return result, search


READ = {"network.safetensors": load_result, "checkpoint.safetensors": read_search}


def test_round_trip(tmp_path):
    torch.manual_seed(0)
    net = WeightFreeNet([40, 33, 3], activation="tanh", norm="none", output_norm="layer", logit_scale=1.5)
    config = SearchConfig(
        hidden=(33,), activation="tanh", norm="none", output_norm="layer", logit_scale=1.5, epochs=1, validation=0
    )
    record = EpochRecord(1, 0.5, 0.75, None, None, [3, 4], [0.5, 0.25], 0.01, 1.0, 0.125)
    standardizer = Standardizer(torch.randn(40), torch.rand(40) + 0.5)
    result = SearchResult(net, standardizer, ("a", "ü\n", "\ud800"), config, [record], 1, "mine", 0.875)
    result.save(tmp_path / "net.safetensors")
    again = load_result(str(tmp_path / "net.safetensors"))
    assert again.net.weights() == net.weights() and again.net.widths == (40, 33, 3)
    assert (again.net.activation, again.net.norm, again.net.logit_scale) == ("tanh", "none", 1.5)
    assert again.net.output_norm == "layer"
    assert torch.equal(again.standardizer.mean, standardizer.mean)
    assert torch.equal(again.standardizer.scale, standardizer.scale)
    assert (again.labels, again.config, again.history) == (result.labels, config, [record])
    assert (again.best_epoch, again.data_name, again.test_accuracy) == (1, "mine", 0.875)
    x = torch.randn(6, 40)
    assert torch.equal(again.logits(x), result.logits(x))


def test_files_of_a_run(folder):
    result, search = read_search(folder / "checkpoint.safetensors")
    found = load_result(folder / "network.safetensors")
    assert found.net.weights() == result.net.weights() and found.history == result.history
    assert found.labels == ("no", "yes")
    assert search.states[0].step.item() == 2 * math.ceil(30 / 8)
    assert json.loads((folder / "config.json").read_text())["hidden"] == [5]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in result.history]
    assert sorted(os.listdir(folder)) == [
        ".lock", "checkpoint.safetensors", "config.json", "metrics.jsonl", "network.safetensors"
    ]  # fmt: skip


def test_loading_runs_no_code(folder, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for module, name in [(torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")]:
        monkeypatch.setattr(module, name, refuse)
    for name, read in READ.items():
        read(folder / name)
    load_result(folder / "network.safetensors").save(tmp_path / "again.safetensors")
    monkeypatch.undo()
    torch.save({"words": torch.zeros(2)}, tmp_path / "pickled.safetensors")
    with pytest.raises(CheckpointError, match="pickled"):
        load_result(tmp_path / "pickled.safetensors")


# Damage


def same(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


@pytest.mark.parametrize("name", READ)
def test_truncation_at_every_byte(folder, tmp_path, name):
    whole = (folder / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=name):
            READ[name](path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=name):
        READ[name](path)


@pytest.mark.parametrize("name", READ)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes(folder, tmp_path_factory, name, data):
    whole = bytearray((folder / name).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3, unique=True)):
        whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / f"flipped.{name}"
    path.write_bytes(whole)
    try:
        READ[name](path)
    except CheckpointError as error:
        message = str(error)
    else:
        message = f"{path} is as it was"  # white space in the header
        assert same(checkpoint.load(path), checkpoint.load(folder / name))
    assert str(path) in message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.safetensors"
    for content in (junk, len(junk).to_bytes(8, "little") + junk):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="junk"):
            load_result(path)


def test_files_of_others(tmp_path):
    path = tmp_path / "other.safetensors"
    save = safetensors.torch.save_file
    save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"no fastbin checkpoint.*format=None"):
        load_result(path)
    save({"a": torch.zeros(1)}, path, {"format": "fastbin", "version": "99", "metadata": "{}"})
    with pytest.raises(CheckpointError, match="version '99', this fastbin reads 1"):
        load_result(path)
    for metadata in ("[]", "3", "{", '{"a": ' * 20_000, "9" * 5000):
        save({"a": torch.zeros(1)}, path, {"format": "fastbin", "version": "1", "metadata": metadata})
        with pytest.raises(CheckpointError, match="other"):
            load_result(path)
    save({"a": torch.zeros(1)}, path, {"format": "fastbin", "version": "1"})
    with pytest.raises(CheckpointError, match=r"other.*header"):
        load_result(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_result(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError):
        load_result(tmp_path)


def test_huge_claims(tmp_path):
    # A header that claims terabytes, and one that claims more than there is of itself.
    claim = {"layers.0.words": {"dtype": "I32", "shape": [2**30, 2**12], "data_offsets": [0, 2**44]}}
    header = json.dumps({"__metadata__": {"format": "fastbin", "version": "1", "metadata": "{}"}, **claim}).encode()
    for length in (len(header), 2**40, 2**63, 2**64 - 1):
        (tmp_path / "huge.safetensors").write_bytes(length.to_bytes(8, "little") + header)
        with pytest.raises(CheckpointError, match="huge"):
            load_result(tmp_path / "huge.safetensors")


def tail_bit(t):
    words = t.clone()
    words[-1, -1] |= 1 << 31
    return words


NAN, INF = math.nan, math.inf
TENSORS = [
    ("layers.0.words", tail_bit, "bits set past column 3"),
    ("layers.0.words", lambda t: torch.cat([t, t], 1), r"\[5, 1\], is .*\[5, 2\]"),
    ("layers.0.words", lambda t: t[:-1], r"\[5, 1\], is .*\[4, 1\]"),
    ("layers.0.words", lambda t: t.flatten(), r"\[5, 1\], is .*\[5\]"),
    ("layers.1.words", lambda t: t.float(), "int32 .*float32"),
    ("layers.1.words", lambda t: t.long(), "int32 .*int64"),
    ("layers.1.words", None, "missing"),
    ("standardizer.mean", lambda t: t * NAN, "not finite"),
    ("standardizer.mean", lambda t: t.double(), "float32 .*float64"),
    ("standardizer.mean", None, "missing"),
    ("standardizer.scale", lambda t: t * NAN, "not finite"),
    ("standardizer.scale", lambda t: t * INF, "not finite"),
    ("standardizer.scale", lambda t: t * 0, "positive"),
    ("standardizer.scale", lambda t: -t, "positive"),
    ("standardizer.scale", lambda t: t[:2], r"\[3\], is .*\[2\]"),
    ("search.0.words", tail_bit, "bits set past column 3"),
    ("search.1.words", lambda t: t[:, :0], r"\[2, 1\], is .*\[2, 0\]"),
    ("search.0.scores", lambda t: t * NAN, "not finite"),
    ("search.0.scores", lambda t: t.T, r"\[5, 3\], is .*\[3, 5\]"),
    ("search.1.scores", None, "missing"),
    ("search.1.buffers.0", lambda t: t * INF, "not finite"),
    ("search.1.buffers.1", None, "missing"),
    ("search.1.step", lambda t: t.int(), "int64 .*int32"),
    ("search.1.step", lambda t: t[0], r"\[1\], is .*\[\]"),
    ("search.1.step", lambda t: -t, "at least 0, is -8"),
]


@pytest.mark.parametrize(("name", "damage", "message"), TENSORS)
def test_tensors_that_do_not_fit(folder, tmp_path, name, damage, message):
    tensors, metadata = checkpoint.load(folder / "checkpoint.safetensors")
    if damage is None:
        del tensors[name]
    else:
        tensors[name] = damage(tensors[name])
    checkpoint.save(tmp_path / "damaged.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=rf"(?s)damaged\.safetensors.*{name}.*{message}"):
        read_search(tmp_path / "damaged.safetensors")


ENTRIES = [
    ("widths", [3]), ("widths", [3, 5, 3]), ("widths", [3, 6, 2]), ("widths", [40, 5, 2]), ("widths", [3, 5, 5, 2]),
    ("widths", [3, -5, 2]), ("widths", [3, 0, 2]), ("widths", [3, 5.0, 2]), ("widths", ["3", "5", "2"]),
    ("widths", [3, 2**70, 2]), ("widths", 3), ("widths", None),
    ("labels", ["no"]), ("labels", ["no", "no"]), ("labels", ["no", None]), ("labels", ["no", [1]]), ("labels", {}),
    ("config", None), ("config", []), ("config", {"depth": 1}), ("config", {"hidden": [5], "rule": "lion"}),
    ("config", {"hidden": 5}), ("config", {"hidden": [5], "tau": "1"}), ("config", {"hidden": [5], "betas": [0.9]}),
    ("config", {"hidden": [5], "lr": 10**400}), ("config", {"hidden": [6]}), ("config", {"hidden": [5], "tau": 0}),
    ("history", None), ("history", {}), ("history", [1]), ("history", [{"epoch": 1}]), ("history", [[]]),
    ("best_epoch", None), ("best_epoch", "1"), ("best_epoch", -1), ("best_epoch", 3), ("best_epoch", 1.0),
    ("data_name", None), ("data_name", 3),
    ("test_accuracy", "high"), ("test_accuracy", [0.5]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ENTRIES, ids=lambda v: str(v)[:40])
def test_metadata_that_does_not_fit(folder, tmp_path, key, value):
    tensors, metadata = checkpoint.load(folder / "network.safetensors")
    checkpoint.save(tmp_path / "damaged.safetensors", tensors, {**metadata, key: value})
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors") as caught:
        load_result(tmp_path / "damaged.safetensors")
    if key not in ("config", "history"):
        named = (key, "layers.", "labels") if key == "widths" else (key,)  # widths decide what fits
        assert any(name in str(caught.value) for name in named)
    del metadata[key]
    checkpoint.save(tmp_path / "damaged.safetensors", tensors, metadata)
    if key != "test_accuracy":  # it may be unset
        with pytest.raises(CheckpointError, match=rf"damaged\.safetensors.*{key}"):
            load_result(tmp_path / "damaged.safetensors")


RECORDS = [
    ("epoch", 2), ("epoch", "1"), ("train_loss", "low"), ("train_loss", None), ("train_accuracy", []),
    ("validation_loss", None), ("validation_loss", "low"), ("validation_accuracy", None), ("flips", 3),
    ("flips", [1, 2, 3]), ("density", ["a", "b"]), ("lr", None), ("tau", {}), ("seconds", "long"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), RECORDS)
def test_records_that_do_not_fit(folder, tmp_path, key, value):
    tensors, metadata = checkpoint.load(folder / "network.safetensors")
    metadata["history"][0][key] = value
    checkpoint.save(tmp_path / "damaged.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors.*history"):
        load_result(tmp_path / "damaged.safetensors")


# Writing


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(folder, tmp_path, monkeypatch, function):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    result = load_result(folder / "network.safetensors")
    path = tmp_path / "net.safetensors"
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        result.save(path)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    result.save(path)
    old = path.read_bytes()
    monkeypatch.setattr(os, function, fail)
    other = SearchResult(WeightFreeNet(WIDTHS), result.standardizer, result.labels, result.config)
    with pytest.raises(OSError, match="No space"):
        other.save(path)
    assert os.listdir(tmp_path) == ["net.safetensors"] and path.read_bytes() == old


def test_what_a_killed_write_left_is_no_hindrance(folder, tmp_path):
    (tmp_path / ".net.safetensors.tmp").write_bytes(b"half")
    result = load_result(folder / "network.safetensors")
    result.save(tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_places_that_cannot_be_written(folder, tmp_path):
    result = load_result(folder / "network.safetensors")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "net.safetensors", tmp_path / "no" / "net.safetensors"):
        with pytest.raises(OSError, match=r"net\.safetensors"):
            result.save(path)
    assert (tmp_path / "file").read_text() == ""


def test_metadata_without_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"loss": NAN})
    assert os.listdir(tmp_path) == []


def test_names_at_the_top():
    assert fastbin.load_result is load_result and issubclass(CheckpointError, RuntimeError)
    assert BitMatrix is fastbin.BitMatrix
