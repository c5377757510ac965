"""Every kernel that moves bits or multiplies by them, against the reference: each shape, dtype and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import cases
import pytest
import torch
from cases import SIZES, Target, assert_product, assert_same, matrix, numpy_words, random_bits, run, shape_of, values
from hypothesis import given
from torch import Tensor

from fastbin import reference

TARGETS = cases.targets()
on_every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
of_every_dtype = pytest.mark.parametrize("dtype", cases.OPERANDS, ids=str)


def test_poison_shows_what_is_not_written() -> None:
    with cases.poisoned():
        assert torch.empty(5).isnan().all()
        for dtype in (torch.int32, torch.int64, torch.uint8, torch.int8):
            assert (torch.empty(5, dtype=dtype) == torch.iinfo(dtype).max).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_kernel_is_among_the_targets() -> None:
    assert Target("cpp", "cpu") in TARGETS


# ---------------------------------------------------------------------------------------------------- moving bits about


def check_bits(target: Target, bits: Tensor, what: object) -> None:
    """All four ops on one matrix."""
    words, cols = numpy_words(bits), bits.shape[-1]
    assert_same(run(target, "pack", bits, None), words, ("pack", what))
    assert_same(run(target, "pack", bits.float(), None), words, ("pack of float32", what))
    assert_same(run(target, "pack", bits.float() * 3 - 1, 1.5), words, ("pack with threshold", what))
    for dtype in (torch.float32, torch.uint8):
        assert_same(run(target, "unpack", words, cols, dtype), bits.to(dtype), ("unpack", dtype, what))
    assert_same(run(target, "transpose", words, cols), numpy_words(bits.mT), ("transpose", what))
    assert_same(run(target, "popcount", words), bits.sum((-1, -2)), ("popcount", what))


@on_every_target
def test_bits_of_every_size(target: Target) -> None:
    for rows, cols in product(SIZES, SIZES):
        for population in (None, 2):
            check_bits(
                target, random_bits(shape_of(population, rows, cols), rows * 99 + cols), (population, rows, cols)
            )


@on_every_target
@given(cases.populations, cases.sizes, cases.sizes, cases.densities, cases.seeds)
def test_bits_of_any_size(
    target: Target, population: int | None, rows: int, cols: int, density: float, seed: int
) -> None:
    check_bits(target, random_bits(shape_of(population, rows, cols), seed, density), (population, rows, cols, seed))


@on_every_target
@pytest.mark.parametrize("shape", [(1, 40000), (40000, 1), (1023, 1025), (5, 129, 257)])
def test_bits_of_large_matrices(target: Target, shape: tuple[int, ...]) -> None:
    for density in (0.5, 1.0):
        check_bits(target, random_bits(shape, 1, density), (shape, density))


@on_every_target
@pytest.mark.parametrize("dtype", cases.PACKABLE, ids=str)
def test_bits_of_every_dtype(target: Target, dtype: torch.dtype) -> None:
    bits = random_bits((2, 7, 77), 3)
    words = numpy_words(bits)
    assert_same(run(target, "pack", bits.to(dtype), None), words)
    assert_same(run(target, "unpack", words, 77, dtype), bits.to(dtype))


@on_every_target
@pytest.mark.parametrize("dtype", [*cases.FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", [0.0, -0.5, 0.1, torch.inf, -torch.inf, 1e-300])
def test_pack_compares_in_the_dtype(target: Target, dtype: torch.dtype, threshold: float) -> None:
    x = torch.randn(9, 67, generator=cases.generator(4)).to(dtype)
    x[0, :8] = torch.tensor([0.0, -0.0, threshold, -threshold, torch.inf, -torch.inf, 1e-40, 0.1])
    # What `x > threshold` means in torch is what pack promises.
    assert_same(run(target, "pack", x, threshold), numpy_words(x > threshold))


@on_every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("place", [(0, 0, 0), (0, 1, 31), (1, 2, 32), (1, 3, 65), (1, 4, 66)])
def test_pack_refuses_other_values(target: Target, dtype: torch.dtype, place: tuple[int, int, int]) -> None:
    x = random_bits((2, 5, 67), 5).to(dtype)
    x[1, 4, 66] = 3  # the first offence in order is named, whatever thread meets which first
    x[place] = 2
    with pytest.raises(ValueError, match=rf"values of 0 and 1, got 2(\.0)? at \({', '.join(map(str, place))}\)"):
        run(target, "pack", x, None)


@on_every_target
@pytest.mark.parametrize("dtype", [*cases.FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@pytest.mark.parametrize("place", [(0, 0), (2, 31), (3, 64), (4, 66)])
def test_pack_refuses_nan(target: Target, dtype: torch.dtype, threshold: float | None, place: tuple[int, int]) -> None:
    x = random_bits((5, 67), 6).to(dtype)
    x[place] = torch.nan
    expected = "values of 0 and 1" if threshold is None else "numbers"
    with pytest.raises(ValueError, match=rf"{expected}, got nan at \({place[0]}, {place[1]}\)"):
        run(target, "pack", x, threshold)


@on_every_target
def test_count_past_31_bits(target: Target) -> None:
    words = torch.full((2**13 + 1, 2**13), -1, dtype=torch.int32)
    assert run(target, "popcount", words).item() == words.numel() * 32


# ------------------------------------------------------------------------------------------------------------- products


def check_linear(target: Target, dtype: torch.dtype, sizes: tuple[int | None, int, int, int], seed: int,
                 density: float = 0.5, kind: str = "normal") -> None:  # fmt: skip
    """Both products of one matrix."""
    population, batch, rows, cols = sizes
    what = (dtype, sizes, seed, density, kind)
    bits = random_bits(shape_of(population, rows, cols), seed, density)
    words = numpy_words(bits)
    x, g = (values(shape_of(population, batch, n), dtype, seed + n, kind) for n in (cols, rows))
    assert_product(run(target, "bit_linear", x, words), x, bits.mT, ("bit_linear", *what))
    assert_product(run(target, "bit_linear_t", g, words, cols), g, bits, ("bit_linear_t", *what))


def check_matmul(target: Target, sizes: tuple[int | None, int, int, int], seed: int, density: float = 0.5) -> None:
    population, m, n, cols = sizes
    a = numpy_words(random_bits(shape_of(population, m, cols), seed, density))
    b = numpy_words(random_bits(shape_of(population, n, cols), seed + 1, density))
    assert_same(run(target, "bit_matmul", a, b), reference.bit_matmul(a, b), (sizes, seed, density))


@on_every_target
@of_every_dtype
def test_products_of_every_size(target: Target, dtype: torch.dtype) -> None:
    for batch, rows, cols in product(SIZES, SIZES, SIZES):
        check_linear(target, dtype, (None, batch, rows, cols), batch + rows + cols)


@on_every_target
def test_bit_products_of_every_size(target: Target) -> None:
    for m, n, cols in product(SIZES, SIZES, SIZES):
        check_matmul(target, (None, m, n, cols), m + n + cols)


@on_every_target
@of_every_dtype
@given(cases.populations, cases.sizes, cases.sizes, cases.sizes, cases.densities, cases.seeds)
def test_products_of_any_size(
    target: Target,
    dtype: torch.dtype,
    population: int | None,
    batch: int,
    rows: int,
    cols: int,
    density: float,
    seed: int,
) -> None:
    check_linear(target, dtype, (population, batch, rows, cols), seed, density)


@on_every_target
@given(cases.populations, cases.sizes, cases.sizes, cases.sizes, cases.densities, cases.seeds)
def test_bit_products_of_any_size(
    target: Target, population: int | None, m: int, n: int, cols: int, density: float, seed: int
) -> None:
    check_matmul(target, (population, m, n, cols), seed, density)


@on_every_target
@of_every_dtype
@pytest.mark.parametrize("sizes", cases.WIDE_SHAPES)
def test_products_wider_than_a_tile(target: Target, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    kind = "extreme" if dtype == torch.int8 else "normal"
    check_linear(target, dtype, (None, *sizes), 1, kind=kind)
    batch, rows, cols = sizes
    check_linear(target, dtype, (None, batch, cols, rows), 2, kind=kind)  # deep for bit_linear_t
    if dtype == torch.float32:
        check_linear(target, dtype, (2, *sizes), 3, kind="positive")
        check_linear(target, dtype, (None, *sizes), 4, density=1.0, kind="positive")


@on_every_target
@pytest.mark.parametrize("sizes", cases.WIDE_SHAPES)
def test_bit_products_wider_than_a_tile(target: Target, sizes: tuple[int, int, int]) -> None:
    for density in (0.5, 1.0):
        check_matmul(target, (None, *sizes), 1, density)


@on_every_target
@of_every_dtype
@pytest.mark.parametrize(("batch", "outputs"), [(1, 3), (2, 33), (19, 2)])
def test_products_of_a_million_inputs(target: Target, dtype: torch.dtype, batch: int, outputs: int) -> None:
    """What a kernel sums in int16, int32 or float32 along the inputs is largest here, in int8 with all of one sign."""
    inputs = 2**20 + 1
    bits = random_bits((outputs, inputs), 22, 0.9)
    words, words_t = numpy_words(bits), numpy_words(bits.mT)
    for kind in ("normal", "positive"):
        x = values((batch, inputs), dtype, 23, kind)
        if kind == "positive":
            x = x.fill_(-128) if dtype == torch.int8 else x / 16  # a sum of float16 stays finite
        assert_product(run(target, "bit_linear", x, words), x, bits.mT, kind)
        assert_product(run(target, "bit_linear_t", x, words_t, outputs), x, bits.mT, kind)


@on_every_target
@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (13, 25)])
def test_bit_products_of_a_million_inputs(target: Target, sizes: tuple[int, int]) -> None:
    for density in (0.5, 1.0):
        check_matmul(target, (None, *sizes, 2**20 + 1), 24, density)


@on_every_target
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_products_of_extreme_values(target: Target, dtype: torch.dtype) -> None:
    for batch in (1, 5, 64):
        check_linear(target, dtype, (None, batch, 70, 200), batch, kind="extreme")
        check_linear(target, dtype, (None, batch, 200, 70), batch, kind="extreme")
        check_linear(target, dtype, (None, batch, 4099, 127), batch, kind="extreme")
        check_linear(target, dtype, (None, batch, 127, 4099), batch, kind="extreme")


@on_every_target
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("batch", [1, 40])
def test_what_is_not_finite_reaches_who_selects_it(
    target: Target, dtype: torch.dtype, value: float, batch: int
) -> None:
    bits = random_bits((65, 70), 7)
    for op, dense in (("bit_linear", bits.mT), ("bit_linear_t", bits)):
        clean = values((batch, dense.shape[0]), dtype, 8, "integers")
        x = clean.clone()
        x[batch // 2, 33] = value
        args = (numpy_words(bits), *([] if op == "bit_linear" else [70]))
        wanted = run(target, op, clean, *args)
        wanted[batch // 2, dense[33]] = value
        assert_same(run(target, op, x, *args), wanted, op)


# -------------------------------------------------------------------------------------------------------------- layouts


def layouts(shape: tuple[int, int], make: Callable[[tuple[int, ...]], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one shape that lie in memory in every way that torch allows."""
    rows, cols = shape
    yield "transposed", make((cols, rows)).mT
    yield "columns of a wider one", make((rows, cols + 3))[:, 1 : cols + 1]
    yield "every other row", make((2 * rows, cols))[::2]
    yield "every other column", make((rows, 2 * cols))[:, ::2]
    yield "expanded rows", make((1, cols)).expand(rows, cols)
    yield "expanded columns", make((rows, 1)).expand(rows, cols)
    yield "one element past an aligned address", make((rows * cols + 1,))[1:].view(rows, cols)


