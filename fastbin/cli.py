"""The command line: ``fastbin search``, ``sweep``, ``eval``, ``compare``, ``spectra``, ``export`` and ``doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import tyro
from rich.console import Console

from fastbin import compare_report, doctor, report
from fastbin.baselines import KINDS
from fastbin.compare import QUICK, compare
from fastbin.config import SearchConfig
from fastbin.data import load_dataset
from fastbin.export import Input, export
from fastbin.result import load_result
from fastbin.runs import read_config
from fastbin.search_command import DatasetName, Flags, Search
from fastbin.spectra.distances import Metric
from fastbin.spectra.graph import Signs

DESCRIPTION = """Weight-free neural networks: classifiers whose weights are all 0 or 1.

Exit codes: 0 success; 1 the run failed (data or checkpoint damaged, folder not writable, disk full, loss not finite, a
fault found by doctor); 2 bad usage (unknown flag, invalid value, unknown data set, data not fit for the task); 130 stopped
by Ctrl-C. An error is one line on stderr; with FASTBIN_DEBUG=1 its traceback comes first.

`fastbin --version` prints the version."""


@dataclass(frozen=True)
class Sweep:
    """Run many searches over a space of configurations, in this process or on a Ray cluster.

    SPACE.toml names the data, the method (grid, random or tpe), the number of trials and a seed, what all trials have
    ([config]), what they vary ([space]: lists of values, or {min, max, log}), and when bad ones are stopped ([halving]).

    Attributes:
        out: folder of the sweep; unset: sweeps/<name of SPACE>.
        resume: go on with a sweep that was stopped.
        data_dir: folder of the named data sets; unset: FASTBIN_DATA, else fastbin in the user's cache folder.
        cluster: address of a Ray cluster, auto for the one of this machine, local for one of this machine alone; unset: no
            Ray, one trial after the other in this process. All its machines must see the folder under the same path.
        cpus: of a trial on a cluster.
        gpus: of a trial on a cluster.
    """

    space: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SPACE.toml")]
    out: Path | None = None
    resume: bool = False
    data_dir: Path | None = None
    cluster: str | None = None
    cpus: int = 1
    gpus: float = 0.0

    def run(self, command: list[str]) -> int:
        """Run the trials, report, and return the exit code: 1 if one failed."""
        from fastbin import sweep
        from fastbin.sweep import table

        out, console = self.out or Path("sweeps") / self.space.stem, Console()
        cluster = None if self.cluster is None else sweep.Cluster(self.cluster, self.cpus, self.gpus)
        trials = sweep.read_space(self.space).trials
        try:
            with table.live(console, trials) as tell:
                outcomes = sweep.sweep(
                    self.space, out, resume=self.resume, data_dir=self.data_dir, cluster=cluster, tell=tell
                )
        except KeyboardInterrupt:
            again = shlex.join(command if self.resume else [*command, "--resume"])
            print(f"fastbin: stopped; resume with: {again}", file=sys.stderr)
            return 130
        table.show(outcomes, trials, out, console)
        return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


@dataclass(frozen=True)
class Eval:
    """Evaluate a found network on the test part of a data set.

    Attributes:
        checkpoint: network.safetensors or checkpoint.safetensors of a run.
        data_dir: folder of the named data sets; unset: FASTBIN_DATA, else fastbin in the user's cache folder.
        json: print one JSON object.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    dataset: DatasetName
    data_dir: Path | None = None
    json: bool = False

    def run(self, command: list[str]) -> int:
        """Evaluate, print, and return the exit code."""
        result = load_result(self.checkpoint)
        found = report.evaluation(result, load_dataset(self.dataset, data_dir=self.data_dir, seed=result.config.seed))
        if self.json:
            print(json.dumps({"checkpoint": str(self.checkpoint), "data": self.dataset, **dataclasses.asdict(found)}))
        else:
            report.show_evaluation(found, Console())
        return 0


@dataclass(frozen=True)
class Compare:
    """Compare weight-free networks with random, weight-agnostic, pruned, fully connected and other ones.

    A comparison that was stopped goes on where it was when the same command is given again.

    Attributes:
        out: folder of the results and of the report.
        data: names of data sets, or paths of .npz files.
        seeds: number of seeds, the first one being --seed.
        kinds: of network; unset: all.
        sweep: folder of a sweep, of whose best trial the flags are that are not given, and the data.
        quick: small networks on digits and breast_cancer; for a first look.
        data_dir: folder of the named data sets; unset: FASTBIN_DATA, else fastbin in the user's cache folder.
    """

    out: Path
    config: Annotated[Flags, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Flags)
    data: tuple[str, ...] = ("mnist", "fashion_mnist")
    seeds: int = 5
    kinds: tuple[str, ...] | None = None
    sweep: Path | None = None
    quick: bool = False
    data_dir: Path | None = None

    def run(self, command: list[str]) -> int:
        """Compare, report, and return the exit code: 1 if a run failed."""
        given = {"data": self.data, "seeds": self.seeds, "config": SearchConfig.from_json(self.config.to_json())}
        results = compare(
            **{**given, **(QUICK if self.quick else {})},
            out=self.out,
            kinds=tuple(KINDS) if self.kinds is None else self.kinds,
            data_dir=self.data_dir,
            made_with=report.made_with(shlex.join(command)),
            on_run=compare_report.tell,
        )
        compare_report.show(results, Console())
        print(f"written to {self.out}")
        return 1 if any(run["status"] == "failed" for run in results["runs"]) else 0


