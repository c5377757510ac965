"""Layers of weights in {−1, 0, 1} and {−1, 1} on the {0,1} kernels, against dense products in float64."""

from __future__ import annotations

import re
from itertools import product

import cases
import pytest
import torch
from cases import FLOATS, OPERANDS, assert_product, assert_same, values
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastbin import BitMatrix, backends, ops, reference, signed

KINDS = ("ternary", "sign")


def weights(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    low, step = (-1, 1) if kind == "ternary" else (-1, 2)
    return torch.randint(0, 3 if kind == "ternary" else 2, shape, generator=cases.generator(seed)) * step + low


def packed(kind: str, dense: Tensor) -> tuple[BitMatrix, ...]:
    return BitMatrix.pack_ternary(dense) if kind == "ternary" else (BitMatrix.pack_signs(dense),)


def linear(kind: str, x: Tensor, bits: tuple[BitMatrix, ...], scale: Tensor | float | None = None) -> Tensor:
    return (ops.ternary_linear if kind == "ternary" else ops.sign_linear)(x, *bits, scale)  # type: ignore[operator]


def check(kind: str, dtype: torch.dtype, sizes: tuple[int | None, int, int, int], seed: int) -> None:
    """Both products of one matrix, within what is asked of the {0,1} products."""
    population, batch, rows, cols = sizes
    dense = weights(kind, cases.shape_of(population, rows, cols), seed)
    bits = packed(kind, dense)
    words = [b.words for b in bits]
    x, g = (values(cases.shape_of(population, batch, n), dtype, seed + n) for n in (cols, rows))
    back = signed.ternary_linear_t if kind == "ternary" else signed.sign_linear_t
    with cases.poisoned():
        y, gx = linear(kind, x, bits), back(g, *words, cols)
    assert_product(y, x, dense.mT, sizes)
    assert_product(gx, g, dense, sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_products_of_every_size(kind: str, dtype: torch.dtype) -> None:
    for population, batch, rows, cols in product((None, 2), (0, 1, 33), (0, 1, 33), (0, 1, 65)):
        check(kind, dtype, (population, batch, rows, cols), batch + rows + cols)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 257, 1031), (17, 300, 2049), (130, 40, 4099), (3, 1, 131073)])
