"""Sweeps: what a SPACE.toml says, what is chosen, what a stopped sweep goes on with, and what becomes of trials."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from fastbin import RunFolderError, SearchConfig, load_result, run_search
from fastbin.cli import main
from fastbin.report import percent
from fastbin.spectra.files import find_networks
from fastbin.sweep import Progress, best, read_best, sweep
from fastbin.sweep.samplers import Sampler
from fastbin.sweep.space import Choice, Halving, Span, read_space
from fastbin.sweep.table import live
from fastbin.sweep.trials import read_outcome, run_trial, trial_folder

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = """
data = "{data}"
method = "grid"
[config]
hidden = [8]
epochs = 4
batch_size = 16
validation = 0.2
[space]
lr = [0.002, 0.05, 0.1]
activation = ["gelu", "relu"]
"""


@pytest.fixture
def write(tmp_path):
    """Write a SPACE.toml whose data are blobs."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(0, 1, (3, 8))[y] + rng.normal(0, 1, (60, 8))
    np.savez(tmp_path / "blobs.npz", x=x, y=y)

    def write(text):
        path = tmp_path / "space.toml"
        path.write_text(text.format(data=tmp_path / "blobs.npz"))
        return path

    return write


def timeless(outcomes):
    return [dataclasses.replace(outcome, seconds=0.0) for outcome in outcomes]


def test_a_grid_runs_all_combinations_each_as_a_search_of_its_own(write, tmp_path):
    space, out, told = write(GRID), tmp_path / "out", []
    outcomes = sweep(space, out, tell=told.append)
    assert [o.number for o in outcomes] == list(range(6)) and {o.status for o in outcomes} == {"done"}
    combinations = [(lr, activation) for lr in (0.002, 0.05, 0.1) for activation in ("gelu", "relu")]
    assert [(o.values["lr"], o.values["activation"]) for o in outcomes] == combinations
    for o in outcomes:
        config = SearchConfig(hidden=(8,), epochs=4, batch_size=16, validation=0.2, **o.values)
        alone, found = run_search(tmp_path / "blobs.npz", config), load_result(out / o.folder / "network.safetensors")
        assert found.net.weights() == alone.net.weights() and found.config == config
        assert (o.test_accuracy, o.best_epoch, o.epochs) == (alone.test_accuracy, alone.best_epoch, 4)
    epochs = [p.record.epoch for p in told if p.number == 2 and p.record is not None]
    assert epochs == [1, 2, 3, 4] and told[-1] == Progress(5, outcomes[5].values, outcome=outcomes[5])
    # What is left: a record of each, and networks for `fastbin spectra`.
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert lines == [json.loads(json.dumps(dataclasses.asdict(o))) for o in outcomes]
    table = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [row["lr"] for row in table] == ["0.002", "0.002", "0.05", "0.05", "0.1", "0.1"]
    assert len(find_networks(out)) == 6
    first = best(outcomes)
    assert first is not None and first.standing == max(o.standing for o in outcomes)
    assert read_best(out) == (str(tmp_path / "blobs.npz"), SearchConfig.from_json(
        {"hidden": (8,), "epochs": 4, "batch_size": 16, "validation": 0.2, **first.values}
    ))  # fmt: skip


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["grid", "random", "tpe"])
def test_a_stopped_sweep_goes_on_as_if_it_never_stopped(method, write, tmp_path):
    if method == "tpe":
        pytest.importorskip("optuna", reason="method tpe needs Optuna")
    text = GRID if method == "grid" else GRID.replace('"grid"', f'"{method}"\ntrials = 5') + "\n[halving]\nfactor = 2\n"
    space = write(text)
    whole = sweep(space, tmp_path / "whole")
    for stop_at in ((0, 1), (3, 2)):
        out = tmp_path / f"run{stop_at[0]}"

        def tell(progress, stop_at=stop_at):
            if progress.record is not None and (progress.number, progress.record.epoch) >= stop_at:
                raise Killed

        with pytest.raises(Killed):
            sweep(space, out, tell=tell)
        begun = []
        again = sweep(space, out, resume=True, tell=lambda p, begun=begun: begun.append(p.number))
        assert timeless(again) == timeless(whole)
        if stop_at[0]:
            assert [p for p in begun if p < stop_at[0]] == list(
                range(stop_at[0])
            )  # told that they ended, not run again
    assert [o.status for o in whole].count("stopped") >= (method != "grid")


