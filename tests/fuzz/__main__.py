"""Fuzz the readers of files, guided by coverage: ``python -m tests.fuzz [--seconds N] [TARGET ..]``.

Needs atheris (``pip install 'fastbin-nets[fuzz]'``). Each target runs in a process of its own for N seconds; a finding stops
it, and leaves its input in a temporary folder that is named. The exit code is 1 if there was one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=65536"]  # a hang, and memory out of all proportion to a file


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which does not return."""
    import atheris

    with atheris.instrument_imports(include=["fastbin"]):
        from .targets import TARGETS
    target, folder = TARGETS[name], Path(tempfile.mkdtemp(prefix=f"fastbin-fuzz-{name}-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(target.seeds()):
        (corpus / f"seed{i}").write_bytes(seed)
    accepted = [0]

    def one(data: bytes) -> None:
        accepted[0] += target(data, folder)

    atheris.Setup([sys.argv[0], *LIMITS, *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the targets one after the other, and print how many inputs each has read."""
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all without")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: another each time")
    asked = parser.parse_args()
    unknown = sorted(set(asked.targets) - set(TARGETS))
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}: expected {', '.join(TARGETS)}")
    total, found, kept = 0, [], tempfile.mkdtemp(prefix="fastbin-findings-")
    for name in asked.targets or TARGETS:
        arguments = [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", f"-artifact_prefix={kept}/{name}-"]
        code = f"from tests.fuzz.__main__ import fuzz; fuzz({name!r}, {arguments!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        counts = re.findall(r"^Done (\d+)|^#(\d+)\s", done.stderr, re.MULTILINE)
        inputs = max((int(a or b) for a, b in counts), default=0)
        total += inputs
        print(f"{name:20} {inputs:9} inputs  {'a finding' if done.returncode else 'nothing found'}", flush=True)
        if done.returncode:
            found.append(name)
            print(done.stdout[-4000:] + done.stderr[-6000:], flush=True)
    print(f"{total} inputs, {len(found)} targets with a finding{': ' if found else ''}{', '.join(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
