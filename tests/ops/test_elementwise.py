"""Elementwise functions by hand: special values, promotion, operators, kinks, the error function's ulps."""

from __future__ import annotations

import math
import operator
import pathlib
import re
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import gradcheck, gradgradcheck
from gpugrad.ops.elementwise import absorb, quotient, select

KINKS = pathlib.Path(__file__).parents[2] / "docs" / "kinks.md"
ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", KINKS.read_text(encoding="utf-8"), re.M)
NAMES = {**vars(gg), "inf": math.inf, "nan": math.nan}


def leaf(values, dtype="float64"):
    return gg.Tensor(np.asarray(values, dtype)).requires_grad_()


def slope(f, values, dtype="float64"):
    """Value of f at a vector, and the gradient of its sum."""
    x = leaf(values, dtype)
    y = f(x)
    y.sum().backward()
    return y.data, x.grad.data


# --- kinks ----------------------------------------------------------------------------------------------------


def test_the_kink_table_is_read():
    assert len(ROWS) > 40
    assert KINKS.read_text(encoding="utf-8").count("\n| `") == len(ROWS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("expression, at, value, want", ROWS, ids=[r[0] for r in ROWS])
def test_kink_table(expression, at, value, want, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # log(0) and 1/0 are part of the table
        got, grad = slope(lambda x: eval(expression, NAMES, {"x": x}), eval(at, NAMES), dtype)
    np.testing.assert_array_equal(got, np.asarray(eval(value, NAMES), dtype))
    np.testing.assert_array_equal(grad, np.asarray(eval(want, NAMES), dtype))
    assert got.dtype == grad.dtype == dtype


def test_tracked_bounds_of_clip_receive_gradients():
    x, low, high = leaf([-2.0, 0.5, 3.0]), leaf(-1.0), leaf(1.0)
    gg.clip(x, low, high).sum().backward()
    assert (x.grad.tolist(), low.grad.tolist(), high.grad.tolist()) == ([0, 1, 0], 1, 1)
    gg.clip(x, None, high).sum().backward(accumulate=False)
    assert x.grad.tolist() == [1, 1, 0]
    assert gg.clip(x, None, None).tolist() == x.tolist()
    assert gg.clip(gg.tensor([1, 5, 9]), 2, 7).tolist() == [2, 5, 7]


# --- absorbing zeros --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_absorb_and_quotient_at_zero(bad):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither computes 0 * inf or 0 / 0
        assert absorb(gg.Tensor(np.array([0.0, 2.0])), gg.Tensor(np.array([bad, 3.0]))).tolist() == [0, 6]
        assert quotient(gg.Tensor(np.array([0.0, 6.0])), gg.Tensor(np.array([0.0, 3.0]))).tolist() == [0, 2]
        assert quotient(gg.Tensor(np.array([0.0])), gg.Tensor(np.array([bad]))).tolist() == [0]
    assert math.isnan(absorb(gg.Tensor(np.array([math.nan])), gg.Tensor(np.array([1.0]))).item())


def test_second_order_passes_where_the_first_cotangent_is_zero():
    """(sqrt(x) - 2)^2 has a zero cotangent at x = 4 but second derivative 1/8."""
    f = gg.grad(gg.grad(lambda x: gg.square(gg.sqrt(x) - 2.0)))
    assert f(leaf(4.0)).item() == pytest.approx(0.125, rel=1e-12)
    f = gg.grad(gg.grad(lambda x: gg.square(x**1.5 - 8.0)))
    assert f(leaf(4.0)).item() == pytest.approx(2 * 9, rel=1e-12)


@pytest.mark.parametrize("n", [10, 10_000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_select_is_where(n, dtype):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=n).astype(dtype) for _ in range(2))
    if dtype != "int64":
        x[:4], y[4:8] = (np.nan, np.inf, -np.inf, -0.0), (np.nan, np.inf, -np.inf, -0.0)
    m = rng.random(n) < 0.5
    for args in ((m, x, y), (m, 0, y), (m, x, 0), (m, 1, y), (m[:1], x, y), (m, x[:1], y), (m, x, y[:1])):
        got, want = select(np, *args), np.where(*args)
        assert got.dtype == want.dtype == dtype
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def test_select_broadcasts_a_wider_mask():
    m = np.random.default_rng(0).random((3, 5000)) < 0.5
    row = np.arange(5000.0)
    np.testing.assert_array_equal(select(np, m, row, row * 2), np.where(m, row, row * 2))


# --- pow --------------------------------------------------------------------------------------------------------


def test_pow_special_bases_and_exponents():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slope(lambda x: x**3, [-2.0, 0.0])[1].tolist() == [12, 0]
        assert slope(lambda x: x**-2, [-2.0])[1].tolist() == [0.25]
        assert slope(lambda x: x**1, [0.0])[1].tolist() == [1]
        assert slope(lambda y: gg.pow(gg.Tensor(np.zeros(3)), y), [1.0, 2.0, 0.0])[1].tolist() == [0, 0, 0]
        y, g = slope(lambda y: 2.0**y, [3.0])
        assert (y[0], g[0]) == (8, pytest.approx(8 * math.log(2), rel=1e-15))
    x, y = leaf([0.0, 0.0, 2.0]), leaf([0.0, 1.0, 3.0])
    with np.errstate(divide="ignore"):
        gg.pow(x, y).sum().backward()
    assert x.grad.tolist() == [0, 1, 12]
    np.testing.assert_allclose(y.grad.data, [0, 0, 8 * math.log(2)], rtol=1e-15)


def test_pow_keeps_the_type_of_the_array():
    f32, ints = gg.Tensor(np.ones(2, "float32")), gg.Tensor(np.array([1, 2, 3]))
    for y in (f32**2, f32**2.5, 2.5**f32, f32 ** np.float64(0.3), np.float64(2) ** f32, ints**0.5, 0.5**ints):
        assert y.dtype == np.float32
    assert (ints**2).tolist() == [1, 4, 9]
    assert (2**ints).tolist() == [2, 4, 8]
    assert (ints**2).dtype == (2**ints).dtype == np.int64


def test_the_gradient_of_an_integer_power_takes_no_logarithm():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (0, 1, 2, 3, 4, 5, 2.0):
            g = slope(lambda x, n=n: x**n, [-1.5, 0.0, 2.0])[1]
            np.testing.assert_allclose(g, [n * v ** (n - 1) if n else 0 for v in (-1.5, 0.0, 2.0)], rtol=1e-15)


def test_negative_power_of_integers_is_refused():
    with pytest.raises(gg.errors.DomainError, match=r"\[pow\].*int64.*-1"):
        gg.tensor([1, 2]) ** -1


def test_gradients_of_pow_in_both_operands():
    rng = np.random.default_rng(1)
    x, y = gg.Tensor(rng.uniform(0.5, 2, (3, 4))), gg.Tensor(rng.normal(size=4))
    assert gradcheck(gg.pow, [x, y])
    assert gradgradcheck(gg.pow, [x, y])
    for n in (0, 1, 2, 3, -1, 0.5, 2.5):
        assert gradcheck(lambda v, n=n: v**n, [x])
        assert gradgradcheck(lambda v, n=n: v**n, [x])
    assert gradgradcheck(lambda v: 3.0**v, [x])


# --- error function -----------------------------------------------------------------------------------------------


def ulps(got, want):
    return np.max(np.abs(got.astype("float64") - want) / np.spacing(np.abs(want).astype(got.dtype)).astype("float64"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_and_erfc_within_4_ulp(dtype):
    rng = np.random.default_rng(5)
    edges = np.array([0.84375, 1.25, 1 / 0.35, 4.0, 6.0, -0.84375, -1.25, 1e-300 if dtype == "float64" else 1e-37])
    top = 26.5 if dtype == "float64" else 9.1
    x = np.concatenate([edges, np.nextafter(edges, 9), rng.uniform(-6.5, top, 40000), rng.normal(size=20000) * 0.3])
    x = x.astype(dtype)
    wide = x.astype("float64").tolist()
    assert ulps(gg.erf(x).data, np.array([math.erf(v) for v in wide])) <= 4
    assert ulps(gg.erfc(x).data, np.array([math.erfc(v) for v in wide])) <= 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_erf_at_special_values(dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 40.0, -40.0], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = gg.erf(x), gg.erfc(x)
    assert low.dtype == high.dtype == dtype
    np.testing.assert_array_equal(low.data, np.array([0, 0, 1, -1, np.nan, 1, -1], dtype))
    assert np.signbit(low.data[1])
    np.testing.assert_array_equal(high.data, np.array([1, 1, 0, 2, np.nan, 0, 2], dtype))
    assert gg.erf(0.5).item() == pytest.approx(math.erf(0.5), rel=1e-6)


def test_float16_erf_is_rounded_from_float32():
    x = np.linspace(-4, 4, 1001).astype("float16")
    want = np.array([math.erf(v) for v in x.astype("float64")])
    assert ulps(gg.erf(x).data, want) <= 1


# --- against NumPy ------------------------------------------------------------------------------------------------

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, 1e30, np.inf, -np.inf, np.nan])
UNARY = {
    "abs": "abs", "negative": "negative", "positive": "positive", "reciprocal": "reciprocal", "square": "square",
    "sqrt": "sqrt", "cbrt": "cbrt", "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log1p": "log1p",
    "log2": "log2", "log10": "log10", "sin": "sin", "cos": "cos", "tan": "tan", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "sign": "sign", "signbit": "signbit", "floor": "floor", "ceil": "ceil", "trunc": "trunc",
    "round": "round", "rint": "rint", "deg2rad": "deg2rad", "rad2deg": "rad2deg", "isnan": "isnan", "isinf": "isinf",
    "isfinite": "isfinite", "real": "real", "imag": "imag", "conj": "conj",
    "logical_not": "logical_not", "nan_to_num": "nan_to_num",
}  # fmt: skip
BINARY = {
    "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide",
    "remainder": "remainder", "pow": "power", "logaddexp": "logaddexp", "logaddexp2": "logaddexp2", "atan2": "arctan2",
    "hypot": "hypot", "copysign": "copysign", "nextafter": "nextafter", "maximum": "maximum", "minimum": "minimum",
    "fmax": "fmax", "fmin": "fmin", "heaviside": "heaviside", "equal": "equal", "not_equal": "not_equal",
    "less": "less", "less_equal": "less_equal", "greater": "greater", "greater_equal": "greater_equal",
    "logical_and": "logical_and", "logical_or": "logical_or", "logical_xor": "logical_xor",
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary_special_values_are_numpys(name, dtype):
    x = SPECIAL.astype(dtype)
    with np.errstate(all="ignore"):
        got, want = getattr(gg, name)(gg.Tensor(x)).data, getattr(np, UNARY[name])(x)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary_special_values_are_numpys(name, dtype):
    x = SPECIAL.astype(dtype)
    with np.errstate(all="ignore"):
        got, want = (
            getattr(gg, name)(gg.Tensor(x[:, None]), gg.Tensor(x)).data,
            getattr(np, BINARY[name])(x[:, None], x),
        )
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floor_divide_by_and_of_infinity_is_the_floor_of_the_quotient(dtype):
    x = SPECIAL.astype(dtype)
    with np.errstate(all="ignore"):
        got, numpys = gg.floor_divide(gg.Tensor(x[:, None]), gg.Tensor(x)).data, np.floor_divide(x[:, None], x)
        floors = np.floor(x[:, None] / x)
    infinite = np.isinf(x[:, None]) | np.isinf(x)
    want = np.where(infinite, floors, numpys)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])
    assert got.dtype == dtype
    assert gg.floor_divide(gg.tensor(math.inf), 2.0).item() == math.inf


def test_bits_and_complex():
    a, b = np.array([12, 10, -7]), np.array([1, 3, 2])
    x, y = gg.Tensor(a), gg.Tensor(b)
    for got, want in (
        (x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (~x, ~a), (x << y, a << b), (x >> y, a >> b),
        (6 & x, 6 & a), (6 | x, 6 | a), (6 ^ x, 6 ^ a), (1 << y, 1 << b), (64 >> y, 64 >> b),
    ):  # fmt: skip
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got.data, want)
    assert (gg.Tensor(np.array([True, False])) & True).tolist() == [True, False]
    z = gg.Tensor(np.array([1 + 2j, -3j]))
    assert (gg.real(z).tolist(), gg.imag(z).tolist(), gg.conj(z).tolist()) == ([1, 0], [2, -3], [1 - 2j, 3j])
    assert gg.abs(gg.Tensor(np.array([3 + 4j]))).tolist() == [5]


def test_xlogy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gg.xlogy(gg.tensor([0.0, 2.0]), gg.tensor([0.0, 1.0])).tolist() == [0, 0]
    assert math.isnan(gg.xlogy(gg.tensor([0.0]), gg.tensor([math.nan])).item())
    assert gg.xlogy(leaf([2.0]), 3.0).item() == 2 * math.log(3.0)
    assert gg.xlogy(leaf([2.0], "float32"), 3.0).dtype == np.float32


# --- promotion and operators ----------------------------------------------------------------------------------------

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.mod, operator.floordiv]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("op", OPERATORS + COMPARISONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "other", [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.array([1.0, 2.0, 3.0], "float32")],
    ids=["int", "float", "bool", "f64", "f32", "i64", "array"],
)  # fmt: skip
def test_operators_with_scalars_and_arrays_on_either_side(op, other):
    a = np.array([1.5, 2.0, 4.0], "float32")
    x = gg.Tensor(a)
    plain = other.item() if isinstance(other, np.generic) else other
    for got, want in ((op(x, other), op(a, plain)), (op(other, x), op(plain, a))):
        assert type(got) is gg.Tensor
        assert got.dtype == want.dtype == (np.float32 if op in OPERATORS else np.bool_)
        np.testing.assert_array_equal(got.data, want)


