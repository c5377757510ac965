"""Every Triton kernel, compiled for GPUs that need not be there: it must assemble, without spills and within shared memory.

The kernels' own host code runs on CPU tensors, with the launch replaced by a compilation of what would be launched.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastbin import reference
from fastbin.kernels import bit_linear, bit_matmul, bits, configs, mask_grad_update, mask_update
from fastbin.rules import SGD, Adam, Bop

# (compute capability, entry of configs.json) -> bytes of shared memory that one program may have. The default entry serves
# sm_80, and sm_86, sm_89 and sm_120, which have the least.
TARGETS = {(80, "default"): 99 * 1024, (90, "sm_90"): 227 * 1024, (100, "sm_100"): 227 * 1024}
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


@pytest.fixture(scope="module", autouse=True)
def oldest():
    """A process that runs these tests with the oldest Triton meanwhile; None without one.

    `make test` sets FASTBIN_TEST_TRITON, a folder with Triton 3.6. To compile takes one core, so the two cost no more time
    than one where there are two cores.
    """
    folder = os.environ.get("FASTBIN_TEST_TRITON")
    if folder is None:
        yield None
        return
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(folder)}
    del environment["FASTBIN_TEST_TRITON"]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", "not oldest", __file__]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


class Launches:
    """Launches of kernels, for one target, compiled instead of run."""

    def __init__(self, target, folder):
        (self.arch, _), self.shared_bytes = target, TARGETS[target]
        self.folder = folder
        self.launches = []

    def compile(self):
        """Compile them, each once, and check the resources of each; returns the kernels."""
        kernels = [compile_launch(fn, self.arch, args, kwargs) for fn, args, kwargs in self.launches]
        for kernel in {kernel.hash: kernel for kernel in kernels}.values():
            registers, stack = self.registers_and_stack(kernel.asm["cubin"])
            wgmma = " wgmma" * ("wgmma.mma_async" in kernel.asm["ptx"])
            print(
                f"sm_{self.arch} {kernel.name} with Triton {triton.__version__}: {registers} registers, "
                f"{kernel.metadata.shared} bytes shared{wgmma}"
            )
            assert stack == 0, f"{kernel.name} spills: {stack} bytes a thread"
            assert kernel.metadata.shared <= self.shared_bytes
        return kernels

    def registers_and_stack(self, cubin):
        """Registers of a thread, and bytes of stack, where spilled ones go, of the cubin's one kernel."""
        path = self.folder / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))


@pytest.fixture(params=TARGETS, ids=lambda target: f"sm_{target[0]}")
def compiled(request, monkeypatch, tmp_path, tmp_path_factory):
    """The launches of the test, for one target and by its shipped configurations."""
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set")
    found = Launches(request.param, tmp_path)
    monkeypatch.setattr(configs, "DEFAULT", request.param[1])
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path_factory.getbasetemp() / "triton"))
    monkeypatch.setattr(
        JITFunction, "run", lambda fn, *args, grid, warmup, **kwargs: found.launches.append((fn, args, kwargs))
    )
    return found


def random_words(*shape):
    return reference.pack(torch.rand(shape) < 0.5, None)


def batches(kernel, dtype):
    """A batch of each class that the target's configurations have."""
    classes = configs.table()[configs.DEFAULT][kernel][str(dtype).removeprefix("torch.")]
    return [4096 if bound == configs.UNBOUNDED else int(bound) for bound in classes]


def test_moving_bits(compiled):
    for dtype in (torch.float32, torch.bool, torch.int64, torch.bfloat16):
        bits.pack(torch.ones(64, 100).to(dtype), None)
    bits.pack(torch.ones(64, 100), 0.5)
    words = random_words(64, 100)
    for dtype in (torch.float32, torch.bool, torch.float16):
        bits.unpack(words, 100, dtype)
    bits.transpose(words, 100)
    bits.popcount(words)
    compiled.compile()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_products(compiled, dtype):
    """On sm_90 all run on its warpgroup instructions, and with the inner dimension split at small batches."""
    words = random_words(96, 128)
    for batch in batches("bit_linear", dtype):
        bit_linear.bit_linear(torch.ones(batch, 128, dtype=dtype), words)
        bit_linear.bit_linear_t(torch.ones(batch, 96, dtype=dtype), words, 128)
    products = compiled.compile()
    if compiled.arch == 90:
        assert all("wgmma.mma_async" in kernel.asm["ptx"] for kernel in products)


