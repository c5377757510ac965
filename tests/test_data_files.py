import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastbin import data_files
from fastbin.data import DataError, from_arrays, load_dataset, read_idx

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_FILES = (*data_files.CIFAR_TRAIN, data_files.CIFAR_TEST)


def idx_bytes(array):
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def mnist_parts(rng, n=6, m=4, side=3):
    return (
        rng.integers(0, 256, (n, side, side)),
        np.arange(n) % 10,
        rng.integers(0, 256, (m, side, side)),
        np.arange(m) % 10,
    )


def write_mnist(root, parts, folder="MNIST/raw", zipped=True):
    raw = root / folder
    raw.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_FILES, parts, strict=True):
        content = idx_bytes(array)
        (raw / f"{name}.gz" if zipped else raw / name).write_bytes(gzip.compress(content) if zipped else content)
    return raw


def cifar_batch(rng, n=2):
    labels = np.arange(n, dtype=np.uint8)[:, None] % 10
    return np.hstack([labels, rng.integers(0, 256, (n, 3072), dtype=np.uint8)])


def cifar_archive(batches, folder="cifar-10-batches-bin"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve files on this machine in place of a set's own address."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requests.append(args[0])

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def start(name, files, md5=None):
        for file, content in files.items():
            (folder / file).write_bytes(content)
        sums = md5 or {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(data_files.SOURCES, name, replace(data_files.SOURCES[name], url=url, md5=sums))
        return requests

    yield start
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


# IDX files


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_idx_sets_round_trip(tmp_path, rng, name, folder, zipped):
    parts = mnist_parts(rng)
    write_mnist(tmp_path, parts, f"{folder}/raw", zipped)
    dataset = load_dataset(name, data_dir=tmp_path)
    for tensor, array in zip((dataset.x_train, dataset.x_test), parts[::2], strict=True):
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), array.reshape(len(array), -1))
    for tensor, array in zip((dataset.y_train, dataset.y_test), parts[1::2], strict=True):
        assert tensor.dtype == torch.int64 and np.array_equal(tensor.numpy(), array)
    assert dataset.pixels and dataset.classes == 10


