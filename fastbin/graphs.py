"""A CUDA graph of a call: its launches are recorded once and queued by one call to the driver from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Graph:
    """`call` on inputs of given shapes, captured; what it computes stays in tensors that it writes in place.

    Capturing runs nothing. `call` must have run on such inputs before, since a kernel is compiled and loaded at its first
    launch, and must neither wait for the GPU nor copy from the host.

    Args:
        call: takes the inputs; every other tensor that it reads or writes must stay where it is.
        inputs: examples, on one GPU.
    """

    def __init__(self, call: Callable[..., None], *inputs: Tensor) -> None:
        self._inputs = [t.clone() for t in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU during the capture.
        with torch.cuda.device_of(inputs[0]), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            call(*self._inputs)

    def __call__(self, *inputs: Tensor) -> None:
        """Queue the call on inputs of the shapes captured."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
