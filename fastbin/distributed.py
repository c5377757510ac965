"""The processes of one search, ranks as torch calls them: what they exchange, and how a search ends when one of them does.

Messages between GPUs go by NCCL, all others by gloo. NCCL's part has not been run on a GPU yet.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastbin.checkpoint import CheckpointError
from fastbin.data_files import DataError
from fastbin.runs import CHECKPOINT, RunFolderError
from fastbin.search import SearchError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_BEAT = 0.5  # seconds between two signs of life of a rank
_SILENCE = 3.0  # seconds without one after which a rank that is asked for is dead
_GRACE = 5.0  # seconds in which a rank that is told to end may notice by itself why; torchrun kills after 30
_PLAIN = (ValueError, TypeError, DataError, CheckpointError, RunFolderError, SearchError)  # the same whoever says it


class RankError(RuntimeError):
    """A rank of the search failed or died; the message names it, and the checkpoint to resume from."""


class _ExchangeError(RuntimeError):
    """An exchange failed: a rank has gone, most likely."""


class Ranks:
    """The ranks of a search.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, device: str) -> None:
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(f"shard needs several processes, as torchrun starts them: {missing[0]} is not set")
        backend = "gloo"
        if torch.device(device).type == "cuda":
            if torch.device(device).index is not None:
                raise ValueError(f"device must be 'cuda', of which each rank takes its own, got {device!r}")
            mine, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if mine >= gpus:
                raise ValueError(f"each rank needs a GPU of its own: this machine has {gpus}, and a rank {mine}")
            torch.cuda.set_device(mine)
            backend = "cpu:gloo,cuda:nccl"
        if not dist.is_initialized():
            dist.init_process_group(backend)
            atexit.register(dist.destroy_process_group)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, n: int) -> slice:
        """Which of n rows or samples are this rank's: an equal share, but that the last ranks may have less or none."""
        share = math.ceil(n / self.size)
        return slice(min(self.rank * share, n), min((self.rank + 1) * share, n))

    def sum_(self, t: Tensor) -> Tensor:
        """The sum of t over all ranks, in the place of t; the same on each, bit for bit."""
        _exchange(lambda: dist.all_reduce(t))
        return t

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """All n rows, of which each rank gives its share ``[.., ...]``, on each of them: ``[n, ...]``."""
        mine = self._padded(rows, n)
        whole = mine.new_empty((self.size * len(mine), *mine.shape[1:]))
        _exchange(lambda: dist.all_gather(list(whole.chunk(self.size)), mine))
        return whole[:n]

    def collect(self, rows: Tensor, n: int) -> Tensor:
        """As `gather`, but on rank 0 alone and on its CPU; others get nothing, ``[0, ...]``."""
        mine = self._padded(rows.cpu(), n)
        whole = mine.new_empty((self.size * len(mine) if self.rank == 0 else 0, *mine.shape[1:]))
        _exchange(lambda: dist.gather(mine, list(whole.chunk(self.size)) if self.rank == 0 else None))
        return whole[:n]

    def _padded(self, rows: Tensor, n: int) -> Tensor:
        padding = math.ceil(n / self.size) - len(rows)
        return torch.cat([rows, rows.new_zeros((padding, *rows.shape[1:]))]) if padding else rows.contiguous()

    def agree(self, what: str, *values: Any) -> None:
        """Check that all ranks have the same values, numbers or texts, or tensors by the sum of their words.

        Raises:
            RankError: two differ.
        """
        numbers = [_check_sum(value) for value in values]
        all_numbers = self.gather(torch.tensor([numbers], dtype=torch.int64), self.size)
        for other, theirs in enumerate(all_numbers.tolist()):
            if theirs != all_numbers[0].tolist():
                raise RankError(f"ranks 0 and {other} of {self.size} differ in {what}")


def _check_sum(value: Any) -> int:
    if isinstance(value, Tensor):
        return int(value.reshape(-1).view(torch.int32).sum(dtype=torch.int64))
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big", signed=True)


