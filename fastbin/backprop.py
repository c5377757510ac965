"""The forward and backward pass of a search step: the derivative of the loss in each layer's outputs.

Written out instead of taped by autograd: nothing is derived in the bits or the inputs, so the tape would be built for a
handful of calls whose derivatives torch has as functions, and its cost would be most of a small network's step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import ops
from fastbin.bits import BitMatrix
from fastbin.nn import LAYER_NORM_EPS, WeightFreeNet

_aten = torch.ops.aten


@dataclass(frozen=True)
class Pass:
    """What a step needs of one batch.

    Attributes:
        loss: mean cross-entropy, a scalar.
        logits: float32 ``[B, n_L]``.
        inputs: h_(l-1) of each layer, ``[B, n_(l-1)]``; a BitMatrix behind ``step``.
        grads: derivative of the loss in each layer's outputs a_l, ``[B, n_l]``.
    """

    loss: Tensor
    logits: Tensor
    inputs: list[Tensor | BitMatrix]
    grads: list[Tensor]


@torch.no_grad()
def backprop(net: WeightFreeNet, x: Tensor, y: Tensor) -> Pass:
    """Loss of `net` on standardised inputs ``[B, n_0]`` and class indices ``[B]``, with its derivatives in all a_l.

    Activations and derivatives are of x's dtype.
    """
    weights = net.weights()
    h: Tensor | BitMatrix = x
    inputs, outputs, normed = [], [], []
    for i, w in enumerate(weights):
        inputs.append(h)
        a = ops.bit_matmul(h, w).to(x.dtype) if isinstance(h, BitMatrix) else ops.bit_linear(h, w)
        if net.norm_of(i) == "layer":
            z, *moments = _aten.native_layer_norm.default(a, [w.rows], None, None, LAYER_NORM_EPS)
        else:
            z, moments = a / math.sqrt(w.cols), []
        outputs.append(a)
        normed.append((z, moments))
        if i < len(weights) - 1:
            h = ops.step(z) if net.activation == "step" else net.activate(z)
    logits = z.float() * net.logit_scale
    log_p = F.log_softmax(logits, 1)
    loss, total = _aten.nll_loss_forward.default(log_p, y, None, _MEAN, _IGNORE)
    g = _aten.nll_loss_backward.default(torch.ones_like(loss), log_p, y, None, _MEAN, _IGNORE, total)
    g = _aten._log_softmax_backward_data.default(g, log_p, 1, log_p.dtype).mul_(net.logit_scale).to(x.dtype)
    grads = []
    for i in reversed(range(len(weights))):
        w, (z, moments) = weights[i], normed[i]
        if i < len(weights) - 1:
            g = _through_activation(net.activation, ops.bit_linear_t(g, weights[i + 1]), z, inputs[i + 1])
        if net.norm_of(i) == "layer":
            mask = [True, False, False]
            g = _aten.native_layer_norm_backward.default(g, outputs[i], [w.rows], *moments, None, None, mask)[0]
        else:
            g = g / math.sqrt(w.cols)
        grads.append(g)
    return Pass(loss, logits, inputs, grads[::-1])


_MEAN, _IGNORE = 1, -100  # aten's numbers: the mean over the batch; a class that would be left out


def _through_activation(activation: str, g: Tensor, z: Tensor, h: Tensor | BitMatrix) -> Tensor:
    if activation == "step":  # straight-through: dstep/dz = 1[|z| ≤ 1] (Hubara et al. 2016)
        return g * (z.abs() <= 1)
    if activation == "relu":
        through: Tensor = _aten.threshold_backward.default(g, h, 0)
    elif activation == "tanh":
        through = _aten.tanh_backward.default(g, h)
    else:
        through = _aten.gelu_backward.default(g, z)
    return through
