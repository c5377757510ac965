"""The ops, each against the dense torch that it replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bench.timing import check_moments, measure
from fastbin import BitMatrix, ops
from fastbin.rules import Adam


@dataclass(frozen=True)
class Case:
    """An op and its sizes: x is ``[batch, inputs]``, the bits are ``[outputs, inputs]``."""

    op: str
    batch: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.op} {self.batch}, {self.inputs}, {self.outputs}"

    @property
    def products(self) -> int:
        return self.batch * self.inputs * self.outputs


CASES = (
    Case("bit_linear", 4096, 2048, 2048),
    Case("bit_linear", 512, 784, 2048),
    Case("bit_linear", 256, 1024, 1024),
    Case("bit_linear", 8, 1024, 1024),
    Case("bit_linear", 1, 1024, 1024),
    Case("bit_linear", 1, 4096, 4096),
    Case("bit_linear", 1, 16384, 16384),
    Case("bit_linear_t", 4096, 2048, 2048),
    Case("bit_matmul", 4096, 2048, 2048),
    Case("mask_update_", 1, 4096, 4096),
    Case("mask_grad_update_", 512, 2048, 2048),
    Case("mask_grad_update_ (x bits)", 512, 2048, 2048),
)


class EagerUpdate:
    """What `mask_update_` does, by torch: surrogate, fused Adam, compare, and the dense {0,1} weights written anew."""

    def __init__(self, scores: torch.Tensor, rule: Adam) -> None:
        self.scores = torch.nn.Parameter(scores.clone())
        self.tau = rule.tau
        self.weights = (scores > 0).float()
        self.optimiser = torch.optim.Adam([self.scores], lr=rule.lr, betas=rule.betas, eps=rule.eps, fused=True)

    def __call__(self, grad: torch.Tensor) -> None:
        s = torch.sigmoid(self.scores.detach() / self.tau)
        self.scores.grad = grad * (s * (1 - s) / self.tau)
        self.optimiser.step()
        torch.gt(self.scores.detach(), 0, out=self.weights)


def _calls(case: Case) -> tuple[Callable[[], object], Callable[[], object]]:
    """Ours and the peer, after a check that they agree."""
    bits = torch.rand(case.outputs, case.inputs) > 0.5
    w, dense = BitMatrix.pack(bits), bits.float()
    if case.op in ("bit_linear", "bit_linear_t"):
        x = torch.randn(case.batch, case.inputs if case.op == "bit_linear" else case.outputs)
        matrix = dense if case.op == "bit_linear" else dense.T
        op = ops.bit_linear if case.op == "bit_linear" else ops.bit_linear_t
        torch.testing.assert_close(op(x, w), F.linear(x, matrix), rtol=1e-4, atol=1e-2)
        return lambda: op(x, w), lambda: F.linear(x, matrix)
    if case.op == "bit_matmul":
        x = (torch.rand(case.batch, case.inputs) > 0.5).float()
        packed = BitMatrix.pack(x)
        assert torch.equal(ops.bit_matmul(packed, w).float(), F.linear(x, dense))
        return lambda: ops.bit_matmul(packed, w), lambda: F.linear(x, dense)
    rule = Adam()
    scores = torch.randn(case.outputs, case.inputs)
    w, state, eager = BitMatrix.pack(scores, threshold=0.0), None, EagerUpdate(scores, rule)
    state = rule.init_state(w)
    if case.op == "mask_update_":
        grad = torch.randn_like(scores)

        def ours() -> object:
            return ops.mask_update_(scores, grad, w, state, rule)

        def peer() -> object:
            return eager(grad)
    else:
        gy = torch.randn(case.batch, case.outputs)
        dense_x = torch.randn(case.batch, case.inputs)
        x: torch.Tensor | BitMatrix = dense_x
        if case.op.endswith("(x bits)"):
            x = BitMatrix.pack(dense_x, threshold=0.0)
            dense_x = x.unpack()

        def ours() -> object:
            return ops.mask_grad_update_(scores, gy, x, w, state, rule)

        def peer() -> object:
            return eager(gy.T @ dense_x)

    ours()
    peer()
    check_moments(state.buffers[0], eager.optimiser.state[eager.scores]["exp_avg"], tolerance=1e-5)
    return ours, peer


def run(case: Case, seconds: float) -> dict[str, object]:
    """Time one case; raises AssertionError, and reports no speed, if the results differ."""
    ours, peer = _calls(case)
    times = measure({"fastbin": ours, "torch": peer}, seconds=seconds)
    edges = case.op == "mask_update_"
    return {
        "case": str(case),
        "fastbin_ms": times["fastbin"].p50 * 1e3,
        "fastbin_p20_ms": times["fastbin"].p20 * 1e3,
        "fastbin_p80_ms": times["fastbin"].p80 * 1e3,
        "rate": f"{case.products / times['fastbin'].p50 / 1e9:.2f} {'Gedge/s' if edges else 'GMAC/s'}",
        "peer": "torch fp32",
        "peer_ms": times["torch"].p50 * 1e3,
        "ratio": times["torch"].p50 / times["fastbin"].p50,
    }
