"""Arrays of other libraries in and out, on shared memory."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import torch
from cases import matrix, values

from fastbin import BitMatrix, array, ops

W, M = matrix((33, 70), 1), matrix((33, 70), 2)
X = values((6, 70), torch.float32, 3).numpy()
G = values((6, 33), torch.float32, 4).numpy()


class Foreign:
    """An array of a library of its own, which speaks DLPack and the array API and nothing else."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.values.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()

    def __array_namespace__(self) -> type[Foreign]:
        return Foreign

    @staticmethod
    def from_dlpack(x: Any) -> Foreign:
        return Foreign(np.from_dlpack(x))


OPS = {
    "bit_linear": (X, (W, 0.5)),
    "bit_linear_t": (G, (W,)),
    "ternary_linear": (X, (W, M, np.linspace(1, 2, 33, dtype=np.float32))),
    "sign_linear": (X, (W,)),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_ops(op: str, dtype: Any) -> None:
    x, args = OPS[op]
    x = x.astype(dtype)
    there = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
    wanted = getattr(ops, op)(torch.from_numpy(x), *there)
    got = getattr(array, op)(x, *args)
    assert type(got) is np.ndarray
    cases.assert_same(torch.from_numpy(got), wanted)
    foreign = getattr(array, op)(Foreign(x), *args)
    assert type(foreign) is Foreign and (foreign.values == got).all()
    assert torch.equal(getattr(array, op)(torch.from_numpy(x), *args), wanted)


def test_memory_is_shared() -> None:
    for x in (X, X.T, X[1:, ::2], X[:0], np.asfortranarray(X), X > 0):
        t = array.tensor(x)
        assert t.shape == x.shape and (t.numel() == 0 or t.data_ptr() == x.ctypes.data)
        assert tuple(s * t.element_size() for s in t.stride()) == x.strides or not t.numel()
    t = torch.arange(6.0)
    assert array.like(t, X).ctypes.data == t.data_ptr()
    words = array.like(W.words, X)
    assert BitMatrix.from_words(array.tensor(words), 70).words.data_ptr() == W.words.data_ptr()


def test_what_torch_cannot_view_is_copied() -> None:
    for x in (X[::-1], X[:, ::-2], X[::-1, ::-1].T):
        t = array.tensor(x)
        assert t.data_ptr() != x.ctypes.data and (t.numpy() == x).all()
    fixed = X.copy()
    fixed.flags.writeable = False
    assert (array.bit_linear(fixed, W) == array.bit_linear(X, W)).all()
    assert (array.bit_linear(X[::-1], W) == array.bit_linear(X, W)[::-1]).all()


def test_refusals() -> None:
    for message, call in (
        ("expected an array with __dlpack__, got list", lambda: array.bit_linear([[1.0]], W)),
        ("ndarray of object is no tensor", lambda: array.tensor(np.array([None]))),
        ("ndarray of >f4 is no tensor", lambda: array.tensor(X.astype(">f4"))),
        ("got torch.float64", lambda: array.sign_linear(X.astype(np.float64), W)),
        ("torch.bfloat16 on cpu cannot be an array like ndarray", lambda: array.like(torch.ones(2).bfloat16(), X)),
    ):
        with pytest.raises(TypeError, match=message):
            call()
