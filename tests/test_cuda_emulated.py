"""The CUDA kernels' own source on the CPU, under tests/cuda_emulation and the address and undefined-behaviour sanitizers.

It shows that indexing, synchronisation by barriers and the documented fragment layouts fit together, not that a GPU
agrees: csrc/README.md lists what only a GPU can show.
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
from cases import assert_product, assert_same, generator, numpy_words, random_bits, values
from torch import Tensor

from fastbin import reference

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


def run(*command: object) -> str:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=0"}
    done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Driver:
    program: Path
    folder: Path

    def __call__(self, capability: int, op: str, kernel: str, *arguments: object, dtype: type = np.int32) -> Tensor:
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
        return torch.from_numpy(np.fromfile(out, dtype=dtype))


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


# ----------------------------------------------------------------------------------------------------------- bit_matmul

MATMULS = {"bmma": 80, "popc": 100}  # kernel: a compute capability it serves
SHAPES = [  # population, rows of a, rows of b, columns, words by which the operands miss an alignment to 16 bytes
    (1, 1, 1, 1, 0),
    (1, 130, 129, 1000, 0),  # beyond a tile each way; 32 words: whole chunks, and a stage that ends in the middle
    (1, 65, 70, 2700, 0),  # 85 words: no whole chunks
    (2, 33, 150, 640, 1),  # whole chunks, but not on 16 bytes
    (3, 7, 31, 97, 0),
    (1, 1, 300, 4100, 0),  # all stages in use
    (1, 1100, 40, 128, 0),  # more than a band of tiles
]


def product(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().mT).to(torch.int32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", MATMULS)
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

    # Thresholds by the column, by the row (as a layer's norm makes them) and one for all; some equal a count.
    columns = expected.double().mean(1).to(torch.int32)
    rows = expected.double().mean(2).to(torch.int32)
    one = expected.flatten()[:1].clone()
    for thresholds, view, strides in (
        (columns, columns[:, None, :], (rows_b, 0, 1)),
        (rows, rows[:, :, None], (rows_a, 1, 0)),
        (one, one, (0, 0, 0)),
    ):
        bits = driver(MATMULS[kernel], "bit_matmul", kernel, *sizes, words_a, words_b, thresholds, "out", 1, *strides)
        packed = numpy_words(expected > view)
        assert_same(bits.view(packed.shape), packed, f"bits, thresholds of strides {strides}")
