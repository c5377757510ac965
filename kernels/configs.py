"""Tile shapes of the kernels, as data: `configs.json` holds them by device, kernel, dtype and batch.

A device's entry says in ``origin`` where its numbers come from: a model (bytes, operations and registers counted, nothing
run) or the card that ``python -m bench tune`` measured them on. Nothing is tuned on a user's first call.

``block_…`` are a tile's sides in elements, ``block_words`` and ``tile_words`` in words. ``num_warps`` and ``num_stages`` are
Triton's. ``programs`` is how many programs the device runs at once: with fewer tiles than half of it, sums are split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

PATH = Path(__file__).with_name("configs.json")
DEFAULT = "default"  # serves devices whose architecture, ``sm_<capability>``, has no entry of its own
UNBOUNDED = "any"  # the class of the largest batches

Config = Mapping[str, int]


@cache
def table() -> dict[str, dict[str, dict[str, dict[str, Config]]]]:
    """By device, kernel, dtype and largest batch of a class, a tile shape; a device has its ``origin`` beside."""
    loaded: dict[str, dict[str, dict[str, dict[str, Config]]]] = json.loads(PATH.read_text())
    return loaded


@cache
def device_name(index: int) -> str:
    """The entry that serves a CUDA device."""
    major, minor = torch.cuda.get_device_capability(index)
    name = f"sm_{major}{minor}"
    return name if name in table() else DEFAULT


def find(kernel: str, dtype: torch.dtype, batch: int, device: torch.device) -> Config:
    """The configuration of `kernel` for operands of `dtype` and a batch, on a device."""
    name = device_name(device.index or 0) if device.type == "cuda" else DEFAULT
    return _find(name, kernel, str(dtype).removeprefix("torch."), batch)


@cache
def _find(name: str, kernel: str, dtype: str, batch: int) -> Config:
    classes = table()[name][kernel][dtype]
    bounds = sorted(int(bound) for bound in classes if bound != UNBOUNDED)
    return classes[next((str(bound) for bound in bounds if batch <= bound), UNBOUNDED)]
