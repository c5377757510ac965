"""Which GPU kernel a call takes: choices.json, FASTBIN_CUDA_IMPL, and what is said when it cannot be had. No GPU needed."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from cases import matrix

from fastbin import BackendError, backends, choices


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Look everything up anew, before and after; both implementations are stand-ins that say their name."""

    def clear():
        for cached in (
            backends._load,
            backends._by_shape,
            backends._chosen,
            choices.device_names,
            choices.serving,
            choices._table,
        ):
            cached.cache_clear()

    clear()
    for module, name in (("fastbin.cuda", "cpp"), ("fastbin.kernels.bit_linear", "triton"),
                         ("fastbin.kernels.bit_matmul", "triton")):  # fmt: skip
        stand_in = types.ModuleType(module)
        stand_in.bit_linear = stand_in.bit_linear_t = stand_in.bit_matmul = lambda *args, name=name: name
        monkeypatch.setitem(sys.modules, module, stand_in)
    yield
    clear()


def use_gpu(monkeypatch, name, capability):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def linear(batch, dtype=torch.float16):
    """The implementation that a call of this batch takes; meta tensors stand for a GPU's, whose index is then -1."""
    return backends.find("bit_linear", "cuda")(torch.empty(batch, 64, dtype=dtype, device="meta"), None)


def linear_t(batch, dtype=torch.float32, rows=64):
    return backends.find("bit_linear_t", "cuda")(torch.empty(batch, rows, dtype=dtype, device="meta"), None, 3)


def matmul(rows):
    return backends.find("bit_matmul", "cuda")(torch.empty(rows, 2, device="meta"), torch.empty(rows, 2, device="meta"))


def test_the_file_names_every_class_for_any_device():
    known = {op: set(kinds) for op, kinds in choices.SHAPE_CLASSES.items()}
    for device, op, kind, entry in choices.entries():
        assert kind in known[op], (device, op, kind)
        assert entry["order"] and set(entry["order"]) <= set(choices.SHAPE_CLASSES[op][kind]), (device, op, kind)
        assert entry["basis"] in ("modelled", "measured"), (device, op, kind)
        if entry["basis"] == "measured":
            assert set(entry["seconds"]) == set(entry["order"]) and entry["case"]
            assert entry["order"] == sorted(entry["order"], key=entry["seconds"].get)
        assert "triton" in entry["order"], (device, op, kind)  # which serves every card
    for op, kinds in known.items():
        for kind in kinds:
            assert choices.entry(op, kind, None)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((8, 0), ("cpp", "triton", "cpp", "cpp")),
        ((9, 0), ("cpp", "triton", "cpp", "cpp")),
        ((10, 0), ("triton", "triton", "cpp", "triton")),
        ((10, 3), ("triton", "triton", "cpp", "triton")),
        ((12, 0), ("triton", "triton", "cpp", "triton")),
    ],
)
def test_the_shape_and_the_device_choose(monkeypatch, capability, expected):
    use_gpu(monkeypatch, "a card nobody has measured", capability)
    assert (linear(16), linear(17, torch.float32), matmul(8), matmul(2048)) == expected
    assert linear(16, torch.int8) == expected[0] and linear(1, torch.float32) == "triton"
    many = "cpp" if capability == (9, 0) else "triton"
    assert {
        linear(17, torch.int8),
        linear(17, torch.bfloat16),
        linear_t(1, torch.float16),
        linear_t(9, torch.int8),
    } == {many}


def test_wgmma_takes_rows_of_whole_chunks_of_all_but_float32(monkeypatch):
    use_gpu(monkeypatch, "a card", (9, 0))
    shapes = ((64, torch.float32), (56, torch.bfloat16), (52, torch.bfloat16), (48, torch.int8), (56, torch.int8))
    assert [linear_t(99, dtype, rows) for rows, dtype in shapes] == ["triton", "cpp", "triton", "cpp", "triton"]
    assert choices.shape_class("bit_linear_t", torch.empty(99, 0, dtype=torch.bfloat16, device="meta")) == "other"


def test_a_card_that_was_measured_takes_its_own_order(monkeypatch):
    use_gpu(monkeypatch, "Some Card", (9, 0))
    own = {"order": ["triton", "cpp"], "basis": "measured", "seconds": {"triton": 1.0, "cpp": 2.0}, "case": "8192"}
    monkeypatch.setitem(choices._table()["devices"], "Some Card", {"bit_matmul": {"large": own}})
    assert (matmul(2048), matmul(8), linear(1)) == ("triton", "cpp", "cpp")


