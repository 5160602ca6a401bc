"""Kernels of indexing against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from .kernel_checks import Pair

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def loop(t, ids, rows):
    """The sum of rows, one after another, in at least single precision."""
    wider = np.result_type(t.dtype, "float32") if t.dtype.kind == "f" else np.dtype("float32")
    out = np.zeros((rows, *t.shape[ids.ndim :]), wider)
    for place in np.ndindex(ids.shape):
        out[ids[place]] += t[place].astype(wider)
    return out.astype(t.dtype)


@pytest.mark.parametrize(
    "shape, rest, rows",
    [((1,), (1,), 1), ((50,), (7,), 9), ((20, 10), (), 13), ((0,), (3,), 4), ((9,), (0,), 4), ((33,), (2, 5), 100)],
)
def test_scatter_rows_adds_in_order(backend, dtype, scheduled, shape, rest, rows):
    pair = Pair(backend, "scatter_rows")
    t, ids = rng.normal(size=(*shape, *rest)).astype(dtype), rng.integers(0, rows, shape)
    with scheduled:
        got = pair.run(t, ids, rows=rows, distinct=False)
    assert got.shape == (rows, *rest)
    assert np.array_equal(got, loop(t, ids, rows))  # to the last bit: the sum has one order


def test_scatter_rows_to_distinct_places_needs_no_order(backend, dtype):
    pair = Pair(backend, "scatter_rows")
    t, ids = rng.normal(size=(6, 5)).astype(dtype), np.array([7, 0, 3, 9, 1, 8], "int32")
    want = np.zeros((10, 5), dtype)
    want[ids] = t
    assert np.array_equal(pair.run(t, ids, rows=10, distinct=True), want)
