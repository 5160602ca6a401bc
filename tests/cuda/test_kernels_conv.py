"""Kernels of convolution and pooling against the NumPy twin in float64: on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.launch import conv as launch
from gpugrad.op import TABLE
from gpugrad.ops._windows import counts

from .kernel_checks import Pair, check, wide

F32 = np.dtype("float32")
rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def normal(dtype, *shape):
    return rng.normal(size=shape).astype(dtype)


def check_op(backend, name, *arrays, **attrs):
    """Compare with the twin in double precision; the kernel's result."""
    pair, dtype = Pair(backend, name), arrays[0].dtype
    got = pair.run(*arrays, **attrs)
    want = pair.twin(*map(wide, arrays), **attrs)
    assert got.dtype == dtype
    assert got.shape == want.shape
    check(got, want, dtype)
    return got


# --- convolution ------------------------------------------------------------------------------------------------------


def geometries(number, seed):
    """Random ones: (n, channels in a group, outputs in a group, groups, (h, w), kernel, stride, padding, dilation)."""
    draw, found = np.random.default_rng(seed), []
    while len(found) < number:
        pair = lambda low, high: tuple(map(int, draw.integers(low, high + 1, 2)))
        image, kernel, stride, padding, dilation = pair(1, 9), pair(1, 5), pair(1, 3), pair(0, 2), pair(1, 2)
        if min(counts(image, kernel, stride, padding, dilation)) >= 1:
            n, c, o, groups = (int(draw.choice(few)) for few in ([1, 3], [1, 2, 3], [1, 2, 4], [1, 1, 2, 4]))
            found.append((n, c, o, groups, image, kernel, stride, padding, dilation))
    return found


EDGES = [
    (3, 2, 3, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),  # one pixel, one tap
    (1, 2, 3, 1, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),  # mostly padding
    (3, 1, 1, 8, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),  # depthwise
    (2, 4, 6, 2, (5, 7), (1, 1), (1, 1), (0, 0), (1, 1)),  # the image is its own columns
    (2, 4, 6, 2, (5, 7), (1, 1), (2, 2), (0, 0), (1, 1)),
    (2, 4, 6, 1, (5, 7), (1, 1), (1, 1), (1, 0), (1, 1)),
    (3, 3, 4, 1, (5, 4), (5, 4), (1, 1), (0, 0), (1, 1)),  # one window
    (1, 1, 1, 1, (7, 7), (2, 2), (3, 3), (0, 0), (1, 1)),  # pixels that no window covers
]


def operands(dtype, n, c, o, groups, image, kernel, stride, padding, dilation):
    """(t, x, w, attributes)."""
    t = normal(dtype, n, groups * o, *counts(image, kernel, stride, padding, dilation))
    x, w = normal(dtype, n, groups * c, *image), normal(dtype, groups * o, c, *kernel)
    return t, x, w, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def check_three(backend, t, x, w, a):
    """The convolution and its adjoints in both arguments."""
    return (
        check_op(backend, "conv2d", x, w, **a),
        check_op(backend, "conv2d_input", t, w, shape=x.shape[2:], **a),
        check_op(backend, "conv2d_weight", t, x, kernel=w.shape[2:], **a),
    )


@pytest.mark.parametrize("case", EDGES + geometries(40, seed=1), ids=str)
def test_convolution_geometries(backend, case):
    check_three(backend, *operands(F32, *case))


@pytest.mark.parametrize("case", EDGES[2:4] + geometries(3, seed=2), ids=str)
def test_convolution_dtypes_and_schedules(backend, dtype, scheduled, case):
    with scheduled:
        check_three(backend, *operands(dtype, *case))


@pytest.mark.parametrize("limit", [1, 400, 1500, 6000])
@pytest.mark.parametrize("groups", [1, 2])
def test_columns_in_pieces(backend, monkeypatch, groups, limit):
    """Some windows of an image, some channels, or some images at a time: the buffer keeps to its limit."""
    t, x, w, a = operands(F32, 5, 3, 2, groups, (6, 5), (3, 2), (1, 2), (1, 1), (1, 1))
    whole = check_three(backend, t, x, w, a)
    monkeypatch.setattr(launch, "COLUMNS", limit)
    for got, want in zip(check_three(backend, t, x, w, a), whole):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images, parts, size", [(5, 7, 10), (5, 7, 100), (5, 7, 1000), (1, 1, 1), (300, 3, 16)])
