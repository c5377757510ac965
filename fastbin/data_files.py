"""The files of the public data sets: finding, downloading and reading them. Nothing here unpickles."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

TIMEOUT = 30  # seconds without an answer before a download is given up
DEFLATE_RATIO = 1032  # DEFLATE expands no input more than this, so a header that claims more lies
CLASSES = 10  # in every public set
IDX_DIMENSIONS = {0x801: 1, 0x803: 3}  # magic number -> dimensions: unsigned bytes, labels or images
NPZ_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("x", "y"))
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR_FILE = 10_000 * CIFAR_RECORD


class DataError(RuntimeError):
    """A data file that is missing and cannot be downloaded, or does not hold what it should."""


@dataclass(frozen=True)
class Source:
    """Where a public data set is found.

    Attributes:
        folder: the set's folder inside the data folder.
        url: the address its files are downloaded from.
        md5: the published checksum of each file that can be downloaded.
    """

    folder: str
    url: str
    md5: dict[str, str]


SOURCES = {
    "mnist": Source(
        "MNIST/raw",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "FashionMNIST/raw",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "kmnist": Source(
        "KMNIST/raw",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        {
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    "cifar10": Source(
        "cifar-10-batches-bin",
        "https://www.cs.toronto.edu/~kriz/",
        {CIFAR_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
}


def load_files(name: str, root: Path) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Read a public data set, downloading what is missing.

    Args:
        name: a key of `SOURCES`.
        root: the data folder.

    Returns:
        Training images [n, d], training labels [n], test images and test labels, all uint8.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is damaged.
    """
    source = SOURCES[name]
    train, test = _cifar(source, root) if name == "cifar10" else _idx_pairs(source, root)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{root / source.folder}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}"
        )
    return train[0].reshape(len(train[0]), -1), train[1], test[0].reshape(len(test[0]), -1), test[1]


def read_idx(path: str | os.PathLike[str]) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Args:
        path: the file, of labels (one dimension) or images (three).

    Returns:
        A uint8 array of the shape in the file's header: [n], or [n, rows, columns].

    Raises:
        DataError: the file cannot be read, is no such file, or holds more or fewer bytes than its header claims.
    """
    path = Path(path)
    try:
        zipped = path.suffix == ".gz"
        limit = path.stat().st_size * (DEFLATE_RATIO if zipped else 1)
        with gzip.open(path) if zipped else open(path, "rb") as file:
            magic = int.from_bytes(_read(file, 4), "big")
            if magic not in IDX_DIMENSIONS:
                raise DataError(
                    f"{path}: magic number 0x{magic:08x}, expected 0x00000801 (labels) or 0x00000803 (images)"
                )
            header = _read(file, 4 * IDX_DIMENSIONS[magic])
            if len(header) < 4 * IDX_DIMENSIONS[magic]:
                raise DataError(f"{path}: ends inside its header")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
            size = math.prod(shape)
            if not 0 < size <= limit:
                raise DataError(f"{path}: header claims shape {shape}, {size} bytes; the file holds at most {limit}")
            values = _read(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(values) != size:
        held = "more" if len(values) > size else f"only {len(values)}"
        raise DataError(f"{path}: header claims shape {shape}, {size} bytes; the file holds {held}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a user's own data set.

    Args:
        path: an .npz file that holds x and y, or x_train, y_train, x_test and y_test.

    Returns:
        Those arrays by name, as they are in the file.

    Raises:
        DataError: the file is missing or damaged, lacks these arrays, or keeps one as pickled objects.
    """
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise DataError(f"{path} is not an .npz file")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                keys = next((keys for keys in NPZ_KEYS if set(keys) <= set(file.files)), None)
                if keys is None:
                    wanted, held = " or ".join(", ".join(keys) for keys in NPZ_KEYS), ", ".join(file.files)
                    raise DataError(f"{path} must hold {wanted}; it holds {held or 'nothing'}")
                for key in keys:
                    _check_size(path, file.zip, key)
                return {key: file[key] for key in keys}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise nearly anything for a damaged file
        raise DataError(f"{path} cannot be read: {error}") from error


