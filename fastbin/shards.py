"""One search by several processes: each takes a share of every batch, or has a share of each layer's rows.

All ranks end a step with equal bits, since what moves the scores is summed once and sent to all, or computed from what was.
Sums over a batch or a layer are parted among ranks, so that the last digits of a search differ from those of one by a single
process, or by another number of ranks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fastbin import checkpoint, ops
from fastbin.backprop import Products, backprop
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.descent import SAMPLING, Search, derived_seed, drawn
from fastbin.distributed import Ranks
from fastbin.nn import WeightFreeNet
from fastbin.result import evaluate, make_net
from fastbin.rules import Rule
from fastbin.steps import Part, Steps


class _Shards(Search):
    """What both ways have in common."""

    _ranks: Ranks

    @property
    def leads(self) -> bool:
        return self._ranks.rank == 0

    def agree(self, what: str, *facts: object) -> None:
        self._ranks.agree(what, *facts)

    def evaluate(self, net: WeightFreeNet, part: Part) -> tuple[float, float]:
        mine = self._ranks.share(len(part.y))
        x, y = part.x[mine], part.y[mine]
        loss, accuracy = evaluate(net, x, y) if len(y) else (0.0, 0.0)
        sums = torch.tensor([loss * len(y), round(accuracy * len(y))], dtype=torch.float64)
        loss, right = self._ranks.sum_(sums).tolist()
        return loss / len(part.y), right / len(part.y)


class BatchShards(_Shards):
    """A search whose ranks each keep all of it, and take a share of every batch. A step sends 4 bytes an edge."""

    def __init__(self, ranks: Ranks, config: SearchConfig, widths: list[int]) -> None:
        super().__init__(config, widths)
        self._ranks = ranks
        shapes = [w.shape for w in self.weights()]
        self._sum = torch.zeros(sum(shape.numel() for shape in shapes), device=config.device)  # one message a step
        parts = self._sum.split([shape.numel() for shape in shapes])
        self._grads = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `Search.step`, but that loss and right predictions are this rank's share of the batch's."""
        hyper = rule.hyper(1, x.device) if hyper is None else hyper
        mine, samples = self._ranks.share(len(y)), len(y)
        x, y = x[mine], y[mine]
        if len(y):
            loss, right = self._gradients(x, y, rule, len(y) / samples)
        else:
            loss, right = self._sum.new_zeros(()), y.new_zeros(())
            self._sum.zero_()
        self._ranks.sum_(self._sum)
        return loss, right, self.update(self._grads, rule, hyper)

    def _gradients(self, x: Tensor, y: Tensor, rule: Rule, weight: float) -> tuple[Tensor, Tensor]:
        """Write the gradients of a share of the batch, which weighs so much of it; returns loss and right predictions."""
        if self.config.estimator == "soft":
            loss, logits, grads = self.soft_gradients(x, y, rule)
            for mean, grad in zip(grads, self._grads, strict=True):
                torch.mul(mean, weight, out=grad)
        else:
            batch = backprop(self.net, self.weights(), x, y)
            loss, logits = batch.loss, batch.logits
            for gy, h, grad in zip(batch.grads, batch.inputs, self._grads, strict=True):
                gy_t = gy.float().mul(weight).T.contiguous()
                if isinstance(h, BitMatrix):
                    grad.copy_(ops.bit_linear_t(gy_t, h))
                elif h.is_cuda and h.dtype != torch.float32:  # tensor cores sum in float32
                    torch.mm(gy_t.to(h.dtype), h, out_dtype=torch.float32, out=grad)
                else:
                    torch.mm(gy_t, h.float(), out=grad)
        return loss * weight, (logits.argmax(1) == y).sum()

    def sums(self, steps: Steps[Part]) -> tuple[float, int, list[int]]:
        self._ranks.sum_(steps.loss)
        self._ranks.sum_(steps.correct)
        self._ranks.agree("their bits or scores", *self.tensors().values())
        return super().sums(steps)


