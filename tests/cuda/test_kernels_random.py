"""Random kernels against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from .kernel_checks import SIZES, Pair

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


KEY = (2**64 - 3, 0x9E3779B97F4A7C15)


def keeps(counter, n, p):
    """Which elements NumPy's own generator keeps."""
    generator = np.random.Philox(key=np.array(KEY, "uint64"), counter=np.array([counter, 0, 0, 0], "uint64"))
    words = generator.random_raw(-(-n // 2)).view("uint32")[:n]
    return words.astype("uint64") < round((1 - p) * 2**32)


@pytest.mark.parametrize("size", [*SIZES, 7, 8, 9, 2048, 2049])
def test_dropout_keeps_what_numpys_generator_says(backend, dtype, size):
    pair = Pair(backend, "dropout")
    x = rng.normal(size=size).astype(dtype)
    got = pair.run(x, np.array([12], "uint64"), key=KEY, p=0.3)
    want = np.where(keeps(12, size, 0.3), x * dtype.type(1 / 0.7), x * dtype.type(0))
    assert got.dtype == dtype
    assert got.tobytes() == want.astype(dtype).tobytes()  # to the last bit, signs of zero included


@pytest.mark.parametrize("counter", [0, 2**64 - 3, 2**64 - 1])
@pytest.mark.parametrize("p", [0.0, 1e-12, 0.5, 1 - 2**-33, 1.0])
def test_dropout_counters_that_overflow_and_extreme_probabilities(backend, scheduled, counter, p):
    pair = Pair(backend, "dropout")
    x = rng.normal(size=100).astype("float32")
    with scheduled:
        got = pair.run(x, np.array([counter], "uint64"), key=KEY, p=p)
    scale = np.float32(1 / (1 - p) if p < 1 else 0)
    assert np.array_equal(got, np.where(keeps(counter, 100, p), x * scale, 0))
    assert np.array_equal(got, pair.twin(x, np.array([counter], "uint64"), key=KEY, p=p))


def test_dropout_of_a_misaligned_view(backend):
    pair = Pair(backend, "dropout")
    x, counter = pair.device(rng.normal(size=70).astype("float32"), np.zeros(1, "uint64"))
    got = backend.to_numpy(pair.kernel(x[3:], counter, key=KEY, p=0.5))
    assert np.array_equal(got, np.where(keeps(0, 67, 0.5), 2 * backend.to_numpy(x)[3:], 0))


def test_dropout_of_more_elements_than_threads(backend):
    pair = Pair(backend, "dropout")
    n = 8 * 256 * 32 * backend.processors + 77
    x = np.ones(n, "float32")
    assert np.array_equal(pair.run(x, np.array([5], "uint64"), key=KEY, p=0.25) != 0, keeps(5, n, 0.25))