def test_data_folder_order(tmp_path, rng, monkeypatch):
    folders = [
        tmp_path / "argument",
        tmp_path / "variable",
        tmp_path / "cache" / "fastbin",
        tmp_path / ".cache/fastbin",
    ]
    for i, folder in enumerate(folders):
        write_mnist(folder, mnist_parts(rng, n=i + 1))
    monkeypatch.setenv("FASTBIN_DATA", str(folders[1]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_dataset("mnist", data_dir=folders[0]).x_train) == 1
    assert len(load_dataset("mnist", data_dir="~/argument").x_train) == 1
    assert len(load_dataset("mnist").x_train) == 2
    monkeypatch.delenv("FASTBIN_DATA")
    assert len(load_dataset("mnist").x_train) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert len(load_dataset("mnist").x_train) == 4


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx(tmp_path, rng, shape, suffix):
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"idx{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    assert np.array_equal(read_idx(path), array) and read_idx(str(path)).dtype == np.uint8


def huge(*shape):
    return np.array([0x800 + len(shape), *shape], ">u4").tobytes() + bytes(10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic number 0x00000000"),
        (b"\0\0\x0d\x03" + bytes(12), "magic number 0x00000d03, expected 0x00000801 .* or 0x00000803"),
        (idx_bytes(np.zeros((2, 2))), "magic number 0x00000802"),
        (huge(5)[:6], "ends inside its header"),
        (idx_bytes(np.zeros(100))[:-1], r"claims shape \(100,\), 100 bytes; the file holds only 99"),
        (idx_bytes(np.zeros(100)) + b"\0", "the file holds more"),
        (huge(0), r"claims shape \(0,\)"),
        (huge(0, 28, 28), r"claims shape \(0, 28, 28\)"),
        (huge(2**32 - 1), r"claims shape \(4294967295,\), 4294967295 bytes; the file holds at most"),
        (huge(2**32 - 1, 2**32 - 1, 2**32 - 1), "the file holds at most"),
        (huge(2**32 - 1, 0, 2**32 - 1), "claims shape"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx_refuses(tmp_path, content, message, suffix):
    path = tmp_path / f"idx{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_read_idx_stops_reading_a_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(10)) + bytes(1 << 24)))
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    with pytest.raises(DataError, match="holds more"):
        read_idx(path)
    assert min(asked) > 0 and sum(asked) < 100


@pytest.mark.parametrize("cut", [4, 12, 30])
def test_read_idx_truncated_gzip(tmp_path, rng, cut):
    path = tmp_path / "idx.gz"
    path.write_bytes(gzip.compress(idx_bytes(rng.integers(0, 256, 100)))[:-cut])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)


@pytest.mark.parametrize("name", ["missing", "missing.gz", "."])
def test_read_idx_unreadable(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from([(5,), (2, 3, 2)]),
    zipped=st.booleans(),
    keep=st.integers(0, 60),
    flips=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4),
)
def test_read_idx_survives_damage(tmp_path, shape, zipped, keep, flips):
    content = bytearray(idx_bytes(np.arange(np.prod(shape)).reshape(shape)))
    content = bytearray(gzip.compress(content, mtime=0)) if zipped else content
    for position, value in flips:
        content[position % len(content)] = value
    path = tmp_path / ("fuzz.gz" if zipped else "fuzz")
    path.write_bytes(content[:keep])
    with suppress(DataError):
        assert read_idx(path).dtype == np.uint8


def test_idx_sets_refuse_what_does_not_match(tmp_path, rng):
    good = mnist_parts(rng)

    def refuse(message, **wrong):
        parts = [wrong.get(f"part{i}", part) for i, part in enumerate(good)]
        write_mnist(tmp_path, parts)
        with pytest.raises(DataError, match=message):
            load_dataset("mnist", data_dir=tmp_path)

    refuse("train-images.* holds 6 images, .*train-labels.* 5 labels", part1=np.arange(5))
    refuse("t10k-images.* holds 3 images, .*t10k-labels.* 4 labels", part2=np.zeros((3, 3, 3)))
    refuse("train-labels.*: label 10 at 2, expected 0 to 9", part1=np.array([0, 1, 10, 3, 4, 5]))
    refuse(r"training images are \(3, 3\), test images \(2, 2\)", part2=np.zeros((4, 2, 2)))
    refuse("train-images.*: 1-dimensional, expected 3", part0=np.zeros(6))
    refuse("t10k-labels.*: 3-dimensional, expected 1", part3=np.zeros((4, 1, 1)))


# CIFAR-10


def test_cifar(tmp_path, rng):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = [cifar_batch(rng) for _ in CIFAR_FILES]
    for name, batch in zip(CIFAR_FILES, batches, strict=True):
        batch.tofile(folder / name)
    dataset = load_dataset("cifar10", data_dir=tmp_path)
    train = np.concatenate(batches[:5])
    assert np.array_equal(dataset.x_train.numpy(), train[:, 1:]) and np.array_equal(
        dataset.y_train.numpy(), train[:, 0]
    )
    assert np.array_equal(dataset.x_test.numpy(), batches[5][:, 1:]) and dataset.labels == tuple(range(10))
    assert dataset.pixels and dataset.features == 3072
    assert dataset.x_test.is_contiguous() and dataset.y_test.is_contiguous()

    for content, message in [
        (b"", "test_batch.bin: 0 bytes, expected 1 to 10000 records of 3073"),
        (bytes(3072), "3072 bytes"),
        (bytes(3074), "3074 bytes"),
        (bytes([11]) + bytes(3072), "label 11 at 0, expected 0 to 9"),
    ]:
        (folder / "test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_dataset("cifar10", data_dir=tmp_path)


def test_cifar_is_downloaded_and_extracted(tmp_path, rng, serve):
    batches = {name: cifar_batch(rng).tobytes() for name in CIFAR_FILES}
    archive = cifar_archive({"readme.html": b"no", **batches, "../../outside": b"no"})
    requests = serve("cifar10", {"cifar-10-binary.tar.gz": archive})
    root = tmp_path / "data"
    assert load_dataset("cifar10", data_dir=root).x_train.shape == (10, 3072)
    assert sorted(path.name for path in (root / "cifar-10-batches-bin").iterdir()) == sorted(CIFAR_FILES)
    assert sorted(path.name for path in root.iterdir()) == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]
    load_dataset("cifar10", data_dir=root)
    (root / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    load_dataset("cifar10", data_dir=root)
    assert len(requests) == 1


def test_cifar_archive_refused(tmp_path, rng):
    batches = {name: cifar_batch(rng).tobytes() for name in CIFAR_FILES}
    short = {name: batch for name, batch in batches.items() if name != "data_batch_4.bin"}
    whole = cifar_archive(batches)
    for content, message in [
        (b"not an archive", "cannot be extracted"),
        (whole[: len(whole) // 2], "cannot be extracted"),
        (cifar_archive(short), "lacks cifar-10-batches-bin/data_batch_4.bin"),
        (cifar_archive(batches, "elsewhere"), "lacks cifar-10-batches-bin/data_batch_1.bin, "),
        (cifar_archive({**batches, "test_batch.bin": bytes(30_730_001)}), "test_batch.bin is 30730001 bytes"),
    ]:
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load_dataset("cifar10", data_dir=tmp_path)
        assert "cifar-10-binary.tar.gz" in str(caught.value)
        for path in (tmp_path / "cifar-10-batches-bin").iterdir():
            assert path.suffix == ".bin"
            path.unlink()


def test_cifar_does_not_read_pickles(tmp_path, serve):
    (tmp_path / "cifar-10-batches-py").mkdir()
    serve("cifar10", {})
    with pytest.raises(DataError, match=r"never from pickles \(cifar-10-batches-py\)"):
        load_dataset("cifar10", data_dir=tmp_path)


# Downloads


def test_missing_files_are_downloaded(tmp_path, rng, serve):
    raw = write_mnist(tmp_path / "origin", mnist_parts(rng))
    requests = serve("mnist", {path.name: path.read_bytes() for path in raw.iterdir()})
    root = tmp_path / "deep" / "data"
    first = load_dataset("mnist", data_dir=root)
    assert sorted(path.name for path in (root / "MNIST/raw").iterdir()) == sorted(f"{name}.gz" for name in IDX_FILES)
    assert torch.equal(load_dataset("mnist", data_dir=root).x_train, first.x_train)
    assert len(requests) == 4


def test_wrong_checksum_leaves_nothing(tmp_path, rng, serve):
    raw = write_mnist(tmp_path / "origin", mnist_parts(rng))
    files = {path.name: path.read_bytes() for path in raw.iterdir()}
    serve("mnist", files, md5=dict.fromkeys(files, "0" * 32))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz .*127\.0\.0\.1.* MD5 .*, expected 0{32}"):
        load_dataset("mnist", data_dir=tmp_path / "data")
    assert list((tmp_path / "data/MNIST/raw").iterdir()) == []


def test_failing_download_names_file_folder_and_address(tmp_path, serve):
    serve("mnist", {})
    with pytest.raises(DataError, match="404") as caught:
        load_dataset("mnist", data_dir=tmp_path)
    for part in ("train-images-idx3-ubyte.gz is missing", str(tmp_path / "MNIST/raw"), data_files.SOURCES["mnist"].url):
        assert part in str(caught.value)
    assert list((tmp_path / "MNIST/raw").iterdir()) == []


def test_offline_is_one_error(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(data_files.SOURCES, "kmnist", replace(data_files.SOURCES["kmnist"], url=url))
    with pytest.raises(DataError, match=r"KMNIST/raw, and http.* failed: .*refused"):
        load_dataset("kmnist", data_dir=tmp_path)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is missing"):
        load_dataset("mnist", data_dir=tmp_path / "file")


# A user's own files


def test_npz(tmp_path, rng):
    x, y = rng.normal(size=(20, 2, 3)), np.repeat([7, -1], 10)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    dataset = load_dataset(tmp_path / "own.npz", seed=1)
    direct = from_arrays(x, y, seed=1)
    assert (dataset.name, dataset.labels, dataset.features, dataset.pixels) == ("own", (-1, 7), 6, False)
    assert torch.equal(dataset.x_train, direct.x_train) and torch.equal(dataset.y_test, direct.y_test)
    assert dataset.y_test.bincount().tolist() == [2, 2]


def test_npz_with_a_test_part(tmp_path, rng):
    x = rng.integers(0, 256, (5, 2, 2), dtype=np.uint8)
    np.savez_compressed(
        tmp_path / "own.npz",
        x_train=x[:3],
        y_train=np.array(["b", "a", "c"]),
        x_test=x[3:],
        y_test=np.array(["c", "a"]),
    )
    dataset = load_dataset(str(tmp_path / "own.npz"))
    assert dataset.labels == ("a", "b", "c") and dataset.pixels
    assert dataset.y_train.tolist() == [1, 0, 2] and dataset.y_test.tolist() == [2, 0]
    assert np.array_equal(dataset.x_test.numpy(), x[3:].reshape(2, 4))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": np.zeros((2, 3))}, "test part: x has 3 features a sample .*expected 2"),
        ({"x_test": np.array([[1, np.nan]] * 2)}, r"test part: x\[0, 1\] is nan"),
        ({"y_test": np.array([0, 5])}, "test part: y holds labels that no training sample has: 5"),
        ({"y_test": np.array([0])}, "test part: y has 1 labels for 2 samples"),
        ({"y_train": np.array([0, 0])}, "own.npz: y must hold at least 2 classes, got 1: 0"),
    ],
)
def test_npz_with_a_bad_part(tmp_path, arrays, message):
    good = {"x_train": np.zeros((2, 2)), "y_train": np.arange(2), "x_test": np.zeros((2, 2)), "y_test": np.arange(2)}
    np.savez(tmp_path / "own.npz", **{**good, **arrays})
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path / "own.npz")
    assert "own.npz" in str(caught.value)


def test_npz_refused(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(DataError, match=r"own\.npz cannot be read: .*No such file"):
        load_dataset(path)
    np.savez(path, x=np.zeros((2, 2)), labels=np.arange(2))
    with pytest.raises(DataError, match="must hold x_train, y_train, x_test, y_test or x, y; it holds x, labels"):
        load_dataset(path)
    np.savez(path, x=np.zeros((2, 2)), y=np.array([0, None], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        load_dataset(path)
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        load_dataset(path)
    np.savez(path, x=np.zeros((2, 2)), y=np.arange(2))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError):
        load_dataset(path)


@pytest.mark.parametrize("shape", [(10**12, 8), (2**40, 2**40), (4, 3)])
def test_npz_that_claims_too_much_is_refused(tmp_path, shape):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue())
        archive.writestr("y.npy", member.getvalue())
    with pytest.raises(
        DataError, match="x claims shape .*; the file holds at most" if shape[0] > 4 else "cannot be read"
    ):
        load_dataset(tmp_path / "own.npz")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_npz_survives_damage(tmp_path, flips, compressed):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=np.arange(20.0).reshape(10, 2), y=np.arange(10) % 2)
    content = bytearray(buffer.getvalue())
    for position, value in flips:
        content[position % len(content)] = value
    (tmp_path / "fuzz.npz").write_bytes(content)
    with suppress(DataError, ValueError):
        load_dataset(tmp_path / "fuzz.npz")
