"""Rivals with restricted weights: real latent values are trained, and what works is a function of them.

Each function is a torch parametrisation with a straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from fastbin.baselines.fully_connected import initial_weights
from fastbin.baselines.nets import RealNet
from fastbin.baselines.task import Task, Trained
from fastbin.baselines.training import fit
from fastbin.bits import BitMatrix

LR = 0.01  # of Adam
KEPT = 0.5  # share of connections that edge-popup keeps in each layer
_LATENT = 13  # what random numbers are for


def edge_popup(task: Task, signed: bool) -> Trained:
    """Edge-popup (Ramanujan et al. 2020, arXiv 1911.13299): scores choose a subnetwork of fixed weights.

    Args:
        task: the problem.
        signed: weights are one constant with a random sign each, as there; otherwise one constant.
    """
    shapes = list(enumerate(task.shapes))
    weights = [torch.full(shape, math.sqrt(2 / (KEPT * shape[1]))) for _, shape in shapes]
    if signed:
        weights = [
            w.copysign(torch.randn(w.shape, generator=task.generator(_LATENT, i))) for i, w in enumerate(weights)
        ]
    scores = [torch.rand(shape, generator=task.generator(_LATENT, len(shapes) + i)) for i, shape in shapes]
    net = task.real_net(scores)
    for layer, w in zip(net.linear(), weights, strict=True):
        register_parametrization(layer, "weight", _Popup(w.to(task.config.device)))
    found = fit(task, net, LR, task.config.epochs)
    return Trained(found.net, task.budget, found.history, found.best_epoch)


def binary_connect(task: Task) -> Trained:
    """BinaryConnect (Courbariaux et al. 2015, arXiv 1511.00363): signs of latent weights that are clipped to [-1, 1]."""
    net = task.real_net(initial_weights(task))
    for layer in net.linear():
        register_parametrization(layer, "weight", _Sign())
    found = fit(task, net, LR, task.config.epochs, after_step=lambda: _clip(net, -1.0))
    return Trained(found.net, task.budget, found.history, found.best_epoch)


def clipped_latent(task: Task) -> Trained:
    """Latent weights clipped to [0, 1], with threshold 0.5 (Learning Digital Circuits, arXiv 1909.00052): {0,1} weights."""
    latent = [torch.rand(shape, generator=task.generator(_LATENT, i)) for i, shape in enumerate(task.shapes)]
    net = task.real_net(latent)
    for layer in net.linear():
        register_parametrization(layer, "weight", _Threshold())
    found = fit(task, net, LR, task.config.epochs, after_step=lambda: _clip(net, 0.0))
    bits = [BitMatrix.pack(w) for w in found.net.weights()]
    return Trained(task.bit_net(bits), task.budget, found.history, found.best_epoch)


@torch.no_grad()
def _clip(net: RealNet, low: float) -> None:
    for parameter in net.parameters():
        parameter.clamp_(low, 1.0)


class _Popup(nn.Module):
    def __init__(self, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed)

    def forward(self, scores: Tensor) -> Tensor:
        return cast("Tensor", self.fixed) * _straight_through(_top, scores)


class _Sign(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return _straight_through(lambda t: torch.where(t > 0, 1.0, -1.0), latent)


class _Threshold(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return _straight_through(lambda t: (t > 0.5).to(t.dtype), latent)


def _top(scores: Tensor) -> Tensor:
    """1 for the KEPT share of greatest scores, else 0."""
    kept = scores.flatten().topk(round(KEPT * scores.numel()), sorted=False).indices
    return torch.zeros_like(scores).flatten().index_fill_(0, kept, 1.0).view_as(scores)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Any, t: Tensor) -> Tensor:
        return cast("Tensor", f(t))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def _straight_through(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    apply = cast("Callable[..., Tensor]", _StraightThrough.apply)
    return apply(f, t)
