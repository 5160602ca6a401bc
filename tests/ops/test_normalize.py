"""Softmax and its kin, and the normalisations, against their definitions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError, RangeError, ShapeError
from gpugrad.op import TABLE
from gpugrad.ops import normalize, softmax
from gpugrad.ops.normalize import add_layer_norm, add_rms_norm, batch_norm, group_norm, layer_norm, rms_norm
from gpugrad.testing import fake_cupy

RNG = np.random.default_rng(0)
INF = float("inf")


def gradient(f, *xs):
    """Gradient of sum(f) in every argument, as NumPy arrays."""
    leaves = [gg.tensor(x, requires_grad=True) for x in xs]
    f(*leaves).sum().backward()
    return [leaf.grad.numpy() for leaf in leaves]


# --- softmax --------------------------------------------------------------------------------------------------


def test_the_lectures_numbers():
    soft = lambda *row: gg.softmax(gg.tensor(np.array(row))).numpy()
    np.testing.assert_allclose(soft(1, 2.0), [0.2689, 0.7311], atol=5e-5)
    np.testing.assert_allclose(soft(10, 20.0), [4.54e-5, 0.99995], rtol=1e-3)
    np.testing.assert_array_equal(soft(1000, 1000.0), [0.5, 0.5])
    np.testing.assert_allclose(soft(-1000, -10, -8.0), [0, 0.119, 0.881], atol=5e-4)
    np.testing.assert_allclose(soft(11, 12.0), soft(1, 2.0), rtol=1e-15)  # adding changes nothing


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_softmax_and_logarithm_along_any_axis(axis, dtype):
    x = RNG.normal(size=(3, 4, 5)).astype(dtype)
    e = np.exp(x.astype("float64"))
    want, tol = e / e.sum(axis, keepdims=True), {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for got, target in ((gg.softmax(x, axis), want), (gg.log_softmax(x, axis), np.log(want))):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), target, rtol=tol, atol=tol)
    lse = gg.logsumexp(x, axis)
    assert lse.dtype == dtype
    np.testing.assert_allclose(lse.numpy(), np.log(e.sum(axis)), rtol=tol, atol=tol)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shifts_change_nothing_and_overflow_nothing(shift, dtype):
    x = np.array([[0.0, 1, -2], [3, 3, 3]], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(gg.softmax(x + shift).numpy(), gg.softmax(x).numpy())
        np.testing.assert_array_equal(gg.log_softmax(x + shift).numpy(), gg.log_softmax(x).numpy())
        np.testing.assert_allclose(gg.logsumexp(x + shift, 1).numpy(), gg.logsumexp(x, 1).numpy() + shift, rtol=1e-6)


def test_infinities():
    x = np.array([[-INF, 0.0, 1.0], [-INF, -INF, -INF], [INF, 0.0, -INF]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lse, soft, logs = gg.logsumexp(x, 1), gg.softmax(x), gg.log_softmax(x)
    np.testing.assert_allclose(lse.numpy(), [np.log(1 + np.e), -INF, INF])
    np.testing.assert_allclose(soft[0].numpy(), [0, 1 / (1 + np.e), np.e / (1 + np.e)])
    assert logs[0, 0].item() == -INF
    for rows in (soft, logs):
        assert np.isnan(rows[1].numpy()).all()  # no probability to share out
    (g,) = gradient(lambda a: gg.logsumexp(a, 1), x[:2])
    np.testing.assert_allclose(g, [soft[0].numpy(), [0, 0, 0]])
    (g,) = gradient(lambda a: gg.softmax(a)[:, 1], x[:1])
    assert np.isfinite(g).all()
    (g,) = gradient(lambda a: gg.log_softmax(a)[:, 1], x[:1])
    assert np.isfinite(g).all()


def test_half_precision_is_summed_in_float32():
    x = np.zeros((1, 60_000), "float16")
    np.testing.assert_allclose(gg.logsumexp(x).item(), np.log(60_000), rtol=1e-3)
    np.testing.assert_allclose(gg.softmax(x).numpy()[0, :3], 1 / 60_000, rtol=1e-2)
    np.testing.assert_allclose(gg.log_softmax(x).numpy()[0, :3], -np.log(60_000), rtol=1e-3)


def test_axes_of_logsumexp():
    x = RNG.normal(size=(2, 3, 4))
    for axis in (None, 1, (0, 2), (-1,), ()):
        axes = tuple(range(3)) if axis is None else axis
        want = np.log(np.exp(x).sum(axes, keepdims=True))
        np.testing.assert_allclose(gg.logsumexp(x, axis, keepdims=True).numpy(), want)
        np.testing.assert_allclose(gg.logsumexp(x, axis).numpy(), np.log(np.exp(x).sum(axes)))
    with pytest.raises(RangeError, match="axis 3"):
        gg.logsumexp(x, 3)
    with pytest.raises(RangeError, match="axis -4"):
        gg.softmax(x, -4)


def test_integers_become_the_default_float():
    assert gg.softmax(np.array([1, 2])).dtype == np.float32
    assert gg.logsumexp(gg.tensor(np.array([1, 2]))).dtype == np.float32


# --- normalisations -------------------------------------------------------------------------------------------


def standardized(x, axis, eps=1e-5):
    m, v = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
    return (x - m) / np.sqrt(v + eps)


@pytest.mark.parametrize("shape, last", [((6, 5), (5,)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (2, 3, 4))])
def test_layer_norm(shape, last):
    x, w, b = RNG.normal(size=shape), RNG.uniform(0.5, 2, last), RNG.normal(size=last)
    axis = tuple(range(len(shape) - len(last), len(shape)))
    want = standardized(x, axis)
    np.testing.assert_allclose(layer_norm(x, last).numpy(), want, atol=1e-12)
    np.testing.assert_allclose(layer_norm(x, last, w).numpy(), want * w, atol=1e-12)
    np.testing.assert_allclose(layer_norm(x, last, w, b).numpy(), want * w + b, atol=1e-12)
    np.testing.assert_allclose(layer_norm(x, last, None, b).numpy(), want + b, atol=1e-12)
    operands = [gg.tensor(a) for a in (x, w, b)]
    assert gg.gradcheck(lambda *a: layer_norm(a[0], last, *a[1:]), operands)
    assert gg.gradgradcheck(lambda *a: layer_norm(a[0], last, *a[1:]), operands)


def test_rms_norm():
    x, w = RNG.normal(size=(4, 6)), RNG.uniform(0.5, 2, 6)
    want = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(rms_norm(x, 6, eps=1e-3).numpy(), want, atol=1e-12)
    np.testing.assert_allclose(rms_norm(x, (6,), w, 1e-3).numpy(), want * w, atol=1e-12)
    operands = [gg.tensor(x), gg.tensor(w)]
    assert gg.gradcheck(lambda x, w: rms_norm(x, 6, w), operands)
    assert gg.gradgradcheck(lambda x, w: rms_norm(x, 6, w), operands)


def test_group_norm():
    x, w, b = RNG.normal(size=(2, 6, 3, 2)), RNG.uniform(0.5, 2, 6), RNG.normal(size=6)
    want = standardized(x.reshape(2, 3, -1), 2).reshape(x.shape)
    np.testing.assert_allclose(group_norm(x, 3).numpy(), want, atol=1e-12)
    full = want * w[:, None, None] + b[:, None, None]
    np.testing.assert_allclose(group_norm(x, 3, w, b).numpy(), full, atol=1e-12)
    assert gg.gradcheck(lambda *a: group_norm(a[0], 3, *a[1:]), [gg.tensor(a) for a in (x, w, b)])


def both(pair):
    """One number of two outputs, in which neither can be mistaken for the other."""
    y, total = pair
    return (y * y * y).sum() + (total * total).sum()


@pytest.mark.parametrize("shape, last", [((4, 6), 6), ((2, 3, 4), (3, 4))])
def test_a_residual_is_added_and_normalised_in_one_pass(shape, last):
    operands = [gg.tensor(RNG.normal(size=s), requires_grad=True) for s in (shape, shape, last, last)]
    x, r, w, b = operands
    for fused, plain, params in (
        (add_layer_norm, layer_norm, (w, b)), (add_layer_norm, layer_norm, (w,)), (add_layer_norm, layer_norm, ()),
        (add_rms_norm, rms_norm, (w,)), (add_rms_norm, rms_norm, ()),
    ):  # fmt: skip
        y, total = fused(x, r, last, *params)
        np.testing.assert_array_equal(total.numpy(), x.numpy() + r.numpy())
        np.testing.assert_allclose(y.numpy(), plain(x + r, last, *params).numpy(), atol=1e-14)
        f = lambda *a, fused=fused: both(fused(a[0], a[1], last, *a[2:]))
        g = lambda *a, plain=plain: both((plain(a[0] + a[1], last, *a[2:]), a[0] + a[1]))
        given = [x, r, *params]
        for got, want in zip(gg.gradients([f(*given)], given), gg.gradients([g(*given)], given)):
            np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-12)
        assert gg.gradcheck(f, given)
        assert gg.gradgradcheck(f, given)


def test_each_output_of_a_residual_norm_can_be_used_alone():
    x, r = (gg.tensor(RNG.normal(size=(3, 4)), requires_grad=True) for _ in range(2))
    for k in (0, 1):
        f = lambda x, r, k=k: add_layer_norm(x, r, 4)[k]
        assert gg.gradcheck(f, [x, r])
        assert gg.gradgradcheck(f, [x, r])


def test_the_gradients_of_a_residual_norm_share_no_memory():
    x, r = (gg.tensor(RNG.normal(size=(3, 4)), requires_grad=True) for _ in range(2))
    both(add_layer_norm(x, r, 4)).backward()
    np.testing.assert_array_equal(x.grad.numpy(), r.grad.numpy())
    assert not np.shares_memory(x.grad.data, r.grad.data)


def test_a_residual_norm_promotes_and_refuses_other_shapes():
    x = gg.tensor(np.ones((2, 3), "float32"))
    y, total = add_rms_norm(x, gg.tensor(np.ones((2, 3))), 3)
    assert y.dtype == total.dtype == np.float64
    with pytest.raises(ShapeError, match=r"add_layer_norm.*differ in shape"):
        add_layer_norm(x, gg.tensor(np.ones(3, "float32")), 3)
    with pytest.raises(ShapeError, match=r"add_rms_norm.*normalized_shape \[2\]"):
        add_rms_norm(x, x, 2)


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5), (2, 3, 4, 2)])
def test_batch_norm_in_training(shape):
    x, w, b = RNG.normal(size=shape) + 2, RNG.uniform(0.5, 2, 3), RNG.normal(size=3)
    axis, spread = (0, *range(2, len(shape))), (3, *(1 for _ in shape[2:]))
    mean, var = gg.tensor(np.full(3, 0.5)), gg.tensor(np.full(3, 4.0))
    buffers = mean.data, var.data
    out = batch_norm(x, mean, var, w, b, training=True, momentum=0.2)
    np.testing.assert_allclose(out.numpy(), standardized(x, axis) * w.reshape(spread) + b.reshape(spread), atol=1e-12)
    np.testing.assert_allclose(mean.numpy(), 0.8 * 0.5 + 0.2 * x.mean(axis), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), 0.8 * 4.0 + 0.2 * x.var(axis, ddof=1), rtol=1e-12)
    assert mean.data is buffers[0]  # in place: a captured step keeps the address
    assert var.data is buffers[1]
    operands = [gg.tensor(a) for a in (x, w, b)]
    f = lambda x, w, b: batch_norm(x, None, None, w, b, training=True)
    assert gg.gradcheck(f, operands)
    assert gg.gradgradcheck(f, operands)


def test_batch_norm_in_evaluation_without_running_statistics_uses_the_batch():
    x = RNG.normal(size=(5, 3))
    np.testing.assert_array_equal(batch_norm(x, None, None).numpy(), batch_norm(x, None, None, training=True).numpy())


def test_batch_norm_in_evaluation_is_affine_in_the_running_statistics():
    x, w, b = RNG.normal(size=(4, 3, 2)), RNG.uniform(0.5, 2, 3), RNG.normal(size=3)
    m, v = RNG.normal(size=3), RNG.uniform(0.5, 2, 3)
    col = lambda a: a[:, None]
    want = (x - col(m)) / np.sqrt(col(v) + 1e-5)
    mean, var = gg.tensor(m), gg.tensor(v)
    np.testing.assert_allclose(batch_norm(x, mean, var).numpy(), want, atol=1e-12)
    np.testing.assert_allclose(batch_norm(x, mean, var, w, b).numpy(), want * col(w) + col(b), atol=1e-12)
    assert mean.numpy().tolist() == m.tolist()
    operands = [gg.tensor(a) for a in (x, w, b)]
    assert gg.gradcheck(lambda x, w, b: batch_norm(x, mean, var, w, b), operands)


def test_batch_statistics_are_differentiable_outputs():
    """The table op hands out mean and variance; gradients flow through them too."""
    x = gg.tensor(RNG.normal(size=(6, 2)), requires_grad=True)
    _, mean, var = TABLE["batch_norm"].call(x, gg.tensor(np.ones((2,))), None, axis=(0,), eps=1e-5)
    (mean * 3.0 + var).sum().backward()
    want = 3 / 6 + 2 * (x.numpy() - x.numpy().mean(0)) / 6
    np.testing.assert_allclose(x.grad.numpy(), want, atol=1e-14)


def test_normalisations_keep_their_dtype_and_sum_halves_in_float32():
    for dtype in ("float16", "float32"):
        x = (RNG.normal(size=(3, 4000)) + 30).astype(dtype)
        want = standardized(x.astype("float64"), 1)
        w = np.ones(4000, dtype)
        for out in (layer_norm(x, 4000, w, w), layer_norm(x, 4000)):
            assert out.dtype == dtype
        np.testing.assert_allclose(layer_norm(x, 4000).numpy(), want, atol=3e-3 if dtype == "float16" else 2e-5)
        grads = gradient(lambda *a: layer_norm(a[0], 4000, *a[1:]), x, w, w)
        assert all(g.dtype == dtype for g in grads)


def test_errors_name_the_shapes():
    x = gg.tensor(np.zeros((4, 3), "float32"))
    with pytest.raises(ShapeError, match=r"float32\[4, 3\] does not end in normalized_shape \[4\]"):
        layer_norm(x, 4)
    with pytest.raises(ShapeError, match=r"float32\[2\].*expected parameters of shape \[3\]"):
        layer_norm(x, 3, gg.tensor(np.ones(2, "float32")))
    with pytest.raises(ShapeError, match=r"expected parameters of shape \[3\]"):
        batch_norm(x, gg.zeros(4), gg.ones(4))
    with pytest.raises(ShapeError, match="1 value a channel"):
        batch_norm(x[:1], None, None, training=True)
    with pytest.raises(ShapeError, match="do not divide into 2 groups"):
        group_norm(x, 2)
    with pytest.raises(ShapeError, match="expected at least 2"):
        batch_norm(x[0], None, None, training=True)
    with pytest.raises(DTypeError):
        layer_norm(np.zeros((2, 3), "int64"), 3)


def test_forwards_serve_another_array_module():
    """The same functions on CuPy's double, which refuses what CuPy refuses."""
    device = fake_cupy.asarray
    x, t, w = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6)), RNG.uniform(0.5, 2, 6)
    for function in (softmax._softmax, softmax._log_softmax):
        np.testing.assert_allclose(function(fake_cupy, device(x), axis=1).get(), function(np, x, axis=1))
    got = softmax._logsumexp(fake_cupy, device(x), axis=(0,), keepdims=False).get()
    np.testing.assert_allclose(got, softmax._logsumexp(np, x, axis=(0,), keepdims=False))
    for centred in (True, False):
        a = {"axis": (1,), "eps": 1e-5, "centred": centred}
        y, (m, r) = normalize._layer_norm(fake_cupy, device(x), device(w), device(w), **a)
        np.testing.assert_allclose(y.get(), normalize._layer_norm(np, x, w, w, **a)[0])
        wanted = normalize._layer_norm_bwd(np, t, x, w, None, None, **a)
        for statistics in ((m, r), (None, None)):
            found = normalize._layer_norm_bwd(fake_cupy, device(t), device(x), device(w), *statistics, **a)
            for g, want in zip(found, wanted):
                np.testing.assert_allclose(g.get(), want, atol=1e-14)
