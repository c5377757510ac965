"""The comparison: its folder, what stops and fails, and a report that says what the results say."""

import csv
import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastbin import CheckpointError, RunFolderError, SearchConfig, checkpoint, compare_report
from fastbin.baselines import KINDS
from fastbin.baselines.files import load_network
from fastbin.cli import main
from fastbin.compare import QUICK, compare, read_results
from fastbin.data import load_dataset
from fastbin.result import evaluate
from fastbin.search import prepare
from fastbin.spectra.files import find_evolutions

pytestmark = pytest.mark.usefixtures("one_thread")

CHOSEN = ("dense", "random", "pruned_10", "weight_agnostic")
CONFIG = SearchConfig(hidden=(24,), epochs=3, batch_size=16, validation=0.2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The path of a small data set that is split anew by each seed."""
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x=rng.normal(0, 1, (3, 8))[y] + rng.normal(0, 1, (150, 8)), y=y)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("comparison") / "whole"
    compare([source], CONFIG, 2, folder, kinds=CHOSEN, made_with={"command": "fastbin <compare>"})
    return folder


def timeless(value):
    """Without wall-clock times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "made_with")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def assert_same_file(one, other):
    (tensors, metadata), (tensors_b, metadata_b) = checkpoint.load(one), checkpoint.load(other)
    assert metadata == metadata_b and tensors.keys() == tensors_b.keys()
    assert all(torch.equal(t, tensors_b[name]) for name, t in tensors.items())


def test_every_run_is_there(finished):
    results = read_results(finished)
    runs = [(r["data"], r["kind"], r["seed"]) for r in results["runs"]]
    kinds = [kind for kind in KINDS if kind in (*CHOSEN, "weight_free_hard")]
    assert runs == [("blobs", kind, seed) for kind in kinds for seed in (0, 1)]
    assert all(r["status"] == "done" for r in results["runs"])
    lines = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert lines == results["runs"]
    assert results["config"]["hidden"] == [24] and "seed" not in results["config"]


def test_snapshots_are_of_the_first_search(finished):
    evolutions = find_evolutions(finished)
    ((_, steps),) = evolutions.items()
    assert [epoch for epoch, _ in steps] == [0, 1, 2, 3]
    run = read_results(finished)["runs"][0]
    assert {(net.data, net.kind, net.seed) for _, net in steps} == {(run["data"], run["kind"], run["seed"])}
    found = load_network(finished / run["network"])
    at_best = steps[run["best_epoch"]][1]
    assert all(torch.equal(a.words, b.words) for a, b in zip(at_best.layers, found.weights(), strict=True))


def test_networks_are_those_of_the_figures(finished, source):
    for run in read_results(finished)["runs"]:
        net = load_network(finished / run["network"])
        dataset = load_dataset(source, seed=run["seed"])
        _, validation, standardizer = prepare(dataset, SearchConfig(**{**CONFIG.to_json(), "seed": run["seed"]}))
        assert evaluate(net, standardizer.transform(dataset.x_test), dataset.y_test)[1] == run["test_accuracy"]
        assert evaluate(net, validation.x, validation.y)[1] == run["validation_accuracy"]
        assert run["test_samples"] == len(dataset.y_test) == 30
        metadata = checkpoint.load(finished / run["network"])[1]
        assert [metadata[k] for k in ("data", "kind", "seed")] == [run[k] for k in ("data", "kind", "seed")]
        assert metadata["form"] == {"weight_free_hard": "bits", "random": "bits", "weight_agnostic": "graph"}.get(
            run["kind"], "real"
        )


def test_random_networks_have_the_density_of_the_searched_one(finished):
    runs = {(r["kind"], r["seed"]): r for r in read_results(finished)["runs"]}
    for seed in (0, 1):
        searched, drawn = runs["weight_free_hard", seed], runs["random", seed]
        for a, b, n in zip(searched["density"], drawn["density"], (8 * 24, 24 * 3), strict=True):
            assert abs(a - b) < 4 * (a * (1 - a) / n) ** 0.5
        assert drawn["mean_test_accuracy"] is not None and searched["mean_test_accuracy"] is None


def test_shared_weights(finished):
    for run in read_results(finished)["runs"]:
        shared = run["shared"]
        assert shared["weights"] == [-2, -1, -0.5, 0.5, 1, 2]
        assert shared["mean"] == pytest.approx(np.mean(shared["accuracy"]))
        assert shared["best"] == shared["accuracy"][shared["weights"].index(shared["best_weight"])]
        if run["kind"] == "weight_free_hard":  # one is the weight it has, and behind the norm all positive ones are
            assert shared["accuracy"][3:] == [run["test_accuracy"]] * 3


