"""The search: approximate gradient descent on the scores of the edges, with forward and backward products on bits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor

from fastbin import backends
from fastbin.arrays import Labels
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.data import Dataset, Standardizer, load_datasets, split_validation, without_test
from fastbin.descent import DROPOUT, ORDER, Search, derived_seed
from fastbin.result import EpochRecord, SearchResult, make_net
from fastbin.rules import Rule, ScoreRule
from fastbin.run import Run, StartSearch
from fastbin.runs import (
    CHECKPOINT,
    NETWORK,
    POPULATION,
    RunFolderError,
    locked,
    member_folder,
)  # fmt: skip
from fastbin.steps import Part, Step, Steps

Shard = Literal["batch", "rows"]
Data: TypeAlias = "str | os.PathLike[str] | Dataset | tuple[Any, Any]"
OnStep = Callable[[Search, Tensor, Tensor, Rule], None]


class SearchError(RuntimeError):
    """The search cannot go on; the message says where and why."""


@overload
def run_search(
    data: Data,
    config: SearchConfig | None = None,
    *,
    shard: Shard | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None = None,
    on_step: OnStep | None = None,
) -> SearchResult: ...


@overload
def run_search(
    data: Data,
    config: SearchConfig | None = None,
    *,
    population: int | Sequence[SearchConfig],
    halving: Sequence[int] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[dict[int, EpochRecord]], None] | None = None,
) -> list[SearchResult]: ...


def run_search(
    data: Data,
    config: SearchConfig | None = None,
    *,
    population: int | Sequence[SearchConfig] | None = None,
    halving: Sequence[int] = (),
    shard: Shard | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Any], None] | None = None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None = None,
    on_step: OnStep | None = None,
) -> SearchResult | list[SearchResult]:
    """Search for a weight-free network, or for a population of them at once.

    >>> import fastbin
    >>> config = fastbin.SearchConfig(hidden=(64,), epochs=3, seed=0)
    >>> result = fastbin.run_search("digits", config)
    >>> result.test_accuracy > 0.8
    True
    >>> results = fastbin.run_search("digits", config, population=4, halving=[1])
    >>> results[0].history[0].train_loss == result.history[0].train_loss, [len(r.history) for r in results].count(3)
    (True, 2)

    Args:
        data: a named data set or the path of an .npz file (`fastbin.data.load_dataset`), a `Dataset`, or a pair (x, y) of
            arrays or tensors, ``[n, ..]`` raw inputs and ``[n]`` labels, all of it for training and validation.
        config: what to do; defaults without.
        population: so many searches in one, with the seeds ``config.seed``, ``config.seed + 1``, ..; or the configuration of
            each, which may differ in seed, density, step size, temperature and what else belongs to start, rule and dropout
            (`fastbin.population.OWN`). Each op runs once for all, and member p equals the search with its configuration, bit
            for bit, on a CPU by any number of threads. Estimator soft has none.
        halving: of a population: epochs after each of which the better half of its members, by the validation part, goes on;
            the others end there, and time and memory go to those that stay.
        shard: what the processes that torchrun started, each of which makes this call, have shares of: ``batch``, the
            samples of each batch, or ``rows``, those of each layer, for layers that do not fit on one device. All must see
            the data and `out`, all get the result, the first one writes and calls back. Another number of them may resume.
            Not of a population, nor with on_step.
        out: a folder for checkpoint, metrics, configuration and the found network; nothing is written without. Members of a
            population have folders of their own in it.
        resume: go on from the checkpoint in `out` (from the beginning if there is none yet). The result then equals that of
            a run that was never stopped, bit for bit, on the same machine, backend and number of threads.
        data_dir: folder of the named data sets.
        on_epoch: called with each new record of the history; of a population, with those of an epoch by number of member.
        on_bits: called with the number of each epoch and a copy of the bits 1[θ > 0] after it; first with 0 and those of the
            start. An epoch after which a run was killed may come again when it is resumed. Not of a population.
        on_step: called before each step with the search, its batch and its rule; only to look
            (`fastbin.theory.GradientLog`). Steps are then no CUDA graph. Not of a population.

    Returns:
        The network that did best on the validation part, and the history; of a population, a list of them.

    Raises:
        ValueError, TypeError: data or configuration do not fit.
        DataError: a named data set cannot be read or downloaded.
        CheckpointError, RunFolderError: `out` holds another run, or a damaged one.
        SearchError: the loss is no longer finite.
        fastbin.distributed.RankError: one of several processes died or failed; `out` is left whole.
        OSError: `out` cannot be written; the last checkpoint is left whole.
    """
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run")
    folder = None if out is None else Path(out)
    if population is not None:
        if on_bits is not None or on_step is not None:
            raise ValueError("a population has no on_bits and no on_step")
        if shard is not None:
            raise ValueError(f"a population is not shared by processes, got shard {shard!r}")
        return _population(data, config, population, halving, folder, resume, data_dir, on_epoch)
    if halving:
        raise ValueError(f"halving needs a population, got {list(halving)} without one")
    config = config or SearchConfig()
    if shard is None:
        return _single(data, data_dir, config, folder, resume, on_epoch, on_bits, on_step)
    if shard not in get_args(Shard):
        raise ValueError(f"shard must be one of {', '.join(get_args(Shard))}, got {shard!r}")
    if on_step is not None:
        raise ValueError(f"a search shared by processes has no on_step, got shard {shard!r}")
    from fastbin import distributed, shards  # here: they stand on this module

    with distributed.joined(config.device, folder) as ranks:
        if ranks.rank > 0:
            on_epoch = on_bits = None
        start = functools.partial(shards.SHARDS[shard], ranks)
        return _single(data, data_dir, config, folder, resume, on_epoch, on_bits, None, start, ranks.rank == 0)


def _single(
    data: Data,
    data_dir: str | os.PathLike[str] | None,
    config: SearchConfig,
    folder: Path | None,
    resume: bool,
    on_epoch: Callable[[EpochRecord], None] | None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None,
    on_step: OnStep | None,
    start: StartSearch = Search,
    leads: bool = True,
) -> SearchResult:
    _check_device(config.device)
    dataset = _resolve(data, data_dir, [config.seed])[0]
    with _owned(folder if leads else None, CHECKPOINT, POPULATION, resume):
        result = _run(dataset, config, folder, resume, on_epoch, on_bits, on_step, start)
        if leads and folder is not None:
            result.save(folder / NETWORK)
        return result


def _population(
    data: Data,
    config: SearchConfig | None,
    population: int | Sequence[SearchConfig],
    halving: Sequence[int],
    folder: Path | None,
    resume: bool,
    data_dir: str | os.PathLike[str] | None,
    on_epoch: Callable[[dict[int, EpochRecord]], None] | None,
) -> list[SearchResult]:
    from fastbin.population import check_halving, configurations, run_population  # here: it stands on this module

    configs = configurations(config, population)
    rungs = check_halving(halving, configs[0])
    _check_device(configs[0].device)
    datasets = _resolve(data, data_dir, [c.seed for c in configs])
    with _owned(folder, POPULATION, CHECKPOINT, resume):
        results = run_population(datasets, configs, rungs, folder, resume, on_epoch)
        if folder is not None:
            for p, result in enumerate(results):
                result.save(member_folder(folder, p) / NETWORK)
        return results


@contextlib.contextmanager
def _owned(folder: Path | None, own: str, other: str, resume: bool) -> Iterator[None]:
    """Hold the lock of `folder`, if there is one.

    Raises:
        RunFolderError: it is in use, or holds a run, whose file is `own`, that is not to be resumed, or the file `other`.
    """
    if folder is None:
        yield
        return
    with locked(folder):
        if (folder / own).exists() and not resume:
            raise RunFolderError(f"{folder} holds a run already: resume it, or choose another folder")
        if (folder / other).exists():
            kind = "a population of searches" if other == POPULATION else "a single search"
            raise RunFolderError(f"{folder} holds {kind}: choose another folder")
        yield


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: torch was built without that kind of device
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _resolve(data: Any, data_dir: str | os.PathLike[str] | None, seeds: Sequence[int]) -> list[Dataset]:
    """The data set, for each seed of a split."""
    if isinstance(data, Dataset):
        return [data] * len(seeds)
    if isinstance(data, (str, os.PathLike)):
        return load_datasets(data, seeds, data_dir=data_dir)
    if isinstance(data, tuple) and len(data) == 2:
        return [without_test(*data)] * len(seeds)
    raise TypeError(f"data must be a name, a path, a Dataset or a pair (x, y), got {type(data).__name__}")


def _run(
    dataset: Dataset,
    config: SearchConfig,
    folder: Path | None,
    resume: bool,
    on_epoch: Callable[[EpochRecord], None] | None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None,
    on_step: OnStep | None,
    start: StartSearch,
) -> SearchResult:
    train, validation, standardizer = prepare(dataset, config)
    run = Run(dataset, config, standardizer, start)
    search = run.search
    mark = fingerprint(train, validation, dataset.labels) if folder is not None or start is not Search else ""
    if folder is not None:
        run.keep_in(folder, mark, resume)
    search.agree("their data, configuration or checkpoint", mark, config, len(run.history), run.best.best_epoch)
    if on_bits is not None and not run.history:
        on_bits(0, [w.clone() for w in run.best.net.weights()])
    x = train.x.to(getattr(torch, config.activations))
    inputs = dataclasses.replace(train, x=torch.empty_like(x) if config.input_dropout else x)
    step = search.step if on_step is None else _observed(search, on_step)
    capture = on_step is None and start is Search and capturable(config)
    steps = Steps(step, len(search.states), inputs, min(config.batch_size, len(train.y)), capture)
    while not run.over:
        record, found = _epoch(search, steps, train, validation, len(run.history) + 1)
        if on_bits is not None:
            on_bits(record.epoch, [w.clone() for w in found])
        run.add(record, found)
        if on_epoch is not None:
            on_epoch(record)
    if len(dataset.y_test) == 0:
        return run.best
    test = Part(standardizer.transform(dataset.x_test).to(config.device), dataset.y_test.to(config.device))
    accuracy = search.evaluate(run.best.net, test)[1]
    return dataclasses.replace(run.best, test_accuracy=accuracy)


def prepare(dataset: Dataset, config: SearchConfig) -> tuple[Part, Part, Standardizer]:
    """Training and validation part of a data set, standardised and on the search's device, and the standardiser."""
    train_at, validation_at, standardizer = split(dataset, config)
    x = standardizer.transform(dataset.x_train)  # whole: it takes no empty part
    parts = [Part(x[at].to(config.device), dataset.y_train[at].to(config.device)) for at in (train_at, validation_at)]
    return parts[0], parts[1], standardizer


