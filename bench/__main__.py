"""Run the benchmarks: ``python -m bench ops|update|step|scale|population|cost|spectra|gpu|tune``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from rich.console import Console

from bench import cost as costs
from bench import machine
from bench import population as populations
from bench import scale as scaling
from bench import spectra as graphs
from bench.cases import TABLES
from bench.gpu import check_and_time
from bench.gpu_tune import tune_all
from bench.overhead import SHAPES, measure_overhead
from bench.report import environment, print_rows, print_table, write_csv
from bench.run import run_case
from bench.timing import FULL, QUICK

LIMITS = {
    "ops": (
        "The limit is a model: up to 8 samples, the time in which torch.sum reads as many bytes; for more, products a load "
        "(float32: 5 times, int8: 10 times the multiply-adds that torch.mm reaches here) or a vector operation (bits). "
        "numkong runs one thread. Weights are prepared beforehand for all, the torch int8 of float32 rows is given int8."
    ),
    "update": (
        "The limit is the bytes moved at the bandwidth of torch's copy_ of 256 MiB, or the product's multiply-adds at "
        "torch.mm's rate where they take longer (x as bits: 5 times that rate). Copying also reads the lines that it "
        "writes, an update in place does not: more than 100 % is possible. torch packs by np.packbits."
    ),
    "step": "Rates count forward and gradient products of each layer and the backward products of all but the first.",
}


def _run(table: str, quick: bool, csv: Path | None, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    for registered in TABLES[table]:
        case, effort = (registered.quick(), QUICK) if quick else (registered, FULL)
        with Console(stderr=True).status(str(case)):
            rows += run_case(case, effort)
    facts = {**environment(), "threads": torch.get_num_threads()}
    print_rows(
        f"{table}: medians, {', '.join(f'{key} {value}' for key, value in facts.items())}",
        rows,
        f"{LIMITS[table]} copy_ moves {machine.copy_bandwidth() / 1e9:.1f} GB/s and torch.mm does "
        f"{machine.fma_rate() / 1e9:.0f} GMAC/s here. A ratio is the peer's time over ours.",
    )
    if csv is not None:
        write_csv(csv, [row.record(table) for row in rows])
    wrong = [row for row in rows if row.error]
    if wrong:
        sys.exit(f"{len(wrong)} without a speed: " + "; ".join(f"{r.case}, {r.contender}: {r.problem}" for r in wrong))


def ops(*, quick: bool = False, csv: Path | None = None, threads: int | None = None) -> None:
    """The products, and what a call costs from Python.

    Args:
        quick: fewer calls, and batches of 512 at most.
        csv: also write the figures here.
        threads: how many; all cores without.
    """
    _run("ops", quick, csv, threads)
    results = [measure_overhead(shape) for shape in SHAPES]
    print_table(
        "bit_linear from Python, medians in µs",
        ("<batch, in, out", "public op", "torch.ops.fastbin", "binding alone", "overhead", "its share"),
        [
            (
                ", ".join(map(str, r.shape)),
                *(f"{us:.1f}" for us in (r.public, r.torch_op, r.binding, r.public - r.binding)),
                f"{r.share:.0%}",
            )
            for r in results
        ],
    )


def update(*, quick: bool = False, csv: Path | None = None, threads: int | None = None) -> None:
    """The updates.

    Args:
        quick: fewer calls, and batches of 512 at most.
        csv: also write the figures here.
        threads: how many; all cores without.
    """
    _run("update", quick, csv, threads)


def step(*, quick: bool = False, csv: Path | None = None, threads: int | None = None) -> None:
    """One search step (estimator hard, rule adam) against the same algorithm in torch.

    Args:
        quick: fewer calls, and batches of 512 at most.
        csv: also write the figures here.
        threads: how many; all cores without.
    """
    _run("step", quick, csv, threads)


def scale(*, max_edges: int = 28, quick: bool = False, plot: Path | None = None, csv: Path | None = None) -> None:
    """Time and memory of a search step against edges, batch and threads, and a search at 10^8 edges.

    Args:
        max_edges: the largest network has 2^max_edges edges.
        quick: not past 2^20 edges, and fewer points.
        plot: draw the figures here (log-log).
        csv: also write the figures here.
    """
    if max_edges < scaling.SMALLEST:
        sys.exit(f"--max-edges must be at least {scaling.SMALLEST}, got {max_edges}")
    batches = (1, 64, 4096) if quick else tuple(4**k for k in range(7))
    pairs: list[tuple[scaling.Measured, scaling.Measured]] = []
    for point in scaling.points(min(max_edges, 20) if quick else max_edges, batches, torch.get_num_threads()):
        with Console(stderr=True).status(str(point)):
            try:
                pairs.append(scaling.measure(point, pairs[-1][1] if pairs else None))
            except (AssertionError, MemoryError) as error:
                sys.exit(str(error))
    scaling.print_pairs(pairs)
    if csv is not None:
        write_csv(csv, [m.record() for pair in pairs for m in pair])
    if plot is not None:
        scaling.plot(pairs, plot)


def cost() -> None:
    """What a search costs at 10^9 and 10^11 edges, by a model, and the model against what was measured."""
    costs.show()


def spectra(*, quick: bool = False, csv: Path | None = None, calls: int = 3) -> None:
    """Spectra of networks: exact, estimated, and of a network of 10^5 units.

    Args:
        quick: small networks.
        csv: also write the figures here.
        calls: of each contender; medians are told.
    """
    exact, quadrature, large = (
        ((78, 102, 102, 10), (100, 150, 150, 100), (640, 640))
        if quick
        else (graphs.EXACT, graphs.QUADRATURE, graphs.LARGE)
    )
    with Console(stderr=True).status("spectra"):
        rows = [
            graphs.exact(exact, 0.5, calls),
            *(graphs.quadrature(quadrature, density, calls) for density in graphs.DENSITIES),
            *graphs.large(large),
        ]
    facts = {**environment(), "threads": torch.get_num_threads()}
    print_table(
        f"spectra: medians, {', '.join(f'{key} {value}' for key, value in facts.items())}",
        ("<what", "<units", "density", "s", "<against", "ratio", "error", "its estimate", "peak GB"),
        [
            (
                row.what,
                row.sizes,
                f"{row.density:g}",
                f"{row.seconds:.3g}",
                row.peer,
                *("" if x is None else f"{x:.3g}" for x in (row.ratio, row.error, row.estimate)),
                "" if row.peak is None else f"{row.peak / 1e9:.2f}",
            )
            for row in rows
        ],
        "Normalised Laplacians. The error of exact spectra is the largest of any eigenvalue, of estimates Wasserstein-1. "
        "Peaks are over what the process had before it made the network.",
    )
    if csv is not None:
        write_csv(csv, [row.record() for row in rows])


def population(*, members: int = 64) -> None:
    """A population of searches on digits, 64-128-128-10, against the same searches one after the other.

    Args:
        members: of the population.
    """
    timed = populations.measure(members)
    if not timed.equal:
        sys.exit("no speed: a member differs from the search with its seed")
    facts = {**environment(), "threads": torch.get_num_threads()}
    print_table(
        f"population: {', '.join(f'{key} {value}' for key, value in facts.items())}",
        ("members", "together s", "one after the other s", "ratio"),
        [(str(members), " ".join(f"{s:.1f}" for s in timed.together), f"{timed.apart:.1f}", f"{timed.ratio:.2f}")],
        "From the data set to the results. The ratio is that of the median; all members equal the single searches.",
    )


def gpu(*, csv: Path | None = None, write_choices: bool = False) -> None:
    """Every kernel on the GPU at hand: checked, then run under compute-sanitizer, then timed.

    Args:
        csv: also write the figures here.
        write_choices: rewrite fastbin/choices.json by what was measured.
    """
    sys.exit(check_and_time(csv, write_choices))


def tune(*, seconds: float = 240.0) -> None:
    """Time tile shapes of the Triton kernels on the GPU at hand, and rewrite its entry of kernels/configs.json.

    Args:
        seconds: after which the kernels not yet tuned keep their tile shapes.
    """
    tune_all(seconds)


COMMANDS: dict[str, Callable[..., None]] = {
    "ops": ops, "update": update, "step": step, "scale": scale, "population": population, "cost": cost,
    "spectra": spectra, "gpu": gpu, "tune": tune,
}  # fmt: skip

if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m bench")
