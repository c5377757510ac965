"""Random structures: {0,1} weights drawn independently at a density, the least that a search must beat."""

from __future__ import annotations

import torch

from fastbin.baselines.task import Task, Trained
from fastbin.bits import BitMatrix
from fastbin.result import evaluate

DRAWS = 10  # networks drawn: their mean is told, and the best by validation
_BITS = 11  # what random numbers are for


def random_structure(task: Task, density: float | None = None) -> Trained:
    """Draw networks and choose the best one by validation.

    Args:
        task: the problem.
        density: of every layer; unset: each layer's is that of the searched network.
    """
    densities = task.searched_density() if density is None else (density,) * len(task.shapes)
    draws = []
    for draw in range(DRAWS):
        layers = enumerate(zip(task.shapes, densities, strict=True))
        bits = [torch.rand(shape, generator=task.generator(_BITS, draw, i)) < share for i, (shape, share) in layers]
        draws.append(task.bit_net([BitMatrix.pack(b) for b in bits]))
    best = max(draws, key=lambda net: evaluate(net, task.validation.x, task.validation.y)[1])
    return Trained(best, DRAWS * task.edges * len(task.validation.y), draws=draws)
