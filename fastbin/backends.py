"""The one table (op, device) -> implementations, and the choice between them.

An implementation has a name: `reference` (plain torch, any device), `cpp` (the compiled CPU kernels) or `triton` (GPU).
The first of a row is the default. FASTBIN_BACKEND, or `override`, forces one by name; what cannot be met is an error,
never a silent fallback. The reference is never chosen unasked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

Implementation = Callable[..., Any]

_CPP = ("cpp", "fastbin.cpu")
_REFERENCE = ("reference", "fastbin.reference")

# (op, device type) -> candidates, best first: (name of the implementation, module with a function named as the op).
# A module may fail to import for want of hardware or of a dependency: that is an error only where it is asked for.
TABLE: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("pack", "cpu"): (_CPP,),
    ("unpack", "cpu"): (_CPP,),
    ("transpose", "cpu"): (_CPP,),
    ("popcount", "cpu"): (_CPP,),
    ("bit_linear", "cpu"): (_CPP,),
    ("bit_linear_t", "cpu"): (_CPP,),
    ("bit_matmul", "cpu"): (_CPP,),
    ("mask_update_", "cpu"): (_CPP,),
    ("mask_grad_update_", "cpu"): (_CPP,),
    ("pack", "cuda"): (("triton", "fastbin.kernels.bits"),),
    ("unpack", "cuda"): (("triton", "fastbin.kernels.bits"),),
    ("transpose", "cuda"): (("triton", "fastbin.kernels.bits"),),
    ("popcount", "cuda"): (("triton", "fastbin.kernels.bits"),),
    ("bit_linear", "cuda"): (("triton", "fastbin.kernels.bit_linear"),),
    ("bit_linear_t", "cuda"): (("triton", "fastbin.kernels.bit_linear"),),
    ("bit_matmul", "cuda"): (("triton", "fastbin.kernels.bit_matmul"),),
    ("mask_update_", "cuda"): (("triton", "fastbin.kernels.mask_update"),),
    ("mask_grad_update_", "cuda"): (("triton", "fastbin.kernels.mask_grad_update"),),
}
OPS = tuple(dict.fromkeys(op for op, _ in TABLE))
NAMES = tuple(dict.fromkeys([_REFERENCE[0], *(name for row in TABLE.values() for name, _ in row)]))

_override: list[str] = []


class BackendError(RuntimeError):
    """No implementation can serve the request; the message says what was asked for and what there is."""


def requested() -> str:
    """The name in force: of the innermost `override`, else FASTBIN_BACKEND, else ``auto``."""
    name = _override[-1] if _override else os.environ.get("FASTBIN_BACKEND") or "auto"
    if name not in ("auto", *NAMES):
        raise BackendError(f"backend {name!r} is unknown (FASTBIN_BACKEND): expected auto, {', '.join(NAMES)}")
    return name


@contextlib.contextmanager
def override(name: str) -> Iterator[None]:
    """Force an implementation by name within a ``with`` block (not thread-safe: it holds for the process)."""
    _override.append(name)
    try:
        requested()
        yield
    finally:
        _override.pop()


def find(op: str, device: str) -> Implementation:
    """The implementation of `op` on a device type, as `requested`.

    Raises:
        BackendError: there is none, or it cannot be loaded.
    """
    return _load(op, device, requested())


@cache
def _load(op: str, device: str, name: str) -> Implementation:
    candidates = (*TABLE.get((op, device), ()), _REFERENCE)
    if name == "auto":
        if candidates[0] is _REFERENCE:
            raise BackendError(
                f"{op} has no kernel for {device} here; FASTBIN_BACKEND=reference runs it in plain torch"
            )
        name = candidates[0][0]
    for candidate, module in candidates:
        if candidate == name:
            try:
                found: Implementation = getattr(importlib.import_module(module), op)
            except ImportError as error:
                raise BackendError(f"the {name} implementation of {op} cannot be loaded: {error}") from error
            return found
    raise BackendError(f"{op} on {device} has no {name} implementation: there is {', '.join(c for c, _ in candidates)}")


def report() -> list[tuple[str, str, str]]:
    """Rows (op, device, name of the implementation in force, or why there is none), for `fastbin doctor`."""
    rows = []
    for (op, device), candidates in TABLE.items():
        try:
            find(op, device)
            name = candidates[0][0] if requested() == "auto" else requested()
        except BackendError as error:
            name = str(error)
        rows.append((op, device, name))
    return rows
