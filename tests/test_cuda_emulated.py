"""The CUDA kernels' own source on the CPU, under tests/cuda_emulation and the address and undefined-behaviour sanitizers.

It shows that indexing, synchronisation by barriers and the documented fragment layouts fit together, and that sums are
near as tensor cores add them, not that a GPU agrees: csrc/README.md lists what only a GPU can show.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import (
    RULES,
    Search,
    assert_gradient,
    assert_product,
    assert_same,
    generator,
    matrix,
    numpy_words,
    random_bits,
    values,
)
from torch import Tensor

from fastbin import reference
from fastbin.bits import BitMatrix
from fastbin.rules import Bop, Rule

HERE = Path(__file__).parent
SOURCES = [*sorted((HERE.parent / "csrc" / "cuda").glob("*.cu")), *sorted((HERE / "cuda_emulation").glob("*.cpp"))]
FLAGS = [
    "-std=c++17", "-O1", "-g", "-mf16c", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unknown-pragmas",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    f"-I{HERE / 'cuda_emulation'}", f"-I{HERE.parent / 'csrc'}",
]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: the CUDA kernels are not emulated"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation converts float16 by F16C"),
]


def run(*command: object, status: int = 0) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == status, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stderr


@dataclass(frozen=True)
class Driver:
    program: Path
    folder: Path

    def __call__(
        self, capability: int, op: str, kernel: str, *arguments: object, dtype: torch.dtype = torch.int32
    ) -> Tensor:
        """Run `kernel`; tensors among the arguments are passed as files, and the result, a file too, is flat."""
        out = self.folder / "out.bin"
        out.unlink(missing_ok=True)
        given = []
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                path = self.folder / f"{i}.bin"
                argument.contiguous().view(torch.uint8).numpy().tofile(path)
                given.append(str(path))
            else:
                given.append(str(out) if argument == "out" else str(int(argument)))
        run(self.program, capability, op, kernel, *given)
        return torch.from_numpy(np.fromfile(out, dtype=np.uint8)).view(dtype)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("cuda_emulated")

    def compile_one(source: Path) -> Path:
        built = folder / f"{source.name}.o"
        run("g++", *FLAGS, "-x", "c++", "-c", source, "-o", built)
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    run("g++", *FLAGS, *objects, "-o", folder / "driver")
    return Driver(folder / "driver", folder)


# --------------------------------------------------------------------------------------------------------- tensor cores

SUMS = [  # capability, dtype, first products' factors (the others are 0), sum before, sum after
    (80, torch.float16, [(2.0**-12, 2.0**-12)] * 16, 1.0, 1 + 2.0**-20),  # 24 bits below the largest: kept
    (80, torch.float16, [(2.0**-12, 2.0**-13)] * 16, 1.0, 1.0),  # 25: not one of them
    (90, torch.float16, [(2.0**-12, 2.0**-13)] * 16, 1.0, 1 + 2.0**-21),
    (90, torch.float16, [(2.0**-12, 2.0**-14)] * 16, 1.0, 1.0),
    (100, torch.bfloat16, [(2.0**-12, -(2.0**-13))] * 16, -1.0, -1 - 2.0**-21),
    (90, torch.bfloat16, [(1.5, 2.0**-24)], 1.0, 1.0),  # toward zero, of either sign
    (90, torch.bfloat16, [(1.5, -(2.0**-24))], -1.0, -1.0),
    (80, torch.float16, [(0, 0)] * 8 + [(2.0**-12, 2.0**-11), (2.0**-12, 2.0**-12)], 1.0, 1 + 2.0**-23),
    (80, torch.float16, [(256, 256)] + [(0, 0)] * 7 + [(-256, 256)], 2.0**-9, 0.0),  # eight at a time, then eight
    (90, torch.float16, [(256, 256)] + [(0, 0)] * 7 + [(-256, 256)], 2.0**-9, 2.0**-9),
    (90, torch.bfloat16, [(2.0**-20, 2.0**11)], 2.0**-25, 2.0**-9 + 2.0**-25),
    (90, torch.float16, [(2.0**-20, 2.0**11)], 2.0**-25, 2.0**-9 + 2.0**-25),  # a denormal of 2^-14's size: as 2^-3
    (90, torch.float16, [(2.0**-20, 2.0**11)], 2.0**-29, 2.0**-9),  # so that this is below
    (90, torch.bfloat16, [(2.0**-20, 2.0**11)], 2.0**-29, 2.0**-9 + 2.0**-29),
    (90, torch.bfloat16, [(float("inf"), 1.0)], 1.0, float("inf")),
]


@pytest.mark.parametrize("case", SUMS, ids=range(len(SUMS)))
def test_sums_are_cut_off_as_on_tensor_cores(driver: Driver, case: tuple) -> None:
    capability, dtype, factors, before, after = case
    a, b = torch.tensor([*factors, *[(0.0, 0.0)] * (16 - len(factors))]).T.to(dtype)
    kernel = str(dtype).removeprefix("torch.")
    got = driver(capability, "add_products", kernel, 1, a, b, torch.tensor([before]), "out", dtype=torch.float32)
    assert got.item() == after


# ----------------------------------------------------------------------------------------------------------- bit_matmul

MATMULS = {"bmma": 80, "popc": 100, "wgmma": 90}  # kernel: a compute capability it serves
SHAPES = [  # population, rows of a, rows of b, columns, words by which the operands miss an alignment to 16 bytes
    (1, 1, 1, 1, 0),
    (1, 130, 129, 1000, 0),  # beyond a tile each way; 32 words: whole chunks, and a stage that ends in the middle
    (1, 65, 70, 2700, 0),  # 85 words: no whole chunks
    (2, 33, 150, 640, 1),  # whole chunks, but not on 16 bytes
    (3, 7, 31, 97, 0),
    (1, 1, 300, 4100, 0),  # all stages in use
    (1, 1100, 40, 128, 0),  # more than a band of tiles
    (1, 5, 6, 0, 0),
]


def product(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().mT).to(torch.int32)


WGMMA_SHAPES = [  # rows are whole 16-byte chunks
    (1, 1, 1, 128, 0),
    (2, 100, 200, 700 + 64, 0),  # a tile for each of the two blocks; rows of y on 16 bytes
    (1, 300, 270, 6000, 0),  # beyond a tile each way, three tiles a block, and the stages more than once around
    (1, 130, 257, 1024, 0),  # odd rows of y
]


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [(k, s) for k in ("bmma", "popc") for s in SHAPES] + [("wgmma", s) for s in WGMMA_SHAPES],
    ids=str,
)
def test_bit_matmul(driver: Driver, kernel: str, shape: tuple[int, ...]) -> None:
    members, rows_a, rows_b, cols, skip = shape
    a, b = random_bits((members, rows_a, cols), 1, 0.6), random_bits((members, rows_b, cols), 2, 0.6)
    words_a, words_b = numpy_words(a), numpy_words(b)
    expected = product(a, b)
    sizes = (members, rows_a, rows_b, words_a.shape[-1], skip)
    assert_same(reference.bit_matmul(words_a, words_b), expected)

    unused = torch.zeros(1, dtype=torch.int32)
    y = driver(MATMULS[kernel], "bit_matmul", kernel, *sizes, words_a, words_b, unused, "out", 0, 0, 0, 0)
    assert_same(y.view(expected.shape), expected, "counts")

    # Thresholds by the column, by the row (as a layer's norm makes them), one for all, and each its own; some equal a
    # count.
    columns = expected.double().mean(1).to(torch.int32)
    rows = expected.double().mean(2).to(torch.int32)
    one = expected.flatten()[:1].clone()
    each = expected + torch.randint(-1, 2, expected.shape, dtype=torch.int32, generator=generator(3))
    for thresholds, view, strides in (
        (columns, columns[:, None, :], (rows_b, 0, 1)),
        (rows, rows[:, :, None], (rows_a, 1, 0)),
        (one, one, (0, 0, 0)),
        (each, each, (rows_a * rows_b, rows_b, 1)),
    ):
        bits = driver(MATMULS[kernel], "bit_matmul", kernel, *sizes, words_a, words_b, thresholds, "out", 1, *strides)
        packed = numpy_words(expected > view)
        assert_same(bits.view(packed.shape), packed, f"bits, thresholds of strides {strides}")


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_capability_has_a_kernel(driver: Driver, capability: int) -> None:
    a, b = random_bits((1, 20, 1024), 9), random_bits((1, 30, 1024), 10)  # as long as wgmma wants rows to be
    operands = (numpy_words(a), numpy_words(b), torch.zeros(1, dtype=torch.int32))
    y = driver(capability, "bit_matmul", "auto", 1, 20, 30, operands[0].shape[-1], 0, *operands, "out", 0, 0, 0, 0)
    assert_same(y.view(1, 20, 30), product(a, b), capability)


def test_a_capability_without_a_kernel_is_an_error(driver: Driver) -> None:
    arguments = ["/dev/null", "/dev/null", "/dev/null", "/dev/null", "0", "0", "0", "0"]
    told = run(driver.program, 75, "bit_matmul", "auto", 1, 2, 3, 4, 0, *arguments, status=2)
    assert told == "bit_matmul: device 1 has compute capability 7.5, 8.0 is needed\n"
    told = run(driver.program, 75, "bit_linear", "vector", 1, 1, 1, 2, 3, 0, 132, *arguments[:3], status=2)
    assert told == "bit_linear_vector: device 1 has compute capability 7.5, 8.0 is needed\n"


# ----------------------------------------------------------------------------------------------------------- bit_linear

SCALARS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)  # in the order of enum Scalar
# population, batch, rows, columns, words by which w misses an alignment to 16 bytes, capability, multiprocessors
VECTORS = [
    (1, 1, 1, 1, 0, 90, 132),
    (1, 1, 70, 2048, 0, 80, 132),  # whole 16-byte chunks; the warps of a block split the inputs
    (2, 2, 19, 700, 0, 120, 132),  # 22 words
    (1, 3, 600, 640, 1, 86, 2),  # more than a block of rows, of which each warp has its own
    (1, 4, 17, 4300, 0, 90, 132),  # the blocks of a cluster halve the inputs, unequally
    (2, 8, 40, 3072, 0, 100, 132),
    (3, 5, 33, 97, 0, 89, 132),
    (1, 16, 40, 9250, 0, 90, 2),  # more than a panel, in a cluster
    (1, 12, 33, 5000, 0, 86, 132),  # more than a panel, of the least shared memory
    (2, 17, 40, 300, 0, 80, 132),  # more samples than a block takes
]


def vector(
    driver: Driver, x: Tensor, w: Tensor, skip: int = 0, capability: int = 90, multiprocessors: int = 132
) -> Tensor:
    """``x @ wᵀ`` by the kernel, for x ``[P, B, C]`` and bool w ``[P, R, C]``."""
    (members, batch, cols), rows = x.shape, w.shape[1]
    dtype = torch.int32 if x.dtype == torch.int8 else x.dtype
    sizes = (SCALARS.index(x.dtype), members, batch, rows, cols, skip, multiprocessors)
    y = driver(capability, "bit_linear", "vector", *sizes, x, numpy_words(w), "out", dtype=dtype)
    return y.view(members, batch, rows)


@pytest.mark.parametrize("shape", VECTORS, ids=str)
@pytest.mark.parametrize("dtype", SCALARS[1:], ids=str)
def test_bit_linear_vector(driver: Driver, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    members, batch, rows, cols, skip, capability, multiprocessors = shape
    x, w = values((members, batch, cols), dtype, 3), random_bits((members, rows, cols), 4)
    y = vector(driver, x, w, skip, capability, multiprocessors)
    assert_product(y, x, w.double().mT, f"{dtype} {shape}")


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
@pytest.mark.parametrize("dtype", SCALARS[1:], ids=str)
def test_bit_linear_vector_of_extremes(driver: Driver, dtype: torch.dtype, batch: int) -> None:
    """int8 at the ends of its range; floats that are large, or as small as there are, but all of a size."""
    w = random_bits((1, 20, 700), 6)
    if dtype == torch.int8:
        x = values((1, batch, 700), dtype, 5, "extreme")
        assert_product(vector(driver, x, w), x, w.double().mT)
        return
    info = torch.finfo(dtype)
    for scale in (info.smallest_normal * info.eps, info.smallest_normal, info.max / 2**20):
        x = (torch.randint(-50, 50, (1, batch, 700), generator=generator(5)).double() * scale).to(dtype)
        assert_product(vector(driver, x, w), x, w.double().mT, scale)


@pytest.mark.parametrize("batch", [1, 3])
def test_bit_linear_vector_of_mixed_magnitudes(driver: Driver, batch: int) -> None:
    """A chunk's largest input costs the others, of float16, no more than 2^-23 of it."""
    x = torch.randn(1, batch, 512, generator=generator(7)).half()
    x[..., 13] = 1000.0
    w = random_bits((1, 40, 512), 8)
    w[:, :20, 13] = False
    assert_product(vector(driver, x, w), x, w.double().mT)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("dtype", SCALARS[1:3], ids=str)
