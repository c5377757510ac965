"""Data sets, the checks on a user's own arrays, stratified splits and standardisation."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from fastbin.arrays import Labels, check_inputs, check_labels, encode_labels
from fastbin.data_files import CLASSES, SOURCES, DataError, load_files, read_idx, read_npz
from fastbin.encodings import Encoding, encode

__all__ = [
    "NAMES",
    "DataError",
    "Dataset",
    "Standardizer",
    "check_inputs",
    "check_labels",
    "encode_labels",
    "from_arrays",
    "load_dataset",
    "load_datasets",
    "read_idx",
    "split_validation",
    "without_test",
]

NAMES = ("digits", "breast_cancer", "mnist", "fashion_mnist", "kmnist", "cifar10")
TEST_FRACTION = 0.2  # of a set that has no official test part


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in two parts.

    Attributes:
        name: what it is called.
        x_train: float32 [n, d], raw values, each sample flattened.
        y_train: int64 [n], class indices.
        x_test: float32 [m, d].
        y_test: int64 [m].
        labels: the value in y that each class index stands for: whole numbers, or strings.
        pixels: whether the inputs share one unit, and so one mean and scale.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    labels: Labels
    pixels: bool

    @property
    def features(self) -> int:
        """Inputs a sample."""
        return self.x_train.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)


def load_dataset(
    source: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> Dataset:
    """Load a public data set, or a user's own from an .npz file.

    The public sets other than digits and breast_cancer are read from torchvision's layout in the data folder
    (`MNIST/raw/train-images-idx3-ubyte.gz`, or the same without .gz) and downloaded there when missing. CIFAR-10 is the
    exception: torchvision keeps it as pickles, which can run code, so its binary version is read instead
    (`cifar-10-batches-bin/data_batch_1.bin`, or `cifar-10-binary.tar.gz` beside it).

    An .npz file holds x [n, ...] and y [n], or x_train, y_train, x_test and y_test.

    Args:
        source: one of `NAMES`, or the path of an .npz file.
        data_dir: the data folder; by default the environment's FASTBIN_DATA, else fastbin in the user's cache folder.
        seed: of the stratified 80/20 split of a set without a test part.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: unknown name, or arrays that are not fit for classification.
        DataError: a file is damaged, or missing and cannot be downloaded.
    """
    return load_datasets(source, [seed], data_dir=data_dir)[0]


def load_datasets(
    source: str | os.PathLike[str], seeds: Sequence[int], *, data_dir: str | os.PathLike[str] | None = None
) -> list[Dataset]:
    """Load a data set once and split it by each seed; one with a test part of its own is the same object for all seeds.

    Args, returns and errors are those of `load_dataset`.
    """
    name = os.fspath(source)
    if name in ("digits", "breast_cancer"):
        bunch = load_digits() if name == "digits" else load_breast_cancer()
        pixels = name == "digits"
        return [replace(from_arrays(bunch.data, bunch.target, name=name, seed=s), pixels=pixels) for s in seeds]
    if name in SOURCES:
        x_train, y_train, x_test, y_test = map(torch.from_numpy, load_files(name, _data_folder(data_dir)))
        labels = tuple(range(CLASSES))
        official = Dataset(name, x_train.float(), y_train.long(), x_test.float(), y_test.long(), labels, pixels=True)
        return [official] * len(seeds)
    if name.lower().endswith(".npz"):
        return _own(Path(name), seeds)
    close = difflib.get_close_matches(name.lower(), NAMES)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"unknown data set {name!r}: expected {', '.join(NAMES)}, or a path ending in .npz{hint}")


def from_arrays(x: Any, y: Any, *, name: str = "arrays", seed: int = 0) -> Dataset:
    """Make a data set of a user's own arrays, with a stratified 80/20 split.

    Args:
        x: inputs [n, ...], as `check_inputs` takes them; uint8 with at least three dimensions is taken for images.
        y: labels [n], as `check_labels` takes them.
        name: what to call the set.
        seed: of the split.

    Returns:
        The data set, on x's device.

    Raises:
        ValueError: arrays that are not fit for classification, or too few samples of a class to split.
    """
    inputs = check_inputs(x)
    classes, labels = check_labels(y, len(inputs))
    train, test = _stratified(classes, TEST_FRACTION, seed, labels)
    classes = classes.to(inputs.device)
    return Dataset(name, inputs[train], classes[train], inputs[test], classes[test], labels, _is_images(x))


def without_test(x: Any, y: Any, *, name: str = "arrays") -> Dataset:
    """Make a data set of a user's own arrays that is all for training.

    Args, returns and errors are those of `from_arrays`, but for the split.
    """
    inputs = check_inputs(x)
    classes, labels = check_labels(y, len(inputs))
    classes = classes.to(inputs.device)
    return Dataset(name, inputs, classes, inputs[:0], classes[:0], labels, _is_images(x))


def split_validation(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a stratified part of the training samples.

    Args:
        y: int64 [n], class indices.
        fraction: how much to hold out, 0 (nothing) up to but not including 1.
        seed: of the split.

    Returns:
        int64 indices of the training and of the validation samples, on y's device.

    Raises:
        ValueError: fraction out of range, or too few samples for each part to hold each class.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be at least 0 and below 1, got {fraction}")
    if fraction == 0:
        return torch.arange(len(y), device=y.device), torch.empty(0, dtype=torch.int64, device=y.device)
    train, held_out = _stratified(y, fraction, seed)
    return train.to(y.device), held_out.to(y.device)


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Encodes inputs, then centres and scales them by the mean and standard deviation of the training samples.

    Attributes:
        mean: float32 [d].
        scale: float32 [d], the standard deviation over the samples, or 1 where a feature is constant.
        encoding: of the raw inputs.
    """

    mean: Tensor
    scale: Tensor
    encoding: Encoding = "none"

    @classmethod
    def fit(cls, x: Any, pixels: bool, encoding: Encoding = "none") -> Standardizer:
        """Measure mean and scale, in float64.

        Args:
            x: training samples, as `check_inputs` takes them.
            pixels: one mean and scale over all values, else one a feature.
            encoding: of the raw inputs.

        Returns:
            The standardiser, on x's device.

        Raises:
            ValueError: as `check_inputs` and `fastbin.encodings.encode` do.
        """
        values = encode(encoding, check_inputs(x))
        # Float64 sums of equal float32 values are exact, and so is dividing them by their number (a multiplication by
        # 1/n is not): a constant feature has a spread of exactly 0.
        mean = values.sum(0, dtype=torch.float64) / len(values)
        if pixels:
            mean = (mean.sum() / len(mean)).expand_as(mean)
        squares = [(part.double() - mean).square().sum(0) for part in torch.split(values, 4096)]
        variance = torch.stack(squares).sum(0) / len(values)
        if pixels:
            variance = variance.mean().expand_as(mean)
        scale = variance.sqrt().float()
        scale = torch.where(scale == 0, 1.0, scale)
        return cls(mean.float().contiguous(), scale, encoding)

    def transform(self, x: Any) -> Tensor:
        """Standardise samples.

        Args:
            x: samples of d features, as `check_inputs` takes them.

        Returns:
            float32 [n, d] on x's device.

        Raises:
            ValueError: as `check_inputs` and `fastbin.encodings.encode` do.
        """
        values = encode(self.encoding, check_inputs(x, len(self.mean)))
        return (values - self.mean.to(values.device)) / self.scale.to(values.device)


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        data_dir = os.environ.get("FASTBIN_DATA") or cache / "fastbin"
    return Path(data_dir).expanduser()


