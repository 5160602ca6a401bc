"""Kernels of activations against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from .kernel_checks import SIZES, Pair, wide

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


@pytest.mark.parametrize("size", SIZES)
def test_relu_bwd(backend, dtype, size):
    pair = Pair(backend, "relu_bwd")
    t, out = rng.normal(size=size).astype(dtype), np.maximum(rng.normal(size=size), 0).astype(dtype)
    out[1:2] = np.nan
    t[3:4] = np.nan
    got = pair.run(t, out)
    assert got.dtype == dtype
    assert np.array_equal(wide(got), pair.twin(wide(t), wide(out)), equal_nan=True)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_misaligned_views(backend, dtype, offset):
    """A view that starts off a 16-byte boundary is read element by element; nothing beside the result is written."""
    pair = Pair(backend, "relu_bwd")
    t, out = pair.device(*(rng.normal(size=100).astype(dtype) for _ in "ab"))
    got = backend.to_numpy(pair.kernel(t[offset:], out[: 100 - offset]))
    want = pair.twin(wide(backend.to_numpy(t))[offset:], wide(backend.to_numpy(out))[: 100 - offset])
    assert np.array_equal(wide(got), want)


def test_more_elements_than_threads(backend):
    """The grid-stride loop: more packets than the largest grid has threads."""
    pair = Pair(backend, "relu_bwd")
    n = 4 * 256 * 32 * backend.processors + 1001
    t, out = rng.normal(size=n).astype("float32"), rng.normal(size=n).astype("float32")
    assert np.array_equal(pair.run(t, out), pair.twin(t, out))