def split(dataset: Dataset, config: SearchConfig) -> tuple[Tensor, Tensor, Standardizer]:
    """Indices of the training and of the validation part of a data set, and the standardiser."""
    train_at, validation_at = split_validation(dataset.y_train, config.validation, config.seed)
    return (
        train_at,
        validation_at,
        Standardizer.fit(dataset.x_train[train_at], dataset.pixels, config.encoding),
    )


def fingerprint(train: Part, validation: Part, labels: Labels) -> str:
    """What tells a run's data from other data."""
    digest = hashlib.sha256(repr(labels).encode())
    for part in (train, validation):
        for t in (part.x, part.y):
            digest.update(str(tuple(t.shape)).encode())
            digest.update(t.cpu().numpy().tobytes())
    return digest.hexdigest()


def _observed(search: Search, on_step: OnStep) -> Step:
    def step(x: Tensor, y: Tensor, rule: Rule, hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        on_step(search, x, y, rule)
        return search.step(x, y, rule, hyper)

    return step


def capturable(config: SearchConfig) -> bool:
    """Whether a step can be a CUDA graph.

    The estimator ``soft`` makes its weights with a number of the host's that changes from step to step, the temperature, and
    the reference reads the number of the step on the host.
    """
    on_gpu = torch.device(config.device).type == "cuda"
    return on_gpu and config.estimator != "soft" and backends.requested() != "reference"


def _epoch(
    search: Search, steps: Steps[Part], train: Part, validation: Part, epoch: int
) -> tuple[EpochRecord, list[BitMatrix]]:
    started = time.perf_counter()
    config = search.config
    samples = len(steps.train.y)
    batches = order(config, samples, epoch).to(config.device).split(steps.batch_size)
    rules = rules_of(config, len(batches), epoch)
    if config.input_dropout:
        # A sample is used once an epoch: all of them are masked before, in place, and a captured step draws nothing.
        steps.train.x.bernoulli_(1 - config.input_dropout, generator=dropout_generator(config, epoch))
        steps.train.x.mul_(train.x).div_(1 - config.input_dropout)
    steps.run(batches, rules, torch.tensor([[rule.constants()] for rule in rules], dtype=torch.float64))
    loss, correct, flips = search.sums(steps)
    train_loss = check_finite(loss / samples, epoch)
    rule = rules[-1]
    found = search.found()
    validation_loss = validation_accuracy = None
    if len(validation.y):
        net = make_net(config, search.net.widths, found)
        validation_loss, validation_accuracy = search.evaluate(net, validation)
        check_finite(validation_loss, epoch)
    record = EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        train_accuracy=correct / samples,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        flips=flips,
        density=[w.density() for w in found],
        lr=rule.lr if isinstance(rule, ScoreRule) else 0.0,
        tau=rule.tau if isinstance(rule, ScoreRule) else 1.0,
        seconds=time.perf_counter() - started,
    )
    return record, found


def order(config: SearchConfig, samples: int, epoch: int) -> Tensor:
    """The order of the training samples in an epoch, int64 ``[samples]``, on the CPU."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(derived_seed(config.seed, ORDER, epoch)))


def rules_of(config: SearchConfig, steps: int, epoch: int) -> list[Rule]:
    """The rule of each of an epoch's steps."""
    return [config.rule_at((epoch - 1 + i / steps) / config.epochs) for i in range(steps)]


def dropout_generator(config: SearchConfig, epoch: int) -> torch.Generator:
    """What draws an epoch's kept inputs, on the search's device."""
    return torch.Generator(config.device).manual_seed(derived_seed(config.seed, DROPOUT, epoch))


def check_finite(loss: float, epoch: int, whose: str = "") -> float:
    """The loss; raises SearchError, which begins with `whose` it is, if it is not finite."""
    if not math.isfinite(loss):
        raise SearchError(f"{whose}the loss is {loss} in epoch {epoch}: try a smaller lr, or norm layer")
    return loss
