"""The CUDA C++ kernels of `fastbin._cuda` as implementations: outputs are allocated here, pointers and sizes handed over.

Arguments have been checked by `fastbin.ops`. Work is queued on torch's current stream of the operands' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastbin.choices import VECTOR_SAMPLES, few_samples, whole_chunks
from fastbin.reference import words_for

try:
    from fastbin import _cuda
except ImportError as error:
    raise ImportError(
        f"the compiled extension fastbin._cuda is missing or broken ({error}); install the package where nvcc is found, "
        "CUDA 12.8 or later (-DFASTBIN_CUDA=ON insists on it), or let Triton serve"
    ) from error

_SCALARS = {
    torch.float32: _cuda.Scalar.float32,
    torch.bfloat16: _cuda.Scalar.bfloat16,
    torch.float16: _cuda.Scalar.float16,
    torch.int8: _cuda.Scalar.int8,
}


def _queue(*operands: Tensor) -> tuple[int, int]:
    """Index of the operands' device and handle of its current stream.

    Raises:
        ValueError: the operands are not all on one GPU.
    """
    devices = list(dict.fromkeys(t.device for t in operands))
    if len(devices) > 1 or devices[0].type != "cuda":
        raise ValueError(f"the operands must be on one GPU, got {', '.join(map(str, devices))}")
    return operands[0].get_device(), torch.cuda.current_stream(devices[0]).cuda_stream


def _members(t: Tensor) -> int:
    return t.shape[0] if t.dim() == 3 else 1


def _bit_matmul(a: Tensor, b: Tensor, y: Tensor, thresholds: Tensor | None, strides: tuple[int, int, int]) -> Tensor:
    queue = _queue(a, b) if thresholds is None else _queue(a, b, thresholds)
    if y.numel():
        address = 0 if thresholds is None else thresholds.data_ptr()
        sizes = (_members(a), a.shape[-2], b.shape[-2], a.shape[-1])
        _cuda.bit_matmul(a.data_ptr(), b.data_ptr(), y.data_ptr(), address, *sizes, *strides, *queue)
    return y


def bit_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ bᵀ`` in int32 of words ``[.., M, W]`` and ``[.., N, W]``, as `fastbin.reference.bit_matmul`."""
    a, b = a.contiguous(), b.contiguous()
    return _bit_matmul(a, b, a.new_empty((*a.shape[:-1], b.shape[-2])), None, (0, 0, 0))


def bit_matmul_packed(a: Tensor, b: Tensor, thresholds: Tensor) -> Tensor:
    """``a @ bᵀ > thresholds`` as packed words ``[.., M, ceil(N/32)]``; the counts are never stored.

    Args:
        a: words ``[M, W]`` or ``[P, M, W]``.
        b: words ``[N, W]`` or ``[P, N, W]``.
        thresholds: int32, of any shape that broadcasts to the counts ``[.., M, N]``.
    """
    a, b = a.contiguous(), b.contiguous()
    if thresholds.dtype != torch.int32:
        raise TypeError(f"thresholds must be int32, got {thresholds.dtype}")
    member, row, column = (0, *thresholds.expand(*a.shape[:-1], b.shape[-2]).stride())[-3:]
    y = a.new_empty((*a.shape[:-1], words_for(b.shape[-2])))
    return _bit_matmul(a, b, y, thresholds, (member, row, column))


def bit_linear(x: Tensor, words: Tensor) -> Tensor:
    """``x @ wᵀ``, as `fastbin.reference.bit_linear`.

    Up to 16 samples, an input of 16 bits is rounded to 2^-23 of the largest of its chunk of 512 (from 3 samples on to
    2^-31).

    Raises:
        ValueError: x is float32, or has more than 16 samples, not of whole 16-byte chunks.
        RuntimeError: it has more samples than that and the device's compute capability is not 9.0.
    """
    if few_samples(x):
        return _bit_linear_vector(x, words)
    return _product("bit_linear", x, words, words.shape[-2])


def bit_linear_t(g: Tensor, words: Tensor, cols: int) -> Tensor:
    """``g @ w``, as `fastbin.reference.bit_linear_t`.

    Raises:
        ValueError: g is float32, or its rows are not of whole 16-byte chunks.
        RuntimeError: the device's compute capability is not 9.0.
    """
    return _product("bit_linear_t", g, words, cols)


def _product(op: str, x: Tensor, words: Tensor, outputs: int) -> Tensor:
    if not whole_chunks(x):
        few = f", or up to {VECTOR_SAMPLES} samples" if op == "bit_linear" else ""
        raise ValueError(
            f"the cpp implementation of {op} takes bfloat16, float16 or int8, in rows of whole 16-byte chunks{few}, "
            f"got {list(x.shape)} {x.dtype}"
        )
    x, words = x.contiguous(), words.contiguous()
    if x.data_ptr() % 16:  # a view into other memory
        x = x.clone()
    y = x.new_empty((*x.shape[:-1], outputs), dtype=torch.int32 if x.dtype == torch.int8 else x.dtype)
    queue = _queue(x, words)
    if y.numel():
        sizes = (_members(x), x.shape[-2], x.shape[-1], outputs, _SCALARS[x.dtype], op == "bit_linear_t")
        _cuda.bit_linear_wgmma(x.data_ptr(), words.data_ptr(), y.data_ptr(), *sizes, *queue)
    return y


def _bit_linear_vector(x: Tensor, words: Tensor) -> Tensor:
    """``x @ wᵀ`` for up to 16 samples."""
    x, words = x.contiguous(), words.contiguous()
    dtype = torch.int32 if x.dtype == torch.int8 else x.dtype
    y = x.new_empty((*x.shape[:-1], words.shape[-2]), dtype=dtype)
    queue = _queue(x, words)
    if not words.shape[-1]:
        return y.zero_()
    if y.numel():
        sizes = (_members(x), x.shape[-2], words.shape[-2], x.shape[-1], _SCALARS[x.dtype])
        _cuda.bit_linear_vector(x.data_ptr(), words.data_ptr(), y.data_ptr(), *sizes, *queue)
    return y
