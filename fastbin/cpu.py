"""The C++ kernels of `fastbin._cpu` as implementations: outputs are allocated here, pointers and sizes handed over.

Arguments have been checked by `fastbin.ops`; what the kernels want besides (contiguous float32 or int8) is made here.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastbin.reference import refuse_first, words_for

try:
    from fastbin import _cpu
except ImportError as error:
    raise ImportError(
        f"the compiled extension fastbin._cpu is missing or broken ({error}); install the package with a C++17 compiler, "
        "or set FASTBIN_BACKEND=reference to run in plain torch"
    ) from error


def _share_openmp() -> None:
    """Give the kernels the OpenMP threads that torch has: two pools on the same cores would spin against each other."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        entry = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
        address = None if entry is None else ctypes.cast(entry, ctypes.c_void_p).value
        if address:
            _cpu.use_openmp(address)


_share_openmp()


def _members(t: Tensor) -> int:
    return t.shape[0] if t.dim() == 3 else 1


def _float32(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float32 else t.float()


def _contiguous(t: Tensor) -> Tensor:
    return t if t.is_contiguous() else t.contiguous()


def pack(x: Tensor, threshold: float | None, check: bool = True) -> Tensor:
    if threshold is not None and x.dtype != torch.float32:
        if check:
            refuse_first(x, x.isnan(), "numbers")
        x, threshold = x > threshold, None
    elif x.dtype not in (torch.float32, torch.uint8, torch.bool):
        if check:
            refuse_first(x, (x != 0) & (x != 1), "values of 0 and 1")
        x = x != 0
    x = _contiguous(x)
    words = torch.empty((*x.shape[:-1], words_for(x.shape[-1])), dtype=torch.int32)
    sizes = (x.shape[:-1].numel(), x.shape[-1], torch.get_num_threads())
    if threshold is not None:
        bad = _cpu.pack_threshold_f32(x.data_ptr(), threshold, words.data_ptr(), *sizes)
    else:
        kernel = _cpu.pack_f32 if x.dtype == torch.float32 else _cpu.pack_u8
        bad = kernel(x.data_ptr(), words.data_ptr(), *sizes)
    if check and bad >= 0:
        refuse_first(
            x, torch.arange(x.numel()).view(x.shape) == bad, "values of 0 and 1" if threshold is None else "numbers"
        )
    return words


def unpack(words: Tensor, cols: int, dtype: torch.dtype) -> Tensor:
    words = _contiguous(words)
    bytes_out = dtype in (torch.bool, torch.uint8, torch.int8)
    y = torch.empty((*words.shape[:-1], cols), dtype=dtype if bytes_out else torch.float32)
    kernel = _cpu.unpack_u8 if bytes_out else _cpu.unpack_f32
    kernel(words.data_ptr(), y.data_ptr(), words.shape[:-1].numel(), cols, torch.get_num_threads())
    return y.to(dtype)


def transpose(words: Tensor, cols: int) -> Tensor:
    words = _contiguous(words)
    rows = words.shape[-2]
    out = torch.empty((*words.shape[:-2], cols, words_for(rows)), dtype=torch.int32)
    _cpu.transpose_bits(words.data_ptr(), _members(words), rows, cols, out.data_ptr(), torch.get_num_threads())
    return out


def popcount(words: Tensor) -> Tensor:
    words = _contiguous(words)
    members = words.unbind() if words.dim() == 3 else (words,)
    counts = [_cpu.popcount(m.data_ptr(), m.numel(), torch.get_num_threads()) for m in members]
    return torch.tensor(counts, dtype=torch.int64).view(words.shape[:-2])


def _product(exact: Any, rounded: Any, x: Tensor, words: Tensor, cols: int, out_features: int) -> Tensor:
    dtype = x.dtype
    kernel, out = (exact, torch.int32) if dtype == torch.int8 else (rounded, torch.float32)
    values = _contiguous(x if dtype == torch.int8 else _float32(x))
    words = _contiguous(words)
    shape = x.shape
    y = x.new_empty((*shape[:-1], out_features), dtype=out)
    kernel(
        values.data_ptr(), words.data_ptr(), y.data_ptr(), _members(words), shape[-2], words.shape[-2], cols,
        torch.get_num_threads(),
    )  # fmt: skip
    return y if dtype in (torch.float32, torch.int8) else y.to(dtype)


def bit_linear(x: Tensor, words: Tensor) -> Tensor:
    return _product(_cpu.bit_linear_i8, _cpu.bit_linear_f32, x, words, x.shape[-1], words.shape[-2])


def bit_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    return _product(_cpu.bit_linear_t_i8, _cpu.bit_linear_t_f32, g, words, cols, cols)


def bit_matmul(a: Tensor, b: Tensor) -> Tensor:
    a, b = _contiguous(a), _contiguous(b)
    y = torch.empty((*a.shape[:-1], b.shape[-2]), dtype=torch.int32)
    sizes = (_members(a), a.shape[-2], b.shape[-2], a.shape[-1], torch.get_num_threads())
    _cpu.bit_matmul(a.data_ptr(), b.data_ptr(), y.data_ptr(), *sizes)
    return y


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _update(
    name: str,
    operands: tuple[Tensor, ...],
    batch: tuple[int, ...],
    options: tuple[bool, ...],
    scores: Tensor | None,
    words: Tensor,
    buffers: list[Tensor],
    step: Tensor,
    seed: Tensor,
    hyper: Tensor,
    rule: str,
    sample: bool,
) -> Tensor:
    operands = tuple(map(_contiguous, operands))
    rows, cols = buffers[0].shape[-2:]
    flips = seed.new_empty(words.shape[:-2])
    getattr(_cpu, name)(
        rule,
        _address(scores),
        *(t.data_ptr() for t in operands),
        words.data_ptr(),
        buffers[0].data_ptr(),
        _address(buffers[1] if len(buffers) > 1 else None),
        hyper.data_ptr(),
        seed.data_ptr(),
        step.data_ptr(),
        flips.data_ptr(),
        _members(words),
        *batch,
        rows,
        cols,
        sample,
        *options,
        torch.get_num_threads(),
    )
    return flips


def mask_update_(scores: Tensor | None, grad: Tensor, words: Tensor, *state: Any) -> Tensor:
    return _update("mask_update", (grad,), (), (), scores, words, *state)


def mask_grad_update_(scores: Tensor | None, gy: Tensor, x: Tensor, words: Tensor, *state: Any) -> Tensor:
    bits = x.dtype == torch.int32
    operands = (_float32(gy), x if bits else _float32(x))
    name = "mask_grad_update_bits" if bits else "mask_grad_update_f32"
    # torch's own word for "bfloat16 inside, where that is faster".
    options = () if bits else (torch.get_float32_matmul_precision() == "medium",)
    return _update(name, operands, (gy.shape[-2],), options, scores, words, *state)
