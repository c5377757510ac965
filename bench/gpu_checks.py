"""Every GPU kernel against the reference, over odd shapes, dtypes and populations: the part of `bench.gpu` before any speed.

Nothing here needs pytest, or more than torch, numpy and fastbin. Operands and truth are made on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.checks import assert_gradient, assert_product, assert_same, matrix, poisoned, random_bits, shape_of, values
from fastbin import SearchConfig, backends, choices, reference
from fastbin.descent import Search
from fastbin.rules import SGD, Adam, Bop, Rule, ScoreRule
from fastbin.steps import Part, Steps

SMALL = ((1, 1, 1), (3, 31, 33), (5, 33, 65), (16, 64, 64))  # batch, rows, columns
LARGE = ((17, 130, 257), (64, 257, 1031), (129, 515, 300), (2, 40, 5003), (1, 4099, 70), (130, 512, 1024))
# Rows of whole 16-byte chunks, and tiles enough for bit_matmul's kernel of an H100; its last stage is not full.
WIDE = (1700, 1400, 1920)
# Rows of whole 16-byte chunks both ways, for wgmma: inputs halved between blocks, and several tiles to a block.
CHUNKS = ((257, 528, 1360), (1100, 4112, 272))
MANY_SAMPLES = (1030, 70, 100)  # for gradients: their rounding errors grow with the batch
POPULATIONS = (None, 3)
PRODUCT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
RULES: tuple[Rule, ...] = (
    SGD(lr=0.5, tau=0.7, clip=0.6, momentum=0.9),
    SGD(lr=0.5, sample=True),
    Adam(lr=0.05, tau=0.3, clip=1.5),
    Adam(lr=0.05, sample=True),
    Bop(gamma=0.3, threshold=0.05),
)
SEEDS = (2**63 - 1, -5, 12345678901)


@dataclass(frozen=True)
class Kernel:
    """An implementation of an op, and the device it runs on."""

    op: str
    name: str
    function: Callable[..., Tensor]
    device: str

    def __call__(self, *args: object) -> Tensor:
        """The result, with every output poisoned first, of arguments already there."""
        with poisoned():
            return self.function(*args)


def kernels(device: str) -> list[Kernel]:
    """Every implementation of every op that `fastbin.backends` knows for a device and that is there; it names the others."""
    found = []
    for (op, kind), row in backends.TABLE.items():
        for name, module in row if kind == device else ():
            function = _load(module, op)
            if function is None:
                print(f"not there: {op} by {name}")
            else:
                found.append(Kernel(op, name, function, device))
    return found


def serves(kernel: Kernel, x: Tensor) -> bool:
    """Whether an implementation of a product takes these samples: CUDA C++ has some shapes, on some cards, only."""
    if kernel.device != "cuda" or kernel.op not in choices.SHAPE_CLASSES:
        return True
    kind = choices.shape_class(kernel.op, x)
    return kernel.name in choices.serving(kernel.op, kind, torch.cuda.current_device())


def _load(module: str, op: str) -> Callable[..., Tensor] | None:
    try:
        function: Callable[..., Tensor] = getattr(importlib.import_module(module), op)
    except ImportError as error:
        print(error)
        return None
    return function


def packed_product() -> Callable[..., Tensor] | None:
    """The bit_matmul whose outputs leave as bits, where CUDA C++ was built; no public op has it."""
    return _load("fastbin.cuda", "bit_matmul_packed")


def run_packed(function: Callable[..., Tensor], device: str, small: bool = False) -> list[str]:
    """What fails of `packed_product`, as `run`."""
    failures = []
    for batch, rows, cols in SMALL if small else (*SMALL, *LARGE, WIDE):
        a, b = (matrix((n, cols), n).words for n in (batch, rows))
        thresholds = torch.full((rows,), cols // 4, dtype=torch.int32)
        wanted = reference.pack(reference.bit_matmul(a, b) > thresholds, None)
        with poisoned():
            got = function(a.to(device), b.to(device), thresholds.to(device)).cpu()
        if not torch.equal(got, wanted):
            failures.append(f"bit_matmul_packed, {batch} x {rows} x {cols}: differs")
    return failures


SEARCHES: tuple[dict[str, Any], ...] = (
    {},
    {"activation": "step", "activations": "bfloat16"},
    {"estimator": "sample", "activation": "tanh"},
    {"rule": "sgd", "norm": "none"},
    {"rule": "bop", "activation": "step"},
)


def run_captured(device: str) -> list[str]:
    """What fails of the captured search step: it is to leave, bit for bit, what the step that is not captured leaves."""
    failures = []
    for options in SEARCHES:
        config = SearchConfig(hidden=(96, 80), lr_end=0.001, device=device, **options)
        try:
            plain, captured = (_after_two_epochs(config, capture) for capture in (False, True))
            if not all(map(torch.equal, plain, captured)):
                failures.append(f"captured step, {options}: differs from the step not captured")
        except Exception as error:
            traceback.print_exc()
            failures.append(f"captured step, {options}: {str(error).splitlines()[0] if str(error) else error!r}")
    print(f"captured step: {len(SEARCHES)} checks, {len(failures)} failures")
    return failures


def _after_two_epochs(config: SearchConfig, capture: bool) -> list[Tensor]:
    """The state and the sums after batches of 16, 16, 16, 16 and 6, twice, none of which may wait for a GPU."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(70, 45, generator=generator), torch.arange(70) % 10
    search = Search(config, [45, *config.hidden, 10])
    train = Part(x.to(config.device, getattr(torch, config.activations)), y.to(config.device))
    steps = Steps(search.step, 3, train, 16, capture)
    batches = [b for _ in range(2) for b in torch.randperm(70, generator=generator).to(config.device).split(16)]
    rules = [config.rule_at(i / len(batches)) for i in range(len(batches))]
    constants = torch.cat([rule.hyper(1, train.x.device) for rule in rules])
    with _no_waiting(config.device):
        for batch, rule, hyper in zip(batches, rules, constants.split(1), strict=True):
            steps.step(batch, rule, hyper)
    return [*search.tensors().values(), steps.loss, steps.correct, steps.flips]


