"""Dense layers whose weights need a bit or two each, as layers of packed bits."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fastbin.bits import BitMatrix
from fastbin.nn import BitLinear, SignLinear, TernaryLinear
from fastbin.ops import FLOATS


class Conversion(NamedTuple):
    """What `convert` made.

    Attributes:
        module: a copy of the module with packed layers.
        converted: the name of each converted layer (as in ``named_modules``), and what it is now.
        left: the name of each `torch.nn.Linear` that was left as it is, and why.
    """

    module: nn.Module
    converted: dict[str, str]
    left: dict[str, str]


def convert(module: nn.Module) -> Conversion:
    """Copy `module` with packed layers in the place of every `torch.nn.Linear` whose weights they can hold exactly.

    Weights in {0, c} become a `BitLinear`, in {−c, c} a `SignLinear`, in {−c, 0, c} a `TernaryLinear`, with one c or one for
    each row as its scale. That is so of a layer masked by `torch.nn.utils.prune` whose weights are constant. The bias
    stays a parameter; the packed weights are no longer learned.

    >>> layer = torch.nn.Linear(3, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[0.5, 0.0, -0.5], [0.5, 0.5, 0.0]])
    >>> converted = convert(torch.nn.Sequential(layer, torch.nn.Linear(2, 2)))
    >>> converted.module[0]
    TernaryLinear(in_features=3, out_features=2, scale=0.5)
    >>> converted.module[0](torch.tensor([1.0, 2.0, 4.0]))
    tensor([-1.5000,  1.5000])
    >>> list(converted.left)
    ['1']

    Args:
        module: any module; it is not changed.

    Raises:
        TypeError: it is not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    converted, left = {}, {}
    memo: dict[int, object] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        parent = module.get_submodule(name.rpartition(".")[0])
        packed = _unfit(layer, parent) or _packed(layer)
        if isinstance(packed, str):
            left[name] = packed
        else:
            converted[name] = type(packed).__name__
            memo[id(layer)] = packed.train(layer.training)  # what deepcopy takes for the layer's copy
    return Conversion(copy.deepcopy(module, memo), converted, left)


def _unfit(layer: nn.Linear, parent: nn.Module) -> str | None:
    """Why a layer cannot be replaced whatever its weights are, None if it can."""
    hooks = (layer._forward_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    pre_hooks = layer._forward_pre_hooks.values()
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, which may do more than its weight and bias say"
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "its parent, a TransformerEncoderLayer, reads its weight"
    if any(hooks) or not all(isinstance(hook, prune.BasePruningMethod) for hook in pre_hooks):
        return "it has hooks"
    if layer.in_features < 1 or layer.out_features < 1:
        return f"it has {layer.in_features} inputs and {layer.out_features} outputs"
    return None


def _packed(layer: nn.Linear) -> nn.Module | str:
    """The layer that does the same, or why there is none."""
    weight, bias = _effective(layer, "weight"), _effective(layer, "bias")
    assert weight is not None
    if weight.dtype not in FLOATS or weight.is_meta:
        return f"its weight is {weight.dtype} on {weight.device}"
    size = weight.abs()
    most = size.amax(1)
    infinite = ~weight.isfinite()
    odd = infinite if infinite.any() else (size != 0) & (size != most.unsqueeze(1))
    if odd.any():
        row, col = (int(i) for i in odd.nonzero()[0])
        return (
            f"weight[{row}, {col}] is {weight[row, col].item():g}, in a row whose largest size is {most[row].item():g}"
        )
    plus, minus, used = weight > 0, weight < 0, most > 0
    if not bool((plus.any(1) & minus.any(1)).any()):
        scale = _common(torch.where(minus.any(1), -most, most), used)
        bits = BitMatrix.pack(plus | minus)
        return BitLinear(layer.in_features, layer.out_features, weight=bits, scale=scale, bias=bias)
    scale = _common(most, used)
    if bool((plus | minus).all()):
        return SignLinear(BitMatrix.pack(plus), scale=scale, bias=bias)
    return TernaryLinear(BitMatrix.pack(plus), BitMatrix.pack(minus), scale=scale, bias=bias)


def _effective(layer: nn.Linear, name: str) -> Tensor | None:
    """A copy of a parameter as the layer applies it, that is masked if it is pruned."""
    if hasattr(layer, f"{name}_mask"):
        value: Tensor = getattr(layer, f"{name}_orig") * getattr(layer, f"{name}_mask")
    elif getattr(layer, name) is None:
        return None
    else:
        value = getattr(layer, name).clone()
    return value.detach()


def _common(scales: Tensor, used: Tensor) -> Tensor | None:
    """One scale for all rows that are not 0 if they agree, and none if it is 1."""
    present = scales[used]
    if present.numel() and bool((present != present[0]).any()):
        return scales
    return None if not present.numel() or float(present[0]) == 1 else present[0].clone()
