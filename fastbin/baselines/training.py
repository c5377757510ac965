"""Gradient descent on real weights: the training loop of all kinds that have them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fastbin.baselines.nets import RealNet
from fastbin.baselines.task import Task
from fastbin.result import EpochRecord, evaluate

_ORDER = 10  # what random numbers are for


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The outcome of `fit`: the network of the best epoch by validation, and a record for each epoch."""

    net: RealNet
    history: list[EpochRecord]
    best_epoch: int


def fit(
    task: Task,
    net: RealNet,
    lr: float,
    epochs: int,
    *,
    first: int = 1,
    weight_decay: float = 0.0,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> Fit:
    """Train `net` in place by Adam, its step falling to 0 by a cosine.

    In the records, flips are the weights whose sign (-1, 0 or 1) is another than after the epoch before.

    Args:
        task: data, batch size and seed.
        net: may be pruned or parametrised by torch.nn.utils.
        lr: step size at the start.
        epochs: passes over the training part.
        first: number of the first epoch.
        weight_decay: decoupled (torch.optim.AdamW).
        after_step: called after each step, for instance to clip.
        after_epoch: called with the number of each epoch, after it.

    Raises:
        TrainingError: the loss is not finite.
    """
    samples, size = len(task.train.y), task.config.batch_size
    steps = epochs * -(-samples // size)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: list[EpochRecord] = []
    best: tuple[float, float] | None = None
    signs = [w.sign() for w in net.weights()]
    for epoch in range(first, first + epochs):
        started = time.perf_counter()
        order = torch.randperm(samples, generator=task.generator(_ORDER, epoch)).to(task.train.y.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=order.device)
        correct = torch.zeros((), dtype=torch.int64, device=order.device)
        for batch in order.split(size):
            y = task.train.y[batch]
            logits = net(task.train.x[batch])
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            (step_size,) = schedule.get_last_lr()
            schedule.step()
            if after_step is not None:
                after_step()
            loss_sum += loss.detach().double() * len(y)
            correct += (logits.argmax(1) == y).sum()
        new = [w.sign() for w in net.weights()]
        flips = torch.stack([(a != b).sum() for a, b in zip(signs, new, strict=True)])
        signs = new
        train_loss = float(loss_sum) / samples
        if not train_loss < float("inf"):
            raise TrainingError(f"the loss is {train_loss} in epoch {epoch}")
        validation_loss, validation_accuracy = evaluate(net, task.validation.x, task.validation.y)
        history.append(
            EpochRecord(
                epoch=epoch,
                train_loss=train_loss,
                train_accuracy=int(correct) / samples,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                flips=flips.tolist(),
                density=[float((s != 0).double().mean()) for s in signs],
                lr=float(step_size),
                tau=1.0,
                seconds=time.perf_counter() - started,
            )
        )
        if best is None or (validation_accuracy, -validation_loss) > best:
            best, best_epoch, best_net = (validation_accuracy, -validation_loss), epoch, net.frozen()
        if after_epoch is not None:
            after_epoch(epoch)
    return Fit(best_net, history, best_epoch)
