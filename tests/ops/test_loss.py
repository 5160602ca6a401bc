"""Fused cross-entropy against its definition in float64, its corner cases and its errors."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError, RangeError, ShapeError
from gpugrad.op import TABLE
from gpugrad.ops import loss
from gpugrad.ops.loss import bce_logits, softmax_xent
from gpugrad.testing import fake_cupy

RNG = np.random.default_rng(0)


def reference(x, y, w=None, ignore_index=-100, smoothing=0.0):
    """(losses, gradient of their sum) by the textbook, in float64."""
    x, (n, c) = x.astype("float64"), x.shape
    w = np.ones(c) if w is None else w.astype("float64")
    top = x.max(1, keepdims=True)
    log_p = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    if y.ndim == 1:
        rows = np.zeros((n, c))
        counted = y != ignore_index
        rows[np.arange(n)[counted], y[counted]] = 1
    else:
        rows, counted = y.astype("float64"), np.ones(n, bool)
    q = w * ((1 - smoothing) * rows + smoothing / c) * counted[:, None]
    cost = np.where(q == 0, 0, -q * np.where(q == 0, 0, log_p)).sum(1)
    return cost, q.sum(1, keepdims=True) * np.exp(log_p) - q


def ours(x, y, w=None, **options):
    """(losses, gradient of their sum) of the fused op."""
    leaf = gg.tensor(x, requires_grad=True)
    rows = softmax_xent(leaf, gg.tensor(y), None if w is None else gg.tensor(w), **options)
    values = rows.numpy(copy=True)
    rows.sum().backward()
    return values, leaf.grad.numpy()


@pytest.mark.parametrize("classes", [2, 3, 10, 63, 64, 65, 1000, 50_000])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_is_within_2e_6_of_float64(classes, offset):
    """Logits are rounded first: the error is the op's own."""
    x = (3 * RNG.normal(size=(24, classes)) + offset).astype("float32")
    y = RNG.integers(0, classes, 24)
    for options in ({}, {"smoothing": 0.1}):
        (cost, grad), (want, slope) = ours(x, y, **options), reference(x, y, **options)
        assert cost.dtype == grad.dtype == np.float32
        assert np.abs(cost - want).max() < 2e-6
        assert np.abs(grad - slope).max() < 2e-6


def test_large_logits_lose_nothing():
    """At 1e4 a float32 log-sum-exp has an error of 5e-4; the gradient must not see it."""
    x = (1e4 + RNG.normal(size=(50, 7))).astype("float32")
    y = RNG.integers(0, 7, 50)
    for offset in (0, np.float32(-2e4)):
        (cost, grad), (want, slope) = ours(x + offset, y), reference(x + offset, y)
        assert np.abs(cost - want).max() < 2e-6
        assert np.abs(grad - slope).max() < 2e-6


OPTIONS = list(itertools.product((5, 200), ("hard", "soft"), (False, True), (0.0, 0.3)))