def test_halving_stops_what_is_behind(write, tmp_path):
    space = write(GRID + "[halving]\ngrace = 1\nfactor = 2\n")
    outcomes = sweep(space, tmp_path / "out")
    whole = sweep(write(GRID), tmp_path / "whole")
    stopped = [o for o in outcomes if o.status == "stopped"]
    assert stopped and all(o.epochs in (1, 2) and o.test_accuracy is None for o in stopped)
    for o in stopped:  # its network is the best until then
        found = load_result(tmp_path / "out" / o.folder / "network.safetensors")
        full = load_result(tmp_path / "whole" / o.folder / "network.safetensors")
        accuracies = [record.validation_accuracy for record in full.history[: o.epochs]]
        assert [record.validation_accuracy for record in found.history] == accuracies
        assert o.validation_accuracy == max(accuracies)
    assert best(outcomes).status == "done" and len(whole) == 6


def test_a_trial_that_fails_does_not_end_the_sweep(write, tmp_path):
    text = GRID.replace("[space]", 'norm = "none"\n[space]').replace(
        "lr = [0.002, 0.05, 0.1]", "logit_scale = [1.0, 1e38]"
    )
    outcomes = sweep(write(text.replace('["gelu", "relu"]', '["relu"]')), tmp_path / "out")
    assert [o.status for o in outcomes] == ["done", "failed"]
    assert "the loss is" in outcomes[1].error and best(outcomes).number == 0
    assert main(["sweep", str(tmp_path / "space.toml"), "--out", str(tmp_path / "out"), "--resume"]) == 1


def test_values_that_do_not_go_together_fail_alone(write, tmp_path):
    text = GRID.replace('activation = ["gelu", "relu"]', 'rule = ["bop", "adam"]\nestimator = ["hard", "sample"]')
    outcomes = sweep(write(text.replace("lr = [0.002, 0.05, 0.1]", "")), tmp_path / "out")
    assert [(o.values["rule"], o.values["estimator"]) for o in outcomes if o.status == "failed"] == [("bop", "sample")]


