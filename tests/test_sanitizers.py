"""The kernel tests on builds that check every address (ASan), undefined operations (UBSan), and races of threads (TSan)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from extensions import HERE, run_kernel_tests

from fastbin import _cpu
from tests.sanitize import MissingError, ready

# Reads past an edge show at odd sizes and in odd places. The time is 20 times that of a plain build, so what differs
# above the kernels alone (float16 is made float32 there) and what only computes (sampling) is left to the other tests
# and to `make sanitize`, which runs them all.
TESTS = [
    *(str(HERE / name) for name in ("test_ops.py", "test_updates.py")),
    "-k",
    "(every_size or wider_than_a_tile or every_layout or nothing_else or bfloat16) and not torch.float16"
    " and not torch.bfloat16 and not sampling",
]


def environment_of(name: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """What a process needs to run on a build, which is kept in pytest's cache folder."""
    try:
        return ready(name, request.config.cache.mkdir("sanitized-" + name))
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sanitized(request: pytest.FixtureRequest) -> dict[str, str]:
    return environment_of("memory", request)


@pytest.fixture(scope="module")
def watched(request: pytest.FixtureRequest) -> dict[str, str]:
    return environment_of("threads", request)


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
# Long enough that a call of one thread meets one of the other, which has waited for the GIL, on a busy machine too.
x, words = numpy.ones((4096, 320), numpy.float32), numpy.zeros((4096, 10), numpy.int32)
start = threading.Barrier(2)
def pack():
    start.wait()
    for _ in range(100):
        _cpu.pack_threshold_f32(x.ctypes.data, 0.5, words.ctypes.data, 4096, 320, 1)
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
