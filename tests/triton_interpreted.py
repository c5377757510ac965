"""Run by test_triton.py under TRITON_INTERPRET=1: each kernel against the function of the same name in the reference."""

import math

import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from fastbin import reference
from fastbin.kernels import bit_linear, bit_matmul, bits, configs, mask_grad_update, mask_update
from fastbin.rules import SGD, Adam, Bop

SIZES = (0, 1, 31, 32, 33, 63, 64, 65)
SHAPES = [(3, n) for n in SIZES] + [(n, 33) for n in SIZES] + [(65, 130)]
POPULATIONS = [(), (1,), (3,), (0,)]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def random_bits(*shape):
    return torch.rand(shape) < 0.5


def random_words(*shape):
    return reference.pack(random_bits(*shape), None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _bfloat16_dot(monkeypatch):
    """The interpreter keeps bfloat16 as integers and would multiply those: give its dot float32, which holds the same."""
    plain = InterpreterBuilder.create_dot

    def dot(self, a, b, *rest):
        a, b = (self.create_fp_ext(t, tl.float32) if t.dtype == tl.bfloat16 else t for t in (a, b))
        return plain(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


# ---------------------------------------------------------------------------------------------------- moving bits about


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lead", POPULATIONS)
def test_moving_bits(shape, lead):
    x = random_bits(*lead, *shape)
    words = reference.pack(x, None)
    assert torch.equal(bits.pack(x, None), words)
    assert torch.equal(bits.pack(x.float(), None), words)
    assert torch.equal(bits.pack(torch.where(x, 0.25, -0.5), 0.125), words)
    assert torch.equal(bits.unpack(words, shape[1], torch.bool), x)
    assert torch.equal(bits.transpose(words, shape[1]), reference.transpose(words, shape[1]))
    assert torch.equal(bits.popcount(words), reference.popcount(words))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int64])
def test_pack_and_unpack_by_dtype(dtype):
    x = random_bits(5, 70).to(dtype)
    words = reference.pack(x, None)
    assert torch.equal(bits.pack(x, None), words)
    y = bits.unpack(words, 70, dtype)
    assert y.dtype == dtype
    assert torch.equal(y, x)
    shifted = x * 3
    assert torch.equal(bits.pack(shifted, 1.0), words)


def test_pack_takes_a_negative_zero_and_strides():
    assert not bits.pack(torch.full((2, 40), -0.0), None).any()
    x = random_bits(40, 70)
    assert torch.equal(bits.pack(x.T, None), reference.pack(x.T, None))


