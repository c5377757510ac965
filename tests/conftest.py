"""Which extension is tested, and the settings of the tools."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

# Read when torch is imported. The suite's many small calls would spend most of their time in threads that spin for each
# other on a machine whose cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest

import fastbin


def _use_extension(path: str) -> None:
    """Put another build of the compiled extension in the place of the installed one; test_isa.py asks for it."""
    spec = importlib.util.spec_from_file_location("fastbin._cpu", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastbin._cpu"] = fastbin._cpu = module


if "FASTBIN_TEST_EXTENSION" in os.environ:
    _use_extension(os.environ["FASTBIN_TEST_EXTENSION"])


def _use_threads_of_its_own(threads: int) -> None:
    """Let the kernels start threads that ThreadSanitizer knows, where torch's OpenMP, which it does not, would be used."""
    import torch

    from fastbin import cpu

    cpu._cpu.use_openmp(0)
    torch.set_num_threads(1)  # torch's own work
    torch.get_num_threads = lambda: threads  # what the kernels are told
    torch.set_num_threads = lambda threads: None


if "FASTBIN_TEST_THREADS" in os.environ:
    _use_threads_of_its_own(int(os.environ["FASTBIN_TEST_THREADS"]))

# Derandomized: a red test is red for everybody. `--hypothesis-profile=long` looks further, with a new seed each time.
hypothesis.settings.register_profile("default", max_examples=30, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("quick", max_examples=8, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("long", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("default")


def pytest_report_header() -> str:
    """Name the extension and the instruction set in force: test_isa.py reads it."""
    try:
        from fastbin import _cpu

        return f"fastbin: {_cpu.__file__}, isa {_cpu.isa()} of {', '.join(_cpu.isas())}"
    except ImportError as error:
        return f"fastbin: no compiled extension ({error})"


@pytest.fixture(autouse=True)
def _no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose their backends themselves."""
    monkeypatch.delenv("FASTBIN_BACKEND", raising=False)
    monkeypatch.delenv("FASTBIN_CUDA_IMPL", raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for a module: its products are too small to share, and equal bits are promised for a number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