def test_a_trial_that_has_ended_is_not_run_again(write, tmp_path):
    space, out = write(GRID), tmp_path / "out"
    outcomes = sweep(space, out)
    folder = trial_folder(out, 0)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run_trial(folder, None, pytest.fail) == outcomes[0] == read_outcome(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_folders(write, tmp_path):
    space, out = write(GRID), tmp_path / "out"
    sweep(space, out)
    with pytest.raises(RunFolderError, match="holds a sweep already"):
        sweep(space, out)
    with pytest.raises(RunFolderError, match="another space"):
        sweep(write(GRID.replace("epochs = 4", "epochs = 5")), out, resume=True)
    (trial_folder(out, 1) / "outcome.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"outcome\.json is damaged"):
        sweep(write(GRID), out, resume=True)


def test_random_values_are_in_their_spans_and_depend_on_seed_and_number(write):
    text = """
data = "digits"
method = "random"
trials = 300
seed = {seed}
[space]
lr = {{min = 0.001, max = 0.1, log = true}}
momentum = {{min = 0.0, max = 0.9}}
batch_size = {{min = 1, max = 4}}
epochs = {{min = 2, max = 64, log = true}}
hidden = [[8], [16, 16]]
"""
    space = read_space(write(text.replace("{seed}", "1")))
    drawn = [space.drawn(number) for number in range(300)]
    assert drawn == [space.drawn(number) for number in range(300)]
    assert drawn != [read_space(write(text.replace("{seed}", "2"))).drawn(number) for number in range(300)]
    assert all(0.001 <= d["lr"] <= 0.1 and 0 <= d["momentum"] <= 0.9 for d in drawn)
    assert abs(np.median([d["lr"] for d in drawn]) / 0.01 - 1) < 0.4
    assert {d["batch_size"] for d in drawn} == {1, 2, 3, 4} and {d["hidden"] for d in drawn} == {(8,), (16, 16)}
    epochs = [d["epochs"] for d in drawn]
    assert min(epochs) >= 2 and max(epochs) <= 64 and np.median(epochs) < 20 and all(isinstance(e, int) for e in epochs)
    for d in drawn[:20]:
        space.config(d)


def test_tpe_finds_what_random_values_seldom_hit(write):
    pytest.importorskip("optuna", reason="method tpe needs Optuna")
    text = GRID.replace('"grid"', '"tpe"\ntrials = 40').replace(
        "lr = [0.002, 0.05, 0.1]", "lr = {{min = 0.0001, max = 1.0, log = true}}"
    )
    space = read_space(write(text))
    sampler, chosen = Sampler(space), []
    from fastbin.sweep.trials import Outcome

    for number in range(40):
        values = sampler.choose(number)
        accuracy = 1 - abs(np.log10(values["lr"] / 0.03)) / 4
        sampler.learn(Outcome(number, values, "done", validation_accuracy=accuracy))
        chosen.append(values["lr"])
    near = [0.01 < lr < 0.1 for lr in chosen]
    assert sum(near[20:]) >= 10  # of a random sweep 5 would be


def test_spans_and_rungs():
    assert [Span(1, 4, False).at(s) for s in (0.0, 0.3, 0.6, 0.99999)] == [1, 2, 3, 4]
    assert Span(0.0, 2.0, False).at(0.25) == 0.5 and Span(1e-4, 1.0, True).at(0.5) == pytest.approx(1e-2)
    assert Halving(2, 3).rungs(60) == [2, 6, 18, 54] and Halving(5, 2).rungs(5) == []


TWO = 'data = "digits"\ntrials = 2\n[space]\nlr = [1.0]\n'
BAD = {
    "key 'what' must be one of": 'what = 1\ndata = "digits"',
    "data must be the name": "method = 'grid'",
    "method must be one of grid, random, tpe, got 'best'": 'data = "digits"\nmethod = "best"',
    "seed must be a whole number": 'data = "digits"\nseed = -1',
    "space must be a table of what varies, got {}": 'data = "digits"\ntrials = 3',
    "field 'lrr' must be a field of the configuration": 'data = "digits"\ntrials = 3\n[space]\nlrr = [1]',
    "space.lr must be left out of [config]": 'data = "digits"\ntrials = 3\n[config]\nlr = 0.1\n[space]\nlr = [0.1]',
    "space.lr must be at least one value, got []": 'data = "digits"\ntrials = 3\n[space]\nlr = []',
    "space.lr must be a list of values, or": 'data = "digits"\ntrials = 3\n[space]\nlr = 0.1',
    "space.lr must be min below max": 'data = "digits"\ntrials = 3\n[space]\nlr = {min = 2, max = 1}',
    "space.lr.min must be above 0": 'data = "digits"\ntrials = 3\n[space]\nlr = {min = 0, max = 1, log = true}',
    "space.lr must be a list of values for method grid": 'data = "digits"\nmethod = "grid"\n[space.lr]\nmin = 1\nmax = 2',
    "trials must be left out, or 2": 'data = "digits"\nmethod = "grid"\ntrials = 3\n[space]\nlr = [1.0, 2.0]',
    "trials must be a whole number, at least 1, got None": 'data = "digits"\n[space]\nlr = [1.0]',
    "trials must be a whole number, at least 1, got 0": 'data = "digits"\ntrials = 0\n[space]\nlr = [1.0]',
    "space.hidden: hidden must be": 'data = "digits"\ntrials = 2\n[space]\nhidden = [[0]]',
    "epochs must be a whole number": 'data = "digits"\ntrials = 2\n[config]\nepochs = 0\n[space]\nlr = [1.0]',
    "halving must be a table": 'data = "digits"\ntrials = 2\nhalving = 3\n[space]\nlr = [1.0]',
    "halving.factor must be a whole number, at least 2, got 1": TWO + "[halving]\nfactor = 1",
    "config.validation must be above 0": 'data = "digits"\ntrials = 2\n[config]\nvalidation = 0.0\n[space]\nlr = [1.0]',
    "space.toml: ": "data = [",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_no_sweep_can_be(message, tmp_path, capsys):
    path = tmp_path / "space.toml"
    path.write_text(BAD[message])
    with pytest.raises(ValueError) as caught:
        read_space(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_choices_of_lists_are_tuples(write):
    space = read_space(write('data = "digits"\ntrials = 1\n[space]\nhidden = [[3], [4, 5]]'))
    assert space.varied == {"hidden": Choice(((3,), (4, 5)))}


def test_a_terminal_shows_a_table_that_changes(write, tmp_path):
    shown = io.StringIO()
    with live(Console(file=shown, force_terminal=True, width=100), 6) as tell:
        outcomes = sweep(write(GRID), tmp_path / "out", tell=tell)
    text = shown.getvalue()
    assert "0 of 6 trials" in text and "6 of 6 trials: 6 done" in text and "running" in text
    assert percent(outcomes[5].test_accuracy) in text


def test_the_command(write, tmp_path, capsys):
    space = write(GRID)
    assert main(["sweep", str(space), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("trial 0  1/6  lr 0.002, activation gelu  done") and "6 of 6 trials: 6 done" in out
    assert main(["sweep", str(space), "--out", str(tmp_path / "out")]) == 1
    assert "resume it, or choose another folder" in capsys.readouterr().err
    compared = ["compare", "--sweep", str(tmp_path / "out"), "--out", str(tmp_path / "compared"), "--seeds", "1"]
    assert main([*compared, "--kinds", "weight_free_hard", "dense"]) == 0
    stored = json.loads((tmp_path / "compared" / "results.json").read_text())
    _, config = read_best(tmp_path / "out")
    assert stored["config"]["lr"] == config.lr and stored["config"]["activation"] == config.activation
    assert {run["data"] for run in stored["runs"]} == {"blobs"}
    assert main(["sweep", str(tmp_path / "none.toml")]) == 1
    assert "none.toml" in capsys.readouterr().err
