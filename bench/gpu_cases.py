"""What `bench.gpu` times: each case makes its operands, and says what it moves, does, and is to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_checks import Kernel, packed_product, serves
from bench.gpu_steps import DenseSteps, EagerAdam, PopulationSteps, search_steps
from fastbin import reference
from fastbin.config import Activations
from fastbin.rules import Adam

ROTATION = 3  # sets of operands that cold calls take in turn

Call = Callable[[int], object]


@dataclass
class Case:
    """One line of the table.

    Attributes:
        op, shape: what, and how large.
        ours: calls by implementation.
        peers: calls by name.
        goals: by peer, our speed over the peer's that is to be reached.
        bytes, operations: of one call, the least that our algorithm moves and does; 0 where it is not what bounds the case.
        steps: whether launches from the host are part of the time.
        goal_share, goal_rate: a share of the roofline, or operations a second, to be reached.
        arguments: tensors of the first set, from which `fastbin.choices` tells the shape class.
    """

    op: str
    shape: str
    ours: dict[str, Call]
    peers: dict[str, Call]
    goals: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    operations: float = 0.0
    steps: bool = False
    goal_share: float | None = None
    goal_rate: float | None = None
    arguments: tuple[Tensor, ...] = field(default_factory=tuple)


def _sets(make: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    return [make() for _ in range(ROTATION)]


def _rotate(function: Callable[..., object], sets: list[tuple[Tensor, ...]]) -> Call:
    return lambda i: function(*sets[i % len(sets)])


def _words(rows: int, cols: int, device: str) -> Tensor:
    """Random bits; `cols` is a multiple of 32."""
    return torch.randint(-(2**31), 2**31, (rows, cols // 32), device=device).to(torch.int32)


def _real(batch: int, n: int, dtype: torch.dtype, device: str) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, (batch, n), dtype=dtype, device=device)
    return torch.randn(batch, n, device=device).to(dtype)


def product(
    kernels: list[Kernel], batch: int, n: int, dtype: torch.dtype, goal: float, goal_share: float | None = None
) -> Case:
    """`bit_linear`, batch x n x n, against cuBLAS in bf16; int8 against torch's int8 product as well."""
    device = kernels[0].device
    sets = _sets(lambda: (_real(batch, n, dtype, device), _words(n, n, device)))
    dense = [(x.bfloat16(), reference.unpack(w, n, torch.bfloat16)) for x, w in sets[:2]]
    peers: dict[str, Call] = {"cuBLAS bf16": _rotate(F.linear, dense)}
    if dtype == torch.int8 and batch > 16:
        whole = [(x, w.to(torch.int8).t()) for (x, _), (_, w) in zip(sets, dense, strict=False)]
        peers["torch._int_mm"] = _rotate(torch._int_mm, whole)
    return Case(
        f"bit_linear {str(dtype).removeprefix('torch.')}",
        f"{batch} x {n} x {n}",
        {k.name: _rotate(k.function, sets) for k in kernels if k.op == "bit_linear" and serves(k, sets[0][0])},
        peers,
        goals={"cuBLAS bf16": goal},
        bytes=n * n / 8,
        operations=2 * batch * n * n if batch > 16 else 0,
        goal_share=goal_share,
        arguments=sets[0],
    )


def bit_matmul(kernels: list[Kernel], n: int, goal_rate: float) -> Case:
    """`bit_matmul` n³ with int32 outputs, against cuBLAS in bf16."""
    device = kernels[0].device
    sets = _sets(lambda: (_words(n, n, device), _words(n, n, device)))
    dense = [tuple(reference.unpack(t, n, torch.bfloat16) for t in pair) for pair in sets[:1]]
    return Case(
        "bit_matmul",
        f"{n} x {n} x {n}",
        {k.name: _rotate(k.function, sets) for k in kernels if k.op == "bit_matmul"},
        {"cuBLAS bf16": _rotate(F.linear, dense)},
        operations=2 * n**3,
        goal_rate=goal_rate,
        arguments=sets[0],
    )


