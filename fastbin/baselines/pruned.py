"""Pruned networks: real weights on few connections, chosen by torch.nn.utils.prune."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from fastbin.baselines.fully_connected import initial_weights
from fastbin.baselines.nets import RealNet
from fastbin.baselines.task import Task, Trained
from fastbin.baselines.training import fit
from fastbin.result import EVALUATION_BATCH

LR = 0.01  # of Adam
ROUNDS = 3  # trainings of iterative magnitude pruning; the connections are pruned between them
REWIND_EPOCH = 1  # weights go back to what they were after this epoch


def magnitude_pruned(task: Task, density: float | None = None) -> Trained:
    """Iterative magnitude pruning with rewinding (Frankle and Carbin 2019, arXiv 1803.03635; Frankle et al. 2020).

    The budget is that of one training: its epochs are shared out to the rounds, the last one gets what is left over. The
    share of connections falls by the same factor between rounds; the least are pruned over all layers. After pruning, the
    rest goes back to its weights of an early epoch.

    Args:
        task: the problem, of two epochs at least.
        density: share of connections of the last round; unset: that of the searched network.
    """
    density = _searched(task) if density is None else density
    epochs = task.config.epochs
    rounds = min(ROUNDS, epochs)
    net = task.real_net(initial_weights(task))
    early = [layer.weight.detach().clone() for layer in net.linear()]

    def remember(epoch: int) -> None:
        if epoch == REWIND_EPOCH:
            for kept, layer in zip(early, net.linear(), strict=True):
                kept.copy_(layer.weight.detach())

    history = []
    for i, (start, end) in enumerate(pairwise([*(j * (epochs // rounds) for j in range(rounds)), epochs])):
        if i > 0:
            _prune(net, density ** (i / (rounds - 1)), [layer.weight.detach().abs() for layer in net.linear()])
            with torch.no_grad():
                for layer, kept in zip(net.linear(), early, strict=True):
                    layer.get_parameter("weight_orig").copy_(kept)
        found = fit(task, net, LR, end - start, first=start + 1, after_epoch=remember)
        history += found.history
    return Trained(found.net, task.budget, history, found.best_epoch)


def snip(task: Task, density: float | None = None) -> Trained:
    """Single-shot pruning at initialisation (Lee et al. 2019, arXiv 1810.02340): keep the greatest |w · ∂L/∂w|.

    Args:
        task: the problem.
        density: share of connections to keep; unset: that of the searched network.
    """
    net = task.real_net(initial_weights(task))
    loss = F.cross_entropy(net(task.train.x[:EVALUATION_BATCH]), task.train.y[:EVALUATION_BATCH])
    grads = torch.autograd.grad(loss, [layer.weight for layer in net.linear()])
    saliency = [(layer.weight * g).detach().abs() for layer, g in zip(net.linear(), grads, strict=True)]
    _prune(net, _searched(task) if density is None else density, saliency)
    found = fit(task, net, LR, task.config.epochs)
    return Trained(found.net, task.budget, found.history, found.best_epoch)


def _searched(task: Task) -> float:
    ones = sum(share * rows * cols for share, (rows, cols) in zip(task.searched_density(), task.shapes, strict=True))
    return ones / task.edges


def _prune(net: RealNet, density: float, importance: list[torch.Tensor]) -> None:
    """Keep this share of all connections, the most important ones over all layers."""
    layers: list[tuple[nn.Module, str]] = [(layer, "weight") for layer in net.linear()]
    edges = sum(t.numel() for t in importance)
    gone = sum(int((layer.weight == 0).sum()) for layer in net.linear() if prune.is_pruned(layer))
    prune.global_unstructured(
        layers,
        pruning_method=prune.L1Unstructured,
        importance_scores=dict(zip(layers, importance, strict=True)),
        amount=edges - round(density * edges) - gone,
    )
