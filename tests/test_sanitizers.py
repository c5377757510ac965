"""The kernel tests on builds that check every address (ASan), undefined operations (UBSan), and races of threads (TSan)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from extensions import HERE, build, environment, run_kernel_tests

from fastbin import _cpu

# Reads past an edge show at odd sizes and in odd places. The time is 20 times that of a plain build, so what differs
# above the kernels alone (float16 is made float32 there) and what only computes (sampling) is left to the other tests.
TESTS = [
    *(str(HERE / name) for name in ("test_ops.py", "test_updates.py")),
    "-k",
    "(every_size or wider_than_a_tile or every_layout or nothing_else or bfloat16) and not torch.float16"
    " and not torch.bfloat16 and not sampling",
]


def runtime(compiler: str, name: str) -> str:
    """A sanitizer's library, which has to be loaded before Python."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():  # g++ hands back the bare name of what it does not have
        pytest.skip(f"{name} is missing: install g++'s sanitizer runtimes")
    return path


def built(request: pytest.FixtureRequest, sanitizers: str, *runtimes: str) -> dict[str, str]:
    """What a process needs to run on a sanitized extension, which is kept in pytest's cache folder."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing: its sanitizers are what this test builds with")
    preloaded = " ".join(runtime(compiler, name) for name in runtimes)
    folder = request.config.cache.mkdir("sanitized-" + sanitizers.replace(",", "-"))
    extension = build(folder, CMAKE_CXX_COMPILER=compiler, FASTBIN_SANITIZE=sanitizers)
    return environment(FASTBIN_TEST_EXTENSION=str(extension), LD_PRELOAD=preloaded)


@pytest.fixture(scope="module")
def sanitized(request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        **built(request, "address,undefined", "libasan.so", "libubsan.so"),
        # Python never frees all. A short trace for each allocation: Python makes many.
        "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=3:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


@pytest.fixture(scope="module")
def watched(request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        **built(request, "thread", "libtsan.so"),
        # Python's and torch's own locks are not all that TSan knows: what it finds in code that it has not compiled is left.
        "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0",
        "FASTBIN_TEST_THREADS": "3",
    }


def test_the_sanitizers_see_an_overflow(sanitized: dict[str, str]) -> None:
    """One row more than the output has room for, asked of the extension itself."""
    program = """
import numpy, torch, conftest  # puts the sanitized extension in place
from fastbin import _cpu
x, words = numpy.ones((3, 40), numpy.float32), numpy.zeros((2, 2), numpy.int32)
_cpu.pack_threshold_f32(x.ctypes.data, 0.5, words.ctypes.data, 3, 40, 1)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=HERE, env=sanitized, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"AddressSanitizer: heap-buffer-overflow", done.stderr), done.stderr


@pytest.mark.parametrize("level", _cpu.isas())
def test_kernels_under_sanitizers_on(level: str, sanitized: dict[str, str]) -> None:
    # -s: a sanitizer ends the process, and pytest would swallow its words with it.
    done = run_kernel_tests({**sanitized, "FASTBIN_ISA": level}, "-s", *TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert re.search(rf"{re.escape(sanitized['FASTBIN_TEST_EXTENSION'])}, isa {level} of ", done.stdout), done.stdout
    assert re.search(r"= (\d{3,}) passed, \d+ deselected in ", done.stdout), done.stdout


def test_the_sanitizer_sees_a_race(watched: dict[str, str]) -> None:
    """Two threads that pack into the same words, asked of the extension itself."""
    program = """
import threading, numpy, torch, conftest
from fastbin import _cpu
x, words = numpy.ones((64, 40), numpy.float32), numpy.zeros((64, 2), numpy.int32)
start = threading.Barrier(2)
def pack():
    start.wait()
    for _ in range(100):
        _cpu.pack_threshold_f32(x.ctypes.data, 0.5, words.ctypes.data, 64, 40, 1)
threads = [threading.Thread(target=pack) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=HERE, env=watched, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"ThreadSanitizer: data race", done.stderr), done.stderr


@pytest.mark.parametrize("level", _cpu.isas())
def test_no_race_on(level: str, watched: dict[str, str]) -> None:
    names = ["test_threads.py"]
    chosen = "ten_threads"
    if level == _cpu.isas()[-1]:  # threads are handed their work alike on all
        names += ["test_ops.py", "test_updates.py", "test_bits.py"]
        chosen = "(wider_than_a_tile or every_layout or nothing_else or ten_threads) and not float16 and not bfloat16"
    tests = [str(HERE / name) for name in names]
    done = run_kernel_tests({**watched, "FASTBIN_ISA": level}, "-s", *tests, "-k", chosen)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert re.search(r"= (\d{2,}) passed", done.stdout), done.stdout
