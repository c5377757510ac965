"""What a search returns, and the network file that it can be loaded from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import checkpoint
from fastbin.arrays import Labels, check_inputs, encode_labels
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig, is_number, is_whole
from fastbin.data import Standardizer
from fastbin.nn import WeightFreeNet

EVALUATION_BATCH = 4096  # samples at once; bounds memory, changes no result


@dataclass(frozen=True)
class EpochRecord:
    """One line of a search's history.

    Attributes:
        epoch: 1 for the first.
        train_loss: mean cross-entropy over the epoch's batches, each before its update.
        train_accuracy: share of right predictions over the same batches.
        validation_loss: of the bits 1[θ > 0] after the epoch; None without a validation part.
        validation_accuracy: likewise.
        flips: bits that changed, summed over the epoch's steps, for each layer.
        density: share of ones in 1[θ > 0] after the epoch, for each layer.
        lr: step size of the epoch's last step (0.0 for bop).
        tau: temperature of the epoch's last step.
        seconds: wall-clock time of the epoch, evaluation included.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    flips: list[int]
    density: list[float]
    lr: float
    tau: float
    seconds: float

    @property
    def standing(self) -> tuple[float, float]:
        """Validation accuracy, then less loss: the higher is to be preferred; equal for all without a validation part."""
        return (self.validation_accuracy or 0.0, -(self.validation_loss or 0.0))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return asdict(self)

    def fits(self, epoch: int, layers: int, validated: bool) -> bool:
        """Whether the values are of their types, and those of this epoch of a search."""
        validation = (self.validation_loss, self.validation_accuracy)
        return (
            self.epoch == epoch
            and all(map(_is_finite, (self.train_loss, self.train_accuracy, self.lr, self.tau, self.seconds)))
            and (all(map(_is_finite, validation)) if validated else validation == (None, None))
            and all(isinstance(values, list) and len(values) == layers for values in (self.flips, self.density))
            and all(map(is_whole, self.flips))
            and all(map(_is_finite, self.density))
        )


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def evaluate(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `net` on standardised inputs and class indices."""
    loss = correct = 0.0
    with torch.no_grad():
        for xs, ys in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            logits = net(xs)
            loss += float(F.cross_entropy(logits, ys, reduction="sum"))
            correct += float((logits.argmax(1) == ys).sum())
    return loss / len(y), correct / len(y)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A found network with all that it needs to take raw inputs.

    Attributes:
        net: the network; takes standardised inputs.
        standardizer: fitted on the training part.
        labels: what each class index stands for.
        config: of the search.
        history: a record for each epoch.
        best_epoch: the epoch that the network is of, chosen by the validation part (the last one without).
        data_name: the data set that was searched on.
        test_accuracy: on the data set's test part; None if it has none.
    """

    net: WeightFreeNet
    standardizer: Standardizer
    labels: Labels
    config: SearchConfig
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    data_name: str = ""
    test_accuracy: float | None = None

    def logits(self, x: Any) -> Tensor:
        """Logits ``[n, classes]`` of raw inputs: array, tensor or nested list ``[n, ..]``, trailing axes flattened.

        Raises:
            TypeError: x is not numeric.
            ValueError: the number of features differs, a value is NaN or infinite, or x is empty.
        """
        inputs = self.standardizer.transform(check_inputs(x, self.net.widths[0]))
        inputs = inputs.to(self.net.bit_layers()[0].words.device)
        with torch.no_grad():
            return torch.cat([self.net(part) for part in inputs.split(EVALUATION_BATCH)])

    def predict(self, x: Any) -> np.ndarray[Any, Any]:
        """Labels ``[n]`` of raw inputs, as they were given in training. Raises as `logits` does."""
        predicted: np.ndarray[Any, Any] = np.asarray(self.labels)[self.logits(x).argmax(1).cpu().numpy()]
        return predicted

    def score(self, x: Any, y: Any) -> float:
        """Accuracy of `predict` on raw inputs and labels.

        Raises:
            TypeError, ValueError: as `logits`, and for labels that are unknown or of another number than the inputs.
        """
        logits = self.logits(x)
        targets = encode_labels(y, self.labels, len(logits)).to(logits.device)
        return float((logits.argmax(1) == targets).double().mean())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to `path` (safetensors with JSON in its header), whole or not at all."""
        checkpoint.save(Path(path), *self.to_checkpoint())

    def to_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of the network, as `load_result` reads them."""
        tensors = {f"layers.{i}.words": w.words for i, w in enumerate(self.net.weights())}
        tensors["standardizer.mean"] = self.standardizer.mean
        tensors["standardizer.scale"] = self.standardizer.scale
        metadata = {
            "widths": list(self.net.widths),
            "labels": list(self.labels),
            "config": self.config.to_json(),
            "history": [record.to_json() for record in self.history],
            "best_epoch": self.best_epoch,
            "data_name": self.data_name,
            "test_accuracy": self.test_accuracy,
        }
        return tensors, metadata


def read_result(reader: checkpoint.Reader) -> SearchResult:
    """The network of a checkpoint; raises CheckpointError if anything in it does not fit the rest."""
    widths, labels = reader.entry("widths", list), reader.entry("labels", list)
    if not all(isinstance(n, int) and n >= 1 for n in widths) or len(widths) < 2:
        raise reader.fail(f"metadata 'widths' is {widths!r}")
    sound = all(isinstance(label, (int, str)) for label in labels)
    if not sound or len(labels) != widths[-1] or len(set(labels)) != len(labels):
        raise reader.fail(f"metadata 'labels' does not name {widths[-1]} classes: {labels!r}")
    weights = [reader.bits(f"layers.{i}.words", n_out, n_in) for i, (n_in, n_out) in enumerate(pairwise(widths))]
    try:
        config = SearchConfig.from_json(reader.entry("config", dict))
        history = [EpochRecord(**record) for record in reader.entry("history", list)]
        net = make_net(config, widths, weights)
    except (ValueError, TypeError, OverflowError) as error:
        raise reader.fail(str(error)) from error
    if tuple(widths[1:-1]) != config.hidden:
        raise reader.fail(f"metadata 'widths' is {widths!r}, but the configuration has hidden={config.hidden}")
    for epoch, record in enumerate(history, 1):
        if not record.fits(epoch, len(weights), config.validation > 0):
            raise reader.fail(f"metadata 'history' has as its line {epoch}: {record}")
    best_epoch = reader.entry("best_epoch", int)
    if not min(1, len(history)) <= best_epoch <= len(history):
        raise reader.fail(f"metadata 'best_epoch' is {best_epoch} of {len(history)} epochs")
    scale = reader.tensor("standardizer.scale", torch.float32, (widths[0],))
    if not bool((scale > 0).all()):
        raise reader.fail(f"tensor 'standardizer.scale' must be positive, its least value is {float(scale.min())}")
    return SearchResult(
        net=net,
        standardizer=Standardizer(
            reader.tensor("standardizer.mean", torch.float32, (widths[0],)),
            scale,
            config.encoding,
        ),
        labels=tuple(labels),
        config=config,
        history=history,
        best_epoch=best_epoch,
        data_name=reader.entry("data_name", str),
        test_accuracy=reader.entry("test_accuracy", (float, type(None))),
    )


def load_result(path: str | os.PathLike[str]) -> SearchResult:
    """Load the network of a file that `SearchResult.save` or a search's checkpoint wrote.

    Loading cannot run code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, truncated, or does not fit together.
    """
    return read_result(checkpoint.Reader(Path(path)))


def make_net(config: SearchConfig, widths: Sequence[int], weights: Sequence[BitMatrix]) -> WeightFreeNet:
    """The network that `config` describes, on these bits."""
    return WeightFreeNet(
        widths,
        activation=config.activation,
        norm=config.norm,
        output_norm=config.output_norm,
        logit_scale=config.logit_scale,
        weights=weights,
    )