@pytest.mark.parametrize("compiled", [(90, "sm_90")], indirect=True, ids=["sm_90"])
def test_float16(compiled, monkeypatch):
    """float16 has the configurations of bfloat16, and differs from it by one constant: one target is enough."""
    monkeypatch.setattr(mask_grad_update, "fused_pays", lambda *_: True)
    for entry in configs.table().values():
        for kernel in ("bit_linear", "bit_linear_t", "mask_grad_update", "gradient"):
            assert entry[kernel]["float16"] == entry[kernel]["bfloat16"]
    words, x = random_words(128, 128), torch.ones(4096, 128).half()
    bit_linear.bit_linear(x, words)
    bit_linear.bit_linear_t(x, words, 128)
    mask_grad_update.gradient(x, x, 128, words)
    run_update(mask_grad_update.mask_grad_update_, Adam(), (128, 128), x, x)
    products = [kernel for kernel in compiled.compile() if kernel.name != "_begin_step"]
    assert len(products) == 4 and all("wgmma.mma_async" in kernel.asm["ptx"] for kernel in products)


def test_sum_of_a_split_product(compiled):
    bit_linear.bit_linear(torch.ones(2, 1 << 15).bfloat16(), random_words(16, 1 << 15))
    compiled.launches = compiled.launches[1:]
    assert [kernel.name for kernel in compiled.compile()] == ["_sum_splits"]


def test_bit_matmul(compiled):
    bit_matmul.bit_matmul(random_words(96, 128), random_words(64, 128))
    (kernel,) = compiled.compile()
    assert compiled.arch != 90 or "wgmma.mma_async" in kernel.asm["ptx"]


def run_update(update, rule, shape, *gradient):
    words = random_words(*shape)
    state = [torch.zeros(shape) for _ in range(rule.buffer_count)]
    scores = None if isinstance(rule, Bop) else torch.zeros(shape)
    step, seed = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    update(scores, *gradient, words, state, step, seed, rule.hyper(1, words.device), rule.name, rule.sample)


# Any of these in the update would round otherwise than the reference does.
INEXACT = re.compile(r"\bfma\.rn\.f32|\.approx|\.ftz|div\.full")


@pytest.mark.parametrize("rule", [SGD(), Adam(sample=True), Bop()], ids=repr)
def test_mask_update(compiled, rule):
    run_update(mask_update.mask_update_, rule, (96, 128), torch.zeros(96, 128))
    for kernel in compiled.compile():
        assert not INEXACT.search(kernel.asm["ptx"])
        if kernel.name == "_mask_update":  # reals by 16 bytes: gradient, scores and buffers in, scores and buffers out
            reals = rule.buffer_count + (not isinstance(rule, Bop))
            loads = len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))
            stores = len(re.findall(r"st\.global\S*\.v4", kernel.asm["ptx"]))
            assert loads >= reals + 1 and stores >= reals


@pytest.mark.parametrize("kind", ["bits", "real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_grad_update(compiled, dtype, kind, monkeypatch):
    monkeypatch.setattr(mask_grad_update, "fused_pays", lambda *_: True)
    x = random_words(64, 128) if kind == "bits" else torch.zeros(64, 128, dtype=dtype)
    for rule in (Adam(sample=True), Bop())[: 1 if dtype == torch.float32 else 2]:
        run_update(mask_grad_update.mask_grad_update_, rule, (96, 128), torch.zeros(64, 96, dtype=dtype), x)
    for kernel in compiled.compile():
        if dtype == torch.bfloat16 and kernel.name == "_mask_grad_update":
            assert not INEXACT.search(kernel.asm["ptx"])  # float32 sums its products with fused multiply-adds
            assert compiled.arch != 90 or "wgmma.mma_async" in kernel.asm["ptx"]


@pytest.mark.parametrize("kind", ["bits", "real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient(compiled, dtype, kind):
    x = random_words(64, 128) if kind == "bits" else torch.zeros(64, 128, dtype=dtype)
    mask_grad_update.gradient(torch.zeros(64, 96, dtype=dtype), x, 128, random_words(96, 128))
    (kernel,) = compiled.compile()
    assert compiled.arch != 90 or dtype == torch.float32 or "wgmma.mma_async" in kernel.asm["ptx"]


@pytest.mark.parametrize("compiled", [(90, "sm_90")], indirect=True, ids=["sm_90"])
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
    compiled.compile()


def test_all_of_it_with_the_oldest_triton(oldest):
    if oldest is None:
        pytest.skip("FASTBIN_TEST_TRITON is not set")
    told = oldest.communicate(timeout=900)[0]
    assert oldest.returncode == 0, told
    assert "with Triton 3.6." in told
    print(told)


def test_every_entry_of_the_configurations_is_compiled():
    assert {entry for _, entry in TARGETS} == set(configs.table())
    for entry in configs.table().values():
        assert entry.keys() == configs.table()[configs.DEFAULT].keys()
