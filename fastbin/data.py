"""Data sets, the checks on a user's own arrays, stratified splits and standardisation."""

from __future__ import annotations

import difflib
import math
import numbers
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from fastbin.data_files import CLASSES, SOURCES, DataError, load_files, read_idx, read_npz

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
    "read_idx",
    "split_validation",
    "without_test",
]

NAMES = ("digits", "breast_cancer", "mnist", "fashion_mnist", "kmnist", "cifar10")
Labels = tuple[int | str, ...]

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
    name = os.fspath(source)
    if name == "digits":
        return _bundled(name, load_digits(), pixels=True, seed=seed)
    if name == "breast_cancer":
        return _bundled(name, load_breast_cancer(), pixels=False, seed=seed)
    if name in SOURCES:
        x_train, y_train, x_test, y_test = map(torch.from_numpy, load_files(name, _data_folder(data_dir)))
        return Dataset(
            name, x_train.float(), y_train.long(), x_test.float(), y_test.long(), tuple(range(CLASSES)), pixels=True
        )
    if name.lower().endswith(".npz"):
        return _own(Path(name), seed)
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


def check_inputs(x: Any, features: int | None = None) -> Tensor:
    """Turn any array of real numbers into a matrix of samples.

    Args:
        x: tensor, numpy array or nested lists [n, ...] of numbers; all dimensions after the first are features.
        features: how many features there must be; any number above 0 by default.

    Returns:
        float32 [n, d], contiguous, on x's device if it is a tensor, else on the CPU.

    Raises:
        ValueError: x is empty, has fewer than two dimensions or the wrong number of features, or holds a value that is
            not a number, not finite, complex or too large for float32.
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_complex():
            raise ValueError(f"x must be a dense tensor of real numbers, got {x.dtype} in layout {x.layout}")
        raw: Any = x.detach()
        values: Tensor = raw.to(torch.float32)
    else:
        raw = _numbers(x)
        with np.errstate(over="ignore"):  # an overflow is found and placed below
            values = torch.from_numpy(raw.astype(np.float32, order="C"))
    shape = tuple(values.shape)
    if len(shape) < 2:
        raise ValueError(f"x must have shape [samples, features, ...], got {list(shape)}; one sample is x[None]")
    width = math.prod(shape[1:])
    if shape[0] == 0 or width == 0:
        raise ValueError(f"x has shape {list(shape)}: {shape[0]} samples of {width} features")
    if features is not None and width != features:
        raise ValueError(f"x has {width} features a sample (shape {list(shape)}), expected {features}")
    finite = torch.isfinite(values)
    if not finite.all():
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        value = raw[where].item()
        raise ValueError(
            f"x{list(where)} is {value}, " + ("too large for float32" if math.isfinite(value) else "not finite")
        )
    return values.reshape(shape[0], width).contiguous()


def check_labels(y: Any, n: int) -> tuple[Tensor, Labels]:
    """Turn labels into class indices, in the labels' sorted order.

    Args:
        y: tensor, numpy array or list [n] of strings, booleans or whole numbers.
        n: how many labels there must be.

    Returns:
        int64 [n] on the CPU with values 0 .. classes-1, and what each class stands for.

    Raises:
        ValueError: y is not one-dimensional, does not have n labels or two classes, or holds anything else.
    """
    classes, labels = _encode(y, n)
    if len(labels) < 2:
        raise ValueError(
            f"y must hold at least 2 classes, got {len(labels)}: {', '.join(map(repr, labels)) or 'no labels'}"
        )
    return classes, labels


def encode_labels(y: Any, labels: Labels, n: int) -> Tensor:
    """Turn labels into indices of classes that are known already.

    Args:
        y: labels [n], as `check_labels` takes them.
        labels: the known classes.
        n: how many labels there must be.

    Returns:
        int64 [n] on the CPU.

    Raises:
        ValueError: as `check_labels` does, or a label is not among the known ones.
    """
    indices, present = _encode(y, n)
    unknown = [label for label in present if label not in labels]
    if unknown:
        raise ValueError(
            f"y holds labels that no training sample has: {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(map(repr, labels))}"
        )
    return torch.tensor([labels.index(label) for label in present], dtype=torch.int64)[indices]


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
    """Centres and scales inputs by the mean and standard deviation of the training samples.

    Attributes:
        mean: float32 [d].
        scale: float32 [d], the standard deviation over the samples, or 1 where a feature is constant.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Any, pixels: bool) -> Standardizer:
        """Measure mean and scale, in float64.

        Args:
            x: training samples, as `check_inputs` takes them.
            pixels: one mean and scale over all values, else one a feature.

        Returns:
            The standardiser, on x's device.

        Raises:
            ValueError: as `check_inputs` does.
        """
        values = check_inputs(x)
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
        return cls(mean.float().contiguous(), scale)

    def transform(self, x: Any) -> Tensor:
        """Standardise samples.

        Args:
            x: samples of d features, as `check_inputs` takes them.

        Returns:
            float32 [n, d] on x's device.

        Raises:
            ValueError: as `check_inputs` does.
        """
        values = check_inputs(x, len(self.mean))
        return (values - self.mean.to(values.device)) / self.scale.to(values.device)


