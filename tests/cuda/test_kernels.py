"""Every kernel against its NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest

from gpugrad.backends.cuda import FLOATS
from gpugrad.op import TABLE

TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
SIZES = [0, 1, 3, 4, 31, 32, 33, 255, 1025, 4099]
SCHEDULES = [{}, {"schedule": "reversed", "reverse_blocks": True}, {"schedule": "random", "seed": 5}]
rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


@pytest.fixture(params=FLOATS)
def dtype(request):
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16)
    return np.dtype(request.param)


@pytest.fixture(params=SCHEDULES, ids=["natural", "reversed", "random"])
def scheduled(request, backend):
    """The order in which the emulator runs threads and blocks; a GPU chooses for itself."""
    if backend.xp.__name__ == "cupy":
        if request.param:
            pytest.skip("a GPU has no schedule to choose")
        return contextlib.nullcontext()
    return backend.xp.scheduled(**request.param)


class Pair:
    """An op's kernel, with no twin to fall back to, and its twin on NumPy."""

    def __init__(self, backend, name):
        op = TABLE[name]
        self.backend, self.special = backend, op.impls.special
        self.kernel = backend.implement(op.fwd, op.impls.special)
        self.kernel.twin = None
        self.twin = functools.partial(op.fwd, np)

    def device(self, *arrays):
        return [None if a is None else self.backend.asarray(a) for a in arrays]

    def run(self, *arrays, **attrs):
        out = self.kernel(*self.device(*arrays), **attrs)
        host = self.backend.to_numpy
        return tuple(map(host, out)) if isinstance(out, tuple) else host(out)


def wide(a):
    """In double precision, integers as they are."""
    return a if a is None or a.dtype.kind in "iu" else a.astype("float64")


def check(got, want, dtype):
    want = np.asarray(want, "float64")
    scale = max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(
        got.astype("float64"), want, rtol=TOLERANCE[dtype.name], atol=TOLERANCE[dtype.name] * scale
    )


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


# --- softmax cross-entropy ------------------------------------------------------------------------------------------


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
    loss, lse = Pair(backend, "softmax_xent").run(logits, y, rng.random(6).astype("float32"), **options)
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


# --- scatter --------------------------------------------------------------------------------------------------------


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


# --- dropout --------------------------------------------------------------------------------------------------------

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
