"""The products, each against others' products with the same matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from bench import machine, peers
from bench.case import OURS, Case, Contender
from bench.checks import assert_product, matrix, numpy_bits, poisoned, random_bits, values
from fastbin import _cpu, ops
from fastbin.bits import BitMatrix

CHUNK = 2**24  # entries of the matrix in float64 at a time
FEW = 8  # samples up to which the limit is reading the bits

# Products a vector operation against the lanes of a float32 fused multiply-add, both at the rate of two full vectors a cycle
# (AVX-512 on Zen 4: one). By tables: of six loads of a vector five bring six products a lane and one the accumulator, which
# is five products a load and lane (int16 sums of int8 have twice the lanes; AVX2's ten of eleven would be 5.5, but then its
# instructions are the limit). Bits with bits: csrc/README.md counts 384
# products a cycle for AVX2 against 16 multiply-adds; for AVX-512, 512 products in three operations, 341 against 16.
LOOKUP = {"fp32": 5.0, "int8": 10.0}
TERNARY = 2  # products with bits in one with a ternary matrix
BITS = {"avx2": 24.0, "avx512": 21.3}

DENSE: dict[str, peers.Factory] = {
    "torch fp32": peers.torch_fp32,
    "torch bf16": peers.torch_bf16,
    "torch int8": peers.torch_int8,
}
WEIGHTS_ONLY: dict[str, peers.Factory] = {
    "scipy.sparse fp32": peers.scipy_sparse,
    "onnxruntime 2-bit": peers.onnxruntime_2bit,
    "onnxruntime 2-bit, x to int8": peers.onnxruntime_2bit_int8,
}


@dataclass(frozen=True)
class Product(Case):
    """`bit_linear`, `bit_linear_t` (x is ``[batch, outputs]`` there), `bit_matmul`, `ternary_linear` or `sign_linear`."""

    def limit(self) -> float | None:
        if self.dtype == "bits":
            advantage = BITS.get(_cpu.isa())
            return None if advantage is None else self.batch * self.edges / (advantage * machine.fma_rate())
        size = {"fp32": 4, "int8": 1}[self.dtype]
        products = TERNARY if self.op == "ternary_linear" else 1
        if self.batch <= FEW:
            return machine.read_seconds(
                products * self.edges // 8 + self.batch * (size * self.inputs + 4 * self.outputs)
            )
        return products * self.batch * self.edges / (LOOKUP[self.dtype] * machine.fma_rate())

    def contenders(self) -> Mapping[str, Callable[[], Contender]]:
        transposed = self.op == "bit_linear_t"
        bits = [matrix((self.outputs, self.inputs), seed) for seed in ((1, 3) if self.op == "ternary_linear" else (1,))]
        dense = numpy_bits(bits[0].words, self.inputs)
        if self.op == "ternary_linear":
            dense = dense.to(torch.int8) - numpy_bits(bits[1].words, self.inputs).to(torch.int8)
        elif self.op == "sign_linear":
            dense = 2 * dense.to(torch.int8) - 1
        dense = dense if transposed else dense.T
        x = self._x(dense.shape[0])
        truth = cache(partial(_truth, x, dense))
        return {OURS: lambda: self._ours(x, bits, dense)} | {
            name: partial(_peer, factory, x, dense, truth) for name, factory in self._peers().items()
        }

    def _x(self, features: int) -> Tensor:
        if self.dtype == "bits":
            return random_bits((self.batch, features), seed=2)
        return values((self.batch, features), torch.int8 if self.dtype == "int8" else torch.float32, seed=2)

    def _peers(self) -> dict[str, peers.Factory]:
        if self.op in ("ternary_linear", "sign_linear"):
            return DENSE
        if self.dtype == "fp32":
            return DENSE | WEIGHTS_ONLY
        if self.dtype == "int8":
            return {"torch int8": peers.torch_int8, "torch fp32": peers.torch_fp32}
        # numkong runs in the thread that calls it.
        one = {"numkong uint1": peers.numkong_bits} if self.threads == 1 else {}
        return {"torch fp32": peers.torch_fp32, "torch int8": peers.torch_int8} | one

    def _ours(self, x: Tensor, bits: list[BitMatrix], dense: Tensor) -> Contender:
        operand = BitMatrix.pack(x) if self.dtype == "bits" else x

        def call() -> Tensor:
            return getattr(ops, self.op)(operand, *bits)

        def check() -> None:
            with poisoned():
                got = call()
            exact = x.to(torch.int8) if self.dtype == "bits" else x  # the product of which is exact int32
            for part in _chunks(dense):
                assert_product(got[:, part], exact, dense[:, part], self)

        return Contender(call, check)


def _peer(factory: peers.Factory, x: Tensor, dense: Tensor, truth: Callable[[], tuple[Tensor, Tensor]]) -> Contender:
    peer = factory(x, dense)

    def check() -> None:
        exact, size = truth()
        error = (torch.as_tensor(peer.call()) * peer.scale - exact).abs()
        assert (error <= peer.slack * size).all(), f"off by {float((error / size).max()):.1e} of |x| @ matrix"

    return Contender(peer.call, check)


def _truth(x: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """``x @ dense`` and ``|x| @ |dense|`` in float64."""
    parts = [
        (x.double() @ d, x.double().abs() @ d.abs()) for part in _chunks(dense) for d in (dense[:, part].double(),)
    ]
    exact, size = (torch.cat(p, 1) for p in zip(*parts, strict=True))
    return exact, size


def _chunks(dense: Tensor) -> list[slice]:
    """Ranges of columns: the whole matrix in float64 can be too much beside the operands."""
    step = max(1, CHUNK // max(1, dense.shape[0]))
    return [slice(at, at + step) for at in range(0, dense.shape[1], step)]
