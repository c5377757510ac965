"""The choice of an implementation: FASTBIN_BACKEND, `override`, and errors that say what was asked and what there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import matrix, values

from fastbin import BackendError, backends, cpu, ops, reference


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTBIN_")} | environment
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("op", backends.OPS)
def test_the_compiled_kernels_are_the_default_on_the_cpu(op: str) -> None:
    assert backends.find(op, "cpu") is getattr(cpu, op)
    assert (op, "cpu", "cpp") in backends.report()


def test_every_op_is_in_the_table_and_in_the_reference() -> None:
    assert set(backends.OPS) == {
        "pack", "unpack", "transpose", "popcount", "bit_linear", "bit_linear_t", "bit_matmul", "mask_update_",
        "mask_grad_update_",
    }  # fmt: skip
    for op in backends.OPS:
        assert callable(getattr(torch.ops.fastbin, op))
        with backends.override("reference"):
            assert backends.find(op, "cpu") is getattr(reference, op)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTBIN_BACKEND", "reference")
    assert backends.requested() == "reference"
    assert backends.find("bit_linear", "cpu") is reference.bit_linear
    assert all(name == "reference" for _, device, name in backends.report() if device == "cpu")
    monkeypatch.setenv("FASTBIN_BACKEND", "")
    assert backends.requested() == "auto"


@pytest.mark.parametrize("name", ["cuda", "CPP", "fast"])
def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FASTBIN_BACKEND", name)
    with pytest.raises(BackendError, match=f"backend '{name}' is unknown .*expected auto, reference, cpp"):
        ops.bit_linear(values((2, 40), torch.float32, 1), matrix((3, 40), 2))
    monkeypatch.delenv("FASTBIN_BACKEND")
    with pytest.raises(BackendError, match=f"backend '{name}' is unknown"), backends.override(name):
        pytest.fail("the block was entered")
    assert backends.requested() == "auto"


def test_override_nests_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTBIN_BACKEND", "cpp")
    with backends.override("reference"):
        assert backends.requested() == "reference"
        with backends.override("auto"):
            assert backends.find("pack", "cpu") is cpu.pack
        assert backends.find("pack", "cpu") is reference.pack
        with pytest.raises(KeyError), backends.override("cpp"):
            raise KeyError
        assert backends.requested() == "reference"
    assert backends.requested() == "cpp"


def test_a_name_without_an_implementation_says_what_there_is() -> None:
    with backends.override("triton"), pytest.raises(BackendError) as caught:
        backends.find("bit_linear", "cpu")
    assert str(caught.value) == "bit_linear on cpu has no triton implementation: there is cpp, reference"


def test_a_device_without_kernels_says_so() -> None:
    w = matrix((3, 40), 3)
    with pytest.raises(BackendError, match=r"bit_linear has no kernel for xpu here; FASTBIN_BACKEND=reference"):
        backends.find("bit_linear", "xpu")
    with backends.override("reference"):
        assert backends.find("bit_linear", "xpu") is reference.bit_linear
    assert w.population is None


USE = """
import sys
{before}
import fastbin, torch
from fastbin import backends
w = {make}
try:
    print(fastbin.ops.bit_linear(torch.ones(2, 40), w).tolist())
except backends.BackendError as error:
    print("BackendError:", error)
"""
MISSING = "sys.modules['fastbin._cpu'] = None"
ZEROS = "fastbin.BitMatrix.zeros(3, 40)"


def test_a_missing_extension_is_an_error_at_first_use() -> None:
    done = python(USE.format(before=MISSING, make=ZEROS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "BackendError: the cpp implementation of bit_linear cannot be loaded: the compiled ext"
    )
    assert "C++17 compiler" in done.stdout and "FASTBIN_BACKEND=reference" in done.stdout


def test_the_reference_needs_no_extension() -> None:
    done = python(
        USE.format(before=MISSING, make="fastbin.BitMatrix.pack([[1] * 40, [0] * 40])"), FASTBIN_BACKEND="reference"
    )
    assert done.stdout == "[[40.0, 0.0], [40.0, 0.0]]\n", done.stderr


def test_an_unknown_name_is_no_error_at_import() -> None:
    done = python(USE.format(before="", make=ZEROS), FASTBIN_BACKEND="nonsense")
    assert done.stdout.startswith("BackendError: backend 'nonsense' is unknown"), done.stderr


def test_the_kernels_share_torch_s_threads() -> None:
    assert cpu._cpu.parallel_runtime() == "openmp"
