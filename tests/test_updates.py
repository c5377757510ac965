"""Every kernel of an update against the reference: scores, buffers, words, step and flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import cases
import pytest
import torch
from cases import RULES, SIZES, Search, Target, assert_same, numpy_bits, numpy_words, random_bits, shape_of, values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastbin import backends, cpu, library, reference
from fastbin.bits import BitMatrix
from fastbin.rules import SGD, Adam, Bop, Rule, UpdateState

TARGETS = cases.targets("mask_update_")
on_every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
with_every_rule = pytest.mark.parametrize("name", RULES)


def check_step(target: Target, op: str, rule: Rule, wanted: Search, *operands: Tensor | BitMatrix) -> None:
    """One update from the same start by the reference, in `wanted`, and by the kernel: all of it equal."""
    got = wanted.to(target.device)
    flips = wanted.update("reference", op, rule, *operands)
    assert_same(got.update(target.backend, op, rule, *operands), flips, (rule, "flips"))
    for name, t in wanted.tensors().items():
        assert_same(got.tensors()[name].cpu(), t, (rule, name, t.shape))


def check_update(target: Target, rule: Rule, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> None:
    search = Search.start(rule, shape, seed, scale)
    for t in range(3):
        check_step(target, "mask_update_", rule, search, values(shape, torch.float32, seed + t))


def check_grad_update(target: Target, rule: Rule, sizes: tuple[int | None, int, int, int], seed: int,
                      inputs: torch.dtype | None = torch.float32) -> None:  # fmt: skip
    """Whole numbers in gy and x: every sum is exact in float32, so all results are. `inputs` None stands for bits."""
    population, batch, rows, cols = sizes
    search = Search.start(rule, shape_of(population, rows, cols), seed)
    for t in range(2):
        gy = values(shape_of(population, batch, rows), inputs or torch.float32, seed + t, "integers")
        if inputs is None:
            x: Tensor | BitMatrix = cases.matrix(shape_of(population, batch, cols), seed + t)
        else:
            x = values(shape_of(population, batch, cols), inputs, seed + t + 1, "integers")
        check_step(target, "mask_grad_update_", rule, search, gy, x)


def test_a_cpu_kernel_is_among_the_targets() -> None:
    assert Target("cpp", "cpu") in TARGETS


# ------------------------------------------------------------------------------------------------------- gradient given


@on_every_target
@with_every_rule
def test_updates_of_every_size(target: Target, name: str) -> None:
    for rows, cols in product(SIZES, SIZES):
        check_update(target, RULES[name], (rows, cols), rows + cols)


@on_every_target
@with_every_rule
@given(cases.populations, cases.sizes, cases.sizes, st.sampled_from((1e-3, 1.0, 30.0)), cases.seeds)
def test_updates_of_any_size(
    target: Target, name: str, population: int | None, rows: int, cols: int, scale: float, seed: int
) -> None:
    check_update(target, RULES[name], shape_of(population, rows, cols), seed, scale)


@on_every_target
@with_every_rule
@pytest.mark.parametrize("shape", [(515, 1031), (1, 70001), (9001, 3), (3, 129, 257)])
def test_updates_of_large_matrices(target: Target, name: str, shape: tuple[int, ...]) -> None:
    for threads in (1, 2, 3):
        with cases.threads(threads):
            check_update(target, RULES[name], shape, threads)


@on_every_target
@with_every_rule
def test_updates_with_extreme_numbers(target: Target, name: str) -> None:
    shape, special = (9, 77), [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-42, -1e-42, 1e30, -3e38, 1e-20, 88.0]
    search = Search.start(RULES[name], shape, 1)
    for t in range(3):
        grad = values(shape, torch.float32, t)
        grad[t, : len(special)] = torch.tensor(special)
        if search.scores is not None:
            search.scores[t + 3, : len(special)] = torch.tensor(special)
        check_step(target, "mask_update_", RULES[name], search, grad)
        check_step(target, "mask_update_", RULES[name], search, values(shape, torch.float32, t, "extreme"))


@on_every_target
@pytest.mark.parametrize("rule", [*RULES.values(), Bop(gamma=1.0, threshold=0.125)], ids=repr)
def test_updates_at_the_thresholds(target: Target, rule: Rule) -> None:
    shape = (33, 65)
    search = Search.start(rule, shape, 24)
    for t in range(2):
        grad = torch.tensor([0.0, -0.0, 0.125, -0.125, 0.25, -0.25])[torch.arange(33 * 65).view(shape) % 6]
        if search.scores is not None:
            search.scores[t::2, ::2] = 0.0
        check_step(target, "mask_update_", rule, search, grad)


@on_every_target
@pytest.mark.parametrize("step", [2**31 - 1, 2**32 - 1, 2**32 + 3, 2**53 + 1])
@pytest.mark.parametrize("seed", [0, -1, 2**32 + 7, -(2**63)])
def test_late_steps_and_any_seed(target: Target, step: int, seed: int) -> None:
    for name in ("sgd sampling", "adam sampling"):
        search = Search.start(RULES[name], (5, 70), 2)
        search.state.step.fill_(step)
        search.state.seed.fill_(seed)
        check_step(target, "mask_update_", RULES[name], search, values((5, 70), torch.float32, 3))


@on_every_target
@pytest.mark.parametrize("rule", [Adam(lr=0.05, tau=0.5), SGD(lr=0.2, sample=True)], ids=repr)
def test_a_rule_may_change_from_step_to_step(target: Target, rule: Adam | SGD) -> None:
    search = Search.start(rule, (33, 65), 4)
    for t in range(12):
        now = replace(rule, lr=rule.lr / (1 + t), tau=rule.tau * 0.9**t, clip=4.0 - 0.2 * t)
        check_step(target, "mask_update_", now, search, values((33, 65), torch.float32, t))


@on_every_target
def test_members_with_constants_of_their_own(target: Target) -> None:
    rules = (Adam(lr=0.1), Adam(lr=0.5, tau=0.2, clip=0.5), Adam(lr=1e-3, betas=(0.5, 0.6), eps=1e-2))
    hyper = torch.cat([r.hyper(1, torch.device("cpu")) for r in rules])
    search, grad = Search.start(rules[0], (3, 5, 70), 5), values((3, 5, 70), torch.float32, 6)
    results = []
    for backend, device in ((target.backend, target.device), ("reference", "cpu")):
        s = search.to(device)
        with cases.poisoned(), backends.override(backend):
            flips = library.mask_update_(
                s.scores, grad.to(device), s.w.words, list(s.state.buffers), s.state.step, s.state.seed,
                hyper.to(device), "adam", False,
            )  # fmt: skip
        results.append({"flips": flips.cpu(), **{name: t.cpu() for name, t in s.tensors().items()}})
    for name, t in results[1].items():
        assert_same(results[0][name], t, name)


# ------------------------------------------------------------------------------------------------ gradient of the layer


@on_every_target
@pytest.mark.parametrize("inputs", [*cases.FLOATS, None], ids=str)
def test_grad_updates_of_every_size(target: Target, inputs: torch.dtype | None) -> None:
    names = list(RULES)
    for i, (batch, rows, cols) in enumerate(product((0, 1, 32, 33, 65), SIZES, SIZES)):
        check_grad_update(target, RULES[names[i % len(names)]], (None, batch, rows, cols), i, inputs)


@on_every_target
@with_every_rule
@given(
    cases.populations, cases.sizes, cases.sizes, cases.sizes, st.sampled_from((*cases.FLOATS, None)), cases.seeds
)  # fmt: skip
def test_grad_updates_of_any_size(
    target: Target,
    name: str,
    population: int | None,
    batch: int,
    rows: int,
    cols: int,
    inputs: torch.dtype | None,
    seed: int,
) -> None:
    check_grad_update(target, RULES[name], (population, batch, rows, cols), seed, inputs)


@on_every_target
@with_every_rule
@pytest.mark.parametrize(
    "sizes", [(None, 67, 515, 1031), (None, 300, 1, 4099), (None, 1031, 257, 3), (2, 129, 66, 515)]
)
def test_grad_updates_wider_than_a_tile(target: Target, name: str, sizes: tuple[int | None, int, int, int]) -> None:
    for threads, inputs in ((1, torch.float32), (2, None), (3, torch.float32)):
        with cases.threads(threads):
            check_grad_update(target, RULES[name], sizes, threads, inputs)


REAL = (SGD(lr=0.5, tau=0.5), SGD(lr=0.1, sample=True), Adam(lr=0.1, eps=0.1, clip=0.9), Adam(lr=0.1, eps=0.1, sample=True),
        Bop(gamma=0.5, threshold=0.1))  # fmt: skip


@on_every_target
@pytest.mark.parametrize("rule", REAL, ids=repr)
@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("batch", [1, 33, 700])
def test_grad_updates_of_real_values(target: Target, rule: Rule, bits: bool, batch: int) -> None:
    """A first step from a gradient g with |δg| ≤ 1e-6·|gy|ᵀ|x|, as in `cases.product_tolerance`.

    The surrogate's slope is at most 1/(4τ), so buffers are off by δ = δg/(4τ) times what multiplies g in them, and scores
    by lr·δ (SGD, momentum is 0 before), lr·δ/ε (Adam: |d/dg g/(|g|+ε)| ≤ 1/ε). Roundings of the rule itself add a few
    2^-24 of what is rounded.
    """
    rows, cols = 65, 130
    gy, real = values((batch, rows), torch.float32, 7), values((batch, cols), torch.float32, 8)
    x = cases.matrix((batch, cols), 9)
    dense = numpy_bits(x.words, cols).double() if bits else real.double()
    wanted = Search.start(rule, (rows, cols), 10)
    before = numpy_bits(wanted.w.words, cols)
    got = wanted.to(target.device)
    operand = x if bits else real
    wanted.update("reference", "mask_grad_update_", rule, gy, operand)
    flips = got.update(target.backend, "mask_grad_update_", rule, gy, operand)
    got = got.to("cpu")

    g = (gy.double().mT @ dense).abs()
    slack = 1e-6 * (gy.double().abs().mT @ dense.abs()) + 2.0**-24 * g
    few = 8 * 2.0**-24
    after = numpy_bits(got.w.words, cols)
    if isinstance(rule, Bop):
        (mean,) = got.state.buffers
        allowed = [rule.gamma * (slack + few * g)]
        # The bits are exactly those of the op's own mean.
        assert torch.equal(after, torch.where(before, ~(mean > rule.threshold), -mean > rule.threshold))
    else:
        assert isinstance(rule, (SGD, Adam)) and got.scores is not None and wanted.scores is not None
        slack, g = slack / (4 * rule.tau), g / (4 * rule.tau)
        slack += few * g
        theta = wanted.scores.double()
        if isinstance(rule, SGD):
            allowed, moved = [slack], rule.lr * slack
        else:
            first, second = 1 - rule.betas[0], 1 - rule.betas[1]
            allowed, moved = [first * slack, second * (2 * g * slack + slack**2)], rule.lr * (slack / rule.eps + few)
        assert ((got.scores.double() - theta).abs() <= moved + few * theta.abs()).all()
        # The bits are exactly those of the op's own scores.
        own = numpy_words(got.scores > 0)
        if rule.sample:
            own = reference.sample_bits(got.scores, rule.tau, got.state.seed, 1)
        assert_same(got.w.words, own, "words")
    for buffer, truth, limit in zip(got.state.buffers, wanted.state.buffers, allowed, strict=True):
        assert ((buffer.double() - truth.double()).abs() <= limit).all()
    assert int(flips) == int((before ^ after).sum())
    assert int(got.state.step) == 1


@on_every_target
def test_grad_updates_are_the_same_from_run_to_run(target: Target) -> None:
    gy, x = values((67, 257), torch.float32, 11), values((67, 515), torch.float32, 12)
    start = Search.start(RULES["adam"], (257, 515), 13)
    for threads in (1, 2, 3):
        with cases.threads(threads):
            runs = [start.to(target.device) for _ in range(4)]
            for search in runs:
                search.update(target.backend, "mask_grad_update_", RULES["adam"], gy, x)
        for search in runs[1:]:
            for name, t in search.tensors().items():
                assert torch.equal(t, runs[0].tensors()[name]), (threads, name)


# ------------------------------------------------------------------------------------------- the gradient in bfloat16


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


CPP = Target("cpp", "cpu")
HAS_BF16 = cpu._cpu.has_bf16()


def test_whole_numbers_stay_exact_in_bfloat16(precision: Callable[[str], None]) -> None:
    precision("medium")
    names = list(RULES)
    for i, (batch, rows, cols) in enumerate(product((0, 1, 2, 33, 64), SIZES, SIZES)):
        check_grad_update(CPP, RULES[names[i % len(names)]], (None, batch, rows, cols), i)
    for sizes in ((None, 1031, 129, 515), (3, 67, 33, 257), (2, 129, 1, 1031)):
        check_grad_update(CPP, RULES["adam"], sizes, 1)


def gradient(gy: Tensor, x: Tensor, target: Target = CPP) -> Tensor:
    """gyᵀ x, as Bop's running mean keeps it when nothing is remembered."""
    search = Search.start(Bop(gamma=1.0), (gy.shape[-1], x.shape[-1]), 1).to(target.device)
    search.update(target.backend, "mask_grad_update_", Bop(gamma=1.0), gy, x)
    return search.state.buffers[0].cpu()


