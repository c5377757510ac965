"""A search's records as event files for TensorBoard: ``pip install 'fastbin-nets[tensorboard]'``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastbin.result import EpochRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextlib.contextmanager
def events(folder: Path) -> Iterator[Callable[[EpochRecord], None]]:
    """Write the records of a search to event files in `folder`.

    The value of the ``with`` statement is to be called with each record, as `fastbin.run_search` calls its on_epoch. Where a
    stopped run is resumed and repeats epochs, TensorBoard leaves out what was written of them before.

    >>> with events(folder) as on_epoch:  # doctest: +SKIP
    ...     fastbin.run_search("digits", out=folder, on_epoch=on_epoch)

    Raises:
        ModuleNotFoundError: tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"event files need the package tensorboard ({error}): pip install 'fastbin-nets[tensorboard]'"
        ) from error
    writer: SummaryWriter | None = None

    def write(record: EpochRecord) -> None:
        nonlocal writer
        if writer is None:  # now it is known where the search begins or goes on
            writer = SummaryWriter(str(folder), purge_step=record.epoch)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def scalars(record: EpochRecord) -> dict[str, float]:
    """The figures of a record by the names that TensorBoard groups them by; layers count from 1."""
    named = {
        "loss/train": record.train_loss,
        "loss/validation": record.validation_loss,
        "accuracy/train": record.train_accuracy,
        "accuracy/validation": record.validation_accuracy,
        **{f"flips/layer {i}": flips for i, flips in enumerate(record.flips, 1)},
        **{f"density/layer {i}": density for i, density in enumerate(record.density, 1)},
        "rule/lr": record.lr,
        "rule/tau": record.tau,
        "seconds": record.seconds,
    }
    return {name: value for name, value in named.items() if value is not None}
