"""The Triton kernels against the reference, in Triton's interpreter, which runs them on CPU tensors.

The interpreter is chosen by an environment variable that Triton reads when it is imported, so the tests proper live in
triton_interpreted.py and run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent


def test_kernels_equal_the_reference_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_missing_triton_is_an_error_only_where_it_is_asked_for():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from fastbin import backends, ops\n"
        "try: backends.find('mask_update_', 'cuda')\n"
        "except backends.BackendError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert "the triton implementation of mask_update_ cannot be loaded" in done.stdout, done.stdout + done.stderr


def test_every_op_has_a_gpu_kernel():
    from fastbin import backends

    for op in backends.OPS:
        with backends.override("triton"):
            found = backends.find(op, "cuda")
        assert found.__name__ == op
        assert found.__module__.startswith("fastbin.kernels.")
