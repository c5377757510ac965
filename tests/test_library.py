"""The kernels as an installed C++ library, found and used by another project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from extensions import build

HERE = Path(__file__).parent
PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(other LANGUAGES CXX)
find_package(fastbin REQUIRED)
add_executable(ten_lines ten_lines.cpp)
target_link_libraries(ten_lines PRIVATE fastbin::fastbin)
"""


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_project_uses_the_library(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    built = build(request.config.cache.mkdir("library"), FASTBIN_LIBRARY="ON").parent
    prefix, source = tmp_path / "installed", tmp_path / "other"
    run("cmake", "--install", built, "--prefix", prefix)
    files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    headers = {f"include/fastbin/{name}.h" for name in ("bits", "bit_linear", "bit_matmul")}
    assert headers == {name for name in files if name.startswith("include")}
    source.mkdir()
    (source / "CMakeLists.txt").write_text(PROJECT)
    (source / "ten_lines.cpp").write_text((HERE / "ten_lines.cpp").read_text())
    run("cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    printed = run(tmp_path / "build" / "ten_lines")
    assert printed == "5 6 0\n-2.5 -3 0\n2 1 0\n1 2 0\n0 0 0\n"