@on_every_target
@of_every_dtype
def test_operands_in_every_layout(target: Target, dtype: torch.dtype) -> None:
    for rows, cols in ((33, 65), (1, 130), (64, 64)):
        bits = random_bits((rows, cols), 9)
        words = numpy_words(bits)
        for name, x in layouts((17, cols), lambda shape: values(shape, dtype, 10)):
            assert_product(run(target, "bit_linear", x, words), x, bits.mT, name)
        for name, g in layouts((17, rows), lambda shape: values(shape, dtype, 11)):
            assert_product(run(target, "bit_linear_t", g, words, cols), g, bits, name)


@on_every_target
def test_words_in_every_layout(target: Target) -> None:
    whole = matrix((40, 128), 12).words
    for name, words in layouts(
        (40, 4), lambda shape: whole.repeat(3, 3).flatten()[: torch.Size(shape).numel()].view(shape)
    ):
        dense, x = cases.numpy_bits(words, 128), values((5, 128), torch.float32, 13)
        assert_product(run(target, "bit_linear", x, words), x, dense.mT, name)
        assert_product(run(target, "bit_linear_t", x[:, :40], words, 128), x[:, :40], dense, name)
        assert_same(run(target, "bit_matmul", words, whole), reference.bit_matmul(words, whole), name)
        assert_same(run(target, "unpack", words, 128, torch.bool), dense, name)
        assert_same(run(target, "transpose", words, 128), numpy_words(dense.mT), name)
        assert_same(run(target, "popcount", words), dense.sum(), name)


