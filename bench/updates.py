"""The updates, each against the same rule on dense scores and weights in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench import machine
from bench.case import OURS, Case, Contender
from bench.checks import Search, assert_same, matrix, numpy_bits, values
from bench.products import LOOKUP
from fastbin import backends, ops
from fastbin.bits import BitMatrix
from fastbin.rules import SGD, Adam, Bop, Rule, ScoreRule

SEED = 3


@dataclass(frozen=True)
class Update(Case):
    """`mask_update_` (no batch: 0) or `mask_grad_update_`, by a rule."""

    rule: Rule = Adam()  # noqa: RUF009  # frozen

    def __str__(self) -> str:
        x = ", x as bits" if self.dtype == "bits" else ""
        return f"{self.op} {self.rule_name} {self.sizes}{x}"

    @property
    def rule_name(self) -> str:
        return self.rule.name + (", sampling" if self.rule.sample else "")

    @property
    def sizes(self) -> str:
        return super().sizes if self.batch else f"{self.outputs} × {self.inputs} edges"

    @property
    def bytes(self) -> float:
        """Moved: scores and buffers and bits read and written, the gradient read if it is given."""
        tensors = self.rule.buffer_count + isinstance(self.rule, ScoreRule)
        return self.edges * (8 * tensors + 2 / 8 + (0 if self.batch else 4))

    @property
    def work(self) -> float:
        return super().work if self.batch else self.bytes / 1e9

    @property
    def unit(self) -> str:
        return "GMAC/s" if self.batch else "GB/s"

    def limit(self) -> float | None:
        memory = self.bytes / machine.copy_bandwidth()
        advantage = LOOKUP["fp32"] if self.dtype == "bits" else 1.0
        return max(memory, self.batch * self.edges / (advantage * machine.fma_rate())) if self.batch else memory

    def contenders(self) -> Mapping[str, Callable[[], Contender]]:
        shape = (self.outputs, self.inputs)
        start = Search.start(self.rule, shape, SEED)
        if start.scores is not None:
            start.scores.clamp_(-4, 4)  # as in a search; far outliers' gradients would be denormal
        if not self.batch:
            grad = values(shape, torch.float32, SEED)
            operands: tuple[Tensor | BitMatrix, ...] = (grad,)

            def gradient() -> Tensor:
                return grad
        else:
            # Whole numbers: every sum is exact, so ours must equal the truth bit for bit.
            gy = values((self.batch, self.outputs), torch.float32, SEED, "integers")
            x = matrix((self.batch, self.inputs), SEED) if self.dtype == "bits" else None
            real = values((self.batch, self.inputs), torch.float32, SEED + 1, "integers")
            dense = real if x is None else numpy_bits(x.words, x.cols).float()
            operands = (gy, dense if x is None else x)

            def gradient() -> Tensor:
                return torch.mm(gy.T, dense)

        truth = start.to("cpu")
        flips = truth.update("reference", self.op, self.rule, *operands)
        made = {
            OURS: lambda: self._ours(start, truth, flips, operands),
            "torch + pack": lambda: self._eager(start, truth, gradient),
        }
        if self.batch:
            made["torch mm + mask_update_"] = lambda: self._in_two(start, truth, flips, gradient)
        return made

    def _ours(self, start: Search, truth: Search, flips: Tensor, operands: tuple[Tensor | BitMatrix, ...]) -> Contender:
        mine = start.to("cpu")

        def call() -> Tensor:
            return getattr(ops, self.op)(mine.scores, *operands, mine.w, mine.state, self.rule)

        def check() -> None:
            got = mine.update(backends.requested(), self.op, self.rule, *operands)
            _assert_step(mine, truth, got, flips)

        return Contender(call, check)

    def _in_two(self, start: Search, truth: Search, flips: Tensor, gradient: Callable[[], Tensor]) -> Contender:
        mine = start.to("cpu")

        def call() -> Tensor:
            return ops.mask_update_(mine.scores, gradient(), mine.w, mine.state, self.rule)

        return Contender(call, lambda: _assert_step(mine, truth, call(), flips))

    def _eager(self, start: Search, truth: Search, gradient: Callable[[], Tensor]) -> Contender:
        eager = EagerUpdate(start, self.rule)

        def call() -> None:
            eager(gradient())

        def check() -> None:
            call()
            wanted = truth.state.buffers[0]
            assert_near(eager.buffer(), wanted, 1e-5)
            if not self.rule.sample:  # the random numbers are others
                wrong = (eager.bits != numpy_bits(truth.w.words, self.inputs)).double().mean()
                assert wrong <= 1e-5, f"{float(wrong):.1e} of the bits differ"

        return Contender(call, check)

    def small(self) -> Update:
        return replace(self, batch=min(self.batch, 35), inputs=min(self.inputs, 77), outputs=min(self.outputs, 69))


def _assert_step(got: Search, wanted: Search, flips: Tensor, wanted_flips: Tensor) -> None:
    assert_same(flips, wanted_flips, "flips")
    for name, t in wanted.tensors().items():
        assert_same(got.tensors()[name], t, name)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise AssertionError if the difference's norm is more than `tolerance` times that of `wanted`."""
    error = float((got - wanted).norm() / wanted.norm())
    assert error <= tolerance, f"off by {error:.1e} of the norm, allowed are {tolerance:.0e}"


class EagerUpdate:
    """What `mask_update_` does, by torch: surrogate, torch's fused optimiser, compare or sample, pack.

    np.packbits packs: the same as a torch expression (eight products with powers of 2, summed) takes some four times longer.
    """

    def __init__(self, start: Search, rule: Rule) -> None:
        self.rule = rule
        self.bits = numpy_bits(start.w.words, start.w.cols)
        if isinstance(rule, ScoreRule):
            assert start.scores is not None
            self.scores = torch.nn.Parameter(start.scores.clone())
            if isinstance(rule, Adam):
                self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
                    [self.scores], lr=rule.lr, betas=rule.betas, eps=rule.eps, fused=True
                )
            else:
                assert isinstance(rule, SGD)
                self.optimiser = torch.optim.SGD([self.scores], lr=rule.lr, momentum=rule.momentum, fused=True)
        else:
            self.mean = torch.zeros(start.w.shape)

    def buffer(self) -> Tensor:
        if isinstance(self.rule, Bop):
            return self.mean
        (state,) = self.optimiser.state.values()
        moment: Tensor = state["exp_avg" if isinstance(self.rule, Adam) else "momentum_buffer"]
        return moment

    def __call__(self, grad: Tensor) -> np.ndarray:
        if isinstance(self.rule, ScoreRule):
            self._move_scores(self.rule, grad)
        else:
            assert isinstance(self.rule, Bop)
            self.mean.lerp_(grad, self.rule.gamma)
            above, below = self.mean > self.rule.threshold, self.mean < -self.rule.threshold
            self.bits.logical_and_(above.logical_not_()).logical_or_(below)
        return np.packbits(self.bits.numpy(), axis=-1, bitorder="little")

    def _move_scores(self, rule: ScoreRule, grad: Tensor) -> None:
        s = torch.sigmoid(self.scores.detach() / rule.tau)
        self.scores.grad = grad * (s * (1 - s) / rule.tau)
        self.optimiser.step()
        if rule.sample:
            torch.lt(torch.rand_like(s), torch.sigmoid(self.scores.detach() / rule.tau), out=self.bits)
        else:
            torch.gt(self.scores.detach(), 0, out=self.bits)
