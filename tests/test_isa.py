"""The kernel tests once more for each other instruction set, each in a process of its own: a level is read once.

AVX-512 runs natively where the CPU has it, else from a second build of the extension, emulated on SIMDe.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastbin import _cpu

HERE = Path(__file__).parent
KERNEL_TESTS = [str(HERE / "test_ops.py"), str(HERE / "test_updates.py")]
LEVELS = ("scalar", "avx2", "avx512")

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="there is one instruction set here: the one all tests ran on"
)


def environment(**changed: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FASTBIN_")} | changed


@pytest.fixture(scope="session")
def emulated(request: pytest.FixtureRequest) -> Path:
    """An extension whose AVX-512 kernels run on SIMDe; kept in pytest's cache folder, built anew where sources changed."""
    build = request.config.cache.mkdir("avx512-emulated")
    simde = importlib.util.find_spec("simde_py")
    assert simde is not None and simde.origin is not None, "install the extra `test`: simde-py is missing"
    import pybind11

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "FASTBIN_EMULATE_AVX512": "ON",
        "FASTBIN_CUDA": "OFF",
        "FASTBIN_SIMDE_INCLUDE": Path(simde.origin).parent / "simde",
    }
    configure = ["cmake", "-S", HERE.parent, "-B", build, *(f"-D{name}={value}" for name, value in options.items())]
    for command in (configure, ["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"


# The level in force is that of the tests in this very process.
@pytest.mark.parametrize("level", [n for n in LEVELS if n != _cpu.isa() and (n == "avx512" or n in _cpu.isas())])
def test_kernels_on(level: str, request: pytest.FixtureRequest) -> None:
    env = environment(FASTBIN_ISA=level)
    if level not in _cpu.isas():
        env["FASTBIN_TEST_EXTENSION"] = str(request.getfixturevalue("emulated"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=quick", *KERNEL_TESTS]
    done = subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf", isa {level} of ", done.stdout), done.stdout  # as the extension itself says
    assert re.search(r"= (\d{3,}) passed in ", done.stdout), done.stdout  # hundreds, and none skipped


USE = """
import fastbin, torch
print("imported")
w = fastbin.BitMatrix.zeros(3, 40)
try:
    fastbin.ops.bit_linear(torch.ones(2, 40), w)
except (RuntimeError, ValueError) as error:
    print(type(error).__name__, error)
else:
    from fastbin import _cpu
    print("ran on", _cpu.isa())
"""


def use(level: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment(FASTBIN_ISA=level), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("level", [n for n in LEVELS if n in _cpu.isas()])
def test_a_level_of_this_cpu_can_be_forced(level: str) -> None:
    assert use(level) == f"imported\nran on {level}\n"


@pytest.mark.parametrize("level", ["sse", "AVX2"])
def test_an_unknown_level_is_an_error_at_first_use(level: str) -> None:
    assert use(level) == f"imported\nValueError FASTBIN_ISA={level}: expected scalar, avx2 or avx512\n"


@pytest.mark.skipif(set(LEVELS) == set(_cpu.isas()), reason="this CPU has every level")
def test_a_level_that_this_cpu_lacks_is_an_error_at_first_use() -> None:
    level = next(n for n in LEVELS if n not in _cpu.isas())
    assert use(level) == f"imported\nRuntimeError FASTBIN_ISA={level}: this CPU does not support it\n"