def test_bit_linear_vector_of_sums_that_cancel(driver: Driver, dtype: torch.dtype, batch: int, capability: int) -> None:
    """Sums are 0, so that no rounding of the result hides what the tensor cores cut off (tensor_core.h).

    Each output takes the inputs of one place in a word's halves.
    """
    half = values((1, batch, 16, 16), dtype, 15)
    x = torch.cat((half, -half), 2)[:, :, torch.randperm(32, generator=generator(16))].flatten(2)
    w = torch.eye(16, dtype=torch.bool).repeat(1, 1, 32)
    assert_product(vector(driver, x, w, 0, capability), x, w.double().mT)


def test_bit_linear_vector_takes_no_float32(driver: Driver) -> None:
    told = run(driver.program, 90, "bit_linear", "vector", 0, 1, 1, 2, 3, 0, 132, *["/dev/null"] * 3, status=2)
    assert told == "bit_linear_vector: float32 is not taken\n"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", SCALARS[1:3], ids=str)
def test_bit_linear_vector_lets_no_infinity_vanish(driver: Driver, dtype: torch.dtype, batch: int) -> None:
    for odd in (torch.inf, -torch.inf, torch.nan):
        x = torch.ones(1, batch, 600, dtype=dtype)
        x[:, 0, 550] = odd
        y = vector(driver, x, torch.ones(1, 3, 600, dtype=torch.bool))
        assert not y[:, 0].isfinite().any() and (y[:, 1:] == 600).all()


