"""Readers against files written here byte by byte, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gpugrad import data
from gpugrad.data import files

TYPES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array):
    array = np.asarray(array)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, TYPES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_set(folder, dash="-", suffix="", train=6, test=4, size=(3, 2)):
    """A small set in MNIST's layout; returns its four arrays."""
    rng = np.random.default_rng(0)
    arrays = []
    for split, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, *size), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        for kind, array in (("images", images), ("labels", labels)):
            raw = idx(array)
            name = f"{split}-{kind}{dash}idx{array.ndim}-ubyte{suffix}"
            (folder / name).write_bytes(gzip.compress(raw, mtime=0) if suffix else raw)
            arrays.append(array)
    return arrays


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 3), (0, 5)])
def test_idx_round_trip(tmp_path, dtype, shape):
    array = np.random.default_rng(1).normal(0, 50, shape).astype(dtype)
    path = tmp_path / "x"
    path.write_bytes(idx(array))
    got = data.load_idx(path)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    assert got.flags.writeable
    assert np.array_equal(got, array)


def test_gzip_is_told_by_content_not_name(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "plain.gz").write_bytes(idx(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(data.load_idx(tmp_path / "plain.gz"), array)
    assert np.array_equal(data.load_idx(str(tmp_path / "packed")), array)


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(2, 3, 2))
PACKED = gzip.compress(GOOD * 50, mtime=0)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "begins with 00 00 08"),
        (b"\x01\x00\x08\x01\x00\x00\x00\x00", "begins with 01 00 08 01"),
        (b"\x00\x00\x0a\x01\x00\x00\x00\x00", "not an IDX file"),
        (GOOD[:10], "10 bytes, expected a header of 16 for 3 axes"),
        (GOOD[:-1], r"truncated, 11 bytes of data, expected 12 for uint8\[2, 3, 2\]"),
        (GOOD + b"\0", "trailing bytes, 13 bytes of data, expected 12"),
        (idx(np.zeros((2, 2), "float64"))[:-8], r"truncated, 24 bytes of data, expected 32 for float64\[2, 2\]"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "truncated, 0 bytes of data, expected 79,228,162"),
        (PACKED[:-9], "damaged gzip file"),
        (PACKED[:12] + bytes([PACKED[12] ^ 0xFF]) + PACKED[13:], "damaged gzip file"),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "damaged gzip file"),
        (PACKED + b"more", "damaged gzip file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "broken-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load_idx(path)
    first, place = str(caught.value).split("\n")
    assert str(path) in first
    assert __file__ in place


def test_missing_file_and_unreadable_path(tmp_path):
    with pytest.raises(data.DataError, match="nothing-here: cannot be read"):
        data.load_idx(tmp_path / "nothing-here")


@pytest.mark.parametrize("dash", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_under_its_usual_names(tmp_path, dash, suffix):
    want = write_set(tmp_path, dash, suffix)
    for got in (data.mnist(tmp_path), data.load_idx(str(tmp_path))):
        assert all(np.array_equal(a, b) for a, b in zip(got, want))
        assert [a.dtype for a in got] == [np.uint8] * 4


def test_mnist_with_a_missing_file_lists_the_names(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        data.DataError, match=r"no file t10k-labels-idx1-ubyte, looked for .*t10k-labels\.idx1-ubyte\.gz"
    ):
        data.mnist(tmp_path)
    with pytest.raises(data.DataError, match="no file train-images"):
        data.mnist(tmp_path / "elsewhere")


def test_mnist_with_labels_that_do_not_match(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(data.DataError, match=r"train-labels-idx1-ubyte: 5 labels, expected 6"):
        data.mnist(tmp_path)
    path.write_bytes(idx(np.zeros((6, 1), np.uint8)))
    with pytest.raises(data.DataError, match=r"uint8\[6, 1\], expected uint8 with 1 axes"):
        data.mnist(tmp_path)
    path.write_bytes(idx(np.zeros(6, np.float32)))
    with pytest.raises(data.DataError, match=r"float32\[6\], expected uint8"):
        data.mnist(tmp_path)


def test_mnist_with_test_images_of_another_size(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 5, 5), np.uint8)))
    with pytest.raises(data.DataError, match=r"test images are \[5, 5\], expected \[3, 2\]"):
        data.mnist(tmp_path)


def test_published_checksums_are_compared(tmp_path, monkeypatch):
    write_set(tmp_path, suffix=".gz")
    with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte\.gz: MD5 is [0-9a-f]{32}, expected f68b3c2d"):
        data.mnist(tmp_path, verify="mnist")
    sums = {p.name[: p.name.index("-idx")]: hashlib.md5(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()}
    monkeypatch.setitem(files.MD5, "mnist", sums)
    assert len(data.mnist(tmp_path, verify="mnist")[0]) == 6
    with pytest.raises(data.DataError, match="expected one of mnist, fashion-mnist"):
        data.mnist(tmp_path, verify="emnist")


def test_real_mnist_files():
    folder = Path(os.environ.get("GPUGRAD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mnist-5k"
    if not folder.is_dir():
        pytest.skip("no mnist-5k beside the repository; set GPUGRAD_TEST_DATA to a folder that has it")
    train_x, train_y, test_x, test_y = data.mnist(folder)
    assert (train_x.shape, train_y.shape) == ((4000, 28, 28), (4000,))
    assert (test_x.shape, test_y.shape) == ((1000, 28, 28), (1000,))
    assert np.bincount(test_y).tolist() == [100] * 10
    assert np.bincount(train_y).tolist() == [400] * 10
    assert (int(train_x.min()), int(train_x.max())) == (0, 255)
    assert 0.10 < train_x.mean() / 255 < 0.16


def test_cifar10(tmp_path):
    rng = np.random.default_rng(2)
    rows = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows[name] = rng.integers(0, 256, (2, 3073), dtype=np.uint8)
        rows[name][:, 0] %= 10
        (tmp_path / name).write_bytes(rows[name].tobytes())
    train_x, train_y, test_x, test_y = data.cifar10(tmp_path)
    assert (train_x.shape, test_x.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    third = rows["data_batch_2.bin"][0]
    assert train_y[2] == third[0]
    assert train_x[2, 1, 4, 5] == third[1 + 1024 + 4 * 32 + 5]
    assert np.array_equal(test_y, rows["test_batch.bin"][:, 0])
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(data.DataError, match="3,000 bytes, expected a multiple of 3,073"):
        data.cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" * 3073)
    with pytest.raises(data.DataError, match="label 11, expected 0 to 9"):
        data.cifar10(tmp_path)


def test_characters(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("banana é\n", encoding="utf-8")
    ids, alphabet = data.characters(path)
    assert alphabet == "\n abné"
    assert ids.dtype == np.int64
    assert "".join(alphabet[i] for i in ids) == "banana é\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(data.DataError, match="not UTF-8 at byte 2"):
        data.characters(path)
    path.write_bytes(b"")
    with pytest.raises(data.DataError, match="0 characters"):
        data.characters(path)
