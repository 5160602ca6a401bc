"""Data folders and finished runs that several tests look at."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click")
from click.testing import CliRunner

from gpugrad.cli import main

ROOT = Path(__file__).resolve().parents[2]


def invoke(*args):
    """Run a command in this process; click's result."""
    return CliRunner().invoke(main, [str(a) for a in args])


def idx(array, count=None):
    """The bytes of an IDX file of uint8; `count` overrides the length in the header."""
    shape = (len(array) if count is None else count, *array.shape[1:])
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in shape) + array.astype("u1").tobytes()


def write_set(folder, size=(8, 8), train=40, test=20, pack=True):
    """A small set in MNIST's files: class k is a bright row k on noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for stem, n in (("train", train), ("t10k", test)):
        labels = np.arange(n) % 4
        images = rng.integers(0, 60, (n, *size))
        images[np.arange(n), labels] += 180
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            name = f"{stem}-{kind}-ubyte" + (".gz" if pack else "")
            (folder / name).write_bytes(gzip.compress(data) if pack else data)
    return folder


@pytest.fixture
def small_set(tmp_path):
    """A folder of 40 training and 20 test images of 8x8 pixels in four classes, packed."""
    return write_set(tmp_path / "small")


@pytest.fixture(scope="session")
def mnist_5k():
    """The folder of 5,000 real MNIST digits, where it is."""
    folder = Path(os.environ.get("GPUGRAD_TEST_DATA", ROOT.parent / "shared" / "data")) / "mnist-5k"
    if not folder.is_dir():
        pytest.skip(f"no data: {folder} is absent (GPUGRAD_TEST_DATA names its parent)")
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The run folder of `gpugrad train` with no arguments but the folder's name, and what it printed."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    result = invoke("train", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output
