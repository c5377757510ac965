"""Networks with real weights, and what any network is when one weight is shared by all its connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fastbin.baselines.graph import ACTIVATIONS, GraphNet
from fastbin.nn import Activation, Norm, Perceptron, WeightFreeNet

SHARED_WEIGHTS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)  # of Gaier and Ha 2019


class RealNet(Perceptron):
    """The form of `fastbin.nn.WeightFreeNet` with real weights, ``torch.nn.Linear`` without bias.

    Args:
        widths: units of the input, of each hidden layer and of the output.
        activation: ``relu``, ``tanh`` or ``gelu``.
        norm: as of `fastbin.nn.Perceptron`.
        logit_scale: as of `fastbin.nn.Perceptron`.
        weights: float32 ``[n_l, n_(l-1)]`` of each layer, copied.
        output_norm: as of `fastbin.nn.Perceptron`.

    Raises:
        ValueError: activation ``step``, which is for packed layers, or what does not fit the widths.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        norm: Norm,
        logit_scale: float,
        weights: Sequence[Tensor],
        output_norm: Norm | None = None,
    ) -> None:
        super().__init__(widths, activation, norm, logit_scale, output_norm)
        if activation == "step":
            raise ValueError("networks with real weights have no packed layers: choose relu, tanh or gelu, not step")
        shapes = [(n_out, n_in) for n_in, n_out in pairwise(self.widths)]
        if [tuple(w.shape) for w in weights] != shapes:
            raise ValueError(f"weights must have shapes {shapes}, got {[tuple(w.shape) for w in weights]}")
        self.layers = nn.ModuleList(
            nn.Linear(w.shape[1], w.shape[0], bias=False, device=w.device, dtype=w.dtype) for w in weights
        )
        with torch.no_grad():
            for layer, w in zip(self.linear(), weights, strict=True):
                layer.weight.copy_(w)

    def linear(self) -> list[nn.Linear]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def weights(self) -> list[Tensor]:
        """A copy of each layer's weights as they work: after pruning and parametrisation."""
        return [_weight(layer).detach().clone() for layer in self.linear()]

    def frozen(self) -> RealNet:
        """A copy with these weights, without pruning or parametrisation."""
        return RealNet(self.widths, self.activation, self.norm, self.logit_scale, self.weights(), self.output_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, n_L]`` of standardised inputs ``[B, n_0]``."""
        h = x
        for i, layer in enumerate(self.linear()):
            h = self.normalise(layer(self.activate(h) if i else h), i)
        return h * self.logit_scale


def _weight(layer: nn.Linear) -> Tensor:
    if not prune.is_pruned(layer):
        return layer.weight
    # A pruned layer's `weight` is that of its last forward pass.
    return layer.get_parameter("weight_orig") * layer.get_buffer("weight_mask")


Network = WeightFreeNet | RealNet | GraphNet


def dense_weights(net: WeightFreeNet | RealNet) -> list[Tensor]:
    """float32 weights of each layer ``[n_l, n_(l-1)]``; 0 where there is no connection."""
    return [w if isinstance(w, Tensor) else w.unpack() for w in net.weights()]


def share_weight(net: Network, weight: float) -> RealNet | GraphNet:
    """The network's structure with one weight on every connection."""
    if isinstance(net, GraphNet):
        return net.share(weight)
    shared = [weight * (w != 0).to(torch.float32) for w in dense_weights(net)]
    return RealNet(net.widths, net.activation, net.norm, net.logit_scale, shared, net.output_norm)


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        edges: possible connections.
        connections: those that are there.
        density: their share in each layer; in the whole of a graph.
        bits: what a file needs at least, without compression. Of layers: one a possible connection for the structure, unless
            all are there, and 32 a connection for weights of more than two values, 1 for weights of two, none for equal
            ones. Of a graph: for each connection the number of one of the possible ones, for each hidden unit that of its
            activation.
    """

    edges: int
    connections: int
    density: list[float]
    bits: int

    @classmethod
    def of(cls, net: Network) -> Size:
        """The size of a network."""
        if isinstance(net, GraphNet):
            g = net.graph
            bits = g.connections * math.ceil(math.log2(g.edges)) + g.hidden * math.ceil(math.log2(len(ACTIVATIONS)))
            return cls(g.edges, g.connections, [g.connections / g.edges], bits)
        weights = dense_weights(net)
        there = [int((w != 0).sum()) for w in weights]
        density = [n / w.numel() for n, w in zip(there, weights, strict=True)]
        return cls(sum(w.numel() for w in weights), sum(there), density, sum(map(_bits, weights)))


def _bits(w: Tensor) -> int:
    there = w[w != 0]
    values = len(there.unique())
    each = 32 if values > 2 else 1 if values == 2 else 0
    return (w.numel() if len(there) < w.numel() or each == 0 else 0) + each * len(there)
