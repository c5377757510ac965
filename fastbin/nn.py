"""Modules: linear layers of bits, and the network whose structure alone is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastbin import ops
from fastbin.bits import BitMatrix

Activation = Literal["relu", "tanh", "gelu", "step"]
Norm = Literal["layer", "none"]
LAYER_NORM_EPS = 1e-5


class _PackedLinear(nn.Module):
    """What the layers of packed weights share: sizes, a constant factor and a bias, each optional."""

    scale: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, scale: Tensor | float | None, bias: Tensor | None) -> None:
        super().__init__()
        kind = type(self).__name__
        if in_features < 1 or out_features < 1:
            raise ValueError(f"{kind} needs at least 1 feature in and out, got {in_features} and {out_features}")
        self.in_features = in_features
        self.out_features = out_features
        if scale is not None and not isinstance(scale, Tensor):
            scale = torch.tensor(float(scale))
        if scale is not None and scale.shape not in ((), (out_features,)):
            raise ValueError(f"scale must have shape [] or [{out_features}], got {list(scale.shape)}")
        if bias is not None and bias.shape != (out_features,):
            raise ValueError(f"bias must have shape [{out_features}], got {list(bias.shape)}")
        self.register_buffer("scale", scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        scale = "" if self.scale is None else f", scale={list(self.scale.shape) or float(self.scale)}"
        bias = "" if self.bias is None else ", bias=True"
        return f"in_features={self.in_features}, out_features={self.out_features}{scale}{bias}"


class BitLinear(_PackedLinear):
    """``scale · (x @ wᵀ) + bias`` with w in {0,1}^(out_features × in_features).

    The packed words are a buffer: they move with ``.to(device)`` and are saved by ``state_dict``. No gradient reaches
    them; searches move them by `fastbin.ops.mask_grad_update_`.

    Args:
        in_features: C, at least 1.
        out_features: R, at least 1.
        weight: the bits ``[out_features, in_features]``, shared and not copied; drawn fair without.
        scale: a constant factor, a number or a float tensor ``[]`` or ``[R]``; none without.
        bias: ``[R]``, a parameter that can be learned; none without.
    """

    words: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight: BitMatrix | None = None,
        scale: Tensor | float | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, scale, bias)
        if weight is None:
            weight = BitMatrix.pack(torch.randint(0, 2, (out_features, in_features), dtype=torch.uint8))
        if weight.shape != (out_features, in_features):
            raise ValueError(f"weight must have shape {[out_features, in_features]}, got {list(weight.shape)}")
        self.register_buffer("words", weight.words)

    @property
    def weight(self) -> BitMatrix:
        """The bits ``[out_features, in_features]``; they share memory with the module's."""
        return BitMatrix(self.words, self.in_features)

    def forward(self, x: Tensor | BitMatrix) -> Tensor:
        """Real ``[.., C]`` to ``[.., R]`` in the same dtype; a BitMatrix ``[B, C]`` to float32 ``[B, R]``."""
        if isinstance(x, BitMatrix):
            y = ops.bit_matmul(x, self.weight).to(torch.float32)
            return self._biased(y if self.scale is None else y * self.scale)
        return self._biased(ops.bit_linear(x, self.weight, self.scale))


class TernaryLinear(_PackedLinear):
    """``scale · (x @ (plus − minus)ᵀ) + bias``: weights in {−1, 0, 1}, two bits each.

    Args:
        plus: where the weight is 1, ``[out_features, in_features]``, shared and not copied.
        minus: where it is −1, likewise.
        scale: as for `BitLinear`.
        bias: as for `BitLinear`.
    """

    plus: Tensor
    minus: Tensor

    def __init__(
        self, plus: BitMatrix, minus: BitMatrix, *, scale: Tensor | float | None = None, bias: Tensor | None = None
    ) -> None:
        if len(plus.shape) != 2 or plus.shape != minus.shape:
            raise ValueError(f"plus and minus must be two matrices of one shape, got {plus} and {minus}")
        super().__init__(plus.cols, plus.rows, scale, bias)
        self.register_buffer("plus", plus.words)
        self.register_buffer("minus", minus.words)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``[.., C]`` to ``[.., R]`` in the same dtype."""
        plus, minus = (BitMatrix(words, self.in_features) for words in (self.plus, self.minus))
        return self._biased(ops.ternary_linear(x, plus, minus, self.scale))


class SignLinear(_PackedLinear):
    """``scale · (x @ (2 w − 1)ᵀ) + bias``: weights in {−1, 1}, a bit each.

    Args:
        weight: 1 where the weight is 1 and 0 where it is −1, ``[out_features, in_features]``, shared and not copied.
        scale: as for `BitLinear`.
        bias: as for `BitLinear`.
    """

    words: Tensor

    def __init__(self, weight: BitMatrix, *, scale: Tensor | float | None = None, bias: Tensor | None = None) -> None:
        if len(weight.shape) != 2:
            raise ValueError(f"weight must be one matrix, got {weight}")
        super().__init__(weight.cols, weight.rows, scale, bias)
        self.register_buffer("words", weight.words)

    def forward(self, x: Tensor) -> Tensor:
        """Real ``[.., C]`` to ``[.., R]`` in the same dtype."""
        return self._biased(ops.sign_linear(x, BitMatrix(self.words, self.in_features), self.scale))


class _StepLinear(torch.autograd.Function):
    """``step(z) @ wᵀ`` on bits, with the straight-through derivative dstep/dz = 1[|z| ≤ 1] (Hubara et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, words: Tensor) -> Tensor:
        h, w = ops.step(z), BitMatrix(words, z.shape[-1])
        ctx.save_for_backward(z, words)
        return ops.bit_matmul(h, w).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        z, words = ctx.saved_tensors
        return ops.bit_linear_t(grads[0], BitMatrix(words, z.shape[-1])) * (z.abs() <= 1), None


