"""The steps of an epoch: one after the other without waiting for the device, on a GPU as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbin.graphs import Graph
from fastbin.rules import Rule

# x, y, rule and its constants to the loss, the number of right predictions and the flips of each layer.
Step = Callable[[Tensor, Tensor, Rule, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """Standardised inputs and class indices of one part of the data, on the search's device."""

    x: Tensor
    y: Tensor


class Steps:
    """Steps of a search over its training part, and the sums of what they say.

    Args:
        step: `fastbin.search.Search.step`.
        layers: L, of the network.
        train: the samples.
        batch_size: of all batches but perhaps the last of an epoch.
        capture: whether the step on a full batch is captured as a CUDA graph, after the first one has loaded the kernels.

    Attributes:
        loss: float64 scalar, summed over samples.
        correct: int64 scalar, right predictions.
        flips: int64 ``[L]``.
    """

    def __init__(self, step: Step, layers: int, train: Part, batch_size: int, capture: bool) -> None:
        self.train = train
        self.batch_size = batch_size
        device = train.x.device
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.flips = torch.zeros(layers, dtype=torch.int64, device=device)
        self._step = step
        self._capture = capture
        self._warm = False
        self._graph: Graph | None = None

    def run(self, batches: Sequence[Tensor], rules: Sequence[Rule]) -> None:
        """A step by each rule on each batch of sample indices ``[B]``; the sums start anew."""
        for total in (self.loss, self.correct, self.flips):
            total.zero_()
        constants = torch.tensor([rule.constants() for rule in rules], dtype=torch.float64).to(self.train.x.device)
        for batch, rule, hyper in zip(batches, rules, constants.split(1), strict=True):
            self.step(batch, rule, hyper)

    def step(self, batch: Tensor, rule: Rule, hyper: Tensor) -> None:
        """One step by a rule, whose constants are `hyper` ``[1, 6]``, on sample indices ``[B]``."""
        full = len(batch) == self.batch_size
        if not (self._capture and self._warm and full):
            self._run(batch, rule, hyper)
            self._warm |= full
            return
        if self._graph is None:
            self._graph = Graph(lambda batch, hyper: self._run(batch, rule, hyper), batch, hyper)
        self._graph(batch, hyper)

    def _run(self, batch: Tensor, rule: Rule, hyper: Tensor) -> None:
        loss, correct, flips = self._step(self.train.x[batch], self.train.y[batch], rule, hyper)
        self.loss += loss.double() * len(batch)
        self.correct += correct
        self.flips += flips
