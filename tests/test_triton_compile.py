"""Every Triton kernel, compiled for GPUs that need not be there: it must assemble, without spills and within shared memory.

The kernels' own host code runs on CPU tensors, with the launch replaced by a compilation of what would be launched.
"""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastbin import reference
from fastbin.kernels import bit_linear, bit_matmul, bits, mask_grad_update, mask_update
from fastbin.rules import SGD, Adam, Bop

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # that one program may have
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64",
    torch.uint8: "u8", torch.int8: "i8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def compile_launch(fn, arch, args, kwargs):
    """Compile a launch as Triton's runtime specialises it: aligned pointers, None and 1 as constants, multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    values = {**dict(zip(fn.arg_names, args, strict=False)), **kwargs}
    for i, (param, value) in enumerate((p, values.pop(p.name)) for p in fn.params):
        tensor = isinstance(value, torch.Tensor)
        if param.is_constexpr or value is None or (not tensor and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = f"*{TYPES[value.dtype]}" if tensor else "i32"
            if tensor or value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=values)


@pytest.fixture(params=SHARED_BYTES)
def compiled(request, monkeypatch, tmp_path):
    """The kernels compiled by the test so far, for one GPU."""
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set")
    done = []

    def run(self, *args, grid, warmup, **kwargs):
        done.append(compile_launch(self, request.param, args, kwargs))

    monkeypatch.setattr(JITFunction, "run", run)
    yield done
    assert done
    for kernel in done:
        assert kernel.metadata.shared <= SHARED_BYTES[request.param]
        assert stack_bytes(kernel.asm["cubin"], tmp_path / "kernel.cubin") == 0


def stack_bytes(cubin, path):
    """Bytes of stack a thread, where spilled registers go, of the cubin's one kernel."""
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def random_words(*shape):
    return reference.pack(torch.rand(shape) < 0.5, None)


def test_moving_bits(compiled):
    for dtype in (torch.float32, torch.bool, torch.int64, torch.bfloat16):
        bits.pack(torch.ones(64, 100).to(dtype), None)
    bits.pack(torch.ones(64, 100), 0.5)
    words = random_words(64, 100)
    for dtype in (torch.float32, torch.bool, torch.float16):
        bits.unpack(words, 100, dtype)
    bits.transpose(words, 100)
    bits.popcount(words)


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_bit_linear(compiled, dtype, batch):
    words = random_words(96, 128)
    bit_linear.bit_linear(torch.ones(batch, 128, dtype=dtype), words)
    bit_linear.bit_linear_t(torch.ones(batch, 96, dtype=dtype), words, 128)


def test_bit_matmul(compiled):
    bit_matmul.bit_matmul(random_words(96, 128), random_words(64, 128))


def run_update(update, rule, shape, *gradient):
    words = random_words(*shape)
    state = [torch.zeros(shape) for _ in range(rule.buffer_count)]
    scores = None if isinstance(rule, Bop) else torch.zeros(shape)
    step, seed = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    update(scores, *gradient, words, state, step, seed, rule.hyper(1, words.device), rule.name, rule.sample)


# Any of these in the update would round otherwise than the reference does.
INEXACT = re.compile(r"\bfma\.rn\.f32|\.approx|\.ftz|div\.full")


@pytest.mark.parametrize("rule", [SGD(), SGD(sample=True), Adam(), Adam(sample=True), Bop()], ids=repr)
def test_mask_update(compiled, rule):
    run_update(mask_update.mask_update_, rule, (96, 128), torch.zeros(96, 128))
    assert not any(INEXACT.search(kernel.asm["ptx"]) for kernel in compiled)


@pytest.mark.parametrize("rule", [SGD(), Adam(sample=True), Bop()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bits", "real"])
def test_mask_grad_update(compiled, rule, dtype, kind):
    x = random_words(64, 128) if kind == "bits" else torch.zeros(64, 128, dtype=dtype)
    run_update(mask_grad_update.mask_grad_update_, rule, (96, 128), torch.zeros(64, 96, dtype=dtype), x)
    if dtype == torch.bfloat16:  # float32 sums its products with fused multiply-adds
        assert not any(INEXACT.search(kernel.asm["ptx"]) for kernel in compiled)


def test_sizes_of_one(compiled):
    """Triton turns an argument of 1 into a constant."""
    words, x = random_words(1, 1), torch.ones(1, 1)
    bits.unpack(bits.pack(x, None), 1, torch.float32)
    bits.transpose(words, 1)
    bits.popcount(words)
    bit_linear.bit_linear(x, words)
    bit_linear.bit_linear_t(x, words, 1)
    bit_matmul.bit_matmul(words, words)
    run_update(mask_update.mask_update_, Adam(sample=True), (1, 1), x)
    run_update(mask_grad_update.mask_grad_update_, Adam(sample=True), (1, 1), x, x)