class Perceptron(nn.Module):
    """What a multilayer perceptron has besides its weights: a_l = h_(l-1) W_lᵀ, z_l = norm_l(a_l), h_l = activation(z_l).

    Args:
        widths: units of the input, of each hidden layer and of the output, each at least 1.
        activation: of the hidden layers.
        norm: of the hidden layers. ``layer``: each sample is centred and scaled over the layer's units, no learned parameter
            (Ba et al. 2016, arXiv 1607.06450, without affine); ``none``: division by sqrt of the layer's inputs.
        logit_scale: the constant s; sharpens the softmax, changes no prediction.
        output_norm: of the output layer, likewise; unset: norm, but none for two classes, of which ``layer`` leaves only the
            order (any two numbers become 1 and -1, so that no derivative is left).
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        norm: Norm,
        logit_scale: float,
        output_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths need an input and an output at least, got {list(widths)}")
        if any(n != int(n) for n in widths):
            raise ValueError(f"widths must be whole numbers, got {list(widths)}")
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {activation!r}")
        for name, value in (("norm", norm), ("output_norm", output_norm or norm)):
            if value not in get_args(Norm):
                raise ValueError(f"{name} must be one of {', '.join(get_args(Norm))}, got {value!r}")
        if not (0 < logit_scale < math.inf):
            raise ValueError(f"logit_scale must be positive and finite, got {logit_scale!r}")
        self.widths = tuple(int(n) for n in widths)
        self.activation = activation
        self.norm = norm
        self.output_norm = output_norm or ("none" if self.widths[-1] == 2 else norm)
        self.logit_scale = logit_scale

    def norm_of(self, layer: int) -> Norm:
        """The norm of layer 0, 1, .., L - 1."""
        return self.norm if layer < len(self.widths) - 2 else self.output_norm

    def normalise(self, a: Tensor, layer: int) -> Tensor:
        """Z = norm(a) of layer 0, 1, .., L - 1."""
        if self.norm_of(layer) == "layer":
            return F.layer_norm(a, a.shape[-1:], eps=LAYER_NORM_EPS)
        return a / math.sqrt(self.widths[layer])

    def activate(self, z: Tensor) -> Tensor:
        """H = activation(z) for the real-valued activations."""
        if self.activation == "relu":
            return F.relu(z)
        return F.gelu(z) if self.activation == "gelu" else torch.tanh(z)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"activation={self.activation!r}, norm={self.norm!r}, logit_scale={self.logit_scale}, "
            f"output_norm={self.output_norm!r}"
        )


class WeightFreeNet(Perceptron):
    """A multilayer perceptron over {0,1} weights: nothing is learned but the bits.

    a_l = h_(l-1) W_lᵀ, z_l = norm_l(a_l), h_l = activation(z_l), logits = logit_scale · z_L.

    Args:
        widths: units of the input, of each hidden layer and of the output, each at least 1.
        activation: ``relu``, ``tanh``, ``gelu`` or ``step`` (values in {0, 1}: hidden layers then stay packed, and every
            product but the first is `bit_matmul`; derivatives are straight-through).
        norm: as of `Perceptron`.
        logit_scale: as of `Perceptron`.
        output_norm: as of `Perceptron`.
        weights: the bits of each layer, shared and not copied; drawn fair without.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation = "relu",
        norm: Norm = "layer",
        logit_scale: float = 2.0,
        output_norm: Norm | None = None,
        weights: Sequence[BitMatrix] | None = None,
    ) -> None:
        super().__init__(widths, activation, norm, logit_scale, output_norm)
        shapes = list(pairwise(self.widths))
        if weights is not None and len(weights) != len(shapes):
            raise ValueError(f"widths {list(widths)} need {len(shapes)} weights, got {len(weights)}")
        self.layers = nn.ModuleList(
            BitLinear(n_in, n_out, weight=None if weights is None else weights[i])
            for i, (n_in, n_out) in enumerate(shapes)
        )

    def weights(self) -> list[BitMatrix]:
        """The bits of each layer; they share memory with the module's."""
        return [layer.weight for layer in self.bit_layers()]

    def bit_layers(self) -> list[BitLinear]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, BitLinear)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, n_L]`` of standardised inputs ``[B, n_0]``.

        Raises:
            TypeError, ValueError: x is not real or not a matrix, or has another dtype, device or number of features
                (`fastbin.ops.bit_linear`).
        """
        if isinstance(x, Tensor):
            if not x.is_floating_point():
                raise TypeError(f"x must be of a floating dtype, got {x.dtype}")
            if x.dim() != 2:
                raise ValueError(f"x must have shape [B, {self.widths[0]}], got {list(x.shape)}")
        layers, step = self.bit_layers(), cast("Callable[..., Tensor]", _StepLinear.apply)
        z = self.normalise(layers[0](x), 0)
        for i, layer in enumerate(layers[1:], 1):
            a = step(z, layer.words) if self.activation == "step" else layer(self.activate(z))
            z = self.normalise(a, i)
        return z * self.logit_scale
