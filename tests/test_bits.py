"""`BitMatrix`: packing, properties, and what it refuses."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from cases import SIZES, matrix, numpy_words, random_bits, shape_of

from fastbin import BitMatrix, ops


@pytest.mark.parametrize("population", cases.POPULATIONS)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("cols", SIZES)
def test_a_matrix_of_every_size(population: int | None, rows: int, cols: int) -> None:
    shape = shape_of(population, rows, cols)
    bits = random_bits(shape, rows * 100 + cols)
    w = BitMatrix.pack(bits)
    assert w.words.dtype == torch.int32 and w.words.is_contiguous()
    assert torch.equal(w.words, numpy_words(bits))
    assert w.shape == shape and isinstance(w.shape, torch.Size)
    assert (w.rows, w.cols, w.population) == (rows, cols, population)
    assert w.device == torch.device("cpu")
    assert torch.equal(w.unpack(), bits.float()) and torch.equal(w.unpack(torch.bool), bits)
    assert torch.equal(w.count(), bits.sum((-1, -2)))
    assert w.density() == (float(bits.double().mean()) if bits.numel() else 0.0)
    assert w.T.shape == shape_of(population, cols, rows)
    assert torch.equal(w.T.words, numpy_words(bits.mT)) and w == w.T.T
    assert BitMatrix.from_words(w.words, cols) == w
    assert BitMatrix.zeros(*shape) == BitMatrix.pack(torch.zeros(shape))


def test_what_can_be_packed() -> None:
    wanted = matrix((2, 3), 1)
    dense = wanted.unpack(torch.int64)
    assert BitMatrix.pack(dense.tolist()) == wanted
    assert BitMatrix.pack(dense.numpy()) == wanted
    assert BitMatrix.pack(dense.numpy().astype(bool)) == wanted
    assert BitMatrix.pack(dense.double() - 0.25, threshold=0.5) == wanted
    assert BitMatrix.pack(dense, threshold=0) == wanted
    assert BitMatrix.pack([[-0.0, 1.0]]) == BitMatrix.pack([[0, 1]])


@pytest.mark.parametrize("t", [torch.zeros(2, 2, dtype=torch.complex64), np.zeros((2, 2), dtype=np.complex128)])
def test_complex_numbers_are_refused(t: object) -> None:
    with pytest.raises(TypeError, match=r"bool, integer or float values, got torch\.complex"):
        BitMatrix.pack(t)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
def test_other_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects shape \[R, C\] or \[P, R, C\], got \[" + ", ".join(map(str, shape))):
        BitMatrix.pack(torch.zeros(shape))


@pytest.mark.parametrize(
    ("value", "text"), [(2, "2"), (-1, "-1"), (0.5, "0.5"), (torch.nan, "nan"), (torch.inf, "inf")]
)
def test_other_values_are_refused(value: float, text: str) -> None:
    t = torch.zeros(3, 40, dtype=torch.int64 if isinstance(value, int) else torch.float32)
    t[2, 35] = value
    with pytest.raises(ValueError, match=rf"values of 0 and 1, got {text}(\.0)? at \(2, 35\)"):
        BitMatrix.pack(t)


@pytest.mark.parametrize("threshold", [0.0, 0.5, -1.0])
def test_nan_has_no_side_of_a_threshold(threshold: float) -> None:
    t = torch.zeros(3, 40)
    t[1, 39] = torch.nan
    with pytest.raises(ValueError, match=r"expects numbers, got nan at \(1, 39\)"):
        BitMatrix.pack(t, threshold=threshold)
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        BitMatrix.pack(torch.zeros(3, 40), threshold=torch.nan)


def test_step_takes_nan_for_not_above() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.linspace(-1, 1, 15 * 333).view(15, 333).to(dtype)
        z[3, 70], z[14, 332] = torch.nan, torch.nan
        assert torch.equal(ops.step(z).unpack(torch.bool), z > 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_words_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"int32 tensor, got {dtype}"):
        BitMatrix.from_words(torch.zeros(2, 1, dtype=dtype), 20)


def test_words_that_do_not_fit_are_refused() -> None:
    words = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(TypeError, match="got list"):
        BitMatrix.from_words([[0]], 20)  # type: ignore[arg-type]
    for cols in (0, 32, 65):
        with pytest.raises(ValueError, match=rf"{cols} columns need words .* got \[2, 2\]"):
            BitMatrix.from_words(words, cols)
    with pytest.raises(ValueError, match="at least 0, got -3"):
        BitMatrix.from_words(words, -3)
    with pytest.raises(ValueError, match=r"got \[2\]"):
        BitMatrix.from_words(words[0], 64)


@pytest.mark.parametrize("bit", [8, 20, 31])
def test_bits_past_the_columns_are_refused(bit: int) -> None:
    words = torch.zeros(4, 2, dtype=torch.int32)
    words[3, 1] = -(2**31) if bit == 31 else 2**bit
    with pytest.raises(ValueError, match="row 3 has bits set past column 40"):
        BitMatrix.from_words(words, 40)
    assert BitMatrix.from_words(words, 64).count() == 1  # the very same, where the columns reach


def test_from_words_makes_them_contiguous() -> None:
    wide = matrix((5, 128), 2)
    w = BitMatrix.from_words(wide.words[:, 1:3], 64)
    assert w.words.is_contiguous() and torch.equal(w.unpack(), wide.unpack()[:, 32:96])


def test_equality_is_of_contents() -> None:
    w = matrix((5, 40), 3)
    copy = w.clone()
    assert copy == w and copy is not w
    copy.words[0, 0] ^= 1
    assert copy != w
    assert BitMatrix.zeros(2, 33) != BitMatrix.zeros(2, 34)  # as many words
    assert BitMatrix.zeros(2, 3) != BitMatrix.zeros(1, 2, 3)
    assert w != "w" and w != w.words.tolist()
    with pytest.raises(TypeError, match="unhashable"):
        hash(w)


def test_moving_and_showing() -> None:
    w = matrix((5, 40), 4)
    assert w.to("cpu") is w
    assert w.to("meta").device.type == "meta" and w.to("meta").shape == (5, 40)
    assert repr(w) == "BitMatrix(shape=(5, 40), device='cpu')"
