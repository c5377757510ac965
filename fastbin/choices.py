"""Which of two GPU kernels of an op is faster: the order that `fastbin.backends` tries them in, read from choices.json.

The file, which ``python -m bench gpu`` rewrites from its own timings, holds::

    {
      "note": "...",                       # says what has been measured, and what has not
      "devices": {
        "<device>": {                      # see `device_names`
          "<op>": {
            "<shape class>": {             # see `shape_class`
              "order": ["cpp", "triton"],  # names of implementations, fastest first
              "basis": "modelled",         # or "measured"
              "seconds": {"cpp": 1.2e-5}   # only if measured: median of each implementation, at "case"
              "case": "1 x 16384 x 16384 bfloat16"
            }
          }
        }
      }
    }

Each shape class is looked up under the names of its device, the most specific first, so a card that was measured takes
its own order and every other the modelled one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).parent / "choices.json"

# The shape classes of each op that has more than one kernel on a GPU, and the implementations that each class has.
# "vector": so few samples that csrc/cuda/bit_linear_vector.cu reads the weights once. "matrix": more, in rows of whole
# 16-byte chunks, as csrc/cuda/bit_linear_wgmma.cu takes them; both of 16-bit floats or int8. "other": the rest.
SHAPE_CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "bit_linear": {"vector": ("cpp", "triton"), "matrix": ("cpp", "triton"), "other": ("triton",)},
    "bit_linear_t": {"matrix": ("cpp", "triton"), "other": ("triton",)},
    "bit_matmul": {"small": ("cpp", "triton"), "large": ("cpp", "triton")},
    "mask_grad_update_": {"few": ("cpp", "triton"), "many": ("cpp", "triton")},
}

VECTOR_SAMPLES = 16
FEW_SAMPLES = 1024  # up to here an update moves its scores and moments for longer than its gradient takes
SMALL_OUTPUTS = 1 << 16  # below this many outputs a product cannot fill a GPU


def few_samples(x: Tensor) -> bool:
    """Whether x ``[.., B, C]`` has few samples, of less than float32: what bit_linear_vector takes."""
    return x.dtype != torch.float32 and x.shape[-2] <= VECTOR_SAMPLES


def whole_chunks(x: Tensor) -> bool:
    """Whether x ``[.., B, C]`` has rows of whole 16-byte chunks, not of float32: what the copy engine and wgmma take."""
    return x.dtype != torch.float32 and x.shape[-1] > 0 and x.shape[-1] * x.element_size() % 16 == 0


def shape_class(op: str, *args: Any) -> str:
    """The class, one of ``SHAPE_CLASSES[op]``, of a call with these arguments."""
    if op == "bit_linear" and few_samples(args[0]):
        return "vector"
    if op in ("bit_linear", "bit_linear_t"):
        return "matrix" if whole_chunks(args[0]) else "other"
    if op == "mask_grad_update_":
        return "few" if args[1].shape[-2] <= FEW_SAMPLES else "many"
    a, b = args
    return "small" if a.shape[:-1].numel() * b.shape[-2] < SMALL_OUTPUTS else "large"


@cache
def serving(op: str, kind: str, device: int | None) -> tuple[str, ...]:
    """The implementations that serve a shape class on a GPU; None: on those that have the most.

    In CUDA C++, a product of many samples stands on wgmma, which only capability 9.0 has.
    """
    names = SHAPE_CLASSES[op][kind]
    if device is None or kind != "matrix" or torch.cuda.get_device_capability(device) == (9, 0):
        return names
    return tuple(name for name in names if name != "cpp")


@cache
def device_names(index: int | None) -> tuple[str, ...]:
    """Names in choices.json for a GPU, the most specific first; None: no GPU.

    They are its own, ``sm_<capability>``, ``sm_100+`` from capability 10.0 on, ``default``.
    """
    if index is None:
        return ("default",)
    major, minor = torch.cuda.get_device_capability(index)
    later = ("sm_100+",) if major >= 10 else ()
    return (torch.cuda.get_device_name(index), f"sm_{major}{minor}", *later, "default")


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FILE.read_text())
    return table


def entry(op: str, kind: str, device: int | None) -> dict[str, Any]:
    """The entry of choices.json for a shape class of an op on a GPU."""
    devices = _table()["devices"]
    for name in device_names(device):
        found: dict[str, Any] | None = devices.get(name, {}).get(op, {}).get(kind)
        if found is not None:
            return found
    raise KeyError(f"{FILE} has no entry for {op} {kind} under {', '.join(device_names(device))}")


def entries() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """All entries: (device, op, shape class, entry)."""
    for device, ops in _table()["devices"].items():
        for op, kinds in ops.items():
            for kind, found in kinds.items():
                yield device, op, kind, found
