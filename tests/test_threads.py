"""Many threads that call the ops at once, as a server or a data loader would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from fastbin import BitMatrix, backends, ops
from fastbin.rules import SGD, Adam, Bop

THREADS = 10
ROUNDS = 8


def operands(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch, rows, cols = 40 + seed, 130 + 3 * seed, 97 + 5 * seed  # of more than one task, no two alike
    return {
        "w": torch.randint(0, 2, (rows, cols), generator=g, dtype=torch.uint8),
        "other": torch.randint(0, 2, (rows + 1, cols), generator=g, dtype=torch.uint8),
        "x": torch.randn(batch, cols, generator=g),
        "gy": torch.randn(batch, rows, generator=g),
        "grad": torch.randn(rows, cols, generator=g),
        "scores": torch.randn(rows, cols, generator=g),
    }


def updated(t: dict[str, Tensor], rule: SGD | Adam | Bop, fused: bool) -> list[Tensor]:
    scores = None if isinstance(rule, Bop) else t["scores"].clone()
    w = BitMatrix.pack(t["w"] if scores is None else scores, None if scores is None else 0.0)
    state = rule.init_state(w, 5)
    for _ in range(2):
        if fused:
            flips = ops.mask_grad_update_(scores, t["gy"], t["x"], w, state, rule)
        else:
            flips = ops.mask_update_(scores, t["grad"], w, state, rule)
    return [w.words, flips, state.step, *state.buffers, *([] if scores is None else [scores])]


def both(t: dict[str, Tensor]) -> tuple[BitMatrix, BitMatrix]:
    return BitMatrix.pack(t["w"]), BitMatrix.pack(t["other"])


CALLS: dict[str, Callable[[dict[str, Tensor]], list[Tensor]]] = {
    "pack, unpack": lambda t: [BitMatrix.pack(t["x"], 0.0).words, BitMatrix.pack(t["w"]).unpack()],
    "transpose, popcount": lambda t: [both(t)[0].T.words, both(t)[0].count()],
    "bit_linear": lambda t: [ops.bit_linear(t["x"], both(t)[0]), ops.bit_linear(t["x"][:3], both(t)[0])],
    "bit_linear int8": lambda t: [ops.bit_linear((t["x"] * 20).to(torch.int8), both(t)[0])],
    "bit_linear_t": lambda t: [ops.bit_linear_t(t["gy"], both(t)[0]), ops.bit_linear_t(t["gy"][:3], both(t)[0])],
    "bit_matmul": lambda t: [ops.bit_matmul(*both(t))],
    "ternary, sign": lambda t: [
        ops.ternary_linear(t["x"], BitMatrix.pack(t["w"]), BitMatrix.pack(t["w"].flip(0))),
        ops.sign_linear(t["x"], both(t)[0], 0.5),
    ],
    "mask_update_ adam": lambda t: updated(t, Adam(lr=0.1), False),
    "mask_update_ sampling": lambda t: updated(t, SGD(lr=0.1, sample=True), False),
    "mask_grad_update_ adam": lambda t: updated(t, Adam(lr=0.1), True),
    "mask_grad_update_ bop": lambda t: updated(t, Bop(gamma=0.5, threshold=0.1), True),
}
EXACT = {"pack, unpack", "transpose, popcount", "bit_linear int8", "bit_matmul"}


@pytest.mark.parametrize("name", CALLS)
def test_ten_threads_get_what_one_gets(name: str) -> None:
    call, inputs = CALLS[name], [operands(seed) for seed in range(THREADS)]
    alone = [call(t) for t in inputs]
    if name in EXACT:
        with backends.override("reference"):
            for t, mine in zip(inputs, alone, strict=True):
                assert all(map(torch.equal, mine, call(t)))
    start = threading.Barrier(THREADS)

    def run(seed: int) -> list[list[Tensor]]:
        start.wait()
        return [call(inputs[seed]) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for results, expected in zip(pool.map(run, range(THREADS)), alone, strict=True):
            for result in results:
                assert all(map(torch.equal, result, expected))


def test_ten_threads_call_different_ops_on_the_same_tensors() -> None:
    t = operands(3)
    names = list(CALLS)
    alone = {name: CALLS[name](t) for name in names}
    start = threading.Barrier(THREADS)

    def run(first: int) -> bool:
        start.wait()
        turns = [names[(first + i) % len(names)] for i in range(2 * len(names))]
        return all(all(map(torch.equal, CALLS[name](t), alone[name])) for name in turns)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(run, range(THREADS)))
