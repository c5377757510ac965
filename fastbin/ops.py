"""The public ops: each takes `BitMatrix` for bits, checks its arguments and runs the kernel that `backends` chooses.

All of them take a population axis P in one call: with ``w`` of shape [P, R, C] the real operands lead with P too. Each is
also a torch op ``torch.ops.fastbin.<op>`` on packed words, see `fastbin.library`. The truth of each is the function of the
same name in `fastbin.reference`.

Float products accumulate in float32. Inputs are taken to be finite: whether a NaN or an infinity reaches an output whose bit
for it is 0 depends on the kernel.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from fastbin import library, signed, vmap  # noqa: F401  (vmap registers its rules)
from fastbin.bits import BitMatrix
from fastbin.reference import HYPER_FIELDS
from fastbin.rules import SGD, Adam, Bop, Rule, ScoreRule, UpdateState

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_OPERANDS = (*FLOATS, torch.int8)
_FLOAT32, _FLOAT64, _INT64 = (torch.float32,), (torch.float64,), (torch.int64,)


def _check_tensor(name: str, t: object, dtypes: tuple[torch.dtype, ...], device: torch.device) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in dtypes:
        raise TypeError(f"{name} must be one of {', '.join(str(d) for d in dtypes)}, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}, the bits on {device}: move one with .to()")
    return t


def _check_bits(name: str, w: object) -> BitMatrix:
    if not isinstance(w, BitMatrix):
        raise TypeError(f"{name} must be a BitMatrix, got {type(w).__name__}: pack it with BitMatrix.pack")
    return w


def _rows_of(name: str, t: Tensor, features: int, population: int | None) -> Tensor:
    """`t` ``[.., features]`` as the ops want it: ``[B, features]``, or ``[P, B, features]`` for a population."""
    if population is None and t.dim() == 2 and t.shape[1] == features:
        return t
    lead = 1 if population is None else 2
    if t.dim() < lead or t.shape[-1] != features or (population is not None and t.shape[0] != population):
        expected = f"[.., {features}]" if population is None else f"[{population}, .., {features}]"
        raise ValueError(f"{name} must have shape {expected} to fit the bits, got {list(t.shape)}")
    if t.dim() == lead + 1:
        return t
    return t.reshape(*t.shape[: lead - 1], t.shape[lead - 1 : -1].numel(), features)


def _outputs_of(op: library.Op, x: Tensor, w: BitMatrix, *words: Tensor) -> Tensor:
    """`op` of x ``[.., C]`` and the bits w (of which it takes `words`), ``[.., R]``."""
    _check_tensor("x", x, _OPERANDS, w.words.device)
    rows = _rows_of("x", x, w.cols, w.population)
    y: Tensor = op(rows, *words)
    return y if rows is x else y.reshape(*x.shape[:-1], w.rows)


def _scaled(y: Tensor, scale: Tensor | float | None, w: BitMatrix) -> Tensor:
    if scale is None:
        return y
    if isinstance(scale, Tensor):
        _check_tensor("scale", scale, FLOATS, y.device)
        allowed = [(), (w.rows,)] if w.population is None else [(), (w.rows,), (w.population, w.rows)]
        if scale.shape not in allowed:
            shapes = ", ".join(str(list(shape)) for shape in allowed)
            raise ValueError(f"scale must have one of the shapes {shapes} to fit the bits, got {list(scale.shape)}")
        if scale.dim() == 2:  # one a member, whatever axes lie between
            scale = scale.view(scale.shape[0], *[1] * (y.dim() - 2), scale.shape[1])
    elif not isinstance(scale, Real):
        raise TypeError(f"scale must be a number or a torch.Tensor, got {type(scale).__name__}")
    return (y * scale).to(y.dtype if y.is_floating_point() else torch.float32)


def bit_linear(x: Tensor, w: BitMatrix, scale: Tensor | float | None = None) -> Tensor:
    """``x @ wᵀ``, times `scale` if there is one.

    Args:
        x: ``[.., C]``, float32, bfloat16 or float16 (accumulated in float32), or int8; ``[P, .., C]`` for a population.
        w: ``[R, C]`` or ``[P, R, C]``.
        scale: a number, or a float tensor of shape ``[]``, ``[R]`` or ``[P, R]``.

    Returns:
        ``[.., R]`` in x's dtype; for int8 exact int32, or float32 with a scale. Differentiable in x and in scale.

    Raises:
        TypeError: x or scale is not a tensor of these dtypes, or w not a BitMatrix.
        ValueError: shapes or devices do not fit.
    """
    _check_bits("w", w)
    return _scaled(_outputs_of(library.bit_linear, x, w, w.words), scale, w)


def ternary_linear(x: Tensor, plus: BitMatrix, minus: BitMatrix, scale: Tensor | float | None = None) -> Tensor:
    """``x @ (plus − minus)ᵀ``, times `scale` if there is one: a layer of weights in {−1, 0, 1}.

    >>> plus, minus = BitMatrix.pack_ternary([[1, 0, -1], [0, 1, 1]])
    >>> ternary_linear(torch.tensor([[1.0, 2.0, 4.0]]), plus, minus, 0.5)
    tensor([[-1.5000,  3.0000]])

    Args:
        x: as for `bit_linear`.
        plus: where the weight is 1, ``[R, C]`` or ``[P, R, C]``.
        minus: where it is −1, of the same shape; where both are 1, the weight is 0.
        scale: as for `bit_linear`.

    Returns:
        As `bit_linear`.

    Raises:
        TypeError: x or scale is not a tensor of the right dtypes, or plus or minus not a BitMatrix.
        ValueError: shapes or devices do not fit.
    """
    _check_bits("plus", plus)
    _check_bits("minus", minus)
    if plus.shape != minus.shape or plus.device != minus.device:
        raise ValueError(
            f"plus {list(plus.shape)} on {plus.device} must agree with minus {list(minus.shape)} on {minus.device}"
        )
    return _scaled(_outputs_of(signed.ternary_linear, x, plus, plus.words, minus.words), scale, plus)


def sign_linear(x: Tensor, w: BitMatrix, scale: Tensor | float | None = None) -> Tensor:
    """``x @ (2 w − 1)ᵀ``, times `scale` if there is one: a layer of weights in {−1, 1}, a bit each.

    >>> w = BitMatrix.pack_signs([[1, -1, -1], [1, 1, 1]])
    >>> sign_linear(torch.tensor([[1.0, 2.0, 4.0]]), w)
    tensor([[-5.,  7.]])

    Args:
        x: as for `bit_linear`.
        w: 1 where the weight is 1 and 0 where it is −1, ``[R, C]`` or ``[P, R, C]``.
        scale: as for `bit_linear`.

    Returns:
        As `bit_linear`.

    Raises:
        TypeError, ValueError: as `bit_linear`.
    """
    _check_bits("w", w)
    return _scaled(_outputs_of(signed.sign_linear, x, w, w.words), scale, w)


def bit_linear_t(g: Tensor, w: BitMatrix) -> Tensor:
    """``g @ w``, the product of the backward pass.

    Args:
        g: ``[.., R]``, dtypes as for `bit_linear`; ``[P, .., R]`` for a population.
        w: ``[R, C]`` or ``[P, R, C]``.

    Returns:
        ``[.., C]`` in g's dtype; exact int32 for int8. Differentiable in g.

    Raises:
        TypeError: g is not a tensor of these dtypes, or w not a BitMatrix.
        ValueError: shapes or devices do not fit.
    """
    _check_bits("w", w)
    _check_tensor("g", g, _OPERANDS, w.words.device)
    rows = _rows_of("g", g, w.rows, w.population)
    y: Tensor = library.bit_linear_t(rows, w.words, w.cols)
    return y if rows is g else y.reshape(*g.shape[:-1], w.cols)


def bit_matmul(a: BitMatrix, b: BitMatrix) -> Tensor:
    """``a @ bᵀ`` of two bit matrices: entry (m, n) counts the columns where row m of a and row n of b are both 1.

    Args:
        a: ``[M, C]`` or ``[P, M, C]``.
        b: ``[N, C]`` or ``[P, N, C]``.

    Returns:
        int32 ``[M, N]`` or ``[P, M, N]``, exact.

    Raises:
        TypeError: a or b is not a BitMatrix.
        ValueError: column counts, populations or devices differ.
    """
    _check_bits("a", a)
    _check_bits("b", b)
    if a.cols != b.cols or a.population != b.population:
        raise ValueError(f"a {list(a.shape)} and b {list(b.shape)} must agree in columns and population")
    if a.words.device != b.words.device:
        raise ValueError(f"a is on {a.words.device}, b on {b.words.device}: move one with .to()")
    y: Tensor = library.bit_matmul(a.words, b.words)
    return y


def step(z: Tensor) -> BitMatrix:
    """The activation ``step``: bits ``1[z > 0]`` of z ``[R, C]`` or ``[P, R, C]``.

    Unlike `BitMatrix.pack` it does not look for NaN, which gives 0, so nothing waits for a GPU.
    """
    return BitMatrix(library.pack(z, 0.0, False), z.shape[-1])


def _check_update(scores: Tensor | None, w: BitMatrix, state: UpdateState, rule: Rule) -> None:
    device = _check_bits("w", w).words.device
    if not isinstance(rule, (SGD, Adam, Bop)):
        raise TypeError(f"rule must be SGD, Adam or Bop, got {type(rule).__name__}")
    if not isinstance(state, UpdateState):
        raise TypeError(f"state must be an UpdateState (rule.init_state(w)), got {type(state).__name__}")
    if isinstance(rule, ScoreRule) == (scores is None):
        raise ValueError(f"{rule.name} {'needs scores' if scores is None else 'keeps no scores: pass None'}")
    if len(state.buffers) != rule.buffer_count:
        raise ValueError(f"state has {len(state.buffers)} buffers, {rule.name} needs {rule.buffer_count}")
    shape = w.shape
    for i, t in enumerate(state.buffers):
        _check_in_place("state.buffers[{}]", i, t, shape, device)
    if scores is not None:
        _check_in_place("scores", 0, scores, shape, device)
    if not w.words.is_contiguous():
        raise ValueError(f"w.words is updated in place and must be contiguous, got strides {w.words.stride()}")
    for name, t, size in (("state.step", state.step, 1), ("state.seed", state.seed, w.population or 1)):
        if _check_tensor(name, t, _INT64, device).shape != (size,):
            raise ValueError(f"{name} must have shape [{size}], got {list(t.shape)}")


def _constants(hyper: Tensor | None, rule: Rule, w: BitMatrix) -> Tensor:
    """`hyper`, checked, or the rule's own."""
    members, device = w.population or 1, w.words.device
    if hyper is None:
        return rule.hyper(members, device)
    shape = (members, HYPER_FIELDS)
    if _check_tensor("hyper", hyper, _FLOAT64, device).shape != shape or not hyper.is_contiguous():
        raise ValueError(f"hyper must be contiguous and of shape {list(shape)}, got {list(hyper.shape)}")
    return hyper


