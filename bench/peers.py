"""Others' products of real or binary rows with a {0,1} matrix.

A factory takes x ``[B, K]`` (float32, int8 or bool) and the matrix ``[K, N]`` (bool), does once what a user would do once
for fixed weights, and returns the `Peer`. It raises ImportError if the package is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Peer:
    """Another's product.

    Attributes:
        call: gives ``x @ matrix / scale``, ``[B, N]``.
        slack: how far ``scale * call()`` may be off, as a share of |x| @ matrix.
    """

    call: Callable[[], object]
    slack: float
    scale: float = 1.0


Factory = Callable[[Tensor, Tensor], Peer]


def torch_fp32(x: Tensor, matrix: Tensor) -> Peer:
    rows, weight = x.float(), matrix.T.float().contiguous()
    return Peer(lambda: F.linear(rows, weight), 1e-5)


def torch_bf16(x: Tensor, matrix: Tensor) -> Peer:
    rows, weight = x.bfloat16(), matrix.T.bfloat16().contiguous()
    return Peer(lambda: F.linear(rows, weight), 2.0**-7)  # 8 bits of x and of the result are kept


def torch_int8(x: Tensor, matrix: Tensor) -> Peer:
    """Float32 is quantised beforehand, off by up to a 254th of its largest value: only the product is timed."""
    quantised = x.dtype == torch.float32
    scale = float(x.abs().max()) / 127 if quantised else 1.0
    rows = (x / scale).round().to(torch.int8) if quantised else x.to(torch.int8)
    weight = matrix.T.to(torch.int8).contiguous().T
    return Peer(lambda: torch._int_mm(rows, weight), 2.0**-4 if quantised else 0.0, scale)


def scipy_sparse(x: Tensor, matrix: Tensor) -> Peer:
    from scipy import sparse

    dense = matrix.T.numpy()
    ends = np.concatenate(([0], np.cumsum(dense.sum(1))))
    at = np.nonzero(dense)[1].astype(np.int32)
    weight = sparse.csr_array((np.ones(len(at), np.float32), at, ends.astype(np.int32)), shape=dense.shape)
    columns = np.ascontiguousarray(x.float().numpy().T)
    return Peer(lambda: (weight @ columns).T, 1e-5)


def onnxruntime_2bit(x: Tensor, matrix: Tensor) -> Peer:
    """Float32 throughout."""
    return _matmul_nbits(x, matrix, accuracy_level=1, slack=1e-5)


def onnxruntime_2bit_int8(x: Tensor, matrix: Tensor) -> Peer:
    """X is quantised to int8 in blocks of 32 in the call: off by up to a 254th of the block's largest."""
    return _matmul_nbits(x, matrix, accuracy_level=4, slack=2.0**-5)


def numkong_bits(x: Tensor, matrix: Tensor) -> Peer:
    import numkong

    rows = np.packbits(x.numpy(), axis=1)
    weight = numkong.dots_pack(np.packbits(matrix.T.numpy(), axis=1), dtype="uint1")
    return Peer(lambda: numkong.dots_packed(rows, weight), 0.0)


def _matmul_nbits(x: Tensor, matrix: Tensor, accuracy_level: int, slack: float) -> Peer:
    """A session of the one operator: four weights to a byte, lowest bits first, scales 1 and zero points 0."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    k, n = matrix.shape
    block, blocks = 32, -(-k // 32)
    padded = F.pad(matrix.T.to(torch.uint8), (0, blocks * block - k)).view(n, blocks, block // 4, 4)
    codes = (padded << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    constants = {
        "codes": codes.numpy(),
        "scales": np.ones((n, blocks), np.float32),
        "zeros": np.zeros((n, -(-blocks // 4)), np.uint8),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft",
        K=k, N=n, bits=2, block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning for work while the next contender is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = x.float().numpy()
    return Peer(lambda: session.run(None, {"x": rows})[0], slack)
