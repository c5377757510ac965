"""The search: approximate gradient descent on the scores of the edges, with forward and backward products on bits."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import backends, checkpoint, ops, reference
from fastbin.arrays import Labels
from fastbin.backprop import backprop
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.data import Dataset, Standardizer, load_dataset, split_validation, without_test
from fastbin.result import EpochRecord, SearchResult, evaluate, make_net, read_result
from fastbin.rules import Rule, ScoreRule, UpdateState
from fastbin.runs import CHECKPOINT, NETWORK, RunFolderError, append_metrics, locked, write_config, write_metrics
from fastbin.steps import Part, Step, Steps


def derived_seed(seed: int, *path: int) -> int:
    """A seed in [0, 2^63) for one purpose, independent of the others' (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


_SCORES, _SAMPLING, _ORDER, _DROPOUT = range(4)  # what seeds are derived for


class Search:
    """All that changes while a search runs.

    Attributes:
        net: its bits are those of the current step: 1[θ > 0], or the sampled ones.
        scores: θ of each layer, float32 ``[n_l, n_(l-1)]``; None for bop.
        states: what the rule remembers of each layer.
    """

    def __init__(self, config: SearchConfig, widths: list[int]) -> None:
        self.config = config
        rule = config.rule_at(0.0)
        self.scores: list[Tensor | None] = []
        self.states: list[UpdateState] = []
        weights = []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            generator = torch.Generator().manual_seed(derived_seed(config.seed, _SCORES, i))
            scores = torch.randn(n_out, n_in, generator=generator) * config.init_std
            w = BitMatrix.pack(scores, threshold=0.0)
            seed = derived_seed(config.seed, _SAMPLING, i)
            if isinstance(rule, ScoreRule) and rule.sample:
                w = BitMatrix(reference.sample_bits(scores, rule.tau, torch.tensor([seed]), 0), n_in)
            # Drawn on the CPU, so that a seed means the same start on every device.
            weights.append(w.to(config.device))
            self.scores.append(scores.to(config.device) if isinstance(rule, ScoreRule) else None)
            self.states.append(rule.init_state(weights[-1], seed))
        self.net = make_net(config, widths, weights)

    def step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step on standardised inputs ``[B, n_0]`` and class indices ``[B]``.

        Args:
            x: inputs.
            y: class indices.
            rule: of this step.
            hyper: float64 ``[1, 6]``, the rule's constants on the search's device; copied there without.

        Returns:
            The batch's loss and its right predictions before the update, and each layer's flips ``[L]``. With `hyper`,
            nothing waits for the device.
        """
        hyper = rule.hyper(1, x.device) if hyper is None else hyper
        if self.config.estimator == "soft":
            return self._soft_step(x, y, rule, hyper)
        batch = backprop(self.net, x, y)
        layers = zip(self.scores, batch.grads, batch.inputs, self.net.weights(), self.states, strict=True)
        flips = [
            ops.mask_grad_update_(scores, gy, h, w, state, rule, hyper=hyper) for scores, gy, h, w, state in layers
        ]
        return batch.loss, (batch.logits.argmax(1) == y).sum(), torch.stack(flips)

    def _soft_step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The gradient of the mean-field relaxation itself, on dense weights sigmoid(θ/τ).
        assert isinstance(rule, ScoreRule)
        weights = [torch.sigmoid(s / rule.tau).requires_grad_() for s in self.scores if s is not None]
        h = x
        for i, w in enumerate(weights):
            z = self.net.normalise(F.linear(h, w), i)
            if i < len(weights) - 1:
                h = self.net.activate(z)
        logits = z * self.net.logit_scale
        loss = F.cross_entropy(logits, y)
        grads = torch.autograd.grad(loss, weights)
        flips = [
            ops.mask_update_(scores, g, bits, state, rule, hyper=hyper)
            for scores, g, bits, state in zip(self.scores, grads, self.net.weights(), self.states, strict=True)
        ]
        return loss.detach(), (logits.argmax(1) == y).sum(), torch.stack(flips)

    def found(self) -> list[BitMatrix]:
        """A copy of the bits that the scores stand for now: 1[θ > 0] (for bop, the bits themselves)."""
        return [
            w.clone() if s is None else BitMatrix.pack(s, threshold=0.0)
            for s, w in zip(self.scores, self.net.weights(), strict=True)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint."""
        named = {}
        for i, (w, scores, state) in enumerate(zip(self.net.weights(), self.scores, self.states, strict=True)):
            named[f"search.{i}.words"] = w.words
            named[f"search.{i}.step"] = state.step
            if scores is not None:
                named[f"search.{i}.scores"] = scores
            for j, buffer in enumerate(state.buffers):
                named[f"search.{i}.buffers.{j}"] = buffer
        return named

    def restore(self, reader: checkpoint.Reader) -> None:
        """Take the state that `tensors` gave from a checkpoint; raises CheckpointError if it does not fit."""
        for i, w in enumerate(self.net.weights()):
            reader.bits(f"search.{i}.words", w.rows, w.cols)  # checks the tail bits
        for name, mine in self.tensors().items():
            stored = reader.tensor(name, mine.dtype, tuple(mine.shape))
            if name.endswith(".step") and int(stored) < 0:
                raise reader.fail(f"tensor {name!r} must be at least 0, is {int(stored)}")
            mine.copy_(stored)