def _exchange(call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:
        raise _ExchangeError(str(error)) from error


@functools.cache
def _ranks(device: str) -> Ranks:
    # Once in the life of a process: what stands in torchrun's store would mislead a second meeting.
    return Ranks(device)


@contextlib.contextmanager
def joined(device: str, folder: Path | None) -> Iterator[Ranks]:
    """Join the other ranks; if one ends before the ``with`` block does, all end, and the first to know tells which.

    Args:
        device: of the search.
        folder: where its checkpoint is, for the message.

    Raises:
        ValueError: there are no ranks, or the device cannot be theirs.
        RankError: a rank failed or died.
        SystemExit: likewise, and another rank has told.
    """
    ranks = _ranks(device)
    watch = _Watch(ranks, folder)
    try:
        yield ranks
    except KeyboardInterrupt:
        if ranks.rank == 0:
            raise
        raise SystemExit(130) from None
    except _ExchangeError as error:
        raise watch.lost(f"an exchange between ranks failed: {str(error).partition('. ')[0]}") from error
    except Exception as error:
        if not watch.first():
            raise SystemExit(1) from error
        if isinstance(error, (RankError, *_PLAIN)):
            raise
        raise RankError(watch.told(f"rank {ranks.rank} of {ranks.size} failed: {error}")) from error
    else:
        watch.end()
    finally:
        watch.left.set()


class _Watch(threading.Thread):
    """Gives signs of life, and hears when torchrun ends this process because another one ended.

    A thread, since the main one may be waiting for that other process, or for the GPU. After a failure it stays in force:
    whoever is telling of it is not to be stopped by torchrun's signal.
    """

    _searches = itertools.count()

    def __init__(self, ranks: Ranks, folder: Path | None) -> None:
        super().__init__(daemon=True)
        self.left = threading.Event()
        self._ranks, self._folder = ranks, folder
        # A connection of its own: one that waits blocks all who use it. The name, so that a restart or a second search in
        # these processes meets no old signs.
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*address, is_master=False, wait_for_workers=False)
        name = f"fastbin/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_Watch._searches)}"
        self._store = PrefixStore(name, store)
        self._signals, write = os.pipe()
        os.set_blocking(write, False)
        # Python's own handlers wait for the main thread; what it writes to this pipe does not.
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._beat()
        self.start()

    def end(self) -> None:
        """Leave signals as they were; the search has ended well."""
        os.close(signal.set_wakeup_fd(self._wakeup))
        signal.signal(signal.SIGTERM, self._handler)

    def run(self) -> None:
        """Beat until the search has ended, or has to."""
        while not self.left.is_set():
            self._beat()
            if select.select([self._signals], [], [], _BEAT)[0] and signal.SIGTERM in os.read(self._signals, 64):
                break
        asked = time.monotonic()
        while not self.left.wait(_BEAT):
            self._beat()
            if time.monotonic() - asked > _GRACE:
                error = self.lost(f"rank {self._ranks.rank} of {self._ranks.size} was stopped by SIGTERM")
                if not self.left.is_set():
                    if isinstance(error, RankError):
                        print(f"fastbin: error: {error}", file=sys.stderr, flush=True)
                    os._exit(1)
        os.close(self._signals)

    def lost(self, reason: str) -> RankError | SystemExit:
        """What to raise when the search cannot go on, for this reason if all ranks live."""
        try:
            dead = self._dead()
        except RuntimeError:  # of the store
            dead, reason = [], f"{reason}, and torchrun has gone"
        if not self.first():
            return SystemExit(1)
        names = " and ".join(map(str, dead))
        return RankError(self.told(f"rank {names} of {self._ranks.size} died" if dead else reason))

    def _dead(self) -> list[int]:
        if self._store.add("told", 0):
            return []  # by a rank that knew
        before = self._beats()
        until = time.monotonic() + _SILENCE
        while time.monotonic() < until:
            time.sleep(_BEAT)
            self._beat()
        return [rank for rank, (a, b) in enumerate(zip(before, self._beats(), strict=True)) if a == b]

    def _beats(self) -> list[int]:
        return [self._store.add(f"beats/{rank}", 0) for rank in range(self._ranks.size)]

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # torchrun has gone, and its store; the ranks can do without
            self._store.add(f"beats/{self._ranks.rank}", 1)

    def first(self) -> bool:
        """Whether no rank has told yet why the search ends; from now on, one has."""
        try:
            return bool(self._store.add("told", 1) == 1)
        except RuntimeError:  # torchrun has gone: there is nobody to ask
            return True

    def told(self, what: str) -> str:
        """What happened, and where to go on."""
        if self._folder is None:
            return what
        path = self._folder / CHECKPOINT
        where = f"resume from {path}" if path.exists() else f"there is no checkpoint yet in {path.parent}"
        return f"{what}; {where}"
