"""Other builds of the compiled extension, and the kernel tests run on them in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def build(folder: Path, **options: object) -> Path:
    """The extension as CMake makes it with `options`, in a folder that is kept: built anew where sources changed."""
    import pybind11

    options |= {
        "CMAKE_BUILD_TYPE": "Release",
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "FASTBIN_CUDA": "OFF",
    }
    configure = ["cmake", "-S", HERE.parent, "-B", folder, *(f"-D{name}={value}" for name, value in options.items())]
    for command in (configure, ["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.fixture(scope="session")
def emulated(request: pytest.FixtureRequest) -> Path:
    """An extension whose AVX-512 kernels run on SIMDe."""
    simde = importlib.util.find_spec("simde_py")
    assert simde is not None and simde.origin is not None, "install the extra `test`: simde-py is missing"
    return build(
        request.config.cache.mkdir("avx512-emulated"),
        FASTBIN_EMULATE_AVX512="ON",
        FASTBIN_SIMDE_INCLUDE=Path(simde.origin).parent / "simde",
    )


def environment(**changed: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FASTBIN_")} | changed


def run_kernel_tests(env: dict[str, str], *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """The kernel tests in a process of their own, with few examples each."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=quick", *arguments]
    return subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=timeout)
