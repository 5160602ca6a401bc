"""Readers of local data files. Nothing is ever downloaded; what does not fit its format is refused in one line."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gpugrad.errors import GpugradError, fail

GZIP = b"\x1f\x8b"
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MD5 = {  # of the .gz files as their authors publish them
    "mnist": {
        "train-images": "f68b3c2dcbeaaa9fbdd348bbdeb94873", "train-labels": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images": "9fb629c4189551a2d022fa330f9573f3", "t10k-labels": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion-mnist": {
        "train-images": "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "train-labels": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images": "bef4ecab320f06d8554ea6380940ec79", "t10k-labels": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}  # fmt: skip

Split = tuple[Any, Any, Any, Any]


class DataError(GpugradError, ValueError):
    """A data file is missing, damaged or not what was asked for."""


def contents(op: str, path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzip (told by its first bytes, not its name)."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise fail(DataError, op, f"{path}: cannot be read ({error.strerror})") from None
    if not raw.startswith(GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise fail(DataError, op, f"{path}: damaged gzip file of {len(raw):,} bytes ({error})") from None


def load_idx(path: str | Path) -> Any:
    """The array in an IDX file, plain or gzip, in native byte order; for a directory what `mnist` gives.

    Raises DataError, naming the file and the numbers, when it is missing, damaged, too short, too long or not IDX.
    """
    path = Path(path)
    if path.is_dir():
        return mnist(path)
    data = contents("load_idx", path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        known = ", ".join(f"{c:02x}" for c in IDX_TYPES)
        raise fail(
            DataError, "load_idx",
            f"{path}: not an IDX file, it begins with {data[:4].hex(' ') or 'nothing'}, "
            f"expected 00 00, a type of {known}, and the number of axes",
        )  # fmt: skip
    dtype, ndim = np.dtype(IDX_TYPES[data[2]]), data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise fail(DataError, "load_idx", f"{path}: {len(data)} bytes, expected a header of {start} for {ndim} axes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, 4))
    expected, actual = math.prod(shape) * dtype.itemsize, len(data) - start
    if actual != expected:
        fault = "truncated" if actual < expected else "has trailing bytes"
        raise fail(
            DataError, "load_idx",
            f"{path}: {fault}, {actual:,} bytes of data, expected {expected:,} for {dtype.name}{list(shape)}",
        )  # fmt: skip
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def mnist(directory: str | Path, verify: str | None = None) -> Split:
    """(train_x, train_y, test_x, test_y) of MNIST, Fashion-MNIST or any set in their layout, from local IDX files.

    Images (N, 28, 28) uint8 in 0..255, labels (N,) uint8. Names may use `-idx3-ubyte` or `.idx3-ubyte`, with or without
    .gz. verify: 'mnist' or 'fashion-mnist' compares the .gz files with the published MD5 sums. Raises DataError.
    """
    folder = Path(directory)
    if verify is not None and verify not in MD5:
        raise fail(DataError, "mnist", f"verify is {verify!r}, expected one of {', '.join(MD5)}")
    arrays = []
    for split in ("train", "t10k"):
        paths = [find(folder, f"{split}-{kind}", axes) for kind, axes in (("images", 3), ("labels", 1))]
        if verify is not None:
            for kind, path in zip(("images", "labels"), paths):
                check_md5(path, MD5[verify][f"{split}-{kind}"])
        images, labels = (load_idx(p) for p in paths)
        for path, array, axes in zip(paths, (images, labels), (3, 1)):
            if array.ndim != axes or array.dtype != np.uint8:
                raise fail(
                    DataError, "mnist", f"{path}: {array.dtype}{list(array.shape)}, expected uint8 with {axes} axes"
                )
        if len(images) != len(labels):
            raise fail(DataError, "mnist", f"{paths[1]}: {len(labels):,} labels, expected {len(images):,} as images")
        arrays += [images, labels]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise fail(
            DataError, "mnist",
            f"{folder}: test images are {list(arrays[2].shape[1:])}, "
            f"expected {list(arrays[0].shape[1:])} as in training",
        )  # fmt: skip
    return tuple(arrays)  # type: ignore[return-value]


def find(folder: Path, stem: str, axes: int) -> Path:
    """The file of the set under any of its usual names."""
    names = [f"{stem}{dot}idx{axes}-ubyte{gz}" for gz in ("", ".gz") for dot in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise fail(DataError, "mnist", f"{folder}: no file {stem}-idx{axes}-ubyte, looked for {', '.join(names)}")


def check_md5(path: Path, expected: str) -> None:
    """Compare a packed file with its published checksum."""
    actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if actual != expected:
        raise fail(DataError, "mnist", f"{path}: MD5 is {actual}, expected {expected} of the published .gz file")


def cifar10(directory: str | Path) -> Split:
    """(train_x, train_y, test_x, test_y) of CIFAR-10's binary version: images (N, 3, 32, 32) uint8, labels (N,) uint8.

    Reads data_batch_1.bin to data_batch_5.bin and test_batch.bin. Raises DataError.
    """
    folder, record = Path(directory), 1 + 3 * 32 * 32
    parts = []
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        data = contents("cifar10", folder / name)
        if not data or len(data) % record:
            raise fail(DataError, "cifar10", f"{folder / name}: {len(data):,} bytes, expected a multiple of {record:,}")
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        if rows[:, 0].max() > 9:
            raise fail(DataError, "cifar10", f"{folder / name}: label {rows[:, 0].max()}, expected 0 to 9")
        parts.append(rows)
    train, test = np.concatenate(parts[:5]), parts[5].copy()
    return (
        train[:, 1:].reshape(-1, 3, 32, 32),
        train[:, 0].copy(),
        test[:, 1:].reshape(-1, 3, 32, 32),
        test[:, 0].copy(),
    )


def characters(path: str | Path) -> tuple[Any, str]:
    """A UTF-8 text as (ids, alphabet): int64 positions of its characters in the sorted alphabet. Raises DataError."""
    try:
        text = contents("characters", Path(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise fail(DataError, "characters", f"{path}: not UTF-8 at byte {error.start:,}") from None
    if not text:
        raise fail(DataError, "characters", f"{path}: 0 characters, expected at least one")
    codes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    return ids.astype(np.int64), "".join(map(chr, codes))
