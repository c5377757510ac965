"""The search for weight-free networks, by each of its estimators."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fastbin.baselines.task import Task, Trained
from fastbin.bits import BitMatrix
from fastbin.search import run_search


def weight_free(task: Task, estimator: Literal["hard", "sample", "soft"]) -> Trained:
    """Search by an estimator; what else the configuration leaves open is the estimator's default."""
    evolution: list[list[BitMatrix]] = []
    config = dataclasses.replace(task.config, estimator=estimator)
    result = run_search(task.dataset, config, on_bits=lambda _, bits: evolution.append(bits))
    operations = task.training(len(result.history))
    return Trained(result.net, operations, result.history, result.best_epoch, evolution=evolution)
