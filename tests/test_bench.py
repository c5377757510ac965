"""The benchmarks: every case is right at small sizes, and what is wrong or missing gets no speed."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import __main__ as commands
from bench import cases, machine, peers, population, products, scale, spectra
from bench.case import OURS, Case
from bench.products import Product
from bench.run import Row, run_case
from bench.steps import Step
from bench.timing import Effort, measure
from bench.updates import Update
from fastbin import SearchConfig, backends, ops
from fastbin.rules import SGD, Adam, Bop

TINY = Effort(seconds=0.0, calls=2, cap=0.0, few=2)
PACKAGES = {
    "scipy.sparse fp32": ("scipy",),
    "onnxruntime 2-bit": ("onnxruntime", "onnx"),
    "onnxruntime 2-bit, x to int8": ("onnxruntime", "onnx"),
    "numkong uint1": ("numkong",),
}
ALL = [case.small() for table in cases.TABLES.values() for case in table]
SMALL = Product("bit_linear", 5, 77, 69)


def installed(contender: str) -> bool:
    return all(importlib.util.find_spec(name) for name in PACKAGES.get(contender, ()))


@pytest.fixture(autouse=True)
def _limits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are tested by themselves; measuring them takes half a second a case."""
    monkeypatch.setattr(machine, "fma_rate", lambda: 1e10)
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1e10)
    monkeypatch.setattr(machine, "read_seconds", lambda size: size / 1e10)


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TABLES", {"ops": (SMALL,)})
    monkeypatch.setattr(commands, "QUICK", TINY)


# ---------------------------------------------------------------------------------------------------------------- cases


def test_every_shape_of_the_results_is_registered() -> None:
    sizes = [
        (4096, 2048, 2048), (512, 784, 2048), (256, 1024, 1024), (8, 1024, 1024), (1, 1024, 1024), (1, 4096, 4096),
        (1, 16384, 16384),
    ]  # fmt: skip
    wanted: list[Case] = [
        *(Product("bit_linear", *size) for size in sizes),
        Product("bit_linear", 4096, 2048, 2048, dtype="int8"),
        Product("bit_linear_t", 4096, 2048, 2048),
        *(Product(op, 256, 2048, 2048) for op in ("ternary_linear", "sign_linear")),
        *(Product("bit_matmul", 4096, 2048, 2048, dtype="bits", threads=n) for n in (None, 1)),
        *(Update("mask_update_", 0, 4096, 4096, rule=r) for r in (Adam(), Adam(sample=True), SGD(), Bop())),
        *(Update("mask_grad_update_", 512, 2048, 2048, dtype=dtype) for dtype in ("fp32", "bits")),
        *(Step("search step", 512, 784, 10, hidden=(2048, 2048), activation=a) for a in ("relu", "step")),
        Step("search step", 64, 784, 10, hidden=(256, 256)),
    ]
    registered = [case for table in cases.TABLES.values() for case in table]
    assert [str(case) for case in wanted if case not in registered] == []
    assert len({str(case) for case in registered}) == len(registered)


@pytest.mark.parametrize("case", dict.fromkeys(ALL), ids=str)
def test_every_contender_is_right(case: Case) -> None:
    names = []
    for name, make in case.contenders().items():
        names.append(name)
        if name == "torch.compile fp32":  # half a minute of compiling; the benchmark checks it before it times it
            continue
        if installed(name):
            make().check()
        else:
            with pytest.raises(ImportError):
                make()
    assert names[0] == OURS and len(names) > 1


def test_rates_and_limits() -> None:
    assert Product("bit_linear", 4000, 1000, 500).work == 2.0
    assert Product("bit_linear", 4000, 1000, 500).limit() == pytest.approx(2e9 / (5 * 1e10))
    assert Product("ternary_linear", 4000, 1000, 500).limit() == pytest.approx(2 * 2e9 / (5 * 1e10))
    assert Product("bit_linear", 4000, 1000, 500, dtype="int8").limit() == pytest.approx(2e9 / (10 * 1e10))
    assert Product("bit_linear", 1, 800, 800).limit() == pytest.approx((800 * 800 / 8 + 8 * 800) / 1e10)
    edges = 1000 * 1000
    for rule, moved in ((Adam(), 28.25), (SGD(), 20.25), (Bop(), 12.25)):
        update = Update("mask_update_", 0, 1000, 1000, rule=rule)
        assert update.work == pytest.approx(moved * edges / 1e9)
        assert update.limit() == pytest.approx(moved * edges / 1e10)
    assert Update("mask_grad_update_", 500, 1000, 1000).limit() == pytest.approx(500 * edges / 1e10)
    assert Update("mask_grad_update_", 10, 1000, 1000).limit() == pytest.approx(24.25 * edges / 1e10)
    assert Step("search step", 100, 40, 10, hidden=(20,)).work == pytest.approx(100 * (3 * 1000 - 800) / 1e9)


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert machine.fma_rate() > 1e8
    assert machine.copy_bandwidth() > 1e8
    assert 0 < machine.read_seconds(2**12) < machine.read_seconds(2**26) < 1


