"""What the public ops make of their arguments: shapes with more axes, and errors that name the value."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import cases
import pytest
import torch
from cases import FLOATS, RULES, Search, assert_product, matrix, values
from torch import Tensor

from fastbin import BitMatrix, ops
from fastbin.rules import SGD, Bop, Rule

W = matrix((5, 40), 1)
MEMBERS = matrix((3, 5, 40), 2)


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (2, 0, 4), (2, 3, 4, 1)])
@pytest.mark.parametrize("dtype", cases.OPERANDS, ids=str)
def test_any_number_of_leading_axes(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    dense = W.unpack(torch.float64)
    x, g = (values((*lead, n), dtype, n) for n in (40, 5))
    assert_product(ops.bit_linear(x, W), x, dense.mT)
    assert_product(ops.bit_linear_t(g, W), g, dense)


@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (0, 4)])
def test_no_features_under_any_number_of_axes(lead: tuple[int, ...]) -> None:
    for population in (None, 3):
        members = () if population is None else (population,)
        x = torch.zeros((*members, *lead, 0))
        assert torch.equal(ops.bit_linear(x, BitMatrix.zeros(*members, 5, 0)), torch.zeros((*members, *lead, 5)))
        assert torch.equal(ops.bit_linear_t(x, BitMatrix.zeros(*members, 0, 5)), torch.zeros((*members, *lead, 5)))


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_a_population_leads(lead: tuple[int, ...]) -> None:
    x, g = (values((3, *lead, n), torch.float32, n) for n in (40, 5))
    y, gx = ops.bit_linear(x, MEMBERS), ops.bit_linear_t(g, MEMBERS)
    assert y.shape == (3, *lead, 5) and gx.shape == (3, *lead, 40)
    for p in range(3):
        dense = MEMBERS.unpack(torch.float64)[p]
        assert_product(y[p], x[p], dense.mT)
        assert_product(gx[p], g[p], dense)


def test_gradient_updates_take_leading_axes() -> None:
    rule = RULES["adam"]
    one, two = (Search.start(rule, (5, 40), 3) for _ in range(2))
    gy, x = values((2, 4, 5), torch.float32, 4), values((2, 4, 40), torch.float32, 5)
    one.update("cpp", "mask_grad_update_", rule, gy, x)
    two.update("cpp", "mask_grad_update_", rule, gy.flatten(0, 1), x.flatten(0, 1))
    assert all(torch.equal(t, two.tensors()[name]) for name, t in one.tensors().items())


# --------------------------------------------------------------------------------------------------------------- errors


def refused(kind: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("op", "name", "n"), [(ops.bit_linear, "x", 40), (ops.bit_linear_t, "g", 5)])
def test_products_refuse(op: Callable[..., Tensor], name: str, n: int) -> None:
    x = values((2, n), torch.float32, 6)
    for dtype in (torch.float64, torch.int32, torch.bool, torch.complex64):
        refused(TypeError, f"{name} must be one of torch.float32, torch.bfloat16, torch.float16, torch.int8, got {dtype}",
                lambda dtype=dtype: op(x.to(dtype), W))  # fmt: skip
    refused(TypeError, f"{name} must be a torch.Tensor, got list", lambda: op(x.tolist(), W))
    refused(TypeError, "w must be a BitMatrix, got Tensor", lambda: op(x, W.words))
    for shape in ((2, n + 1), (2, 0), (n, 2), (n - 1,), ()):
        refused(ValueError, f"{name} must have shape [.., {n}] to fit the bits, got {list(shape)}",
                lambda shape=shape: op(torch.zeros(shape), W))  # fmt: skip
    for shape in ((2, 4, n), (n,), (3, n + 1), (3, 4, n - 1)):
        refused(ValueError, f"{name} must have shape [3, .., {n}] to fit the bits, got {list(shape)}",
                lambda shape=shape: op(torch.zeros(shape), MEMBERS))  # fmt: skip
    refused(ValueError, f"{name} is on meta, the bits on cpu: move one with .to()", lambda: op(x.to("meta"), W))


def test_bit_matmul_refuses() -> None:
    refused(TypeError, "a must be a BitMatrix, got Tensor", lambda: ops.bit_matmul(W.unpack(), W))  # type: ignore[arg-type]
    refused(TypeError, "b must be a BitMatrix, got int", lambda: ops.bit_matmul(W, 3))  # type: ignore[arg-type]
    for b in (matrix((5, 41), 7), matrix((5, 64), 7), MEMBERS):  # 64 columns have as many words as 40
        refused(ValueError, f"a [5, 40] and b {list(b.shape)} must agree", lambda b=b: ops.bit_matmul(W, b))
    refused(ValueError, "a [3, 5, 40] and b [2, 5, 40]", lambda: ops.bit_matmul(MEMBERS, matrix((2, 5, 40), 8)))
    refused(ValueError, "a is on cpu, b on meta", lambda: ops.bit_matmul(W, W.to("meta")))


def update(op: str, search: Search, rule: Rule, /, **changed: object) -> Tensor:
    """The op on a sound set of arguments, but for what is changed."""
    operands = {"grad": values((5, 40), torch.float32, 9)}
    if op == "mask_grad_update_":
        operands = {"gy": values((6, 5), torch.float32, 9), "x": values((6, 40), torch.float32, 10)}
    arguments = {"scores": search.scores, **operands, "w": search.w, "state": search.state, "rule": rule}
    result: Tensor = getattr(ops, op)(**(arguments | changed))
    return result


@pytest.mark.parametrize("op", ["mask_update_", "mask_grad_update_"])
def test_updates_refuse(op: str) -> None:
    rule = RULES["adam"]
    search = Search.start(rule, (5, 40), 11)
    scores, state = search.scores, search.state
    assert scores is not None
    before = {name: t.clone() for name, t in search.tensors().items()}

    def no(kind: type[Exception], message: str, **changed: object) -> None:
        refused(kind, message, lambda: update(op, search, rule, **changed))

    no(TypeError, "w must be a BitMatrix, got Tensor", w=search.w.words)
    no(TypeError, "rule must be SGD, Adam or Bop, got str", rule="adam")
    no(TypeError, "state must be an UpdateState (rule.init_state(w)), got tuple", state=state.buffers)
    no(ValueError, "adam needs scores", scores=None)
    no(ValueError, "bop keeps no scores: pass None", rule=Bop())
    no(ValueError, "state has 2 buffers, sgd needs 1", rule=SGD())
    no(TypeError, "scores must be one of torch.float32, got torch.float64", scores=scores.double())
    no(TypeError, "scores must be a torch.Tensor, got list", scores=scores.tolist())
    no(ValueError, "scores must have the shape of the bits [5, 40], got [40, 5]", scores=scores.mT)
    no(ValueError, "scores is updated in place and must be contiguous", scores=torch.zeros(40, 5).mT)
    no(ValueError, "scores is updated in place and must be contiguous", scores=torch.zeros(1, 40).expand(5, 40))
    no(ValueError, "scores is on meta, the bits on cpu", scores=scores.to("meta"))
    wide = BitMatrix(matrix((5, 80), 12).words[:, :2], 40)
    no(ValueError, "w.words is updated in place and must be contiguous", w=wide)
    short = replace(state, buffers=(state.buffers[0], torch.zeros(5, 39)))
    no(ValueError, "state.buffers[1] must have the shape of the bits [5, 40], got [5, 39]", state=short)
    no(TypeError, "state.step must be one of torch.int64, got torch.int32", state=replace(state, step=state.step.int()))
    no(ValueError, "state.step must have shape [1], got []", state=replace(state, step=torch.tensor(3)))
    no(ValueError, "state.seed must have shape [1], got [2]", state=replace(state, seed=torch.tensor([1, 2])))
    no(TypeError, "hyper must be one of torch.float64, got torch.float32", hyper=torch.zeros(1, 6))
    no(ValueError, "hyper must be contiguous and of shape [1, 6], got [6]", hyper=torch.zeros(6).double())
    no(ValueError, "hyper is on meta, the bits on cpu", hyper=torch.zeros(1, 6, device="meta").double())
    if op == "mask_update_":
        no(TypeError, "grad must be one of torch.float32, got torch.bfloat16", grad=torch.zeros(5, 40).bfloat16())
        no(ValueError, "grad must have the shape of the bits [5, 40], got [40]", grad=torch.zeros(40))
        no(ValueError, "grad is on meta, the bits on cpu", grad=torch.zeros(5, 40, device="meta"))
    else:
        no(TypeError, "gy must be one of torch.float32, torch.bfloat16, torch.float16, got torch.int8",
           gy=torch.zeros(6, 5, dtype=torch.int8))  # fmt: skip
        no(TypeError, "got torch.float64", x=torch.zeros(6, 40).double())
        no(ValueError, "gy must have shape [.., 5] to fit the bits, got [6, 4]", gy=torch.zeros(6, 4))
        no(ValueError, "x must have shape [.., 40] to fit the bits, got [6, 41]", x=torch.zeros(6, 41))
        no(ValueError, "gy has a batch of 6, x of 7", x=torch.zeros(7, 40))
        no(ValueError, "gy has a batch of 6, x of 7", x=matrix((7, 40), 13))
        no(ValueError, "x [6, 41] on cpu must agree with w [5, 40] on cpu", x=matrix((6, 41), 14))
        no(ValueError, "x [3, 6, 40] on cpu must agree with w [5, 40]", x=matrix((3, 6, 40), 15))
    # Nothing was changed on the way to an error.
    assert all(torch.equal(t, before[name]) for name, t in search.tensors().items())
    assert update(op, search, rule).dtype == torch.int64


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gy_and_x_may_differ_in_dtype(dtype: torch.dtype) -> None:
    rule = RULES["sgd"]
    one, two = (Search.start(rule, (5, 40), 16) for _ in range(2))
    gy, x = values((6, 5), torch.bfloat16, 17, "integers"), values((6, 40), dtype, 18, "integers")
    one.update("cpp", "mask_grad_update_", rule, gy, x)
    two.update("reference", "mask_grad_update_", rule, gy, x)
    assert all(torch.equal(t, two.tensors()[name]) for name, t in one.tensors().items())
