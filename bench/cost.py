"""What a search costs, by a model: bytes and operations an edge, and the time of a step on one or many processors.

The model is a roofline whose parts are added up: a step's products at the rate of a large one, and the bytes that its update
and its elementwise functions move at the bandwidth of a large copy, then what ranks exchange at the bandwidth of a link. It
leaves out launches, caches and waiting: it says how fast a step can be at best. `checks` sets it against what was measured.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.report import print_table

RESULTS = Path(__file__).parent / "results"

# Bytes an edge that a search keeps: a bit, and float32 numbers: the score, and what the rule remembers.
STATE = {"adam": 0.125 + 3 * 4, "sgd": 0.125 + 2 * 4, "bop": 0.125 + 4}
GRADIENT = 4  # bytes an edge of a gradient that is stored, as it is for an exchange
FOUND = 2 * 0.125  # bytes an edge of the bits of the last epoch, and of the best one: whole on each rank
# Tensors of a hidden layer's size that a step reads or writes outside of products, and as their operands: forward 7 (a is
# written; the norm reads and writes, so does the activation; the next products read), backward 8 (a product writes; the
# activation reads two and writes; the norm likewise; the update reads).
PASSES = 15
HELD = 3  # of these tensors, that a layer keeps for the way back: a, z and h
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Processor:
    """What one processor reaches, in products or bytes a second.

    Attributes:
        bits: multiply-adds of a large product with bits.
        dense: multiply-adds of a large dense product.
        bandwidth: bytes that a large copy moves, read and written ones counted.
        activation: bytes of a number in a hidden layer.
        memory: bytes; infinite where it does not matter.
    """

    bits: float
    dense: float
    bandwidth: float
    activation: int
    memory: float = math.inf


@dataclass(frozen=True)
class Links:
    """What joins processors. Each number is a maker's, or a guess: nothing of it was measured.

    Attributes:
        inside: bytes a second that each GPU of a node sends and receives (NVLink).
        between: bytes a second that each node sends and receives (one 400 Gb/s adapter a GPU).
        latency: seconds of an exchange for each doubling of the ranks.
    """

    inside: float = 450e9
    between: float = GPUS_A_NODE * 50e9
    latency: float = 10e-6

    def ring(self, size: float, ranks: int) -> float:
        """Seconds in which each rank gets what all others have of `size` bytes: one way round a ring."""
        rate = self.inside if ranks <= GPUS_A_NODE else min(self.inside, self.between)
        return (ranks - 1) / ranks * size / rate + self.latency * math.ceil(math.log2(ranks))


def measured(table: str, column: str, **where: str) -> float:
    """A figure of bench/results, of ours unless `contender` says whose."""
    wanted = {"contender": "fastbin", **where}
    with (RESULTS / f"{table}.csv").open() as file:
        (row,) = (r for r in csv.DictReader(file) if all(r[name] == value for name, value in wanted.items()))
    return float(row[column])


def zen3() -> Processor:
    """The two cores of bench/results."""
    product = "bit_linear 4096, 2048, 2048"
    update = {"case": "mask_update_ adam 4096 × 4096 edges"}
    bandwidth = measured("update", "rate", **update) / measured("update", "share_of_limit", **update)
    rates = [measured("ops", "rate", case=product, contender=who) for who in ("fastbin", "torch fp32")]
    return Processor(1e9 * rates[0], 1e9 * rates[1], 1e9 * bandwidth, activation=4)


# An H100 80GB with bf16 activations: 786 TFLOP/s and 3.03 TB/s, as the README has them.
H100 = Processor(bits=393e12, dense=393e12, bandwidth=3.03e12, activation=2, memory=80e9)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by what they go to."""

    products: float
    update: float
    elementwise: float
    exchange: float = 0.0

    @property
    def seconds(self) -> float:
        return self.products + self.update + self.elementwise + self.exchange


