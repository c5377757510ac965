"""A population of searches in one process: each op of a step runs once for all members.

A member does what a search of its own with its configuration would do, bit for bit. What is kept of it, its checkpoint
included, is what `fastbin.run.Run` keeps of any search.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import checkpoint, search
from fastbin.arrays import check_inputs
from fastbin.backprop import forward
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig, is_whole
from fastbin.data import Dataset, Standardizer
from fastbin.descent import descend
from fastbin.encodings import encode
from fastbin.nn import Perceptron
from fastbin.result import EVALUATION_BATCH, EpochRecord, SearchResult, make_net
from fastbin.rules import ScoreRule, UpdateState
from fastbin.run import Run
from fastbin.runs import POPULATION, RunFolderError, member_folder
from fastbin.steps import Steps

OnEpoch = Callable[[dict[int, EpochRecord]], None]

# What members may differ in. The rest decides shapes and kernels, which they share.
OWN = (
    "density", "init_std", "lr", "lr_end", "lr_schedule", "tau", "tau_end", "tau_schedule", "clip", "momentum", "betas",
    "gamma", "threshold", "input_dropout", "patience", "seed",
)  # fmt: skip

_EVALUATION_FLOATS = 1 << 24  # of a layer, of the members that are evaluated at once: 64 MB


def configurations(config: SearchConfig | None, population: int | Sequence[SearchConfig]) -> list[SearchConfig]:
    """The configuration of each member.

    Args:
        config: of all, where `population` is their number; defaults without.
        population: how many, with the seeds ``config.seed``, ``config.seed + 1``, ..; or their configurations.

    Raises:
        TypeError, ValueError: no number of members, nor configurations that can be searched together.
    """
    if isinstance(population, Sequence):
        members = list(population)
        if config is not None:
            raise ValueError("population holds the configurations: config must be left out")
    elif is_whole(population):
        config = config or SearchConfig()
        members = [dataclasses.replace(config, seed=config.seed + p) for p in range(population)]
    else:
        raise TypeError(f"population must be a number or configurations, got {population!r}")
    if not members:
        raise ValueError(f"population must have at least 1 member, got {population!r}")
    for p, member in enumerate(members):
        if not isinstance(member, SearchConfig):
            raise TypeError(f"population must hold configurations (SearchConfig), got {member!r}")
        for field in dataclasses.fields(SearchConfig):
            mine, first = getattr(member, field.name), getattr(members[0], field.name)
            if mine != first and field.name not in OWN:
                raise ValueError(
                    f"members of a population must agree in {field.name}: member 0 has {first!r}, member {p} {mine!r}"
                )
    if members[0].estimator == "soft":
        raise ValueError("a population's estimator must be hard or sample, got 'soft': its weights are dense")
    return members


def check_halving(halving: Sequence[int], config: SearchConfig) -> tuple[int, ...]:
    """The epochs after which the better half goes on; raises ValueError for others than the search has, in order."""
    rungs = tuple(halving)
    rising = all(map(is_whole, rungs)) and list(rungs) == sorted({*rungs})
    if not rising or not all(1 <= epoch < config.epochs for epoch in rungs):
        raise ValueError(f"halving must be rising epochs in [1, {config.epochs - 1}], got {list(halving)}")
    if rungs and config.validation == 0:
        raise ValueError("halving goes by the validation part: validation must be above 0, got 0")
    return rungs


@dataclasses.dataclass(frozen=True)
class Samples:
    """One part of each member's data.

    Attributes:
        values: float32 ``[rows, n_0]``: the encoded samples that all members draw on.
        rows: int64 ``[P, n]``: where in `values` a member's samples are.
        mean: float32 ``[P, 1, n_0]``, of the member's standardiser.
        scale: float32 ``[P, 1, n_0]``, likewise.
        y: int64 ``[P, n]``, class indices.
        dtype: of the standardised inputs.
        kept: the inputs that dropout leaves in this epoch, packed ``[P, n, ceil(n_0/32)]``, updated in place; None without.
        share: float32 ``[P, 1, 1]``, of inputs that dropout leaves.
    """

    values: Tensor
    rows: Tensor
    mean: Tensor
    scale: Tensor
    y: Tensor
    dtype: torch.dtype
    kept: Tensor | None
    share: Tensor

    def take(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[P, B, n_0]`` and class indices ``[P, B]`` of each member's batch of sample indices ``[P, B]``."""
        # Whole rows: three times as fast as indexing, which goes by elements.
        x = self.values.index_select(0, self.rows.gather(1, batch).flatten()).view(*batch.shape, -1)
        x = x.sub_(self.mean).div_(self.scale)
        if self.kept is None:
            x = x.to(self.dtype)
        else:
            words = self.kept[torch.arange(len(batch), device=batch.device)[:, None], batch]
            x = BitMatrix(words, x.shape[-1]).unpack(self.dtype).mul_(x).div_(self.share)
        return x, self.y.gather(1, batch)

    def of(self, members: slice | list[int]) -> Samples:
        """Those of some members."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        whole = ("values", "dtype")
        return Samples(**{name: t if name in whole or t is None else t[members] for name, t in mine.items()})


def evaluate(net: Perceptron, weights: Sequence[BitMatrix], samples: Samples) -> tuple[list[float], list[int]]:
    """What each member's bits make of its samples: the sum of the cross-entropies, and the right predictions.

    In the order of sums of `fastbin.result.evaluate`.
    """
    members, n = samples.y.shape
    at_once = max(1, _EVALUATION_FLOATS // max(1, min(n, EVALUATION_BATCH) * max(net.widths)))
    losses, right = [0.0] * members, [0] * members
    for start in range(0, n, EVALUATION_BATCH):
        batch = torch.arange(start, min(start + EVALUATION_BATCH, n), device=samples.y.device)
        for first in range(0, members, at_once):
            block = slice(first, first + at_once)
            mine = samples.of(block)
            x, y = mine.take(batch.expand(len(mine.y), -1))
            logits = forward(net, [BitMatrix(w.words[block], w.cols) for w in weights], x)
            sums = torch.stack([F.cross_entropy(*member, reduction="sum") for member in zip(logits, y, strict=True)])
            correct = (logits.argmax(-1) == y).sum(-1)
            for p, (loss, hits) in enumerate(zip(sums.tolist(), correct.tolist(), strict=True), first):
                losses[p] += loss
                right[p] += hits
    return losses, right


class Population:
    """Searches that have done equally many epochs, and go on together.

    Args:
        runs: of the members. Their tensors become views of the population's.
        training: of the members, in the dtype of the hidden layers.
        validation: likewise, in float32.
    """

    def __init__(self, runs: Sequence[Run], training: Samples, validation: Samples) -> None:
        searches = [run.search for run in runs]
        first = searches[0]
        self.runs, self.net, self._validation = runs, first.net, validation
        self._weights = [
            BitMatrix(torch.stack([w.words for w in layer]), layer[0].cols)
            for layer in zip(*(s.net.weights() for s in searches), strict=True)
        ]
        self._scores = [
            None if layer[0] is None else torch.stack(layer)
            for layer in zip(*(s.scores for s in searches), strict=True)
        ]
        self._states = [
            UpdateState(
                tuple(torch.stack(buffers) for buffers in zip(*(state.buffers for state in layer), strict=True)),
                layer[0].step.clone(),
                torch.cat([state.seed for state in layer]),
            )
            for layer in zip(*(s.states for s in searches), strict=True)
        ]
        for p, member in enumerate(searches):
            own = [BitMatrix(w.words[p], w.cols) for w in self._weights]
            member.net = make_net(member.config, first.net.widths, own)
            member.scores = [None if s is None else s[p] for s in self._scores]
            member.states = [
                UpdateState(tuple(b[p] for b in s.buffers), s.step, s.seed[p : p + 1]) for s in self._states
            ]
        # Members that differ in their seeds alone have the same rules.
        self._kinds = [dataclasses.replace(s.config, seed=0) for s in searches]
        config, samples = first.config, training.y.shape[1]
        batch = min(config.batch_size, samples)
        # Not a method: what refers to itself keeps its memory until Python looks for such cycles.
        step = functools.partial(descend, self.net, self._weights, self._scores, self._states)
        self._steps = Steps(step, len(self._states), training, batch, search.capturable(config))

    def _found(self) -> list[BitMatrix]:
        return [
            w.clone() if s is None else BitMatrix.pack(s, threshold=0.0)
            for w, s in zip(self._weights, self._scores, strict=True)
        ]

    def epoch(self) -> list[EpochRecord]:
        """Train for an epoch, and give each run its record and its bits; raises SearchError if a loss is not finite."""
        started = time.perf_counter()
        training, number = self._steps.train, len(self.runs[0].history) + 1
        configs, samples = [run.search.config for run in self.runs], training.y.shape[1]
        if training.kept is not None:
            for config, kept in zip(configs, training.kept, strict=True):
                inputs = torch.empty((samples, self.net.widths[0]), dtype=training.dtype, device=kept.device)
                inputs.bernoulli_(1 - config.input_dropout, generator=search.dropout_generator(config, number))
                kept.copy_(BitMatrix.pack(inputs).words)
        batches = torch.stack([search.order(config, samples, number) for config in configs])
        batches = batches.to(training.y.device).split(self._steps.batch_size, 1)
        rules = {kind: search.rules_of(kind, len(batches), number) for kind in dict.fromkeys(self._kinds)}
        constants = {kind: [rule.constants() for rule in mine] for kind, mine in rules.items()}
        hyper = torch.tensor([constants[kind] for kind in self._kinds], dtype=torch.float64).transpose(0, 1)
        self._steps.run(batches, rules[self._kinds[0]], hyper.contiguous())
        whose = [f"member with seed {config.seed}: " for config in configs]
        train_losses = [
            search.check_finite(loss / samples, number, name)
            for loss, name in zip(self._steps.loss.tolist(), whose, strict=True)
        ]
        found = self._found()
        losses, right = evaluate(self.net, found, self._validation)
        held_out = self._validation.y.shape[1]
        ones = torch.stack([w.count() for w in found], -1).tolist()
        totals = [w.rows * w.cols for w in found]
        records = []
        for p, (correct, flips) in enumerate(
            zip(self._steps.correct.tolist(), self._steps.flips.tolist(), strict=True)
        ):
            rule = rules[self._kinds[p]][-1]
            record = EpochRecord(
                epoch=number,
                train_loss=train_losses[p],
                train_accuracy=correct / samples,
                validation_loss=search.check_finite(losses[p] / held_out, number, whose[p]) if held_out else None,
                validation_accuracy=right[p] / held_out if held_out else None,
                flips=flips,
                density=[n / total for n, total in zip(ones[p], totals, strict=True)],
                lr=rule.lr if isinstance(rule, ScoreRule) else 0.0,
                tau=rule.tau if isinstance(rule, ScoreRule) else 1.0,
                seconds=(time.perf_counter() - started) / len(self.runs),
            )
            self.runs[p].add(record, [BitMatrix(w.words[p].clone(), w.cols) for w in found])
            records.append(record)
        return records


def run_population(
    datasets: Sequence[Dataset],
    configs: Sequence[SearchConfig],
    rungs: Sequence[int],
    folder: Path | None,
    resume: bool,
    on_epoch: OnEpoch | None,
) -> list[SearchResult]:
    """The search of each member on its data set, see `fastbin.run_search`."""
    # glibc gives freed blocks back to the system until it has seen a large one freed: the first steps of 64 networks then
    # took 3000 page faults each, a tenth of the time. 31 MiB are the most that it learns from.
    torch.empty(31 << 20, dtype=torch.uint8)
    if folder is not None:
        _claim(folder, datasets[0].name, configs, rungs)
    splits = [search.split(*member) for member in zip(datasets, configs, strict=True)]
    runs = []
    for p, (dataset, config, (_, _, standardizer)) in enumerate(zip(datasets, configs, splits, strict=True)):
        runs.append(Run(dataset, config, standardizer))
        if folder is not None:
            own = member_folder(folder, p)
            own.mkdir(exist_ok=True)
            parts = search.prepare(dataset, config)[:2]
            runs[p].keep_in(own, search.fingerprint(*parts, dataset.labels), resume)
            if runs[p].over:
                runs[p].release()
    standardizers = [standardizer for _, _, standardizer in splits]
    training, validation = (
        _samples([d.x_train for d in datasets], [d.y_train for d in datasets], at, standardizers, configs)
        for at in ([train for train, _, _ in splits], [held_out for _, held_out, _ in splits])
    )
    training = _in_steps(training, configs)
    running = list(range(len(runs)))
    for stop in (*rungs, configs[0].epochs):
        _advance(runs, running, stop, training, validation, on_epoch)
        # By the records, which say the same after a resumption: who stopped before takes no part.
        reached = [p for p in running if len(runs[p].history) >= stop]
        reached.sort(key=lambda p: runs[p].history[stop - 1].standing, reverse=True)
        running = sorted(reached[: (len(reached) + 1) // 2])
        for p in set(reached).difference(running):
            if not runs[p].over:
                runs[p].release()
    best = [run.best for run in runs]
    if len(datasets[0].y_test) == 0:
        return best
    tests = [torch.arange(len(d.y_test)) for d in datasets]
    held_out = _samples([d.x_test for d in datasets], [d.y_test for d in datasets], tests, standardizers, configs)
    weights = [
        BitMatrix(torch.stack([w.words for w in layer]), layer[0].cols)
        for layer in zip(*(result.net.weights() for result in best), strict=True)
    ]
    _, right = evaluate(best[0].net, weights, held_out)
    samples = held_out.y.shape[1]
    return [dataclasses.replace(b, test_accuracy=r / samples) for b, r in zip(best, right, strict=True)]


def _advance(
    runs: Sequence[Run],
    members: Sequence[int],
    stop: int,
    training: Samples,
    validation: Samples,
    on_epoch: OnEpoch | None,
) -> None:
    """Search on until `members` have done `stop` epochs, or are over; first those that have done the fewest."""
    together: list[int] = []
    while behind := [p for p in members if len(runs[p].history) < stop and not runs[p].over]:
        fewest = min(len(runs[p].history) for p in behind)
        now = [p for p in behind if len(runs[p].history) == fewest]
        if now != together:
            together = now
            population = Population([runs[p] for p in now], training.of(now), validation.of(now))
        records = population.epoch()
        if on_epoch is not None:
            on_epoch(dict(zip(together, records, strict=True)))
        for p in together:
            if runs[p].over:  # a view of its member would keep the memory of all
                runs[p].release()


def _samples(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    at: Sequence[Tensor],
    standardizers: Sequence[Standardizer],
    configs: Sequence[SearchConfig],
) -> Samples:
    """Samples `at` of each member's inputs and class indices; inputs that members share are kept once."""
    device = configs[0].device
    starts: dict[int, int] = {}
    values: list[Tensor] = []
    for inputs in x:
        if id(inputs) not in starts:
            starts[id(inputs)] = sum(map(len, values))
            values.append(encode(configs[0].encoding, check_inputs(inputs)))
    return Samples(
        values=torch.cat(values).to(device),
        rows=torch.stack([starts[id(inputs)] + mine for inputs, mine in zip(x, at, strict=True)]).to(device),
        mean=torch.stack([s.mean for s in standardizers])[:, None].to(device),
        scale=torch.stack([s.scale for s in standardizers])[:, None].to(device),
        y=torch.stack([classes[mine] for classes, mine in zip(y, at, strict=True)]).to(device),
        dtype=torch.float32,
        kept=None,
        share=torch.tensor([1 - c.input_dropout for c in configs], device=device)[:, None, None],
    )


def _in_steps(training: Samples, configs: Sequence[SearchConfig]) -> Samples:
    """A training part as the hidden layers and the dropout of the inputs want it."""
    kept = None
    if any(c.input_dropout for c in configs):
        kept = BitMatrix.zeros(*training.y.shape, training.values.shape[1], device=training.y.device).words
    return dataclasses.replace(training, dtype=getattr(torch, configs[0].activations), kept=kept)


def _claim(folder: Path, data: str, configs: Sequence[SearchConfig], rungs: Sequence[int]) -> None:
    """Write who is searched for in `folder`; raises RunFolderError if it holds something else."""
    path = folder / POPULATION
    about = {"data": data, "halving": list(rungs), "members": [config.to_json() for config in configs]}
    text = json.dumps(about, indent=2) + "\n"
    if path.exists() and path.read_text() != text:
        raise RunFolderError(f"{folder} holds another population, see {path}: choose another folder")
    checkpoint.write_text(path, text)
