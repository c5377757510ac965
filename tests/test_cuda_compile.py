"""nvcc compiles every CUDA kernel for every architecture, and the machine code is what was meant. No GPU takes part.

Binary tensor cores, 16-byte loads, no local memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton brings cuobjdump, which shows the machine code")

SOURCES = sorted((Path(__file__).parent.parent / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a", "100")
REGISTERS = 65536  # of a multiprocessor
SHARED_BYTES = {"80": 163 * 1024, "90a": 227 * 1024, "100": 227 * 1024}  # that a block may have

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA kernels are not compiled")


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Kernel:
    """A kernel's machine code for one architecture, and what ptxas said of it."""

    name: str
    code: str
    stack: int
    spills: int
    registers: int
    shared: int

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.code))

    def one(self, pattern: str) -> str:
        (found,) = re.findall(pattern, self.code)
        return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Kernel]]:
    """(source's stem, architecture) -> its kernels."""
    folder = tmp_path_factory.mktemp("cuda_compile")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    strict = ["-Xptxas=-v", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror"]

    def compile_one(source: Path) -> dict[tuple[str, str], list[Kernel]]:
        built = folder / f"{source.stem}.fatbin"
        told = run(
            "nvcc", "-std=c++17", "-O3", f"-I{source.parent.parent}", *targets, *strict, "-fatbin", source, "-o", built
        )
        code = run(triton.knobs.nvidia.cuobjdump.path, "-sass", built)
        return {(source.stem, a): list(parse(told, code, f"sm_{a}")) for a in ARCHITECTURES}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {key: found for part in pool.map(compile_one, SOURCES) for key, found in part.items()}


def parse(told: str, code: str, architecture: str):
    bodies = {}
    for part in re.split(r"\n\s*code for (?=sm_)", code)[1:]:
        if part.split()[0] == architecture:
            for body in re.split(r"Function : ", part)[1:]:
                bodies[body.split()[0]] = body
    pattern = (
        r"Compiling entry function '(\S+)' for '(\S+)'\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*Used (\d+) registers(.*)"
    )
    for name, target, stack, stores, loads, registers, rest in re.findall(pattern, told):
        if target == architecture:
            shared = re.search(r"(\d+) bytes smem", rest)
            yield Kernel(
                name,
                bodies[name],
                int(stack),
                int(stores) + int(loads),
                int(registers),
                int(shared[1]) if shared else 0,
            )


def test_every_kernel_compiles_without_local_memory(kernels) -> None:
    for (source, architecture), found in kernels.items():
        assert found or source == "bit_matmul", f"{source} has no kernel"
        for kernel in found:
            told = f"{kernel.name} for sm_{architecture}"
            assert (kernel.stack, kernel.spills) == (0, 0), told
            assert not kernel.count(r"\b(LDL|STL)\b"), told
            assert kernel.shared <= SHARED_BYTES[architecture], told


def test_bmma(kernels) -> None:
    """A step is 2 x 32 products for 16 matrix loads; both copies of the 16-byte kernel are 16 bytes wide."""
    for architecture in ("80", "90a"):
        vector, words = kernels["bit_matmul_bmma", architecture]
        if "Lb0" in vector.name:
            vector, words = words, vector
        for kernel in (vector, words):
            assert kernel.count(r"BMMA\.168256\.AND\.POPC") >= 64
            assert kernel.count(r"LDSM\.16\.M88\.4") >= 16
            assert 128 * kernel.registers * 2 <= REGISTERS  # two blocks on a multiprocessor
        assert vector.count(r"LDGSTS\.E\.BYPASS\.(LTC128B\.)?128") >= 8 and not vector.count(r"LDGSTS\.E\.(LTC128B )")
        assert words.count(r"LDGSTS") and not words.count(r"LDGSTS\S*\.128")


def test_wgmma(kernels) -> None:
    """A stage is four products and one wait, fed by the copy engine; nothing waits for stores or empties L1."""
    (kernel,) = kernels["bit_matmul_wgmma", "90a"]
    products = kernel.count(r"BGMMA\.64x256x256\.AND\.POPC")
    assert products >= 4 and products % 4 == 0
    assert kernel.count(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0\b") == products // 4  # nvcc did not put waits between
    assert kernel.count(r"UTMALDG\.3D") >= 2
    assert not kernel.count(r"\b(MEMBAR|CCTL)\b")
    assert kernel.count(r"STG\.E\.EF\.128") >= 32
    assert 384 * kernel.registers <= REGISTERS  # at the launch
    consumers, producers = (
        int(kernel.one(rf"USETMAXREG\.{way}\S*.* (0x\w+) ;"), 16) for way in ("TRY_ALLOC", "DEALLOC")
    )
    assert 256 * consumers + 128 * producers <= 384 * kernel.registers
    for architecture in ("80", "100"):  # an empty kernel, never launched
        assert not kernels["bit_matmul_wgmma", architecture][0].count("MMA")


def test_bit_linear_wgmma(kernels) -> None:
    """A stage's products read decoded bits from registers, samples from shared memory, and nothing serialises them."""
    found = kernels["bit_linear_wgmma", "90a"]
    assert len(found) == 30  # three types, two directions, five ways to cut the work
    for kernel in found:
        batch, products = re.search(r"Li(\d+)E", kernel.name)[1], 4 if "ScalarE3E" in kernel.name else 8
        kind = {"1": r"HGMMA\.64x%sx16\.F32\.BF16", "2": r"HGMMA\.64x%sx16\.F32", "3": r"IGMMA\.64x%sx32\.S8\.S8"}
        name = kind[re.search(r"ScalarE(\d)E", kernel.name)[1]] % batch
        assert kernel.count(name + r" R\d+, R\d+, gdesc") == kernel.count(r"GMMA\.") == products, kernel.name
        groups = 2 if batch != "256" or "ScalarE3E" in kernel.name else 4
        assert kernel.count(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1\b") == groups, kernel.name
        assert kernel.count(r"UTMALDG\.3D\.MULTICAST") >= 1 and kernel.count(r"LDGSTS") >= 1
        assert not kernel.count(r"MEMBAR")  # of which one a stage would be dear
        assert 384 * kernel.registers <= REGISTERS
    for architecture in ("80", "100"):  # empty kernels, never launched
        assert not any(kernel.count("MMA") for kernel in kernels["bit_linear_wgmma", architecture])


def test_popc(kernels) -> None:
    for architecture in ARCHITECTURES:
        (kernel,) = kernels["bit_matmul_popc", architecture]
        assert kernel.count(r"\bPOPC\b") >= 16 and not kernel.count("MMA")


def test_bit_linear_vector(kernels) -> None:
    """A stage is two chunks of 32 rows: a mask for each register of the left operand and, of 16 bits, a shift a word."""
    for architecture in ARCHITECTURES:
        found = {k.name: k for k in kernels["bit_linear_vector", architecture]}
        assert len(found) == 6
        for name, kernel in found.items():
            half, tiles = "WayE1" in name, 2 if "Li16E" in name else 1
            products = 2 * 64 * tiles if half else 2 * 32 * tiles
            assert kernel.count(r"HMMA\.16816\.F32" if half else r"IMMA\.16832\.U8\.S8") == products, name
            masks = kernel.count(r"LOP3\.LUT R\d+, R\d+(\.reuse)?, 0x[1248]0*[1248]?0*[1248]?0*[1248]?0*, RZ, 0xc0")
            assert masks <= (2 * 16 * 16 if half else 2 * 16 * 8) + 40, (name, masks)
            assert kernel.count(r"LDGSTS\S*\.128") >= 16 and kernel.count(r"LDS\.128") >= 2 * (4 + (16 if half else 8))
            assert 512 * kernel.registers <= REGISTERS


def test_mask_grad_update(kernels) -> None:
    """Products on the tensor cores, scores and moments in 16-byte accesses, two blocks on a multiprocessor."""
    for source, architecture, product in (
        ("mask_grad_update_mma", "80", r"HMMA\.16816\.F32"),
        ("mask_grad_update_mma", "100", r"HMMA\.16816\.F32"),
        ("mask_grad_update_wgmma", "90a", r"HGMMA\.64x(?:64|128)x16\.F32"),
    ):
        found = kernels[source, architecture]
        assert len(found) == 6  # three types, x real or bits
        for kernel in found:
            assert kernel.count(product) >= 4, kernel.name
            assert kernel.count(r"LDG\.E\.\S*128") >= 3 and kernel.count(r"STG\.E\.\S*128") >= 3, kernel.name
            assert 2 * 256 * kernel.registers <= REGISTERS
    for architecture in ("80", "100"):  # empty kernels, never launched
        assert not any(kernel.count("MMA") for kernel in kernels["mask_grad_update_wgmma", architecture])
