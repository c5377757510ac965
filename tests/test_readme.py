"""The examples of the README and of the docstrings run."""

import doctest
import re
from pathlib import Path

import pytest

import fastbin.array
import fastbin.conversion
import fastbin.export
import fastbin.ops
import fastbin.search
import fastbin.sklearn
from fastbin.sweep import read_space

ROOT = Path(__file__).parent.parent


def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


MODULES = [
    (fastbin.search, 3),
    (fastbin.ops, 4),
    (fastbin.conversion, 5),
    (fastbin.sklearn, 9),
    (fastbin.export, 4),
    (fastbin.array, 3),
]


@pytest.mark.parametrize(("module", "examples"), MODULES)
def test_docstring_examples(module, examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.attempted >= examples and result.failed == 0


def test_spaces(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "space.toml").write_text(block)
        space = read_space(tmp_path / "space.toml")
        assert space.trials == 40 and set(space.varied) == {"lr", "hidden"}
