"""The compiled CPU kernels: addresses (``Tensor.data_ptr()``) and sizes in; see csrc/."""

def isa() -> str: ...
def isas() -> list[str]: ...
def has_bf16() -> bool: ...
def use_openmp(gomp_parallel: int) -> None: ...
def parallel_runtime() -> str: ...
def pack_threshold_f32(x: int, threshold: float, words: int, rows: int, cols: int, threads: int) -> int: ...
def pack_f32(x: int, words: int, rows: int, cols: int, threads: int) -> int: ...
def pack_u8(x: int, words: int, rows: int, cols: int, threads: int) -> int: ...
def unpack_f32(words: int, y: int, rows: int, cols: int, threads: int) -> None: ...
def unpack_u8(words: int, y: int, rows: int, cols: int, threads: int) -> None: ...
def transpose_bits(w: int, population: int, rows: int, cols: int, out: int, threads: int) -> None: ...
def popcount(words: int, n: int, threads: int) -> int: ...
def bit_linear_f32(x: int, w: int, y: int, population: int, batch: int, rows: int, cols: int, threads: int) -> None: ...
def bit_linear_i8(x: int, w: int, y: int, population: int, batch: int, rows: int, cols: int, threads: int) -> None: ...
def bit_linear_t_f32(
    x: int, w: int, y: int, population: int, batch: int, rows: int, cols: int, threads: int
) -> None: ...
def bit_linear_t_i8(
    x: int, w: int, y: int, population: int, batch: int, rows: int, cols: int, threads: int
) -> None: ...
def bit_matmul(a: int, b: int, y: int, population: int, m: int, n: int, words: int, threads: int) -> None: ...
def mask_update(
    rule: str,
    scores: int,
    grad: int,
    words: int,
    buffer0: int,
    buffer1: int,
    hyper: int,
    seed: int,
    step: int,
    flips: int,
    population: int,
    rows: int,
    cols: int,
    sample: bool,
    threads: int,
) -> None: ...
def mask_grad_update_f32(
    rule: str,
    scores: int,
    gy: int,
    x: int,
    words: int,
    buffer0: int,
    buffer1: int,
    hyper: int,
    seed: int,
    step: int,
    flips: int,
    population: int,
    batch: int,
    rows: int,
    cols: int,
    sample: bool,
    bf16: bool,
    threads: int,
) -> None: ...
def mask_grad_update_bits(
    rule: str,
    scores: int,
    gy: int,
    x: int,
    words: int,
    buffer0: int,
    buffer1: int,
    hyper: int,
    seed: int,
    step: int,
    flips: int,
    population: int,
    batch: int,
    rows: int,
    cols: int,
    sample: bool,
    threads: int,
) -> None: ...
