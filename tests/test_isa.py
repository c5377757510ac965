"""The kernel tests once more for each other instruction set, each in a process of its own: a level is read once.

AVX-512 runs natively where the CPU has it, else from a second build of the extension, emulated on SIMDe.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys

import pytest
from extensions import HERE, emulated, environment, run_kernel_tests  # noqa: F401 - a fixture

from fastbin import _cpu

KERNEL_TESTS = [str(HERE / "test_ops.py"), str(HERE / "test_updates.py")]
LEVELS = ("scalar", "avx2", "avx512")

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="there is one instruction set here: the one all tests ran on"
)


# The level in force is that of the tests in this very process.
@pytest.mark.parametrize("level", [n for n in LEVELS if n != _cpu.isa() and (n == "avx512" or n in _cpu.isas())])
def test_kernels_on(level: str, request: pytest.FixtureRequest) -> None:
    env = environment(FASTBIN_ISA=level)
    if level not in _cpu.isas():
        env["FASTBIN_TEST_EXTENSION"] = str(request.getfixturevalue("emulated"))
    done = run_kernel_tests(env, *KERNEL_TESTS)
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
