"""The cost model of searches: its bytes against those of searches, its times against stored measurements."""

import math

import pytest
import torch

from bench import cost
from fastbin import SearchConfig
from fastbin.descent import Search
from fastbin.distributed import Ranks
from fastbin.shards import SHARDS

WIDTHS = [20, 14, 9, 3]


class Counting(Ranks):
    """Rank 0 of two, the other one of which sends nothing but zeros; counts bytes."""

    def __init__(self):
        self.rank, self.size = 0, 2
        self.summed, self.gathered = [], []

    def sum_(self, t):
        self.summed.append(t.nbytes)
        return t

    def gather(self, rows, n):
        whole = rows.new_zeros((n, *rows.shape[1:]))
        whole[: len(rows)] = rows
        self.gathered.append(whole.nbytes)
        return whole


@pytest.mark.parametrize(("activations", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("shard", SHARDS)
def test_a_step_exchanges_what_the_model_says(shard, activations, size):
    ranks = Counting()
    config = SearchConfig(hidden=tuple(WIDTHS[1:-1]), activations=activations)
    search = SHARDS[shard](ranks, config, WIDTHS)
    search.step(torch.randn(16, 20, dtype=getattr(torch, activations)), torch.arange(16) % 3, config.rule_at(0.0))
    gathered, summed = cost.exchanged(WIDTHS, 16, shard, size)
    assert ranks.gathered == gathered
    assert ranks.summed == (summed if shard == "rows" else [4 * cost.edges(WIDTHS)])


@pytest.mark.parametrize("rule", cost.STATE)
def test_a_search_keeps_what_the_model_says(rule):
    widths = [64, 32, 32]  # whole words
    tensors = Search(SearchConfig(hidden=(32,), rule=rule), widths).tensors()
    kept = sum(t.nbytes for name, t in tensors.items() if not name.endswith(".step"))
    assert kept == cost.STATE[rule] * cost.edges(widths) == cost.STATE[rule] * 3072
    assert cost.memory(widths, rule=rule) == kept + 2 * 3072 / 8


def test_the_model_is_within_a_factor_of_two_of_what_was_measured():
    checks = list(cost.checks())
    assert {check.where for check in checks} == {"Zen 3", "H100"}
    for check in checks:
        assert check.model / 1.1 < check.measured < 2 * check.model, check
        assert not check.what.startswith("bytes") or check.measured == pytest.approx(check.model, rel=1e-3)


def test_steps_by_hand():
    cpu = cost.Processor(bits=4e9, dense=1e9, bandwidth=1e9, activation=4)
    alone = cost.step(cpu, [10, 20, 5], batch=8)
    # Both layers forward and their gradients, the second backward.
    assert alone.products == pytest.approx(8 * (300 / 4e9 + 300 / 1e9 + 100 / 4e9))
    assert alone.update == pytest.approx(300 * 24.25 / 1e9)
    assert alone.elementwise == pytest.approx(15 * 4 * 8 * 25 / 1e9)
    assert alone.exchange == 0
    links = cost.Links(inside=1e9, between=1e8, latency=1e-3)
    shared = cost.step(cpu, [10, 20, 5], batch=8, shard="batch", ranks=4, links=links)
    assert shared.products == pytest.approx(alone.products / 4)
    assert shared.update == pytest.approx(300 * 32.25 / 1e9)
    assert shared.exchange == pytest.approx(2 * (3 / 4 * 1200 / 1e9 + 2e-3))
    rows = cost.step(cpu, [10, 20, 5], batch=8, shard="rows", ranks=16, links=links)
    assert rows.update == pytest.approx(alone.update / 16) and rows.elementwise == alone.elementwise
    assert rows.exchange == pytest.approx(15 / 16 * (4 * 8 * 25 + 2 * 4 * 8 * 20) / 1e8 + 4 * 4e-3)


def test_square():
    for size in (1e6, 1e9, 1e11):
        widths = cost.square(size)
        assert len(set(widths[:-1])) == 1 and widths[-1] == 10
        assert math.isclose(cost.edges(widths), size, rel_tol=0.02)


def test_tables(capsys):
    cost.show()
    out = capsys.readouterr().out
    assert out.count("| 1e+09") == out.count("| 1e+11") == 10 and 0 < out.count("does not fit") < 10
