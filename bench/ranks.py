"""A search step by several processes against one by this one alone: ``torchrun --nproc-per-node 2 -m bench.ranks``."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from bench.cost import exchanged
from bench.report import environment, print_table
from fastbin import SearchConfig
from fastbin.descent import Search
from fastbin.distributed import joined
from fastbin.rules import Rule
from fastbin.shards import SHARDS

WIDTHS, BATCHES, CALLS = [784, 2048, 2048, 10], (64, 512), 15


def main() -> None:
    """Print the medians of interleaved steps, on rank 0. The threads of each process are those of OMP_NUM_THREADS."""
    config = SearchConfig(hidden=tuple(WIDTHS[1:-1]), activation="relu")
    rule, generator = config.rule_at(0.0), torch.Generator().manual_seed(0)
    lines = []
    with joined("cpu", None) as ranks:
        searches: dict[str, Search] = {"alone": Search(config, WIDTHS)}
        searches |= {shard: make(ranks, config, WIDTHS) for shard, make in SHARDS.items()}
        for batch in BATCHES:
            x = torch.randn(batch, WIDTHS[0], generator=generator)
            y = torch.randint(WIDTHS[-1], (batch,), generator=generator)
            times: dict[str, list[float]] = {name: [] for name in searches}
            for _ in range(CALLS + 1):  # the first is not counted
                for name, search in searches.items():
                    if name != "alone" or ranks.rank == 0:
                        times[name].append(_seconds(search, x, y, rule))
                    ranks.agree("the beat")  # so that all begin the next one together
            ms = {name: 1e3 * statistics.median(t[1:]) for name, t in times.items() if t}
            for name in SHARDS:
                size = sum(map(sum, exchanged(WIDTHS, batch, name, 4))) / 1e6
                ratio = f"{ms.get('alone', 0) / ms[name]:.2f}"
                lines.append([str(batch), name, f"{ms.get('alone', 0):.3g}", f"{ms[name]:.3g}", ratio, f"{size:.3g}"])
    if ranks.rank == 0:
        facts = {**environment(), "ranks": ranks.size, "threads of each": torch.get_num_threads()}
        print_table(
            f"ranks: a search step {'-'.join(map(str, WIDTHS))}, {', '.join(f'{k} {v}' for k, v in facts.items())}",
            ("batch", "<shared", "one process ms", "all ms", "ratio", "MB exchanged"),
            lines,
        )


def _seconds(search: Search, x: Tensor, y: Tensor, rule: Rule) -> float:
    started = time.perf_counter()
    search.step(x, y, rule)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
