"""What a call costs beside the kernel: the public op, the torch op and the compiled binding on the same small product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.checks import matrix, values
from fastbin import _cpu, ops

SHAPES = ((1, 32, 32), (1, 1024, 1024), (64, 256, 256))


@dataclass(frozen=True)
class Overhead:
    """Microseconds of a `bit_linear`, medians."""

    shape: tuple[int, int, int]
    public: float
    torch_op: float
    binding: float

    @property
    def share(self) -> float:
        """Of the public op's time, what is not the binding's."""
        return 1 - self.binding / self.public

    def record(self) -> dict[str, object]:
        batch, inputs, outputs = self.shape
        times = {"public_us": self.public, "torch_op_us": self.torch_op, "binding_us": self.binding}
        return {"table": "overhead", "batch": batch, "inputs": inputs, "outputs": outputs, **times, "share": self.share}


def measure_overhead(shape: tuple[int, int, int], calls: int = 300) -> Overhead:
    batch, inputs, outputs = shape
    x, w, y = values((batch, inputs), torch.float32, 1), matrix((outputs, inputs), 2), torch.empty(batch, outputs)
    op = torch.ops.fastbin.bit_linear
    sizes = (1, batch, outputs, inputs, torch.get_num_threads())

    def binding() -> None:
        _cpu.bit_linear_f32(x.data_ptr(), w.words.data_ptr(), y.data_ptr(), *sizes)

    contenders = (lambda: ops.bit_linear(x, w), lambda: op(x, w.words), binding)
    return Overhead(shape, *(1e6 * _median(call, calls) for call in contenders))


def _median(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls + 20):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times[20:])