@pytest.mark.parametrize("name", ["triton", "cpp"])
def test_one_can_be_forced(monkeypatch, name):
    use_gpu(monkeypatch, "a card", (9, 0))
    monkeypatch.setenv("FASTBIN_CUDA_IMPL", name)
    assert (linear(1), matmul(8), matmul(2048)) == (name, name, name)
    assert linear(100, torch.float32) == "triton"  # the one there is
    assert backends.find("pack", "cpu").__module__ == "fastbin.cpu"


def test_an_unknown_name_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTBIN_CUDA_IMPL", "cuda")
    with pytest.raises(BackendError, match=r"'cuda' is unknown \(FASTBIN_CUDA_IMPL\): expected triton or cpp"):
        backends.find("bit_matmul", "cuda")


def test_without_the_extension_triton_serves_and_the_report_says_so(monkeypatch):
    use_gpu(monkeypatch, "a card", (9, 0))
    monkeypatch.setitem(sys.modules, "fastbin.cuda", None)
    assert (linear(1), matmul(2048)) == ("triton", "triton")
    assert ("bit_linear", "cuda", "triton (vector), triton (matrix), triton (other)") in backends.report()
    monkeypatch.setenv("FASTBIN_CUDA_IMPL", "cpp")
    with pytest.raises(BackendError, match="the cpp implementation of bit_matmul cannot be loaded"):
        matmul(2048)
    assert any(row[0] == "bit_matmul" and "cannot be loaded" in row[2] for row in backends.report())


def test_the_report_names_the_kernel_of_each_class():
    assert ("bit_linear", "cuda", "cpp (vector), cpp (matrix), triton (other)") in backends.report()
    assert ("bit_linear_t", "cuda", "cpp (matrix), triton (other)") in backends.report()
    assert ("bit_matmul", "cuda", "cpp (small), cpp (large)") in backends.report()


def test_with_neither_the_error_names_one(monkeypatch):
    use_gpu(monkeypatch, "a card", (9, 0))
    monkeypatch.setitem(sys.modules, "fastbin.cuda", None)
    monkeypatch.setitem(sys.modules, "fastbin.kernels.bit_matmul", None)
    with pytest.raises(BackendError, match="implementation of bit_matmul cannot be loaded"):
        matmul(8)


def test_the_extension_without_a_gpu_names_kernel_shape_and_error():
    extension = pytest.importorskip("fastbin._cuda", reason="fastbin._cuda is not built here: no nvcc")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the kernels run in test_ops.py")
    with pytest.raises(RuntimeError, match=r"bit_matmul on 1 x \[2, 3, 4 words\]: .+ \(CUDA error \d+\)"):
        extension.bit_matmul(0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"bit_linear_vector on 1 x \[1, 3, 2 words\]: .+ \(CUDA error \d+\)"):
        extension.bit_linear_vector(0, 0, 0, 1, 1, 3, 64, extension.Scalar.int8, 0, 0)
    with pytest.raises(RuntimeError, match=r"bit_linear_t_wgmma on 1 x \[17, 30, 1 words\]: .+ \(CUDA error \d+\)"):
        extension.bit_linear_wgmma(0, 0, 0, 1, 17, 64, 30, extension.Scalar.int8, True, 0, 0)


def test_bad_operands_are_errors(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastbin.cuda")
    pytest.importorskip("fastbin._cuda", reason="fastbin._cuda is not built here: no nvcc")
    from fastbin import cuda

    words = matrix((3, 64), 1).words
    with pytest.raises(ValueError, match="operands must be on one GPU, got cpu"):
        cuda.bit_matmul(words, words)
    with pytest.raises(ValueError, match="operands must be on one GPU, got cpu, meta"):
        cuda.bit_matmul(words, words.to("meta"))
    with pytest.raises(TypeError, match=r"thresholds must be int32, got torch\.float32"):
        cuda.bit_matmul_packed(words, words, torch.zeros(3))
    for x in (torch.zeros(17, 64), torch.zeros(17, 60, dtype=torch.bfloat16)):
        told = rf"got \[17, {x.shape[1]}\] {x.dtype}"
        takes = "takes bfloat16, float16 or int8, in rows of whole 16-byte chunks"
        with pytest.raises(ValueError, match=f"of bit_linear {takes}, or up to 16 samples, {told}"):
            cuda.bit_linear(x, words)
        with pytest.raises(ValueError, match=f"of bit_linear_t {takes}, {told}"):
            cuda.bit_linear_t(x, words, 3)
