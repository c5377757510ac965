"""The search for weight-free networks, by each of its estimators."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fastbin.baselines.task import Task, Trained
from fastbin.search import run_search


def weight_free(task: Task, estimator: Literal["hard", "sample", "soft"]) -> Trained:
    """Search by an estimator; what else the configuration leaves open is the estimator's default."""
    result = run_search(task.dataset, dataclasses.replace(task.config, estimator=estimator))
    return Trained(result.net, task.training(len(result.history)), result.history, result.best_epoch)
