"""What is fuzzed: readers of files, each with files to begin with, and the errors that it may raise.

Anything else that a reader raises is a finding, and so are a crash, a hang and memory that grows past a limit.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from fastbin import CheckpointError, DataError, RunFolderError, SearchConfig, checkpoint, run_search, runs
from fastbin.baselines.files import load_network
from fastbin.compare import RESULTS, compare, read_results
from fastbin.data import load_dataset, read_idx
from fastbin.data_files import read_npz
from fastbin.export import export
from fastbin.result import SearchResult, load_result
from fastbin.spectra.files import find_networks, read_network
from fastbin.sweep import read_best, read_space, sweep
from fastbin.sweep.trials import trial_folder

from .choices import Choices, edited


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed.

    Attributes:
        seeds: inputs to begin with.
        run: reads one input; `Path` is a folder of its own.
        allowed: what it may raise.
    """

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], object]
    allowed: tuple[type[Exception], ...]

    def __call__(self, data: bytes, folder: Path) -> bool:
        """Read an input; whether it was accepted."""
        try:
            self.run(data, folder)
        except self.allowed:
            return False
        return True


@cache
def made() -> Path:
    """A folder with a small search, its snapshot, and a comparison of each kind of file."""
    folder = Path(mkdtemp(prefix="fastbin-fuzz-"))
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    config = SearchConfig(hidden=(4,), epochs=2, batch_size=16, validation=0.2)

    def keep(epoch: int, weights: list[Any]) -> None:
        runs.write_snapshot(folder / "run", epoch, weights, config, "arrays")

    run_search((x, y), config, out=folder / "run", on_bits=keep)
    np.savez(folder / "own.npz", x=x, y=y)
    kinds = ("weight_free_hard", "dense", "weight_agnostic")
    (folder / "space.toml").write_text(_SPACES[0].replace("own.npz", str(folder / "own.npz")))
    sweep(folder / "space.toml", folder / "sweep")
    compare([str(folder / "own.npz")], config, seeds=1, kinds=kinds, out=folder / "compare")
    return folder


def _files(*patterns: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for pattern in patterns for path in sorted(made().glob(pattern))]