class RowShards(_Shards):
    """A search whose ranks each keep a share of the rows of every layer, and take all samples.

    A step sends the outputs of each layer, and the derivatives in its inputs: nothing that grows with the number of edges.
    All that is kept of a search, its checkpoint, is put together on rank 0. With the estimator ``sample``, which bits are
    drawn depends on the number of ranks.
    """

    def __init__(self, ranks: Ranks, config: SearchConfig, widths: list[int]) -> None:
        if config.estimator == "soft":
            raise ValueError("estimator soft has dense weights: shard 'batch', got 'rows'")
        self._ranks = ranks
        self._rows = self._keep(config, (self._drawn(config, i, *shape) for i, shape in enumerate(pairwise(widths))))
        # The form of the network: its bits are nowhere whole.
        nowhere = [
            BitMatrix(w.words.new_empty((n, w.words.shape[1]), device="meta"), w.cols)
            for w, n in zip(self._rows, widths[1:], strict=True)
        ]
        self.net = make_net(config, widths, nowhere)
        self._products = _RowProducts(ranks)

    def _drawn(self, config: SearchConfig, layer: int, n_in: int, n_out: int) -> tuple[Tensor, BitMatrix, int]:
        scores, w, seed = drawn(config, layer, n_in, n_out)
        mine = self._ranks.share(n_out)
        if self._ranks.rank > 0:  # random numbers go by the place in a rank's rows
            seed = derived_seed(config.seed, SAMPLING, layer, self._ranks.rank)
        return scores[mine].clone(), BitMatrix(w.words[mine].clone(), n_in), seed

    def weights(self) -> list[BitMatrix]:
        return self._rows

    def step(self, x: Tensor, y: Tensor, rule: Rule, hyper: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `Search.step`, but that flips are of this rank's rows."""
        hyper = rule.hyper(1, x.device) if hyper is None else hyper
        batch = backprop(self.net, self._rows, x, y, self._products)
        layers = zip(self.scores, batch.grads, batch.inputs, self._rows, self.states, strict=True)
        flips = [
            ops.mask_grad_update_(s, gy[:, self._ranks.share(gy.shape[1])], h, w, state, rule, hyper=hyper)
            for s, gy, h, w, state in layers
        ]
        return batch.loss, (batch.logits.argmax(1) == y).sum(), torch.stack(flips)

    def sums(self, steps: Steps[Part]) -> tuple[float, int, list[int]]:
        self._ranks.sum_(steps.flips)
        self._ranks.agree("what their rows add up to", steps.loss, steps.correct)
        return super().sums(steps)

    def found(self) -> list[BitMatrix]:
        rows = zip(super().found(), self.net.widths[1:], strict=True)
        return [BitMatrix(self._ranks.gather(w.words, n), w.cols) for w, n in rows]

    def tensors(self) -> dict[str, Tensor]:
        """As `Search.tensors`, on rank 0; on others, tensors without rows."""
        return {
            name: t if name.endswith(".step") else self._ranks.collect(t, self._outputs(name))
            for name, t in super().tensors().items()
        }

    def _stored(self, reader: checkpoint.Reader, name: str, mine: Tensor) -> Tensor:
        if name.endswith(".step"):
            return super()._stored(reader, name, mine)
        n = self._outputs(name)
        return reader.tensor(name, mine.dtype, (n, *mine.shape[1:]))[self._ranks.share(n)]

    def _outputs(self, name: str) -> int:
        """Rows of the layer that a tensor of a checkpoint belongs to."""
        return self.net.widths[int(name.split(".")[1]) + 1]


class _RowProducts(Products):
    """Products with a rank's rows, completed by what the others' are."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def forward(self, h: Tensor | BitMatrix, w: BitMatrix, outputs: int, dtype: torch.dtype) -> Tensor:
        mine = super().forward(h, w, outputs, dtype)
        return self._ranks.gather(mine.T, outputs).T.contiguous()

    def backward(self, g: Tensor, w: BitMatrix) -> Tensor:
        mine = super().backward(g[:, self._ranks.share(g.shape[1])].contiguous(), w)
        return self._ranks.sum_(mine.float()).to(mine.dtype)


SHARDS: dict[str, type[BatchShards] | type[RowShards]] = {"batch": BatchShards, "rows": RowShards}
