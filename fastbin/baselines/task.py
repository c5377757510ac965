"""What every kind of network is given, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastbin.baselines.nets import Network, RealNet
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.data import Dataset, Standardizer
from fastbin.descent import derived_seed
from fastbin.nn import WeightFreeNet
from fastbin.result import EpochRecord, make_net
from fastbin.search import prepare
from fastbin.steps import Part

PASSES = 3  # a training step's products in units of a forward pass: forward, gradient of inputs, gradient of weights


@dataclass(frozen=True, eq=False)
class Task:
    """One problem, the same for all kinds of network. There is no test part in it: nothing can be chosen by it.

    Attributes:
        dataset: the training part, raw; its test part is empty.
        config: widths, form of the network, epochs, batch size, seed and device.
        train: standardised training samples, those held out left out.
        validation: the samples held out, to choose by.
        standardizer: fitted on `train`.
        density: share of ones in each layer of the searched network, for the kinds that are made at its density.
    """

    dataset: Dataset
    config: SearchConfig
    train: Part
    validation: Part
    standardizer: Standardizer
    density: tuple[float, ...] | None = None

    @classmethod
    def of(cls, dataset: Dataset, config: SearchConfig) -> Task:
        """The task of a data set; its test part is put away.

        Raises:
            ValueError: the configuration holds out no validation part, or has packed hidden layers.
        """
        if config.validation == 0:
            raise ValueError("kinds of network are chosen by a validation part: validation must be above 0, got 0")
        if config.activation == "step":
            raise ValueError("not all kinds of network have packed layers: choose relu, tanh or gelu, not step")
        dataset = dataclasses.replace(dataset, x_test=dataset.x_test[:0], y_test=dataset.y_test[:0])
        return cls(dataset, config, *prepare(dataset, config))

    @property
    def widths(self) -> list[int]:
        """Units of the input, of each hidden layer and of the output."""
        return [self.dataset.features, *self.config.hidden, self.dataset.classes]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shape of each layer's weights."""
        return [(n_out, n_in) for n_in, n_out in pairwise(self.widths)]

    @property
    def edges(self) -> int:
        """Number of possible connections."""
        return sum(rows * cols for rows, cols in self.shapes)

    def training(self, epochs: int) -> int:
        """Operations of so many epochs of gradient descent on all possible connections.

        One operation is one connection passed by one sample; a step passes each three times.
        """
        return PASSES * self.edges * len(self.train.y) * epochs

    @property
    def budget(self) -> int:
        """Operations that a kind may take: those of the search."""
        return self.training(self.config.epochs)

    def generator(self, *purpose: int) -> torch.Generator:
        """Random numbers on the CPU for one purpose; those of the search are of purposes below 10."""
        return torch.Generator().manual_seed(derived_seed(self.config.seed, *purpose))

    def real_net(self, weights: Sequence[Tensor]) -> RealNet:
        """The network of the configured form on these real weights, on the task's device."""
        c = self.config
        weights = [w.to(c.device) for w in weights]
        return RealNet(self.widths, c.activation, c.norm, c.logit_scale, weights, c.output_norm)

    def bit_net(self, weights: Sequence[BitMatrix]) -> WeightFreeNet:
        """The network of the configured form on these bits, on the task's device."""
        return make_net(self.config, self.widths, [w.to(self.config.device) for w in weights])

    def searched_density(self) -> tuple[float, ...]:
        """The searched network's density; raises ValueError if it is not known."""
        if self.density is None:
            raise ValueError("this kind is made at the density of the searched network, which must be found before")
        return self.density


@dataclass(frozen=True, eq=False)
class Trained:
    """What a kind of network gives.

    Attributes:
        net: the network, chosen by the validation part.
        operations: what it took, in the unit of `Task.budget`.
        history: a record for each epoch; empty for kinds without.
        best_epoch: the epoch that the network is of; 0 without epochs.
        draws: the networks of which the mean is to be told beside the chosen one.
        evolution: the bits before training and after each epoch, for kinds whose weights are bits all along.
    """

    net: Network
    operations: int
    history: list[EpochRecord] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    draws: Sequence[Network] = ()
    evolution: Sequence[list[BitMatrix]] = ()
