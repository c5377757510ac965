"""Checks on the arrays that a user hands over: inputs become float32 matrices, labels class indices."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Labels = tuple[int | str, ...]


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