def test_float32_stays_float32():
    x = leaf([1.0, 2.0], "float32")
    ints = gg.Tensor(np.array([1, 2]))
    y = x * np.float64(2) + ints
    assert (
        y.dtype
        == (ints * x).dtype
        == gg.where(ints > 1, x, ints).dtype
        == gg.where(ints > 1, x, 0.5).dtype
        == np.float32
    )
    y.sum().backward()
    assert x.grad.dtype == np.float32
    assert (x + gg.Tensor(np.ones(2))).dtype == np.float64
    assert (x + gg.Tensor(np.float64(1.0))).dtype == np.float64, "a 0-d tensor is an array"


def test_integers_become_the_default_float():
    ints = gg.Tensor(np.array([1, 2, 3]))
    for name in sorted(
        set(UNARY) - {"abs", "negative", "positive", "square", "sign", "signbit", "real", "imag", "conj"}
    ):
        if name in ("floor", "ceil", "trunc", "round", "nan_to_num"):
            assert getattr(gg, name)(ints).dtype == np.int64, name
        elif not name.startswith(("is", "logical")):
            with np.errstate(all="ignore"):
                assert getattr(gg, name)(ints).dtype == np.float32, name
    assert (ints / ints).dtype == (ints / 2).dtype == (ints * 2.5).dtype == np.float32
    assert (ints * 2).dtype == (ints // 2).dtype == (ints % 2).dtype == np.int64


def test_where_of_scalars():
    c = gg.Tensor(np.array([True, False]))
    assert gg.where(c, 1.0, 0.0).dtype == np.float32
    assert gg.where(c, 1, 0).tolist() == [1, 0]
    assert gg.where(c, 1, 0).dtype == np.int64
    assert gg.where(True, leaf([1.0, 2.0]), 0.0).tolist() == [1, 2]
    x = leaf(np.arange(6.0).reshape(2, 3))
    gg.where(gg.Tensor(np.array([[True], [False]])), x, 0.0).sum().backward()
    assert x.grad.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_errors_name_the_function_the_operands_and_the_line():
    x, y = gg.Tensor(np.ones((2, 3))), gg.Tensor(np.ones(4))
    with pytest.raises(
        gg.errors.ShapeError, match=r"(?s)\[multiply\].*float64\[2, 3\].*float64\[4\].*test_elementwise.py"
    ):
        x * y
    with pytest.raises(gg.errors.DTypeError, match=r"\[exp\] list is not an array"):
        gg.exp([1.0])
    with pytest.raises(gg.errors.DTypeError, match=r"\[bitwise_and\]"):
        x & x


def test_sinc_is_smooth_at_zero():
    x = np.array([0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.09, 0.1])
    g = slope(gg.sinc, x)[1]
    z = math.pi * x
    want = -math.pi * z / 3 * (1 - z**2 / 10 + z**4 / 280 - z**6 / 15120)
    np.testing.assert_allclose(g, want, rtol=1e-9)


def test_large_arrays_take_the_same_values_in_blocks():
    """Functions of many passes run in pieces above 32768 elements, whatever the layout."""
    x = np.random.default_rng(0).normal(size=(300, 250)).astype("float32")
    for f in (gg.erf, gg.erfc, gg.gelu, gg.softplus, gg.elu):
        whole = f(gg.Tensor(x)).data
        assert (whole.shape, whole.dtype) == (x.shape, x.dtype)
        parts = np.stack([f(gg.Tensor(row)).data for row in x])
        np.testing.assert_allclose(whole, parts, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(f(gg.Tensor(x.T)).data, parts.T, rtol=1e-6, atol=1e-7)
