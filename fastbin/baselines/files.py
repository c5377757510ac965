"""Files of networks of any kind: safetensors, by `fastbin.checkpoint`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastbin import checkpoint
from fastbin.baselines.nets import RealNet
from fastbin.bits import BitMatrix
from fastbin.nn import Perceptron, WeightFreeNet


def save_network(path: str | os.PathLike[str], net: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a network to `path`, whole or not at all; the layout is that of `fastbin.compare`.

    Args:
        path: the file; its folder must exist.
        net: a `WeightFreeNet` or `RealNet`.
        about: JSON-able values that say what the network is of.

    Raises:
        TypeError: another kind of network.
        OSError: it cannot be written.
    """
    if not isinstance(net, (WeightFreeNet, RealNet)):
        raise TypeError(f"net must be a WeightFreeNet or RealNet, got {type(net).__name__}")
    tensors: dict[str, Tensor] = {}
    weights: Sequence[BitMatrix | Tensor] = net.weights()
    for i, w in enumerate(weights):
        if isinstance(w, BitMatrix):
            tensors[f"layers.{i}.words"] = w.words
        else:
            tensors[f"layers.{i}.weight"] = w
    checkpoint.save(Path(path), tensors, {**about, **_form(net)})


def _form(net: Perceptron) -> dict[str, Any]:
    return {
        "form": "bits" if isinstance(net, WeightFreeNet) else "real",
        "widths": list(net.widths),
        "activation": net.activation,
        "norm": net.norm,
        "logit_scale": net.logit_scale,
    }


def load_network(path: str | os.PathLike[str]) -> WeightFreeNet | RealNet:
    """Load the network of a file that `save_network` wrote. Loading cannot run code from it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or does not fit together.
    """
    reader = checkpoint.Reader(Path(path))
    form, widths = reader.entry("form", str), reader.entry("widths", list)
    activation, norm = reader.entry("activation", str), reader.entry("norm", str)
    scale = reader.entry("logit_scale", (int, float))
    shapes = [(n_out, n_in) for n_in, n_out in pairwise(widths)]
    try:
        if form == "bits":
            bits = [reader.bits(f"layers.{i}.words", *shape) for i, shape in enumerate(shapes)]
            return WeightFreeNet(widths, activation=activation, norm=norm, logit_scale=scale, weights=bits)
        if form == "real":
            real = [reader.tensor(f"layers.{i}.weight", torch.float32, shape) for i, shape in enumerate(shapes)]
            return RealNet(widths, activation, norm, scale, real)
    except (ValueError, TypeError) as error:
        raise reader.fail(str(error)) from error
    raise reader.fail(f"metadata 'form' is {form!r}")
