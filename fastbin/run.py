"""A search under way: its state, the best network so far, and what is written of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fastbin import checkpoint
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.data import Dataset, Standardizer
from fastbin.descent import Search
from fastbin.result import EpochRecord, SearchResult, make_net, read_result
from fastbin.runs import CHECKPOINT, RunFolderError, append_metrics, write_config, write_metrics

StartSearch = Callable[[SearchConfig, list[int]], Search]


class Run:
    """A search under way, with the best network so far.

    Attributes:
        search: its state.
        best: the network to return if the search ended now, and the history.
    """

    def __init__(
        self, dataset: Dataset, config: SearchConfig, standardizer: Standardizer, start: StartSearch = Search
    ) -> None:
        widths = [dataset.features, *config.hidden, dataset.classes]
        self.search = start(config, widths)
        net = make_net(config, widths, self.search.found())
        self.best = SearchResult(net, standardizer, dataset.labels, config, data_name=dataset.name)
        self._folder: Path | None = None
        self._fingerprint = ""

    @property
    def history(self) -> list[EpochRecord]:
        """A record for each epoch so far."""
        return self.best.history

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or too many have brought nothing."""
        config, epochs = self.best.config, len(self.history)
        stalled = config.patience is not None and epochs - self.best.best_epoch >= config.patience
        return epochs >= config.epochs or stalled

    def keep_in(self, folder: Path, fingerprint: str, resume: bool) -> None:
        """Write each epoch to `folder` from now on; first go on from its checkpoint, if that is wanted and there is one.

        Raises:
            CheckpointError, RunFolderError: the checkpoint is damaged, or of another run.
            OSError: the folder cannot be written.
        """
        self._folder, self._fingerprint = folder, fingerprint
        if resume and (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)
        if self.search.leads:
            write_config(folder, self.best.config, self.best.data_name)
            write_metrics(folder, self.history)

    def add(self, record: EpochRecord, found: list[BitMatrix]) -> None:
        """Take the record of an epoch, and the bits after it, and write them."""
        history = [*self.history, record]
        if _better(record, self.history[self.best.best_epoch - 1] if self.best.best_epoch else None):
            net = make_net(self.best.config, self.search.net.widths, found)
            self.best = dataclasses.replace(self.best, net=net, best_epoch=record.epoch)
        self.best = dataclasses.replace(self.best, history=history)
        if self._folder is None:
            return
        state = self.search.tensors()  # all processes of a search take part in this
        if self.search.leads:
            tensors, metadata = self.best.to_checkpoint()
            metadata["fingerprint"] = self._fingerprint
            checkpoint.save(self._folder / CHECKPOINT, {**tensors, **state}, metadata)
            append_metrics(self._folder, record)

    def release(self) -> None:
        """Leave the memory of the search's state, once no epoch is to follow; `best` stays."""
        del self.search

    def _restore(self, path: Path) -> None:
        reader = checkpoint.Reader(path)
        best = read_result(reader)
        stored, given = best.config.to_json(), self.best.config.to_json()
        for name, value in given.items():
            if stored[name] != value:
                raise RunFolderError(f"{path.parent} holds a run with {name}={stored[name]!r}, asked for is {value!r}")
        if reader.entry("fingerprint", str) != self._fingerprint:
            raise RunFolderError(f"{path.parent} holds a run on other data ({best.data_name!r})")
        self.search.restore(reader)
        self.best = dataclasses.replace(best, net=best.net.to(best.config.device))


def _better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """Whether a record is to be preferred: by its standing; without validation, the last."""
    return best is None or record.validation_accuracy is None or record.standing > best.standing
