"""Kernels of softmax and its kin against the NumPy twin in float64: on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from .kernel_checks import Pair, check, wide

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def check_op(backend, name, *arrays, **attrs):
    pair, dtype = Pair(backend, name), arrays[0].dtype
    got = pair.run(*arrays, **attrs)
    with np.errstate(all="ignore"):
        want = pair.twin(*map(wide, arrays), **attrs)
    assert got.dtype == dtype
    assert got.shape == want.shape
    check(got, want, dtype)


def check_along(backend, shape, axis, dtype):
    x, t = (4 * rng.normal(size=shape)).astype(dtype), rng.normal(size=shape).astype(dtype)
    for name in ("softmax", "log_softmax"):
        check_op(backend, name, x, axis=axis)
        y = Pair(backend, name).twin(wide(x), axis=axis).astype(dtype)
        check_op(backend, name + "_bwd", t, y, axis=axis)


@pytest.mark.parametrize("shape", [(1, 1), (9, 31), (8, 32), (3, 33), (2, 255), (2, 1024), (2, 1025), (2, 2, 1200)])
def test_softmax_of_rows(backend, dtype, shape):
    check_along(backend, shape, len(shape) - 1, dtype)


@pytest.mark.parametrize("columns", [1, 8, 130, 512, 2048, 8192, 8200])
def test_softmax_of_rows_under_schedules(backend, scheduled, columns):
    with scheduled:
        check_along(backend, (2, columns), 1, np.dtype("float32"))


@pytest.mark.parametrize("columns", [17000, 33001])
def test_rows_beyond_the_registers(backend, columns):
    check_along(backend, (1, columns), 1, np.dtype("float32"))


@pytest.mark.parametrize("shape, axis", [((3, 4, 5), 1), ((7, 33), 0), ((2, 1, 3), 1), ((1, 40, 300), 1)])
def test_softmax_along_another_axis(backend, dtype, scheduled, shape, axis):
    with scheduled:
        check_along(backend, shape, axis, dtype)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_misaligned_rows(backend, dtype, offset):
    for name, inputs in (("softmax", 1), ("log_softmax", 1), ("softmax_bwd", 2), ("log_softmax_bwd", 2)):
        pair = Pair(backend, name)
        values = [rng.random(40).astype(dtype) for _ in range(inputs)]
        views = [a[offset : offset + 36].reshape(2, 18) for a in pair.device(*values)]
        want = pair.twin(*[wide(a)[offset : offset + 36].reshape(2, 18) for a in values], axis=1)
        check(backend.to_numpy(pair.kernel(*views, axis=1)), want, dtype)


@pytest.mark.parametrize("tail", [0, 1, 8200])
def test_infinities_and_nan(backend, tail):
    inf, nan = np.inf, np.nan
    heads = np.array(
        [[1, 2, -inf], [-inf] * 3, [inf, 1, 2], [nan, 1, 2], [-inf, 3, -inf], [nan, -inf, -inf], [inf, nan, 1],
         [inf, inf, 0], [1e4, -1e4, 0], [-1e30, 0, 0]]
    )  # fmt: skip
    x = np.full((len(heads), 3 + tail), -inf, "float32")
    x[:, -3:] = heads  # most threads meet -inf alone
    for axis, y in ((1, x), (0, np.ascontiguousarray(x.T[-5:]))):
        for name in ("softmax", "log_softmax"):
            check_op(backend, name, y, axis=axis)
    lse = Pair(backend, "logsumexp").twin(x, axis=(1,), keepdims=False)
    check_op(backend, "logsumexp_bwd", np.ones(len(x), "float32"), lse, x, axis=(1,))
    check_op(backend, "logsumexp_bwd", np.ones(len(x), "float32"), lse, np.ascontiguousarray(x[:, -3:].T), axis=(0,))


@pytest.mark.parametrize("shape, axis", [((9, 33), (1,)), ((2, 3, 5), (1, 2)), ((4, 5, 6), (1,)), ((40000,), (0,))])
def test_logsumexp_bwd(backend, dtype, scheduled, shape, axis):
    with scheduled:
        x = rng.normal(size=shape).astype(dtype)
        lse = Pair(backend, "logsumexp").twin(x, axis=axis, keepdims=False)
        check_op(backend, "logsumexp_bwd", rng.normal(size=lse.shape).astype(dtype), lse, x, axis=axis)


def test_what_has_no_kernel_is_left_to_the_twin(backend):
    pair = Pair(backend, "softmax")
    for x in (np.empty((0, 3), "float32"), np.empty((3, 0), "float32")):
        with pytest.raises(TypeError):
            pair.run(x, axis=1)
    with pytest.raises(TypeError):
        Pair(backend, "softmax_bwd").run(np.ones((2, 3), "float32"), np.ones((2, 3)), axis=1)
