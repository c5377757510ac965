"""One search step, against the same algorithm on dense weights in eager torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bench.timing import check_moments, measure
from fastbin import SearchConfig
from fastbin.search import Search


@dataclass(frozen=True)
class Case:
    """A network, a batch and an activation."""

    widths: tuple[int, ...]
    batch: int
    activation: str

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))} batch {self.batch} {self.activation}"


CASES = (
    Case((784, 2048, 2048, 10), 512, "relu"),
    Case((784, 2048, 2048, 10), 512, "step"),
    Case((784, 1024, 1024, 10), 128, "relu"),
    Case((784, 256, 256, 10), 64, "relu"),
)
TAU, LR, LOGIT_SCALE = 1.0, 0.01, 2.0


class _Step(torch.autograd.Function):
    # 1[z > 0] with the straight-through derivative that fastbin documents.
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0].abs() <= 1)


class DenseSearch:
    """The search step on dense {0,1} weights in float32: products by torch, Adam by torch's fused optimiser."""

    def __init__(self, scores: list[torch.Tensor], activation: str) -> None:
        self.scores = [torch.nn.Parameter(s.clone()) for s in scores]
        self.weights = [(s > 0).float() for s in scores]
        self.optimiser = torch.optim.Adam(self.scores, lr=LR, fused=True)
        self.activate = {"relu": F.relu, "step": _Step.apply}[activation]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h, inputs, outputs = x, [], []
        for i, w in enumerate(self.weights):
            inputs.append(h)
            a = F.linear(h, w)
            if i == 0:
                a.requires_grad_()
            outputs.append(a)
            z = F.layer_norm(a, a.shape[-1:])
            h = self.activate(z)
        loss = F.cross_entropy(z * LOGIT_SCALE, y)
        for theta, gy, h in zip(self.scores, torch.autograd.grad(loss, outputs), inputs, strict=True):
            s = torch.sigmoid(theta.detach() / TAU)
            theta.grad = (gy.T @ h.detach()).mul_(s * (1 - s) / TAU)
        self.optimiser.step()
        for theta, w in zip(self.scores, self.weights, strict=True):
            torch.gt(theta.detach(), 0, out=w)
        return loss.detach()


def run(case: Case, seconds: float) -> dict[str, object]:
    """Check that both take the same step, then time them.

    Raises:
        AssertionError: the losses or the gradients differ; no speed is reported then.
    """
    config = SearchConfig(hidden=case.widths[1:-1], activation=case.activation, lr=LR, tau=TAU, logit_scale=LOGIT_SCALE)
    search = Search(config, list(case.widths))
    dense = DenseSearch([s for s in search.scores if s is not None], case.activation)
    x, y = torch.randn(case.batch, case.widths[0]), torch.randint(case.widths[-1], (case.batch,))
    rule = config.rule_at(0.0)

    loss, _, _ = search.step(x, y, rule)
    torch.testing.assert_close(loss, dense.step(x, y), rtol=1e-4, atol=1e-5)
    # Rounding decides which side of 0 a few units are on, and so whether gradients pass them.
    for state, theirs in zip(search.states, dense.scores, strict=True):
        check_moments(state.buffers[0], dense.optimiser.state[theirs]["exp_avg"], tolerance=1e-2)

    times = measure(
        {"fastbin": lambda: search.step(x, y, rule), "eager torch": lambda: dense.step(x, y)}, seconds=seconds
    )
    ours, peer = times["fastbin"], times["eager torch"]
    return {
        "case": str(case),
        "fastbin_ms": ours.p50 * 1e3,
        "fastbin_p20_ms": ours.p20 * 1e3,
        "fastbin_p80_ms": ours.p80 * 1e3,
        "peer": "eager torch fp32",
        "peer_ms": peer.p50 * 1e3,
        "ratio": peer.p50 / ours.p50,
    }