def _check_size(path: Path, archive: zipfile.ZipFile, key: str) -> None:
    """Refuse an array whose header claims more than the file can hold, before it is allocated."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        is_first = np.lib.format.read_magic(member) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
    size = math.prod(shape) * dtype.itemsize
    limit = min(info.file_size, path.stat().st_size * DEFLATE_RATIO)
    if size > limit:
        raise DataError(f"{path}: {key} claims shape {shape}, {size} bytes; the file holds at most {limit}")


def _read(file: IO[bytes] | gzip.GzipFile, size: int) -> bytearray:
    """Read up to size bytes; memory grows with what is there, never with the size asked for."""
    values = bytearray()
    while len(values) < size and (block := file.read(min(size - len(values), 1 << 20))):
        values += block
    return values


def _idx_pairs(source: Source, root: Path) -> list[tuple[Bytes, Bytes]]:
    """Read the training and the test part of a set that is kept in four IDX files."""
    parts = []
    for part in ("train", "t10k"):
        image_file = _find(source, root, f"{part}-images-idx3-ubyte")
        label_file = _find(source, root, f"{part}-labels-idx1-ubyte")
        images, labels = read_idx(image_file), read_idx(label_file)
        for path, array, dimensions in ((image_file, images, 3), (label_file, labels, 1)):
            if array.ndim != dimensions:
                raise DataError(f"{path}: {array.ndim}-dimensional, expected {dimensions} dimensions")
        if len(images) != len(labels):
            raise DataError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels")
        _check_classes(label_file, labels, CLASSES)
        parts.append((images, labels))
    return parts


def _find(source: Source, root: Path, name: str) -> Path:
    """Return the file's path, plain or gzipped; download it when there is neither."""
    plain, zipped = root / source.folder / name, root / source.folder / f"{name}.gz"
    if plain.is_file():
        return plain
    if not zipped.is_file():
        _download(source, zipped)
    return zipped


def _cifar(source: Source, root: Path) -> list[tuple[Bytes, Bytes]]:
    """Read the training and the test part of CIFAR-10's binary version."""
    folder, archive = root / source.folder, root / CIFAR_ARCHIVE
    if not all((folder / name).is_file() for name in (*CIFAR_TRAIN, CIFAR_TEST)):
        if not archive.is_file():
            try:
                _download(source, archive)
            except DataError as error:
                note = f"CIFAR-10 is read from its binary version in {folder}, never from pickles (cifar-10-batches-py)"
                raise DataError(f"{error}; {note}") from error
        _extract(archive, folder)
    train = [_read_cifar(folder / name, CLASSES) for name in CIFAR_TRAIN]
    images, labels = zip(*train, strict=True)
    return [(np.concatenate(images), np.concatenate(labels)), _read_cifar(folder / CIFAR_TEST, CLASSES)]


def _read_cifar(path: Path, classes: int) -> tuple[Bytes, Bytes]:
    """Read the images [n, 3072] and labels [n] of one batch."""
    try:
        with open(path, "rb") as file:
            values = _read(file, CIFAR_FILE + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not 0 < len(values) <= CIFAR_FILE or len(values) % CIFAR_RECORD:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes, expected 1 to {CIFAR_FILE // CIFAR_RECORD} records of {CIFAR_RECORD}"
        )
    records = np.frombuffer(values, np.uint8).reshape(-1, CIFAR_RECORD)
    _check_classes(path, records[:, 0], classes)
    return records[:, 1:], records[:, 0]


def _check_classes(path: Path, labels: Bytes, classes: int) -> None:
    if labels.max() >= classes:
        where = int(np.argmax(labels >= classes))
        raise DataError(f"{path}: label {labels[where]} at {where}, expected 0 to {classes - 1}")


def _download(source: Source, target: Path) -> None:
    """Download the file target.name of a set; target appears whole and verified, or not at all."""
    url = source.url + target.name
    digest = hashlib.md5(usedforsecurity=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, _replacing(target) as file:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
            if digest.hexdigest() != source.md5[target.name]:
                raise DataError(
                    f"{target.name} is missing from {target.parent}, and {url} sent {file.tell()} bytes with "
                    f"MD5 {digest.hexdigest()}, expected {source.md5[target.name]}"
                )
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(f"{target.name} is missing from {target.parent}, and {url} failed: {error!r}") from error


def _extract(archive: Path, folder: Path) -> None:
    """Write the six batches found in the archive to the folder; no other member, and no path of the archive's own."""
    missing = {f"{folder.name}/{name}": folder / name for name in (*CIFAR_TRAIN, CIFAR_TEST)}
    try:
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in missing or not member.isfile():
                    continue
                if member.size > CIFAR_FILE:
                    raise DataError(f"{archive}: {member.name} is {member.size} bytes, expected at most {CIFAR_FILE}")
                with _replacing(missing.pop(member.name)) as file:
                    content: Any = tar.extractfile(member)
                    shutil.copyfileobj(content, file)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be extracted: {error}") from error
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}")


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file to write that takes the target's place once the block ends well."""
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            yield file
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