def bit_matmul_packed(function: Callable[..., Tensor], device: str, n: int, goal_rate: float) -> Case:
    """`bit_matmul` n³ with its outputs thresholded and packed, against cuBLAS in bf16, whose outputs stay numbers."""
    thresholds = torch.full((n,), n // 4, dtype=torch.int32, device=device)
    sets = _sets(lambda: (_words(n, n, device), _words(n, n, device)))
    dense = [tuple(reference.unpack(t, n, torch.bfloat16) for t in sets[0])]
    return Case(
        "bit_matmul packed",
        f"{n} x {n} x {n}",
        {"cpp": _rotate(lambda a, b: function(a, b, thresholds), sets)},
        {"cuBLAS bf16": _rotate(F.linear, dense)},
        operations=2 * n**3,
        goal_rate=goal_rate,
    )


def update(kernels: list[Kernel], n: int) -> Case:
    """`mask_update_` by Adam on n² edges, against torch: surrogate, fused Adam, compare and pack."""
    device, rule = kernels[0].device, Adam()
    scores = torch.randn(n, n, device=device)
    grads = [torch.randn(n, n, device=device) for _ in range(2)]
    state = [torch.zeros(n, n, device=device) for _ in range(2)]
    step, seed = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    hyper, words = rule.hyper(1, torch.device(device)), reference.pack(scores > 0, None)
    eager = EagerAdam(scores, rule)

    def call(kernel: Kernel) -> Call:
        return lambda i: kernel.function(scores, grads[i % 2], words, state, step, seed, hyper, rule.name, rule.sample)

    return Case(
        "mask_update_ adam",
        f"{n} x {n} edges",
        {k.name: call(k) for k in kernels if k.op == "mask_update_"},
        {"torch fused Adam, compare, pack": lambda i: eager(grads[i % 2])},
        goals={"torch fused Adam, compare, pack": 5.0},
        bytes=28.25 * n * n,
        goal_share=0.9,
    )


def search_step(device: str, widths: tuple[int, ...], batch: int) -> Case:
    """One search step, against the same algorithm on dense bf16 weights, eager and compiled."""
    return Case(
        "search step",
        f"{'-'.join(map(str, widths))}, batch {batch}",
        {
            f"{activations}{', captured' if capture else ''}": search_steps(device, widths, batch, activations, capture)
            for activations in get_args(Activations)
            for capture in (False, True)
            if not capture or device == "cuda"
        },
        {
            "eager torch bf16": DenseSteps(device, widths, batch).call,
            "torch.compile bf16": torch.compile(DenseSteps(device, widths, batch).call),
        },
        goals={"eager torch bf16": 4.0, "torch.compile bf16": 2.5},
        steps=True,
    )


def population(device: str, members: int, widths: tuple[int, ...], batch: int) -> Case:
    """A step of `members` searches at once, against as many one after the other."""
    one = [PopulationSteps(device, None, widths, batch) for _ in range(members)]
    alone = f"{members} searches"
    return Case(
        f"population of {members}",
        f"{'-'.join(map(str, widths))}, batch {batch}",
        {"together": PopulationSteps(device, members, widths, batch).call},
        {alone: lambda i: [search.call(i) for search in one]},
        goals={alone: 20.0},
        steps=True,
    )


def cases(kernels: list[Kernel]) -> Iterator[Case]:
    """All, one at a time, so that each one's memory is free before the next."""
    device = kernels[0].device
    bf16 = torch.bfloat16
    yield product(kernels, 1, 16384, bf16, 12.0, goal_share=0.75)
    yield product(kernels, 16, 16384, bf16, 8.0)
    yield product(kernels, 4096, 8192, bf16, 0.95)
    yield product(kernels, 4096, 8192, torch.int8, 1.6)
    yield bit_matmul(kernels, 8192, 6e15)
    packed = packed_product()
    if packed is not None:
        yield bit_matmul_packed(packed, device, 16384, 9e15)
    yield update(kernels, 8192)
    yield search_step(device, (4096, 4096, 4096, 4096, 10), 256)
    yield population(device, 64, (784, 256, 256, 10), 128)
