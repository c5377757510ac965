"""The command line: ``fastbin search``, ``eval``, ``export`` and ``doctor``."""

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
from typing import Annotated, Any, cast

import tyro
from rich.console import Console

from fastbin import doctor, report
from fastbin.config import SearchConfig
from fastbin.data import NAMES, load_dataset
from fastbin.export import Input, export
from fastbin.result import load_result
from fastbin.runs import CHECKPOINT, read_config
from fastbin.search import run_search

DESCRIPTION = """Weight-free neural networks: classifiers whose weights are all 0 or 1.

Exit codes: 0 success; 1 the run failed (data or checkpoint damaged, folder not writable, disk full, loss not finite, a
fault found by doctor); 2 bad usage (unknown flag, invalid value, unknown data set, data not fit for the task); 130 stopped
by Ctrl-C. An error is one line on stderr; with FASTBIN_DEBUG=1 its traceback comes first.

`fastbin --version` prints the version."""

DatasetName = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET", help=f"{', '.join(NAMES)}, or the path of an .npz file")
]


class _Flags(SearchConfig):
    __doc__ = SearchConfig.__doc__  # the flags' help

    def __post_init__(self) -> None:
        """Nothing is checked while flags are parsed: the message of `SearchConfig` itself is the better one."""


@dataclass(frozen=True)
class Search:
    """Search for a weight-free network; write it, its metrics and its curves to a folder.

    Attributes:
        out: folder of the run; unset: runs/<dataset>-seed<seed>.
        resume: go on from the folder's checkpoint; the flags not given are then those of the run.
        data_dir: folder of the named data sets; unset: FASTBIN_DATA, else fastbin in the user's cache folder.
    """

    dataset: DatasetName
    config: Annotated[_Flags, tyro.conf.arg(name="")] = dataclasses.field(default_factory=_Flags)
    out: Path | None = None
    resume: bool = False
    data_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"{Path(self.dataset).stem}-seed{self.config.seed}"

    def run(self, command: list[str]) -> int:
        """Search, report, and return the exit code; `command` is what was typed."""
        config = SearchConfig.from_json(self.config.to_json())
        if self.resume and not (self.folder / CHECKPOINT).exists():
            print(f"no checkpoint in {self.folder} yet: starting from the beginning", flush=True)
        console = Console()
        try:
            with report.progress(console, config.epochs) as on_epoch:
                result = run_search(
                    self.dataset, config, out=self.folder, resume=self.resume, data_dir=self.data_dir, on_epoch=on_epoch
                )
        except KeyboardInterrupt:
            again = shlex.join(command if self.resume else [*command, "--resume"])
            print(f"fastbin: stopped; resume with: {again}", file=sys.stderr)
            return 130
        report.write(self.folder, result, shlex.join(command))
        report.show(result, self.folder, console)
        return 0


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
    except (
        RuntimeError,
        OSError,
        MemoryError,
        ImportError,
    ) as error:  # RuntimeError: fastbin's own errors, and torch's
        return _fail(error, 1)


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"fastbin {doctor.versions()['fastbin']}")
        return 0
    command = _parse(args)
    if isinstance(command, Search) and command.resume:
        stored = read_config(command.folder)
        if stored is not None:
            command = _parse(args, Search(command.dataset, _Flags(**dataclasses.asdict(stored))))
    return command.run(["fastbin", *args])


def _parse(args: list[str], default: Search | None = None) -> Search | Eval | Export | Doctor:
    """The command that `args` stand for; raises ValueError, or SystemExit after printing help."""
    complaint = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: Search | Eval | Export | Doctor = tyro.cli(
                cast("type[Search | Eval | Export | Doctor]", Search | Eval | Export | Doctor),
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