def test_products_wider_than_a_tile(kind: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    check(kind, dtype, (None, *sizes), 1)


@pytest.mark.parametrize("kind", KINDS)
@given(cases.populations, cases.sizes, cases.sizes, cases.sizes, st.sampled_from(OPERANDS), cases.seeds)
def test_products_of_any_size(
    kind: str, population: int | None, batch: int, rows: int, cols: int, dtype: torch.dtype, seed: int
) -> None:
    check(kind, dtype, (population, batch, rows, cols), seed)


@pytest.mark.parametrize("op", signed.OPS, ids=lambda op: op.name)
def test_the_reference_says_the_same(op: object) -> None:
    """On whole numbers, exactly; also where the reference's {0,1} products serve."""
    x, g = values((7, 70), torch.float32, 2, "integers"), values((7, 33), torch.float32, 3, "integers")
    plus, minus = (cases.matrix((33, 70), seed).words for seed in (4, 5))  # where both are 1 the weight is 0
    words = (plus, minus) if "ternary" in op.name else (plus,)
    arguments = (g, *words, 70) if op.name.endswith("_t") else (x, *words)
    wanted = getattr(reference, op.name)(*arguments)
    assert_same(op(*arguments), wanted)
    with backends.override("reference"):
        assert_same(op(*arguments), wanted)


# ---------------------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize("kind", [*KINDS, "bit"])
@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_scale(kind: str, dtype: torch.dtype) -> None:
    """A product, rounded to the dtype, times the scale, rounded again: float32 for int8."""
    dense = weights("ternary" if kind == "bit" else kind, (5, 40), 6)
    bits = (BitMatrix.pack(dense > 0),) if kind == "bit" else packed(kind, dense)
    call = ops.bit_linear if kind == "bit" else lambda *args: linear(kind, args[0], bits, args[-1])
    x, many = values((3, 2, 40), dtype, 7), torch.rand(5) + 0.5
    plain = call(x, *bits, None)
    for scale in (0.25, 2, torch.tensor(0.3), many, many.bfloat16()):
        got = call(x, *bits, scale)
        assert_same(got, (plain * scale).to(torch.float32 if dtype == torch.int8 else dtype), scale)


def test_scale_of_a_population() -> None:
    dense = weights("ternary", (3, 5, 40), 8)
    x, scale = values((3, 2, 4, 40), torch.float32, 9), torch.rand(3, 5) + 0.5
    bits = BitMatrix.pack_ternary(dense)
    y = ops.ternary_linear(x, *bits, scale)
    for p in range(3):
        one = (BitMatrix(b.words[p], 40) for b in bits)
        assert torch.equal(y[p], ops.ternary_linear(x[p], *one, scale[p]))


# ----------------------------------------------------------------------------------------------------------------- torch

X = values((6, 70), torch.float32, 10)
G = values((6, 33), torch.float32, 11)
BITS = {kind: packed(kind, weights(kind, (33, 70), 12)) for kind in KINDS}
MEMBERS = {kind: packed(kind, weights(kind, (3, 33, 70), 13)) for kind in KINDS}


@pytest.mark.parametrize("op", signed.OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("population", [None, 3])
def test_opcheck(op: object, population: int | None) -> None:
    bits = (BITS if population is None else MEMBERS)["ternary" if "ternary" in op.name else "sign"]
    words = [b.words for b in bits]
    x, cols = (G, [70]) if op.name.endswith("_t") else (X, [])
    for dtype in (torch.float32, torch.int8):
        operand = x.to(dtype).expand(*[3] * (population is not None), *x.shape).clone()
        operand.requires_grad_(dtype == torch.float32)
        results = torch.library.opcheck(op.op, (operand, *words, *cols))
        assert set(results.values()) == {"SUCCESS"} and len(results) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [BITS, MEMBERS], ids=["matrix", "population"])
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
def test_derivatives(kind: str, bits: dict[str, tuple[BitMatrix, ...]]) -> None:
    """Of whole numbers with a step of 1, where finite differences are exact in float32."""
    lead = (3, 2) if bits is MEMBERS else (2,)
    x = values((*lead, 70), torch.float32, 14, "integers").requires_grad_()
    scale = torch.full((33,), 0.5, requires_grad=True)
    call = lambda x, s: linear(kind, x, bits[kind], s)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, scale), eps=1.0, atol=1e-6, rtol=0.0)
    gy = torch.ones_like(call(x, scale)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: call(x, 0.5), x, gy, eps=1.0, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_derivatives_are_dense_layers_derivatives(kind: str, dtype: torch.dtype) -> None:
    x, gy = X.to(dtype, copy=True).requires_grad_(), G.to(dtype)
    linear(kind, x, BITS[kind]).backward(gy)
    assert x.grad is not None and x.grad.dtype == dtype
    assert_product(x.grad, gy, weights(kind, (33, 70), 12), dtype)


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for kind in KINDS:
            for i, b in enumerate(BITS[kind]):
                self.register_buffer(f"{kind}{i}", b.words)

    def forward(self, x: Tensor) -> Tensor:
        plus, minus, w = (BitMatrix(words, 70) for words in self.buffers())
        return ops.ternary_linear(x, plus, minus, 0.5).relu() + ops.sign_linear(x, w)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, within inductor
def test_compile_without_a_graph_break(backend: str) -> None:
    layers = Layers()
    one, two = (X.clone().requires_grad_() for _ in range(2))
    y = torch.compile(layers, fullgraph=True, backend=backend)(one)
    torch.testing.assert_close(y, layers(two))
    y.square().sum().backward()
    layers(two).square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_export() -> None:
    program = torch.export.export(Layers(), (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=100)},))
    assert {"ternary_linear", "sign_linear"} <= {
        node.target._schema.name.split("::")[1] for node in program.graph.nodes if node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
    }  # fmt: skip
    for x in (X, X[:3]):
        torch.testing.assert_close(program.module()(x), Layers()(x))