def _bundled(name: str, bunch: Any, *, pixels: bool, seed: int) -> Dataset:
    """Split a set that comes with scikit-learn."""
    return replace(from_arrays(bunch.data, bunch.target, name=name, seed=seed), pixels=pixels)


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        data_dir = os.environ.get("FASTBIN_DATA") or cache / "fastbin"
    return Path(data_dir).expanduser()


def _own(path: Path, seed: int) -> Dataset:
    """Load a user's own .npz file; errors about its arrays name it."""
    arrays = read_npz(path)
    try:
        if "x" in arrays:
            return from_arrays(arrays["x"], arrays["y"], name=path.stem, seed=seed)
        x_train = check_inputs(arrays["x_train"])
        y_train, labels = check_labels(arrays["y_train"], len(x_train))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        x_test = check_inputs(arrays["x_test"], x_train.shape[1])
        y_test = encode_labels(arrays["y_test"], labels, len(x_test))
    except ValueError as error:
        raise ValueError(f"{path}, test part: {error}") from error
    return Dataset(path.stem, x_train, y_train, x_test, y_test, labels, _is_images(arrays["x_train"]))


def _is_images(x: Any) -> bool:
    """Tell whether an array is laid out as images usually are: unsigned bytes [n, rows, columns, ...]."""
    return str(getattr(x, "dtype", "")) in ("uint8", "torch.uint8") and x.ndim > 2


def _numbers(x: Any) -> npt.NDArray[Any]:
    """Return x as an array of real numbers; a ValueError names the first value that is none."""
    if np.ma.is_masked(x):
        raise ValueError("x has masked values: fill them or leave their samples out")
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"x is not an array of numbers: {error}") from error
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind not in "OUS":
        raise ValueError(f"x must hold real numbers, got dtype {array.dtype}")
    values = np.asarray(x, dtype=object)
    converted = np.empty(values.shape)
    for where, value in np.ndenumerate(values):
        if not isinstance(value, numbers.Real | np.bool_):
            raise ValueError(f"x{list(where)} is {value!r}, not a real number")
        try:
            converted[where] = float(value)
        except OverflowError:
            raise ValueError(f"x{list(where)} is {value!r}, too large for float32") from None
    return converted


def _encode(y: Any, n: int) -> tuple[Tensor, Labels]:
    """Do `check_labels`'s work, for any number of classes."""
    if isinstance(y, Tensor):
        y = (y.double() if y.is_floating_point() else y).numpy(force=True)
    if np.ma.is_masked(y):
        raise ValueError("y has masked labels: leave their samples out")
    try:
        array, items = np.asarray(y), np.asarray(y, dtype=object)
    except ValueError as error:
        raise ValueError(f"y is not a list of labels: {error}") from error
    if array.ndim != 1:
        raise ValueError(f"y must have shape [samples], got {list(array.shape)}")
    if len(array) != n:
        raise ValueError(f"y has {len(array)} labels for {n} samples")
    if array.dtype.kind in "mM":
        raise ValueError(f"y must hold whole numbers or strings, got dtype {array.dtype}")
    if array.dtype.kind not in "biu":
        text = any(isinstance(value, str) for value in items)
        for i, value in enumerate(items):
            if not (isinstance(value, str) if text else _is_whole(value)):
                raise ValueError(f"y[{i}] is {value!r}; labels are whole numbers, or all strings")
        array = items if text else np.array([int(value) for value in items], dtype=object)
    distinct, classes = np.unique(array, return_inverse=True)
    return torch.from_numpy(classes.astype(np.int64)), tuple(distinct.tolist())


def _is_whole(value: object) -> bool:
    if isinstance(value, numbers.Integral | np.bool_):
        return True
    return isinstance(value, numbers.Real) and float(value).is_integer()


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
