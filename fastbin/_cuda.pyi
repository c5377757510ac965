"""The compiled CUDA kernels: addresses (``Tensor.data_ptr()``), sizes, device index and stream in; see csrc/cuda/."""

from enum import Enum

class Scalar(Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2
    int8 = 3

def architectures() -> str: ...
def bit_matmul(
    a: int,
    b: int,
    y: int,
    thresholds: int,
    population: int,
    rows_a: int,
    rows_b: int,
    words: int,
    member_stride: int,
    row_stride: int,
    column_stride: int,
    device: int,
    stream: int,
) -> None: ...
def bit_linear_vector(
    x: int,
    w: int,
    y: int,
    population: int,
    batch: int,
    rows: int,
    inputs: int,
    type: Scalar,
    device: int,
    stream: int,
) -> None: ...
def bit_linear_wgmma(
    x: int,
    w: int,
    y: int,
    population: int,
    batch: int,
    inner: int,
    outputs: int,
    type: Scalar,
    transposed: bool,
    device: int,
    stream: int,
) -> None: ...

update_constants: int

def mask_grad_update(
    rule: str,
    sample: bool,
    scores: int,
    words: int,
    first: int,
    second: int,
    hyper: int,
    seed: int,
    step: int,
    constants: int,
    flips: int,
    population: int,
    rows: int,
    cols: int,
    gy: int,
    x: int,
    batch: int,
    type: Scalar,
    bits: bool,
    device: int,
    stream: int,
) -> None: ...