@pytest.mark.parametrize("classes, kind, weighted, smoothing", OPTIONS)
@pytest.mark.parametrize("block", [1, 600, 1 << 16])
def test_every_option_matches_the_definition(monkeypatch, classes, kind, weighted, smoothing, block):
    """One row a block, a few (the last one shorter), all at once."""
    monkeypatch.setattr(loss, "BLOCK", block)
    x = RNG.normal(size=(11, classes))
    y = RNG.integers(0, classes, 11) if kind == "hard" else RNG.dirichlet(np.ones(classes), 11)
    w = RNG.uniform(0.5, 2, classes) if weighted else None
    if kind == "hard":
        y[[2, 5]] = -100
    (cost, grad), (want, slope) = ours(x, y, w, smoothing=smoothing), reference(x, y, w, smoothing=smoothing)
    np.testing.assert_allclose(cost, want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grad, slope, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_one_hot_rows_are_hard_labels(smoothing):
    x, y = RNG.normal(size=(6, 5)), RNG.integers(0, 5, 6)
    for a, b in zip(ours(x, y, smoothing=smoothing), ours(x, np.eye(5)[y], smoothing=smoothing)):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_an_ignored_row_has_loss_and_gradient_zero_even_with_nan_logits():
    x, y = RNG.normal(size=(4, 3)), np.array([0, -1, 2, -1])
    x[1], x[3, 0] = np.nan, np.inf
    cost, grad = ours(x, y, ignore_index=-1, smoothing=0.1)
    assert (cost[[1, 3]] == 0).all()
    assert (grad[[1, 3]] == 0).all()
    want, slope = reference(x[[0, 2]], y[[0, 2]], smoothing=0.1)
    np.testing.assert_allclose(cost[[0, 2]], want)
    np.testing.assert_allclose(grad[[0, 2]], slope)


def test_an_ignored_class_may_be_a_valid_one():
    x, y = RNG.normal(size=(3, 4)), np.array([1, 2, 1])
    cost, grad = ours(x, y, ignore_index=1)
    assert cost[[0, 2]].tolist() == [0, 0]
    assert np.abs(grad[[0, 2]]).max() == 0
    assert cost[1] > 0


@pytest.mark.parametrize("classes", [4, 1000])
def test_minus_infinite_logits(classes):
    """Masked classes: they take no probability, and cost nothing unless they are the target."""
    x, y = RNG.normal(size=(3, classes)), np.array([1, 2, 0])
    x[0, 2:] = x[1, :2] = x[2, 0] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost, grad = ours(x, y)
        soft, _ = ours(x[:2], np.eye(classes)[y[:2]])
    two = np.array([[x[0, 0], x[0, 1]], [x[1, 2], x[1, 3]]])
    if classes == 4:
        np.testing.assert_allclose(cost[:2], reference(two, np.array([1, 0]))[0])
    np.testing.assert_allclose(soft, cost[:2], rtol=1e-13)
    assert cost[2] == np.inf
    assert np.isfinite(grad).all()
    assert np.abs(grad[0, 2:]).max() == 0


def test_a_class_of_weight_zero_costs_nothing_at_minus_infinity():
    x, w = np.array([[0.5, -np.inf, 1.0]]), np.array([1.0, 0.0, 2.0])
    for y in (np.array([0]), np.array([1])):
        cost, grad = ours(x, y, w, smoothing=0.3)
        want, slope = reference(x, y, w, smoothing=0.3)
        np.testing.assert_allclose(cost, want)
        np.testing.assert_allclose(grad, slope, atol=1e-15)


def test_cross_entropy_where_the_softmax_underflows():
    """softmax gives exactly 0 for the true class; the loss is 1000, the gradient -1 there."""
    x = np.array([[1000.0, 0.0], [0.0, 0.0]], "float32")
    assert gg.softmax(gg.tensor(x))[0, 1].item() == 0
    cost, grad = ours(x, np.array([1, 0]))
    assert cost[0] == 1000
    assert grad[0].tolist() == [1.0, -1.0]
    assert abs(cost[1] - np.log(2)) < 1e-7


def test_half_precision_sums_in_float32():
    x, y = np.zeros((2, 50_000), "float16"), np.array([0, 49_999])
    cost, grad = ours(x, y)
    assert cost.dtype == grad.dtype == np.float16
    np.testing.assert_allclose(cost, np.log(50_000), rtol=1e-3)
    np.testing.assert_allclose(grad[0, 0], -1, rtol=1e-3)


def test_soft_labels_and_class_weights_get_gradients():
    x, y, w = RNG.normal(size=(4, 3)), RNG.dirichlet(np.ones(3), 4), RNG.uniform(0.5, 2, 3)
    operands = [gg.tensor(a) for a in (x, y, w)]
    for smoothing in (0.0, 0.2):
        f = lambda *a, s=smoothing: softmax_xent(*a, smoothing=s)
        assert gg.gradcheck(f, operands)
        assert gg.gradgradcheck(f, operands)
    hard = gg.tensor(np.array([0, 2, 1, -100]))
    g = lambda x, w: softmax_xent(x, hard, w, smoothing=0.1)
    assert gg.gradcheck(g, [operands[0], operands[2]])
    assert gg.gradgradcheck(g, [operands[0], operands[2]])


def test_hessian_of_cross_entropy():
    """diag(p) - p p', through the recorded backward."""
    x = gg.tensor(RNG.normal(size=(1, 4)))
    y = gg.tensor(np.array([2]))
    p = gg.softmax(x).numpy()[0]
    slope = gg.grad(lambda x: softmax_xent(x, y).sum())
    rows = [gg.grad(lambda x, i=i: slope(x)[0, i])(x).numpy()[0] for i in range(4)]
    np.testing.assert_allclose(rows, np.diag(p) - np.outer(p, p), atol=1e-14)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_a_label_out_of_range_is_named(dtype):
    x = gg.tensor(np.zeros((4, 3), "float32"))
    for bad in (3, 7) if dtype == "uint8" else (3, -1):
        labels = np.array([0, 2, bad, 1], dtype)
        with pytest.raises(RangeError, match=f"label {bad} in row 2; expected 0 to 2, or -100") as error:
            softmax_xent(x, labels)
        assert "softmax_xent(x, labels)" in str(error.value)  # the user's line
    assert softmax_xent(x, np.array([0, 2, 1, 1], dtype)).shape == (4,)


def test_operands_that_do_not_fit():
    x = gg.tensor(np.zeros((4, 3), "float32"))
    with pytest.raises(ShapeError, match=r"float32\[4, 3\], labels int64\[5\]"):
        softmax_xent(x, np.zeros(5, "int64"))
    with pytest.raises(ShapeError, match=r"weight float32\[2\]"):
        softmax_xent(x, np.zeros(4, "int64"), np.ones(2, "float32"))
    with pytest.raises(ShapeError):
        softmax_xent(x[0], np.zeros(3, "int64"))
    with pytest.raises(DTypeError):
        softmax_xent(x, np.zeros(4))
    with pytest.raises(DTypeError):
        softmax_xent(x, np.zeros((4, 3), "int64"))
    with pytest.raises(DTypeError):
        softmax_xent(np.zeros((4, 3), "int64"), np.zeros(4, "int64"))
    with pytest.raises(RangeError, match="smoothing is 2"):
        softmax_xent(x, np.zeros(4, "int64"), smoothing=2)


@pytest.mark.parametrize("classes", [10, 1000])
def test_no_full_size_temporaries(classes):
    """Forward: less than half the logits; backward: the gradient and less than half besides."""
    n = 4_000_000 // classes
    x, y = RNG.normal(size=(n, classes)).astype("float32"), RNG.integers(0, classes, n)
    forward, backward = (TABLE[k].impls[np.ndarray] for k in ("softmax_xent", "softmax_xent_bwd"))
    options = {"ignore_index": -100, "smoothing": 0.0}
    tracemalloc.start()
    _, lse = forward(x, y, None, **options)
    first = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    grad = backward(np.ones(n, "float32"), x, y, None, lse, **options)
    second = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    rows = n * 8 * 8  # a few float64 and int64 numbers a row
    assert first < 0.25 * x.nbytes + rows
    assert second < grad.nbytes + 0.25 * x.nbytes + rows


def test_no_rows_and_views():
    assert softmax_xent(np.zeros((0, 3), "float32"), np.zeros(0, "int64")).shape == (0,)
    x, y = RNG.normal(size=(5, 70)), RNG.integers(0, 5, 70)
    for a, b in zip(ours(x.T, y), ours(x.T.copy(), y)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("classes, kind, weighted, smoothing", OPTIONS)
def test_forwards_serve_another_array_module(classes, kind, weighted, smoothing):
    """The same functions on CuPy's double, which refuses what CuPy refuses."""
    x = RNG.normal(size=(6, classes))
    y = RNG.integers(0, classes, 6) if kind == "hard" else RNG.dirichlet(np.ones(classes), 6)
    w = RNG.uniform(0.5, 2, classes) if weighted else None
    options = {"ignore_index": 1, "smoothing": smoothing}
    t = RNG.normal(size=6)
    device = lambda a: None if a is None else fake_cupy.asarray(a)
    cost, lse = loss._xent(np, x, y, w, **options)
    cost_there, lse_there = loss._xent(fake_cupy, device(x), device(y), device(w), **options)
    np.testing.assert_allclose(cost_there.get(), cost, rtol=1e-12)
    grad = loss._xent_bwd(np, t, x, y, w, lse, **options)
    there = loss._xent_bwd(fake_cupy, device(t), device(x), device(y), device(w), lse_there, **options)
    np.testing.assert_allclose(there.get(), grad, rtol=1e-12, atol=1e-15)


# --- binary cross-entropy -------------------------------------------------------------------------------------


def test_binary_cross_entropy_of_logits():
    x, y = RNG.normal(size=50), RNG.uniform(size=50)
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(bce_logits(x, y).numpy(), -y * np.log(p) - (1 - y) * np.log(1 - p), rtol=1e-12)


def test_the_lecture_s_log_one_plus_exp():
    """log(1 + e^-x) for x = -1 ... -2000 is the loss of logit x with target 1: never inf, slope sigmoid(x) - 1."""
    x = -np.array([1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000])
    leaf = gg.tensor(x, requires_grad=True)
    values = bce_logits(leaf, 1.0)
    want = [1.3133, 2.1269, 5.0067, 10, 20, 50, 100, 200, 500, 1000, 2000]
    np.testing.assert_allclose(values.numpy(), want, rtol=5e-5)
    values.sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), -1 / (1 + np.exp(x)), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy_is_finite_up_to_1e4(dtype):
    x = np.array([-1e4, -100, 0, 100, 1e4], dtype)
    for y in (0.0, 1.0):
        leaf = gg.tensor(x, requires_grad=True)
        cost = bce_logits(leaf, y)
        cost.sum().backward()
        assert cost.dtype == dtype
        np.testing.assert_allclose(
            cost.numpy(), np.maximum((1 - 2 * y) * x, 0) + (x == 0) * np.log(2), rtol=1e-6, atol=1e-6
        )
        np.testing.assert_allclose(leaf.grad.numpy(), (x > 0) + 0.5 * (x == 0) - y, atol=1e-6)


def test_the_gradient_takes_the_memory_of_logits_that_nobody_else_holds(monkeypatch):
    """One array of the logits' size less; a caller who keeps the logits finds them unchanged."""
    x, w, y = RNG.normal(size=(40, 7)), RNG.normal(size=(7, 90)), RNG.integers(0, 90, 40)
    asked, run = [], TABLE["softmax_xent_bwd"].impls[np.ndarray]

    def watched(*arrays, reuse=False, **attrs):
        asked.append(reuse)
        return run(*arrays, reuse=reuse, **attrs)

    monkeypatch.setitem(gg.op.RAW, np.ndarray, gg.op.Raw(np.ndarray))
    monkeypatch.setattr(gg.op.RAW[np.ndarray], "softmax_xent_bwd", watched, raising=False)
    want = None
    for hold in (True, False):
        leaf = gg.tensor(w, requires_grad=True)
        logits = gg.tensor(x) @ leaf
        before = logits.numpy().copy()
        loss = softmax_xent(logits, y).sum()
        if not hold:
            del logits
        loss.backward()
        want = leaf.grad.numpy().copy() if want is None else want
        np.testing.assert_array_equal(leaf.grad.numpy(), want)
        if hold:
            np.testing.assert_array_equal(logits.numpy(), before)
    assert asked == [False, True]


@pytest.mark.parametrize("of", ["weight", "labels"])
def test_other_gradients_do_not_take_the_logits(of):
    x, y, w = RNG.normal(size=(4, 5)), RNG.random((4, 5)), RNG.random(5)
    weight, labels = (gg.tensor(a, requires_grad=of == name) for a, name in ((w, "weight"), (y, "labels")))
    softmax_xent(gg.tensor(x) * 1, labels, weight).sum().backward()
    got = (weight if of == "weight" else labels).grad.numpy()
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    np.testing.assert_allclose(got, -(y * log_p).sum(0) if of == "weight" else -log_p * w)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i4", "i8"])
@pytest.mark.parametrize("ignored, present", [(-100, False), (2, True), (2, False), (120, True), (120, False)])
def test_class_numbers_of_every_integer_type(kind, ignored, present):
    x, y = RNG.normal(size=(6, 5)), np.array([0, 4, 1, 3, 0, 1])
    y[2] = ignored if present else 1
    cost, grad = ours(x, y.astype(kind), ignore_index=ignored)
    for got, want in zip((cost, grad), reference(x, y, ignore_index=ignored)):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
    assert (cost[2] == 0) == present == (not grad[2].any())
    for wrong in (5, -1 if kind[0] == "i" else 255):
        y[4] = wrong
        with pytest.raises(RangeError, match=f"label {wrong} in row 4"):
            softmax_xent(x, y.astype(kind), ignore_index=ignored)