def _check_in_place(name: str, i: int, t: Tensor, shape: torch.Size, device: torch.device) -> None:
    _check_tensor(name.format(i), t, _FLOAT32, device)
    if t.shape != shape:
        raise ValueError(f"{name.format(i)} must have the shape of the bits {list(shape)}, got {list(t.shape)}")
    if not t.is_contiguous():
        raise ValueError(f"{name.format(i)} is updated in place and must be contiguous, got strides {t.stride()}")


def mask_update_(
    scores: Tensor | None,
    grad: Tensor,
    w: BitMatrix,
    state: UpdateState,
    rule: Rule,
    *,
    hyper: Tensor | None = None,
) -> Tensor:
    """One step of a score rule, in place and in one pass over the edges.

    Surrogate derivative, rule, clip, binarise (``1[θ > 0]``, or drawn from Bernoulli(sigmoid(θ/τ)) if the rule samples),
    repack. `scores`, ``w`` and `state` are updated.

    Args:
        scores: float32 θ, shaped like w; None for `Bop`, which keeps none.
        grad: float32 derivative of the loss in the bits, shaped like w.
        w: the bits, ``[R, C]`` or ``[P, R, C]``.
        state: what the rule remembers, from ``rule.init_state(w)``.
        rule: `SGD`, `Adam` or `Bop`.
        hyper: float64 ``[P or 1, 6]``: the rule's constants, ``rule.hyper(P or 1, device)``, if they are on the device
            already. Without, each call copies them there, which waits for a GPU and cannot be captured in a CUDA graph.

    Returns:
        Number of flipped bits, int64: a scalar, or ``[P]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or not contiguous.
    """
    _check_update(scores, w, state, rule)
    _check_tensor("grad", grad, _FLOAT32, w.words.device)
    if grad.shape != w.shape:
        raise ValueError(f"grad must have the shape of the bits {list(w.shape)}, got {list(grad.shape)}")
    constants = _constants(hyper, rule, w)
    flips: Tensor = library.mask_update_(
        scores, grad.detach(), w.words, list(state.buffers), state.step, state.seed, constants, rule.name, rule.sample
    )
    return flips