@dataclass(frozen=True)
class Spectra:
    """Compare the networks of a folder as graphs, by the spectra of their Laplacians; write figures to DIR/spectra.

    DIR is a folder of `fastbin compare`, whose report the result joins, of `fastbin search`, or one that holds folders of
    searches.

    Attributes:
        signed: what real weights mean: absolute (|w|), signed (w, with degrees from |w|) or support (1 where w is not 0).
        metric: distance between spectra.
        exact_nodes: graphs of up to so many nodes have exact spectra, larger ones estimates by Lanczos quadrature.
        json: print one JSON object.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    signed: Signs = "absolute"
    metric: Metric = "wasserstein"
    exact_nodes: int = 4000
    json: bool = False

    def run(self, command: list[str]) -> int:
        """Study, write, print, and return the exit code."""
        from fastbin.spectra import story, study  # here: matplotlib is slow to import

        def tell(what: str, number: int, total: int) -> None:
            print(
                f"spectra {number:{len(str(total))}}/{total}  {what}",
                file=sys.stderr if self.json else None,
                flush=True,
            )

        found = study.study(
            self.folder, signed=self.signed, metric=self.metric, exact_nodes=self.exact_nodes, on_network=tell
        )
        written = story.write(self.folder, found, shlex.join(command))
        if self.json:
            print(json.dumps(found.to_json()))
        else:
            story.show(found)
            print(f"written to {written}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a found network as a C file that needs nothing else (FILE ends in .c), or as ONNX (.onnx).

    Attributes:
        checkpoint: network.safetensors or checkpoint.safetensors of a run.
        input: type of the raw samples that the exported network takes.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    input: Input = "float32"

    def run(self, command: list[str]) -> int:
        """Export, and return the exit code."""
        export(load_result(self.checkpoint), self.file, self.input)
        print(self.file)
        return 0


@dataclass(frozen=True)
class Doctor:
    """Show versions, hardware and the kernels in force, and test each kernel against the reference.

    Attributes:
        json: print one JSON object.
    """

    json: bool = False

    def run(self, command: list[str]) -> int:
        """Examine, print, and return the exit code."""
        findings = doctor.examine()
        if self.json:
            print(json.dumps(findings))
        else:
            doctor.show(findings, Console())
        return 1 if findings["faults"] else 0


_Command: TypeAlias = Search | Sweep | Eval | Compare | Spectra | Export | Doctor


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (`sys.argv` by default) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(args)
        finally:
            _flush_stdout()
    except KeyboardInterrupt:
        print("fastbin: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read our output has gone, and wants no more of it
        return 1
    except (ValueError, TypeError) as error:
        return _fail(error, 2)
    except (RuntimeError, OSError, MemoryError, ImportError) as error:  # RuntimeError: also fastbin's own, and torch's
        return _fail(error, 1)


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"fastbin {doctor.versions()['fastbin']}")
        return 0
    command = _parse(args)
    if isinstance(command, Search) and command.resume:
        stored = read_config(command.folder)
        if stored is not None:
            command = _parse(args, Search(command.dataset, Flags(**dataclasses.asdict(stored))))
    if isinstance(command, Compare) and command.sweep is not None:
        from fastbin.sweep import read_best

        data, config = read_best(command.sweep)
        command = _parse(args, Compare(command.out, Flags(**dataclasses.asdict(config)), (data,)))
    return command.run(["fastbin", *args])


def _parse(args: list[str], default: Search | Compare | None = None) -> _Command:
    """The command that `args` stand for; raises ValueError, or SystemExit after printing help."""
    complaint = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: _Command = tyro.cli(
                cast("type[_Command]", _Command),
                prog="fastbin",
                description=DESCRIPTION,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff,),
                **defaults,
            )
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box of several lines with rules between them.
        body = complaint.getvalue().partition("\n")[2]
        sections = [re.sub(r"[─-╿\s]+", " ", section).strip() for section in re.split(r"─{4,}", body)]
        raise ValueError("; ".join(filter(None, sections))) from None


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again at exit
        raise


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("FASTBIN_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'output'}: {error.strerror}"  # what is written to files has a name, output has none
    print(f"fastbin: error: {' '.join(text.split()) or type(error).__name__}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
