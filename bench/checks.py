"""How results are judged: random operands, poisoned memory, tolerances and comparisons, for tests and benchmarks alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastbin import backends, ops
from fastbin.bits import BitMatrix
from fastbin.rules import Bop, Rule, UpdateState

# ------------------------------------------------------------------------------------------------------------- operands


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape_of(population: int | None, *shape: int) -> tuple[int, ...]:
    return shape if population is None else (population, *shape)


def random_bits(shape: tuple[int, ...], seed: int, density: float = 0.5) -> Tensor:
    return torch.rand(shape, generator=generator(seed)) < density


def matrix(shape: tuple[int, ...], seed: int, density: float = 0.5) -> BitMatrix:
    """A random BitMatrix on the CPU, packed by numpy: no op under test made it."""
    return BitMatrix(numpy_words(random_bits(shape, seed, density)), shape[-1])


def numpy_words(bits: Tensor) -> Tensor:
    """The layout of `BitMatrix.words` by np.packbits."""
    shape = (*bits.shape[:-1], -(-bits.shape[-1] // 32))
    padded = np.zeros((*shape, 32), dtype=bool).reshape(*shape[:-1], shape[-1] * 32)
    padded[..., : bits.shape[-1]] = bits.numpy()
    packed = np.packbits(padded.reshape(-1), bitorder="little").view("<i4")
    return torch.from_numpy(packed.astype(np.int32).reshape(shape))


def numpy_bits(words: Tensor, cols: int) -> Tensor:
    """The logical matrix by np.unpackbits."""
    packed = np.ascontiguousarray(words.cpu().numpy().astype("<i4"))
    flat = np.unpackbits(packed.reshape(-1).view(np.uint8), bitorder="little")
    return torch.from_numpy(flat.reshape(*words.shape[:-1], words.shape[-1] * 32)[..., :cols].astype(bool))


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, kind: str = "normal") -> Tensor:
    """Operands of a product. Kinds: normal, integers (whose sums are exact), positive, extreme."""
    g = generator(seed)
    if dtype == torch.int8:
        if kind == "extreme":
            return torch.tensor([-128, 127], dtype=dtype)[torch.randint(0, 2, shape, generator=g)]
        return torch.randint(-128, 128, shape, generator=g, dtype=dtype)
    if kind == "integers":
        return torch.randint(-8, 9, shape, generator=g).to(dtype)
    x = torch.randn(shape, generator=g)
    if kind == "positive":  # partial sums as large as can be
        return x.abs().to(dtype)
    if kind == "extreme":  # every size of number, both signs, zeros and denormals; their sums stay finite
        low, high = (-7, 2) if dtype == torch.float16 else (-44, 30)
        x = x.sign() * 10.0 ** torch.randint(low, high + 1, shape, generator=g)
    return x.to(dtype)


# -------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within, torch.empty is full of NaN or of a dtype's largest number: what a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------- comparisons


def differing(got: Tensor, wanted: Tensor, cols: int | None = None) -> str:
    """A message that says where two tensors differ first."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return f"{got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
    bad = (got != wanted) & ~(got.isnan() & wanted.isnan())
    at = tuple(int(i) for i in bad.nonzero()[0])
    return f"{int(bad.sum())} of {bad.numel()} differ, first at {at}: {got[at].item()} instead of {wanted[at].item()}"


def same(got: Tensor, wanted: Tensor) -> bool:
    """torch.equal, but NaN equals NaN and dtypes must agree."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return False
    if got.is_floating_point():
        nan = got.isnan()
        return torch.equal(nan, wanted.isnan()) and torch.equal(got.masked_fill(nan, 0), wanted.masked_fill(nan, 0))
    return torch.equal(got, wanted)


def assert_same(got: Tensor, wanted: Tensor, what: object = "") -> None:
    assert same(got, wanted), f"{what}: {differing(got, wanted)}"


def product_tolerance(x: Tensor, dense: Tensor, exact: Tensor) -> Tensor:
    """How far ``x @ dense`` may be from `exact`, its value in float64.

    A sum of K numbers in float32 meets K - 1 rounding errors of at most 2^-24 of a partial sum each, of either sign: as
    a random walk they reach some √K·2^-24·Σ|x| if all are added in a row to one sum, less in trees and blocks. That is
    4e-6 for K = 4096, and kernels that add tables of subset sums do a sixth of these additions or less: 1e-6 is what is
    asked of them, growing with √K past 4096. The result is then rounded to x's dtype once, and may be denormal.
    """
    info = torch.finfo(x.dtype)
    accumulated = 1e-6 * max(1.0, x.shape[-1] / 4096) ** 0.5 * (x.double().abs() @ dense.double().abs())
    return accumulated + info.eps / 2 * exact.abs() + info.smallest_normal * info.eps


def assert_product(got: Tensor, x: Tensor, dense: Tensor, what: object = "") -> None:
    """`got` is ``x @ dense``: exactly for int8, else within `product_tolerance`."""
    exact = x.double() @ dense.double()
    if x.dtype == torch.int8:
        assert_same(got, exact.to(torch.int32), what)
        return
    assert got.dtype == x.dtype and got.shape == exact.shape, f"{what}: {differing(got, exact.to(x.dtype))}"
    _assert_within(got, exact, product_tolerance(x, dense, exact), what)


def assert_gradient(got: Tensor, gy: Tensor, x: Tensor) -> None:
    """`got` is gyᵀ x in float32, for gy ``[.., B, R]`` and x ``[.., B, C]``.

    Of float32: within the tolerance of `assert_product`. Of 16-bit operands tensor cores may sum, which cut the sum off,
    always toward zero, after each 16 samples (8 before capability 9.0), by up to 2^-23 of it: as cuBLAS has it.
    """
    exact, size = gy.double().mT @ x.double(), gy.double().abs().mT @ x.double().abs()
    batch = gy.shape[-2]
    relative = 1e-6 * max(1.0, batch / 4096) ** 0.5 + (0 if gy.dtype == torch.float32 else -(-batch // 8) * 2.0**-23)
    assert got.dtype == torch.float32 and got.shape == exact.shape, differing(got, exact.float())
    _assert_within(got, exact, relative * size + torch.finfo(torch.float32).tiny, "gradient")


def _assert_within(got: Tensor, exact: Tensor, allowed: Tensor, what: object) -> None:
    error = (got.double() - exact).abs()
    worst = float((error / allowed).nan_to_num(torch.inf).max()) if error.numel() else 0.0
    assert worst <= 1, f"{what}: off by {worst:.3g} times the tolerance"


# -------------------------------------------------------------------------------------------------------------- updates


@dataclass
class Search:
    """The tensors that an update changes, with room for a copy: as an implementation left them, against the truth."""

    scores: Tensor | None
    w: BitMatrix
    state: UpdateState

    @classmethod
    def start(cls, rule: Rule, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Search:
        """Scores of both signs, some 0, some far out, with the bits that belong to them; buffers of zeros."""
        scores = torch.randn(shape, generator=generator(seed)) * scale
        scores[random_bits(shape, seed + 1, 0.05)] = 0.0
        scores[random_bits(shape, seed + 2, 0.05)] *= 1e3
        w = BitMatrix(numpy_words(scores > 0), shape[-1])
        members = shape[0] if len(shape) == 3 else 1
        state = rule.init_state(w, [(seed + 2**40 * p) % 2**63 for p in range(members)] if members else [0])
        return cls(None if isinstance(rule, Bop) else scores, w, state)

    def tensors(self) -> dict[str, Tensor]:
        named = {"words": self.w.words, "step": self.state.step, "seed": self.state.seed}
        named |= {f"buffer {i}": b for i, b in enumerate(self.state.buffers)}
        return named if self.scores is None else {"scores": self.scores, **named}

    def to(self, device: str) -> Search:
        """A copy on `device`."""
        move: Callable[[Tensor], Tensor] = lambda t: t.to(device, copy=True)  # noqa: E731
        state = UpdateState(tuple(map(move, self.state.buffers)), move(self.state.step), move(self.state.seed))
        return Search(
            None if self.scores is None else move(self.scores), BitMatrix(move(self.w.words), self.w.cols), state
        )

    def update(self, backend: str, op: str, rule: Rule, *operands: Tensor | BitMatrix) -> Tensor:
        """Run `ops`.<op> on these tensors; returns the flips."""
        there = [t.to(self.w.device) for t in operands]
        with poisoned(), backends.override(backend):
            flips: Tensor = getattr(ops, op)(self.scores, *there, self.w, self.state, rule)
        return flips.cpu()
