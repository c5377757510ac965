"""Check and time the kernels on the GPU at hand: ``python -m bench gpu``, or ``python -m bench.gpu`` without tyro and rich.

In this order: every kernel against the reference, and beside that over small shapes under compute-sanitizer's memcheck and
racecheck where it is installed (a failure ends the run, without timings); then timings. Under eight minutes are meant.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench import gpu_checks
from bench.gpu_cases import Case, cases
from bench.gpu_huge import run_huge
from bench.gpu_timing import EventTimer, Limits, Timer, measure_limits

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_SECONDS = 150
COLUMNS = (
    "op", "shape", "implementation", "cache", "ours_us", "peer", "peer_us", "ratio", "goal", "roofline", "goal_roofline",
    "rate", "goal_rate",
)  # fmt: skip

Row = dict[str, object]


def require_gpu() -> str:
    """The card's name, capability, driver and versions; ends the process with a message where there is none to use."""
    if not torch.cuda.is_available():
        sys.exit(f"bench gpu needs a CUDA device, and torch {torch.__version__} finds none")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        sys.exit(f"bench gpu needs compute capability 8.0, {torch.cuda.get_device_name()} has {major}.{minor}")
    import triton

    return (
        f"{torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"triton {triton.__version__}"
    )


def sanitize(found: list[gpu_checks.Kernel]) -> tuple[list[str], list[str]]:
    """Run the checks over small shapes under compute-sanitizer, kernels and tools beside each other.

    Returns:
        What failed, and what was not run to its end.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [], ["compute-sanitizer: not installed"]
    runs = [(check, f"{kernel.op}:{kernel.name}") for check in SANITIZERS for kernel in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found_in = list(pool.map(lambda run: _sanitize(tool, *run), runs))
    return [failure for failure, _ in found_in if failure], [rest for _, rest in found_in if rest]


def _sanitize(tool: str, check: str, kernel: str) -> tuple[str, str]:
    """What compute-sanitizer finds in a kernel, and that it did not finish; each empty if there is no such thing to say."""
    command = [
        tool,
        "--tool",
        check,
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "bench.gpu",
        "--small-checks",
        kernel,
    ]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SANITIZER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"compute-sanitizer {check}, {kernel}: not finished within {SANITIZER_SECONDS} s"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(f"compute-sanitizer {check}, {kernel}: exit {done.returncode}, {last}")
    if done.returncode == 0:
        return "", ""
    return f"compute-sanitizer {check}, {kernel}: {done.stdout[-2000:]}{done.stderr[-2000:]}", ""


def time_case(case: Case, timer: Timer, limits: Limits) -> list[Row]:
    """A row for each implementation, state of the cache and peer; goals that are no ratio stand in the first peer's."""
    rows = []
    for cold in (False,) if case.steps else (False, True):

        def seconds(call: Any, cold: bool = cold) -> float:
            return timer.steps(call) if case.steps else timer.seconds(call, cold=cold)

        peers = {name: seconds(call) for name, call in case.peers.items()}
        for name, call in case.ours.items():
            ours = seconds(call)
            roofline = max(case.bytes / limits.bandwidth, case.operations / limits.bf16_rate) / ours
            for peer, theirs in peers.items():
                first = peer == next(iter(peers))
                rows.append(
                    {
                        "op": case.op,
                        "shape": case.shape,
                        "implementation": name,
                        "cache": "-" if case.steps else "cold" if cold else "warm",
                        "ours_us": ours * 1e6,
                        "peer": peer,
                        "peer_us": theirs * 1e6,
                        "ratio": theirs / ours,
                        "goal": case.goals.get(peer),
                        "roofline": roofline or None,
                        "goal_roofline": case.goal_share if first else None,
                        "rate": case.operations / ours if case.goal_rate else None,
                        "goal_rate": case.goal_rate if first else None,
                    }
                )
    return rows