@on_every_target
@pytest.mark.parametrize("dtype", cases.PACKABLE, ids=str)
def test_pack_from_every_layout(target: Target, dtype: torch.dtype) -> None:
    for name, x in layouts((33, 70), lambda shape: random_bits(shape, 14).to(dtype)):
        assert_same(run(target, "pack", x, None), numpy_words(x != 0), name)
        if dtype.is_floating_point:
            assert_same(run(target, "pack", x, 0.5), numpy_words(x > 0.5), name)


# -------------------------------------------------------------------------------------------------------------- threads


@on_every_target
@pytest.mark.parametrize(
    ("batch", "rows", "cols"), [(1, 2051, 2049), (5, 1031, 2051), (67, 515, 1031), (1100, 67, 131)]
)
def test_integers_do_not_depend_on_threads(target: Target, batch: int, rows: int, cols: int) -> None:
    bits = random_bits((rows, cols), 15)
    words, x, g = numpy_words(bits), values((batch, cols), torch.int8, 16), values((batch, rows), torch.int8, 17)
    for n in (1, 2, 3):
        with cases.threads(n):
            check_bits(target, bits, n)
            assert_product(run(target, "bit_linear", x, words), x, bits.mT, n)
            assert_product(run(target, "bit_linear_t", g, words, cols), g, bits, n)
            check_matmul(target, (None, batch, rows, cols), 18)


