"""The ops for arrays of any library that speaks DLPack (numpy, CuPy, JAX, ...): such an array in, one of its kind out.

Memory is shared and not copied, but for arrays that torch cannot view: those with negative strides, and read-only ones of
libraries whose DLPack has no word for that.

>>> import numpy as np
>>> w = BitMatrix.pack(tensor(np.array([[1, 0, 1], [0, 1, 1]])))
>>> bit_linear(np.array([[1, 2, 4]], dtype=np.float32), w)
array([[5., 6.]], dtype=float32)
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastbin import ops
from fastbin.bits import BitMatrix


def tensor(x: Any) -> Tensor:
    """The array x as a torch tensor, on x's memory where its strides and flags allow.

    Raises:
        TypeError: x has no ``__dlpack__``, or a dtype that torch has not.
    """
    if isinstance(x, Tensor):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"expected an array with __dlpack__, got {type(x).__name__}")
    try:
        # torch ends the process on negative strides, so it must not see them.
        if any(stride < 0 for stride in getattr(x, "strides", None) or ()):
            raise BufferError
        shared: Tensor = from_dlpack(x)
        return shared
    except BufferError:
        try:
            copied: Tensor = from_dlpack(_namespace(x).asarray(x, copy=True))
        except BufferError as error:
            raise TypeError(f"{type(x).__name__} of {getattr(x, 'dtype', 'no dtype')} is no tensor: {error}") from error
        return copied


def like(t: Tensor, x: Any) -> Any:
    """The tensor t, on its own memory, as an array of the kind of x.

    Raises:
        TypeError: the library of x cannot take it.
    """
    if isinstance(x, Tensor):
        return t
    try:
        return _namespace(x).from_dlpack(t.detach())
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{t.dtype} on {t.device} cannot be an array like {type(x).__name__}: {error}") from error


def _namespace(x: Any) -> Any:
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    library = sys.modules[type(x).__module__.partition(".")[0]]
    if not hasattr(library, "from_dlpack"):
        raise TypeError(f"{type(x).__name__} has no __array_namespace__, and its library no from_dlpack")
    return library


def bit_linear(x: Any, w: BitMatrix, scale: Any = None) -> Any:
    """`fastbin.ops.bit_linear` of an array, as an array of its kind."""
    return like(ops.bit_linear(tensor(x), w, _scale(scale)), x)


def bit_linear_t(g: Any, w: BitMatrix) -> Any:
    """`fastbin.ops.bit_linear_t` of an array, as an array of its kind."""
    return like(ops.bit_linear_t(tensor(g), w), g)


def ternary_linear(x: Any, plus: BitMatrix, minus: BitMatrix, scale: Any = None) -> Any:
    """`fastbin.ops.ternary_linear` of an array, as an array of its kind."""
    return like(ops.ternary_linear(tensor(x), plus, minus, _scale(scale)), x)


def sign_linear(x: Any, w: BitMatrix, scale: Any = None) -> Any:
    """`fastbin.ops.sign_linear` of an array, as an array of its kind."""
    return like(ops.sign_linear(tensor(x), w, _scale(scale)), x)


def _scale(scale: Any) -> Any:
    return tensor(scale) if hasattr(scale, "__dlpack__") else scale