def show(value: object) -> str:
    """A figure with three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(show(row[column]) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def missed(rows: Iterable[Row]) -> list[str]:
    """The goals that no implementation reaches, with a cold cache where there is one."""
    best: dict[tuple[object, object, str], tuple[float, float]] = {}
    for row in rows:
        for measured, goal in (("ratio", "goal"), ("roofline", "goal_roofline"), ("rate", "goal_rate")):
            got, wanted = row[measured], row[goal]
            if isinstance(wanted, float) and row["cache"] != "warm":
                key = (row["op"], row["shape"], f"times {row['peer']}" if measured == "ratio" else measured)
                value = got if isinstance(got, float) else 0.0
                best[key] = (max(value, best.get(key, (0.0, 0.0))[0]), wanted)
    return [
        f"{op} {shape}: {measured} {got:.3g}, to reach {wanted:.3g}"
        for (op, shape, measured), (got, wanted) in best.items()
        if got < wanted
    ]


def record_choice(path: Path, device: str, op: str, kind: str, case: str, seconds: dict[str, float]) -> None:
    """Write the measured order of implementations of a shape class to fastbin's file of choices."""
    choices = json.loads(path.read_text())
    order = sorted(seconds, key=lambda name: seconds[name])
    entry = {"order": order, "basis": "measured", "seconds": seconds, "case": case}
    choices["devices"].setdefault(device, {}).setdefault(op, {})[kind] = entry
    path.write_text(json.dumps(choices, indent=2) + "\n")


def _record_choices(case: Case, rows: list[Row]) -> None:
    op = case.op.split()[0]
    from fastbin import choices

    if op not in choices.SHAPE_CLASSES or len(case.ours) < 2:
        return
    seconds = {str(row["implementation"]): float(str(row["ours_us"])) / 1e6 for row in rows if row["cache"] == "cold"}
    kind = choices.shape_class(op, *case.arguments)
    record_choice(choices.FILE, torch.cuda.get_device_name(), op, kind, f"{case.op} {case.shape}", seconds)


def check_and_time(csv_path: Path | None, write_choices: bool) -> int:
    """All of it; the exit code."""
    print(require_gpu())
    started = time.perf_counter()
    found = gpu_checks.kernels("cuda")
    with ThreadPoolExecutor(1) as beside:
        sanitized = beside.submit(sanitize, found)
        failures = gpu_checks.run_beside(found)
    more_failures, unfinished = sanitized.result()
    failures += more_failures + run_huge(found)
    print(f"checks: {time.perf_counter() - started:.0f} s")
    if failures:
        print("no timings, because these failed:", *failures, sep="\n")
        return 1
    timer = EventTimer()
    limits = measure_limits(timer, "cuda")
    print(
        f"copy {limits.bandwidth / 1e12:.2f} TB/s read and written, bf16 product {limits.bf16_rate / 1e12:.0f} TFLOP/s"
    )
    rows: list[Row] = []
    for case in cases(found):
        torch.cuda.empty_cache()
        measured = time_case(case, timer, limits)
        print(table(measured), flush=True)
        rows += measured
        if write_choices:
            _record_choices(case, measured)
    print("\nAll, medians:\n", table(rows), sep="\n")
    print("\nNot reached:", *(missed(rows) or ["nothing"]), sep="\n")
    print("\nNot checked:", *(unfinished or ["nothing"]), sep="\n")
    if csv_path is not None:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    print(f"in all: {time.perf_counter() - started:.0f} s")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line of ``python -m bench.gpu``."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--csv", type=Path, help="also write the figures here")
    parser.add_argument(
        "--write-choices", action="store_true", help="rewrite fastbin/choices.json by what was measured"
    )
    parser.add_argument(
        "--small-checks", metavar="OP:NAME", help="only these, of one kernel: what compute-sanitizer runs"
    )
    given = parser.parse_args(arguments)
    if given.small_checks:
        require_gpu()
        found = [kernel for kernel in gpu_checks.kernels("cuda") if f"{kernel.op}:{kernel.name}" == given.small_checks]
        return 1 if not found or gpu_checks.run(found, small=True, populations=(3,)) else 0
    return check_and_time(given.csv, given.write_choices)


if __name__ == "__main__":
    sys.exit(main())
