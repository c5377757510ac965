"""The reference against what is simpler still: numpy, Python loops, published vectors, torch.optim."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import torch
from cases import RULES, Search, numpy_bits, numpy_words, random_bits, shape_of, values
from hypothesis import given
from torch import Tensor

from fastbin import reference
from fastbin.bits import BitMatrix
from fastbin.rules import SGD, Adam, Bop

# ---------------------------------------------------------------------------------------------------- moving bits about


def test_the_layout_by_hand() -> None:
    x = torch.zeros(2, 33)
    x[0, 0] = x[0, 5] = x[1, 31] = x[1, 32] = 1
    assert reference.pack(x, None).tolist() == [[1 + 2**5, 0], [-(2**31), 1]]


@given(cases.populations, cases.sizes, cases.sizes, cases.densities, cases.seeds)
def test_bits_move_as_numpy_moves_them(population: int | None, rows: int, cols: int, density: float, seed: int) -> None:
    bits = random_bits(shape_of(population, rows, cols), seed, density)
    words = numpy_words(bits)
    assert torch.equal(reference.pack(bits, None), words)
    assert torch.equal(reference.pack(bits.float() - 0.5, 0.0), words)
    assert torch.equal(reference.unpack(words, cols, torch.float32), bits.float())
    assert torch.equal(reference.transpose(words, cols), numpy_words(bits.mT))
    assert torch.equal(reference.popcount(words), torch.from_numpy(np.asarray(bits.numpy().sum((-1, -2)))))


@pytest.mark.parametrize(
    ("value", "threshold"), [(2.0, None), (-1.0, None), (0.5, None), (math.nan, None), (math.nan, 0.0)]
)
def test_pack_names_what_it_refuses(value: float, threshold: float | None) -> None:
    x = torch.zeros(3, 40)
    x[1, 37] = x[2, 1] = value
    with pytest.raises(ValueError, match=rf"got {value} at \(1, 37\)"):
        reference.pack(x, threshold)


def test_a_value_at_the_threshold_is_not_past_it() -> None:
    assert reference.pack(torch.tensor([[0.5, 0.25, 0.75, 0.0, -0.0]]), 0.5).tolist() == [[0b00100]]
    assert reference.pack(torch.tensor([[0.0, -0.0, 1e-45]]), 0.0).tolist() == [[0b100]]


# ------------------------------------------------------------------------------------------------------------- products


def loops(a: Tensor, b: Tensor) -> list[list[int]]:
    """``a @ bᵀ`` in Python integers."""
    return [[sum(int(u) * int(v) for u, v in zip(s, t, strict=True)) for t in b] for s in a]


def test_products_by_loops() -> None:
    x, bits = values((3, 37), torch.int8, 0), random_bits((5, 37), 1)
    words = numpy_words(bits)
    assert reference.bit_linear(x, words).tolist() == loops(x, bits)
    assert reference.bit_linear_t(x[:, :5], words, 37).tolist() == loops(x[:, :5], bits.mT)
    other = random_bits((4, 37), 2)
    assert reference.bit_matmul(words, numpy_words(other)).tolist() == loops(bits, other)


@pytest.mark.parametrize("dtype", [*cases.OPERANDS, torch.float64])
@given(cases.populations, cases.sizes, cases.sizes, cases.sizes, cases.seeds)
def test_products_are_numpy_s(
    dtype: torch.dtype, population: int | None, batch: int, rows: int, cols: int, seed: int
) -> None:
    bits = random_bits(shape_of(population, rows, cols), seed)
    x, g = (values(shape_of(population, batch, n), dtype, seed) for n in (cols, rows))
    words, dense = numpy_words(bits), bits.numpy().astype(np.float64)
    out = torch.int32 if dtype == torch.int8 else dtype
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    # Both sum in float64, in some order: the rounded results agree but for a last bit, where they fall between two.
    for got, wanted in (
        (reference.bit_linear(x, words), x.double().numpy() @ dense.swapaxes(-1, -2)),
        (reference.bit_linear_t(g, words, cols), g.double().numpy() @ dense),
    ):
        assert got.dtype == out and list(got.shape) == list(wanted.shape)
        torch.testing.assert_close(got, torch.from_numpy(wanted).to(out), **tolerance)
    other = random_bits(shape_of(population, batch, cols), seed + 1)
    wanted = other.numpy().astype(np.int64) @ bits.numpy().astype(np.int64).swapaxes(-1, -2)
    assert torch.equal(reference.bit_matmul(numpy_words(other), words), torch.from_numpy(wanted.astype(np.int32)))


# ------------------------------------------------------------------------------------------------------- random numbers


def philox4x32_10(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 in Python integers, as Salmon et al. 2011 define it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


# kat_vectors of Random123: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_by_known_answers(counter: str, key: str, result: str) -> None:
    numbers = [tuple(int(word, 16) for word in text.split()) for text in (counter, key, result)]
    assert philox4x32_10(numbers[0], numbers[1]) == list(numbers[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0, 1, 2**32 - 1, 2**32 + 7, 2**62 + 12345])
def test_uniform_numbers_are_philox_s_by_place(step: int) -> None:
    seeds = [0, 1, 2**31, 2**32 + 5, -1, -(2**63), 0x299F31D0A4093822]
    rows, cols = 3, 70
    uniform = reference.philox_uniform(torch.tensor(seeds), step, rows, cols)
    assert uniform.dtype == torch.float32 and list(uniform.shape) == [len(seeds), rows, cols]
    for p, seed in enumerate(seeds):
        for r in range(rows):
            for c in range(cols):
                word, bit = r * 3 + c // 32, c % 32
                block = 8 * word + bit % 8
                counter = (block & 0xFFFFFFFF, block >> 32, step & 0xFFFFFFFF, step >> 32)
                drawn = philox4x32_10(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))[bit // 8]
                assert uniform[p, r, c].item() == (drawn >> 8) / 2**24, (seed, r, c)


def test_sampled_bits_follow_the_sigmoid() -> None:
    tau, scores = 0.7, torch.linspace(-4, 4, 9).unsqueeze(1).expand(9, 20000).contiguous()
    words = reference.sample_bits(scores, tau, torch.tensor([7]), 3)
    p = torch.sigmoid(scores[:, 0].double() / tau)
    share = numpy_bits(words, 20000).double().mean(1)
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20000).sqrt() + 1e-4).all()  # five standard deviations
    # Draw by draw: u < p, except where u and p are as near as float32 rounds.
    uniform = reference.philox_uniform(torch.tensor([7]), 3, 9, 20000)[0].double()
    clear = (uniform - p.unsqueeze(1)).abs() > 1e-6
    assert clear.double().mean() > 0.999
    assert torch.equal(numpy_bits(words, 20000)[clear], (uniform < p.unsqueeze(1))[clear])


def test_sampling_is_certain_far_out() -> None:
    scores = torch.tensor([[1e30, -1e30, math.inf, -math.inf]]).repeat(1, 500)
    words = reference.sample_bits(scores, 1.0, torch.tensor([1]), 1)
    assert torch.equal(numpy_bits(words, 2000), scores > 0)


# -------------------------------------------------------------------------------------------------------------- updates


def test_exp_neg_against_the_library() -> None:
    a = torch.cat([torch.linspace(0, 87, 20001), torch.logspace(-40, 1.9, 2000)]).float()
    a = a[a <= 87]
    exact = np.exp(-a.double().numpy())
    relative = np.abs(reference.exp_neg(a).double().numpy() - exact) / exact
    assert relative.max() < 3e-7
    assert reference.exp_neg(torch.zeros(1)).item() == 1
    far = reference.exp_neg(torch.tensor([87.0, 88.0, 1e30, math.inf]))
    assert (far == far[0]).all() and far[0].item() == pytest.approx(math.exp(-87), rel=3e-7)


@pytest.mark.parametrize("rule", [r for r in RULES.values() if not isinstance(r, Bop)], ids=repr)
def test_score_rules_are_torch_s_optimizers(rule: SGD | Adam) -> None:
    shape = (37, 45)
    search = Search.start(rule, shape, 1)
    assert search.scores is not None
    theta = torch.nn.Parameter(search.scores.double())
    optimizer = (
        torch.optim.SGD([theta], lr=rule.lr, momentum=rule.momentum)
        if isinstance(rule, SGD)
        else torch.optim.Adam([theta], lr=rule.lr, betas=rule.betas, eps=rule.eps)
    )
    for t in range(1, 6):
        grad = values(shape, torch.float32, t)
        before = numpy_bits(search.w.words, shape[1])
        flips = search.update("reference", "mask_update_", rule, grad)
        # The surrogate folded into the gradient: d/dθ sigmoid(θ/τ), by autograd.
        weights = torch.sigmoid(theta / rule.tau)
        (theta.grad,) = torch.autograd.grad(weights, theta, grad.double())
        optimizer.step()
        with torch.no_grad():
            theta.clamp_(-rule.clip, rule.clip)
        torch.testing.assert_close(search.scores.double(), theta.detach(), rtol=1e-5, atol=1e-5)
        assert int(search.state.step) == t
        after = numpy_bits(search.w.words, shape[1])
        wanted = reference.sample_bits(search.scores, rule.tau, search.state.seed, t) if rule.sample else None
        assert torch.equal(search.w.words, numpy_words(search.scores > 0) if wanted is None else wanted)
        assert flips.dtype == torch.int64 and int(flips) == int((before ^ after).sum())


def test_bop_by_loops() -> None:
    rule, shape = Bop(gamma=0.25, threshold=0.125), (5, 35)
    search = Search.start(rule, shape, 3)
    mean = np.zeros(shape, dtype=np.float32)
    bits = numpy_bits(search.w.words, shape[1]).numpy().copy()
    flipped = 0
    for t in range(4):
        grad = values(shape, torch.float32, t)
        flips, count = search.update("reference", "mask_update_", rule, grad), 0
        for r in range(shape[0]):
            for c in range(shape[1]):
                mean[r, c] = np.float32(0.75) * mean[r, c] + np.float32(0.25) * np.float32(grad[r, c])
                if (bits[r, c] and mean[r, c] > 0.125) or (not bits[r, c] and mean[r, c] < -0.125):
                    bits[r, c] ^= True
                    count += 1
        assert torch.equal(search.state.buffers[0], torch.from_numpy(mean))
        assert torch.equal(search.w.words, numpy_words(torch.from_numpy(bits)))
        assert int(flips) == count
        flipped += count
    assert flipped > 20


def test_ties_leave_a_bit_as_it_was_or_zero() -> None:
    grad = torch.tensor([[0.125, -0.125, 0.25, -0.25, 0.0]])
    search = Search.start(Bop(gamma=1.0, threshold=0.125), (1, 5), 4)
    for word, wanted in ((0b11111, 0b11011), (0b00000, 0b01000)):
        search.w.words.fill_(word)
        flips = search.update("reference", "mask_update_", Bop(gamma=1.0, threshold=0.125), grad)
        assert search.w.words.item() == wanted and int(flips) == 1
    search = Search.start(SGD(), (1, 5), 5)
    assert search.scores is not None
    search.scores.copy_(torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 1.0]]))
    search.update("reference", "mask_update_", SGD(), torch.zeros(1, 5))
    assert search.w.words.item() == 0b10100


@pytest.mark.parametrize("name", RULES)
def test_members_of_a_population_are_independent(name: str) -> None:
    rule, shape = RULES[name], (3, 7, 40)
    together = Search.start(rule, shape, 5)
    alone = [Search(None if together.scores is None else together.scores[p].clone(),
                    BitMatrix(together.w.words[p].clone(), 40),
                    rule.init_state(BitMatrix(together.w.words[p], 40), [int(together.state.seed[p])]))
             for p in range(3)]  # fmt: skip
    for t in range(3):
        grad = values(shape, torch.float32, t)
        flips = together.update("reference", "mask_update_", rule, grad)
        assert flips.tolist() == [int(alone[p].update("reference", "mask_update_", rule, grad[p])) for p in range(3)]
    for name in ("words", *(["scores"] if together.scores is not None else []), "buffer 0"):
        assert torch.equal(together.tensors()[name], torch.stack([a.tensors()[name] for a in alone])), name
    assert int(together.state.step) == 3


@pytest.mark.parametrize("bits", [False, True])
def test_grad_update_multiplies_first(bits: bool) -> None:
    rule, shape = RULES["adam"], (3, 9, 33)
    one, two = (Search.start(rule, shape, 6) for _ in range(2))
    gy, dense = values((3, 17, 9), torch.float32, 1), random_bits((3, 17, 33), 2)
    x = BitMatrix(numpy_words(dense), 33) if bits else values((3, 17, 33), torch.float32, 3)
    inputs = dense.double() if isinstance(x, BitMatrix) else x.double()
    grad = torch.from_numpy(np.einsum("pbr,pbc->prc", gy.double().numpy(), inputs.numpy())).float()
    flips = (
        one.update("reference", "mask_grad_update_", rule, gy, x),
        two.update("reference", "mask_update_", rule, grad),
    )
    assert torch.equal(*flips)
    for name, t in one.tensors().items():
        torch.testing.assert_close(t, two.tensors()[name])
