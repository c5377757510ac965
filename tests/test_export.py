"""Exported networks against the network itself, on the whole test part of a data set."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastbin import BitMatrix, SearchConfig, SearchResult, cli, run_search
from fastbin.data import load_dataset
from fastbin.export import Input, export
from fastbin.result import make_net

onnxruntime = pytest.importorskip("onnxruntime")

DIGITS = load_dataset("digits")
CASES = {
    "relu": SearchConfig(hidden=(64, 33), epochs=3, activation="relu"),
    "tanh": SearchConfig(hidden=(40,), epochs=1, activation="tanh"),
    "gelu without norm": SearchConfig(hidden=(70, 20), epochs=1, activation="gelu", norm="none"),
    "step": SearchConfig(hidden=(37, 61), epochs=1, activation="step"),
    "step without norm": SearchConfig(hidden=(64, 64), epochs=1, activation="step", norm="none"),
    "no hidden layer": SearchConfig(hidden=(), epochs=1),
    "norm of the output layer only": SearchConfig(hidden=(40,), epochs=1, norm="none", output_norm="layer"),
    "no norm of the output layer": SearchConfig(hidden=(40,), epochs=1, output_norm="none"),
}
FOUND: dict[str, SearchResult] = {}
INPUTS: dict[Input, Any] = {"float32": np.float32, "uint8": np.uint8, "int32": np.int32}


def found(case: str) -> SearchResult:
    if case not in FOUND:
        FOUND[case] = run_search(DIGITS, CASES[case])
    return FOUND[case]


MAIN = """
#include <stdio.h>
#include "network.c"

int main(void) {
  TYPE x[FEATURES];
  float logits[CLASSES];
  while (fread(x, sizeof x, 1, stdin) == 1) {
    fastbin_logits(x, logits);
    for (int i = 0; i < CLASSES; ++i) printf("%a ", logits[i]);
    printf("%s\\n", fastbin_labels[fastbin_predict(x)]);
  }
  return 0;
}
"""


def run_c(folder: Path, result: SearchResult, x: np.ndarray[Any, Any], input: Input) -> tuple[Tensor, list[str]]:
    """Logits and labels of the samples by the compiled file."""
    export(result, folder / "network.c", input)
    main = MAIN.replace("FEATURES", str(result.net.widths[0])).replace("CLASSES", str(result.net.widths[-1]))
    kind = {"float32": "float", "uint8": "uint8_t", "int32": "int32_t"}[input]
    (folder / "main.c").write_text(main.replace("TYPE", kind))
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsanitize=undefined,address"]
    program = folder / "network"
    subprocess.run(["cc", *flags, folder / "main.c", "-lm", "-o", program], check=True, timeout=60)
    samples = np.ascontiguousarray(x, INPUTS[input]).tobytes()
    lines = subprocess.run([program], input=samples, capture_output=True, check=True, timeout=60).stdout.decode()
    rows = [line.split(" ", result.net.widths[-1]) for line in lines.splitlines()]
    return torch.tensor([[float.fromhex(v) for v in row[:-1]] for row in rows]), [row[-1] for row in rows]


def run_onnx(folder: Path, result: SearchResult, x: np.ndarray[Any, Any], input: Input) -> tuple[Tensor, list[Any]]:
    """The same by onnxruntime."""
    export(result, folder / "network.onnx", input)
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    logits, labels = session.run(["logits", "label"], {"x": x.astype(INPUTS[input])})
    return torch.from_numpy(logits), labels.tolist()


def off_the_threshold(result: SearchResult, x: np.ndarray[Any, Any]) -> Tensor:
    """Samples of which no unit of `step` is as near to its threshold as rounding goes, by float64."""
    h = result.standardizer.transform(x).double()
    far = torch.ones(len(h), dtype=torch.bool)
    for i, w in enumerate(result.net.weights()[:-1] if result.net.activation == "step" else []):
        z = result.net.normalise(h @ w.unpack(torch.float64).T, i)
        near = z.abs() <= 1e-5
        if result.net.norm == "none":
            near &= z != 0  # no unit that is on counts as 0 in any arithmetic
        far &= ~near.any(1)
        h = (z > 0).double()
    return far


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("case", CASES)
def test_the_whole_test_set(tmp_path: Path, case: str, input: Input) -> None:
    """Logits within 1e-4 (they are near 1; each is a sum in float32 in another order), and the same labels."""
    result, x = found(case), DIGITS.x_test.numpy()
    sure = off_the_threshold(result, x)
    assert sure.double().mean() > (0.7 if "step" in case else 0.999)
    for logits, labels in (run_c(tmp_path, result, x, input), run_onnx(tmp_path, result, x, input)):
        torch.testing.assert_close(logits[sure], result.logits(x)[sure], rtol=1e-4, atol=1e-4)
        assert (np.array(labels).astype(int) == result.predict(x))[sure.numpy()].all()
        assert len(set(labels)) > 2


def test_two_classes(tmp_path: Path) -> None:
    cancer = load_dataset("breast_cancer")
    result, x = run_search(cancer, SearchConfig(hidden=(40,), epochs=2)), cancer.x_test.numpy()
    for logits, labels in (run_c(tmp_path, result, x, "float32"), run_onnx(tmp_path, result, x, "float32")):
        torch.testing.assert_close(logits, result.logits(x), rtol=1e-4, atol=1e-4)
        assert [int(label) for label in labels] == result.predict(x).tolist()


def test_labels_of_every_kind(tmp_path: Path) -> None:
    names = ('a"b\\', "naïve ??/", "%s 数")
    net = make_net(SearchConfig(hidden=()), (3, 3), [BitMatrix.pack(torch.eye(3))])
    digits = found("relu")
    result = dataclasses.replace(
        digits, net=net, labels=names, standardizer=type(digits.standardizer)(torch.zeros(3), torch.ones(3))
    )
    x = np.eye(3, dtype=np.float32)
    assert run_c(tmp_path, result, x, "float32")[1] == list(names)
    assert run_onnx(tmp_path, result, x, "float32")[1] == list(names)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = found("relu")
    result.save(tmp_path / "network.safetensors")
    for suffix in ("c", "onnx"):
        file = tmp_path / f"net.{suffix}"
        assert cli.main(["export", str(tmp_path / "network.safetensors"), str(file), "--input", "uint8"]) == 0
        assert capsys.readouterr().out.strip() == str(file)
        export(result, tmp_path / f"same.{suffix}", "uint8")
        assert file.read_bytes() == (tmp_path / f"same.{suffix}").read_bytes()
    assert cli.main(["export", str(tmp_path / "network.safetensors"), "net.py"]) == 2
    assert "net.py must end in .c or .onnx, to say the format" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "network.safetensors"), str(tmp_path / "no" / "net.c")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="input must be one of float32, uint8, int32, got 'int8'"):
        export(found("relu"), tmp_path / "net.c", "int8")  # type: ignore[arg-type]
    upright = dataclasses.replace(found("relu"), config=SearchConfig(hidden=(64, 33), encoding="upright"))
    with pytest.raises(ValueError, match="encoding 'upright' of the inputs cannot be exported"):
        export(upright, tmp_path / "net.c")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'fastbin-nets[onnx]'")):
        export(found("relu"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
