"""Files of networks of any kind: safetensors, by `fastbin.checkpoint`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastbin import checkpoint
from fastbin.baselines.graph import GraphNet, graph_of, graph_tensors
from fastbin.baselines.nets import Network, RealNet
from fastbin.bits import BitMatrix
from fastbin.nn import WeightFreeNet


def save_network(path: str | os.PathLike[str], net: Network, about: Mapping[str, Any]) -> None:
    """Write a network to `path`, whole or not at all; the layout is that of `fastbin.compare`.

    Args:
        path: the file; its folder must exist.
        net: the network.
        about: JSON-able values that say what the network is of.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(net, GraphNet):
        graph = net.graph
        form = {"form": "graph", "inputs": graph.inputs.shape[1] - 1, "outputs": graph.outputs, "weight": net.weight}
        checkpoint.save(Path(path), graph_tensors(graph), {**about, **form, "pixels": net.pixels})
        return
    tensors: dict[str, Tensor] = {}
    weights: Sequence[BitMatrix | Tensor] = net.weights()
    for i, w in enumerate(weights):
        if isinstance(w, BitMatrix):
            tensors[f"layers.{i}.words"] = w.words
        else:
            tensors[f"layers.{i}.weight"] = w
    form = {
        "form": "bits" if isinstance(net, WeightFreeNet) else "real",
        "widths": list(net.widths),
        "activation": net.activation,
        "norm": net.norm,
        "output_norm": net.output_norm,
        "logit_scale": net.logit_scale,
    }
    checkpoint.save(Path(path), tensors, {**about, **form})


def load_network(path: str | os.PathLike[str]) -> Network:
    """Load the network of a file that `save_network` wrote. Loading cannot run code from it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or does not fit together.
    """
    reader = checkpoint.Reader(Path(path))
    form = reader.entry("form", str)
    if form not in ("bits", "real", "graph"):
        raise reader.fail(f"metadata 'form' is {form!r}")
    try:
        return _graph(reader) if form == "graph" else _layers(reader, form)
    except (ValueError, TypeError) as error:
        raise reader.fail(str(error)) from error


def _layers(reader: checkpoint.Reader, form: str) -> WeightFreeNet | RealNet:
    widths, scale = reader.entry("widths", list), reader.entry("logit_scale", (int, float))
    activation, norm, output_norm = (reader.entry(name, str) for name in ("activation", "norm", "output_norm"))
    shapes = [(n_out, n_in) for n_in, n_out in pairwise(widths)]
    if form == "bits":
        bits = [reader.bits(f"layers.{i}.words", *shape) for i, shape in enumerate(shapes)]
        return WeightFreeNet(
            widths, activation=activation, norm=norm, logit_scale=scale, output_norm=output_norm, weights=bits
        )
    real = [reader.tensor(f"layers.{i}.weight", torch.float32, shape) for i, shape in enumerate(shapes)]
    return RealNet(widths, activation, norm, scale, real, output_norm)


def _graph(reader: checkpoint.Reader) -> GraphNet:
    inputs, outputs = reader.entry("inputs", int), reader.entry("outputs", int)
    pixels = reader.entry("pixels", (list, type(None)))
    units = len(reader.tensors.get("graph.activation", ()))
    graph = graph_of(
        outputs,
        reader.bits("graph.inputs", units, inputs + 1),
        reader.bits("graph.units", units, units),
        reader.tensor("graph.activation", torch.int64, (units,)),
    )
    return GraphNet(graph, reader.entry("weight", float), None if pixels is None else (pixels[0], pixels[1]))
