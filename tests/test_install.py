"""The wheel, installed in a clean environment elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from fastbin import _cpu

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The tools of the build are taken from here if they are here, as an index may be out of reach.
    at_hand = all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11"))
    options = ["--no-build-isolation"] if at_hand else []
    options += ["-C", "cmake.define.FASTBIN_CUDA=OFF"]  # nvcc takes its time, and changes nothing that is tested here
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "-w", folder, *options, cwd=folder)
    (built,) = folder.glob("fastbin_nets-*.whl")
    return built


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastbin/py.typed", "fastbin/_cpu.pyi", "fastbin/ops.py", "fastbin/choices.json"} <= set(names)
    assert {"fastbin/kernels/bit_linear.py", "fastbin/kernels/configs.json"} <= set(names)
    assert f"fastbin/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fastbin"}, (
        "more than fastbin would be installed"
    )


PROGRAM = """
import importlib.util, json, fastbin, torch
from fastbin import _cpu
w = fastbin.BitMatrix.pack(torch.eye(40))
x = torch.randn(3, 40)
print(json.dumps({
    "fastbin": fastbin.__file__,
    "extension": _cpu.__file__,
    "kernels": importlib.util.find_spec("kernels") is not None,
    "fastbin.kernels": list(importlib.util.find_spec("fastbin.kernels").submodule_search_locations),
    "right": torch.equal(fastbin.ops.bit_linear(x, w), x),
}))
"""


def test_a_clean_environment_elsewhere(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # torch and the like from here. A path that a .pth names is searched, but the .pth files in it are not read: what is
    # installed here in editable mode stays out.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    found = json.loads(run(python, "-c", PROGRAM, cwd=tmp_path))
    assert found["fastbin"] == str(site / "fastbin" / "__init__.py")
    assert found["extension"].startswith(str(site))
    assert found["fastbin.kernels"] == [str(site / "fastbin" / "kernels")]
    assert not found["kernels"] and found["right"]


@pytest.mark.parametrize("extension", ["_cpu", "_cuda"])
def test_the_stub_tells_the_extension_s_functions(extension: str) -> None:
    if extension == "_cuda":
        module = pytest.importorskip("fastbin._cuda", reason="fastbin._cuda is not built here: no nvcc")
    else:
        module = _cpu
    stub = ast.parse((ROOT / "fastbin" / f"{extension}.pyi").read_text())
    stated = {f.name: [a.arg for a in f.args.args] for f in stub.body if isinstance(f, ast.FunctionDef)}
    numbers = {a.target.id for a in stub.body if isinstance(a, ast.AnnAssign)}
    assert {name for name in dir(module) if isinstance(getattr(module, name), int)} == numbers
    compiled = {}
    for name in set(dir(module)) - numbers:
        if not name.startswith("_") and not isinstance(getattr(module, name), type):
            signature = (getattr(module, name).__doc__ or "").splitlines()[0]
            assert signature.startswith(f"{name}("), signature
            compiled[name] = re.findall(r"(\w+): ", signature.partition(" -> ")[0])
    assert compiled == stated
