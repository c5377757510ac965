"""Tile shapes of the Triton kernels by measurement: ``python -m bench tune`` times candidates for kernels/configs.json.

Only the entry of the GPU at hand is rewritten, and says from which card it comes. A candidate counts only if it gives what
the shipped one gives. float16 takes what is best for bfloat16. All candidates are compiled first, in as many processes as
there are cores, then timed on a GPU that does nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu_timing import EventTimer, Timer

SIZE = 4096  # rows and columns of the bits
LARGEST = 4096  # the batch that stands for the class without a bound
CANDIDATES = 32  # of a kernel, dtype and class of batches

Config = dict[str, int]


class Place(NamedTuple):
    """A configuration's place in an entry of configs.json."""

    kernel: str
    dtype: str
    bound: str


def candidates(kernel: str, shipped: Mapping[str, int]) -> list[Config]:
    """The shipped configuration, then at most `CANDIDATES` of its neighbours: tile sides, warps and stages around it."""
    choices: dict[str, tuple[int, ...]] = {
        "block_out": (64, 128, 256),
        "block_batch": (16,) if shipped.get("block_batch") == 16 else (64, 128, 256),
        "block_k": (32, 64, 128, 256),
        "block_r": (32, 64, 128),
        "block_c": (64, 128, 256),
        "block_b": (32, 64),
        "block_a": (64, 128, 256),
        "block_words": (2, 4, 8),
        "tile_words": (16, 32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3, 4),
    }
    if kernel in ("bit_linear", "bit_linear_t"):
        choices["programs"] = tuple({shipped["programs"], 2 * shipped["programs"], shipped["programs"] // 2})
    neighbours: list[Config] = []
    for first, second in itertools.combinations(shipped, 2):
        for a, b in itertools.product(choices.get(first, ()), choices.get(second, ())):
            changed = {**shipped, first: a, second: b}
            if changed != shipped and changed not in neighbours:
                neighbours.append(changed)
    random.Random(0).shuffle(neighbours)
    return [dict(shipped), *neighbours[:CANDIDATES]]


def best(call: Callable[[Config], Tensor], options: list[Config], timer: Timer) -> tuple[Config, float]:
    """The fastest of `options`, of which the first is the truth, and its seconds; what does not run loses."""
    truth = call(options[0])
    took = [_seconds(call, option, truth, timer) for option in options]
    fastest = min(range(len(options)), key=took.__getitem__)
    return options[fastest], took[fastest]


def _result(call: Callable[[Config], Tensor], option: Config) -> Tensor | None:
    """What a candidate gives; None if it cannot be compiled, or the GPU lacks the memory or registers for it."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        return call(option)
    except (OutOfResources, CompilationError, PTXASError):
        return None


def _seconds(call: Callable[[Config], Tensor], option: Config, truth: Tensor, timer: Timer) -> float:
    """Seconds of a candidate; infinity if it does not run, or its result is another."""
    got = _result(call, option)
    if got is None:
        return float("inf")
    if not torch.allclose(got.double(), truth.double(), rtol=1e-2, atol=1e-2 * float(truth.double().abs().max())):
        print(f"wrong with {option}: the shipped configuration gives another result", file=sys.stderr)
        return float("inf")
    return timer.seconds(lambda _: call(option), cold=True)


def _calls(kernel: str, dtype: torch.dtype, batch: int, device: str) -> Callable[[], Tensor]:
    """A call of a kernel through its host code, on operands of its own."""
    from fastbin import library
    from fastbin.kernels import bit_linear, bit_matmul, mask_grad_update, mask_update
    from fastbin.rules import Adam

    rule, device_ = Adam(), torch.device(device)
    words = torch.randint(-(2**31), 2**31, (SIZE, SIZE // 32), device=device).to(torch.int32)
    x = torch.randint(-8, 9, (batch, SIZE), device=device).to(dtype)
    if kernel == "bit_linear":
        return lambda: bit_linear.bit_linear(x, words)
    if kernel == "bit_linear_t":
        return lambda: bit_linear.bit_linear_t(x, words, SIZE)
    if kernel == "bit_matmul":
        return lambda: bit_matmul.bit_matmul(words, words)
    if kernel == "gradient":
        return lambda: mask_grad_update.gradient(x, x, SIZE, words)
    scores = torch.randn(SIZE, SIZE, device=device)
    bits = library.pack(scores, 0.0)
    buffers = [torch.zeros_like(scores) for _ in range(rule.buffer_count)]
    step, seed = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    rest: tuple[Any, ...] = (bits, buffers, step, seed, rule.hyper(1, device_), rule.name, rule.sample)

    def update() -> Tensor:
        # from the same start each time, so that all candidates give the same; the copies cost all of them alike
        step.zero_()
        for buffer in buffers:
            buffer.zero_()
        moved = scores.clone()
        if kernel == "mask_update":
            mask_update.mask_update_(moved, scores, *rest)
        else:
            mask_grad_update.mask_grad_update_(moved, x, x, *rest)
        return moved

    return update


@contextlib.contextmanager
def _caller(place: Place) -> Iterator[Callable[[Config], Tensor]]:
    """Calls of a place's kernel by one configuration or another, on operands of their own."""
    from fastbin.kernels import configs, mask_grad_update

    shipped = mask_grad_update.fused_pays, configs.find
    batch = LARGEST if place.bound == configs.UNBOUNDED else int(place.bound)
    call = _calls(place.kernel, getattr(torch, place.dtype), batch, "cuda")

    def run(config: Config) -> Tensor:
        configs.find = lambda *_: config
        return call()

    mask_grad_update.fused_pays = lambda *_: True
    try:
        yield run
    finally:
        mask_grad_update.fused_pays, configs.find = shipped


def _compiles(place: Place, option: Config) -> bool:
    """Whether a candidate can be compiled and launched; from then on Triton has it in its cache."""
    with _caller(place) as call:
        return _result(call, option) is not None


def tune_all(seconds: float, path: Path | None = None) -> None:
    """Tune the entry of the GPU at hand for about `seconds` at most, and write it to configs.json, or to `path`."""
    if not torch.cuda.is_available():
        sys.exit(f"bench tune needs a CUDA device, and torch {torch.__version__} finds none")
    from fastbin.kernels import configs

    started = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    table = copy.deepcopy(configs.table())
    entry: Any = copy.deepcopy(table[configs.device_name(0)])
    entry["origin"] = torch.cuda.get_device_name()
    options = {
        Place(kernel, dtype, bound): candidates(kernel, shipped)
        for kernel, dtypes in entry.items() if kernel != "origin"
        for dtype, classes in dtypes.items() if dtype != "float16"
        for bound, shipped in classes.items()
    }  # fmt: skip
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        # The candidates of all places in turn, so that where time runs out each place has some.
        turns = itertools.zip_longest(*([(place, option) for option in some] for place, some in options.items()))
        tried = {pool.submit(_compiles, *one): one for turn in turns for one in turn if one is not None}
        wait(tried, timeout=0.6 * seconds)
        pool.shutdown(cancel_futures=True)
    compiled = [one for future, one in tried.items() if not future.cancelled() and future.result()]
    print(f"{len(compiled)} of {len(tried)} candidates compiled in {time.perf_counter() - started:.0f} s", flush=True)
    timer = EventTimer()
    for place, some in options.items():
        if time.perf_counter() - started > seconds:
            print(f"{' '.join(place)}: no time left, not tuned")
            continue
        with _caller(place) as call:
            shipped, *others = some
            winner, took = best(call, [shipped, *(o for o in others if (place, o) in compiled)], timer)
        print(f"{' '.join(place)}: {took * 1e6:.1f} µs with {winner}", flush=True)
        entry[place.kernel][place.dtype][place.bound] = winner
    for dtypes in entry.values():
        if "float16" in dtypes:
            dtypes["float16"] = dtypes["bfloat16"]
    table[name] = entry
    (path or configs.PATH).write_text(json.dumps(table, indent=1) + "\n")
    print(f"wrote {name} to {path or configs.PATH}")
