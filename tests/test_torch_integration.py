"""The ops as torch operators: opcheck, derivatives, torch.compile, torch.export, torch.func."""

from __future__ import annotations

import cases
import pytest
import torch
from cases import RULES, Search, matrix, values
from torch import Tensor

from fastbin import BitMatrix, backends, library, ops
from fastbin.rules import SGD

X, G = values((6, 70), torch.float32, 1), values((6, 33), torch.float32, 2)
W = matrix((33, 70), 3)
MEMBERS = matrix((3, 33, 70), 4)


def update_arguments(name: str, shape: tuple[int, ...], *operands: Tensor) -> tuple[object, ...]:
    rule = RULES[name]
    search = Search.start(rule, shape, 5)
    state = search.state
    hyper = rule.hyper(shape[0] if len(shape) == 3 else 1, torch.device("cpu"))
    return (search.scores, *operands, search.w.words, list(state.buffers), state.step, state.seed, hyper, rule.name,
            rule.sample)  # fmt: skip


ARGUMENTS: dict[str, tuple[str, tuple[object, ...]]] = {
    "pack": ("pack", (W.unpack(), None)),
    "pack with threshold": ("pack", (X, 0.5)),
    "unpack": ("unpack", (W.words, 70, torch.float32)),
    "unpack of a population": ("unpack", (MEMBERS.words, 70, torch.bool)),
    "transpose": ("transpose", (W.words, 70)),
    "transpose of a population": ("transpose", (MEMBERS.words, 70)),
    "popcount": ("popcount", (W.words,)),
    "popcount of a population": ("popcount", (MEMBERS.words,)),
    "bit_linear": ("bit_linear", (X.clone().requires_grad_(), W.words)),
    "bit_linear of int8": ("bit_linear", (X.to(torch.int8), W.words)),
    "bit_linear of a population": ("bit_linear", (X.expand(3, 6, 70).clone().requires_grad_(), MEMBERS.words)),
    "bit_linear_t": ("bit_linear_t", (G.clone().requires_grad_(), W.words, 70)),
    "bit_linear_t of bfloat16": ("bit_linear_t", (G.bfloat16(), W.words, 70)),
    "bit_matmul": ("bit_matmul", (W.words, W.words[:5])),
    "mask_update_ adam": ("mask_update_", update_arguments("adam", (33, 70), values((33, 70), torch.float32, 6))),
    "mask_update_ sampling": ("mask_update_", update_arguments("sgd sampling", (3, 5, 40), torch.ones(3, 5, 40))),
    "mask_update_ bop": ("mask_update_", update_arguments("bop", (33, 70), values((33, 70), torch.float32, 8))),
    "mask_grad_update_ real": ("mask_grad_update_", update_arguments("adam", (33, 70), G, X)),
    "mask_grad_update_ bits": ("mask_grad_update_", update_arguments("bop", (33, 70), G, matrix((6, 70), 9).words)),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_opcheck(case: str) -> None:
    op, arguments = ARGUMENTS[case]
    results = torch.library.opcheck(getattr(library, op).op, arguments)
    assert set(results.values()) == {"SUCCESS"} and len(results) == 4


def test_opcheck_covers_every_op() -> None:
    assert {op for op, _ in ARGUMENTS.values()} == set(backends.OPS)


# ---------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("w", [W, MEMBERS], ids=["matrix", "population"])
@pytest.mark.parametrize("op", [ops.bit_linear, ops.bit_linear_t])
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
def test_derivatives_of_the_kernels(op: object, w: BitMatrix) -> None:
    """Linear ops on whole numbers, with a step of 1: the finite differences are exact in float32."""
    assert callable(op)
    n = w.cols if op is ops.bit_linear else w.rows
    x = values((3, 2, n) if w is MEMBERS else (2, n), torch.float32, 10, "integers").requires_grad_()
    assert torch.autograd.gradcheck(lambda t: op(t, w), x, eps=1.0, atol=1e-6, rtol=0.0)
    gy = torch.ones_like(op(x, w)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: op(t, w), x, gy, eps=1.0, atol=1e-6, rtol=0.0)


def test_derivatives_in_float64() -> None:
    """The reference takes float64: the derivative that is registered, by gradcheck's own tolerances."""
    x, g = X.double().requires_grad_(), G.double().requires_grad_()
    with backends.override("reference"):
        assert torch.autograd.gradcheck(lambda t: library.bit_linear(t, W.words), x)
        assert torch.autograd.gradgradcheck(lambda t: library.bit_linear(t, W.words), x)
        assert torch.autograd.gradcheck(lambda t: library.bit_linear_t(t, W.words, 70), g)
        assert torch.autograd.gradgradcheck(lambda t: library.bit_linear_t(t, W.words, 70), g)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_derivatives_are_dense_layers_derivatives(dtype: torch.dtype) -> None:
    x, gy = X.to(dtype, copy=True).requires_grad_(), G.to(dtype)
    ops.bit_linear(x, W).backward(gy)
    assert x.grad is not None and x.grad.dtype == dtype
    cases.assert_product(x.grad, gy, W.unpack(torch.float64))


def test_integers_have_no_derivative() -> None:
    assert not ops.bit_linear(X.to(torch.int8), W).requires_grad
    assert not ops.bit_matmul(W, W).requires_grad


# ------------------------------------------------------------------------------------------------------ compile, export


def layer(x: Tensor, words: Tensor) -> Tensor:
    w = BitMatrix(words, 70)
    h = ops.bit_linear(x, w).relu()
    bits = BitMatrix.pack(h, threshold=0.5)
    counts = ops.bit_matmul(bits, BitMatrix(words[:, :2], 33))
    return ops.bit_linear_t(h, w).sum(-1) + counts.sum(-1) + w.count() + w.T.unpack().sum()


def search_step(x: Tensor, gy: Tensor, search: Search) -> Tensor:
    y = ops.bit_linear(x, search.w)
    flips = ops.mask_grad_update_(search.scores, gy, x, search.w, search.state, RULES["adam"])
    return y.sum() + flips + ops.mask_update_(search.scores, gy.mT @ x, search.w, search.state, RULES["adam"])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, within inductor
def test_compile_without_a_graph_break(backend: str) -> None:
    words = matrix((33, 70), 11).words
    words[:, 1] &= 1  # its first two words are the rows of a matrix of 33 columns, too
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(X, words), layer(X, words))


