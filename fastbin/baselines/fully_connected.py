"""Fully connected networks with real weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastbin.baselines.task import Task, Trained
from fastbin.baselines.training import fit

LR = 0.003  # of Adam
WEIGHT_DECAY = 0.1
_WEIGHTS = 12  # what random numbers are for


def initial_weights(task: Task) -> list[Tensor]:
    """Weights drawn from N(0, 2 / inputs) (He et al. 2015)."""
    return [
        torch.randn(rows, cols, generator=task.generator(_WEIGHTS, i)) * math.sqrt(2 / cols)
        for i, (rows, cols) in enumerate(task.shapes)
    ]


def dense(task: Task) -> Trained:
    """Train all connections of the task's widths."""
    found = fit(task, task.real_net(initial_weights(task)), LR, task.config.epochs, weight_decay=WEIGHT_DECAY)
    return Trained(found.net, task.budget, found.history, found.best_epoch)
