"""Properties that the Array API standard asks for, on drawn arrays: every data type, 0-d and empty ones, views."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import gpugrad as gg

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
inf, nan = math.inf, math.nan
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS, COMPLEX = ["float32", "float64"], ["complex64", "complex128"]
NUMERIC = [*INTEGERS, *FLOATS, *COMPLEX]
ALL = ["bool", *NUMERIC]
few = settings(max_examples=50, deadline=None, database=None, derandomize=True)


def arrays(dtypes=ALL, shape=None):
    """Arrays of up to 3 axes, 0-d and empty ones among them; some are reversed views."""
    shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4) if shape is None else shape
    elements = {"min_value": -50, "max_value": 50} if not {"bool", *COMPLEX} & set(dtypes) else None

    def of(dtype):
        bounds = {"min_value": 0, "max_value": 50} if elements and dtype.startswith("u") else elements
        finite = {} if dtype in ("bool", *INTEGERS) else {"allow_nan": False, "allow_infinity": False}
        if dtype in COMPLEX:
            finite |= {"max_magnitude": 50.0}
        drawn = hnp.arrays(dtype, shape, elements={**(bounds or {}), **finite} or None)
        return st.builds(lambda x, turn: x[..., ::-1] if turn and x.ndim else x, drawn, st.booleans())

    return st.sampled_from(list(dtypes)).flatmap(of)


def pair(dtypes):
    """Two arrays of one kind whose shapes broadcast."""
    shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=4)
    return shapes.flatmap(lambda s: st.tuples(arrays(dtypes, s.input_shapes[0]), arrays(dtypes, s.input_shapes[1])))


def agree(got, want, **tolerance):
    want = np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(got.numpy(), want, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


# --- functions of two arrays ------------------------------------------------------------------------------------------

ARITHMETIC = ["add", "subtract", "multiply", "maximum", "minimum", "floor_divide", "remainder"]
KINDS = [(["bool"], ["logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"]),
         (INTEGERS[:4], [*ARITHMETIC, "bitwise_and", "bitwise_or", "bitwise_xor"]),
         (INTEGERS[4:], ["add", "multiply", "maximum", "minimum", "bitwise_xor"]),
         ([*INTEGERS[:4], *INTEGERS[4:7]], ["add", "multiply", "maximum", "less", "equal"]),
         (FLOATS, [*ARITHMETIC[:5], "atan2", "copysign", "hypot", "logaddexp", "less_equal", "not_equal"]),
         (COMPLEX, ["add", "subtract", "multiply", "equal", "not_equal"])]  # fmt: skip
NUMPY = {"atan2": "arctan2"}


@pytest.mark.parametrize("dtypes, names", KINDS, ids=["bool", "int", "uint", "mixed", "float", "complex"])
def test_functions_of_two_arrays(dtypes, names):
    @few
    @given(xs=pair(dtypes), name=st.sampled_from(names))
    def check(xs, name):
        x, y = xs
        if name in ("floor_divide", "remainder"):
            y = np.where(y == 0, 1, y).astype(y.dtype)
        want = getattr(np, NUMPY.get(name, name))(x, y)
        agree(getattr(gg, name)(gg.asarray(x), gg.asarray(y)), want)

    check()


@few
@given(x=arrays([*INTEGERS[:4], *FLOATS]), number=st.integers(1, 40), name=st.sampled_from(ARITHMETIC))
def test_a_python_number_beside_an_array_takes_its_type(x, number, name):
    f, want = getattr(gg, name), getattr(np, name)(x, np.asarray(number, x.dtype))
    agree(f(gg.asarray(x), number), want)
    if x.all():
        agree(f(number, gg.asarray(x)), getattr(np, name)(np.asarray(number, x.dtype), x))


# --- reductions, shapes, order ----------------------------------------------------------------------------------------


@few
@given(data=st.data(), x=arrays([*INTEGERS, *FLOATS]), keepdims=st.booleans())
def test_reductions(data, x, keepdims):
    axes = st.none() if not x.ndim else st.none() | st.integers(-x.ndim, x.ndim - 1) | hnp.valid_tuple_axes(x.ndim)
    axis = data.draw(axes)
    t = gg.asarray(x)
    wide = x.dtype if x.dtype.kind == "f" else np.dtype("uint64" if x.dtype.kind == "u" else "int64")
    agree(gg.sum(t, axis=axis, keepdims=keepdims), np.sum(x, axis, wide, keepdims=keepdims), rtol=1e-4, atol=1e-3)
    agree(gg.any(t, axis=axis, keepdims=keepdims), np.any(x, axis, keepdims=keepdims))
    agree(gg.all(t, axis=axis, keepdims=keepdims), np.all(x, axis, keepdims=keepdims))
    if x.size:
        agree(gg.max(t, axis=axis, keepdims=keepdims), np.max(x, axis, keepdims=keepdims))
        agree(gg.min(t, axis=axis, keepdims=keepdims), np.min(x, axis, keepdims=keepdims))
    if axis != ():
        agree(gg.count_nonzero(t, axis=axis, keepdims=keepdims), np.count_nonzero(x, axis, keepdims=keepdims))


@few
@given(data=st.data(), x=arrays(shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)))
def test_rearrangements(data, x):
    axis, to = data.draw(st.integers(-x.ndim, x.ndim - 1)), data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = data.draw(st.integers(-5, 5))
    t = gg.asarray(x)
    for got, want in [
        (gg.roll(t, n, axis=axis), np.roll(x, n, axis)),
        (gg.roll(t, n), np.roll(x, n)),
        (gg.flip(t, axis=axis), np.flip(x, axis)),
        (gg.moveaxis(t, axis, to), np.moveaxis(x, axis, to)),
        (gg.expand_dims(t, axis=axis), np.expand_dims(x, axis)),
        (gg.repeat(t, abs(n), axis=axis), np.repeat(x, abs(n), axis)),
        (gg.tile(t, (abs(n), 2)), np.tile(x, (abs(n), 2))),
        (gg.concat([t, t], axis=axis), np.concatenate([x, x], axis)),
        (gg.concat([t, t], axis=None), np.concatenate([x, x], None)),
        (gg.stack([t, t], axis=axis), np.stack([x, x], axis)),
        (gg.reshape(t, (-1,)), np.reshape(x, -1)),
    ]:
        agree(got, want)
    assert len(gg.unstack(t, axis=axis)) == x.shape[axis]


@few
@given(data=st.data(), x=arrays([*INTEGERS, *FLOATS], hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_order(data, x):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    x = x + np.zeros((), x.dtype)  # no -0: which of two zeros comes first is stability's affair, told by argsort
    for descending in (False, True):
        key = x if not descending else (x.astype("int64") * -1 if x.dtype.kind in "iu" else -x)
        order = np.argsort(key, axis, kind="stable")
        agree(gg.argsort(gg.asarray(x), axis=axis, descending=descending), order)
        agree(gg.sort(gg.asarray(x), axis=axis, descending=descending), np.take_along_axis(x, order, axis))


# --- reading and writing elements -------------------------------------------------------------------------------------


@few
@given(data=st.data(), x=arrays())
def test_reading_and_writing(data, x):
    index = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    agree(gg.asarray(x)[index], x[index])
    index = data.draw(hnp.basic_indices(x.shape))
    value = data.draw(arrays([str(x.dtype)], np.shape(x[index])))
    t, want = gg.asarray(x, copy=True), x.copy()
    t[index], want[index] = gg.asarray(value), value
    agree(t, want)


@few
@given(data=st.data(), x=arrays(shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)))
def test_reading_by_arrays(data, x):
    shapes = [(3,), *[(2, 1)] * (x.ndim - 1)]
    chosen = tuple(
        data.draw(st.integers(-n, n - 1) | hnp.arrays("int64", shape, elements=st.integers(-n, n - 1)))
        for n, shape in zip(x.shape, shapes)
    )
    agree(gg.asarray(x)[tuple(gg.asarray(i) if isinstance(i, np.ndarray) else i for i in chosen)], x[chosen])
    mask = data.draw(hnp.arrays("bool", x.shape[: data.draw(st.integers(0, x.ndim))]))
    agree(gg.asarray(x)[gg.asarray(mask)], x[mask])


# --- special values ---------------------------------------------------------------------------------------------------

GRID = [-inf, -3.0, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5, inf, nan]


def power(x, y):
    """C's pow, whose errors Python raises."""
    try:
        return math.pow(x, y)
    except ValueError:  # a zero to a negative power, or a negative number to a fraction
        return math.copysign(inf, x) if x == 0 and y % 2 == 1 else inf if x == 0 else nan


