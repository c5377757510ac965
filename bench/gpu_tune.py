"""Tile shapes of the Triton kernels by measurement: ``python -m bench tune`` times candidates for kernels/configs.json.

Only the entry of the GPU at hand is rewritten, and says from which card it comes. A candidate counts only if it gives what
the shipped one gives. float16 takes what is best for bfloat16.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu_timing import EventTimer, Timer

SIZE = 4096  # rows and columns of the bits
LARGEST = 4096  # the batch that stands for the class without a bound

Config = dict[str, int]


def candidates(kernel: str, dtype: str, shipped: Mapping[str, int]) -> Iterator[Config]:
    """The shipped configuration, then its neighbours: tile sides, warps and stages around it."""
    yield dict(shipped)
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
    names = list(shipped)
    for first, second in itertools.combinations(names, 2):
        for a, b in itertools.product(choices.get(first, ()), choices.get(second, ())):
            changed = {**shipped, first: a, second: b}
            if changed != shipped:
                yield changed


def best(
    call: Callable[[Config], Tensor], options: Iterator[Config], timer: Timer, until: float
) -> tuple[Config, float]:
    """The fastest of `options`, of which the first is the truth, and its seconds; what cannot be compiled loses."""
    shipped = next(options)
    truth, winner, fastest = call(shipped), shipped, timer.seconds(lambda _: call(shipped), cold=True)
    seen = [shipped]
    for option in options:
        if time.perf_counter() > until:
            break
        if option in seen:
            continue
        seen.append(option)
        seconds = _seconds(call, option, truth, timer)
        if seconds < fastest:
            winner, fastest = option, seconds
    return winner, fastest


def _seconds(call: Callable[[Config], Tensor], option: Config, truth: Tensor, timer: Timer) -> float:
    """Seconds of a candidate; infinity if the GPU lacks the memory or registers for it, or its result is another."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        got = call(option)
    except (OutOfResources, CompilationError, PTXASError):
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


def tune_all(seconds: float, path: Path | None = None) -> None:
    """Tune the entry of the GPU at hand for `seconds` at most, and write it to configs.json, or to `path`."""
    if not torch.cuda.is_available():
        sys.exit(f"bench tune needs a CUDA device, and torch {torch.__version__} finds none")
    from fastbin.kernels import configs, mask_grad_update

    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    table = copy.deepcopy(configs.table())
    entry: Any = copy.deepcopy(table[configs.device_name(0)])
    entry["origin"] = torch.cuda.get_device_name()
    timer, until = EventTimer(), time.perf_counter() + seconds
    places = [
        (kernel, dtype, bound)
        for kernel, dtypes in entry.items() if kernel != "origin"
        for dtype, classes in dtypes.items() if dtype != "float16" for bound in classes
    ]  # fmt: skip
    fused = mask_grad_update.fused_pays
    mask_grad_update.fused_pays = lambda *_: True
    shipped_find = configs.find
    try:
        for i, (kernel, dtype, bound) in enumerate(places):
            call = _calls(kernel, getattr(torch, dtype), LARGEST if bound == configs.UNBOUNDED else int(bound), "cuda")

            def run(config: Config, call: Callable[[], Tensor] = call) -> Tensor:
                configs.find = lambda *_: config
                return call()

            options = candidates(kernel, dtype, entry[kernel][dtype][bound])
            share = until - time.perf_counter()
            winner, took = best(run, options, timer, time.perf_counter() + max(share, 0) / (len(places) - i))
            print(f"{kernel} {dtype} {bound}: {took * 1e6:.1f} µs with {winner}", flush=True)
            entry[kernel][dtype][bound] = winner
    finally:
        mask_grad_update.fused_pays, configs.find = fused, shipped_find
    for dtypes in entry.values():
        if "float16" in dtypes:
            dtypes["float16"] = dtypes["bfloat16"]
    table[name] = entry
    (path or configs.PATH).write_text(json.dumps(table, indent=1) + "\n")
    print(f"wrote {name} to {path or configs.PATH}")
