"""The one table (op, device) -> implementations, and the choice between them.

An implementation has a name: `reference` (plain torch, any device), `cpp` (compiled: C++ on the CPU, CUDA C++ on a GPU)
or `triton` (GPU). The first of a row is the default. FASTBIN_BACKEND, or `override`, forces one by name; what cannot be
met is an error, never a silent fallback. The reference is never chosen unasked.

Where a GPU has both `triton` and `cpp` for an op, each call takes the one that `fastbin.choices` names for its device and
shape; if that one is not there (an install without nvcc has no `cpp`), the next, as `report` and ``fastbin doctor`` say.
FASTBIN_CUDA_IMPL=triton or cpp forces one for every op and shape that has both, and is an error if it is not there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from fastbin import choices

Implementation = Callable[..., Any]

_CPP = ("cpp", "fastbin.cpu")
_CUDA_CPP = ("cpp", "fastbin.cuda")
_CUDA_UPDATES = ("cpp", "fastbin.cuda_updates")
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
    ("bit_linear", "cuda"): (("triton", "fastbin.kernels.bit_linear"), _CUDA_CPP),
    ("bit_linear_t", "cuda"): (("triton", "fastbin.kernels.bit_linear"), _CUDA_CPP),
    ("bit_matmul", "cuda"): (("triton", "fastbin.kernels.bit_matmul"), _CUDA_CPP),
    ("mask_update_", "cuda"): (("triton", "fastbin.kernels.mask_update"),),
    ("mask_grad_update_", "cuda"): (("triton", "fastbin.kernels.mask_grad_update"), _CUDA_UPDATES),
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
    name = requested()
    if name == "auto" and device == "cuda" and op in choices.SHAPE_CLASSES:
        return _by_shape(op, forced_on_cuda())
    return _load(op, device, name)


def forced_on_cuda() -> str | None:
    """FASTBIN_CUDA_IMPL, None where it is not set; raises BackendError for a name that is none."""
    name = os.environ.get("FASTBIN_CUDA_IMPL") or None
    if name not in (None, "triton", "cpp"):
        raise BackendError(f"implementation {name!r} is unknown (FASTBIN_CUDA_IMPL): expected triton or cpp")
    return name


@cache
def _by_shape(op: str, forced: str | None) -> Implementation:
    """`op` on a GPU by the kernel that `fastbin.choices` names for each call's device and shape."""

    def call(*args: Any) -> Any:
        index = next(a for a in args if isinstance(a, torch.Tensor)).get_device()  # scores may be None
        return _chosen(op, choices.shape_class(op, *args), index, forced)[1](*args)

    return call


@cache
def _chosen(op: str, kind: str, device: int | None, forced: str | None) -> tuple[str, Implementation]:
    """Name and function of the kernel for a shape class: `forced` if the class has it, else the first that can serve."""
    serving = choices.serving(op, kind, device)
    names = [name for name in choices.entry(op, kind, device)["order"] if name in serving]
    if forced in choices.SHAPE_CLASSES[op][kind]:
        names = [forced]
    present = [name for name in names if _present(op, name)]
    name = present[0] if present else names[0]
    return name, _load(op, "cuda", name)


def _present(op: str, name: str) -> bool:
    try:
        _load(op, "cuda", name)
    except BackendError:
        return False
    return True


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
            name = requested()
            if name == "auto" and device == "cuda" and op in choices.SHAPE_CLASSES:
                index = 0 if torch.cuda.is_available() else None
                chosen = {kind: _chosen(op, kind, index, forced_on_cuda())[0] for kind in choices.SHAPE_CLASSES[op]}
                name = ", ".join(f"{chosen[kind]} ({kind})" for kind in chosen)
            elif name == "auto":
                name = candidates[0][0]
        except BackendError as error:
            name = str(error)
        rows.append((op, device, name))
    return rows
