"""``fastbin search``: its flags, and what it tells and writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from fastbin import report
from fastbin.bits import BitMatrix
from fastbin.config import SearchConfig
from fastbin.data import NAMES
from fastbin.result import EpochRecord, SearchResult
from fastbin.runs import CHECKPOINT, POPULATION, write_snapshot
from fastbin.search import Shard, run_search

DatasetName = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET", help=f"{', '.join(NAMES)}, or the path of an .npz file")
]


class Flags(SearchConfig):  # noqa: D101
    __doc__ = SearchConfig.__doc__  # the flags' help

    def __post_init__(self) -> None:
        """Nothing is checked while flags are parsed: the message of `SearchConfig` itself is the better one."""


@dataclass(frozen=True)
class Search:
    """Search for a weight-free network; write it, its metrics and its curves to a folder.

    Attributes:
        out: folder of the run; unset: runs/<dataset>-seed<seed>.
        population: so many searches at once, with the seeds --seed, --seed + 1, .., each in a folder of its own in OUT.
        halving: of a population: epochs after each of which the better half goes on.
        snapshots: also keep the bits after each epoch, for `fastbin spectra`; not of a population.
        tensorboard: also write event files for TensorBoard; not of a population.
        resume: go on from the folder's checkpoint; the flags not given are then those of the run.
        shard: what processes started by torchrun have shares of: the samples of each batch, or the rows of each layer, for
            layers that do not fit on one device; unset: batch under torchrun.
        data_dir: folder of the named data sets; unset: FASTBIN_DATA, else fastbin in the user's cache folder.
    """

    dataset: DatasetName
    config: Annotated[Flags, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Flags)
    out: Path | None = None
    population: int | None = None
    halving: tuple[int, ...] = ()
    snapshots: bool = False
    tensorboard: bool = False
    resume: bool = False
    shard: Shard | None = None
    data_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        members = "" if self.population is None else f"-population{self.population}"
        return self.out or Path("runs") / f"{Path(self.dataset).stem}-seed{self.config.seed}{members}"

    def run(self, command: list[str]) -> int:
        """Search, report, and return the exit code; `command` is what was typed."""
        config = SearchConfig.from_json(self.config.to_json())
        leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        if leads and self.resume and not any((self.folder / name).exists() for name in (CHECKPOINT, POPULATION)):
            print(f"no checkpoint in {self.folder} yet: starting from the beginning", flush=True)
        try:
            self._search(config, shlex.join(command), leads)
        except KeyboardInterrupt:
            again = shlex.join(command if self.resume else [*command, "--resume"])
            print(f"fastbin: stopped; resume with: {again}", file=sys.stderr)
            return 130
        return 0

    def _search(self, config: SearchConfig, command: str, leads: bool) -> None:
        console = Console(quiet=not leads)
        shard = self.shard or ("batch" if "TORCHELASTIC_RUN_ID" in os.environ else None)
        out: dict[str, Any] = {"shard": shard, "out": self.folder, "resume": self.resume, "data_dir": self.data_dir}
        if self.population is not None:
            if self.snapshots:
                raise ValueError("a population keeps no snapshots: leave out --snapshots")
            if self.tensorboard:
                raise ValueError("a population keeps no event files: leave out --tensorboard")
            out.update(population=self.population, halving=self.halving)
            with report.population_progress(console, config.epochs) as on_members:
                results: list[SearchResult] = run_search(self.dataset, config, on_epoch=on_members, **out)
            report.write_population(self.folder, results, command)
            report.show_population(results, self.folder, console)
            return
        if self.halving:
            raise ValueError(f"halving needs a population, got {list(self.halving)}: add --population")

        def keep(epoch: int, weights: list[BitMatrix]) -> None:
            write_snapshot(self.folder, epoch, weights, config, Path(self.dataset).stem)

        with contextlib.ExitStack() as stack:
            tellers = [stack.enter_context(report.progress(console, config.epochs))]
            if self.tensorboard:
                from fastbin.tensorboard import events  # here: slow to import

                tellers.append(stack.enter_context(events(self.folder)))

            def tell(record: EpochRecord) -> None:
                for each in tellers:
                    each(record)

            on_bits = keep if self.snapshots else None
            result = run_search(self.dataset, config, on_epoch=tell, on_bits=on_bits, **out)
        if leads:
            report.write(self.folder, result, command)
            report.show(result, self.folder, console)