@pytest.mark.parametrize(
    ("value", "threshold", "message"), [(2.0, None, "2.0 at"), (math.nan, None, "nan"), (math.nan, 0.0, "nan")]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_pack_names_a_bad_value(value, threshold, message, dtype):
    x = torch.zeros(3, 40, dtype=dtype)
    x[1, 35] = value
    with pytest.raises(ValueError, match=message) as error:
        bits.pack(x, threshold)
    assert "(1, 35)" in str(error.value)


def test_pack_unchecked_takes_nan_for_not_above():
    x = torch.where(random_bits(5, 70), 1.0, math.nan)
    for dtype in FLOATS:
        assert torch.equal(bits.pack(x.to(dtype), 0.0, False), reference.pack(x > 0, None))


def test_popcount_over_several_programs():
    words = torch.randint(-(2**31), 2**31, (2, 3, 3000), dtype=torch.int64).to(torch.int32)
    assert torch.equal(bits.popcount(words), reference.popcount(words))


# ------------------------------------------------------------------------------------------------------------- products


def values(*shape, dtype):
    """Integers so small that sums of 130 of them are exact in dtype."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=dtype)
    bound = 1 if dtype == torch.bfloat16 else 8
    return torch.randint(-bound, bound + 1, shape).to(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_products_are_exact_on_integers(dtype, rows, cols):
    words = random_words(rows, cols)
    x, g = values(5, cols, dtype=dtype), values(5, rows, dtype=dtype)
    for ours, truth in (
        (bit_linear.bit_linear(x, words), reference.bit_linear(x, words)),
        (bit_linear.bit_linear_t(g, words, cols), reference.bit_linear_t(g, words, cols)),
    ):
        assert ours.dtype == truth.dtype
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("batch", SIZES)
@pytest.mark.parametrize("lead", POPULATIONS)
def test_products_of_batches_and_populations(batch, lead):
    words = random_words(*lead, 33, 65)
    x, g = values(*lead, batch, 65, dtype=torch.float32), values(*lead, batch, 33, dtype=torch.float32)
    assert torch.equal(bit_linear.bit_linear(x, words), reference.bit_linear(x, words))
    assert torch.equal(bit_linear.bit_linear_t(g, words, 65), reference.bit_linear_t(g, words, 65))


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_of_reals(dtype):
    """Each of 300 float32 sums errs by 2⁻²⁴ of the magnitudes at most, and the output by an ulp.

    Half an ulp but for bfloat16, which the interpreter truncates.
    """
    words = random_words(40, 300)
    x = torch.randn(20, 300).to(dtype)
    y, w = bit_linear.bit_linear(x, words).double(), reference.unpack(words, 300, torch.float64)
    truth, magnitude = x.double() @ w.T, x.double().abs() @ w.T
    ulp = torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 0.5)
    assert ((y - truth).abs() <= 300 * 2**-24 * magnitude + ulp * truth.abs()).all()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_products_with_the_inner_dimension_split(dtype, lead):
    """So few tiles that partial sums are added by a second kernel; sums of about 50 ones are exact in all dtypes."""
    config = configs.find("bit_linear", dtype, 5, torch.device("cpu"))
    assert bit_linear.split_inner(2500, 2, config) < 2500
    low = -128 if dtype == torch.int8 else 0  # then sums reach 160000
    x = (torch.rand(*lead, 5, 2500) < 0.04).to(dtype) + low
    words, other = random_words(*lead, 33, 2500), random_words(*lead, 2500, 33)
    assert torch.equal(bit_linear.bit_linear(x, words), reference.bit_linear(x, words))
    assert torch.equal(bit_linear.bit_linear_t(x, other, 33), reference.bit_linear_t(x, other, 33))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_products_of_many_tiles(dtype):
    """More tiles of outputs than run together in one group, and a last group that is not full."""
    words, other = random_words(1300, 70), random_words(70, 1300)
    x = values(300, 70, dtype=dtype)
    assert torch.equal(bit_linear.bit_linear(x, words), reference.bit_linear(x, words))
    assert torch.equal(bit_linear.bit_linear_t(x, other, 1300), reference.bit_linear_t(x, other, 1300))


def test_float32_products_keep_every_bit():
    """Selections of one number each: all 24 bits, and any exponent, come through the three parts of a float32."""
    x = torch.randn(40, 64) * 10.0 ** torch.randint(-30, 38, (40, 64)).float()
    x[0, :4] = torch.tensor([3.4028234663852886e38, -3.4028234663852886e38, 1.1754943508222875e-30, -0.0])
    words = reference.pack(torch.eye(64), None)
    assert torch.equal(bit_linear.bit_linear(x, words), x)
    assert torch.equal(bit_linear.bit_linear_t(x, words, 64), x)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("lead", POPULATIONS)
def test_bit_matmul(rows, cols, lead):
    a, b = random_words(*lead, rows, cols), random_words(*lead, 66, cols)
    assert torch.equal(bit_matmul.bit_matmul(a, b), reference.bit_matmul(a, b))
    assert torch.equal(bit_matmul.bit_matmul(b, a), reference.bit_matmul(b, a))


# -------------------------------------------------------------------------------------------------------------- updates

RULES = [
    SGD(lr=0.5, momentum=0.0),
    SGD(lr=0.5, tau=0.7, clip=0.6, momentum=0.9),
    SGD(lr=0.5, sample=True),
    Adam(lr=0.05, tau=0.3, clip=1.5),
    Adam(lr=0.05, sample=True),
    Adam(lr=0.05, betas=(0.0, 0.5)),
    Bop(gamma=0.3, threshold=0.05),
    Bop(gamma=1.0, threshold=0.0),
]
SEEDS = (2**63 - 1, -5, 12345678901)


class Problem:
    """Arguments of an update of ``[*lead, rows, cols]``, made anew for each implementation."""

    def __init__(self, rule, lead, rows, cols, step):
        self.rule, members = rule, lead[0] if lead else 1
        self.scores = None if isinstance(rule, Bop) else torch.randn(*lead, rows, cols)
        self.words = random_words(*lead, rows, cols)
        self.buffers = [torch.rand(*lead, rows, cols) * 0.1 for _ in range(rule.buffer_count)]
        self.step = torch.tensor([step])
        self.seed = torch.tensor(SEEDS[:members], dtype=torch.int64)
        # a row of its own for each member; no rule's constant leaves its range when scaled down
        self.hyper = rule.hyper(members, torch.device("cpu")) * (1 - torch.arange(members)[:, None] / 16)

    def run(self, update, *gradient):
        """What `update` returns and leaves behind."""
        tensors = [self.scores, self.words, *self.buffers, self.step]
        scores, words, *buffers, step = (None if t is None else t.clone() for t in tensors)
        flips = update(scores, *gradient, words, buffers, step, self.seed, self.hyper, self.rule.name, self.rule.sample)
        return [flips, words, *buffers, step, *([] if scores is None else [scores])]

    def compare(self, ours, truth, *gradient):
        for mine, expected in zip(self.run(ours, *gradient), self.run(truth, *gradient), strict=True):
            assert mine.dtype == expected.dtype
            assert torch.equal(mine, expected)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 31), (2, 32), (3, 33), (5, 63), (64, 64), (33, 65)])
def test_mask_update_equals_the_reference_bit_for_bit(rule, rows, cols):
    problem = Problem(rule, (), rows, cols, step=2)
    problem.compare(mask_update.mask_update_, reference.mask_update_, torch.randn(rows, cols))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(
    ("lead", "rows", "cols"), [((3,), 9, 70), ((1,), 3, 33), ((0,), 3, 33), ((2,), 0, 5), ((), 4, 0)]
)
def test_mask_update_of_populations_and_nothing(rule, lead, rows, cols):
    problem = Problem(rule, lead, rows, cols, step=0)
    problem.compare(mask_update.mask_update_, reference.mask_update_, torch.randn(*lead, rows, cols))


@pytest.mark.parametrize("step", [0, 1, 9, 999, 123_456, 2**32 + 7])
@pytest.mark.parametrize("sample", [False, True])
def test_mask_update_at_any_step(step, sample):
    """The bias corrections, from powers by squaring, round to the reference's float32; the counter has two halves."""
    problem = Problem(Adam(lr=0.05, sample=sample), (3,), 5, 40, step)
    problem.compare(mask_update.mask_update_, reference.mask_update_, torch.randn(3, 5, 40))


@pytest.mark.filterwarnings("ignore:overflow")  # as it should at 1e30²
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_mask_update_of_extreme_gradients_and_scores(scale):
    problem = Problem(Adam(clip=1e6), (), 5, 70, step=3)
    problem.scores *= torch.tensor([0.0, 1e-30, 1.0, 80.0, 1e4])[:, None]
    problem.compare(mask_update.mask_update_, reference.mask_update_, torch.randn(5, 70) * scale)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("kind", ["bits", "real"])
@pytest.mark.parametrize(("lead", "batch", "rows", "cols"), [((), 40, 33, 70), ((3,), 5, 3, 33), ((), 0, 3, 33)])
@pytest.mark.parametrize("fused", [True, False])
def test_mask_grad_update_equals_the_reference_where_sums_are_exact(
    rule, kind, lead, batch, rows, cols, fused, monkeypatch
):
    monkeypatch.setattr(mask_grad_update, "fused_pays", lambda *_: fused)
    problem = Problem(rule, lead, rows, cols, step=2)
    gy = values(*lead, batch, rows, dtype=torch.float32) / 64
    x = random_words(*lead, batch, cols) if kind == "bits" else values(*lead, batch, cols, dtype=torch.float32)
    problem.compare(mask_grad_update.mask_grad_update_, reference.mask_grad_update_, gy, x)


def test_fusing_pays_for_small_batches():
    pays = mask_grad_update.fused_pays
    for dtype in FLOATS:
        assert pays(1, 4096, 4096, dtype) and not pays(10**5, 4096, 4096, dtype)
    assert pays(512, 4096, 4096, torch.bfloat16) and not pays(512, 4096, 4096, torch.float32)
    assert pays(800, 4096, 4096, torch.float16) and not pays(800, 1024, 1024, torch.float16)


@pytest.mark.parametrize("gy_dtype", FLOATS)
@pytest.mark.parametrize("x_dtype", [*FLOATS, torch.int32])
@pytest.mark.parametrize("fused", [True, False])
def test_mask_grad_update_by_dtype(gy_dtype, x_dtype, fused, monkeypatch):
    monkeypatch.setattr(mask_grad_update, "fused_pays", lambda *_: fused)
    problem = Problem(Adam(), (), 65, 66, step=2)
    gy = values(33, 65, dtype=gy_dtype) / 64
    x = random_words(33, 66) if x_dtype == torch.int32 else values(33, 66, dtype=x_dtype)
    problem.compare(mask_grad_update.mask_grad_update_, reference.mask_grad_update_, gy, x)


@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0)])
def test_mask_grad_update_of_nothing(rows, cols):
    problem = Problem(Adam(), (2,), rows, cols, step=2)
    gy, x = torch.randn(2, 4, rows), torch.randn(2, 4, cols)
    problem.compare(mask_grad_update.mask_grad_update_, reference.mask_grad_update_, gy, x)
