"""The rules' records: what they hold, what they refuse, the state they start from."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from fastbin.bits import BitMatrix
from fastbin.reference import HYPER_FIELDS
from fastbin.rules import SGD, Adam, Bop, Rule


@pytest.mark.parametrize(
    ("rule", "constants"),
    [
        (SGD(lr=0.1, tau=2.0, clip=3.0, momentum=0.5), (0.1, 2.0, 3.0, 0.5, 0.0, 0.0)),
        (Adam(lr=0.1, tau=2.0, betas=(0.8, 0.99), eps=1e-6), (0.1, 2.0, math.inf, 0.8, 0.99, 1e-6)),
        (Bop(gamma=0.2, threshold=0.3), (0.0, 1.0, math.inf, 0.2, 0.3, 0.0)),
    ],
    ids=repr,
)
def test_constants_in_order(rule: Rule, constants: tuple[float, ...]) -> None:
    assert rule.constants() == constants and len(constants) == HYPER_FIELDS
    hyper = rule.hyper(3, torch.device("cpu"))
    assert hyper.dtype == torch.float64 and hyper.is_contiguous()
    assert hyper.tolist() == [list(constants)] * 3


@pytest.mark.parametrize(
    ("make", "name", "bad", "span"),
    [
        (lambda v: SGD(lr=v), "lr", (0.0, -1.0, math.inf, math.nan), "(0, inf)"),
        (lambda v: Adam(tau=v), "tau", (0.0, -1.0, math.inf, math.nan), "(0, inf)"),
        (lambda v: Adam(clip=v), "clip", (0.0, -1.0, math.nan), "(0, inf]"),
        (lambda v: SGD(momentum=v), "momentum", (-0.1, 1.0, math.nan), "[0, 1)"),
        (lambda v: Adam(betas=(v, 0.9)), "betas[0]", (-0.1, 1.0, math.nan), "[0, 1)"),
        (lambda v: Adam(betas=(0.9, v)), "betas[1]", (-0.1, 1.0, math.nan), "[0, 1)"),
        (lambda v: Adam(eps=v), "eps", (0.0, -1e-9, math.inf, math.nan), "(0, inf)"),
        (lambda v: Bop(gamma=v), "gamma", (0.0, 1.1, math.nan), "(0, 1]"),
        (lambda v: Bop(threshold=v), "threshold", (-1e-9, math.inf, math.nan), "[0, inf)"),
    ],
)
def test_values_out_of_range_are_named(make: object, name: str, bad: tuple[float, ...], span: str) -> None:
    assert callable(make)
    for value in bad:
        with pytest.raises(ValueError) as caught:
            make(value)
        assert str(caught.value) == f"{name} must lie in {span}, got {value!r}"


def test_ends_of_the_ranges_are_allowed() -> None:
    Adam(clip=math.inf, betas=(0.0, 0.0))
    SGD(momentum=0.0)
    Bop(gamma=1.0, threshold=0.0)


def test_rules_are_frozen_records() -> None:
    assert SGD(lr=0.1) == SGD(lr=0.1) != SGD(lr=0.2)
    with pytest.raises(FrozenInstanceError):
        SGD().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("rule", "buffers"), [(SGD(), 1), (Adam(), 2), (Bop(), 1)], ids=repr)
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40), (1, 0, 5)])
def test_the_state_starts_at_zero(rule: Rule, buffers: int, shape: tuple[int, ...]) -> None:
    state = rule.init_state(BitMatrix.zeros(*shape), seed=7)
    assert len(state.buffers) == buffers == rule.buffer_count
    for b in state.buffers:
        assert b.shape == shape and b.dtype == torch.float32 and b.is_contiguous() and not b.any()
    assert len({b.data_ptr() for b in state.buffers if b.numel()}) == (buffers if 0 not in shape else 0)
    assert state.step.tolist() == [0] and state.step.dtype == torch.int64
    assert state.seed.tolist() == [7 + p for p in range(shape[0] if len(shape) == 3 else 1)]
    assert state.seed.dtype == torch.int64


def test_seeds_of_the_members() -> None:
    w = BitMatrix.zeros(3, 2, 5)
    assert SGD().init_state(w, [5, -1, 2**40]).seed.tolist() == [5, -1, 2**40]
    with pytest.raises(ValueError, match=r"expected 3 .* got 2"):
        SGD().init_state(w, [1, 2])
