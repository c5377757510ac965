"""The loss as a function of weights in [0,1]^d, which the bounds are about."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from fastbin.nn import Perceptron

SIGMOID_SLOPE = 1 / 4  # greatest derivative of the sigmoid, and of its derivative
SIGMOID_CURVATURE = 1 / (6 * math.sqrt(3))


class RelaxedLoss:
    """Mean cross-entropy of a network of real weights on one batch, in float64.

    The weights of all layers are one vector ``[d]``, layer after layer, row after row.

    Args:
        net: the form: widths, activation, norm and scale; its weights play no part.
        x: standardised inputs ``[B, n_0]``.
        y: class indices ``[B]``.

    Raises:
        ValueError: activation ``step``, which has no derivative, or inputs of another width.
    """

    def __init__(self, net: Perceptron, x: Tensor, y: Tensor) -> None:
        if net.activation == "step":
            raise ValueError("the loss behind step has no derivatives: choose relu, tanh or gelu")
        if x.dim() != 2 or x.shape[1] != net.widths[0]:
            raise ValueError(f"x must have shape [B, {net.widths[0]}], got {list(x.shape)}")
        self.net, self.x, self.y = net, x.double(), y
        self.shapes = [(n_out, n_in) for n_in, n_out in pairwise(net.widths)]
        self.d = sum(rows * cols for rows, cols in self.shapes)

    def flat(self, weights: Sequence[Tensor]) -> Tensor:
        """Weights of each layer ``[n_l, n_(l-1)]`` as one vector."""
        return torch.cat([w.reshape(-1).double() for w in weights])

    def layers(self, w: Tensor) -> list[Tensor]:
        """A vector ``[d]`` as weights of each layer."""
        parts = w.split([rows * cols for rows, cols in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def __call__(self, w: Tensor) -> Tensor:
        """L(w), a scalar."""
        h = self.x
        for i, layer in enumerate(self.layers(w)):
            h = self.net.normalise(F.linear(self.net.activate(h) if i else h, layer), i)
        return F.cross_entropy(h * self.net.logit_scale, self.y)

    def gradient(self, w: Tensor) -> Tensor:
        """∇L(w) ``[d]``."""
        derivative: Tensor = grad(self)(w)
        return derivative

    def hessian_times(self, w: Tensor, v: Tensor) -> Tensor:
        """∇²L(w) v of each row v of ``[N, d]``."""
        return _mapped(lambda row: grad(lambda at: self.gradient(at) @ row)(w), v)

    def values(self, w: Tensor) -> Tensor:
        """L of each row of ``[N, d]``."""
        return _mapped(self, w)

    def gradients(self, w: Tensor) -> Tensor:
        """∇L of each row of ``[N, d]``."""
        return _mapped(grad(self), w)


def _mapped(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    mapped: Tensor = vmap(f, chunk_size=4096)(w)
    return mapped


def surrogate(scores: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """σ_τ(θ) = sigmoid(θ/τ) and its derivative in θ."""
    p = torch.sigmoid(scores / tau)
    return p, p * (1 - p) / tau
