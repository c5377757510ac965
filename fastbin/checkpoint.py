"""Files that hold networks and searches: safetensors with JSON in the header, never a pickle, never half written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastbin.bits import BitMatrix

FORMAT = "fastbin"
VERSION = 1


class CheckpointError(RuntimeError):
    """A file is not a whole, sound checkpoint of fastbin; the message names the file and what is wrong."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    A crash at any moment leaves the old file or the new one, whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a killed run left is overwritten by the next
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able `metadata` to `path`, whole or not at all.

    Raises:
        OSError: the folder cannot be written or the disk is full; an older file at `path` is left as it was.
    """
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(metadata, allow_nan=False)
    header = {"format": FORMAT, "version": str(VERSION), "metadata": text, "crc32": _checksum(stored, text)}
    with replacing(path) as file:
        file.write(safetensors.torch.save(stored, header))


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """CRC-32 of all that a file holds: safetensors itself notices no flipped bit in values."""
    crc = zlib.crc32(metadata.encode())
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {t.dtype} {list(t.shape)}".encode(), crc)
        crc = zlib.crc32(t.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, truncated, or not of this format or version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (safetensors.SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no fastbin checkpoint: its header has format={header.get('format')!r}")
    if header.get("version") != str(VERSION):
        raise CheckpointError(f"{path} has version {header.get('version')!r}, this fastbin reads {VERSION}")
    try:
        metadata = json.loads(header["metadata"])
        if not isinstance(metadata, dict):
            raise TypeError(f"metadata is a {type(metadata).__name__}")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    if header.get("crc32") != _checksum(tensors, header["metadata"]):
        raise CheckpointError(f"{path} is damaged: its values do not fit its checksum")
    return tensors, metadata


class Reader:
    """Checked access to what `load` returned: every error names the file and the entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, self.metadata = load(path)

    def fail(self, what: str) -> CheckpointError:
        """The error to raise for a file that `what` is wrong with."""
        return CheckpointError(f"{self.path}: {what}")

    def entry(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """``metadata[key]``, of the given JSON type."""
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise self.fail(f"metadata {key!r} is {value!r}")
        return value

    def tensor(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this dtype and shape; floats are finite."""
        t = self.tensors.get(name)
        if t is None:
            raise self.fail(f"tensor {name!r} is missing")
        if t.dtype != dtype or t.shape != shape:
            raise self.fail(f"tensor {name!r} must be {dtype} {list(shape)}, is {t.dtype} {list(t.shape)}")
        if dtype.is_floating_point and not bool(t.isfinite().all()):
            raise self.fail(f"tensor {name!r} has values that are not finite")
        return t

    def bits(self, name: str, rows: int, cols: int) -> BitMatrix:
        """A matrix of bits, its tail bits checked."""
        t = self.tensor(name, torch.int32, (rows, math.ceil(cols / 32)))
        try:
            return BitMatrix.from_words(t, cols)
        except ValueError as error:
            raise self.fail(f"tensor {name!r}: {error}") from error
