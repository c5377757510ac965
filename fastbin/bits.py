"""`BitMatrix`: a matrix over {0, 1}, packed 32 columns to a word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbin import library
from fastbin.reference import WORD_BITS, refuse_first, words_for

_PACKABLE = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def _packable(values: Any) -> Tensor:
    t: Tensor = torch.as_tensor(values)
    if t.dtype not in _PACKABLE:
        raise TypeError(f"pack expects bool, integer or float values, got {t.dtype}")
    if t.dim() not in (2, 3):
        raise ValueError(f"pack expects shape [R, C] or [P, R, C], got {list(t.shape)}")
    return t


class BitMatrix:
    """A logical R x C matrix over {0, 1}, with an optional leading population axis P.

    Element (r, c) is bit ``c % 32`` (least significant first) of ``words[.., r, c // 32]``. Bits past C in a row's last
    word are 0, always: the constructor trusts its caller for that, `from_words` checks.

    Attributes:
        words: contiguous int32 tensor ``[.., R, ceil(C/32)]``.
        cols: C.
    """

    __hash__ = None  # type: ignore[assignment]  # mutable, and == compares contents

    def __init__(self, words: Tensor, cols: int) -> None:
        self.words = words
        self.cols = cols

    @classmethod
    def pack(cls, t: Any, threshold: float | None = None) -> BitMatrix:
        """Pack a tensor (or array, or nested list) ``[R, C]`` or ``[P, R, C]``.

        Args:
            t: bool, integer or float values, all 0 or 1; with `threshold`, any numbers but NaN.
            threshold: pack ``t > threshold`` (compared in t's dtype) instead.

        Raises:
            TypeError: t is not numeric.
            ValueError: t has not 2 or 3 dimensions, a value is neither 0 nor 1 (without threshold) or NaN (with it).
        """
        t = _packable(t)
        if threshold is not None and threshold != threshold:
            raise ValueError("threshold must be a number, got nan")
        return cls(library.pack(t, threshold), t.shape[-1])

    @classmethod
    def pack_ternary(cls, t: Any) -> tuple[BitMatrix, BitMatrix]:
        """Where a tensor of values −1, 0 and 1 is 1, and where it is −1, as `fastbin.ops.ternary_linear` takes them.

        Raises:
            TypeError: t is not numeric.
            ValueError: t has not 2 or 3 dimensions, or holds another value.
        """
        t = _packable(t)
        plus, minus = t > 0, t < 0
        refuse_first(t, t != plus.int() - minus.int(), "values of -1, 0 and 1")
        return cls.pack(plus), cls.pack(minus)

    @classmethod
    def pack_signs(cls, t: Any) -> BitMatrix:
        """The bits 1[t = 1] of a tensor of values −1 and 1, as `fastbin.ops.sign_linear` takes them.

        Raises:
            TypeError: t is not numeric.
            ValueError: t has not 2 or 3 dimensions, or holds another value.
        """
        t = _packable(t)
        plus = t > 0
        refuse_first(t, t != 2 * plus.int() - 1, "values of -1 and 1")
        return cls.pack(plus)

    @classmethod
    def from_words(cls, words: Tensor, cols: int) -> BitMatrix:
        """Wrap words from elsewhere, after checking dtype, shape and that the bits past `cols` are 0.

        Raises:
            TypeError: words is not an int32 tensor.
            ValueError: the number of words does not fit `cols`, or a bit past `cols` is set.
        """
        if not isinstance(words, Tensor) or words.dtype != torch.int32:
            raise TypeError(f"words must be an int32 tensor, got {getattr(words, 'dtype', type(words).__name__)}")
        if cols < 0:
            raise ValueError(f"cols must be at least 0, got {cols}")
        if words.dim() not in (2, 3) or words.shape[-1] != words_for(cols):
            raise ValueError(
                f"{cols} columns need words of shape [.., R, {words_for(cols)}] with 2 or 3 dimensions, "
                f"got {list(words.shape)}"
            )
        used = cols % WORD_BITS
        if used and words.numel():
            stray = (words[..., -1] & ~((1 << used) - 1)).flatten().nonzero()
            if stray.numel():
                raise ValueError(f"row {int(stray[0])} has bits set past column {cols}")
        return cls(words.contiguous(), cols)

    @classmethod
    def zeros(cls, *shape: int, device: torch.device | str | None = None) -> BitMatrix:
        """All-zero matrix of shape ``(R, C)`` or ``(P, R, C)``."""
        words = torch.zeros(*shape[:-1], words_for(shape[-1]), dtype=torch.int32, device=device)
        return cls.from_words(words, shape[-1])

    @property
    def shape(self) -> torch.Size:
        """Logical shape, ``(R, C)`` or ``(P, R, C)``."""
        return torch.Size((*self.words.shape[:-1], self.cols))

    @property
    def rows(self) -> int:
        """R."""
        return self.words.shape[-2]

    @property
    def population(self) -> int | None:
        """P, or None without a population axis."""
        return self.words.shape[0] if self.words.dim() == 3 else None

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.words.device

    @property
    def T(self) -> BitMatrix:
        """The transposed matrix (of each member), a copy."""
        return BitMatrix(library.transpose(self.words, self.cols), self.rows)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The logical matrix as a dense tensor of `dtype`."""
        dense: Tensor = library.unpack(self.words, self.cols, dtype)
        return dense

    def count(self) -> Tensor:
        """Number of ones, int64: a scalar, or ``[P]`` for a population."""
        ones: Tensor = library.popcount(self.words)
        return ones

    def density(self) -> float:
        """Share of ones over the whole tensor; 0.0 for an empty matrix."""
        return int(self.count().sum()) / max(self.shape.numel(), 1)

    def to(self, device: torch.device | str) -> BitMatrix:
        """The matrix on `device` (itself if it is there already)."""
        words = self.words.to(device)
        return self if words is self.words else BitMatrix(words, self.cols)

    def clone(self) -> BitMatrix:
        """A copy with words of its own."""
        return BitMatrix(self.words.clone(), self.cols)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitMatrix):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.words, other.words)

    def __repr__(self) -> str:
        return f"BitMatrix(shape={tuple(self.shape)}, device={str(self.words.device)!r})"
