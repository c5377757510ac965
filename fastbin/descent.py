"""What changes while a search runs, and its step: approximate gradient descent on the scores of the edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import checkpoint, ops, reference
from fastbin.backprop import backprop
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.nn import Perceptron
from fastbin.result import make_net
from fastbin.rules import Rule, ScoreRule, UpdateState


def derived_seed(seed: int, *path: int) -> int:
    """A seed in [0, 2^63) for one purpose, independent of the others' (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


SCORES, SAMPLING, ORDER, DROPOUT = range(4)  # what seeds are derived for


class Search:
    """All that changes while a search runs.

    Attributes:
        net: its bits are those of the current step: 1[θ > 0], or the sampled ones.
        scores: θ of each layer, float32 ``[n_l, n_(l-1)]``; None for bop.
        states: what the rule remembers of each layer.
    """

    def __init__(self, config: SearchConfig, widths: list[int]) -> None:
        self.config = config
        rule = config.rule_at(0.0)
        self.scores: list[Tensor | None] = []
        self.states: list[UpdateState] = []
        weights = []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            generator = torch.Generator().manual_seed(derived_seed(config.seed, SCORES, i))
            scores = torch.randn(n_out, n_in, generator=generator) * config.init_std + config.init_mean
            w = BitMatrix.pack(scores, threshold=0.0)
            seed = derived_seed(config.seed, SAMPLING, i)
            if isinstance(rule, ScoreRule) and rule.sample:
                w = BitMatrix(reference.sample_bits(scores, rule.tau, torch.tensor([seed]), 0), n_in)
            # Drawn on the CPU, so that a seed means the same start on every device.
            weights.append(w.to(config.device))
            self.scores.append(scores.to(config.device) if isinstance(rule, ScoreRule) else None)
            self.states.append(rule.init_state(weights[-1], seed))
        self.net = make_net(config, widths, weights)

    def step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step on standardised inputs ``[B, n_0]`` and class indices ``[B]``.

        Args:
            x: inputs.
            y: class indices.
            rule: of this step.
            hyper: float64 ``[1, 6]``, the rule's constants on the search's device; copied there without.

        Returns:
            The batch's loss and its right predictions before the update, and each layer's flips ``[L]``. With `hyper`,
            nothing waits for the device.
        """
        hyper = rule.hyper(1, x.device) if hyper is None else hyper
        if self.config.estimator == "soft":
            return self._soft_step(x, y, rule, hyper)
        return descend(self.net, self.net.weights(), self.scores, self.states, x, y, rule, hyper)

    def _soft_step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The gradient of the mean-field relaxation itself, on dense weights sigmoid(θ/τ).
        assert isinstance(rule, ScoreRule)
        weights = [torch.sigmoid(s / rule.tau).requires_grad_() for s in self.scores if s is not None]
        h = x
        for i, w in enumerate(weights):
            z = self.net.normalise(F.linear(h, w), i)
            if i < len(weights) - 1:
                h = self.net.activate(z)
        logits = z * self.net.logit_scale
        loss = F.cross_entropy(logits, y)
        grads = torch.autograd.grad(loss, weights)
        flips = [
            ops.mask_update_(scores, g, bits, state, rule, hyper=hyper)
            for scores, g, bits, state in zip(self.scores, grads, self.net.weights(), self.states, strict=True)
        ]
        return loss.detach(), (logits.argmax(1) == y).sum(), torch.stack(flips)

    def found(self) -> list[BitMatrix]:
        """A copy of the bits that the scores stand for now: 1[θ > 0] (for bop, the bits themselves)."""
        return [
            w.clone() if s is None else BitMatrix.pack(s, threshold=0.0)
            for s, w in zip(self.scores, self.net.weights(), strict=True)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint."""
        named = {}
        for i, (w, scores, state) in enumerate(zip(self.net.weights(), self.scores, self.states, strict=True)):
            named[f"search.{i}.words"] = w.words
            named[f"search.{i}.step"] = state.step
            if scores is not None:
                named[f"search.{i}.scores"] = scores
            for j, buffer in enumerate(state.buffers):
                named[f"search.{i}.buffers.{j}"] = buffer
        return named

    def restore(self, reader: checkpoint.Reader) -> None:
        """Take the state that `tensors` gave from a checkpoint; raises CheckpointError if it does not fit."""
        for i, w in enumerate(self.net.weights()):
            reader.bits(f"search.{i}.words", w.rows, w.cols)  # checks the tail bits
        for name, mine in self.tensors().items():
            stored = reader.tensor(name, mine.dtype, tuple(mine.shape))
            if name.endswith(".step") and int(stored) < 0:
                raise reader.fail(f"tensor {name!r} must be at least 0, is {int(stored)}")
            mine.copy_(stored)


def descend(
    net: Perceptron,
    weights: Sequence[BitMatrix],
    scores: Sequence[Tensor | None],
    states: Sequence[UpdateState],
    x: Tensor,
    y: Tensor,
    rule: Rule,
    hyper: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a search, or of a population of them, whose tensors all lead with P: see `Search.step`."""
    batch = backprop(net, weights, x, y)
    flips = [
        ops.mask_grad_update_(s, gy, h, w, state, rule, hyper=hyper)
        for s, gy, h, w, state in zip(scores, batch.grads, batch.inputs, weights, states, strict=True)
    ]
    return batch.loss, (batch.logits.argmax(-1) == y).sum(-1), torch.stack(flips, -1)
