"""Decisions read off a string of bytes, so that a fuzzer that changes the bytes changes the decisions."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

T = TypeVar("T")

# What a reader may not have thought of, in place of any value of a JSON document.
ODD = (
    None, True, False, 0, 1, -1, 2, 31, 32, 33, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, math.inf,
    -math.inf, math.nan, "",
    "0", "layer", "bits", "\u0000", "\ud800", "a" * 300, [], [0], [[]], [1, 2, 3], {}, {"a": 1}, {"": {}},
)  # fmt: skip


class Choices:
    """Numbers from bytes, in order; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes not yet used."""
        return max(0, len(self._data) - self._at)

    def number(self, size: int = 1) -> int:
        """An unsigned number of `size` bytes."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken.ljust(size, b"\0"), "little")

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return self.number(1 if n <= 256 else 4) % n

    def one(self, values: list[T] | tuple[T, ...]) -> T:
        """One of some values."""
        return values[self.below(len(values))]

    def bytes(self, most: int) -> bytes:
        """Up to `most` bytes."""
        size = self.below(most + 1)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def places(document: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) of a JSON document."""
    found, containers = [], [document]
    while containers:
        container = containers.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            found.append((container, key))
            if isinstance(value, (dict, list)):
                containers.append(value)
    return found


def edited(document: Any, choices: Choices) -> Any:
    """A JSON document after a few edits: values replaced by odd ones or by each other, doubled, nested or taken away."""
    document = copy.deepcopy(document)
    for _ in range(1 + choices.below(4)):
        where = places(document)
        if not where:
            return copy.deepcopy(choices.one(ODD))
        container, key = where[choices.below(len(where))]
        kind = choices.below(6)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, name = where[choices.below(len(where))]
            container[key] = copy.deepcopy(other[name])
        elif kind == 2 and isinstance(container[key], list):
            container[key] = container[key] * choices.below(4)
        elif kind == 3 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
            container[key] = container[key] * choices.one((-1, 2, 0.5, 2**31)) + choices.one((0, 1, -1))
        elif kind == 4:
            for _ in range(choices.below(100)):
                container[key] = [container[key]]
        else:
            container[key] = copy.deepcopy(choices.one(ODD))
    return document