# -------------------------------------------------------------------------------------------------------------- judging


def rows_of(case: Case) -> dict[str, Row]:
    return {row.contender: row for row in run_case(case, TINY)}


def test_right_contenders_are_timed() -> None:
    rows = rows_of(SMALL)
    for name, row in rows.items():
        assert (row.timing is not None) == (row.problem == "") == installed(name)
        assert row.timing is None or 0 < row.timing.p20 <= row.timing.p50 <= row.timing.p80
    ours, peer = rows[OURS], rows["torch fp32"]
    assert ours.timing and peer.timing and ours.rate and ours.share and ours.ratio is None
    assert peer.ratio == peer.timing.p50 / ours.timing.p50
    assert ours.rate == SMALL.work / ours.timing.p50


def test_a_wrong_product_of_ours_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.bit_linear

    def wrong(x: Tensor, w: ops.BitMatrix) -> Tensor:
        y = right(x, w)
        y[-1, -1] += 1e-3
        return y

    monkeypatch.setattr(ops, "bit_linear", wrong)
    rows = rows_of(SMALL)
    assert rows[OURS].error and rows[OURS].problem.startswith("wrong: ")
    assert rows[OURS].timing is rows[OURS].rate is rows[OURS].share is None
    assert rows["torch fp32"].timing is not None and rows["torch fp32"].ratio is None


@pytest.mark.parametrize("case", [c for c in ALL if isinstance(c, Update)], ids=str)
def test_a_wrong_update_of_ours_has_no_speed(case: Update, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Tensor] = getattr(ops, case.op)

    def wrong(*args: object) -> Tensor:
        flips = right(*args)
        return flips if backends.requested() == "reference" else flips + 1

    monkeypatch.setattr(ops, case.op, wrong)
    assert rows_of(case)[OURS].problem.startswith("wrong: flips")


@pytest.mark.parametrize("name", ["torch fp32", "torch bf16", "torch int8"])
def test_a_wrong_peer_has_no_speed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = products.DENSE[name]

    def factory(x: Tensor, matrix: Tensor) -> peers.Peer:
        return right(x, ~matrix)

    monkeypatch.setitem(products.DENSE, name, factory)
    rows = rows_of(SMALL)
    assert rows[name].error and rows[name].timing is None and rows[name].ratio is None
    assert rows[OURS].timing is not None


def test_a_peer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(x: Tensor, matrix: Tensor) -> peers.Peer:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setitem(products.DENSE, "torch fp32", factory)
    row = rows_of(SMALL)["torch fp32"]
    assert row.problem == "failed: RuntimeError: no such operator" and row.error


def test_calls_of_slow_contenders_are_few() -> None:
    effort = Effort(seconds=0.0, calls=20, cap=0.1, few=3)
    times = measure({"slow": lambda: time.sleep(0.06), "fast": lambda: None}, effort)
    assert times["slow"].calls == 3 and 0.06 <= times["slow"].p20 <= times["slow"].p80 < 0.2
    assert times["fast"].calls >= 20


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.usefixtures("one_case")
def test_ops_prints_a_table_and_writes_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ops.csv"
    commands.ops(quick=True, csv=path)
    printed = capsys.readouterr().out
    assert "| case " in printed and "| bit_linear 5, 77, 69 " in printed and "| torch fp32 " in printed
    assert "| 1, 32, 32 " in printed  # what a call costs from Python
    with path.open() as file:
        rows = list(csv.DictReader(file))
    wanted = {
        "table", "op", "batch", "inputs", "outputs", "dtype", "contender", "threads", "p20_ms", "p50_ms", "p80_ms", "calls",
        "rate", "unit", "ratio", "share_of_limit", "problem", "cpu", "isa", "torch", "fastbin", "commit",
    }  # fmt: skip
    assert wanted <= rows[0].keys()
    assert [row["contender"] for row in rows] == list(SMALL.contenders())
    ours, peer = rows[:2]
    assert float(peer["ratio"]) == pytest.approx(float(peer["p50_ms"]) / float(ours["p50_ms"]))
    assert (ours["threads"], ours["torch"]) == (str(torch.get_num_threads()), torch.__version__)


@pytest.mark.usefixtures("one_case")
def test_a_wrong_result_is_an_error_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ops.bit_linear
    monkeypatch.setattr(ops, "bit_linear", lambda x, w: right(x, w) + 1)
    with pytest.raises(SystemExit) as exit_info:
        commands.ops(quick=True)
    assert "bit_linear 5, 77, 69, fastbin: wrong: " in str(exit_info.value.code)  # a message: the exit status is 1
    assert "wrong: bit_linear" in capsys.readouterr().out