# ----------------------------------------------------------------------------------------------- bit_linear, many samples

MATRICES = [  # population, batch, inner, outputs, words by which w misses an alignment to 16 bytes, multiprocessors
    (1, 1, 16, 1, 0, 132),
    (2, 17, 208, 130, 0, 132),  # rows of 7 or 5 words; two tiles of outputs
    (1, 70, 400, 129, 1, 132),  # blocks that halve the inputs, of 64 and 128 samples
    (1, 100, 272, 33, 0, 132),
    (1, 300, 640, 40, 0, 132),  # whole 16-byte chunks of w
    (1, 40, 1824, 256, 0, 2),  # the stages more than once around
    (1, 260, 144, 260, 1, 2),  # several tiles for the same blocks, of 256 samples
]


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("dtype", SCALARS[1:], ids=str)
@pytest.mark.parametrize("op", ["bit_linear", "bit_linear_t"])
def test_bit_linear_wgmma(driver: Driver, op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    members, batch, inner, outputs, skip, multiprocessors = shape
    x = values((members, batch, inner), dtype, 9)
    w = random_bits((members, inner, outputs) if op == "bit_linear_t" else (members, outputs, inner), 10)
    sizes = (SCALARS.index(dtype), members, batch, inner, outputs, skip, multiprocessors)
    y = driver(90, op, "wgmma", *sizes, x, numpy_words(w), "out", dtype=torch.int32 if dtype == torch.int8 else dtype)
    dense = w.double() if op == "bit_linear_t" else w.double().mT
    assert_product(y.view(members, batch, outputs), x, dense, f"{op} {dtype} {shape}")


def test_bit_linear_wgmma_elsewhere_is_an_error(driver: Driver) -> None:
    sizes = (1, 1, 2, 16, 3, 0, 132, "/dev/null", "/dev/null", "/dev/null")
    for capability, op in ((80, "bit_linear"), (100, "bit_linear_t")):
        told = run(driver.program, capability, op, "wgmma", *sizes, status=2)
        assert told == (
            f"{op}_wgmma: device 1 has compute capability {capability / 10}, 9.0 is needed; "
            "FASTBIN_CUDA_IMPL=triton serves there\n"
        )


# ------------------------------------------------------------------------------------------------------------- updates

UPDATES = [  # population, batch, rows, columns, words by which scores and buffers miss an alignment to 16 bytes
    (1, 1, 1, 1, 0),
    (1, 40, 130, 132, 0),  # beyond a tile each way, and a stage of samples; rows on 16 bytes
    (2, 17, 40, 200, 0),  # operands on 16 bytes
    (2, 33, 5, 97, 0),
    (1, 3, 9, 64, 1),
    (1, 0, 3, 40, 0),
]
OPERANDS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, True)]