def test_the_gradient_is_measured(finished):
    (measured,) = read_results(finished)["gradient"]
    # 150 samples, of which 96 are trained on by 16: 6 steps an epoch.
    assert (measured["data"], measured["seed"]) == ("blobs", 0)
    assert [row["step"] for row in measured["log"]] == list(range(18))
    taus = [row["tau"] for row in measured["sweep"]]
    assert taus == sorted(taus) and len(taus) == 7
    assert {row["bound_kind"] for row in measured["log"] + measured["sweep"]} == {"estimated"}
    assert all(row["error"] > 0 for row in measured["log"])


# The test part


def test_nothing_is_chosen_by_the_test_part(tmp_path, source, finished):
    """With other test samples, the same networks come out."""
    dataset = load_dataset(source, seed=0)
    split = {"x_train": dataset.x_train, "y_train": dataset.y_train}
    for name, x, y in (("a", dataset.x_test, dataset.y_test), ("b", -3 * dataset.x_test, (dataset.y_test + 1) % 3)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "split.npz", **{k: v.numpy() for k, v in split.items()}, x_test=x, y_test=y)
        compare([str(tmp_path / name / "split.npz")], CONFIG, 1, tmp_path / name / "out", kinds=CHOSEN)
    a, b = (read_results(tmp_path / name / "out")["runs"] for name in "ab")
    different = 0
    for one, other in zip(a, b, strict=True):
        different += one["test_accuracy"] != other["test_accuracy"]
        assert one["validation_accuracy"] == other["validation_accuracy"]
        assert one["shared"]["best_weight"] == other["shared"]["best_weight"]
        assert_same_file(*(tmp_path / name / "out" / one["network"] for name in "ab"))
    assert different >= 4


# Stops and failures


class Stopped(Exception):
    pass


def counted(monkeypatch):
    """Count the trainings of each kind."""
    counts = dict.fromkeys(KINDS, 0)

    def counting(kind, train):
        def run(task):
            counts[kind] += 1
            return train(task)

        return run

    for kind, train in list(KINDS.items()):
        monkeypatch.setitem(KINDS, kind, counting(kind, train))
    return counts


def test_stopped_after_every_run(tmp_path, source, finished, monkeypatch):
    counts = counted(monkeypatch)

    def stop(run, number, planned):
        assert planned == 10
        raise Stopped

    for _ in range(10):
        with pytest.raises(Stopped):
            compare([source], CONFIG, 2, tmp_path / "out", kinds=CHOSEN, on_run=stop)
    results = compare([source], CONFIG, 2, tmp_path / "out", kinds=CHOSEN, on_run=stop)
    assert {counts[run["kind"]] for run in results["runs"]} == {2}  # once a seed
    assert timeless(results) == timeless(read_results(finished))
    for run in results["runs"]:
        assert_same_file(tmp_path / "out" / run["network"], finished / run["network"])


