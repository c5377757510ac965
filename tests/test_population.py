"""A population of searches: what each member is, what halving leaves, and what a stopped one goes on with."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import fastbin.population
import fastbin.result
import fastbin.run
from fastbin import RunFolderError, SearchConfig, SearchError, run_search, runs
from fastbin.backprop import _whole_vectors, backprop
from fastbin.bits import BitMatrix
from fastbin.cli import main
from fastbin.data import load_dataset
from fastbin.nn import Perceptron
from fastbin.spectra.files import find_networks

SMALL = {"hidden": (12, 10), "epochs": 3, "batch_size": 16, "validation": 0.2}


def blobs(samples=60, features=8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % 3
    return rng.normal(0, 1, (3, features))[y] + rng.normal(0, 1, (samples, features)), y


def untimed(result):
    return [dataclasses.replace(record, seconds=0.0) for record in result.history]


def assert_same(mine, alone):
    assert mine.config == alone.config and mine.best_epoch == alone.best_epoch and untimed(mine) == untimed(alone)
    assert mine.net.weights() == alone.net.weights() and mine.test_accuracy == alone.test_accuracy
    for name in ("mean", "scale"):
        assert torch.equal(getattr(mine.standardizer, name), getattr(alone.standardizer, name))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Sizes that fill whole vectors and threads' shares, and sizes that do not: torch's gelu has a formula for each.
FORMS = {
    "gelu, whole vectors": {"hidden": (64, 128), "batch_size": 64},
    "gelu, parts of vectors": {"hidden": (33, 17), "batch_size": 50, "estimator": "sample"},
    "gelu, threads with parts": {"hidden": (301,), "batch_size": 130, "norm": "none"},
    "bfloat16, dropout": {"hidden": (40, 24), "activations": "bfloat16", "input_dropout": 0.2},
    "step, bop": {"hidden": (40, 24), "activation": "step", "rule": "bop"},
    "tanh, sgd": {"hidden": (33,), "activation": "tanh", "rule": "sgd", "tau": 0.5, "clip": 1.0},
    "relu, all for training": {"hidden": (7,), "activation": "relu", "validation": 0.0, "density": 0.2},
}


@pytest.mark.parametrize("form", FORMS)
def test_members_equal_the_searches_with_their_seeds(form, threads):
    config = SearchConfig(epochs=2, seed=7, **FORMS[form])
    together = run_search("digits", config, population=3)
    assert len(together) == 3
    for p, mine in enumerate(together):
        assert_same(mine, run_search("digits", dataclasses.replace(config, seed=7 + p)))
    first, second = (result.net.weights()[0] for result in together[:2])
    assert first != second


def test_members_have_settings_of_their_own():
    base = SearchConfig(**SMALL, estimator="sample", rule="sgd")
    changes = [
        {},
        {"lr": 0.3, "lr_schedule": "constant"},
        {"tau": 0.5, "tau_end": 0.01, "tau_schedule": "linear"},
        {"density": 0.1, "seed": 3},
        {"momentum": 0.5, "clip": 0.4, "init_std": 1.0},
        {"input_dropout": 0.5},
        {"patience": 1},
    ]
    configs = [dataclasses.replace(base, **change) for change in changes]
    for mine, config in zip(run_search(blobs(), population=configs), configs, strict=True):
        assert_same(mine, run_search(blobs(), config))


def test_members_share_data_that_has_a_test_part_and_all_that_is_given():
    dataset = load_dataset("breast_cancer", seed=5)
    config = SearchConfig(**SMALL)
    together = run_search(dataset, config, population=2)
    for p, mine in enumerate(together):
        assert_same(mine, run_search(dataset, dataclasses.replace(config, seed=p)))


def test_samples_that_are_evaluated_in_blocks(monkeypatch):
    monkeypatch.setattr(fastbin.result, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(fastbin.population, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(fastbin.population, "_EVALUATION_FLOATS", 7 * 12 * 2)  # two members at a time
    config = SearchConfig(**SMALL)
    for p, mine in enumerate(run_search(blobs(), config, population=5)):
        assert_same(mine, run_search(blobs(), dataclasses.replace(config, seed=p)))


def test_gelu_depends_on_where_an_element_lies_so_that_the_care_is_needed():
    z = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([torch.nn.functional.gelu(part) for part in z.split(1)])
    if torch.equal(alone, torch.nn.functional.gelu(z)):
        pytest.skip("this torch has one formula for all elements")
    assert _whole_vectors(4096) and not _whole_vectors(4097)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "step"])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_a_pass_of_a_population_is_that_of_each_member(activation, norm):
    net = Perceptron([33, 20, 11, 4], activation, norm, 1.7)
    generator = torch.Generator().manual_seed(1)
    weights = [
        BitMatrix.pack(torch.randn(3, n, m, generator=generator), threshold=0.0)
        for m, n in ((33, 20), (20, 11), (11, 4))
    ]
    x, y = torch.randn(3, 9, 33, generator=generator), torch.randint(4, (3, 9), generator=generator)
    together = backprop(net, weights, x, y)
    for p in range(3):
        alone = backprop(net, [BitMatrix(w.words[p], w.cols) for w in weights], x[p], y[p])
        assert torch.equal(together.loss[p], alone.loss) and torch.equal(together.logits[p], alone.logits)
        assert all(torch.equal(a[p], b) for a, b in zip(together.grads, alone.grads, strict=True))


def test_the_better_half_goes_on():
    config = SearchConfig(**{**SMALL, "epochs": 6})
    full = run_search(blobs(), config, population=5)
    halved = run_search(blobs(), config, population=5, halving=[1, 3])
    ranks = sorted(range(5), key=lambda p: full[p].history[0].standing, reverse=True)
    after_one = ranks[:3]
    after_three = sorted(sorted(after_one), key=lambda p: full[p].history[2].standing, reverse=True)[:2]
    expected = [6 if p in after_three else 3 if p in after_one else 1 for p in range(5)]
    assert [len(result.history) for result in halved] == expected
    for mine, whole, epochs in zip(halved, full, expected, strict=True):
        assert untimed(mine) == untimed(whole)[:epochs]
        assert mine.test_accuracy is None  # these data have no test part


class Stopped(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_stopped_population_goes_on_as_if_it_never_stopped(tmp_path, epoch):
    config = SearchConfig(**{**SMALL, "epochs": 5}, estimator="sample", patience=3)
    whole = run_search(blobs(), config, population=4, halving=[2], out=tmp_path / "whole")

    def stop(records):
        if max(record.epoch for record in records.values()) == epoch:
            raise Stopped

    with pytest.raises(Stopped):
        run_search(blobs(), config, population=4, halving=[2], out=tmp_path / "run", on_epoch=stop)
    again = run_search(blobs(), config, population=4, halving=[2], out=tmp_path / "run", resume=True)
    for mine, other in zip(again, whole, strict=True):
        assert_same(mine, other)


def test_members_that_were_killed_between_two_checkpoints_catch_up(tmp_path, monkeypatch):
    config = SearchConfig(**SMALL)
    whole = run_search(blobs(), config, population=4)
    calls = []

    def failing(folder, record):
        calls.append(folder)
        if len(calls) == 6:  # the second member's second epoch
            raise Stopped
        runs_append(folder, record)

    runs_append = fastbin.run.append_metrics
    monkeypatch.setattr(fastbin.run, "append_metrics", failing)
    with pytest.raises(Stopped):
        run_search(blobs(), config, population=4, out=tmp_path)
    monkeypatch.undo()
    again = run_search(blobs(), config, population=4, out=tmp_path, resume=True)
    for p, (mine, other) in enumerate(zip(again, whole, strict=True)):
        assert_same(mine, other)
        lines = (runs.member_folder(tmp_path, p) / runs.METRICS).read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_member_left_by_halving_can_go_on_alone(tmp_path):
    config = SearchConfig(**SMALL)
    results = run_search(blobs(), config, population=2, halving=[1], out=tmp_path)
    (left,) = (p for p, result in enumerate(results) if len(result.history) == 1)
    alone = dataclasses.replace(config, seed=left)
    resumed = run_search(blobs(), alone, out=runs.member_folder(tmp_path, left), resume=True)
    assert_same(resumed, run_search(blobs(), alone))


def test_folders(tmp_path):
    config = SearchConfig(**SMALL)
    results = run_search(blobs(), config, population=2, out=tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        ".lock", "member0000", "member0001", "population.json",
    ]  # fmt: skip
    found = find_networks(tmp_path / "two")
    assert [network.seed for network in found] == [0, 1]
    assert [network.layers for network in found] == [result.net.weights() for result in results]
    assert runs.read_config(tmp_path / "two") == config
    with pytest.raises(RunFolderError, match="holds a run already"):
        run_search(blobs(), config, population=2, out=tmp_path / "two")
    with pytest.raises(RunFolderError, match="holds another population"):
        run_search(blobs(), config, population=3, out=tmp_path / "two", resume=True)
    with pytest.raises(RunFolderError, match="holds a population of searches"):
        run_search(blobs(), config, out=tmp_path / "two")
    run_search(blobs(), config, out=tmp_path / "one")
    with pytest.raises(RunFolderError, match="holds a single search"):
        run_search(blobs(), config, population=2, out=tmp_path / "one")
    with pytest.raises(RunFolderError, match="on other data"):
        run_search(blobs(seed=1), config, population=2, out=tmp_path / "two", resume=True)


BAD = {
    "population must have at least 1 member, got 0": {"population": 0},
    r"population must have at least 1 member, got \[\]": {"population": []},
    "config must be left out": {"population": [SearchConfig()], "config": SearchConfig()},
    "must agree in hidden: member 0 has (256, 256), member 1 (3,)": {
        "population": [SearchConfig(), SearchConfig(hidden=(3,))]
    },
    "got 'soft'": {"population": 2, "config": SearchConfig(estimator="soft")},
    "halving must be rising epochs in [1, 29], got [3, 2]": {"population": 2, "halving": [3, 2]},
    "got [30]": {"population": 2, "halving": [30]},
    "validation must be above 0": {"population": 2, "halving": [1], "config": SearchConfig(validation=0.0)},
    "halving needs a population": {"halving": [1]},
    "a population has no on_bits": {"population": 2, "on_bits": lambda epoch, bits: None},
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_a_population(message, tmp_path):
    with pytest.raises(ValueError) as caught:
        run_search(blobs(), out=tmp_path / "none", **BAD[message])
    assert message.replace("\\", "") in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("population", [True, 2.0, "two", [1]])
def test_population_of_another_type(population):
    with pytest.raises((TypeError, ValueError), match="population must"):
        run_search(blobs(), population=population)


def test_a_loss_that_is_not_finite_names_the_member():
    wild = SearchConfig(**SMALL, norm="none", logit_scale=1e38, seed=4)
    with pytest.raises(SearchError, match=r"member with seed 4: the loss is (nan|inf) in epoch 1"):
        run_search(blobs(), wild, population=2)


def test_the_command(tmp_path, capsys):
    command = ["search", "digits", "--hidden", "16", "--epochs", "3", "--out", str(tmp_path / "run")]
    many = [*command, "--population", "3", "--halving", "1"]
    assert main(many) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("the best of 3: epoch 1/3") and "the best of 2: epoch 3/3" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [member["epochs"] for member in result["members"]].count(3) == 2
    best = max(result["members"], key=lambda member: member["validation_accuracy"])
    assert f"member{best['seed']:04}" in out.splitlines()[-1]
    assert main(many) == 1 and "holds a run already" in capsys.readouterr().err
    assert (
        main(["search", "digits", "--out", str(tmp_path / "run"), "--population", "3", "--halving", "1", "--resume"])
        == 0
    )
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [m["test_accuracy"] for m in again["members"]] == [m["test_accuracy"] for m in result["members"]]
    assert main(["spectra", str(tmp_path / "run"), "--json"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--population", "0"], "at least 1 member, got 0"),
        (["--halving", "1"], "add --population"),
        (["--population", "2", "--snapshots"], "leave out --snapshots"),
        (["--population", "2", "--halving", "2", "1"], "rising epochs"),
    ],
)
def test_the_command_refuses(flags, message, tmp_path, capsys):
    assert main(["search", "digits", "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("leaving", ["halving", "patience"])
def test_members_that_leave_leave_their_memory(leaving, monkeypatch):
    storages = []

    class Watched(fastbin.population.Population):
        def __init__(self, *args):
            super().__init__(*args)
            storages.append(StorageWeakRef(self._scores[0].untyped_storage()))

    monkeypatch.setattr(fastbin.population, "Population", Watched)
    seen = []

    def on_epoch(records):
        if len(storages) > len(seen):
            seen.append([storage.expired() for storage in storages])

    config = SearchConfig(**{**SMALL, "epochs": 9})
    if leaving == "halving":
        run_search(blobs(), config, population=8, halving=[1, 2, 4], on_epoch=on_epoch)
    else:
        members = [dataclasses.replace(config, lr=1e-9, patience=p) for p in (1, 2, 3, 4)]
        run_search(blobs(), population=members, on_epoch=on_epoch)
    assert seen == [[True] * before + [False] for before in range(4)]
