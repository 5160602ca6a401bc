"""Convolution and pooling against loops over their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError, ShapeError
from gpugrad.op import TABLE
from gpugrad.ops import conv
from gpugrad.testing import fake_cupy

RNG = np.random.default_rng(0)


def naive_conv(x, w, stride, padding, dilation, groups):
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    (n, _, h, width), (o, c, kh, kw) = x.shape, w.shape
    oh = (h - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((n, o, oh, ow))
    for b, k, i, j in itertools.product(range(n), range(o), range(oh), range(ow)):
        first = k // (o // groups) * c
        patch = x[b, first : first + c, i * stride[0] :, j * stride[1] :]
        patch = patch[:, : dilation[0] * (kh - 1) + 1 : dilation[0], : dilation[1] * (kw - 1) + 1 : dilation[1]]
        out[b, k, i, j] = (patch * w[k]).sum()
    return out


CASES = [
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 5, 6), (4, 3, 3, 2), (2, 1), (1, 2), (1, 1), 1),
    ((1, 4, 9, 8), (6, 2, 3, 3), (2, 3), (2, 1), (2, 1), 2),
    ((3, 4, 7, 7), (8, 1, 3, 3), (1, 2), (1, 1), (1, 2), 4),
    ((2, 3, 4, 4), (5, 3, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2, 3, 5), (3, 2, 3, 5), (1, 1), (0, 0), (1, 1), 1),
    ((2, 4, 6, 7), (4, 2, 3, 3), (1, 1), (2, 1), (2, 1), 2),
    ((2, 3, 5, 5), (3, 3, 2, 2), (1, 1), (2, 2), (1, 1), 1),
]


@pytest.mark.parametrize("xs, ws, stride, padding, dilation, groups", CASES)
@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_conv2d_matches_its_definition(monkeypatch, xs, ws, stride, padding, dilation, groups, chunk):
    """Whole or one output row at a time; a batch-last input gives the same."""
    monkeypatch.setattr(conv, "CHUNK", chunk)
    monkeypatch.setattr(conv, "CHUNK_ADJOINT", chunk)
    x, w = RNG.normal(size=xs), RNG.normal(size=ws)
    want = naive_conv(x, w, stride, padding, dilation, groups)
    a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    np.testing.assert_allclose(conv.conv2d(x, w, **a).numpy(), want, atol=1e-12)
    batch_last = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(conv.conv2d(batch_last, w, **a).numpy(), want, atol=1e-12)
    t = RNG.normal(size=want.shape)  # <t, conv(x, w)> = <conv_input(t, w), x> = <conv_weight(t, x), w>
    whole = (t * want).sum()
    to_x = TABLE["conv2d_input"].impls[np.ndarray](t, w, shape=xs[2:], **a)
    to_w = TABLE["conv2d_weight"].impls[np.ndarray](t, x, kernel=ws[2:], **a)
    assert to_x.shape == xs
    assert to_w.shape == ws
    assert abs((to_x * x).sum() - whole) < 1e-10
    assert abs((to_w * w).sum() - whole) < 1e-10
    assert to_x.transpose(1, 2, 3, 0).flags.c_contiguous


def test_slopes_of_images_by_either_way():
    """Of many pixels they are a convolution with the kernel turned round, of few a sum over the taps."""
    w = RNG.normal(size=(8, 2, 3, 3))
    a = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
    t = RNG.normal(size=(3, 8, 6, 5))
    halves = [
        TABLE["conv2d_input"].impls[np.ndarray](t[:, k], w[k], shape=(6, 5), **a)
        for k in (np.r_[0:2, 4:6], np.r_[2:4, 6:8])  # o h w = 4 30 < 2 c 30: turned round; both at once: 8 30 is not
    ]
    whole = TABLE["conv2d_input"].impls[np.ndarray](t, w, shape=(6, 5), **a)
    np.testing.assert_allclose(whole, halves[0] + halves[1], atol=1e-12)


def test_conv2d_accepts_integers_for_pairs_and_keeps_float32_and_float16():
    x, w = RNG.normal(size=(2, 3, 6, 6)).astype("float32"), RNG.normal(size=(4, 3, 3, 3)).astype("float32")
    want = naive_conv(x, w, (2, 2), (1, 1), (1, 1), 1)
    out = conv.conv2d(x, w, stride=2, padding=1)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.numpy(), want, atol=1e-5)
    half = conv.conv2d(x.astype("float16"), w.astype("float16"), stride=2, padding=1)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.numpy(), want, atol=2e-2)


def test_half_precision_convolution_sums_in_float32():
    """4096 products of 1: float16 would stop counting at 2048."""
    x, w = np.ones((1, 64, 8, 8), "float16"), np.ones((1, 64, 8, 8), "float16")
    assert conv.conv2d(x, w).item() == 4096.0


def test_conv1d_is_a_flat_conv2d():
    x, w = RNG.normal(size=(2, 4, 9)), RNG.normal(size=(6, 2, 3))
    want = naive_conv(x[:, :, None], w[:, :, None], (1, 2), (0, 1), (1, 2), 2)[:, :, 0]
    np.testing.assert_allclose(conv.conv1d(x, w, stride=2, padding=1, dilation=2, groups=2).numpy(), want, atol=1e-12)


def test_conv_transpose1d_is_a_flat_conv_transpose2d():
    x, w = RNG.normal(size=(2, 4, 5)), RNG.normal(size=(4, 3, 3))
    got = conv.conv_transpose1d(x, w, stride=(2,), padding=1, output_padding=(1,), groups=2)
    a = {"stride": (1, 2), "padding": (0, 1), "output_padding": (0, 1), "groups": 2}
    want = conv.conv_transpose2d(x[:, :, None], w[:, :, None], **a).numpy()[:, :, 0]
    assert got.shape == (2, 6, (5 - 1) * 2 - 2 + 2 + 1 + 1)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: conv.conv1d(x[0], x),
        lambda x: conv.conv_transpose1d(x, x[0]),
        lambda x: conv.max_pool1d(x[0], 2),
        lambda x: conv.avg_pool1d(x[0], 2),
    ],
)
def test_signals_have_three_axes(call):
    with pytest.raises(ShapeError, match=r"expected \(N, C, L\)"):
        call(np.zeros((2, 2, 5)))


def test_conv_transpose2d_is_the_adjoint_and_has_the_documented_size():
    x, w = RNG.normal(size=(2, 4, 3, 5)), RNG.normal(size=(4, 3, 3, 2))
    out = conv.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)
    assert out.shape == (2, 3, (3 - 1) * 2 - 2 + 2 + 1 + 1, (5 - 1) * 2 - 2 + 1 + 1 + 1)
    y = RNG.normal(size=out.shape)
    forward = conv.conv2d(y, w, stride=2, padding=1)
    assert abs((forward.numpy() * x).sum() - (out.numpy() * y).sum()) < 1e-10


@pytest.mark.parametrize("stride, dilation, extra", [(1, 2, 1), (1, 3, 2), (2, 3, 2), (2, 1, 1), (1, 1, 0)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_output_padding_up_to_stride_or_dilation(stride, dilation, extra, padding):
    """By the definition: every pixel spreads its kernel; what lies beyond the last one is 0. And its gradients."""
    x, w = RNG.normal(size=(1, 2, 6, 5)), RNG.normal(size=(2, 3, 2, 2))
    a = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    whole = np.zeros((1, 3, *(stride * (n - 1) + dilation + 1 + extra for n in (6, 5))))
    for i, j, k, m in np.ndindex(6, 5, 2, 2):
        whole[:, :, i * stride + k * dilation, j * stride + m * dilation] += x[:, :, i, j] @ w[:, :, k, m]
    # the padding is cut off at both ends, of what there was before output_padding was added
    want = whole[:, :, padding : whole.shape[2] - padding, padding : whole.shape[3] - padding]
    np.testing.assert_allclose(conv.conv_transpose2d(x, w, **a).numpy(), want, rtol=1e-12, atol=1e-12)
    assert gg.gradcheck(lambda x, w: conv.conv_transpose2d(x, w, **a), [gg.tensor(x), gg.tensor(w)])


def test_third_derivative_of_convolution():
    """f(s) = sum(conv(s x, s^2 w)) = s^3 f(1), so f''' = 6 f(1)."""
    x, w = gg.tensor(RNG.normal(size=(1, 2, 4, 4))), gg.tensor(RNG.normal(size=(2, 2, 3, 3)))
    f = lambda s: conv.conv2d(s * x, s * s * w, padding=1).sum()
    third = gg.grad(gg.grad(gg.grad(f)))(gg.tensor(np.array(0.7)))
    assert abs(third.item() - 6 * f(gg.tensor(np.array(1.0))).item()) < 1e-9


@pytest.mark.parametrize(
    "xs, ws, options, said",
    [
        ((2, 3, 5, 5), (4, 2, 3, 3), {}, ["float64[2, 3, 5, 5]", "float64[4, 2, 3, 3]", "groups 1"]),
        ((2, 4, 5, 5), (3, 2, 3, 3), {"groups": 2}, ["multiple of 2", "and 3"]),
        ((2, 3, 2, 5), (4, 3, 3, 3), {}, ["does not fit", "0 x 3"]),
        ((3, 5, 5), (4, 3, 3, 3), {}, ["3 axes"]),
        ((2, 3, 5, 5), (4, 3, 3), {}, ["O, C/groups, kh, kw"]),
        ((2, 3, 5, 5), (4, 3, 3, 3), {"stride": 0}, ["stride is 0"]),
        ((2, 3, 5, 5), (4, 3, 3, 3), {"padding": (1, 2, 3)}, ["padding is (1, 2, 3)"]),
    ],
)
def test_conv2d_errors_name_the_shapes(xs, ws, options, said):
    with pytest.raises(ShapeError) as error:
        conv.conv2d(np.zeros(xs), np.zeros(ws), **options)
    assert all(s in str(error.value) for s in ["[conv2d]", *said])


def test_conv2d_refuses_a_fractional_stride():
    with pytest.raises(DTypeError, match=r"stride is 1\.5"):
        conv.conv2d(np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 1, 1)), stride=1.5)


# --- pooling --------------------------------------------------------------------------------------------------


def windows(x, k, s, p, d, out, fill):
    """(index of the window, flat pixels under it in row-major order, their coordinates)."""
    n, c, h, w = x.shape
    for b, ch, i, j in itertools.product(range(n), range(c), range(out[0]), range(out[1])):
        at = [(i * s[0] - p[0] + a * d[0], j * s[1] - p[1] + e * d[1]) for a in range(k[0]) for e in range(k[1])]
        yield (b, ch, i, j), [x[b, ch, y, z] if 0 <= y < h and 0 <= z < w else fill for y, z in at], at


POOLS = [
    ((2, 2, 6, 4), (2, 2), (2, 2), (0, 0), (1, 1), False, (3, 2)),
    ((1, 2, 7, 5), (2, 2), (2, 2), (0, 0), (1, 1), False, (3, 2)),
    ((1, 2, 7, 5), (2, 2), (2, 2), (0, 0), (1, 1), True, (4, 3)),
    ((2, 1, 6, 7), (3, 2), (2, 1), (1, 1), (1, 1), False, (3, 8)),
    ((1, 1, 7, 8), (3, 2), (1, 3), (1, 0), (2, 3), False, (5, 2)),
    ((1, 1, 5, 5), (2, 2), (3, 3), (1, 1), (1, 1), True, (2, 2)),
]


@pytest.mark.parametrize("xs, k, s, p, d, ceil, out", POOLS)
def test_max_pool2d_and_its_gradient_match_their_definition(xs, k, s, p, d, ceil, out):
    """Small integers, so that windows have ties: the first pixel of the window takes the gradient."""
    x = RNG.integers(0, 4, xs).astype("float64")
    t = RNG.normal(size=(*xs[:2], *out))
    want, grad = np.zeros(t.shape), np.zeros(xs)
    for at, pixels, places in windows(x, k, s, p, d, out, -np.inf):
        first = int(np.argmax(pixels))
        want[at] = pixels[first]
        grad[(*at[:2], *places[first])] += t[at]
    leaf = gg.tensor(x, requires_grad=True)
    y = conv.max_pool2d(leaf, k, s, p, d, ceil)
    np.testing.assert_array_equal(y.numpy(), want)
    y.backward(gg.tensor(t))
    np.testing.assert_allclose(leaf.grad.numpy(), grad, atol=1e-14)
    picked = TABLE["max_pool2d_pick"].impls[np.ndarray](x, x, want, kernel=k, stride=s, padding=p, dilation=d)
    np.testing.assert_array_equal(picked, want)


@pytest.mark.parametrize("xs, k, s, p, d, ceil, out", [c for c in POOLS if c[4] == (1, 1) and not c[5]])
def test_avg_pool2d_matches_its_definition(xs, k, s, p, d, ceil, out):
    x = RNG.normal(size=xs)
    want = np.zeros((*xs[:2], *out))
    for at, pixels, _ in windows(x, k, s, p, d, out, 0.0):
        want[at] = np.sum(pixels) / (k[0] * k[1])
    np.testing.assert_allclose(conv.avg_pool2d(x, k, s, p).numpy(), want, atol=1e-14)


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_a_nan_is_the_largest_pixel_and_takes_the_gradient(kernel, stride, padding):
    """In every window that holds one; others are not touched."""
    x = RNG.normal(size=(1, 2, 6, 6))
    x[0, 0, 2, 3] = np.nan
    leaf = gg.tensor(x, requires_grad=True)
    y = conv.max_pool2d(leaf, kernel, stride, padding)
    t = RNG.normal(size=y.shape)
    y.backward(gg.tensor(t))
    lost, grad = np.isnan(y.numpy()), leaf.grad.numpy()
    assert lost.any()
    assert not lost[0, 1].any()
    np.testing.assert_allclose(grad[0, 0, 2, 3], t[lost].sum())
    np.testing.assert_allclose(grad.sum(), t.sum())
    u = RNG.normal(size=x.shape)
    tangent = TABLE["max_pool2d_pick"].impls[np.ndarray](
        u, x, y.numpy(), kernel=(kernel,) * 2, stride=(stride,) * 2, padding=(padding,) * 2, dilation=(1, 1)
    )
    assert (tangent[lost] == u[0, 0, 2, 3]).all()
    np.testing.assert_allclose((tangent * t).sum(), (u * grad).sum())  # the adjoint


def test_the_padding_never_takes_the_gradient():
    """Not even beside pixels that are -inf as it is."""
    leaf = gg.tensor(np.full((1, 1, 4, 4), -np.inf), requires_grad=True)
    y = conv.max_pool2d(leaf, 3, 2, 1)
    y.backward(gg.ones(y.shape, dtype=gg.float64))
    assert leaf.grad.numpy().tolist() == [[[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("last", [False, True])
def test_pooling_keeps_the_layout(last):
    """Batch-last results, such as convolutions give, stay so, with and without padding."""
    x = RNG.normal(size=(3, 2, 6, 5))
    x = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2) if last else x
    for padding in ((0, 0), (1, 1)):
        a = {"kernel": (2, 2), "stride": (2, 2), "padding": padding, "dilation": (1, 1)}
        y = conv._max_pool2d(np, x, ceil_mode=False, **a)
        for array in (y, conv._max_pool2d_bwd(np, y, x, y, **a)):
            assert (array if not last else array.transpose(1, 2, 3, 0)).flags.c_contiguous


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bit_types(name):
    """Convolved and averaged in float32, rounded once."""
    dtype = np.dtype(name) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x, w = RNG.normal(size=(2, 3, 6, 5)).astype(dtype), RNG.normal(size=(4, 3, 3, 2)).astype(dtype)
    wide = conv.conv2d(x.astype("float32"), w.astype("float32"), padding=1).numpy()
    got = conv.conv2d(x, w, padding=1)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.numpy(), wide.astype(dtype))
    np.testing.assert_array_equal(
        conv.max_pool2d(x, 2, padding=1).numpy(), conv.max_pool2d(x.astype("f4"), 2, padding=1)
    )
    want = conv.avg_pool2d(x.astype("float32"), 2, padding=1).numpy().astype(dtype)
    np.testing.assert_array_equal(conv.avg_pool2d(x, 2, padding=1).numpy(), want)


def test_stride_defaults_to_the_kernel_and_integers_pool_too():
    x = np.arange(16).reshape(1, 1, 4, 4)
    assert conv.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]
    assert conv.max_pool1d(np.arange(6.0).reshape(1, 1, 6), 3).tolist() == [[[2.0, 5.0]]]
    assert conv.max_pool1d(np.arange(5.0).reshape(1, 1, 5), (3,), ceil_mode=True).tolist() == [[[2.0, 4.0]]]
    assert conv.avg_pool1d(np.arange(6.0).reshape(1, 1, 6), 3).tolist() == [[[1.0, 4.0]]]


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (1, 1), (5, 4)])
def test_adaptive_average(size):
    x = RNG.normal(size=(2, 3, 6, 5))
    want = np.zeros((2, 3, *size))
    for i, j in np.ndindex(*size):
        rows = slice(i * 6 // size[0], -(-(i + 1) * 6 // size[0]))
        cols = slice(j * 5 // size[1], -(-(j + 1) * 5 // size[1]))
        want[:, :, i, j] = x[:, :, rows, cols].mean((2, 3))
    np.testing.assert_allclose(conv.adaptive_avg_pool2d(x, size).numpy(), want, atol=1e-14)
    assert gg.gradcheck(lambda a: conv.adaptive_avg_pool2d(a, size), [gg.tensor(x)])


def test_pooling_errors():
    x = np.zeros((1, 1, 3, 3))
    with pytest.raises(ShapeError, match="does not fit"):
        conv.max_pool2d(x, 4)
    with pytest.raises(ShapeError, match="more than half"):
        conv.avg_pool2d(x, 2, padding=2)
    with pytest.raises(ShapeError, match="expected \\(N, C, H, W\\)"):
        conv.max_pool2d(x[0], 2)


def test_forwards_serve_another_array_module():
    """The same functions on CuPy's double, which refuses what CuPy refuses."""
    device = fake_cupy.asarray
    x, w = RNG.normal(size=(2, 4, 6, 5)), RNG.normal(size=(4, 2, 3, 2))
    a = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    y = conv._conv2d(np, x, w, **a)
    np.testing.assert_allclose(conv._conv2d(fake_cupy, device(x), device(w), **a).get(), y)
    got = conv._conv2d_input(fake_cupy, device(y), device(w), shape=(6, 5), **a).get()
    np.testing.assert_allclose(got, conv._conv2d_input(np, y, w, shape=(6, 5), **a))
    got = conv._conv2d_weight(fake_cupy, device(y), device(x), kernel=(3, 2), **a).get()
    np.testing.assert_allclose(got, conv._conv2d_weight(np, y, x, kernel=(3, 2), **a))
    p = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0), "dilation": (1, 1)}
    m = conv._max_pool2d(np, x, ceil_mode=False, **p)
    np.testing.assert_array_equal(conv._max_pool2d(fake_cupy, device(x), ceil_mode=False, **p).get(), m)
    for function in (conv._max_pool2d_bwd, conv._max_pool2d_pick):
        t = m if function is conv._max_pool2d_bwd else x
        np.testing.assert_array_equal(
            function(fake_cupy, device(t), device(x), device(m), **p).get(), function(np, t, x, m, **p)
        )
    del p["dilation"]
    mean = conv._avg_pool2d(np, x, **p)
    np.testing.assert_array_equal(conv._avg_pool2d(fake_cupy, device(x), **p).get(), mean)
    got = conv._avg_pool2d_bwd(fake_cupy, device(mean), shape=(6, 5), **p).get()
    np.testing.assert_array_equal(got, conv._avg_pool2d_bwd(np, mean, shape=(6, 5), **p))