def _own(path: Path, seeds: Sequence[int]) -> list[Dataset]:
    """Load a user's own .npz file; errors about its arrays name it."""
    arrays = read_npz(path)
    try:
        if "x" in arrays:
            return [from_arrays(arrays["x"], arrays["y"], name=path.stem, seed=seed) for seed in seeds]
        x_train = check_inputs(arrays["x_train"])
        y_train, labels = check_labels(arrays["y_train"], len(x_train))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        x_test = check_inputs(arrays["x_test"], x_train.shape[1])
        y_test = encode_labels(arrays["y_test"], labels, len(x_test))
    except ValueError as error:
        raise ValueError(f"{path}, test part: {error}") from error
    own = Dataset(path.stem, x_train, y_train, x_test, y_test, labels, _is_images(arrays["x_train"]))
    return [own] * len(seeds)


def _is_images(x: Any) -> bool:
    """Tell whether an array is laid out as images usually are: unsigned bytes [n, rows, columns, ...]."""
    return str(getattr(x, "dtype", "")) in ("uint8", "torch.uint8") and x.ndim > 2


def _stratified(y: Tensor, fraction: float, seed: int, labels: Labels | None = None) -> tuple[Tensor, Tensor]:
    """Split samples so that both parts have the classes' proportions; labels name the classes in errors."""
    n, held_out = len(y), math.ceil(fraction * len(y))
    if n == 0:
        raise ValueError("there are no samples to split")
    present, counts = torch.unique(y.cpu(), return_counts=True)
    smallest = int(counts.argmin())
    label = labels[smallest] if labels else int(present[smallest])
    if counts[smallest] < 2:
        raise ValueError(f"class {label!r} has 1 sample; a stratified split needs at least 2 of each class")
    if min(held_out, n - held_out) < len(present):
        raise ValueError(
            f"{n} samples split into {n - held_out} and {held_out} are too few for {len(present)} classes in each part"
        )
    train, test = train_test_split(np.arange(n), test_size=held_out, random_state=seed, stratify=y.numpy(force=True))
    if len(np.unique(y.cpu()[train])) < len(present):
        raise ValueError(f"class {label!r} has {counts[smallest]} of {n} samples: none is left to train on")
    return torch.from_numpy(train), torch.from_numpy(test)