OnStep = Callable[[Search, Tensor, Tensor, Rule], None]


class SearchError(RuntimeError):
    """The search cannot go on; the message says where and why."""


def run_search(
    data: str | os.PathLike[str] | Dataset | tuple[Any, Any],
    config: SearchConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Search for a weight-free network.

    >>> import fastbin
    >>> result = fastbin.run_search("digits", fastbin.SearchConfig(hidden=(64,), epochs=3, seed=0))
    >>> result.test_accuracy > 0.8
    True

    Args:
        data: a named data set or the path of an .npz file (`fastbin.data.load_dataset`), a `Dataset`, or a pair (x, y) of
            arrays or tensors, ``[n, ..]`` raw inputs and ``[n]`` labels, all of it for training and validation.
        config: what to do; defaults without.
        out: a folder for checkpoint, metrics, configuration and the found network; nothing is written without.
        resume: go on from the checkpoint in `out` (from the beginning if there is none yet). The result then equals that of
            a run that was never stopped, bit for bit, on the same machine, backend and number of threads.
        data_dir: folder of the named data sets.
        on_epoch: called with each new record of the history.
        on_bits: called with the number of each epoch and a copy of the bits 1[θ > 0] after it; first with 0 and those of the
            start. An epoch after which a run was killed may come again when it is resumed.
        on_step: called before each step with the search, its batch and its rule; only to look
            (`fastbin.theory.GradientLog`). Steps are then no CUDA graph.

    Returns:
        The network that did best on the validation part, and the history.

    Raises:
        ValueError, TypeError: data or configuration do not fit.
        DataError: a named data set cannot be read or downloaded.
        CheckpointError, RunFolderError: `out` holds another run, or a damaged one.
        SearchError: the loss is no longer finite.
        OSError: `out` cannot be written; the last checkpoint is left whole.
    """
    config = config or SearchConfig()
    _check_device(config.device)
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run")
    dataset = _resolve(data, data_dir, config.seed)
    if out is None:
        return _run(dataset, config, None, False, on_epoch, on_bits, on_step)
    folder = Path(out)
    with locked(folder):
        if (folder / CHECKPOINT).exists() and not resume:
            raise RunFolderError(f"{folder} holds a run already: resume it, or choose another folder")
        result = _run(dataset, config, folder, resume, on_epoch, on_bits, on_step)
        result.save(folder / NETWORK)
        return result


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: torch was built without that kind of device
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _resolve(data: Any, data_dir: str | os.PathLike[str] | None, seed: int) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, os.PathLike)):
        return load_dataset(data, data_dir=data_dir, seed=seed)
    if isinstance(data, tuple) and len(data) == 2:
        return without_test(*data)
    raise TypeError(f"data must be a name, a path, a Dataset or a pair (x, y), got {type(data).__name__}")


def _run(
    dataset: Dataset,
    config: SearchConfig,
    folder: Path | None,
    resume: bool,
    on_epoch: Callable[[EpochRecord], None] | None,
    on_bits: Callable[[int, list[BitMatrix]], None] | None,
    on_step: OnStep | None,
) -> SearchResult:
    train, validation, standardizer = prepare(dataset, config)
    search = Search(config, [dataset.features, *config.hidden, dataset.classes])
    fingerprint = _fingerprint(train, validation, dataset.labels) if folder else ""
    best = _result(dataset, config, standardizer, search.found(), [], 0)
    if folder is not None:
        if resume and (folder / CHECKPOINT).exists():
            best = _restore(folder / CHECKPOINT, search, config, fingerprint)
        write_config(folder, config, dataset.name)
        write_metrics(folder, best.history)
    history = best.history
    if on_bits is not None and not history:
        on_bits(0, search.found())
    x = train.x.to(getattr(torch, config.activations))
    inputs = dataclasses.replace(train, x=torch.empty_like(x) if config.input_dropout else x)
    step = search.step if on_step is None else _observed(search, on_step)
    capture = on_step is None and _capturable(config)
    steps = Steps(step, len(search.states), inputs, min(config.batch_size, len(train.y)), capture)
    while len(history) < config.epochs and not _stalled(config, history, best.best_epoch):
        record = _epoch(search, steps, train, validation, len(history) + 1)
        history = [*history, record]
        if _better(record, history[best.best_epoch - 1] if best.best_epoch else None):
            best = _result(dataset, config, standardizer, search.found(), history, record.epoch)
        best = dataclasses.replace(best, history=history)
        if on_bits is not None:
            on_bits(record.epoch, search.found())
        if folder is not None:
            tensors, metadata = best.to_checkpoint()
            metadata["fingerprint"] = fingerprint
            checkpoint.save(folder / CHECKPOINT, {**tensors, **search.tensors()}, metadata)
            append_metrics(folder, record)
        if on_epoch is not None:
            on_epoch(record)
    if len(dataset.y_test) == 0:
        return best
    x_test = standardizer.transform(dataset.x_test).to(config.device)
    return dataclasses.replace(best, test_accuracy=evaluate(best.net, x_test, dataset.y_test.to(config.device))[1])


def prepare(dataset: Dataset, config: SearchConfig) -> tuple[Part, Part, Standardizer]:
    """Training and validation part of a data set, standardised and on the search's device, and the standardiser."""
    train_at, validation_at = split_validation(dataset.y_train, config.validation, config.seed)
    standardizer = Standardizer.fit(dataset.x_train[train_at], dataset.pixels, config.encoding)
    x = standardizer.transform(dataset.x_train)  # whole: it takes no empty part
    parts = [Part(x[at].to(config.device), dataset.y_train[at].to(config.device)) for at in (train_at, validation_at)]
    return parts[0], parts[1], standardizer


def _fingerprint(train: Part, validation: Part, labels: Labels) -> str:
    digest = hashlib.sha256(repr(labels).encode())
    for part in (train, validation):
        for t in (part.x, part.y):
            digest.update(str(tuple(t.shape)).encode())
            digest.update(t.cpu().numpy().tobytes())
    return digest.hexdigest()


def _result(
    dataset: Dataset,
    config: SearchConfig,
    standardizer: Standardizer,
    weights: list[BitMatrix],
    history: list[EpochRecord],
    best_epoch: int,
) -> SearchResult:
    widths = [dataset.features, *config.hidden, dataset.classes]
    net = make_net(config, widths, weights)
    return SearchResult(net, standardizer, dataset.labels, config, history, best_epoch, dataset.name)


def _restore(path: Path, search: Search, config: SearchConfig, fingerprint: str) -> SearchResult:
    reader = checkpoint.Reader(path)
    best = read_result(reader)
    stored, given = best.config.to_json(), config.to_json()
    for name, value in given.items():
        if stored[name] != value:
            raise RunFolderError(f"{path.parent} holds a run with {name}={stored[name]!r}, asked for is {value!r}")
    if reader.entry("fingerprint", str) != fingerprint:
        raise RunFolderError(f"{path.parent} holds a run on other data ({best.data_name!r})")
    search.restore(reader)
    return dataclasses.replace(best, net=best.net.to(config.device))


def _observed(search: Search, on_step: OnStep) -> Step:
    def step(x: Tensor, y: Tensor, rule: Rule, hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        on_step(search, x, y, rule)
        return search.step(x, y, rule, hyper)

    return step


def _capturable(config: SearchConfig) -> bool:
    """Whether a step can be a CUDA graph.

    The estimator ``soft`` makes its weights with a number of the host's that changes from step to step, the temperature, and
    the reference reads the number of the step on the host.
    """
    on_gpu = torch.device(config.device).type == "cuda"
    return on_gpu and config.estimator != "soft" and backends.requested() != "reference"


def _epoch(search: Search, steps: Steps, train: Part, validation: Part, epoch: int) -> EpochRecord:
    started = time.perf_counter()
    config = search.config
    samples = len(steps.train.y)
    generator = torch.Generator().manual_seed(derived_seed(config.seed, _ORDER, epoch))
    batches = torch.randperm(samples, generator=generator).to(config.device).split(steps.batch_size)
    rules = [config.rule_at((epoch - 1 + i / len(batches)) / config.epochs) for i in range(len(batches))]
    if config.input_dropout:
        # A sample is used once an epoch: all of them are masked before, in place, and a captured step draws nothing.
        generator = torch.Generator(config.device).manual_seed(derived_seed(config.seed, _DROPOUT, epoch))
        kept = 1 - config.input_dropout
        steps.train.x.bernoulli_(kept, generator=generator).mul_(train.x).div_(kept)
    steps.run(batches, rules)
    train_loss = _finite(float(steps.loss) / samples, epoch)
    rule = rules[-1]
    found = search.found()
    validation_loss = validation_accuracy = None
    if len(validation.y):
        validation_loss, validation_accuracy = evaluate(
            make_net(config, search.net.widths, found), validation.x, validation.y
        )
        _finite(validation_loss, epoch)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        train_accuracy=int(steps.correct) / samples,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        flips=steps.flips.tolist(),
        density=[w.density() for w in found],
        lr=rule.lr if isinstance(rule, ScoreRule) else 0.0,
        tau=rule.tau if isinstance(rule, ScoreRule) else 1.0,
        seconds=time.perf_counter() - started,
    )


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise SearchError(f"the loss is {loss} in epoch {epoch}: try a smaller lr, or norm layer")
    return loss


def _better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """Whether a record is to be preferred: higher validation accuracy, then lower loss; without validation, the last."""
    if best is None or record.validation_accuracy is None:
        return True
    assert record.validation_loss is not None and best.validation_loss is not None
    assert best.validation_accuracy is not None
    return (record.validation_accuracy, -record.validation_loss) > (best.validation_accuracy, -best.validation_loss)


def _stalled(config: SearchConfig, history: list[EpochRecord], best_epoch: int) -> bool:
    return config.patience is not None and len(history) - best_epoch >= config.patience
