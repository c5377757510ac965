"""Kinds of network to compare, under one interface: a `Task` in, a `Trained` network out.

All work on the same data, widths, form (activation, norm) and budget, and choose by the validation part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastbin.baselines.evolution import weight_agnostic
from fastbin.baselines.fully_connected import dense
from fastbin.baselines.graph import Graph, GraphNet
from fastbin.baselines.nets import SHARED_WEIGHTS, RealNet
from fastbin.baselines.pruned import magnitude_pruned, snip
from fastbin.baselines.random_structures import random_structure
from fastbin.baselines.restricted import binary_connect, clipped_latent, edge_popup
from fastbin.baselines.searched import weight_free
from fastbin.baselines.task import Task, Trained

__all__ = ["KINDS", "ONLY_ON", "SEARCHED", "SHARED_WEIGHTS", "Graph", "GraphNet", "RealNet", "Task", "Trained"]

SEARCHED = "weight_free_hard"  # the kind whose density others are made at
ONLY_ON = {"weight_agnostic_16": ("mnist",)}  # kinds that are of certain data sets: the original task

KINDS: dict[str, Callable[[Task], Trained]] = {
    SEARCHED: partial(weight_free, estimator="hard"),
    "weight_free_sample": partial(weight_free, estimator="sample"),
    "weight_free_soft": partial(weight_free, estimator="soft"),
    "random": random_structure,
    "random_half": partial(random_structure, density=0.5),
    "weight_agnostic": weight_agnostic,
    "weight_agnostic_16": partial(weight_agnostic, images=True),
    "pruned": magnitude_pruned,
    "pruned_10": partial(magnitude_pruned, density=0.1),
    "pruned_1": partial(magnitude_pruned, density=0.01),
    "snip": snip,
    "snip_10": partial(snip, density=0.1),
    "dense": dense,
    "edge_popup": partial(edge_popup, signed=False),
    "edge_popup_signed": partial(edge_popup, signed=True),
    "binary_connect": binary_connect,
    "clipped_latent": clipped_latent,
}