def grad_update(
    driver: Driver, capability: int, rule: Rule, search: Search, gy: Tensor, x: Tensor, bits: bool, skip: int
) -> None:
    """One step of the kernel, in place; `search` has a population."""
    members, rows, cols = search.w.shape
    state, none = search.state, torch.zeros(0)
    first, second = (*state.buffers, none)[:2]
    scores = none if search.scores is None else search.scores
    sizes = (SCALARS.index(gy.dtype), bits, rule.sample, members, gy.shape[1], rows, cols, skip)
    state_of = (scores, first, second, search.w.words, rule.hyper(members, torch.device("cpu")), state.seed, state.step)
    out = driver(capability, "mask_grad_update", rule.name, *sizes, gy, x, *state_of, "out", dtype=torch.uint8)
    flips = torch.empty(members, dtype=torch.int64)
    written = [flips, state.step, search.w.words, first, second, scores]
    for t, part in zip(written, out.split([t.numel() * t.element_size() for t in written]), strict=True):
        t.copy_(part.clone().view(t.dtype).view(t.shape))
    return flips


@pytest.mark.parametrize("shape", UPDATES, ids=str)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("capability", [80, 90])  # mma.sync, wgmma
def test_mask_grad_update(driver: Driver, capability: int, name: str, shape: tuple[int, ...]) -> None:
    """Sums of small whole numbers are exact, so all results are."""
    members, batch, rows, cols, skip = shape
    rule = RULES[name]
    for dtype, bits in OPERANDS if name == "adam" else OPERANDS[:1]:
        wanted = Search.start(rule, (members, rows, cols), 11)
        got = wanted.to("cpu")
        for t in range(2):
            gy = values((members, batch, rows), dtype, 12 + t, "integers")
            x = (
                matrix((members, batch, cols), 13 + t)
                if bits
                else values((members, batch, cols), dtype, 14, "integers")
            )
            flips = wanted.update("reference", "mask_grad_update_", rule, gy, x)
            mine = grad_update(
                driver, capability, rule, got, gy, x.words if isinstance(x, BitMatrix) else x, bits, skip
            )
            assert_same(mine, flips, "flips")
            for key, tensor in wanted.tensors().items():
                assert_same(got.tensors()[key], tensor, (dtype, bits, key))


@pytest.mark.parametrize("kind", ["normal", "positive"])
@pytest.mark.parametrize("dtype", SCALARS[:3], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_gradients_are_near(driver: Driver, capability: int, dtype: torch.dtype, kind: str) -> None:
    """As Bop's mean keeps them when nothing is remembered. Batches of many of the stages that are summed apart."""
    rule = Bop(gamma=1.0)
    gy, x = values((1, 130, 20), dtype, 17, kind), values((1, 130, 36), dtype, 18, kind)
    search = Search.start(rule, (1, 20, 36), 19)
    grad_update(driver, capability, rule, search, gy, x, False, 0)
    assert_gradient(search.state.buffers[0], gy, x)
