"""The steps of an epoch: one after the other without waiting for the device, on a GPU as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fastbin.graphs import Graph
from fastbin.rules import Rule

# x, y, rule and its constants to the loss, the number of right predictions and the flips of each layer.
Step = Callable[[Tensor, Tensor, Rule, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """Standardised inputs ``[n, n_0]`` and class indices ``[n]`` of one part of the data, on the search's device."""

    x: Tensor
    y: Tensor

    def take(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and class indices of a batch of sample indices ``[B]``."""
        return self.x[batch], self.y[batch]


class Samples(Protocol):
    """What `Steps` asks of a training part: of a search, or of a population, whose tensors lead with P."""

    @property
    def y(self) -> Tensor:
        """Class indices ``[n]``."""

    def take(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, n_0]`` and class indices ``[B]`` of a batch of sample indices ``[B]``."""


SamplesT = TypeVar("SamplesT", bound=Samples)


class Steps(Generic[SamplesT]):
    """Steps of a search over its training part, and the sums of what they say; those of a population lead with P.

    Args:
        step: `fastbin.descent.Search.step`, or of a population.
        layers: L, of the network.
        train: the samples.
        batch_size: of all batches but perhaps the last of an epoch.
        capture: whether the step on a full batch is captured as a CUDA graph, after the first one has loaded the kernels.

    Attributes:
        loss: float64 scalar, summed over samples.
        correct: int64 scalar, right predictions.
        flips: int64 ``[L]``.
    """

    def __init__(self, step: Step, layers: int, train: SamplesT, batch_size: int, capture: bool) -> None:
        self.train = train
        self.batch_size = batch_size
        members = train.y.shape[:-1]
        self.loss = train.y.new_zeros(members, dtype=torch.float64)
        self.correct = train.y.new_zeros(members)
        self.flips = train.y.new_zeros((*members, layers))
        self._step = step
        self._capture = capture
        self._warm = False
        self._graph: Graph | None = None

    def run(self, batches: Sequence[Tensor], rules: Sequence[Rule], constants: Tensor) -> None:
        """A step by each rule on each batch of sample indices ``[B]``; the sums start anew.

        Args:
            batches: of each step.
            rules: of each step; of a population's, those of any member.
            constants: float64 ``[steps, P or 1, 6]``, of the rules of each step and member.
        """
        for total in (self.loss, self.correct, self.flips):
            total.zero_()
        for batch, rule, hyper in zip(batches, rules, constants.to(self.train.y.device), strict=True):
            self.step(batch, rule, hyper)

    def step(self, batch: Tensor, rule: Rule, hyper: Tensor) -> None:
        """One step by a rule, whose constants are `hyper` ``[P or 1, 6]``, on sample indices ``[B]``."""
        full = batch.shape[-1] == self.batch_size
        if not (self._capture and self._warm and full):
            self._run(batch, rule, hyper)
            self._warm |= full
            return
        if self._graph is None:
            self._graph = Graph(lambda batch, hyper: self._run(batch, rule, hyper), batch, hyper)
        self._graph(batch, hyper)

    def _run(self, batch: Tensor, rule: Rule, hyper: Tensor) -> None:
        loss, correct, flips = self._step(*self.train.take(batch), rule, hyper)
        self.loss += loss.double() * batch.shape[-1]
        self.correct += correct
        self.flips += flips