# --------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [t for t in cases.PACKABLE if t not in (torch.bool, torch.uint8)], ids=str)
def test_packing(kind: str, dtype: torch.dtype) -> None:
    dense = weights(kind, (2, 5, 70), 15)
    bits = packed(kind, dense.to(dtype))
    back = bits[0].unpack() - bits[1].unpack() if kind == "ternary" else 2 * bits[0].unpack() - 1
    assert torch.equal(back, dense.float())


def test_packing_of_unsigned_values() -> None:
    for dtype in (torch.bool, torch.uint8):
        plus, minus = BitMatrix.pack_ternary(torch.tensor([[0, 1]]).to(dtype))
        assert plus.unpack().tolist() == [[0, 1]] and minus.density() == 0
        assert BitMatrix.pack_signs(torch.ones(1, 2).to(dtype)).density() == 1


@pytest.mark.parametrize("bad", [2, -2, 0.5, float("nan"), float("inf")])
def test_packing_refuses_other_values(bad: float) -> None:
    t = torch.ones(3, 40)
    t[1, 33] = bad
    with pytest.raises(ValueError, match=rf"values of -1, 0 and 1, got {re.escape(repr(float(bad)))} at \(1, 33\)"):
        BitMatrix.pack_ternary(t)
    with pytest.raises(ValueError, match=rf"values of -1 and 1, got {re.escape(repr(float(bad)))} at \(1, 33\)"):
        BitMatrix.pack_signs(t)
    with pytest.raises(ValueError, match=r"values of -1 and 1, got 0\.0 at \(0, 0\)"):
        BitMatrix.pack_signs(t.sub(1))
    with pytest.raises(ValueError, match=r"values of -1 and 1, got 255 at \(0, 0\)"):
        BitMatrix.pack_signs(torch.full((1, 1), 255, dtype=torch.uint8))


def test_refusals() -> None:
    plus, minus = BITS["ternary"]
    for message, kind, call in (
        ("plus must be a BitMatrix, got Tensor", TypeError, lambda: ops.ternary_linear(X, plus.words, minus)),
        ("minus must be a BitMatrix, got Tensor", TypeError, lambda: ops.ternary_linear(X, plus, minus.words)),
        ("w must be a BitMatrix, got Tensor", TypeError, lambda: ops.sign_linear(X, plus.words)),
        ("plus [33, 70] on cpu must agree with minus [2, 70] on cpu", ValueError,
         lambda: ops.ternary_linear(X, plus, cases.matrix((2, 70), 1))),
        ("plus [33, 70] on cpu must agree with minus [33, 70] on meta", ValueError,
         lambda: ops.ternary_linear(X, plus, minus.to("meta"))),
        ("x must have shape [.., 70] to fit the bits, got [6, 33]", ValueError, lambda: ops.ternary_linear(G, plus, minus)),
        ("got torch.float64", TypeError, lambda: ops.sign_linear(X.double(), plus)),
        ("scale must be a number or a torch.Tensor, got str", TypeError, lambda: ops.sign_linear(X, plus, "1")),
        ("scale must be one of torch.float32, torch.bfloat16, torch.float16, got torch.int64", TypeError,
         lambda: ops.sign_linear(X, plus, torch.tensor(2))),
        ("scale must have one of the shapes [], [33] to fit the bits, got [6, 1]", ValueError,
         lambda: ops.bit_linear(X, plus, torch.ones(6, 1))),
        ("scale is on meta", ValueError, lambda: ops.sign_linear(X, plus, torch.ones(33, device="meta"))),
    ):  # fmt: skip
        with pytest.raises(kind, match=re.escape(message)):
            call()
    raw = torch.ops.fastbin
    for call in (
        lambda: raw.ternary_linear(X, plus.words, minus.words[:5]),
        lambda: raw.ternary_linear(G, plus.words, minus.words),
        lambda: raw.ternary_linear_t(X, plus.words, minus.words, 70),
        lambda: raw.sign_linear(X, plus.words[:, :2]),
        lambda: raw.sign_linear_t(G, plus.words, 97),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            call()