@pytest.mark.parametrize("kind", ["normal", "positive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 33, 700, 5000])
@on_every_target
def test_gradients_are_near(target: Target, batch: int, dtype: torch.dtype, kind: str) -> None:
    gy, x = values((batch, 35), dtype, 27, kind), values((batch, 70), dtype, 28, kind)
    cases.assert_gradient(gradient(gy, x, target), gy, x)


@pytest.mark.parametrize("batch", [1, 2, 33, 700])
def test_medium_precision_rounds_to_bfloat16_where_the_cpu_can(precision: Callable[[str], None], batch: int) -> None:
    """bfloat16 keeps 8 bits, so each operand is off by at most 2^-8 of itself, a product by 2^-7 and 2^-16 more."""
    gy, x = values((batch, 129), torch.float32, 25), values((batch, 257), torch.float32, 26)
    precision("highest")
    full = gradient(gy, x)
    precision("high")
    assert_same(gradient(gy, x), full, "high")
    precision("medium")
    got = gradient(gy, x)
    if not HAS_BF16:
        assert_same(got, full, "medium, without bfloat16")
        return
    exact, size = gy.double().mT @ x.double(), gy.double().abs().mT @ x.double().abs()
    assert ((got.double() - exact).abs() <= (2.0**-7 + 2.0**-16 + 1e-6) * size).all()
    # What is left is the order of a sum in float32.
    rounded = gy.bfloat16().double().mT @ x.bfloat16().double()
    assert ((got.double() - rounded).abs() <= 1e-6 * size).all()
    assert not torch.equal(got, full)


def test_special_numbers_at_medium_precision(precision: Callable[[str], None]) -> None:
    precision("medium")
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan, 3.4e38, -0.0, 1.00390625, 1.01171875])
    special[3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a payload that rounding carries off
    got = gradient(special[None], torch.ones(1, 3))
    wanted = special.bfloat16().float() if HAS_BF16 else special
    assert_same(got, wanted[:, None].expand(8, 3) + 0.0)


# -------------------------------------------------------------------------------------------------------------- layouts


def guarded(t: Tensor) -> tuple[Tensor, Tensor]:
    """`t` in the midst of a larger tensor, one element past an aligned address, and what lies around it."""
    margin = 65
    around = torch.full((t.numel() + 2 * margin,), 77, dtype=t.dtype, device=t.device)
    inside = around[margin : margin + t.numel()].view(t.shape)
    inside.copy_(t)
    return inside, around


@on_every_target
@with_every_rule
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (2, 31, 95), (65, 128)])
@pytest.mark.parametrize("op", ["mask_update_", "mask_grad_update_"])
def test_nothing_else_is_written(target: Target, name: str, shape: tuple[int, ...], op: str) -> None:
    rule = RULES[name]
    operands = [values(shape, torch.float32, 14)]
    if op == "mask_grad_update_":
        operands = [values((*shape[:-2], 5, n), torch.float32, n, "integers") for n in shape[-2:]]
    wanted = Search.start(rule, shape, 15)
    start = wanted.to(target.device)
    arounds = {k: guarded(t) for k, t in start.tensors().items()}
    buffers = tuple(arounds[f"buffer {i}"][0] for i in range(rule.buffer_count))
    got = Search(
        None if start.scores is None else arounds["scores"][0],
        BitMatrix(arounds["words"][0], shape[-1]),
        UpdateState(buffers, arounds["step"][0], arounds["seed"][0]),
    )
    wanted.update("reference", op, rule, *operands)
    got.update(target.backend, op, rule, *(guarded(t)[0] for t in operands))
    for k, t in wanted.tensors().items():
        inside, around = arounds[k]
        assert_same(inside.cpu(), t, k)
        assert (around[:65] == 77).all() and (around[-65:] == 77).all(), k


