"""The forward and backward pass of a search step: the derivative of the loss in each layer's outputs.

Written out instead of taped by autograd: nothing is derived in the bits or the inputs, so the tape would be built for a
handful of calls whose derivatives torch has as functions, and its cost would be most of a small network's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import ops
from fastbin.bits import BitMatrix
from fastbin.nn import LAYER_NORM_EPS, Perceptron

_aten = torch.ops.aten


@dataclass(frozen=True)
class Pass:
    """What a step needs of one batch; all lead with P for a population.

    Attributes:
        loss: mean cross-entropy, float32, a scalar or ``[P]``.
        logits: float32 ``[B, n_L]``.
        inputs: h_(l-1) of each layer, ``[B, n_(l-1)]``; a BitMatrix behind ``step``.
        grads: derivative of the loss in each layer's outputs a_l, ``[B, n_l]``.
    """

    loss: Tensor
    logits: Tensor
    inputs: list[Tensor | BitMatrix]
    grads: list[Tensor]


@dataclass(frozen=True)
class _Layer:
    """What the forward pass leaves of a layer: its inputs, its outputs before and behind the norm, the norm's moments."""

    inputs: Tensor | BitMatrix
    a: Tensor
    z: Tensor
    moments: list[Tensor]


class Products:
    """The two products of a pass with the bits of a layer. Where a process has rows of them alone, it gets the rest too."""

    def forward(self, h: Tensor | BitMatrix, w: BitMatrix, outputs: int, dtype: torch.dtype) -> Tensor:
        """a_l = h wᵀ, ``[B, outputs]`` in `dtype`, of which the layer has `outputs`."""
        return ops.bit_matmul(h, w).to(dtype) if isinstance(h, BitMatrix) else ops.bit_linear(h, w)

    def backward(self, g: Tensor, w: BitMatrix) -> Tensor:
        """G w, ``[B, n_(l-1)]``, of the derivative g ``[B, n_l]``."""
        return ops.bit_linear_t(g, w)


_WHOLE = Products()


def _forward(net: Perceptron, weights: Sequence[BitMatrix], x: Tensor, products: Products = _WHOLE) -> list[_Layer]:
    h: Tensor | BitMatrix = x
    layers: list[_Layer] = []
    for i, w in enumerate(weights):
        if i > 0:
            h = _activate(net.activation, layers[-1].z)
        a = products.forward(h, w, net.widths[i + 1], x.dtype)
        if net.norm_of(i) == "layer":
            z, *moments = _aten.native_layer_norm.default(a, [net.widths[i + 1]], None, None, LAYER_NORM_EPS)
        else:
            z, moments = a / math.sqrt(w.cols), []
        layers.append(_Layer(h, a, z, moments))
    return layers


@torch.no_grad()
def forward(net: Perceptron, weights: Sequence[BitMatrix], x: Tensor) -> Tensor:
    """Logits ``[P, B, n_L]`` of a population, each member's those of a network of its own, bit for bit."""
    return _forward(net, weights, x)[-1].z * net.logit_scale


@torch.no_grad()
def backprop(net: Perceptron, weights: Sequence[BitMatrix], x: Tensor, y: Tensor, products: Products = _WHOLE) -> Pass:
    """Loss and its derivatives in all a_l.

    Activations and derivatives are of x's dtype. What a member of a population gets equals what a network of its own gets,
    bit for bit, where the ops' kernels see to that too (those of the CPU do).

    Args:
        net: the form of the network.
        weights: its bits, ``[n_l, n_(l-1)]``, or ``[P, n_l, n_(l-1)]`` for a population; x and y lead with P then.
        x: standardised inputs ``[B, n_0]``.
        y: class indices ``[B]``.
        products: with the bits.
    """
    layers = _forward(net, weights, x, products)
    logits = layers[-1].z.float() * net.logit_scale
    log_p = F.log_softmax(logits.flatten(0, -2), 1)
    targets, samples = y.flatten(), y.shape[-1]
    losses, total = _aten.nll_loss_forward.default(log_p, targets, None, _EACH, _IGNORE)
    # In the order of the batch, whatever the population: sum's order depends on the shape.
    loss = losses.view(y.shape).double().cumsum(-1)[..., -1].div(samples).float()
    g = losses.new_full(losses.shape, 1 / samples)
    g = _aten.nll_loss_backward.default(g, log_p, targets, None, _EACH, _IGNORE, total)
    g = _aten._log_softmax_backward_data.default(g, log_p, 1, log_p.dtype).mul_(net.logit_scale).to(x.dtype)
    g = g.view(logits.shape)
    grads = []
    for i in reversed(range(len(weights))):
        w, layer = weights[i], layers[i]
        if i < len(weights) - 1:
            g = products.backward(g, weights[i + 1])
            g = _through_activation(net.activation, g, layer.z, layers[i + 1].inputs)
        if net.norm_of(i) == "layer":
            mask = [True, False, False]
            shape = [net.widths[i + 1]]
            g = _aten.native_layer_norm_backward.default(g, layer.a, shape, *layer.moments, None, None, mask)[0]
        else:
            g = g / math.sqrt(w.cols)
        grads.append(g)
    return Pass(loss, logits, [layer.inputs for layer in layers], grads[::-1])


_EACH, _IGNORE = 0, -100  # aten's numbers: the loss of each sample; a class that would be left out


def _activate(activation: str, z: Tensor) -> Tensor | BitMatrix:
    if activation == "step":
        return ops.step(z)
    if activation == "relu":
        return F.relu(z)
    return _by_member(F.gelu, z) if activation == "gelu" else torch.tanh(z)


def _through_activation(activation: str, g: Tensor, z: Tensor, h: Tensor | BitMatrix) -> Tensor:
    if activation == "step":  # straight-through: dstep/dz = 1[|z| ≤ 1] (Hubara et al. 2016)
        return g * (z.abs() <= 1)
    if activation == "relu":
        through: Tensor = _aten.threshold_backward.default(g, h, 0)
    elif activation == "tanh":
        through = _aten.tanh_backward.default(g, h)
    else:
        through = _by_member(_aten.gelu_backward.default, g, z)
    return through


def _by_member(f: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """F of each member, in one call if each element is then computed as in a call for its member alone.

    On a CPU torch's gelu takes whole vectors by one formula and what is left at the end of a thread's share by another one.
    """
    lead = operands[0]
    if lead.dim() == 2 or not lead.is_cpu or all(map(_whole_vectors, (lead[0].numel(), lead.numel()))):
        return f(*operands)
    return torch.stack([f(*member) for member in zip(*operands, strict=True)])


def _whole_vectors(elements: int) -> bool:
    # Two vectors of AVX-512 at most to a turn of torch's loop, 32 bfloat16 each; so many threads as gelu may choose.
    threads = torch.get_num_threads()
    shares = {1, threads, min(threads, math.ceil(elements / _GRAIN))}
    return all(math.ceil(elements / n) % 64 == 0 for n in shares)


_GRAIN = 32768  # torch's: elements that are worth a thread
