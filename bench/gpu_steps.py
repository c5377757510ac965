"""Search steps on a GPU: ours, the same algorithm on dense bf16 weights in torch, and a population of searches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin import SearchConfig, library
from fastbin.config import Activations
from fastbin.descent import Search
from fastbin.rules import Adam
from fastbin.steps import Part, Steps

RULE = Adam(lr=0.01)
LOGIT_SCALE = 2.0
BATCHES = 3  # that steps take in turn


class EagerAdam:
    """What `mask_update_` does by Adam, in torch: surrogate, torch's fused optimiser, compare, pack."""

    def __init__(self, scores: Tensor, rule: Adam) -> None:
        self.rule = rule
        self.scores = torch.nn.Parameter(scores.clone())
        self.optimiser = torch.optim.Adam([self.scores], lr=rule.lr, betas=rule.betas, eps=rule.eps, fused=True)
        self.places = 2 ** torch.arange(8, device=scores.device, dtype=torch.uint8)

    def __call__(self, grad: Tensor) -> Tensor:
        """The packed bits, after one update."""
        s = torch.sigmoid(self.scores.detach() / self.rule.tau)
        self.scores.grad = grad * (s * (1 - s) / self.rule.tau)
        self.optimiser.step()
        bits = (self.scores.detach() > 0).unflatten(-1, (-1, 8))
        return (bits * self.places).sum(-1, dtype=torch.uint8)


def _batches(device: str, lead: tuple[int, ...], widths: tuple[int, ...], batch: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(*lead, batch, widths[0], device=device), torch.randint(widths[-1], (*lead, batch), device=device))
        for _ in range(BATCHES)
    ]


def search_steps(
    device: str, widths: tuple[int, ...], batch: int, activations: Activations, capture: bool
) -> Callable[[int], object]:
    """Steps of a search as `fastbin.run_search` does them, batches gathered from the training part; on a GPU captured."""
    config = SearchConfig(
        hidden=widths[1:-1],
        activation="relu",
        lr=RULE.lr,
        logit_scale=LOGIT_SCALE,
        activations=activations,
        device=device,
    )
    search, rule = Search(config, list(widths)), config.rule_at(0.0)
    x, y = zip(*_batches(device, (), widths, batch), strict=True)
    train = Part(torch.cat(x).to(getattr(torch, activations)), torch.cat(y))
    steps = Steps(search.step, len(widths) - 1, train, batch, capture)
    batches = torch.arange(len(train.y), device=device).split(batch)
    hyper = rule.hyper(1, train.x.device)
    return lambda i: steps.step(batches[i % BATCHES], rule, hyper)


class DenseSteps:
    """The search step on dense {0,1} weights in bf16, scores in float32, Adam by torch's fused optimiser."""

    def __init__(self, device: str, widths: tuple[int, ...], batch: int) -> None:
        shapes = [(b, a) for a, b in pairwise(widths)]
        self.scores = [torch.nn.Parameter(torch.randn(s, device=device)) for s in shapes]
        self.weights = [(s > 0).bfloat16().requires_grad_() for s in self.scores]
        self.optimiser = torch.optim.Adam(self.scores, lr=RULE.lr, betas=RULE.betas, eps=RULE.eps, fused=True)
        self.batches = [(x.bfloat16(), y) for x, y in _batches(device, (), widths, batch)]

    def call(self, i: int) -> Tensor:
        """One step; the loss."""
        x, y = self.batches[i % BATCHES]
        h = x
        for w in self.weights:
            z = F.layer_norm(F.linear(h, w), w.shape[:1])
            h = F.relu(z)
        loss = F.cross_entropy(z.float() * LOGIT_SCALE, y)
        for theta, g in zip(self.scores, torch.autograd.grad(loss, self.weights), strict=True):
            s = torch.sigmoid(theta.detach() / RULE.tau)
            theta.grad = g.float() * (s * (1 - s) / RULE.tau)
        self.optimiser.step()
        with torch.no_grad():
            for theta, w in zip(self.scores, self.weights, strict=True):
                w.copy_(theta > 0)
        return loss.detach()


class PopulationSteps:
    """Steps of `members` searches in one launch an op (None: of one search), in bf16, by the torch ops of fastbin."""

    def __init__(self, device: str, members: int | None, widths: tuple[int, ...], batch: int) -> None:
        lead = () if members is None else (members,)
        self.scores = [torch.randn(*lead, b, a, device=device) for a, b in pairwise(widths)]
        self.words = [library.pack(s, 0.0) for s in self.scores]
        self.buffers = [[torch.zeros_like(s) for _ in range(RULE.buffer_count)] for s in self.scores]
        count = members or 1
        self.steps = [torch.zeros(1, dtype=torch.int64, device=device) for _ in self.scores]
        self.seed = torch.arange(count, device=device)
        self.hyper = RULE.hyper(count, torch.device(device))
        self.batches = [(x.bfloat16(), y) for x, y in _batches(device, lead, widths, batch)]

    def call(self, i: int) -> Tensor:
        """One step; the loss."""
        x, y = self.batches[i % BATCHES]
        inputs, outputs, h = [], [], x
        for words in self.words:
            inputs.append(h)
            a = library.bit_linear(h, words)
            if not outputs:
                a.requires_grad_()
            outputs.append(a)
            z = F.layer_norm(a, a.shape[-1:])
            h = F.relu(z)
        loss = F.cross_entropy(z.flatten(0, -2).float() * LOGIT_SCALE, y.flatten(), reduction="sum") / y.shape[-1]
        for gy, h, scores, words, buffers, step in zip(
            torch.autograd.grad(loss, outputs), inputs, self.scores, self.words, self.buffers, self.steps, strict=True
        ):
            library.mask_grad_update_(
                scores, gy, h.detach(), words, buffers, step, self.seed, self.hyper, RULE.name, RULE.sample
            )
        return loss.detach()
