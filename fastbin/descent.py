"""What changes while a search runs, and its step: approximate gradient descent on the scores of the edges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import checkpoint, ops, reference
from fastbin.backprop import backprop
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.nn import Perceptron, WeightFreeNet
from fastbin.result import evaluate, make_net
from fastbin.rules import Rule, ScoreRule, UpdateState
from fastbin.steps import Part, Steps


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
        weights = self._keep(config, (drawn(config, i, *shape) for i, shape in enumerate(pairwise(widths))))
        self.net = make_net(config, widths, weights)

    def _keep(self, config: SearchConfig, layers: Iterable[tuple[Tensor, BitMatrix, int]]) -> list[BitMatrix]:
        """Take what layers start from, one after the other; returns their bits, on the device."""
        self.config = config
        rule = config.rule_at(0.0)
        self.scores: list[Tensor | None] = []
        self.states: list[UpdateState] = []
        weights = []
        for scores, w, seed in layers:
            weights.append(w.to(config.device))
            self.scores.append(scores.to(config.device) if isinstance(rule, ScoreRule) else None)
            self.states.append(rule.init_state(weights[-1], seed))
        return weights

    @property
    def leads(self) -> bool:
        """Whether it is this process that writes what a search leaves; of several that search together, one does."""
        return True

    def weights(self) -> list[BitMatrix]:
        """The bits of each layer that this process keeps, and that a step changes in place."""
        return self.net.weights()

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
        if self.config.estimator != "soft":
            return descend(self.net, self.net.weights(), self.scores, self.states, x, y, rule, hyper)
        loss, logits, grads = self.soft_gradients(x, y, rule)
        return loss, (logits.argmax(1) == y).sum(), self.update(grads, rule, hyper)

    def soft_gradients(self, x: Tensor, y: Tensor, rule: Rule) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Loss, logits and the loss's derivatives in the dense weights sigmoid(θ/τ), of the mean-field relaxation itself."""
        assert isinstance(rule, ScoreRule)
        weights = [torch.sigmoid(s / rule.tau).requires_grad_() for s in self.scores if s is not None]
        h = x
        for i, w in enumerate(weights):
            z = self.net.normalise(F.linear(h, w), i)
            if i < len(weights) - 1:
                h = self.net.activate(z)
        logits = z * self.net.logit_scale
        loss = F.cross_entropy(logits, y)
        return loss.detach(), logits.detach(), torch.autograd.grad(loss, weights)

    def update(self, grads: Sequence[Tensor], rule: Rule, hyper: Tensor) -> Tensor:
        """Move the scores along the loss's derivatives in the weights of each layer; returns each layer's flips ``[L]``."""
        flips = [
            ops.mask_update_(scores, g, bits, state, rule, hyper=hyper)
            for scores, g, bits, state in zip(self.scores, grads, self.net.weights(), self.states, strict=True)
        ]
        return torch.stack(flips)

    def agree(self, what: str, *facts: object) -> None:
        """Check that all processes of a search go by the same facts; one by itself does."""

    def sums(self, steps: Steps[Part]) -> tuple[float, int, list[int]]:
        """What an epoch's steps add up to: the loss of all samples, right predictions, and each layer's flips."""
        return float(steps.loss), int(steps.correct), steps.flips.tolist()

    def evaluate(self, net: WeightFreeNet, part: Part) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of a network on a part of the data."""
        return evaluate(net, part.x, part.y)

    def found(self) -> list[BitMatrix]:
        """A copy of the bits that the scores stand for now: 1[θ > 0] (for bop, the bits themselves)."""
        return [
            w.clone() if s is None else BitMatrix.pack(s, threshold=0.0)
            for s, w in zip(self.scores, self.weights(), strict=True)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint."""
        named = {}
        for i, (w, scores, state) in enumerate(zip(self.weights(), self.scores, self.states, strict=True)):
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
        for name, mine in Search.tensors(self).items():
            stored = self._stored(reader, name, mine)
            if name.endswith(".step") and int(stored) < 0:
                raise reader.fail(f"tensor {name!r} must be at least 0, is {int(stored)}")
            mine.copy_(stored)

    def _stored(self, reader: checkpoint.Reader, name: str, mine: Tensor) -> Tensor:
        """What a checkpoint has to copy into the tensor `mine`."""
        return reader.tensor(name, mine.dtype, tuple(mine.shape))


def drawn(config: SearchConfig, layer: int, n_in: int, n_out: int) -> tuple[Tensor, BitMatrix, int]:
    """Scores and bits that a layer starts from, and the seed of its later bits.

    Drawn on the CPU, so that a seed means the same start on every device.
    """
    generator = torch.Generator().manual_seed(derived_seed(config.seed, SCORES, layer))
    scores = torch.randn(n_out, n_in, generator=generator) * config.init_std + config.init_mean
    rule, seed = config.rule_at(0.0), derived_seed(config.seed, SAMPLING, layer)
    if isinstance(rule, ScoreRule) and rule.sample:
        words = reference.sample_bits(scores, rule.tau, torch.tensor([seed]), 0)
        return scores, BitMatrix(words, n_in), seed
    return scores, BitMatrix.pack(scores, threshold=0.0), seed


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