def edges(widths: Sequence[int]) -> int:
    """Possible edges of a network."""
    return sum(a * b for a, b in pairwise(widths))


def update_bytes(rule: str, stored: bool) -> float:
    """Bytes an edge that an update moves: all it keeps read and written, and the gradient read where it is stored."""
    return 2 * STATE[rule] + GRADIENT * stored


def step(
    on: Processor, widths: Sequence[int], batch: int, shard: str = "batch", ranks: int = 1, links: Links | None = None
) -> Step:
    """The time of a step of a search, estimator hard and rule adam, its batch or its rows divided among ranks."""
    links = links or Links()
    all_edges, hidden = edges(widths), sum(widths[1:])
    samples = math.ceil(batch / ranks) if shard == "batch" else batch
    mine = all_edges if shard == "batch" else all_edges / ranks
    behind_first = (all_edges - widths[0] * widths[1]) * mine / all_edges  # edges that a derivative goes back through
    products = samples * ((mine + behind_first) / on.bits + mine / on.dense)
    elementwise = PASSES * on.activation * samples * hidden / on.bandwidth
    stored = shard == "batch" and ranks > 1
    update = (update_bytes("adam", stored) + GRADIENT * stored) * mine / on.bandwidth  # a product writes what is stored
    if ranks == 1:
        return Step(products, update, elementwise)
    gathered, summed = exchanged(widths, batch, shard, on.activation)
    # A sum goes round the ring twice: to be made, and to be handed out.
    rounds = [links.ring(size, ranks) for size in (*gathered, *summed, *summed)]
    return Step(products, update, elementwise, sum(rounds))


def exchanged(widths: Sequence[int], batch: int, shard: str, activation: int) -> tuple[list[int], list[int]]:
    """Bytes of what a step puts together from the ranks' parts, and of what it sums over ranks, message by message."""
    if shard == "batch":
        return [], [GRADIENT * edges(widths)]
    return [activation * batch * n for n in widths[1:]], [4 * batch * n for n in widths[-2:0:-1]]


def memory(widths: Sequence[int], shard: str = "batch", ranks: int = 1, rule: str = "adam") -> float:
    """Bytes that a rank keeps of a search from step to step."""
    kept = STATE[rule] / ranks if shard == "rows" else STATE[rule] + GRADIENT * (ranks > 1)
    return (kept + FOUND) * edges(widths)


def held(on: Processor, widths: Sequence[int], batch: int, shard: str = "batch", ranks: int = 1) -> float:
    """Bytes of hidden layers that a rank holds during a step."""
    samples = math.ceil(batch / ranks) if shard == "batch" else batch
    return HELD * on.activation * samples * sum(widths[1:])


def square(all_edges: float, layers: int = 3, classes: int = 10) -> list[int]:
    """Widths n, n, .., classes of a network with about so many edges."""
    n = round(math.sqrt(all_edges / layers))
    return [n] * (layers + 1) + [classes]


@dataclass(frozen=True)
class Check:
    """One figure by the model and by measurement."""

    what: str
    where: str
    model: float
    measured: float


