import json
import sys
import types

import pytest

import fastbin
from fastbin import backends, doctor, reference
from fastbin.cli import main


@pytest.fixture(autouse=True)
def fresh_backends(monkeypatch):
    """Implementations are looked up anew, before and after."""
    monkeypatch.delenv("FASTBIN_BACKEND", raising=False)
    backends._load.cache_clear()
    yield
    backends._load.cache_clear()


@pytest.fixture
def break_op(monkeypatch):
    """Put another function in the place of an op's CPU kernel."""

    def replace(op, function):
        module = types.ModuleType("fastbin_broken")
        setattr(module, op, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(backends.TABLE, (op, "cpu"), (("cpp", module.__name__),))

    return replace


@pytest.mark.parametrize("op", backends.OPS)
def test_cpu_kernels_pass(op):
    assert doctor.self_test(op, "cpu") is None


def test_all_is_well(monkeypatch, capfd):
    monkeypatch.setenv("FASTBIN_BACKEND", "reference")
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert "all is well" in out and "FASTBIN_BACKEND=reference" in out and "\x1b" not in out
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capfd.readouterr().out)
    assert findings["faults"] == [] and findings["threads"]["number"] >= 1
    assert {row["op"] for row in findings["kernels"]} == set(backends.OPS)
    assert findings["versions"]["torch"] and findings["cpu"]["in_use"] in findings["cpu"]["instruction_sets"]


def test_an_unknown_implementation_is_a_fault_without_a_gpu_too(monkeypatch, capfd):
    monkeypatch.setenv("FASTBIN_BACKEND", "reference")
    monkeypatch.setenv("FASTBIN_CUDA_IMPL", "what")
    assert main(["doctor"]) == 1
    told = "implementation 'what' is unknown (FASTBIN_CUDA_IMPL): expected triton or cpp"
    assert capfd.readouterr().out.endswith(f"fault: {told}\n1 fault\n")


def wrong_value(x, words):
    y = reference.bit_linear(x, words)
    y[..., -1] += 1
    return y


def unfinished(x, words):
    raise AttributeError("no such kernel")


@pytest.mark.parametrize(
    ("op", "function", "told"),
    [
        ("bit_linear", wrong_value, "result torch.float32 [1, 1] differs in 1 of 1 values"),
        ("bit_linear", lambda x, words: reference.bit_linear(x, words).double(), "is torch.float64"),
        ("bit_linear", unfinished, "no such kernel"),
        ("mask_update_", lambda *args: reference.mask_update_(*args) + 1, "result torch.int64"),
        ("mask_update_", lambda scores, *args: reference.mask_update_(scores.clone(), *args), "scores torch.float32"),
        ("popcount", lambda words: words.new_zeros(words.shape[:-2], dtype=int), "result torch.int64"),
    ],
)
def test_broken_kernel_is_found(break_op, capfd, op, function, told):
    break_op(op, function)
    assert main(["doctor", "--json"]) == 1
    faults = json.loads(capfd.readouterr().out)["faults"]
    assert any(fault.startswith(f"{op} on cpu: ") and told in fault for fault in faults)


def test_broken_kernel_is_shown(break_op, capfd):
    break_op("bit_linear", unfinished)
    assert main(["doctor"]) == 1
    assert "fault: bit_linear on cpu: no such kernel" in capfd.readouterr().out


def test_missing_extension(monkeypatch, capfd):
    monkeypatch.delattr(fastbin, "_cpu", raising=False)
    monkeypatch.delitem(sys.modules, "fastbin.cpu", raising=False)
    monkeypatch.setitem(sys.modules, "fastbin._cpu", None)
    assert main(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "the compiled extension fastbin._cpu is missing" in out and "C++17 compiler" in out


def test_missing_triton(monkeypatch, capfd):
    monkeypatch.setenv("FASTBIN_BACKEND", "reference")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    assert "note: triton is missing" in capfd.readouterr().out


@pytest.mark.parametrize("built", [True, False])
def test_what_the_cuda_kernels_were_built_for(monkeypatch, capfd, built):
    monkeypatch.setenv("FASTBIN_BACKEND", "reference")
    module = types.ModuleType("fastbin._cuda")
    module.architectures = lambda: "sm_80, sm_90a"
    monkeypatch.setitem(sys.modules, "fastbin._cuda", module if built else None)
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert ("for sm_80, sm_90a" in out) == built
    assert ("note: the CUDA C++ kernels are not built" in out) == (not built)
