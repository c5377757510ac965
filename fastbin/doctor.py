"""What `fastbin doctor` finds out: versions, hardware, the kernels in force, and whether each gives the right answers."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fastbin import backends, reference
from fastbin.bits import BitMatrix
from fastbin.rules import SGD, Adam, Bop, Rule

_PACKAGES = {"fastbin": "fastbin-nets", "torch": "torch", "triton": "triton", "numpy": "numpy",
             "scikit-learn": "scikit-learn", "safetensors": "safetensors"}  # fmt: skip


def versions() -> dict[str, str | None]:
    """Versions of fastbin, of Python and of what fastbin stands on; None for what is not installed."""
    return {"python": platform.python_version(), **{name: _version(package) for name, package in _PACKAGES.items()}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def instruction_set() -> str | None:
    """The instruction set that the CPU kernels run on; None without them.

    Raises:
        ValueError, RuntimeError: FASTBIN_ISA is unknown, or beyond this CPU.
    """
    try:
        isa: str = importlib.import_module("fastbin._cpu").isa()
    except ImportError:
        return None
    return isa


def cuda_architectures() -> str | None:
    """The architectures that the CUDA C++ kernels were built for; None if they were not built."""
    try:
        built: str = importlib.import_module("fastbin._cuda").architectures()
    except ImportError:
        return None
    return built


def examine() -> dict[str, Any]:
    """All findings as JSON-able values; ``faults`` lists what is wrong, and is empty if all is well."""
    faults = []
    cpu: dict[str, Any] = {"model": _cpu_model(), "instruction_sets": None, "in_use": None}
    threads: dict[str, Any] = {"number": torch.get_num_threads(), "runtime": None}
    try:
        importlib.import_module("fastbin.cpu")  # also shares torch's threads with the kernels
        extension = importlib.import_module("fastbin._cpu")
        cpu["instruction_sets"] = extension.isas()
        threads["runtime"] = extension.parallel_runtime()
        cpu["in_use"] = instruction_set()
    except (ImportError, ValueError, RuntimeError) as error:
        faults.append(str(error))
    try:
        backends.forced_on_cuda()  # what no self-test tells of where there is no GPU
    except backends.BackendError as error:
        faults.append(str(error))
    triton = importlib.util.find_spec("triton") is not None
    notes = [] if triton else ["triton is missing; only the GPU kernels need it: pip install triton"]
    built = cuda_architectures()
    if built is None:
        notes.append(
            "the CUDA C++ kernels are not built (no nvcc of CUDA 12.8 or later was found at installation, or "
            "FASTBIN_CUDA=OFF); on GPUs, Triton serves"
        )
    gpus = [
        {"name": torch.cuda.get_device_name(i), "capability": "{}.{}".format(*torch.cuda.get_device_capability(i))}
        for i in range(torch.cuda.device_count())
    ]
    kernels = []
    for op, device, implementation in backends.report():
        if device == "cuda" and not (gpus and triton):
            test = f"not tested: no {'triton' if gpus else 'GPU'}"
        else:
            fault = self_test(op, device)
            test = "ok" if fault is None else f"FAILED: {fault}"
            if fault is not None:
                faults.append(f"{op} on {device}: {fault}")
        kernels.append({"op": op, "device": device, "implementation": implementation, "self_test": test})
    return {
        "versions": versions(),
        "os": platform.platform(),
        "cpu": cpu,
        "threads": threads,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTBIN_")},
        "gpus": gpus,
        "cuda_kernels": built,
        "kernels": kernels,
        "notes": notes,
        "faults": faults,
    }


def show(findings: dict[str, Any], console: Console) -> None:
    """Print what `examine` found."""
    machine = Table(show_header=False, box=None, pad_edge=False)
    cpu, threads = findings["cpu"], findings["threads"]
    rows = {
        **{name: version or "missing" for name, version in findings["versions"].items()},
        "system": findings["os"],
        "CPU": cpu["model"],
        "CPU kernels": f"{cpu['in_use'] or 'none'} of {', '.join(cpu['instruction_sets'] or ['none'])}",
        "threads": f"{threads['number']} ({threads['runtime'] or 'no runtime'})",
        "environment": ", ".join(f"{k}={v}" for k, v in findings["environment"].items()) or "no FASTBIN_* set",
        "GPU": ", ".join(f"{gpu['name']} (capability {gpu['capability']})" for gpu in findings["gpus"]) or "none",
        "CUDA C++ kernels": f"for {findings['cuda_kernels']}" if findings["cuda_kernels"] else "not built",
    }
    for name, value in rows.items():
        machine.add_row(name, Text(value))
    console.print(machine)
    kernels = Table("op", "device", "implementation", "self-test")
    for row in findings["kernels"]:
        test = row["self_test"]
        style = "green" if test == "ok" else "red" if test.startswith("FAILED") else "dim"
        kernels.add_row(row["op"], row["device"], Text(row["implementation"]), Text(test, style=style))
    console.print(kernels)
    for note in findings["notes"]:
        print(f"note: {note}")
    for fault in findings["faults"]:
        print(f"fault: {fault}")
    number = len(findings["faults"])
    print("all is well" if number == 0 else "1 fault" if number == 1 else f"{number} faults")


def self_test(op: str, device: str) -> str | None:
    """Run the implementation of `op` in force on small odd shapes; says what differs from the reference, None if nothing.

    The values are whole numbers: sums are then exact in any order, and what differs is wrong.
    """
    truth = getattr(reference, op)
    names = list(inspect.signature(truth).parameters)
    try:
        implementation = backends.find(op, device)
        for case in _cases(op):
            expected_args, args = _copy(case, "cpu"), _copy(case, device)
            expected, got = truth(*expected_args), implementation(*args)
            for name, a, b in zip(["result", *names], [expected, *expected_args], [got, *args], strict=True):
                for mine, other in zip(_tensors(a), _tensors(b), strict=True):
                    difference = _difference(mine, other)
                    if difference:
                        return f"{name} {difference}"
    # What a broken kernel, a driver or a missing symbol of the extension raises.
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return None


def _difference(expected: Tensor, got: Tensor) -> str | None:
    got = got.cpu()
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"is {got.dtype} {list(got.shape)}, must be {expected.dtype} {list(expected.shape)}"
    wrong = int((~torch.isclose(got, expected, rtol=1e-5, atol=1e-6)).sum())
    return f"{expected.dtype} {list(expected.shape)} differs in {wrong} of {expected.numel()} values" if wrong else None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, Tensor) else []


def _copy(args: tuple[Any, ...], device: str) -> list[Any]:
    return [
        [t.to(device, copy=True) for t in arg] if isinstance(arg, list)
        else arg.to(device, copy=True) if isinstance(arg, Tensor)
        else arg
        for arg in args
    ]  # fmt: skip


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_RULES: tuple[Rule, ...] = (SGD(), Adam(), Adam(sample=True), SGD(clip=0.5), Bop(gamma=0.5, threshold=0.5))


def _cases(op: str) -> Iterator[tuple[Any, ...]]:
    """Arguments for `op`: sizes of 1, rows that end inside a word, and populations."""
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).float()

    for lead in ((), (2,)):
        for batch, rows, cols in ((1, 1, 1), (1, 70, 131), (3, 37, 67), (19, 5, 64)):
            dense = whole(0, 1, *lead, rows, cols)
            words = reference.pack(dense, None)
            x, gy = whole(-4, 4, *lead, batch, cols), whole(-4, 4, *lead, batch, rows)
            bits = reference.pack(whole(0, 1, *lead, batch, cols), None)
            if op == "pack":
                yield from ((dense, None, True), (dense.bool(), None, True), (x, 0.0, True), (x, 0.0, False))
            elif op == "unpack":
                yield from ((words, cols, dtype) for dtype in (torch.bool, torch.int32, *_FLOATS))
            elif op == "transpose":
                yield words, cols
            elif op == "popcount":
                yield (words,)
            elif op == "bit_linear":
                yield from ((x.to(dtype), words) for dtype in (*_FLOATS, torch.int8))
            elif op == "bit_linear_t":
                yield from ((gy.to(dtype), words, cols) for dtype in (*_FLOATS, torch.int8))
            elif op == "bit_matmul":
                yield bits, words
            else:
                grad = whole(-4, 4, *lead, rows, cols)
                operands = [(grad,)] if op == "mask_update_" else [(gy, x), (gy, bits), (gy.half(), x.half())]
                scores = torch.randn(*lead, rows, cols, generator=generator)
                for rule in _RULES:
                    for operand in operands:
                        yield _update_case(scores, words, cols, operand, rule)


def _update_case(scores: Tensor, words: Tensor, cols: int, operand: tuple[Tensor, ...], rule: Rule) -> tuple[Any, ...]:
    state = rule.init_state(BitMatrix(words, cols), seed=7)
    hyper = rule.hyper(len(state.seed), words.device)
    own = None if isinstance(rule, Bop) else scores
    return own, *operand, words, list(state.buffers), state.step, state.seed, hyper, rule.name, rule.sample


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