@on_every_target
@pytest.mark.parametrize("population", [None, 3])
@pytest.mark.parametrize("batch", [1, 5, 67])
def test_floats_are_the_same_from_run_to_run(target: Target, population: int | None, batch: int) -> None:
    words = matrix(shape_of(population, 1031, 2049), 19).words
    x, g = (values(shape_of(population, batch, n), torch.float32, n) for n in (2049, 1031))
    for n in (1, 2, 3):
        with cases.threads(n):
            for op, args in (("bit_linear", (x, words)), ("bit_linear_t", (g, words, 2049))):
                first = run(target, op, *args)
                assert all(torch.equal(first, run(target, op, *args)) for _ in range(3)), (op, n)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.device == "cpu"], ids=str)
@pytest.mark.parametrize("outputs", [10, 130, 300, 1100])  # of which blocks, and what is left over, are made
def test_floats_of_a_member_are_its_own(target: Target, outputs: int) -> None:
    """On a CPU neither the population nor the number of threads changes a bit."""
    for batch in (1, 2, 3, 8, 13, 33):
        x = values((3, batch, 100), torch.float32, batch)
        for op, w in (("bit_linear", matrix((3, outputs, 100), 20)), ("bit_linear_t", matrix((3, 100, outputs), 21))):
            sizes = (outputs,) if op == "bit_linear_t" else ()
            with cases.threads(1):
                alone = torch.stack([run(target, op, x[p], w.words[p], *sizes) for p in range(3)])
            for n in (1, 2, 3):
                with cases.threads(n):
                    assert_same(run(target, op, x, w.words, *sizes), alone, (op, batch, n))
