"""Reductions by hand: every axis combination, ties, empty axes, accumulation, norms, cumulative functions."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import gradcheck, gradgradcheck
from gpugrad.ops._axes import normalize_axis, one_axis
from gpugrad.ops._sums import ROWS, dots

AXES = [None, *range(-4, 4), *[c for k in range(5) for c in itertools.combinations(range(4), k)], (-1, 0), (3, 1)]


def leaf(values, dtype="float64"):
    return gg.Tensor(np.asarray(values, dtype)).requires_grad_()


def distinct(*shape):
    n = math.prod(shape)
    return (np.random.default_rng(2).permutation(n) * 0.1 - 0.05 * n + 0.013).reshape(shape)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "prod", "max", "min", "norm", "logsumexp"])
def test_every_axis_combination_of_a_4d_tensor(name, axis):
    x = distinct(2, 3, 1, 2) + (3.0 if name == "prod" else 0.0)
    numpys = {
        "norm": np.linalg.vector_norm,
        "logsumexp": lambda x, **along: np.log(np.sum(np.exp(x), **along)),
    }.get(name) or getattr(np, name)
    if name == "std" and axis in (-2, 2, (), (2,)):
        return  # one element: the deviation is constantly 0, which no difference quotient is asked to resolve
    for keepdims in (False, True):
        f, want = getattr(gg, name), numpys(x, axis=axis, keepdims=keepdims)
        got = f(gg.Tensor(x), axis, keepdims=keepdims)
        assert got.shape == np.shape(want)
        np.testing.assert_allclose(got.data, want, rtol=1e-13, atol=1e-13)
        assert gradcheck(lambda v, f=f, keepdims=keepdims: f(v, axis, keepdims=keepdims), [gg.Tensor(x)])


@pytest.mark.parametrize("correction", [1, 2])
@pytest.mark.parametrize("axis", [None, 0, -1, (1, 3), (0, 1, 2, 3)], ids=str)
def test_variance_with_fewer_degrees_of_freedom(axis, correction):
    x = distinct(3, 4, 1, 3)
    for name in ("var", "std"):
        f = getattr(gg, name)
        want = getattr(np, name)(x, axis=axis, ddof=correction)
        np.testing.assert_allclose(f(gg.Tensor(x), axis, correction=correction).data, want, rtol=1e-13)
        assert gradcheck(lambda v, f=f: f(v, axis, correction=correction), [gg.Tensor(x)])


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["max", "min", "amax"])
def test_ties_share_evenly_over_every_axis(name, axis):
    """Three values in twelve places; by the definition: the cotangent over the number of equal extremes."""
    x = np.random.default_rng(3).integers(0, 3, (2, 3, 1, 2)).astype("float64")
    f = (lambda v, *a, **k: gg.norm(v, *a, ord=math.inf, **k)) if name == "amax" else getattr(gg, name)
    whole = (np.max if name != "min" else np.min)(x, axis=axis, keepdims=True)
    chosen = x == whole
    t = np.random.default_rng(4).normal(size=whole.shape)
    want = t * chosen / chosen.sum(axis=axis, keepdims=True)
    v = leaf(x)
    f(v, axis, keepdims=True).backward(gg.Tensor(t))
    np.testing.assert_allclose(v.grad.data, want * (x > 0) if name == "amax" else want, rtol=1e-13)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_empty_axes_are_refused_wherever_they_are(name, axis):
    """Of shape (2, 0, 1, 2): refused where axis 1 is reduced, empty results elsewhere."""
    x = gg.Tensor(np.zeros((2, 0, 1, 2)))
    axes = normalize_axis(axis, 4, name)
    if name.startswith("arg") and (axis is not None and len(axes) != 1):
        return
    along = axes[0] if name.startswith("arg") and axis is not None else axis
    if 1 in axes:
        with pytest.raises(gg.errors.ShapeError, match=rf"\[{name}\] .*an empty axis has no {name}"):
            getattr(gg, name)(x, along)
    else:
        assert getattr(gg, name)(x, along).size == 0


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_truth_and_count_over_every_axis(axis):
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 1, 2))
    for keepdims in (False, True):
        for name in ("all", "any", "count_nonzero"):
            got = getattr(gg, name)(gg.Tensor(x), axis, keepdims=keepdims)
            want = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got.data, want)


def test_argmax_and_argmin():
    x = np.array([[3.0, 1.0, 3.0], [0.0, 7.0, 0.0]])
    t = leaf(x)
    for axis, keepdims in itertools.product((None, 0, 1, -1), (False, True)):
        for name in ("argmax", "argmin"):
            got, want = (
                getattr(gg, name)(t, axis, keepdims=keepdims),
                getattr(np, name)(x, axis=axis, keepdims=keepdims),
            )
            assert (got.dtype, got.requires_grad) == (np.int64, False)
            np.testing.assert_array_equal(got.data, want)


# --- axes -------------------------------------------------------------------------------------------------------


def test_axis_normalisation():
    assert normalize_axis(None, 3, "f") == (0, 1, 2)
    assert normalize_axis([-1, 0], 3, "f") == (2, 0)
    assert normalize_axis(np.int64(1), 3, "f") == (1,)
    assert one_axis(-3, 3, "f") == 0


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda x: x.sum(3), "RangeError", r"\[sum\] axis 3 is out of range for a 2-d array; expected -2 <= axis < 2"),
        (lambda x: x.mean((0, 0)), "ShapeError", r"\[mean\] axis \(0, 0\) names an axis of a 2-d array twice"),
        (lambda x: x.max((0, -2)), "ShapeError", r"\[max\] axis \(0, -2\) names"),
        (lambda x: x.sum(1.5), "DTypeError", r"\[sum\] axis is 1.5; expected an integer"),
        (lambda x: gg.sum(gg.tensor(1.0), 0), "RangeError", r"0-d array; expected no axis at all"),
        (
            lambda x: x[:0].max(0),
            "ShapeError",
            r"\[max\] \(float64\[0, 3\], axis=\(0,\)\): an empty axis has no max",
        ),
        (lambda x: x[:0].max(), "ShapeError", r"\[max\] .*float64\[0, 3\]"),
        (lambda x: x[:0].min((0, 1)), "ShapeError", r"\[min\] .*an empty axis"),
        (lambda x: x[:0].argmax(0), "ShapeError", r"\[argmax\] .*an empty axis"),
        (lambda x: x.cumsum(), "ShapeError", r"\[cumulative_sum\] .*float64\[2, 3\].*1-d"),
        (lambda x: x.norm(ord=0), "DomainError", r"\[norm\] ord is 0"),
    ],
)
def test_errors_name_the_function_and_the_shape(call, kind, message):
    with pytest.raises(getattr(gg.errors, kind), match=message) as error:
        call(gg.Tensor(np.ones((2, 3))))
    assert "test_reduce.py" in str(error.value)


def test_empty_axes_that_have_a_value():
    x = leaf(np.zeros((0, 3)))
    assert (gg.sum(x, 0).tolist(), gg.prod(x, 0).tolist()) == ([0, 0, 0], [1, 1, 1])
    assert (gg.sum(x, 1).shape, gg.mean(x, 1).shape, gg.max(x, 1).shape) == ((0,), (0,), (0,))
    assert (bool(gg.all(x)), bool(gg.any(x))) == (True, False)
    (gg.sum(x) + gg.prod(x)).backward()
    assert x.grad.shape == (0, 3)


# --- types and accumulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, want",
    [("bool", "int64"), ("int8", "int64"), ("int16", "int64"), ("int32", "int64"), ("uint8", "uint64")],
)
def test_integer_reductions(dtype, want):
    x = gg.Tensor(np.ones((2, 3), dtype))
    for got in (gg.sum(x), gg.prod(x), gg.cumulative_sum(x, 0), gg.cumulative_prod(x, 0)):
        assert got.dtype == want
    for got in (gg.mean(x), gg.var(x), gg.std(x), gg.norm(x)):
        assert got.dtype == np.float32
    assert gg.max(x).dtype == dtype
    assert gg.sum(x, dtype=gg.float64).dtype == gg.prod(x, dtype="float64").dtype == np.float64


def test_half_precision_accumulates_in_float32():
    x = gg.Tensor(np.ones(10_000_000, "float16"))
    assert gg.sum(x, dtype=gg.float32).item() == 1e7
    assert gg.mean(x).item() == 1
    assert gg.mean(x).dtype == np.float16
    few = gg.Tensor(np.full(30_000, 0.1, "float16"))
    assert gg.sum(few).item() == np.float16(np.sum(few.data, dtype="float64"))
    assert gg.norm(gg.Tensor(np.full(10_000, 3.0, "float16"))).item() == 300
    assert gg.var(gg.Tensor(np.array([-250.0, 250.0], "float16"))).item() == np.float16(62500)
    assert gg.cumsum(gg.Tensor(np.ones(5000, "float16"))).tolist()[-1] == 5000


def test_float32_stays_float32_everywhere():
    x = leaf(np.arange(6.0).reshape(2, 3), "float32")
    for f in (gg.sum, gg.mean, gg.var, gg.std, gg.prod, gg.max, gg.min, gg.norm):
        y = f(x, 1)
        assert y.dtype == np.float32
        y.sum().backward(accumulate=False)
        assert x.grad.dtype == np.float32


def test_a_wider_sum_sends_back_the_type_of_the_input():
    x = leaf([1.0, 2.0], "float32")
    gg.sum(x, dtype=gg.float64).backward()
    assert (x.grad.dtype, x.grad.tolist()) == (np.float32, [1, 1])


# --- extremes and variance --------------------------------------------------------------------------------------


def test_ties_share_and_nan_takes_the_gradient():
    x = leaf([[2.0, 2.0, 1.0], [0.0, math.nan, 5.0]])
    y = gg.max(x, 1)
    y.sum().backward()
    np.testing.assert_array_equal(y.data, [2, math.nan])
    assert x.grad.tolist() == [[0.5, 0.5, 0], [0, 1, 0]]


def test_variance_of_one_element_and_of_equal_elements():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (gg.var, gg.std):
            x = leaf([[3.0], [3.0]])
            f(x, 1).sum().backward()
            f(x, 0).sum().backward()
            assert x.grad.tolist() == [[0], [0]]
    x = gg.Tensor(1e8 + np.array([0.0, 1.0, 2.0]))
    assert gg.var(x, correction=1).item() == 1
    for n in (3, 4):  # nothing to divide by: NaN, as the Array API has it, and so is the slope
        assert math.isnan(gg.std(x, correction=n).item())
        assert np.isnan(gg.grad(lambda x, n=n: gg.var(x, correction=n))(x).numpy()).all()


# --- products, scans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_products_with_zeros_have_right_derivatives_of_both_orders(zeros):
    a = np.random.default_rng(zeros).normal(size=(3, 4)) + 2.0
    a.flat[[0, 5, 6][:zeros]] = 0.0
    x = gg.Tensor(a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (gg.prod, lambda v: gg.prod(v, 1), lambda v: gg.cumulative_prod(v, 1), lambda v: gg.cumprod(v, 0)):
            assert gradcheck(f, [x])
            assert gradgradcheck(f, [x])


def test_product_gradient_far_from_one():
    x = leaf([1e-200, 1e200, 1e-200, 1e200])
    gg.prod(x).backward()
    np.testing.assert_allclose(x.grad.data, [1e200, 1e-200, 1e200, 1e-200], rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumulative_functions_are_numpys(axis):
    a = np.random.default_rng(0).normal(size=(3, 5))
    for name in ("sum", "prod"):
        f, want = getattr(gg, f"cumulative_{name}"), getattr(np, f"cum{name}")(a, axis=axis)
        np.testing.assert_array_equal(f(gg.Tensor(a), axis).data, want)
        whole = f(gg.Tensor(a), axis, include_initial=True)
        first = np.full_like(want.take([0], axis), 0.0 if name == "sum" else 1.0)
        np.testing.assert_allclose(whole.data, np.concatenate([first, want], axis), rtol=1e-14, atol=1e-15)
        assert gradcheck(lambda v, f=f: f(v, axis, include_initial=True), [gg.Tensor(a)])
    assert gg.cumsum(gg.tensor([1, 2, 3])).tolist() == [1, 3, 6]
    assert gg.cumulative_prod(gg.tensor([2, 3]), include_initial=True).tolist() == [1, 2, 6]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_scan_is_its_recurrence(n, reverse):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 2)), rng.normal(size=(3, n, 2))
    want, y = np.empty_like(b), np.zeros((3, 2))
    for i in range(n)[:: -1 if reverse else 1]:
        y = want[:, i] = a[i] * y + b[:, i]
    got = gg.linear_scan(gg.Tensor(a), gg.Tensor(b), axis=1, reverse=reverse)
    np.testing.assert_allclose(got.data, want, rtol=1e-12, atol=1e-12)


def test_linear_scan_of_a_constant_rate():
    x = leaf([1.0, 1.0, 1.0], "float32")
    y = gg.linear_scan(0.5, x)
    assert (y.dtype, y.tolist()) == (np.float32, [1, 1.5, 1.75])
    y.sum().backward()
    assert x.grad.tolist() == [1.75, 1.5, 1]


# --- norm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", [1, 2, 3, 2.5, 0.5, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
def test_norms(ord, axis):
    a = distinct(2, 3, 2)
    want = np.linalg.vector_norm(a, axis=axis, ord=ord)
    np.testing.assert_allclose(gg.norm(gg.Tensor(a), axis, ord=ord).data, want, rtol=1e-13)
    assert gradcheck(lambda v: gg.norm(v, axis, ord=ord, keepdims=True), [gg.Tensor(a + 0.5 * np.sign(a))])


def test_norm_at_zero_has_no_nan_in_any_row():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ord in (1, 1.5, 2, 3, math.inf):
            x = leaf([[0.0, 0.0], [3.0, 4.0]])
            gg.norm(x, 1, ord=ord).sum().backward()
            assert x.grad.tolist()[0] == [0, 0]
            assert np.all(np.isfinite(x.grad.data))


@pytest.mark.parametrize("shape, axis", [
    ((50_001, 3), 0), ((20_000, 33), 0), ((3000, 1100), 0), ((3, 2000, 10), 1), ((40, 50, 30), (0, 1)),
    ((1, 20_000), 0), ((1, 20_000), 1), ((20_000, 1), 0),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_over_leading_axes_are_accurate(shape, axis, dtype):
    """NumPy adds up the rows one by one, with errors of 1e-6 to 5e-6 here."""
    x = (np.random.default_rng(4).random(shape) / 32).astype(dtype)
    want = x.astype("float64").sum(axis)
    wide = "float32" if dtype == "float16" else None
    for got in (gg.sum(x, axis, dtype=wide), gg.sum(x, axis, dtype=wide, keepdims=True)):
        assert got.dtype == "float32"
        np.testing.assert_allclose(got.numpy().reshape(want.shape), want, rtol=6e-7)
    if dtype == "float32":
        np.testing.assert_allclose(gg.mean(x, axis).numpy() * (x.size / want.size), want, rtol=7e-7)
        np.testing.assert_allclose(gg.var(x, axis).numpy(), x.astype("float64").var(axis), rtol=2e-6)
        turned = gg.transpose(gg.tensor(x))
        mirrored = tuple(x.ndim - 1 - a for a in np.atleast_1d(axis))
        np.testing.assert_allclose(gg.sum(turned, mirrored).numpy(), want.T, rtol=6e-7)


def test_sums_of_columns_keep_nan_and_infinity_to_themselves():
    x = np.ones((5000, 8), "float32")
    x[4999, 1], x[17, 2] = np.nan, np.inf
    assert np.array_equal(gg.sum(x, 0).numpy(), [5000, np.nan, np.inf] + [5000] * 5, equal_nan=True)


@pytest.mark.parametrize("n", [0, 1, 7, ROWS, ROWS + 1, 9 * ROWS + 3])
@pytest.mark.parametrize("dtype, tol", [("float32", 2e-6), ("float64", 1e-14)])
def test_dots_of_rows_of_any_length(n, dtype, tol):
    x, y = (np.random.default_rng(i).random((4, n, 3)).astype(dtype).swapaxes(1, 2) for i in range(2))
    for given in ((x,), (x, y), (x.copy(), y)):
        got, exact = dots(np, *given), np.prod([a.astype("float64") for a in given], axis=0)
        assert (got.dtype, got.shape) == (dtype, (4, 3))
        np.testing.assert_allclose(got, [[math.fsum(row) for row in m] for m in exact], rtol=tol)
