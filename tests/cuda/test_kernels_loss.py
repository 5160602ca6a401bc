"""Kernels of losses against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.errors import RangeError

from .kernel_checks import Pair, check, wide

rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def xent_case(rows, classes, labels, weighted, dtype):
    logits = (4 * rng.normal(size=(rows, classes))).astype(dtype)
    if labels == "soft":
        y = rng.random((rows, classes))
        y = (y / y.sum(1, keepdims=True)).astype(dtype)
    else:
        y = rng.integers(0, classes, rows).astype(labels)
        if y.dtype.kind == "i":
            y[1:2] = -100
    weight = (rng.random(classes) + 0.1).astype(dtype) if weighted else None
    return rng.normal(size=rows).astype(dtype), logits, y, weight


def check_xent(backend, t, logits, y, weight, **options):
    forward, backward = Pair(backend, "softmax_xent"), Pair(backend, "softmax_xent_bwd")
    loss, lse = forward.run(logits, y, weight, **options)
    wide_args = [wide(a) for a in (logits, y, weight)]
    want, want_lse = forward.twin(*wide_args, **options)
    assert loss.dtype == logits.dtype
    check(loss, want, logits.dtype)
    check(lse, want_lse, np.dtype("float32") if logits.dtype.itemsize < 8 else logits.dtype)
    grad = backward.run(t, logits, y, weight, lse, **options)
    assert grad.dtype == logits.dtype
    check(grad, backward.twin(wide(t), *wide_args, want_lse, **options), logits.dtype)


@pytest.mark.parametrize("labels", ["int64", "int32", "uint8", "soft"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_xent_options(backend, dtype, labels, weighted, smoothing):
    for rows, classes in ((5, 10), (2, 1030)):
        y = labels if labels != "uint8" or classes < 256 else "int64"
        check_xent(backend, *xent_case(rows, classes, y, weighted, dtype), ignore_index=-100, smoothing=smoothing)


@pytest.mark.parametrize("classes", [1, 2, 31, 32, 33, 127, 1024, 1025, 4097])
def test_xent_sizes(backend, scheduled, classes):
    with scheduled:
        for rows in (1, 9):
            case = xent_case(rows, classes, "int64", False, np.dtype("float32"))
            check_xent(backend, *case, ignore_index=-100, smoothing=0.0)


def test_xent_of_many_classes(backend):
    case = xent_case(2, 50257, "int64", False, np.dtype("float32"))
    check_xent(backend, *case, ignore_index=-100, smoothing=0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [3, 1500])
def test_xent_of_infinities_and_nan(backend, classes, smoothing):
    inf, nan = np.inf, np.nan
    heads = [
        [1, 2, -inf],
        [-inf] * 3,
        [inf, 1, 2],
        [nan, 1, 2],
        [-inf, 3, -inf],
        [nan, -inf, -inf],
        [1e4, -1e4, 0],
        [-1e30, 0, 0],
    ]
    logits = np.full((len(heads), classes), -inf, "float32")
    logits[:, :3] = heads
    if classes > 3:  # a thread that has met -inf alone
        logits[1, 700:] = rng.normal(size=classes - 700)
    options = {"ignore_index": -100, "smoothing": smoothing}
    forward, backward = Pair(backend, "softmax_xent"), Pair(backend, "softmax_xent_bwd")
    for y in (np.zeros(8, int), np.array([1, 1, 1, 1, 1, 0, 1, 0]), np.array([2, 1, 0, 2, 0, 2, -100, -100])):
        got, lse = forward.run(logits, y, None, **options)
        with np.errstate(all="ignore"):
            want, want_lse = forward.twin(logits.astype("float64"), y, None, **options)
            t = np.ones(8, "float32")
            slope = backward.twin(t.astype("float64"), logits.astype("float64"), y, None, want_lse, **options)
        np.testing.assert_allclose(got, want, rtol=2e-6)
        np.testing.assert_allclose(lse, want_lse, rtol=2e-6)
        np.testing.assert_allclose(backward.run(t, logits, y, None, lse, **options), slope, rtol=2e-6, atol=2e-6)


def test_xent_of_impossible_classes_without_weight(backend):
    """A class that the target leaves out may have logit -inf, whether by soft label or by class weight."""
    logits = np.array([[1, 2, -np.inf], [-np.inf, 0, 1]], "float32")
    soft, weight = np.array([[0.25, 0.75, 0], [0, 0.5, 0.5]], "float32"), np.array([0, 1, 1], "float32")
    options = {"ignore_index": -100, "smoothing": 0.0}
    for y, w in ((soft, None), (np.array([0, 0]), weight), (soft, weight)):
        forward = Pair(backend, "softmax_xent")
        loss, _ = forward.run(logits, y, w, **options)
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(loss, forward.twin(logits, y, w, **options)[0], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_out_of_range_spoils_its_row_alone(backend, smoothing):
    logits, y = rng.normal(size=(4, 6)).astype("float32"), np.array([0, 6, -1, 2**40])
    options = {"ignore_index": -100, "smoothing": smoothing}
    pair = Pair(backend, "softmax_xent")
    loss, lse = pair.kernel(*pair.device(logits, y, rng.random(6).astype("float32")), **options)
    with pytest.raises(RangeError, match=r"label 6 in row 1; expected 0 to 5, or -100(.|\n)*loss, lse = pair.kernel"):
        backend.to_numpy(loss)
    loss, lse = map(backend.to_numpy, (loss, lse))  # the letter box is empty again
    assert np.isnan(loss).tolist() == [False, True, True, True]
    assert np.isfinite(lse).all()
    grad = Pair(backend, "softmax_xent_bwd").run(np.ones(4, "float32"), logits, y, None, lse, **options)
    assert np.isnan(grad).all(1).tolist() == [False, True, True, True]
    assert np.isfinite(grad[0]).all()


def test_no_classes_and_no_rows(backend):
    pair = Pair(backend, "softmax_xent")
    loss, lse = pair.run(np.empty((0, 3), "float32"), np.empty(0, int), None, ignore_index=-100, smoothing=0.0)
    assert loss.shape == lse.shape == (0,)
    with pytest.raises(TypeError):  # no kernel; the twin, absent here, would say what is wrong
        pair.run(np.empty((2, 0), "float32"), np.zeros(2, int), None, ignore_index=-100, smoothing=0.0)


@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 257, 1000, 1025, 10_000, 32_768, 50_000])
def test_xent_errors_stay_below_two_millionths(backend, classes):
    """Loss and gradient of float32 logits against float64, sharp rows, shifted rows and the labels' three forms."""
    logits = rng.normal(size=(6, classes)) * np.array([[1], [4], [20], [1], [4], [1]])
    logits = (logits + np.array([[0], [0], [0], [1e3], [-50], [30]])).astype("float32")
    t, soft = rng.random(6).astype("float32"), rng.random((6, classes))
    soft = (soft / soft.sum(1, keepdims=True)).astype("float32")
    forward, backward = Pair(backend, "softmax_xent"), Pair(backend, "softmax_xent_bwd")
    for y, smoothing in ((rng.integers(0, classes, 6), 0.0), (rng.integers(0, classes, 6), 0.1), (soft, 0.0)):
        options = {"ignore_index": -100, "smoothing": smoothing}
        loss, lse = forward.run(logits, y, None, **options)
        want, want_lse = forward.twin(wide(logits), wide(y), None, **options)
        assert (np.abs(loss - want) / np.maximum(1, np.abs(want))).max() < 2e-6
        grad = backward.run(t, logits, y, None, lse, **options)
        slope = backward.twin(wide(t), wide(logits), wide(y), None, want_lse, **options)
        assert np.abs(grad - slope).max() < 2e-6