def _written(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def run(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return run


# Checkpoints: as bytes, and with their values edited under a checksum that fits.


def _tensor(t: Tensor, choices: Choices) -> Tensor:
    kind = choices.below(6)
    if kind == 0:
        return t.to(choices.one([torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.float16]))
    if kind == 1:
        return t.reshape(-1)
    if kind == 2:
        return torch.cat([t, t]) if t.dim() else t.reshape(1)
    if kind == 3:
        return t[:0] if t.dim() else t.reshape(1)[:0]
    values = t.clone().reshape(-1)
    if len(values):
        odd = (-1, 0, 2**31 - 1) if not t.is_floating_point() else (float("nan"), float("inf"), -1.0, 0.0, 1e38)
        values[choices.below(len(values))] = choices.one(odd)
    return values.reshape(t.shape)


def _edited_checkpoint(patterns: tuple[str, ...], read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def run(data: bytes, folder: Path) -> object:
        choices = Choices(data)
        files = [path for pattern in patterns for path in sorted(made().glob(pattern))]
        tensors, metadata = checkpoint.load(choices.one(files))
        for _ in range(choices.below(3)):
            name = choices.one(sorted(tensors))
            if choices.below(4) == 0:
                del tensors[name]
                if not tensors:
                    break
            else:
                tensors[name] = _tensor(tensors[name], choices)
        if choices.below(4):
            metadata = edited(metadata, choices)
        path = folder / "edited.safetensors"
        text = json.dumps(metadata)
        header = {"format": checkpoint.FORMAT, "version": str(checkpoint.VERSION), "metadata": text}
        try:
            header["crc32"] = checkpoint._checksum(tensors, text)
            path.write_bytes(checkpoint.safetensors.torch.save(tensors, header))
        except (UnicodeEncodeError, ValueError):  # a surrogate on its own is no text that a header can hold
            return None
        return read(path)

    return run


def _result(path: Path) -> SearchResult:
    result = load_result(path)
    result.predict(np.zeros((2, result.net.widths[0])))
    return result


def _resume(path: Path) -> None:
    # As a run's checkpoint, by the run that made it, which knows its data and configuration.
    folder = path.parent / "resumed"
    folder.mkdir(exist_ok=True)
    path.replace(folder / runs.CHECKPOINT)
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    run_search((x, y), SearchConfig(hidden=(4,), epochs=2, batch_size=16, validation=0.2), out=folder, resume=True)


def _network(path: Path) -> None:
    read_network(path)
    load_network(path)


# Data


def _idx(data: bytes, folder: Path) -> object:
    zipped = bool(data[:1] and data[0] & 1)
    path = folder / ("values.gz" if zipped else "values")
    path.write_bytes(gzip.compress(data[1:], 1) if zipped and data[0] & 2 else data[1:])
    return read_idx(path)


def _idx_seeds() -> list[bytes]:
    labels = bytes.fromhex("00000801 00000003 000102")
    images = bytes.fromhex("00000803 00000002 00000002 00000001 01020304")
    huge = bytes.fromhex("00000803 7fffffff 7fffffff 7fffffff 01020304")
    plain = [b"\0" + content for content in (labels, images, huge)]
    return plain + [b"\3" + content for content in (labels, images, huge)] + [b"\1" + gzip.compress(images)]


def _npz(data: bytes, folder: Path) -> object:
    path = folder / "own.npz"
    path.write_bytes(data)
    read_npz(path)
    return load_dataset(path)


def _npz_members(data: bytes, folder: Path) -> object:
    # The archive is sound, the arrays in it are what the bytes make of them.
    choices = Choices(data)
    path = folder / "own.npz"
    with zipfile.ZipFile(path, "w", choices.one((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        sound = choices.below(8)  # mostly, or nothing would come past the first check
        for name, shape in choices.one(({"x": (12, 3), "y": (12,)}, _WITH_TEST)).items():
            dtype = "f4" if name.startswith("x") else "u1"
            if sound == 0:
                dtype = choices.one(("f4", "f8", "i8", "u1", "b1", "S3", "U2", "O", "c8", "M8[s]", "V4"))
            if sound == 1:
                shape = choices.one(((), (0,), (12,), (12, 2, 2), (2**40,), (2**31, 2**31), (12, 0), (-1,)))
            stream = io.BytesIO()
            header = {"descr": np.dtype(dtype).str, "fortran_order": bool(choices.below(2)), "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            values = bytes([0, 1, 2]) * 4 if name.startswith("y") else bytes(12 * 3 * 4)
            written = bytearray(stream.getvalue() + values + choices.bytes(20) * (sound == 2))
            for _ in range(choices.below(4) * (sound == 3)):
                written[choices.below(len(written))] = choices.number()
            archive.writestr(f"{name}.npy", bytes(written))
    return load_dataset(path)


_WITH_TEST = {"x_train": (12, 3), "y_train": (12,), "x_test": (12, 3), "y_test": (12,)}


# Text


def _edited_json(pattern: str, name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def run(data: bytes, folder: Path) -> object:
        choices = Choices(data)
        text = made().joinpath(pattern).read_text()
        kind, cut = choices.below(8), choices.below(len(text))
        if kind == 0:
            text = text[:cut]
        elif kind == 1:
            text = text[:cut] + choices.one("[{") * 100_000 + text[cut:]
        elif kind == 2:
            text = text[:cut] + choices.bytes(20).decode("utf-8", "surrogateescape") + text[cut:]
        elif kind < 7:
            text = json.dumps(edited(json.loads(text), choices))
        (folder / name).write_text(text, errors="surrogateescape")
        return read(folder)

    return run


_SPACES = (
    'data = "own.npz"\nmethod = "grid"\n[config]\nhidden = [4]\nepochs = 1\n[space]\nlr = [0.1, 0.2]\n',
    'data = "digits"\nmethod = "random"\ntrials = 4\nseed = 2\n[space]\nlr = {min = 1e-3, max = 1, log = true}\n'
    "hidden = [[4], [8, 8]]\nepochs = {min = 1, max = 9}\n[halving]\ngrace = 1\nfactor = 2\n",
)


def _trial(folder: Path) -> object:
    sweep = folder / "sweep"
    trial = trial_folder(sweep, 1)
    trial.mkdir(parents=True, exist_ok=True)
    (folder / "outcome.json").replace(trial / "outcome.json")
    for name in ("space.toml", "trial0000/outcome.json"):
        (sweep / name).parent.mkdir(exist_ok=True)
        (sweep / name).write_bytes((made() / "sweep" / name).read_bytes())
    return read_best(sweep)


# Exported files: whatever a network's numbers and labels are, the C file compiles and the ONNX model is one.


def _export(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    result = load_result(made() / "run" / runs.NETWORK)
    tensors, metadata = result.to_checkpoint()
    for name in ("standardizer.mean", "standardizer.scale"):
        odd = (1e-45, 1e-38, 1.0, 3.4e38, 16777217.0, 0.1)
        signed = [v * s for v in odd for s in ((1, -1) if name.endswith("mean") else (1,))]
        tensors[name] = torch.tensor([choices.one(signed) for _ in range(5)])
    for i in range(2):
        tensors[f"layers.{i}.words"] = torch.full_like(tensors[f"layers.{i}.words"], choices.below(16))
    labels = [choices.bytes(12).decode("utf-8", "replace") for _ in range(3)]
    first = choices.number(4)
    metadata["labels"] = labels if len(set(labels)) == 3 else [first, first + 1, first + 2]
    config = {
        "activation": ("relu", "tanh", "gelu", "step"),
        "norm": ("layer", "none"),
        "output_norm": ("layer", "none"),
    }
    metadata["config"].update({name: choices.one(values) for name, values in config.items()})
    checkpoint.save(folder / "odd.safetensors", tensors, metadata)
    odd_result = load_result(folder / "odd.safetensors")
    kind = choices.one(("float32", "uint8", "int32"))
    for name in ("net.c", "net.onnx"):
        (folder / name).unlink(missing_ok=True)
    try:
        export(odd_result, folder / "net.c", kind)
        export(odd_result, folder / "net.onnx", kind)
    except ValueError:
        return
    command = ["cc", "-std=c99", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", str(folder / "net.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    onnx.checker.check_model(onnx.load(str(folder / "net.onnx")), full_check=True)


def _none() -> list[bytes]:
    return [bytes(64), bytes(range(1, 65)), bytes(range(255, 191, -1))]


TARGETS = {
    "checkpoint": Target(_files("run/*.safetensors"), _written("a.safetensors", _result), (CheckpointError,)),
    "checkpoint_values": Target(_none, _edited_checkpoint(("run/*.safetensors",), _result), (CheckpointError,)),
    "resume": Target(
        _none, _edited_checkpoint(("run/checkpoint.safetensors",), _resume), (CheckpointError, RunFolderError)
    ),
    "networks": Target(
        _none,
        _edited_checkpoint(("compare/networks/**/seed*.safetensors", "run/snapshots/*.safetensors"), _network),
        (CheckpointError,),
    ),
    "folder": Target(
        _files("run/network.safetensors"),
        _written(runs.NETWORK, lambda path: find_networks(path.parent)),
        (CheckpointError,),
    ),
    "idx": Target(_idx_seeds, _idx, (DataError,)),
    "npz": Target(_files("own.npz"), _npz, (DataError, ValueError)),
    "npz_members": Target(_none, _npz_members, (DataError, ValueError)),
    "config": Target(_none, _edited_json("run/config.json", runs.CONFIG, runs.read_config), (RunFolderError,)),
    "results": Target(_none, _edited_json("compare/results.json", RESULTS, read_results), (RunFolderError,)),
    "space": Target(lambda: [text.encode() for text in _SPACES], _written("space.toml", read_space), (ValueError,)),
    "trial": Target(
        _none, _edited_json("sweep/trial0001/outcome.json", "outcome.json", _trial), (RunFolderError, ValueError)
    ),
    "export": Target(_none, _export, ()),
}
