"""The GPU kernels on more than 2^31 elements, where 32-bit addresses would wrap: some rows against the reference."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.checks import assert_product, assert_same
from bench.gpu_checks import Kernel, serves
from fastbin import reference
from fastbin.rules import Adam

SIDE = 46400  # squared, 2.15e9 > 2^31
THIN = 64
BYTES = 48 << 30  # of the largest check: scores, gradient and two moments in float32, and what torch.randn needs


def run_huge(found: list[Kernel]) -> list[str]:
    """What fails, one line each; nothing is run, and that is said, where the GPU has not the memory."""
    free = torch.cuda.mem_get_info()[0]
    if free < BYTES:
        print(f"more than 2^31 elements: not run, {free >> 30} GiB are free and {BYTES >> 30} needed")
        return []
    failures, count = [], 0
    for what, check in _checks({(k.op, k.name): k for k in found}):
        count += 1
        try:
            check()
        except Exception as error:  # all of them are to be reported, whatever they are
            traceback.print_exc()
            failures.append(f"more than 2^31 elements, {what}: {str(error).splitlines()[0] if str(error) else error!r}")
        torch.cuda.empty_cache()
    print(f"more than 2^31 elements: {count} checks, {len(failures)} failures", flush=True)
    return failures


def _ends(t: Tensor) -> Tensor:
    """Two rows of either end."""
    return torch.cat([t[:2], t[-2:]])


def _words(rows: int, cols: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, (rows, cols // 32), device="cuda", dtype=torch.int64).to(torch.int32)


def _checks(kernels: dict[tuple[str, str], Kernel]) -> Iterator[tuple[str, Callable[[], None]]]:
    for (op, name), kernel in kernels.items():
        for what, check in _CHECKS[op].items():
            if op != "bit_linear" or serves(kernel, torch.empty(SIDE, 1, device="meta", dtype=torch.bfloat16)):
                yield f"{op} {name}, {what}", lambda kernel=kernel, check=check: check(kernel)


def _pack(kernel: Kernel) -> None:
    x = torch.randn(SIDE, SIDE, device="cuda")
    assert_same(_ends(kernel(x, 0.25)), reference.pack(_ends(x), 0.25))


def _unpack(kernel: Kernel) -> None:
    words = _words(SIDE, SIDE)
    assert_same(_ends(kernel(words, SIDE, torch.bfloat16)), reference.unpack(_ends(words), SIDE, torch.bfloat16))


def _transpose(kernel: Kernel) -> None:
    words = _words(SIDE, SIDE)
    turned = kernel(words, SIDE)
    for edge in (0, SIDE // 32 - 1):  # columns of words
        assert_same(turned[32 * edge : 32 * edge + 32], reference.transpose(words[:, edge : edge + 1].contiguous(), 32))


def _popcount(kernel: Kernel) -> None:
    words = _words(SIDE, SIDE)
    counted = sum(int(reference.popcount(part)) for part in words.split(2000))
    assert int(kernel(words)) == counted


def _product_of_many_inputs(kernel: Kernel) -> None:
    x, words = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16), _words(THIN, SIDE)
    if kernel.op == "bit_linear":
        y, dense = kernel(x, words), reference.unpack(words, SIDE, torch.float64).mT
    else:
        words = reference.transpose(words, SIDE)
        y, dense = kernel(x, words, THIN), reference.unpack(words, THIN, torch.float64)
    assert_product(_ends(y), _ends(x), dense)


def _product_of_many_outputs(kernel: Kernel) -> None:
    x, words = torch.randn(SIDE, THIN, device="cuda", dtype=torch.bfloat16), _words(SIDE, THIN)
    if kernel.op == "bit_linear":
        y, dense = kernel(x, words), reference.unpack(words, THIN, torch.float64).mT
    else:
        words = reference.transpose(words, THIN)
        y, dense = kernel(x, words, SIDE), reference.unpack(words, SIDE, torch.float64)
    assert_product(_ends(y), _ends(x), dense)


def _counts(kernel: Kernel) -> None:
    a, b = _words(SIDE, THIN), _words(SIDE, THIN)
    assert_same(_ends(kernel(a, b)), reference.bit_matmul(_ends(a), b))


def _update(kernel: Kernel) -> None:
    rule = Adam(lr=0.1)
    scores = torch.randn(SIDE, SIDE, device="cuda")
    words = torch.zeros(SIDE, SIDE // 32, dtype=torch.int32, device="cuda")  # half of the edges flip
    buffers = [torch.full_like(scores, 0.1) for _ in range(rule.buffer_count)]
    if kernel.op == "mask_update_":
        gradient: tuple[Tensor, ...] = (torch.randn(SIDE, SIDE, device="cuda"),)
        at_ends = tuple(map(_ends, gradient))
    else:
        gy, x = (torch.randint(-8, 9, (2, SIDE), device="cuda").bfloat16() for _ in range(2))
        gradient, at_ends = (gy, x), (torch.cat([gy[:, :2], gy[:, -2:]], 1), x)

    def rest() -> tuple[object, ...]:
        step, seed = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))
        return step, seed, rule.hyper(1, scores.device), rule.name, rule.sample

    wanted = [_ends(t) for t in (scores, words, *buffers)]
    getattr(reference, kernel.op)(wanted[0], *at_ends, wanted[1], wanted[2:], *rest())
    flips = kernel.function(scores, *gradient, words, buffers, *rest())
    for mine, true in zip((scores, words, *buffers), wanted, strict=True):
        assert_same(_ends(mine), true)
    assert int(flips) == sum(int(reference.popcount(part)) for part in words.split(2000))


_PRODUCTS = {"many inputs": _product_of_many_inputs, "many outputs": _product_of_many_outputs}
_CHECKS: dict[str, dict[str, Callable[[Kernel], None]]] = {
    "pack": {"a square": _pack},
    "unpack": {"a square": _unpack},
    "transpose": {"a square": _transpose},
    "popcount": {"a square": _popcount},
    "bit_linear": _PRODUCTS,
    "bit_linear_t": _PRODUCTS,
    "bit_matmul": {"many outputs": _counts},
    "mask_update_": {"a square": _update},
    "mask_grad_update_": {"a square": _update},
}