def divided(x, y):
    if y == 0:
        return nan if x == 0 or x != x else math.copysign(inf, x) * math.copysign(1.0, y)
    return x / y


def floored(x, y):
    q = divided(x, y)
    return math.copysign(math.floor(q), q) if math.isfinite(q) else q


def modulo(x, y):
    """x - y * floor(x / y) with the sign of y; of finite x and infinite y, x or y."""
    if y == 0 or math.isinf(x) or x != x or y != y:
        return nan
    return x % y if x % y else math.copysign(0.0, y)


TRUTH = {
    "pow": power, "divide": divided, "floor_divide": floored, "remainder": modulo, "atan2": math.atan2,
    "hypot": math.hypot, "copysign": math.copysign, "nextafter": math.nextafter,
    "maximum": lambda x, y: nan if x != x or y != y else max(x, y),
    "minimum": lambda x, y: nan if x != x or y != y else min(x, y),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", TRUTH)
def test_special_values_of_two_numbers(name, dtype):
    """Every pair of special numbers, in long arrays, in views, as 0-d arrays and as Python numbers beside an array."""
    if name == "nextafter" and dtype == "float32":
        want = np.nextafter(*np.meshgrid(np.float32(GRID), np.float32(GRID), indexing="ij")).tolist()
    else:
        want = [[TRUTH[name](x, y) for y in GRID] for x in GRID]
    f, row = getattr(gg, name), gg.asarray(GRID, dtype=dtype)
    table = np.asarray(want, dtype)

    def check(got, expected):
        got = got.numpy()
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        zeros = (expected == 0) & (name not in ("maximum", "minimum"))  # which zero is the larger one is not said
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))

    check(f(row[:, None], row), table)
    check(f(gg.tile(row[:, None], (1, 40))[:, ::3], row[:, None, None])[:, :, 5], table.T)
    for (i, x), (j, y) in itertools.product(enumerate(GRID), repeat=2):
        if j == 0:
            check(f(x, row), table[i])
            check(f(row, x), table[:, i])
            check(f(row, row[i]), table[:, i])
        if (i + j) % 3 == 0:
            check(f(row[i], row[j])[None], table[i, j : j + 1])
            check(f(row[i], y)[None], table[i, j : j + 1])