@pytest.mark.usefixtures("one_case")
def test_missing_peers_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    commands.ops(quick=True, csv=tmp_path / "ops.csv")
    assert "Missing peers: " in (printed := capsys.readouterr().out)
    assert "scipy.sparse fp32 (missing: import of scipy" in printed.replace("\n", " ")
    assert "scipy.sparse fp32" in (tmp_path / "ops.csv").read_text()


# ---------------------------------------------------------------------------------------------------------------- scale


def test_points_of_scale() -> None:
    points = scale.points(28, (1, 4096), cores=6)
    edges = [p.edges for p in points if p.series == "edges"]
    wanted = [*(2**k for k in range(16, 27, 2)), 10**8, 2**28]
    assert len(edges) == len(wanted)
    assert all(math.isclose(a, b, rel_tol=5e-3) for a, b in zip(edges, wanted, strict=True))
    assert [p.batch for p in points if p.series == "batch"] == [1, 4096]
    assert [p.threads for p in points if p.series == "threads"] == [1, 2, 4, 6]


def test_scale_measures_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = scale.Point("edges", "fastbin", 600, 3, 1)
    monkeypatch.setattr(scale, "points", lambda *_: [point])
    commands.scale(quick=True, csv=tmp_path / "scale.csv")
    assert "| edges " in capsys.readouterr().out
    with (tmp_path / "scale.csv").open() as file:
        ours, dense = csv.DictReader(file)
    assert (ours["contender"], dense["contender"]) == ("fastbin", "dense torch")
    assert ours["edges"] == dense["edges"] == "366000"
    words = 600 * 19 + 10 * 19
    assert int(ours["state_bytes"]) == 366000 * 12 + 4 * words + 2 * 8  # and a counter for each layer
    assert int(dense["state_bytes"]) == 366000 * 24
    assert ours["peak_is"] == dense["peak_is"] == "measured"
    assert int(ours["state_bytes"]) * 0.8 < int(ours["peak_bytes"]) < int(dense["peak_bytes"]) < 366000 * 100


def fake(losses: Mapping[str, float]) -> Callable[[scale.Point], scale.Measured]:
    return lambda p: scale.Measured(p, losses[p.contender], 1.0, 12 * p.edges, 16 * p.edges)


def test_scale_compares_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    point = scale.Point("edges", "fastbin", 100, 3, 1)
    monkeypatch.setattr(scale, "_in_a_process", fake({"fastbin": 2.0, "dense torch": 2.001}))
    assert [m.seconds for m in scale.measure(point, None)] == [1.0, 1.0]
    monkeypatch.setattr(scale, "_in_a_process", fake({"fastbin": 2.0, "dense torch": 2.1}))
    with pytest.raises(AssertionError, match=r"the first loss is 2\.0, dense torch's 2\.1"):
        scale.measure(point, None)


def test_scale_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_in_a_process", fake({"fastbin": 2.0, "dense torch": 2.0}))
    scale.plot([scale.measure(p, None) for p in scale.points(20, (1, 16, 256), cores=4)], tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_scale_models_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "_in_a_process", fake({"fastbin": 2.0, "dense torch": 2.0}))
    small, large = scale.Point("edges", "fastbin", 90, 3, 1), scale.Point("edges", "fastbin", 2090, 3, 1)
    before = scale.measure(small, None)[1]
    monkeypatch.setitem(scale.NEED, "dense torch", 2**40)
    dense = scale.measure(large, before)[1]
    assert (dense.seconds, dense.state, dense.peak) == (None, 12 * large.edges, 16 * large.edges)
    assert dense.record()["peak_is"] == "modelled" and dense.point == replace(large, contender="dense torch")
    monkeypatch.setitem(scale.NEED, "fastbin", 2**40)
    with pytest.raises(MemoryError, match=r"4389000 edges may need .* lower --max-edges"):
        scale.measure(large, before)


def test_scale_refuses_too_small_a_bound() -> None:
    with pytest.raises(SystemExit, match="--max-edges must be at least 16, got 3"):
        commands.scale(max_edges=3)


# -------------------------------------------------------------------------------------------------------------- spectra


def test_spectra() -> None:
    graph = spectra.network((64, 48, 10), 0.5)
    assert graph.sizes == (64, 48, 10) and abs(graph.edges / (64 * 48 + 480) - 0.5) < 0.05
    exact = spectra.exact((20, 30, 10), 0.5, 1)
    assert exact.error is not None and exact.error <= 1e-10 and exact.ratio is not None and exact.seconds > 0
    estimate = spectra.quadrature((20, 30, 10), 0.5, 2)
    assert estimate.error is not None and estimate.estimate is not None and 0 < estimate.error <= 2 * estimate.estimate
    rows = spectra._large((96, 64))
    assert [row.what.split()[0] for row in rows] == ["quadrature", "two", "components"]
    assert all(row.peak is not None and row.seconds > 0 and row.record()["table"] == "spectra" for row in rows)


def test_a_population_is_timed_beside_equal_searches():
    timed = population.measure(3, SearchConfig(hidden=(8,), epochs=1))
    assert timed.equal and len(timed.together) == 3 and timed.ratio > 0
