"""The one registry: every case that the benchmarks time and the tests check at small sizes."""

from __future__ import annotations

from bench.case import Case
from bench.products import Product
from bench.steps import Step
from bench.updates import Update
from fastbin.rules import SGD, Adam, Bop

TABLES: dict[str, tuple[Case, ...]] = {
    "ops": (
        Product("bit_linear", 4096, 2048, 2048),
        Product("bit_linear", 512, 784, 2048),
        Product("bit_linear", 256, 1024, 1024),
        Product("bit_linear", 8, 1024, 1024),
        Product("bit_linear", 1, 1024, 1024),
        Product("bit_linear", 1, 4096, 4096),
        Product("bit_linear", 1, 16384, 16384),
        Product("bit_linear", 4096, 2048, 2048, dtype="int8"),
        Product("bit_linear_t", 4096, 2048, 2048),
        Product("ternary_linear", 256, 2048, 2048),
        Product("sign_linear", 256, 2048, 2048),
        Product("bit_matmul", 4096, 2048, 2048, dtype="bits"),
        Product("bit_matmul", 4096, 2048, 2048, dtype="bits", threads=1),
    ),
    "update": (
        *(
            Update("mask_update_", 0, 4096, 4096, rule=rule)
            for rule in (Adam(), Adam(sample=True), SGD(), Bop())
        ),
        Update("mask_grad_update_", 512, 2048, 2048),
        Update("mask_grad_update_", 512, 2048, 2048, dtype="bits"),
    ),
    "step": (
        Step("search step", 512, 784, 10, hidden=(2048, 2048)),
        Step("search step", 512, 784, 10, hidden=(2048, 2048), activation="step"),
        Step("search step", 128, 784, 10, hidden=(1024, 1024)),
        Step("search step", 64, 784, 10, hidden=(256, 256)),
    ),
}  # fmt: skip