@on_every_target
def test_gradients_in_every_layout(target: Target) -> None:
    rule, shape = RULES["adam"], (33, 65)
    wide = random_bits((140, 140), 16).float() * values((140, 140), torch.float32, 17, "integers")
    grads = [wide[:65, :33].mT, wide[1:34, 3:68], wide[:66:2, :130:2], wide[:1, :65].expand(33, 65),
             wide[:33, :1].expand(33, 65)]  # fmt: skip
    for grad in grads:
        assert grad.shape == shape and not grad.is_contiguous()
        check_step(target, "mask_update_", rule, Search.start(rule, shape, 18), grad)
        for other in grads:
            gy, x = grad[:, :33], other
            check_step(target, "mask_grad_update_", rule, Search.start(rule, shape, 19), gy, x)
    words = cases.matrix((33, 96), 20).words
    x = BitMatrix(words[:, 1:], 64)
    check_step(target, "mask_grad_update_", rule, Search.start(rule, (33, 64), 21), grads[0][:, :33], x)


@on_every_target
def test_gradients_that_require_gradients_are_taken_as_numbers(target: Target) -> None:
    rule, shape = RULES["sgd"], (5, 40)
    gy, x = (values((3, n), torch.float32, n).requires_grad_() for n in shape)
    check_step(
        target, "mask_update_", rule, Search.start(rule, shape, 22), values(shape, torch.float32, 1).requires_grad_()
    )
    search = Search.start(rule, shape, 23)
    assert not search.update(target.backend, "mask_grad_update_", rule, gy, x).requires_grad
    assert search.scores is not None and not search.scores.requires_grad
