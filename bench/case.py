"""What a case of a benchmark is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

OURS = "fastbin"


@dataclass(frozen=True)
class Contender:
    """One implementation with its operands: the call to time, and a check of its result that raises AssertionError."""

    call: Callable[[], object]
    check: Callable[[], None]


@dataclass(frozen=True)
class Case:
    """An op and its sizes: x is ``[batch, inputs]``, the bits are ``[outputs, inputs]``.

    Attributes:
        dtype: of x: fp32, int8 or bits.
        threads: how many; torch's number without.
    """

    op: str
    batch: int
    inputs: int
    outputs: int
    dtype: str = "fp32"
    threads: int | None = None

    def __str__(self) -> str:
        dtype = "" if self.dtype == "fp32" else f" {self.dtype}"
        threads = f", {self.threads} thread" if self.threads else ""
        return f"{self.op}{dtype} {self.sizes}{threads}"

    @property
    def sizes(self) -> str:
        return f"{self.batch}, {self.inputs}, {self.outputs}"

    @property
    def edges(self) -> int:
        return self.inputs * self.outputs

    @property
    def work(self) -> float:
        """Of one call, in `unit` seconds."""
        return self.batch * self.edges / 1e9

    @property
    def unit(self) -> str:
        return "GMAC/s"

    def limit(self) -> float | None:
        """Seconds that the machine needs at least, by the model that the table's caption states."""
        return None

    def contenders(self) -> Mapping[str, Callable[[], Contender]]:
        """Ours, named OURS, first, then the peers.

        Each is a function that makes the contender; it raises ImportError if a package is missing.
        """
        raise NotImplementedError

    def quick(self) -> Case:
        """The same for a quick run: int8 and bfloat16 by torch take seconds at a batch of thousands on some CPUs."""
        return replace(self, batch=min(self.batch, 512))

    def small(self) -> Case:
        """The same at sizes for a test: odd, and past a word."""
        return replace(self, batch=min(self.batch, 35), inputs=min(self.inputs, 77), outputs=min(self.outputs, 69))