@contextlib.contextmanager
def _no_waiting(device: str) -> Iterator[None]:
    """On a GPU, an error where torch would wait for it."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")


def run(found: list[Kernel], small: bool = False, populations: tuple[int | None, ...] = POPULATIONS) -> list[str]:
    """What fails, one line each; traces are printed."""
    failures = []
    for kernel in found:
        count = 0
        for what, check in _checks(kernel, SMALL if small else SMALL + LARGE, populations):
            count += 1
            try:
                check()
            except Exception as error:  # all of them are to be reported, whatever they are
                traceback.print_exc()
                failures.append(
                    f"{kernel.op} {kernel.name}, {what}: {str(error).splitlines()[0] if str(error) else error!r}"
                )
        print(f"{kernel.op} {kernel.name}: {count} checks, {len(failures)} failures so far", flush=True)
    return failures


def run_beside(found: list[Kernel]) -> list[str]:
    """As `run`, and of the packed product and the captured step of a GPU, in as many processes as there are cores.

    Most of the time goes into compiling what Triton compiles.
    """
    calls: list[tuple[Any, ...]] = [
        (run, [kernel], False, (population,)) for kernel in found for population in POPULATIONS
    ]
    if any(kernel.device == "cuda" for kernel in found):
        packed = packed_product()
        calls += [(run_captured, "cuda"), *([] if packed is None else [(run_packed, packed, "cuda")])]
    # One thread each: the reference's would wait for each other.
    with ProcessPoolExecutor(None, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        parts = [pool.submit(*call) for call in calls]
        return [failure for part in parts for failure in part.result()]


Check = tuple[str, Callable[[], None]]


def _checks(
    kernel: Kernel, shapes: tuple[tuple[int, int, int], ...], populations: tuple[int | None, ...]
) -> Iterator[Check]:
    kind = {"bit_linear": _product, "bit_linear_t": _product, "bit_matmul": _bit_matmul}.get(kernel.op)
    kind = kind or {"mask_update_": _update, "mask_grad_update_": _grad_update}.get(kernel.op, _moves)
    if kernel.op == "bit_matmul" and shapes != SMALL:
        shapes = (*shapes, WIDE)
    if kernel.op in ("bit_linear", "bit_linear_t") and shapes != SMALL:
        shapes = (*shapes, *CHUNKS)
    if kernel.op == "mask_grad_update_" and shapes != SMALL:
        shapes = (*shapes, MANY_SAMPLES)
    for population in populations:
        for batch, rows, cols in shapes:
            for what, check in kind(kernel, population, batch, rows, cols):
                yield f"{population or 'no'} members, {batch} x {rows} x {cols}{what}", check


def _product(kernel: Kernel, population: int | None, batch: int, rows: int, cols: int) -> Iterator[Check]:
    inner = cols if kernel.op == "bit_linear" else rows
    for dtype in PRODUCT_DTYPES:
        if not serves(kernel, torch.empty(batch, inner, dtype=dtype, device="meta")):
            continue
        for kind in ("normal", "positive"):

            def check(dtype: torch.dtype = dtype, kind: str = kind) -> None:
                w = matrix(shape_of(population, rows, cols), 1)
                dense = w.unpack(torch.float64)
                if kernel.op == "bit_linear":
                    x = values(shape_of(population, batch, cols), dtype, 2, kind)
                    got = kernel(x.to(kernel.device), w.words.to(kernel.device))
                    assert_product(got.cpu(), x, dense.mT)
                else:
                    x = values(shape_of(population, batch, rows), dtype, 2, kind)
                    got = kernel(x.to(kernel.device), w.words.to(kernel.device), cols)
                    assert_product(got.cpu(), x, dense)

            yield f" {dtype} {kind}", check


def _bit_matmul(kernel: Kernel, population: int | None, batch: int, rows: int, cols: int) -> Iterator[Check]:
    def check() -> None:
        a, b = (matrix(shape_of(population, n, cols), n).words for n in (batch, rows))
        assert_same(kernel(a.to(kernel.device), b.to(kernel.device)).cpu(), reference.bit_matmul(a, b))

    yield "", check


def _moves(kernel: Kernel, population: int | None, batch: int, rows: int, cols: int) -> Iterator[Check]:
    def check() -> None:
        shape = shape_of(population, rows, cols)
        words = matrix(shape, 1).words
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        calls: dict[str, list[tuple[Tensor, tuple[object, ...]]]] = {
            "pack": [(random_bits(shape, 3), (None,)), (x, (0.25,)), (x.bfloat16(), (0.25,))],
            "unpack": [(words, (cols, dtype)) for dtype in (torch.bool, torch.float32, torch.bfloat16)],
            "transpose": [(words, (cols,))],
            "popcount": [(words, ())],
        }
        for operand, rest in calls[kernel.op]:
            wanted = getattr(reference, kernel.op)(operand, *rest)
            assert_same(kernel(operand.to(kernel.device), *rest).cpu(), wanted, rest)

    yield "", check


class _State:
    """Arguments of an update from `scores` on, and what becomes of them on a device."""

    def __init__(self, rule: Rule, population: int | None, rows: int, cols: int) -> None:
        shape, members = shape_of(population, rows, cols), population or 1
        self.rule = rule
        self.scores = values(shape, torch.float32, 5) if isinstance(rule, ScoreRule) else None
        self.words = matrix(shape, 6).words
        self.buffers = [values(shape, torch.float32, 7 + i, "positive") * 0.1 for i in range(rule.buffer_count)]
        self.step, self.seed = torch.tensor([3]), torch.tensor(SEEDS[:members])
        self.hyper = rule.hyper(members, torch.device("cpu"))

    def after(self, update: Callable[..., Tensor], device: str, *operands: Tensor) -> list[Tensor]:
        """What `update` returns and leaves behind."""
        scores, words, step, seed, hyper = (
            None if t is None else t.to(device, copy=True)
            for t in (self.scores, self.words, self.step, self.seed, self.hyper)
        )
        buffers = [b.to(device, copy=True) for b in self.buffers]
        there = [t.to(device) for t in operands]
        flips = update(scores, *there, words, buffers, step, seed, hyper, self.rule.name, self.rule.sample)
        return [t.cpu() for t in (flips, words, step, *buffers, *([] if scores is None else [scores]))]


def _update(kernel: Kernel, population: int | None, batch: int, rows: int, cols: int) -> Iterator[Check]:
    for rule in RULES:

        def check(rule: Rule = rule) -> None:
            state = _State(rule, population, rows, cols)
            grad = values(shape_of(population, rows, cols), torch.float32, 9)
            wanted = state.after(reference.mask_update_, "cpu", grad)
            for mine, truth in zip(state.after(kernel, kernel.device, grad), wanted, strict=True):
                assert_same(mine, truth)

        yield f" {rule}", check


def _grad_update(kernel: Kernel, population: int | None, batch: int, rows: int, cols: int) -> Iterator[Check]:
    """Sums of small multiples of 1/64 are exact in float32 in any order, so all results are equal bit for bit.

    Of other numbers the gradient is near, as Bop's mean keeps it when nothing is remembered.
    """
    for rule in RULES:
        for dtype in (torch.float32, torch.bfloat16):
            for kind in ("bits", "real"):

                def check(rule: Rule = rule, dtype: torch.dtype = dtype, kind: str = kind) -> None:
                    state = _State(rule, population, rows, cols)
                    gy = values(shape_of(population, batch, rows), dtype, 9, "integers") / 64
                    if kind == "bits":
                        x = matrix(shape_of(population, batch, cols), 10).words
                    else:
                        x = values(shape_of(population, batch, cols), dtype, 10, "integers")
                    wanted = state.after(reference.mask_grad_update_, "cpu", gy, x)
                    for mine, truth in zip(state.after(kernel, kernel.device, gy, x), wanted, strict=True):
                        assert_same(mine, truth)

                yield f" {rule} {dtype} x {kind}", check

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind in ("normal", "positive"):

            def check_gradient(dtype: torch.dtype = dtype, kind: str = kind) -> None:
                gy = values(shape_of(population, batch, rows), dtype, 11, kind)
                x = values(shape_of(population, batch, cols), dtype, 12, kind)
                state = _State(Bop(gamma=1.0), population, rows, cols)
                _, _, _, gradient = state.after(kernel, kernel.device, gy, x)
                assert_gradient(gradient, gy, x)

            yield f" gradient, {dtype} {kind}", check_gradient
