"""The comparison: every kind of network on every data set and seed, into one folder.

    DIR/
      results.json     all of it: what it was made with, settings, a summary, and one object for each run
      results.jsonl    the runs, an object a line
      results.csv      the runs' figures, a line each
      report.html      for people: tables and figures, in one file without links to others; report.md: the tables
      networks/<data>/<kind>/seed<seed>.safetensors
                       the network of a run, chosen by the validation part
      networks/<data>/weight_free_hard/snapshots/epoch<epoch>.safetensors
                       the bits of the first seed's search before it (0) and after each epoch, for `fastbin spectra`

A run is one kind (`fastbin.baselines.KINDS`) on one data set with one seed. Its object in ``results.json["runs"]``:

    data, kind, seed       which one
    status                 "done", or "failed" with `error`: nothing but these five entries is there then
    network                path of its file within DIR
    test_accuracy          of the network, computed once, after all choices; test_samples says on how many samples
    mean_test_accuracy     mean over the kind's draws, for the random kinds; else null
    validation_accuracy    of the network
    widths                 units of each layer; null for a graph
    edges, connections     possible ones, and those that are there
    density                connections / edges of each layer; of the whole for a graph
    bits                   what a file needs at least: `fastbin.baselines.nets.Size`
    best_epoch, epochs     the network's, and how many there were
    operations, budget     connections passed by samples, see `fastbin.baselines.Task.training`
    seconds                of training, without the evaluation on the test part
    shared                 accuracy on the test part with one weight on all connections: weights, accuracy (of each),
                           mean, best_weight (by validation), best (of that one), ensemble (mean of probabilities)
    history                a record for each epoch: `fastbin.result.EpochRecord`

``results.json["gradient"]`` has an object for each data set, of one more search with the first seed, the same settings, the
estimator ``hard`` and the smooth activation tanh: data, seed, log (the gradient's error at steps of it) and sweep (at the
last of these steps, at several temperatures), both lists of `fastbin.theory.GradientError`.

A network file is safetensors with JSON metadata (`fastbin.checkpoint`): data, kind, seed, ``form`` and what the form needs.
`fastbin.baselines.files.load_network` reads all forms:

    form     tensors
    bits     layers.<i>.words: int32 [n_out, ceil(n_in / 32)], element (r, c) is bit c % 32 of word [r, c // 32]
    real     layers.<i>.weight: float32 [n_out, n_in], exactly 0 where there is no connection
    both     metadata widths, activation, norm, logit_scale: of `fastbin.nn.Perceptron`
    graph    graph.inputs: words of [units, inputs + 1], graph.units: words of [units, units], graph.activation: int64
             [units]; metadata inputs, outputs, weight (on all connections), pixels: `fastbin.baselines.graph`

A comparison that was stopped goes on where it was: runs that are done are not repeated, failed ones are tried again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from fastbin import checkpoint, compare_report
from fastbin.baselines import KINDS, ONLY_ON, SEARCHED, SHARED_WEIGHTS, GraphNet, Task, Trained
from fastbin.baselines.files import save_network
from fastbin.baselines.nets import Network, Size, share_weight
from fastbin.config import SearchConfig
from fastbin.data import Dataset, load_dataset
from fastbin.result import EVALUATION_BATCH, evaluate
from fastbin.runs import RunFolderError, locked, write_snapshot
from fastbin.search import run_search
from fastbin.steps import Part
from fastbin.theory import GradientLog

RESULTS, LINES, TABLE, NETWORKS = "results.json", "results.jsonl", "results.csv", "networks"
VERSION = 1
MEASUREMENTS = 20  # of the gradient's error in a search
QUICK: dict[str, Any] = {  # arguments of `compare` that end within minutes
    "data": ("digits", "breast_cancer"),
    "seeds": 2,
    "config": SearchConfig(hidden=(64, 64), epochs=15),
}
Run = dict[str, Any]


def compare(
    data: Sequence[str],
    config: SearchConfig,
    seeds: int,
    out: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = tuple(KINDS),
    data_dir: str | os.PathLike[str] | None = None,
    made_with: dict[str, Any] | None = None,
    on_run: Callable[[Run, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what is not done yet, and write the folder after each run.

    Args:
        data: names of data sets, or paths of .npz files.
        config: of the search, and with it widths, form, epochs and batch size of all kinds; its seed is the first one.
        seeds: number of seeds.
        out: folder of the comparison.
        kinds: of `KINDS`; the searched network is always among them, others are made at its density.
        data_dir: folder of the named data sets.
        made_with: versions, command and the like, for the report.
        on_run: called with each new run, its number and the number of all.

    Returns:
        What results.json holds.

    Raises:
        ValueError: unknown kind or data set, no seed, no validation part, or data sets of the same name.
        RunFolderError: the folder holds a comparison with other settings, or is damaged or in use.
        DataError: a data set cannot be read or downloaded.
        OSError: the folder cannot be written.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected {', '.join(KINDS)}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    names = [Path(source).stem for source in data]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"data must name one data set at least, and none twice, got {', '.join(data) or 'none'}")
    chosen = [kind for kind in KINDS if kind in kinds or kind == SEARCHED]
    planned = [
        (source, name, config.seed + i, kind)
        for source, name in zip(data, names, strict=True)
        for i in range(seeds)
        for kind in chosen
        if name in ONLY_ON.get(kind, (name,))
    ]
    folder = Path(out)
    with locked(folder):
        results = _begin(folder, config, made_with or {})
        task, dataset = None, None
        for number, (source, name, seed, kind) in enumerate(planned, 1):
            if _find(results["runs"], name, seed, kind) is None:
                if dataset is None or task is None or (dataset.name, task.config.seed) != (name, seed):
                    dataset = load_dataset(source, data_dir=data_dir, seed=seed)
                    task = Task.of(dataset, dataclasses.replace(config, seed=seed))
                run = _run(
                    folder, kind, task, dataset, _find(results["runs"], name, seed, SEARCHED), seed == config.seed
                )
                results["runs"] = [r for r in results["runs"] if _key(r) != _key(run)] + [run]
                results["runs"].sort(key=lambda r: _place(r, names))
                write(folder, results)
                if on_run is not None:
                    on_run(run, number, len(planned))
            last = number == len(planned) or planned[number][1] != name
            if last and all(g["data"] != name for g in results["gradient"]):
                dataset = load_dataset(source, data_dir=data_dir, seed=config.seed)
                results["gradient"].append(measure_gradient(Task.of(dataset, config)))
                write(folder, results)
        write(folder, results)
        compare_report.write(folder, results)
    return results


def measure_gradient(task: Task) -> dict[str, Any]:
    """Search with tanh and the estimator hard, and measure the gradient's error against its bound `MEASUREMENTS` times."""
    config = dataclasses.replace(task.config, estimator="hard", activation="tanh")
    steps = config.epochs * -(-len(task.train.y) // config.batch_size)
    log = GradientLog(every=max(1, steps // MEASUREMENTS))
    run_search(task.dataset, config, on_step=log)
    sweep = [dataclasses.asdict(error) for error in log.sweep()]
    return {"data": task.dataset.name, "seed": config.seed, "log": log.to_json(), "sweep": sweep}


def _key(run: Run) -> tuple[str, int, str]:
    return run["data"], run["seed"], run["kind"]


def _place(run: Run, names: list[str]) -> tuple[int, str, int, int]:
    """Where a run stands among all: data sets as given, kinds as in KINDS, then seeds."""
    data = run["data"]
    return names.index(data) if data in names else len(names), data, list(KINDS).index(run["kind"]), run["seed"]


def _find(runs: list[Run], data: str, seed: int, kind: str) -> Run | None:
    return next((r for r in runs if _key(r) == (data, seed, kind) and r["status"] == "done"), None)


def _begin(folder: Path, config: SearchConfig, made_with: dict[str, Any]) -> dict[str, Any]:
    """The folder's results so far, or new ones."""
    settings = {name: value for name, value in json.loads(json.dumps(config.to_json())).items() if name != "seed"}
    begun = {"format": "fastbin compare", "version": VERSION, "made_with": made_with, "config": settings}
    if not (folder / RESULTS).exists():
        return {**begun, "runs": [], "gradient": []}
    stored = read_results(folder)
    for name, value in settings.items():
        if stored["config"].get(name) != value:
            had = stored["config"].get(name)
            raise RunFolderError(f"{folder} holds a comparison with {name}={had!r}, asked for is {value!r}")
    return {**begun, "runs": stored["runs"], "gradient": stored["gradient"]}


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What results.json of a comparison holds.

    Raises:
        FileNotFoundError: there is none.
        RunFolderError: it is damaged, or of another version.
    """
    path = Path(folder) / RESULTS
    try:
        results: dict[str, Any] = json.loads(path.read_text())
        if (results["format"], results["version"]) != ("fastbin compare", VERSION) or "gradient" not in results:
            raise ValueError(f"its format is {results['format']!r}, version {results['version']!r}")
        for run in results["runs"]:
            if run["status"] not in ("done", "failed") or run["kind"] not in KINDS:
                raise ValueError(f"it has a run with status {run['status']!r} of kind {run['kind']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error!r}") from error
    return results


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write the results in all machine-readable forms, each whole or not at all; results.json is the one that is read."""
    runs = results["runs"]
    results["summary"] = compare_report.summary(runs)
    checkpoint.write_text(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    checkpoint.write_text(folder / LINES, "".join(json.dumps(run, allow_nan=False) + "\n" for run in runs))
    checkpoint.write_text(folder / TABLE, _csv(runs))


_COLUMNS = (
    "data", "kind", "seed", "status", "test_accuracy", "mean_test_accuracy", "validation_accuracy", "test_samples", "edges",
    "connections", "bits", "best_epoch", "epochs", "operations", "budget", "seconds",
)  # fmt: skip


def _csv(runs: list[Run]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_COLUMNS, "shared_mean", "shared_best_weight", "shared_best", "shared_ensemble", "error"])
    for run in runs:
        shared = run.get("shared", {})
        table.writerow(
            [run.get(name) for name in _COLUMNS]
            + [shared.get(name) for name in ("mean", "best_weight", "best", "ensemble")]
            + [run.get("error")]
        )
    return text.getvalue()


def _run(folder: Path, kind: str, task: Task, dataset: Dataset, searched: Run | None, first: bool) -> Run:
    """Train, evaluate and save one network, of the first seed with snapshots; what fails is a run too, that says why."""
    about: Run = {"data": dataset.name, "kind": kind, "seed": task.config.seed}
    if searched is not None:
        task = dataclasses.replace(task, density=tuple(searched["density"]))
    started = time.perf_counter()
    try:
        trained = KINDS[kind](task)
    except (RuntimeError, ValueError, MemoryError) as error:  # RuntimeError: a loss that is not finite, and torch's own
        return {**about, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - started
    path = Path(NETWORKS, dataset.name, kind, f"seed{task.config.seed}.safetensors")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    save_network(folder / path, trained.net, about)
    if kind == SEARCHED and first:
        config = dataclasses.replace(task.config, estimator="hard")
        for epoch, bits in enumerate(trained.evolution):
            write_snapshot(folder / path.parent, epoch, bits, config, dataset.name)
    x_test = task.standardizer.transform(dataset.x_test).to(task.config.device)
    test = Part(x_test, dataset.y_test.to(task.config.device))
    return {**about, "status": "done", "network": str(path), **_figures(trained, task, test), "seconds": seconds}


def _figures(trained: Trained, task: Task, test: Part) -> Run:
    net = trained.net
    draws = [evaluate(drawn, test.x, test.y)[1] for drawn in trained.draws]
    return {
        "test_accuracy": evaluate(net, test.x, test.y)[1],
        "mean_test_accuracy": sum(draws) / len(draws) if draws else None,
        "validation_accuracy": evaluate(net, task.validation.x, task.validation.y)[1],
        "test_samples": len(test.y),
        "widths": None if isinstance(net, GraphNet) else task.widths,
        **dataclasses.asdict(Size.of(net)),
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "operations": trained.operations,
        "budget": task.budget,
        "shared": _shared(net, task.validation, test),
        "history": [record.to_json() for record in trained.history],
    }


@torch.no_grad()
def _shared(net: Network, validation: Part, test: Part) -> dict[str, Any]:
    """Accuracy with one weight shared by all connections; the best one is chosen by validation."""
    accuracy, by_validation = [], []
    probabilities = torch.zeros((), device=test.y.device)
    for weight in SHARED_WEIGHTS:
        shared = share_weight(net, weight)
        logits = torch.cat([shared(part) for part in test.x.split(EVALUATION_BATCH)])
        accuracy.append(float((logits.argmax(1) == test.y).double().mean()))
        probabilities = probabilities + F.softmax(logits, 1)
        by_validation.append(evaluate(shared, validation.x, validation.y)[1])
    best = max(range(len(SHARED_WEIGHTS)), key=by_validation.__getitem__)
    return {
        "weights": list(SHARED_WEIGHTS),
        "accuracy": accuracy,
        "mean": sum(accuracy) / len(accuracy),
        "best_weight": SHARED_WEIGHTS[best],
        "best": accuracy[best],
        "ensemble": float((probabilities.argmax(1) == test.y).double().mean()),
    }