def checks() -> Iterator[Check]:
    """The model against what bench/results and the README have."""
    cpu, where = zen3(), "Zen 3"
    for row in ("67108839", "99999975", "268435431"):
        n = math.isqrt(int(row))
        state = measured("scale", "state_bytes", series="edges", edges=row)
        yield Check(f"bytes kept, {int(row):.1e} edges", where, STATE["adam"] * int(row), state)
        seconds = measured("scale", "p50_ms", series="edges", edges=row) / 1e3
        yield Check(f"step, {int(row):.1e} edges, batch 64", where, step(cpu, [n - 5, n - 5, 10], 64).seconds, seconds)
    for widths, batch in (([784, 2048, 2048, 10], 512), ([784, 1024, 1024, 10], 128)):
        case = f"search step {'-'.join(map(str, widths))}, batch {batch}, relu"
        seconds = measured("step", "p50_ms", case=case) / 1e3
        yield Check(case.removeprefix("search "), where, step(cpu, widths, batch).seconds, seconds)
    case = "mask_grad_update_ adam 512, 2048, 2048"
    model = 2048**2 * (512 / cpu.dense + update_bytes("adam", False) / cpu.bandwidth)
    yield Check(case, where, model, measured("update", "p50_ms", case=case) / 1e3)
    # Measured on an H100: README, "On GPUs".
    yield Check("bit_linear bf16 4096 × 8192²", "H100", 4096 * 8192**2 / H100.bits, 640e-6)
    yield Check("mask_update_ adam 8192²", "H100", update_bytes("adam", True) * 8192**2 / H100.bandwidth, 651e-6)
    model = 4096**2 * (256 / H100.dense + update_bytes("adam", False) / H100.bandwidth)
    yield Check("mask_grad_update_ adam bf16 256 × 4096²", "H100", model, 164e-6)
    model = step(H100, [4096] * 4 + [10], 256).seconds
    yield Check("step 4096-4096-4096-4096-10, batch 256, older kernels", "H100", model, 1.00e-3)


def show() -> None:
    """Print the model: checks, then costs an edge, then searches at scale."""
    print_table(
        "cost: the model against measurement",
        ("<what", "<where", "model", "measured", "measured / model"),
        [
            (c.what, c.where, _quantity(c, c.model), _quantity(c, c.measured), f"{c.measured / c.model:.2f}")
            for c in checks()
        ],
        "The rates of the Zen 3 are those of its own large products and copies, likewise the H100's.",
    )
    print_table(
        "cost: bytes and operations an edge",
        ("<rule", "kept", "kept, batch shared", "moved by a step", "moved, gradient stored", "multiply-adds a sample"),
        [
            (
                rule,
                f"{kept:g}",
                f"{kept + GRADIENT:g}",
                f"{2 * kept:g}",
                f"{update_bytes(rule, True) + GRADIENT:g}",
                "3",
            )
            for rule, kept in STATE.items()
        ],
        "Behind the first layer; that one needs no product backwards, so 2 multiply-adds.",
    )
    print_table(
        "cost: searches on H100s, rule adam, bf16, four layers n-n-n-n-10, by the model",
        (
            "edges",
            "batch",
            "GPUs",
            "<shared",
            "GB a GPU",
            "products",
            "update",
            "elementwise",
            "exchange",
            "ms",
            "<an epoch",
        ),
        [
            line
            for size in (1e9, 1e11)
            for batch in (1024, 16384)
            for ranks in (1, 8, 1024)
            for line in _searches(size, batch, ranks)
        ],
        "ms a step, and what of it goes where; an epoch is 60,000 samples, without validation and checkpoint. Memory is "
        "without the data. No time of an exchange, between GPUs of a node or between nodes, was ever measured.",
    )


SAMPLES = 60_000


def _searches(size: float, batch: int, ranks: int) -> Iterator[list[str]]:
    widths = square(size)
    for shard in ("batch", "rows") if ranks > 1 else ("batch",):
        s = step(H100, widths, batch, shard, ranks)
        need = memory(widths, shard, ranks) + held(H100, widths, batch, shard, ranks)
        head = [f"{size:.0e}", str(batch), str(ranks), shard if ranks > 1 else "", f"{need / 1e9:.3g}"]
        if need > H100.memory:
            yield [*head, "", "", "", "", "", "does not fit"]
            continue
        parts = [f"{1e3 * t:.3g}" for t in (s.products, s.update, s.elementwise, s.exchange, s.seconds)]
        yield [*head, *parts, f"{math.ceil(SAMPLES / batch) * s.seconds:.3g} s"]


def _quantity(check: Check, value: float) -> str:
    return f"{value / 1e6:.4g} MB" if check.what.startswith("bytes") else f"{1e3 * value:.3g} ms"
