"""All tests of the ops on builds under sanitizers: ``make sanitize``, or ``python -m tests.sanitize [BUILD ..]``.

A build is `memory`, which checks every address (ASan) and undefined operations (UBSan), or `threads`, which checks races
(TSan). Each runs all of `TESTS` on every instruction set of this CPU; the first finding of a process ends it. The exit code
is 1 if there was one. A part of them, enough to see reads past an edge and races, runs with all other tests.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from fastbin import _cpu
from tests.extensions import HERE, build, environment, run_kernel_tests

TESTS = ("test_ops.py", "test_updates.py", "test_bits.py", "test_op_arguments.py", "test_signed.py", "test_threads.py")
HOUR = 3600.0


class Build(NamedTuple):
    """Sanitizers, their libraries, and the environment that they take."""

    sanitizers: str
    runtimes: tuple[str, ...]
    environment: dict[str, str]


BUILDS = {
    "memory": Build(
        "address,undefined",
        ("libasan.so", "libubsan.so"),
        {
            # Python never frees all. A short trace for each allocation: Python makes many.
            "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=3:quarantine_size_mb=16",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        },
    ),
    "threads": Build(
        "thread",
        ("libtsan.so",),
        {
            # TSan does not know all of the locks of Python and torch: what it finds in code not built with it is left.
            "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0",
            "FASTBIN_TEST_THREADS": "3",
        },
    ),
}


class MissingError(RuntimeError):
    """The compiler, or a sanitizer's library, is not installed."""


def ready(name: str, folder: Path) -> dict[str, str]:
    """Make one of `BUILDS` in a folder that is kept; returns the environment of a process that runs on it."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingError("g++ is missing: its sanitizers are what this builds with")
    chosen = BUILDS[name]
    preloaded = " ".join(_runtime(compiler, library) for library in chosen.runtimes)  # before Python
    extension = build(folder, CMAKE_CXX_COMPILER=compiler, FASTBIN_SANITIZE=chosen.sanitizers)
    return environment(FASTBIN_TEST_EXTENSION=str(extension), LD_PRELOAD=preloaded, **chosen.environment)


def _runtime(compiler: str, name: str) -> str:
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():  # g++ hands back the bare name of what it does not have
        raise MissingError(f"{name} is missing: install g++'s sanitizer runtimes")
    return path


def main() -> int:
    """Run the tests, and print a line for each build and instruction set."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("builds", nargs="*", metavar="BUILD", help=f"of {', '.join(BUILDS)}; all without")
    asked = parser.parse_args()
    unknown = sorted(set(asked.builds) - set(BUILDS))
    if unknown:
        parser.error(f"unknown build {unknown[0]!r}: expected {', '.join(BUILDS)}")
    failed = False
    for name in asked.builds or BUILDS:
        env = ready(name, HERE.parent / "build" / f"sanitized-{name}")
        for level in _cpu.isas():
            # -s: a sanitizer ends the process, and pytest would swallow its words with it.
            tests = [str(HERE / test) for test in TESTS]
            done = run_kernel_tests({**env, "FASTBIN_ISA": level}, "-s", *tests, timeout=HOUR)
            lines = done.stdout.strip().splitlines()
            print(f"{name} {level}: {lines[-1].strip('= ') if lines else 'no test was run'}", flush=True)
            if done.returncode:
                print((done.stdout + done.stderr)[-5000:], flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