def test_pieces_cover_everything_once_and_fit(monkeypatch, images, parts, size):
    monkeypatch.setattr(launch, "COLUMNS", 640)
    seen, first = np.zeros((images, parts), int), None
    for i, p in launch.pieces(images, parts, size):
        area = launch.length(i) * launch.length(p)
        first = first or area
        assert area == seen[i, p].size <= first
        assert area * size <= 640 or area == 1
        seen[i, p] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_misaligned_views_and_other_layouts(backend, offset):
    t, x, w, a = operands(F32, 3, 2, 2, 2, (5, 6), (3, 3), (1, 1), (1, 0), (1, 1))
    xp = backend.xp

    def moved(array):
        place = xp.empty(array.size + offset, array.dtype)[offset:].reshape(array.shape)
        place[...] = xp.asarray(array)
        return place

    def last(array):  # as the CPU's results lie: the batch last
        return xp.asarray(np.ascontiguousarray(array.transpose(1, 2, 3, 0))).transpose(3, 0, 1, 2)

    for place in (moved, last):
        for name, arrays, extra in [
            ("conv2d", (x, w), {}), ("conv2d_input", (t, w), {"shape": (5, 6)}),
            ("conv2d_weight", (t, x), {"kernel": (3, 3)}),
        ]:  # fmt: skip
            pair = Pair(backend, name)
            got = backend.to_numpy(pair.kernel(*map(place, arrays), **a, **extra))
            check(got, pair.twin(*map(wide, arrays), **a, **extra), F32)


def test_captured_convolutions_are_the_eager_ones(backend, monkeypatch):
    """Several pieces, with new values in the same memory at the launch."""
    monkeypatch.setattr(launch, "COLUMNS", 1500)
    monkeypatch.setattr(backend, "checked", False)  # which waits after every launch
    t, x, w, a = operands(F32, 5, 3, 2, 2, (6, 5), (3, 2), (1, 2), (1, 1), (1, 1))
    fresh = [normal(F32, *array.shape) for array in (t, x, w)]
    t, x, w = (backend.asarray(array) for array in (t, x, w))
    convolve, to_x, to_w = (Pair(backend, name).kernel for name in ("conv2d", "conv2d_input", "conv2d_weight"))

    def work():
        return convolve(x, w, **a), to_x(t, w, shape=(6, 5), **a), to_w(t, x, kernel=(3, 2), **a)

    work()  # compiles and allocates
    with backend.capture() as graph:
        made = work()
    for place, values in zip((t, x, w), fresh):
        place[...] = backend.asarray(values)
    graph.launch()
    for got, want in zip(made, work()):
        assert np.array_equal(backend.to_numpy(got), backend.to_numpy(want))


def test_no_images_go_to_the_twin(backend):
    a = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    x, w, t = np.zeros((0, 2, 4, 4), F32), np.ones((3, 2, 3, 3), F32), np.zeros((0, 3, 2, 2), F32)
    for name, arrays, extra, shape in [
        ("conv2d", (x, w), {}, t.shape), ("conv2d_input", (t, w), {"shape": (4, 4)}, x.shape),
        ("conv2d_weight", (t, x), {"kernel": (3, 3)}, w.shape),
    ]:  # fmt: skip
        run = backend.implement(TABLE[name].fwd, TABLE[name].impls.special)
        got = backend.to_numpy(run(*map(backend.asarray, arrays), **a, **extra))
        assert got.shape == shape
        assert not got.any()


def test_sixteen_bit_convolution_sums_in_float(backend):
    """4096 products of 1: float16 would stop counting at 2048."""
    x, w = np.ones((1, 64, 8, 8), "float16"), np.ones((1, 64, 8, 8), "float16")
    a = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    assert Pair(backend, "conv2d").run(x, w, **a) == 4096
    t = np.ones((1, 4096, 1, 1), "float16")
    assert (Pair(backend, "conv2d_input").run(t, np.ones((4096, 1, 2, 2), "float16"), shape=(2, 2), **a) == 4096).all()


# --- pooling ----------------------------------------------------------------------------------------------------------