def mask_grad_update_(
    scores: Tensor | None,
    gy: Tensor,
    x: Tensor | BitMatrix,
    w: BitMatrix,
    state: UpdateState,
    rule: Rule,
    *,
    hyper: Tensor | None = None,
) -> Tensor:
    """`mask_update_` with grad = gyᵀ x, summed over the batch and never stored whole.

    Under ``torch.set_float32_matmul_precision("medium")``, and on a CPU with AVX512_BF16, real gy and x are rounded to
    bfloat16 (8 bits, denormals as 0) and their products still summed in float32.

    Args:
        scores: as for `mask_update_`.
        gy: ``[.., R]``, derivative of the loss in the layer's outputs; float32, bfloat16 or float16.
        x: ``[.., C]``, the layer's inputs: real (dtypes as gy) or a BitMatrix ``[B, C]``; populations lead with P.
        w: the bits, ``[R, C]`` or ``[P, R, C]``.
        state: as for `mask_update_`.
        rule: as for `mask_update_`.
        hyper: as for `mask_update_`.

    Returns:
        Number of flipped bits, int64: a scalar, or ``[P]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or not contiguous.
    """
    _check_update(scores, w, state, rule)
    _check_tensor("gy", gy, FLOATS, w.words.device)
    outputs = _rows_of("gy", gy.detach(), w.rows, w.population)
    if isinstance(x, BitMatrix):
        if x.cols != w.cols or x.population != w.population or x.words.device != w.words.device:
            raise ValueError(f"x {list(x.shape)} on {x.device} must agree with w {list(w.shape)} on {w.device}")
        inputs = x.words
    else:
        _check_tensor("x", x, FLOATS, w.words.device)
        inputs = _rows_of("x", x.detach(), w.cols, w.population)
    if inputs.shape[-2] != outputs.shape[-2]:
        raise ValueError(f"gy has a batch of {outputs.shape[-2]}, x of {inputs.shape[-2]}")
    constants = _constants(hyper, rule, w)
    flips: Tensor = library.mask_grad_update_(
        scores, outputs, inputs, w.words, list(state.buffers), state.step, state.seed, constants, rule.name, rule.sample
    )
    return flips