def test_xent_of_two_hundred_thousand_classes(backend, dtype):
    for labels in ("int64", "soft"):
        case = xent_case(1, 200_000, labels, False, dtype)
        check_xent(backend, *case, ignore_index=-100, smoothing=0.0)


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("labels", ["int32", "soft"])
def test_xent_of_misaligned_rows(backend, dtype, offset, labels):
    """Rows of an odd length start anywhere between two 16-byte boundaries, and so may the arrays."""
    t, logits, y, weight = xent_case(3, 77, labels, True, dtype)
    options = {"ignore_index": -100, "smoothing": 0.1}
    forward, backward = Pair(backend, "softmax_xent"), Pair(backend, "softmax_xent_bwd")
    (x,) = forward.device(np.concatenate([np.zeros(offset, dtype), logits.ravel()]))
    t_, y_, w_ = forward.device(t, y, weight)
    x = x[offset:].reshape(3, 77)
    loss, lse = forward.kernel(x, y_, w_, **options)
    wides = [wide(a) for a in (logits, y, weight)]
    want, want_lse = forward.twin(*wides, **options)
    check(backend.to_numpy(loss), want, dtype)
    grad = backward.kernel(t_, x, y_, w_, lse, **options)
    check(backend.to_numpy(grad), backward.twin(wide(t), *wides, want_lse, **options), dtype)


@pytest.mark.parametrize("labels", ["int64", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [5, 600, 1300])
def test_the_gradient_may_take_the_memory_of_the_logits(backend, dtype, scheduled, labels, smoothing, classes):
    t, logits, y, weight = xent_case(3, classes, labels, True, dtype)
    options = {"ignore_index": -100, "smoothing": smoothing}
    _, lse = Pair(backend, "softmax_xent").run(logits, y, weight, **options)
    pair = Pair(backend, "softmax_xent_bwd")
    want = pair.run(t, logits, y, weight, lse, **options)
    arrays = pair.device(t, logits, y, weight, lse)
    with scheduled:
        got = pair.kernel(*arrays, reuse=True, **options)
    assert got is arrays[1]
    assert np.array_equal(backend.to_numpy(got), want)
    same = logits.copy()
    assert pair.twin(t, same, y, weight, lse, reuse=True, **options) is same
    assert np.array_equal(same, pair.twin(t, logits, y, weight, lse, **options))


def test_xent_of_half_rows_of_minus_infinity(backend, dtype):
    inf = np.inf
    logits = np.array([[-inf] * 40, [-inf] * 39 + [3], [inf] * 40, [0] * 40], dtype)
    options = {"ignore_index": -100, "smoothing": 0.0}
    pair, soft = Pair(backend, "softmax_xent"), np.zeros((4, 40), dtype)
    soft[:, 39] = 1
    for y in (np.full(4, 39), soft):
        loss, lse = pair.run(logits, y, None, **options)
        with np.errstate(all="ignore"):
            want, want_lse = pair.twin(wide(logits), wide(y), None, **options)
        check(loss, want, dtype)
        check(lse, want_lse, dtype)