# One process imports all and forks the command twice: forked before any thread is started.
KILLER = """
import os, signal, sys, time
import matplotlib.figure, scipy.stats, torch._dynamo  # what a run would import
import torch
from fastbin.cli import main

torch.set_num_threads(1)
lines, command = sys.argv[1], sys.argv[2:]

def start():
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = main(command)
            sys.stdout.flush()
        finally:
            os._exit(code)
    return child

def done():
    return len(open(lines).readlines()) if os.path.exists(lines) else 0

child = start()
while done() < 3:
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    time.sleep(0.002)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print("killed after", done(), flush=True)
_, status = os.waitpid(start(), 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_killed_and_started_again(tmp_path, source, finished):
    flags = ["--hidden", "24", "--epochs", "3", "--batch-size", "16", "--validation", "0.2", "--seeds", "2"]
    command = ["compare", "--out", str(tmp_path / "out"), "--data", source, *flags, "--kinds", *CHOSEN]
    script = [sys.executable, "-c", KILLER, str(tmp_path / "out" / "results.jsonl"), *command]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    _, second = re.split(r"killed after \d+\n", ended.stdout)
    done = int(re.search(r"killed after (\d+)", ended.stdout)[1])
    assert 3 <= done < 10
    numbers = [int(n) for n in re.findall(r"^ ?(\d+)/10  blobs", second, flags=re.M)]
    assert len(numbers) == 10 - done  # no run that was done is done again
    assert timeless(read_results(tmp_path / "out")) == timeless(read_results(finished))


def test_a_run_that_fails_is_told_and_tried_again(tmp_path, source, monkeypatch, capfd):
    def fail(task):
        if task.config.seed == 1:
            raise RuntimeError("out of <luck>")
        return KINDS["random_half"](task)

    flags = ["--hidden", "8", "--epochs", "1", "--seeds", "2", "--kinds", "dense", "random_half"]
    command = ["compare", "--out", str(tmp_path / "out"), "--data", source, *flags]
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "dense", fail)
        assert main(command) == 1
    assert "seed 1  failed: RuntimeError: out of <luck>" in capfd.readouterr().out
    failed = [run for run in read_results(tmp_path / "out")["runs"] if run["status"] == "failed"]
    assert failed == [
        {"data": "blobs", "kind": "dense", "seed": 1, "status": "failed", "error": "RuntimeError: out of <luck>"}
    ]
    assert "dense, seed 1, failed: RuntimeError: out of &lt;luck&gt;" in (tmp_path / "out/report.html").read_text()
    assert "1 (1 failed)" in (tmp_path / "out/report.md").read_text()
    counts = counted(monkeypatch)
    assert main(command) == 0
    assert counts["dense"] == 1 and counts["random_half"] == 0
    assert "failed" not in (tmp_path / "out/report.html").read_text().replace(".failed", "")


def test_no_searched_network_no_density(tmp_path, source, monkeypatch):
    def fail(task):
        raise RuntimeError("no luck")

    monkeypatch.setitem(KINDS, "weight_free_hard", fail)
    results = compare([source], CONFIG, 1, tmp_path / "out", kinds=("random", "random_half"))
    assert [run["status"] for run in results["runs"]] == ["failed", "failed", "done"]
    assert "must be found before" in results["runs"][1]["error"]


@pytest.mark.parametrize(("name", "value"), [("epochs", 4), ("hidden", (25,)), ("lr", 0.5), ("activation", "tanh")])
def test_a_folder_of_other_settings_is_refused(finished, source, name, value):
    before = (finished / "results.json").read_bytes()
    with pytest.raises(RunFolderError, match=name):
        compare([source], SearchConfig(**{**CONFIG.to_json(), name: value}), 2, finished, kinds=CHOSEN)
    assert (finished / "results.json").read_bytes() == before


def test_kinds_seeds_and_data_can_be_added(tmp_path, source, finished):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    other = tmp_path / "other.npz"
    shutil.copy(source, other)
    results = compare([source, str(other)], CONFIG, 3, folder, kinds=("dense",))
    kinds = [(r["data"], r["kind"], r["seed"]) for r in results["runs"]]
    assert kinds.count(("blobs", "random", 1)) == 1 and ("blobs", "random", 2) not in kinds
    assert ("blobs", "dense", 2) in kinds and ("other", "weight_free_hard", 0) in kinds
    assert [row["data"] for row in results["summary"]] == ["blobs"] * 5 + ["other"] * 2


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"format": "fastbin compare", "version": 9, "config": {}, "runs": []}']
)
def test_damaged_results_are_refused(tmp_path, source, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"results\.json is damaged"):
        compare([source], CONFIG, 1, tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kinds": ("dense", "densest")}, "densest"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"data": ()}, "at least, and none twice, got none"),
        ({"data": ("digits", "digits")}, "none twice, got digits, digits"),
        ({"config": SearchConfig(validation=0.0)}, "validation must be above 0"),
        ({"config": SearchConfig(activation="step")}, "not step"),
        ({"data": ("digit",)}, "did you mean digits"),
    ],
)
def test_bad_arguments(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        compare(**{"data": ("digits",), "config": CONFIG, "seeds": 1, "out": tmp_path, **change})
    assert not (tmp_path / "results.json").exists()


def test_a_damaged_network_is_an_error(tmp_path, finished):
    run = read_results(finished)["runs"][0]
    path = tmp_path / "net.safetensors"
    path.write_bytes((finished / run["network"]).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        load_network(path)


# The report


class Tables(html.parser.HTMLParser):
    """The cells of each table with an id, and what the page would load."""

    def __init__(self):
        super().__init__()
        self.tables, self.links, self.rows, self.cell = {}, [], None, None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [
            v for k, v in attrs.items() if k in ("src", "href", "xlink:href") and not v.startswith(("#", "data:"))
        ]
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id"), [])
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append(self.cell)
            self.cell = None
        elif tag == "table":
            self.rows = None


def test_the_report_has_the_numbers_of_the_results(finished):
    results = read_results(finished)
    page = Tables()
    page.feed((finished / "report.html").read_text())
    (head, *rows), markdown = page.tables["blobs"], (finished / "report.md").read_text()
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert len(table) == 5
    for row in table:
        runs = [run for run in results["runs"] if run["kind"] == row["kind"]]
        accuracy = np.array([100 * run["test_accuracy"] for run in runs])
        # Student's t for two values and 97.5 %: 12.7062047.
        half = 12.7062047 * accuracy.std(ddof=1) / 2**0.5
        assert row["test accuracy / %"] == f"{accuracy.mean():.2f} ± {half:.2f}"
        assert row["validation / %"] == f"{100 * np.mean([run['validation_accuracy'] for run in runs]):.2f}"
        assert row["seeds"] == "2"
        assert row["connections"] == f"{np.mean([run['connections'] for run in runs]):,.0f}"
        assert row["bits"] == f"{np.mean([run['bits'] for run in runs]):,.0f}"
        assert row["ensemble / %"] == f"{100 * np.mean([run['shared']['ensemble'] for run in runs]):.2f}"
        draws = [run["mean_test_accuracy"] for run in runs]
        assert row["mean of draws / %"] == (f"{100 * np.mean(draws):.2f}" if row["kind"] == "random" else "–")
        assert "| " + " | ".join(row.values()) + " |" in markdown
    made = {row[0]: row[1] for row in page.tables[None]}
    assert made["command"] == "fastbin <compare>" and made["seeds"] == "[0, 1]" and made["epochs"] == "3"


def test_the_table_has_the_numbers_of_the_results(finished):
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, run in zip(rows, read_results(finished)["runs"], strict=True):
        for name in ("test_accuracy", "connections", "bits", "operations", "budget", "kind", "seed"):
            assert row[name] == str(run[name])
        assert row["shared_best"] == str(run["shared"]["best"]) and row["error"] == ""


def test_the_report_needs_nothing_else(finished):
    text = (finished / "report.html").read_text()
    page = Tables()
    page.feed(text)
    assert page.links == [] and "@import" not in text and "<script" not in text
    assert text.count("<svg") == 3 and text.count("dense") >= 4  # text in figures is text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_report_in_a_browser(finished, tmp_path):
    shot = tmp_path / "shot.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1300,1000", "--enable-logging=stderr", f"--screenshot={shot}"]
    done = subprocess.run(
        [*command, f"file://{finished / 'report.html'}"], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    dark = (pixels.mean(-1) < 0.5).mean()
    assert 0.005 < dark < 0.5  # text and lines, on a page that is not blank


def test_order():
    def row(kind, accuracy):
        return {"kind": kind, "test_accuracy": accuracy}

    rows = [row("random", 0.1), row("dense", 0.9), row("weight_free_hard", 0.8), row("pruned", 0.85), row("snip", 0.95)]
    assert compare_report.order(rows) == [
        "dense 90.00 % ≥ pruned 85.00 %",
        "pruned 85.00 % ≥ weight_free_hard 80.00 %",
        "weight_free_hard 80.00 % ≥ random 10.00 %",
    ]
    assert compare_report.order([row("random", 0.9), row("dense", 0.8), row("pruned", None)]) == [
        "dense 80.00 % < random 90.00 %: not as expected"
    ]


def test_intervals():
    assert compare_report.half_width([0.5]) is None
    assert compare_report.half_width([1, 2, 3]) == pytest.approx(4.302652730 / 3**0.5)
    assert compare_report.half_width([0.7] * 5) == 0


# The command


def test_quick_is_a_comparison_of_small_networks(tmp_path, monkeypatch, capfd):
    seen = {}

    def recorded(**arguments):
        seen.update(arguments)
        return {"runs": [], "summary": []}

    monkeypatch.setattr("fastbin.cli.compare", recorded)
    assert main(["compare", "--quick", "--out", str(tmp_path)]) == 0
    assert {name: seen[name] for name in QUICK} == QUICK
    assert main(["compare", "--out", str(tmp_path), "--epochs", "7", "--seed", "3"]) == 0
    assert (seen["data"], seen["seeds"], seen["config"].epochs) == (("mnist", "fashion_mnist"), 5, 7)
    assert seen["config"].seed == 3 and seen["kinds"] == tuple(KINDS)
    assert f"written to {tmp_path}" in capfd.readouterr().out


def test_the_command_needs_a_folder(capfd):
    assert main(["compare", "--quick"]) == 2
    assert "--out" in capfd.readouterr().err
