"""The torch.library side of the ops: schema, kernel, fake kernel and autograd of each ``fastbin::<op>``.

These take packed words instead of `BitMatrix`. `fastbin.ops` and `fastbin.bits` check what users give, with messages to
match; here only what would send a kernel past the end of memory is refused.
With them the ops work under torch.compile and torch.export. One kernel is registered for all devices: it asks
`fastbin.backends` for the implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbin import backends
from fastbin.reference import BUFFERS, HYPER_FIELDS, WORD_BITS, words_for

_UPDATE_STATE = "Tensor(c!)[] buffers, Tensor(d!) step, Tensor seed, Tensor hyper, str rule, bool sample"

_library = torch.library.Library("fastbin", "DEF")


class Op:
    """An op ``fastbin::<name>``, for callers that have checked its arguments.

    A call goes straight to the kernel that `backends` chooses when nothing watches or transforms torch's calls: the way
    through torch's dispatcher costs more than a small kernel takes. Otherwise it goes through ``torch.ops.fastbin``.
    """

    def __init__(self, name: str, composed: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.composed = composed
        self.op = getattr(torch.ops.fastbin, name).default

    def __call__(self, *args: Any) -> Any:  # noqa: D102
        if not torch.compiler.is_compiling() and not _watched() and all(map(_plain, args)):
            return (self.composed or backends.find(self.name, _device_type(args)))(*args)
        return self.op(*args)


def _watched() -> bool:
    # Modes, transforms (vmap, grad), tracing, profiling.
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _plain(arg: Any) -> bool:
    # No subclass, and nothing for autograd to do.
    if isinstance(arg, Tensor):
        return type(arg) in (Tensor, torch.nn.Parameter) and not (arg.requires_grad and torch.is_grad_enabled())
    return not isinstance(arg, list) or all(map(_plain, arg))


def _device_type(args: tuple[Any, ...]) -> str:
    on = args[1] if args[0] is None else args[0]
    return "cpu" if on.is_cpu else str(on.device.type)


def define(
    schema: str, fake: Callable[..., Any], fits: Callable[..., bool], composed: Callable[..., Any] | None = None
) -> Op:
    """Define ``fastbin::<schema>`` with `fake` and the backends' kernel, or a function `composed` of other ops' kernels.

    The kernel raises ValueError unless `fits` holds for its arguments.
    """
    name = schema.partition("(")[0]

    def kernel(*args: Any) -> Any:
        if not fits(*args):
            given = ", ".join(f"{a.dtype} {list(a.shape)}" if isinstance(a, Tensor) else repr(a) for a in args)
            raise ValueError(f"fastbin::{name}: types or sizes of the arguments do not fit together: {given}")
        return (composed or backends.find(name, _device_type(args)))(*args)

    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    _library.define(schema, tags=tags)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastbin::{name}", fake, lib=_library)
    return Op(name, composed)


def product_dtype(x: Tensor) -> torch.dtype:
    """What a product of x has."""
    return torch.int32 if x.dtype == torch.int8 else x.dtype


def _fake_update(scores: Tensor | None, grad: Tensor, words: Tensor, *_: Any) -> Tensor:
    return words.new_empty(words.shape[:-2], dtype=torch.int64)


def _fake_grad_update(scores: Tensor | None, gy: Tensor, x: Tensor, words: Tensor, *_: Any) -> Tensor:
    return words.new_empty(words.shape[:-2], dtype=torch.int64)


def holds(words: Tensor, cols: int) -> bool:
    """Whether words are those of a matrix of `cols` columns."""
    shape = words.shape
    return words.dtype == torch.int32 and 2 <= len(shape) <= 3 and shape[-1] == words_for(cols)


def same_members(a: Tensor, b: Tensor) -> bool:
    """Whether two operands have the same population, or none."""
    if a.dim() == b.dim() == 2:
        return True
    return a.shape[:-2] == b.shape[:-2]


def _update_fits(scores: Tensor | None, words: Tensor, buffers: list[Tensor], *rest: Any) -> bool:
    step, seed, hyper, rule, _ = rest
    members = words.shape[0] if words.dim() == 3 else 1
    in_place = buffers if scores is None else [scores, *buffers]
    return (
        (scores is None) == (rule == "bop")
        and len(buffers) == BUFFERS.get(rule)
        and holds(words, buffers[0].shape[-1])
        and words.is_contiguous()
        and all(t.shape[:-1] == words.shape[:-1] and t.shape == buffers[0].shape for t in in_place)
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in in_place)
        and step.numel() == 1
        and seed.numel() >= members
        and hyper.numel() >= members * HYPER_FIELDS
        and (step.dtype, seed.dtype, hyper.dtype) == (torch.int64, torch.int64, torch.float64)
        and step.is_contiguous()
        and seed.is_contiguous()
        and hyper.is_contiguous()
    )


def _mask_update_fits(scores: Tensor | None, grad: Tensor, words: Tensor, buffers: list[Tensor], *rest: Any) -> bool:
    return (
        _update_fits(scores, words, buffers, *rest) and grad.shape == buffers[0].shape and grad.dtype == torch.float32
    )


def _mask_grad_update_fits(
    scores: Tensor | None, gy: Tensor, x: Tensor, words: Tensor, buffers: list[Tensor], *rest: Any
) -> bool:
    if not _update_fits(scores, words, buffers, *rest):
        return False
    cols = buffers[0].shape[-1]
    return (
        same_members(gy, words)
        and same_members(x, words)
        and (gy.shape[-1], gy.shape[-2]) == (words.shape[-2], x.shape[-2])
        and (holds(x, cols) if x.dtype == torch.int32 else x.shape[-1] == cols)
    )


pack = define(
    "pack(Tensor x, float? threshold, bool check=True) -> Tensor",
    lambda x, threshold, check=True: x.new_empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32),
    lambda x, threshold, check=True: x.dim() >= 1,
)
unpack = define(
    "unpack(Tensor words, SymInt cols, ScalarType dtype) -> Tensor",
    lambda words, cols, dtype: words.new_empty((*words.shape[:-1], cols), dtype=dtype),
    lambda words, cols, dtype: holds(words, cols),
)
transpose = define(
    "transpose(Tensor words, SymInt cols) -> Tensor",
    lambda words, cols: words.new_empty((*words.shape[:-2], cols, words_for(words.shape[-2]))),
    lambda words, cols: holds(words, cols),
)
popcount = define(
    "popcount(Tensor words) -> Tensor",
    lambda words: words.new_empty(words.shape[:-2], dtype=torch.int64),
    lambda words: words.dtype == torch.int32 and words.dim() in (2, 3),
)
bit_linear = define(
    "bit_linear(Tensor x, Tensor words) -> Tensor",
    lambda x, words: x.new_empty((*x.shape[:-1], words.shape[-2]), dtype=product_dtype(x)),
    lambda x, words: same_members(x, words) and holds(words, x.shape[-1]),
)
bit_linear_t = define(
    "bit_linear_t(Tensor g, Tensor words, SymInt cols) -> Tensor",
    lambda g, words, cols: g.new_empty((*g.shape[:-1], cols), dtype=product_dtype(g)),
    lambda g, words, cols: same_members(g, words) and holds(words, cols) and g.shape[-1] == words.shape[-2],
)
bit_matmul = define(
    "bit_matmul(Tensor a, Tensor b) -> Tensor",
    lambda a, b: a.new_empty((*a.shape[:-1], b.shape[-2])),
    lambda a, b: same_members(a, b) and holds(a, WORD_BITS * b.shape[-1]) and b.dtype == torch.int32,
)
mask_update_ = define(
    f"mask_update_(Tensor(a!)? scores, Tensor grad, Tensor(b!) words, {_UPDATE_STATE}) -> Tensor",
    _fake_update,
    _mask_update_fits,
)
mask_grad_update_ = define(
    f"mask_grad_update_(Tensor(a!)? scores, Tensor gy, Tensor x, Tensor(b!) words, {_UPDATE_STATE}) -> Tensor",
    _fake_grad_update,
    _mask_grad_update_fits,
)


# The bits are constants to autograd: only the real operand has a derivative.


def _save_words(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.cols = inputs[0].shape[-1]


def _bit_linear_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
    (words,) = ctx.saved_tensors
    return bit_linear_t(gy, words, ctx.cols), None


def _bit_linear_t_backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
    (words,) = ctx.saved_tensors
    return bit_linear(gy, words), None, None


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Register `backward` for ``fastbin::<name>``, whose context `save` fills."""
    torch.library.register_autograd(f"fastbin::{name}", backward, setup_context=save, lib=_library)


def vectorise(name: str, rule: Callable[..., Any]) -> None:
    """Register what vmap makes of ``fastbin::<name>``."""
    torch.library.register_vmap(f"fastbin::{name}", rule, lib=_library)


differentiate("bit_linear", _bit_linear_backward, _save_words)
differentiate("bit_linear_t", _bit_linear_t_backward, _save_words)
