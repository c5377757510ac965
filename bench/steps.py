"""One search step, estimator hard and rule adam, against the same algorithm on dense weights in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import OURS, Case, Contender
from bench.checks import generator
from bench.updates import assert_near
from fastbin import SearchConfig
from fastbin.descent import Search

TAU, LR, LOGIT_SCALE, BETAS, EPS = 1.0, 0.01, 2.0, (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Step(Case):
    """A network of widths (inputs, *hidden, outputs), a batch and an activation."""

    hidden: tuple[int, ...] = ()
    activation: str = "relu"

    def __str__(self) -> str:
        return f"{self.op} {self.sizes}, {self.activation}"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.inputs, *self.hidden, self.outputs)

    @property
    def sizes(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"

    @property
    def edges(self) -> int:
        return sum(a * b for a, b in pairwise(self.widths))

    @property
    def work(self) -> float:
        """Forward and gradient of each layer, backward of all but the first."""
        return self.batch * (3 * self.edges - self.widths[0] * self.widths[1]) / 1e9

    def contenders(self) -> Mapping[str, Callable[[], Contender]]:
        config = SearchConfig(
            hidden=self.hidden, activation=self.activation, lr=LR, tau=TAU, betas=BETAS, logit_scale=LOGIT_SCALE
        )
        search = Search(config, list(self.widths))
        rule = config.rule_at(0.0)
        scores = [s.clone() for s in search.scores if s is not None]
        # At the size of the tests no unit of `step` is within 0.002 of 0. A whole number can be the mean of several: its
        # side of 0 is then up to rounding, and among few samples it moves the loss by more than is allowed.
        drawn = generator(2)
        x = torch.randn(self.batch, self.inputs, generator=drawn)
        y = torch.randint(self.outputs, (self.batch,), generator=drawn)
        truth = DenseSearch([s.double() for s in scores], self.activation, fused=False)
        truth_loss = truth.step(x.double(), y)

        def check(loss: Tensor, moments: list[Tensor]) -> None:
            # Rounding decides which side of 0 a few units are on, and so whether gradients pass them; behind `step` also
            # what they hand on.
            flips = self.activation == "step"
            torch.testing.assert_close(loss.double(), truth_loss, rtol=1e-2 if flips else 1e-4, atol=1e-5)
            for mine, wanted in zip(moments, truth.moments(), strict=True):
                assert_near(mine.double(), wanted, 5e-2 if flips else 1e-2)

        def ours() -> Contender:
            def call() -> Tensor:
                return search.step(x, y, rule)[0]

            return Contender(call, lambda: check(call(), [s.buffers[0] for s in search.states]))

        def dense(compiled: bool) -> Contender:
            peer = CompiledSearch(scores, self.activation) if compiled else DenseSearch(scores, self.activation)

            def call() -> Tensor:
                return peer.step(x, y)

            def compare() -> None:
                check(call(), peer.moments())

            return Contender(call, compare)

        return {OURS: ours, "eager torch fp32": lambda: dense(False), "torch.compile fp32": lambda: dense(True)}

    def small(self) -> Step:
        return replace(
            self, batch=min(self.batch, 21), inputs=77, hidden=tuple(35 + i for i, _ in enumerate(self.hidden))
        )


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
    """The search step on dense {0,1} weights: products by torch, Adam by torch's fused optimiser."""

    def __init__(self, scores: list[Tensor], activation: str, fused: bool = True) -> None:
        self.scores = [torch.nn.Parameter(s.clone()) for s in scores]
        self.weights = [(s > 0).to(s.dtype).requires_grad_() for s in scores]
        self.optimiser = torch.optim.Adam(self.scores, lr=LR, betas=BETAS, eps=EPS, fused=fused)
        self.activate = {"relu": F.relu, "step": _Step.apply}[activation]

    def moments(self) -> list[Tensor]:
        return [self.optimiser.state[s]["exp_avg"] for s in self.scores]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        for w in self.weights:
            z = F.layer_norm(F.linear(h, w), w.shape[:1])
            h = self.activate(z)
        return F.cross_entropy(z * LOGIT_SCALE, y)

    def update(self) -> None:
        for theta, w in zip(self.scores, self.weights, strict=True):
            s = torch.sigmoid(theta.detach() / TAU)
            theta.grad = w.grad * (s * (1 - s) / TAU)
        self.optimiser.step()
        with torch.no_grad():
            for theta, w in zip(self.scores, self.weights, strict=True):
                w.copy_(theta > 0)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        for w in self.weights:
            w.grad = None
        loss = self.loss(x, y)
        loss.backward()
        self.update()
        return loss.detach()


class CompiledSearch(DenseSearch):
    """The same under torch.compile: one graph for loss and gradients, one for surrogate, Adam and compare.

    Adam is spelled out: torch.optim's breaks the graph, and its pass over the scores is not joined with the others.
    """

    def __init__(self, scores: list[Tensor], activation: str) -> None:
        super().__init__(scores, activation)
        self.first = [torch.zeros_like(s) for s in scores]
        self.second = [torch.zeros_like(s) for s in scores]
        self.count = torch.zeros(())
        torch.compiler.reset()  # else the cases' sizes would count as recompilations, of which there may be few
        self.loss = torch.compile(self.loss, fullgraph=True, dynamic=False)
        self.update = torch.compile(self._update, fullgraph=True, dynamic=False)

    def moments(self) -> list[Tensor]:
        return self.first

    @torch.no_grad()
    def _update(self) -> None:
        self.count.add_(1)
        rate, root = LR / (1 - BETAS[0] ** self.count), (1 - BETAS[1] ** self.count).sqrt()
        for theta, w, m, v in zip(self.scores, self.weights, self.first, self.second, strict=True):
            s = torch.sigmoid(theta / TAU)
            g = w.grad * (s * (1 - s) / TAU)
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            theta.sub_(rate * m / (v.sqrt() / root + EPS))
            w.copy_(theta > 0)