def test_compile_with_sizes_that_change() -> None:
    compiled = torch.compile(lambda x: ops.bit_linear(x, W).sin(), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5, 6):
        torch.testing.assert_close(compiled(X[:batch]), ops.bit_linear(X[:batch], W).sin())


def test_compile_a_search_step() -> None:
    eager, traced = (Search.start(RULES["adam"], (33, 70), 12) for _ in range(2))
    compiled = torch.compile(search_step, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert torch.equal(search_step(X, G, eager), compiled(X, G, traced))
    for name, t in eager.tensors().items():
        assert torch.equal(t, traced.tensors()[name]), name
    assert int(eager.state.step) == 6


def test_compile_the_derivative() -> None:
    compiled = torch.compile(lambda x: ops.bit_linear(x, W).pow(2).sum(), fullgraph=True, backend="aot_eager")
    one, two = (X.clone().requires_grad_() for _ in range(2))
    compiled(one).backward()
    ops.bit_linear(two, W).pow(2).sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("words", W.words.clone())

    def forward(self, x: Tensor) -> Tensor:
        return ops.bit_linear(x, BitMatrix(self.words, 70)).relu()


def test_export() -> None:
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(Net(), (X,), dynamic_shapes=({0: batch},))
    assert "torch.ops.fastbin.bit_linear.default" in program.graph_module.code
    for x in (X, X[:3]):
        torch.testing.assert_close(program.module()(x), Net()(x))


def test_inference_mode() -> None:
    with torch.inference_mode():
        assert torch.equal(ops.bit_linear(X, W), ops.bit_linear(X.clone(), W.clone()))


def test_raw_ops_refuse_what_would_leave_memory():
    """What `fastbin.ops` would have refused with a better message must not crash when the torch op is called itself."""
    raw = torch.ops.fastbin
    words, x, grad = torch.zeros(3, 1, dtype=torch.int32), torch.zeros(2, 64), torch.zeros(3, 40)
    state = ([grad.clone()], torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    hyper = SGD().hyper(1, words.device)
    for call in (
        lambda: raw.bit_linear(x, words),
        lambda: raw.bit_linear(x[:, :32], words.long()),
        lambda: raw.bit_linear(x[None, :, :32], words),
        lambda: raw.bit_linear_t(x, words, 32),
        lambda: raw.bit_linear_t(x[:, :3], words, 33),
        lambda: raw.bit_matmul(words, words.repeat(1, 2)),
        lambda: raw.unpack(words, 33, torch.float32),
        lambda: raw.transpose(words, 64),
        lambda: raw.popcount(words.float()),
        lambda: raw.pack(torch.tensor(1.0), None),
        lambda: raw.mask_update_(grad, grad, words, *state, hyper, "sgd", False),
        lambda: raw.mask_update_(grad, grad, words.repeat(1, 2), *state, hyper, "adam", False),
        lambda: raw.mask_update_(grad[:2], grad, words.repeat(1, 2), *state, hyper, "sgd", False),
        lambda: raw.mask_update_(grad, grad, words.repeat(1, 2), *state, hyper[:, :3], "sgd", False),
        lambda: raw.mask_grad_update_(grad, x[:, :3], x, words.repeat(1, 2), *state, hyper, "sgd", False),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            call()