def pools(number, seed):
    """Random geometries: (n, c, (h, w), kernel, stride, padding, dilation, ceil_mode)."""
    draw, found = np.random.default_rng(seed), []
    while len(found) < number:
        pair = lambda low, high: tuple(map(int, draw.integers(low, high + 1, 2)))
        image, kernel, stride, dilation, ceil = pair(1, 9), pair(1, 4), pair(1, 3), pair(1, 2), bool(draw.integers(2))
        padding = tuple(int(draw.integers(0, k // 2 + 1)) for k in kernel)
        if min(counts(image, kernel, stride, padding, dilation, ceil)) >= 1:
            found.append(
                (int(draw.integers(1, 4)), int(draw.integers(1, 4)), image, kernel, stride, padding, dilation, ceil)
            )
    return found


def check_max(backend, x, kernel, stride, padding, dilation=(1, 1), ceil=False):
    a = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    y = check_op(backend, "max_pool2d", x, ceil_mode=ceil, **a)
    t, u = normal(x.dtype, *y.shape), normal(x.dtype, *x.shape)
    dx = check_op(backend, "max_pool2d_bwd", t, x, y, **a)
    return y, t, dx, check_op(backend, "max_pool2d_pick", u, x, y, **a)


def check_mean(backend, x, kernel, stride, padding):
    a = {"kernel": kernel, "stride": stride, "padding": padding}
    y = check_op(backend, "avg_pool2d", x, **a)
    check_op(backend, "avg_pool2d_bwd", normal(x.dtype, *y.shape), shape=x.shape[2:], **a)


@pytest.mark.parametrize("case", pools(40, seed=3), ids=str)
def test_pooling_geometries(backend, case):
    """Few different values, so that windows have ties."""
    n, c, image, kernel, stride, padding, dilation, ceil = case
    x = rng.integers(-2, 3, (n, c, *image)).astype(F32)
    check_max(backend, x, kernel, stride, padding, dilation, ceil)
    if min(counts(image, kernel, stride, padding, (1, 1))) >= 1:
        check_mean(backend, normal(F32, n, c, *image), kernel, stride, padding)


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (3, 0, 6, 6), (1, 1, 1, 1), (2, 3, 17, 33)])
def test_pooling_dtypes_and_schedules(backend, dtype, scheduled, shape):
    with scheduled:
        kernel = (1, 1) if shape[2] == 1 else (3, 2)
        check_max(backend, rng.integers(-3, 4, shape).astype(dtype), kernel, (2, 1), (kernel[0] // 2, 0))
        check_mean(backend, normal(dtype, *shape), kernel, (2, 1), (kernel[0] // 2, 0))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_nan_takes_the_gradient_and_infinities_count(backend, padding):
    x = normal(F32, 2, 2, 7, 6)
    x[0, 0, 2, 3] = x[0, 1, 0, 0] = x[0, 1, 0, 1] = x[1, 0, 6, 5] = np.nan
    x[1, 1] = -np.inf
    x[1, 0, :3] = np.inf
    y, t, dx, _ = check_max(backend, x, (3, 3), (2, 2), (padding, padding))
    assert np.isnan(y[0, 0]).any()
    np.testing.assert_allclose(dx.sum(), t.sum(), rtol=1e-5)  # the padding takes nothing
    for plane in np.ndindex(2, 2):
        holds = np.isnan(x[plane])
        if holds.any():
            lost = np.isnan(y[plane])
            np.testing.assert_allclose(dx[plane][holds].sum(), t[plane][lost].sum(), rtol=1e-5)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_pooling_of_misaligned_views(backend, offset):
    a = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    x, xp, pair = normal(F32, 2, 3, 5, 7), backend.xp, Pair(backend, "max_pool2d")
    place = xp.empty(x.size + offset, F32)[offset:].reshape(x.shape)
    place[...] = xp.asarray(x)
    got = backend.to_numpy(pair.kernel(place, ceil_mode=True, **a))
    assert np.array_equal(got, pair.twin(x, ceil_mode=True, **a))
    got = backend.to_numpy(pair.kernel(place[:, :, ::-1, 1:], ceil_mode=False, **a))
    assert np.array_equal(got, pair.twin(x[:, :, ::-1, 1:], ceil_mode=False, **a))


@pytest.mark.parametrize(
    "image, size", [((5, 7), (3, 2)), ((1, 1), (1, 1)), ((2, 3), (4, 5)), ((9, 33), (9, 8)), ((6, 6), (1, 4))]
)
def test_adaptive_average(backend, dtype, image, size):
    check_op(backend, "adaptive_avg_pool2d", normal(dtype, 2, 3, *image), size=size)
    check_op(backend, "adaptive_avg_pool2d_bwd", normal(dtype, 2, 3, *size), shape=image)
