"""The Array API standard, version 2024.12: names, signatures, data types, special cases, empty and 0-d arrays."""

from __future__ import annotations

import inspect
import itertools
import math
import operator

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError, DTypeError, GraphError, RangeError, ShapeError

inf, nan = math.inf, math.nan
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
REALS = [*INTEGERS, "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
FLOATING = ["float32", "float64", *COMPLEX]
ALL = ["bool", *REALS, *COMPLEX]

# --- names and signatures -------------------------------------------------------------------------------------------

MAIN = """
abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag isfinite isinf isnan log
log10 log1p log2 logical_not matrix_transpose negative nonzero positive real reciprocal round sign signbit sin sinh sqrt
square tan tanh trunc unique_all unique_counts unique_inverse unique_values (x, /)
add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal floor_divide
greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor matmul maximum minimum multiply
nextafter not_equal pow remainder subtract (x1, x2, /)
all any argmax argmin count_nonzero max mean min (x, /, *, axis=None, keepdims=False)
sum prod (x, /, *, axis=None, dtype=None, keepdims=False)
std var (x, /, *, axis=None, correction=0.0, keepdims=False)
cumulative_prod cumulative_sum (x, /, *, axis=None, dtype=None, include_initial=False)
argsort sort (x, /, *, axis=-1, descending=False, stable=True)
empty ones zeros (shape, *, dtype=None, device=None)
empty_like ones_like zeros_like (x, /, *, dtype=None, device=None)
concat stack (arrays, /, *, axis=0)
tril triu (x, /, *, k=0)
finfo iinfo (type, /)
arange (start, /, stop=None, step=1, *, dtype=None, device=None)
asarray (obj, /, *, dtype=None, device=None, copy=None)
astype (x, dtype, /, *, copy=True, device=None)
broadcast_arrays (*arrays)
broadcast_to (x, /, shape)
can_cast (from_, to, /)
clip (x, /, min=None, max=None)
diff (x, /, *, axis=-1, n=1, prepend=None, append=None)
expand_dims (x, /, *, axis=0)
eye (n_rows, n_cols=None, /, *, k=0, dtype=None, device=None)
flip (x, /, *, axis=None)
from_dlpack (x, /, *, device=None, copy=None)
full (shape, fill_value, *, dtype=None, device=None)
full_like (x, /, fill_value, *, dtype=None, device=None)
isdtype (dtype, kind)
linspace (start, stop, /, num, *, dtype=None, device=None, endpoint=True)
meshgrid (*arrays, indexing='xy')
moveaxis (x, source, destination, /)
permute_dims (x, /, axes)
repeat (x, repeats, /, *, axis=None)
reshape (x, /, shape, *, copy=None)
result_type (*arrays_and_dtypes)
roll (x, /, shift, *, axis=None)
searchsorted (x1, x2, /, *, side='left', sorter=None)
squeeze (x, /, axis)
take (x, indices, /, *, axis=None)
take_along_axis (x, indices, /, *, axis=-1)
tensordot (x1, x2, /, *, axes=2)
tile (x, repetitions, /)
unstack (x, /, *, axis=0)
vecdot (x1, x2, /, *, axis=-1)
where (condition, x1, x2, /)
__array_namespace_info__ ()
"""
LINALG = """
det eigh eigvalsh inv matrix_transpose slogdet svdvals (x, /)
matmul outer solve (x1, x2, /)
cholesky (x, /, *, upper=False)
cross vecdot (x1, x2, /, *, axis=-1)
diagonal (x, /, *, offset=0)
matrix_norm (x, /, *, keepdims=False, ord='fro')
matrix_power (x, n, /)
matrix_rank pinv (x, /, *, rtol=None)
qr (x, /, *, mode='reduced')
svd (x, /, *, full_matrices=True)
tensordot (x1, x2, /, *, axes=2)
trace (x, /, *, offset=0, dtype=None)
vector_norm (x, /, *, axis=None, keepdims=False, ord=2)
"""
FFT = """
fft hfft ifft ihfft irfft rfft (x, /, *, n=None, axis=-1, norm='backward')
fftn ifftn irfftn rfftn (x, /, *, s=None, axes=None, norm='backward')
fftfreq rfftfreq (n, /, *, d=1.0, dtype=None, device=None)
fftshift ifftshift (x, /, *, axes=None)
"""
METHODS = """
__abs__ __bool__ __complex__ __dlpack_device__ __float__ __index__ __int__ __invert__ __neg__ __pos__ (self, /)
__add__ __and__ __eq__ __floordiv__ __ge__ __gt__ __le__ __lshift__ __lt__ __matmul__ __mod__ __mul__ __ne__ __or__
__pow__ __rshift__ __sub__ __truediv__ __xor__ __radd__ __rand__ __rfloordiv__ __rlshift__ __rmatmul__ __rmod__ __rmul__
__ror__ __rpow__ __rrshift__ __rsub__ __rtruediv__ __rxor__ (self, other, /)
__array_namespace__ (self, /, *, api_version=None)
__dlpack__ (self, /, *, stream=None, max_version=None, dl_device=None, copy=None)
__getitem__ (self, key, /)
__setitem__ (self, key, value, /)
to_device (self, device, /, *, stream=None)
"""


def signatures(table: str, place: object) -> list[object]:
    """(place, name, the standard's signature) for each name of a table."""
    cases, names = [], []
    for token in table.replace(" (", " \0(").replace("\n", " ").split(" "):
        if names and names[-1].startswith("\0"):
            names[-1] += " " + token
        elif token:
            names.append(token)
        if names and names[-1].startswith("\0") and names[-1].count("(") == names[-1].count(")"):
            scope: dict[str, object] = {}
            exec(f"def f{names[-1][1:]}: pass", scope)
            cases += [pytest.param(place, n, inspect.signature(scope["f"]), id=n) for n in names[:-1]]
            names = []
    return cases


CASES = [
    *signatures(MAIN, gg), *signatures(LINALG, gg.linalg), *signatures(FFT, gg.fft), *signatures(METHODS, gg.Tensor),
]  # fmt: skip


def test_the_tables_are_complete():
    assert len(CASES) == 134 + 23 + 14 + 47


@pytest.mark.parametrize("place, name, standard", CASES)
def test_function_takes_the_standards_arguments(place, name, standard):
    """Positional parameters in order, names where callers may use them, kinds, defaults; extras are optional."""
    ours = list(inspect.signature(getattr(place, name)).parameters.values())
    kinds = inspect.Parameter
    seen = set()
    for i, p in enumerate(q for q in standard.parameters.values() if q.kind is not kinds.KEYWORD_ONLY):
        q = ours[i]
        seen.add(q.name)
        if p.kind is kinds.VAR_POSITIONAL:
            assert q.kind is p.kind
            continue
        assert q.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        if p.kind is kinds.POSITIONAL_OR_KEYWORD:
            assert (q.name, q.kind) == (p.name, p.kind)
        if p.default is not kinds.empty:
            assert q.default == p.default
    for p in (q for q in standard.parameters.values() if q.kind is kinds.KEYWORD_ONLY):
        q = next(q for q in ours if q.name == p.name)
        seen.add(q.name)
        assert q.kind in (kinds.KEYWORD_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        assert q.default == p.default
    for q in ours:
        assert q.name in seen or q.default is not kinds.empty or q.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)


def test_constants_attributes_and_namespace():
    x = gg.ones((2, 3))
    assert [gg.e, gg.inf, gg.pi, gg.newaxis] == [math.e, inf, math.pi, None]
    assert math.isnan(gg.nan)
    assert (x.shape, x.ndim, x.size, x.dtype, x.device) == ((2, 3), 2, 6, gg.float32, "cpu")
    assert x.T.shape == x.mT.shape == (3, 2)
    assert x.__array_namespace__() is gg
    assert x.__array_namespace__(api_version="2024.12") is gg
    assert gg.__array_api_version__ == "2024.12"
    with pytest.raises(DomainError, match=r"2099\.12"):
        x.__array_namespace__(api_version="2099.12")


# --- data types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, b", list(itertools.combinations_with_replacement(ALL, 2)))
def test_promotion(a, b):
    """Within a kind the standard's table, which is NumPy's; integers and bools beside floats take the floats' type."""
    x, y = (gg.ones(2, dtype=d) for d in (a, b))
    kinds = {np.dtype(a).kind, np.dtype(b).kind}
    floats = [d for d in (a, b) if np.dtype(d).kind in "fc"]
    want = np.result_type(*(floats or (a, b)))
    assert gg.result_type(x, y) == gg.result_type(x.dtype, y) == gg.result_type(y.dtype, x.dtype) == want
    if kinds != {"b"}:
        assert (x * y).dtype == (y * x).dtype == want
    assert gg.concat([x, y]).dtype == gg.where(gg.asarray([True, False]), x, y).dtype == want
    assert gg.can_cast(x, want) or len(kinds) > 1
    assert gg.can_cast(a, b) is bool(np.can_cast(a, b) and (np.dtype(a).kind not in "iu" or np.dtype(b).kind in "iu"))


@pytest.mark.parametrize("dtype", REALS + COMPLEX)
def test_scalars_are_weak(dtype):
    x = gg.ones(2, dtype=dtype)
    scalars = [2] + [2.0] * (x.dtype.kind in "fc") + [2j] * (x.dtype.kind == "c")
    for s in scalars:
        for f in (operator.add, operator.mul, operator.sub):
            assert f(x, s).dtype == f(s, x).dtype == x.dtype
        assert gg.maximum(x, s).dtype == x.dtype or x.dtype.kind == "c"
        assert gg.where(gg.asarray([True, False]), x, s).dtype == x.dtype
    assert (gg.ones(2, dtype="float32") * 1j).dtype == gg.complex64
    assert (gg.ones(2, dtype="int8") * 1.5).dtype == gg.get_default_dtype()


@pytest.mark.parametrize("name", ALL)
def test_kinds_and_limits(name):
    kinds = {
        "b": {"bool"}, "i": {"signed integer", "integral", "numeric"}, "u": {"unsigned integer", "integral", "numeric"},
        "f": {"real floating", "numeric"}, "c": {"complex floating", "numeric"},
    }  # fmt: skip
    dtype = np.dtype(getattr(gg, name))
    mine = kinds[dtype.kind]
    for kind in set().union(*kinds.values()):
        assert gg.isdtype(dtype, kind) is (kind in mine)
    assert gg.isdtype(dtype, dtype)
    assert gg.isdtype(dtype, ("bool", *mine))
    assert not gg.isdtype(dtype, gg.int8 if name == "bool" else gg.bool)
    if dtype.kind in "fc":
        limits, want = gg.finfo(gg.ones(1, dtype=dtype)), np.finfo(dtype)
        assert limits == gg.finfo(dtype)
        assert limits.dtype == want.dtype
        assert type(limits.bits) is int
        for a in ("eps", "max", "min", "smallest_normal"):
            assert type(getattr(limits, a)) is float
            assert getattr(limits, a) == getattr(want, a)
        with pytest.raises(DTypeError):
            gg.iinfo(dtype)
    elif dtype.kind in "iu":
        limits, want = gg.iinfo(dtype), np.iinfo(dtype)
        assert [type(v) for v in (limits.bits, limits.max, limits.min)] == [int] * 3
        assert (limits.bits, limits.max, limits.min, limits.dtype) == (want.bits, want.max, want.min, dtype)
        with pytest.raises(DTypeError):
            gg.finfo(dtype)


@pytest.mark.parametrize("name", ALL)
def test_a_data_type_equals_itself_and_no_other(name):
    # np.dtype("float64") == None holds in NumPy: a table of promotions that answers None would seem to answer float64
    dtype = getattr(gg, name)
    assert (dtype == None) is False  # noqa: E711
    assert [other for other in ALL if getattr(gg, other) == dtype] == [name]
    assert gg.ones(1, dtype=dtype).dtype == dtype
    assert gg.__array_namespace_info__().dtypes()[name] == dtype


def test_inspection():
    info = gg.__array_namespace_info__()
    assert info.capabilities() == {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}
    assert gg.ones((1,) * 64).ndim == 64
    assert info.default_device() in info.devices()
    made = {
        "real floating": gg.asarray(1.0), "complex floating": gg.asarray(1j), "integral": gg.asarray(1),
        "indexing": gg.argmax(gg.ones(2)),
    }  # fmt: skip
    assert info.default_dtypes(device="cpu") == {k: v.dtype for k, v in made.items()}
    assert info.dtypes() == {n: getattr(gg, n) for n in ALL}
    assert set(info.dtypes(kind=("bool", "complex floating"))) == {"bool", *COMPLEX}
    assert set(info.dtypes(kind="integral", device="cpu")) == set(INTEGERS)
    with pytest.raises(DTypeError, match="real"):
        info.dtypes(kind="real")


def test_astype():
    x = gg.asarray([1.5, -2.5])
    assert gg.astype(x, gg.float32) is not x
    assert gg.astype(x, gg.float32, copy=False) is x
    assert gg.astype(x, gg.int32, device="cpu").tolist() == [1, -2]
    assert gg.astype(x, gg.complex64).tolist() == [1.5 + 0j, -2.5 + 0j]
    with pytest.raises(DTypeError, match="imaginary"):
        gg.astype(gg.asarray([1j]), gg.float32)


# --- elementwise functions --------------------------------------------------------------------------------------------

UNARY = {
    "abs": REALS + COMPLEX, "bitwise_invert": ["bool", *INTEGERS], "ceil": REALS, "floor": REALS, "trunc": REALS,
    "conj": FLOATING, "real": FLOATING, "imag": COMPLEX, "logical_not": ["bool"], "signbit": ["float32", "float64"],
    **dict.fromkeys(("isfinite", "isinf", "isnan", "negative", "positive", "sign", "square", "round"), REALS + COMPLEX),
    **dict.fromkeys(
        ("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "expm1", "log", "log1p", "log2",
         "log10", "reciprocal", "sin", "sinh", "sqrt", "tan", "tanh"), FLOATING),
}  # fmt: skip
BINARY = {
    **dict.fromkeys(("add", "multiply", "subtract", "equal", "not_equal"), REALS + COMPLEX),
    **dict.fromkeys(("divide", "pow"), FLOATING),
    **dict.fromkeys(("floor_divide", "remainder", "greater", "greater_equal", "less", "less_equal", "maximum",
                     "minimum"), REALS),
    **dict.fromkeys(("atan2", "copysign", "hypot", "logaddexp", "nextafter"), FLOATING[:2]),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), ALL[:9]),
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift"), INTEGERS),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), ALL[:1]),
}  # fmt: skip
NUMPY = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan", "atanh": "arctanh",
    "atan2": "arctan2", "bitwise_invert": "invert", "bitwise_left_shift": "left_shift", "pow": "power",
    "bitwise_right_shift": "right_shift",
}  # fmt: skip


def values(dtype, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 7, size=(2, 3))
    x = x / 8 if np.dtype(dtype).kind in "fc" else x % 2 if dtype == "bool" else x
    return (x + 0.25j if np.dtype(dtype).kind == "c" else x).astype(dtype)


def flat(table):
    return [pytest.param(n, d, id=f"{n}-{d}") for n, dtypes in table.items() for d in dtypes]


@pytest.mark.parametrize("name, dtype", flat(UNARY))
def test_unary_dtypes_and_values(name, dtype):
    for x in (values(dtype, 0), values(dtype, 1)[0, 0], values(dtype, 2)[:0]):
        with np.errstate(all="ignore"):
            got, want = getattr(gg, name)(gg.asarray(x)), np.asarray(getattr(np, NUMPY.get(name, name))(x))
        assert (got.shape, got.dtype) == (want.shape, x.dtype if name == "round" else want.dtype)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5 if want.dtype.itemsize in (4, 8) else 1e-12)


@pytest.mark.parametrize("name, dtype", flat(BINARY))
def test_binary_dtypes_and_values(name, dtype):
    x, y = values(dtype, 3), values(dtype, 4)
    for a, b in ((x, y), (x[:, None, :1], y), (x[0, 0], y[1, 1]), (x[:0], y[:0]), (x[0, 0], y[:, :0])):
        got, want = getattr(gg, name)(*map(gg.asarray, (a, b))), np.asarray(getattr(np, NUMPY.get(name, name))(a, b))
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5 if want.dtype.itemsize in (4, 8) else 1e-12)


SPECIAL = [
    ("sign", (-0.0,), 0.0), ("sign", (complex(-0.0, -0.0),), 0j), ("sign", (nan,), nan), ("abs", (-inf,), inf),
    ("round", (-0.4,), -0.0), ("round", (2.5,), 2.0), ("round", (-1.5 + 2.5j,), -2 + 2j), ("ceil", (-0.5,), -0.0),
    ("trunc", (-0.5,), -0.0), ("floor", (-0.0,), -0.0), ("sqrt", (-0.0,), -0.0), ("reciprocal", (-0.0,), -inf),
    ("floor_divide", (inf, 2.0), inf), ("floor_divide", (inf, -2.0), -inf), ("floor_divide", (-inf, 2.0), -inf),
    ("floor_divide", (-inf, -2.0), inf), ("floor_divide", (3.0, -inf), -0.0), ("floor_divide", (-3.0, inf), -0.0),
    ("floor_divide", (3.0, inf), 0.0), ("floor_divide", (inf, inf), nan), ("floor_divide", (0.0, 0.0), nan),
    ("remainder", (3.0, -inf), -inf), ("remainder", (inf, 2.0), nan), ("remainder", (-0.0, 2.0), 0.0),
    ("pow", (nan, 0.0), 1.0), ("pow", (1.0, nan), 1.0), ("pow", (0.5, -inf), inf), ("pow", (-0.0, -1.0), -inf),
    ("atan2", (-0.0, -1.0), -math.pi), ("atan2", (0.0, -0.0), math.pi), ("atan2", (inf, -inf), 3 * math.pi / 4),
    ("hypot", (inf, nan), inf), ("hypot", (nan, 1.0), nan), ("logaddexp", (-inf, -inf), -inf),
    ("logaddexp", (inf, nan), nan), ("copysign", (nan, -0.0), nan), ("copysign", (3.0, -0.0), -3.0),
    ("maximum", (nan, 1.0), nan), ("minimum", (1.0, nan), nan), ("nextafter", (nan, 1.0), nan),
    ("signbit", (-0.0,), True), ("signbit", (0.0,), False), ("isfinite", (complex(inf, nan),), False),
    ("isinf", (complex(nan, -inf),), True), ("isnan", (complex(inf, nan),), True), ("equal", (nan, nan), False),
    ("expm1", (-0.0,), -0.0), ("log1p", (-0.0,), -0.0), ("log1p", (-1.0,), -inf), ("log", (-1.0,), nan),
    ("expm1", (complex(-0.0, 0.0),), 0j), ("expm1", (complex(1.0, inf),), complex(nan, nan)),
    ("expm1", (complex(inf, 0.0),), complex(inf, 0.0)), ("expm1", (complex(-inf, inf),), complex(-1.0, 0.0)),
    ("expm1", (complex(inf, inf),), complex(inf, nan)), ("expm1", (complex(-inf, nan),), complex(-1.0, 0.0)),
    ("expm1", (complex(inf, nan),), complex(inf, nan)), ("expm1", (complex(nan, 0.0),), complex(nan, 0.0)),
    ("expm1", (complex(-inf, 1.0),), complex(-1.0, 0.0)), ("expm1", (complex(inf, 2.0),), complex(-inf, inf)),
    ("tanh", (complex(inf, 2.0),), complex(1.0, 0.0)), ("tanh", (complex(-inf, 2.0),), complex(-1.0, 0.0)),
    ("tanh", (complex(inf, -2.0),), complex(1.0, -0.0)), ("tanh", (complex(nan, 0.0),), complex(nan, 0.0)),
]  # fmt: skip


def same(got, want):
    """Equal, NaN and the sign of zeros included, a rounding error allowed."""
    pairs = [(got.real, want.real), (got.imag, want.imag)] if isinstance(want, complex) else [(got, want)]
    return all(
        (math.isnan(g) and math.isnan(w))
        or (math.isclose(g, w, rel_tol=1e-6) and math.copysign(1.0, g) == math.copysign(1.0, w))
        for g, w in pairs
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["single", "double"])
@pytest.mark.parametrize("name, args, want", SPECIAL, ids=str)
def test_special_cases(name, args, want, dtype):
    kind = {"single": ("float32", "complex64"), "double": ("float64", "complex128")}[dtype]
    xs = [gg.full(3, a, dtype=kind[isinstance(a, complex)]) for a in args]
    for out in (getattr(gg, name)(*xs), getattr(gg, name)(*(x[0] for x in xs))):
        for got in np.atleast_1d(out.numpy()).tolist():
            assert same(got, want), f"{name}{args} gave {got}, expected {want}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype, tolerance", [("complex64", 1e-6), ("complex128", 1e-14)])
def test_complex_expm1_is_accurate_near_zero(dtype, tolerance):
    z = np.array([1e-6 + 1e-6j, 1e-9j, -1e-8, 0.3 - 2j, 5 + 3j], dtype)
    a, b = z.real.astype("longdouble"), z.imag.astype("longdouble")
    want = np.expm1(a) * np.cos(b) - 2 * np.sin(b / 2) ** 2 + 1j * np.exp(a) * np.sin(b)
    assert (np.abs(gg.expm1(gg.asarray(z)).numpy() - want) <= tolerance * np.abs(want)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("y", [0.5, [0.5], [[0.5], [0.5]], [[0.5] * 6] * 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_power_of_one_half_is_no_square_root(y, dtype):
    # C's pow, as the standard asks: inf at -inf and 0 at -0, however the exponent was given; a square root: NaN and -0
    x = gg.asarray([[-inf, -0.0, 0.0, 4.0, inf, -1.0]] * 2, dtype=dtype)
    want = np.asarray([[inf, 0.0, 0.0, 2.0, inf, nan]] * 2, dtype)
    exponents = [gg.asarray(y, dtype=dtype), gg.broadcast_to(gg.asarray(y, dtype=dtype), (2, 6))]
    for exponent in [y, *exponents] if y == 0.5 else exponents:
        got = (x**exponent).numpy()
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
        assert not np.signbit(got[:, :5]).any()
        assert (x[0, 0] ** exponent).numpy().flat[0] == inf


def test_clip_keeps_the_dtype():
    x = gg.asarray([1, 5, 9], dtype="int8")
    assert gg.clip(x, gg.asarray(2), gg.asarray(1000)).dtype == gg.int8
    assert gg.clip(x, gg.asarray(2), gg.asarray(1000)).tolist() == [2, 5, 9]
    y = gg.clip(gg.asarray([1.0, 5.0]), gg.asarray(2.0, dtype="float64"))
    assert (y.dtype, y.tolist()) == (gg.float32, [2.0, 5.0])
    slope = gg.grad(lambda x: gg.sum(gg.clip(x, gg.asarray(2.0, dtype="float64"))))(gg.asarray([1.0, 5.0]))
    assert (slope.dtype, slope.tolist()) == (gg.float32, [0.0, 1.0])


# --- operators and indexing -----------------------------------------------------------------------------------------

OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_reflected_and_in_place(name):
    f, in_place = getattr(operator, name), getattr(operator, "i" + name.strip("_"))
    ints = name in ("and_", "or_", "xor", "lshift", "rshift")
    a, b = (np.array([6, 5, 9], "int32"), np.array([1, 2, 3], "int32")) if ints else (
        np.array([6.5, -5.0, 9.0]), np.array([1.0, 2.0, 3.0])
    )  # fmt: skip
    x, y, number = gg.asarray(a), gg.asarray(b), 3 if ints else 2.5
    np.testing.assert_allclose(f(x, y).numpy(), f(a, b))
    np.testing.assert_allclose(f(x, number).numpy(), f(a, number))
    np.testing.assert_allclose(f(number, y).numpy(), f(number, b))
    old = x = gg.asarray(a.copy())
    x = in_place(x, y)
    np.testing.assert_allclose(x.numpy(), f(a, b))
    assert x.dtype == a.dtype
    assert old.tolist() == a.tolist()  # the name is bound anew; what it was bound to keeps its values


def test_in_place_operators_differentiate():
    def f(x):
        y = x
        y *= 3
        y += x
        y **= 2
        return gg.sum(y)

    assert gg.grad(f)(gg.asarray([1.0, 2.0])).tolist() == [32.0, 64.0]


@pytest.mark.parametrize(
    "key",
    [0, -1, (1, 2), (slice(None), 1), (..., 0), (None, 0, None), slice(None, None, -2), (slice(3, 0, -1), ...), (), ...,
     (slice(0, 0),), np.array([2, 0, -1]), (np.array([[0], [1]]), np.array([0, 2])), (1, np.array([0, 0])),
     np.array([True, False, True]), np.array([[True] * 4, [False] * 4, [True, False] * 2]), np.array(True),
     np.array(False), np.zeros(0, bool)],
    ids=str,
)  # fmt: skip
def test_indexing(key):
    def of_ours(k):
        return gg.asarray(k) if isinstance(k, np.ndarray) else k

    a = np.arange(12.0).reshape(3, 4)
    ours = tuple(map(of_ours, key)) if isinstance(key, tuple) else of_ours(key)
    x = gg.asarray(a.copy())
    got = x[ours]
    assert got.shape == a[key].shape
    assert got.tolist() == a[key].tolist()
    b = a.copy()
    b[key], x[ours] = -1.0, -1.0
    assert x.tolist() == b.tolist()


@pytest.mark.parametrize(
    "key", [3, (0, 0, 0), np.array([True, False]), np.array([3]), np.ones((3, 4, 1), bool)], ids=str
)
def test_wrong_indices(key):
    with pytest.raises(IndexError):
        gg.ones((3, 4))[gg.asarray(key) if isinstance(key, np.ndarray) else key]


def test_conversions():
    assert (int(gg.asarray(3)), float(gg.asarray(2.5)), complex(gg.asarray(1j))) == (3, 2.5, 1j)
    assert bool(gg.asarray(True)) is True
    assert [10, 20][gg.asarray(1)] == 20
    with pytest.raises(TypeError):
        operator.index(gg.asarray(1.0))


# --- creation -------------------------------------------------------------------------------------------------------


def test_creation():
    assert gg.full(2, True).dtype == gg.bool
    assert gg.full((2,), 3).dtype == gg.int64
    assert gg.full((), 1j).dtype == gg.complex64
    assert gg.asarray([1, 2**63], dtype="uint64").tolist() == [1, 2**63]
    with pytest.raises(OverflowError):
        gg.asarray([300], dtype="uint8")
    assert gg.linspace(0, 1j, 3).tolist() == [0j, 0.5j, 1j]
    assert gg.linspace(0, 1, 4, endpoint=False, dtype="float64").tolist() == [0.0, 0.25, 0.5, 0.75]
    assert gg.eye(2, 3, k=1).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert gg.eye(2, k=10**30).tolist() == gg.eye(2, k=-(10**30)).tolist() == [[0, 0], [0, 0]]
    assert gg.meshgrid() == []
    assert [g.tolist() for g in gg.meshgrid(gg.arange(2), gg.arange(1))] == [[[0, 1]], [[0, 0]]]
    assert gg.arange(5, 1, -2).tolist() == [5, 3]
    assert gg.arange(1.0, 2.0, 0.25).dtype == gg.float32
    assert gg.arange(2**63 + 5, 2**63, -2, dtype="uint64").tolist() == [2**63 + 5, 2**63 + 3, 2**63 + 1]
    assert gg.arange(-(2**63), 2**63 - 1, 2**62).tolist() == [-(2**63), -(2**62), 0, 2**62]
    assert gg.linspace(2**62 + 1, 2**62 + 7, 4, dtype="int64").tolist() == [2**62 + k for k in (1, 3, 5, 7)]
    assert gg.linspace(-3, 0, 2, endpoint=False, dtype="int8").tolist() == [-3, -2]
    assert gg.linspace(0.0, -1.5, 2, dtype="int8").tolist() == [0, -2]
    assert gg.linspace(5, 9, 1, dtype="int8").tolist() == [5]
    for x in (gg.zeros_like(gg.asarray(1j)), gg.empty((0, 2), dtype="int8"), gg.ones((), dtype=gg.bool)):
        assert gg.full_like(x, 1).dtype == x.dtype


def test_asarray_copies_as_told():
    x = gg.asarray([1.0, 2.0])
    shared, own = gg.asarray(x, copy=False), gg.asarray(x, copy=True)
    x[0] = 5.0
    assert (shared.tolist(), own.tolist()) == ([5.0, 2.0], [1.0, 2.0])
    with pytest.raises(ShapeError, match="copy"):
        gg.asarray(x, dtype="float64", copy=False)


def test_reshape_copies_as_told():
    x = gg.asarray(np.arange(6.0).reshape(2, 3))
    assert np.shares_memory(gg.reshape(x, (6,), copy=False).data, x.data)
    assert not np.shares_memory(gg.reshape(x, (6,), copy=True).data, x.data)
    assert gg.reshape(x.mT, (6,), copy=True).tolist() == [0, 3, 1, 4, 2, 5]
    with pytest.raises(ShapeError, match="copy"):
        gg.reshape(x.mT, (6,), copy=False)
    assert gg.reshape(gg.ones((0, 3)), (3, 0), copy=False).shape == (3, 0)


@pytest.mark.parametrize("dtype", ALL)
def test_dlpack(dtype):
    x = gg.asarray(values(dtype, 5))
    assert x.__dlpack_device__() == (1, 0)
    there = np.from_dlpack(x)
    back = gg.from_dlpack(there)
    assert np.shares_memory(there, x.data)
    assert np.shares_memory(back.data, x.data)
    assert gg.from_dlpack(x).tolist() == gg.from_dlpack(x.numpy(copy=True), device="cpu").tolist() == x.tolist()
    assert not np.shares_memory(gg.from_dlpack(x, copy=True).data, x.data)


def test_dlpack_refuses():
    with pytest.raises(GraphError, match="detach"):
        np.from_dlpack(gg.ones(2).requires_grad_())
    with pytest.raises(DTypeError, match="list"):
        gg.from_dlpack([1.0])
    x = gg.ones(2)
    assert x.to_device("cpu") is x
    with pytest.raises(gg.errors.DeviceError, match="stream"):
        x.to_device("cpu", stream=1)


# --- sets, searching, sorting, sums -----------------------------------------------------------------------------------


def test_sets():
    x = gg.asarray([[2.0, nan, -0.0], [nan, 0.0, 2.0]])
    found = gg.unique_all(x)
    np.testing.assert_array_equal(found.values.numpy(), [0.0, 2.0, nan, nan])
    assert found.indices.tolist() == [2, 0, 1, 3]
    assert found.inverse_indices.tolist() == [[1, 2, 0], [3, 0, 1]]
    assert found.counts.tolist() == [2, 2, 1, 1]
    assert found.counts.dtype == found.indices.dtype == found.inverse_indices.dtype == gg.int64
    np.testing.assert_array_equal(gg.unique_values(x).numpy(), found.values.numpy())
    assert gg.unique_counts(x).counts.tolist() == found.counts.tolist()
    assert gg.unique_inverse(x).inverse_indices.tolist() == found.inverse_indices.tolist()
    for empty in (gg.zeros((0, 2)), gg.zeros((2, 0), dtype="int8")):
        assert gg.unique_all(empty).inverse_indices.shape == empty.shape
        assert gg.unique_values(empty).dtype == empty.dtype
    assert gg.unique_all(gg.asarray(7)).values.tolist() == [7]
    assert gg.grad(lambda x: gg.sum(gg.unique_values(x) ** 2))(gg.asarray([3.0, 1.0, 3.0])).tolist() == [6.0, 2.0, 0.0]
    assert gg.isin(gg.asarray([1, 2, 3]), gg.asarray([3, 1])).tolist() == [True, False, True]
    assert gg.isin(2, gg.asarray([1, 2]), invert=True).item() is False
    assert gg.isin(gg.asarray([nan]), gg.asarray([nan])).tolist() == [False]


def test_searching_and_sorting():
    x = gg.asarray([3, 1, 2])
    assert gg.searchsorted(x, gg.asarray([2, 9]), sorter=gg.argsort(x), side="right").tolist() == [2, 3]
    assert gg.searchsorted(gg.asarray([1, 2]), 2).shape == ()
    assert gg.argsort(gg.asarray([1, 0, 1]), descending=True).tolist() == [0, 2, 1]
    assert gg.sort(gg.zeros((2, 0)), axis=1).shape == (2, 0)
    assert [i.tolist() for i in gg.nonzero(gg.asarray([[0, 1], [1, 0]]))] == [[0, 1], [1, 0]]
    with pytest.raises(ShapeError, match="0-d"):
        gg.nonzero(gg.asarray(1))
    assert gg.count_nonzero(gg.ones((2, 3)), axis=0).tolist() == [2, 2, 2]
    assert gg.where(gg.asarray([True, False]), 1.5, gg.asarray([1, 2])).tolist() == [1.5, 2.0]


@pytest.mark.parametrize("dtype", REALS + COMPLEX)
def test_sums_and_products(dtype):
    x = gg.asarray(values(dtype, 6))
    wide = {"i": gg.int64, "u": gg.uint64}.get(x.dtype.kind, x.dtype)
    for f in (gg.sum, gg.prod, gg.cumulative_sum, gg.cumulative_prod):
        k = {"axis": 0} if f in (gg.cumulative_sum, gg.cumulative_prod) else {}
        assert f(x, **k).dtype == wide
        assert f(x, **k, dtype=gg.complex128).dtype == gg.complex128
    assert gg.linalg.trace(x).dtype == wide
    assert gg.sum(x[:0], axis=0).tolist() == [0, 0, 0]
    assert gg.prod(x[:0]).item() == 1
    assert gg.all(x[:0]).item() is True
    assert gg.any(x[:0]).item() is False


@pytest.mark.parametrize("f", [gg.mean, gg.var, gg.std])
def test_averages_of_nothing_are_nan(f):
    x = gg.zeros((0, 2), dtype="float64")
    assert math.isnan(f(x).item())
    assert np.isnan(f(x, axis=0).numpy()).tolist() == [True, True]
    assert f(x, axis=1, keepdims=True).shape == (0, 1)
    assert gg.grad(lambda x: gg.sum(f(x, axis=0)))(x).shape == (0, 2)
    assert np.isnan(f(gg.asarray([1.0, nan, 2.0])).item())


def test_cumulative_with_an_initial_value_keeps_small_numbers():
    x = gg.asarray([1e-20, 2.0])
    assert gg.cumulative_prod(x, include_initial=True).tolist() == [1.0, *gg.cumulative_prod(x).tolist()]
    assert gg.cumulative_sum(gg.asarray([[1, 2]], dtype="uint8"), axis=1, include_initial=True).tolist() == [[0, 1, 3]]
    assert gg.cumulative_sum(gg.zeros((2, 0)), axis=1, include_initial=True).shape == (2, 1)
    slope = gg.grad(lambda x: gg.sum(gg.cumulative_prod(x, include_initial=True) ** 2))(gg.asarray([2.0, 3.0]))
    assert slope.tolist() == [40.0, 24.0]


def test_repeat_of_nothing():
    assert gg.repeat(gg.asarray([]), gg.asarray([])).shape == (0,)
    assert gg.repeat(gg.ones((0, 2)), gg.asarray([], dtype="int64"), axis=0).shape == (0, 2)


# --- linear algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
def test_decompositions(dtype):
    rng = np.random.default_rng(7)
    real = np.empty(0, dtype).real.dtype
    tol = 1e-4 if real == "float32" else 1e-12
    a = (rng.normal(size=(2, 4, 3)) + (1j * rng.normal(size=(2, 4, 3)) if real != dtype else 0)).astype(dtype)
    x, L = gg.asarray(a), gg.linalg
    for full in (True, False):
        u, s, vh = found = L.svd(x, full_matrices=full)
        assert (found.U is u, found.S is s, found.Vh is vh) == (True, True, True)
        assert (u.shape, u.dtype, s.dtype, vh.dtype) == ((2, 4, 4 if full else 3), dtype, real, dtype)
        np.testing.assert_allclose(((u[..., :3] * s[:, None, :]) @ vh).numpy(), a, atol=tol)
    for mode, wide in itertools.product(("reduced", "complete"), (False, True)):
        y = x.mT if wide else x
        q, r = L.qr(y, mode=mode)
        want = np.linalg.qr(y.numpy(), mode=mode)
        assert (q.shape, r.shape, q.dtype, r.dtype) == (want[0].shape, want[1].shape, dtype, dtype)
        np.testing.assert_allclose((q @ r).numpy(), y.numpy(), atol=tol)
        np.testing.assert_allclose((gg.conj(q).mT @ q).numpy()[1], np.eye(q.shape[-1]), atol=tol)
    gram = gg.conj(x).mT @ x
    w, v = found = L.eigh(gram)
    assert (found.eigenvalues is w, w.dtype, v.dtype) == (True, real, dtype)
    np.testing.assert_allclose((gram @ v).numpy(), (v * w[:, None, :]).numpy(), atol=10 * tol)
    np.testing.assert_allclose(L.eigvalsh(gram).numpy(), np.linalg.eigvalsh(gram.numpy()), atol=10 * tol)
    low, up = L.cholesky(gram), L.cholesky(gram, upper=True)
    np.testing.assert_allclose((gg.conj(up).mT @ up).numpy(), (low @ gg.conj(low).mT).numpy(), atol=10 * tol)
    found = L.slogdet(gram)
    np.testing.assert_allclose((found.sign * gg.exp(found.logabsdet)).numpy(), L.det(gram).numpy(), rtol=10 * tol)
    assert found.logabsdet.dtype == real
    np.testing.assert_allclose(L.pinv(x).numpy(), np.linalg.pinv(a), atol=10 * tol)
    assert L.matrix_rank(x).tolist() == [3, 3]
    assert L.vector_norm(x).dtype == L.matrix_norm(x).dtype == L.svdvals(x).dtype == real
    for ord in ("fro", "nuc", 2, -2, 1, -1, inf, -inf):
        want = [np.linalg.norm(m, ord) for m in a]
        np.testing.assert_allclose(L.matrix_norm(x, ord=ord).numpy(), want, rtol=10 * tol)
    for ord in (0, 1, 2, 3.5, inf, -inf):
        want = np.linalg.norm(a.reshape(-1), ord)
        np.testing.assert_allclose(L.vector_norm(x, ord=ord).numpy(), want, rtol=10 * tol)
    np.testing.assert_allclose(gg.vecdot(x, 2 * x).numpy(), 2 * (np.abs(a) ** 2).sum(-1), rtol=10 * tol)


def test_rank_and_pseudoinverse_by_a_tolerance():
    x = gg.asarray([[[1.0, 0.0], [0.0, 1e-3]], [[1.0, 0.0], [0.0, 0.0]]])
    assert gg.linalg.matrix_rank(x).tolist() == [2, 1]
    assert gg.linalg.matrix_rank(x, rtol=1e-2).tolist() == [1, 1]
    assert gg.linalg.matrix_rank(x, rtol=gg.asarray([1e-4, 0.0])).tolist() == [2, 1]
    assert gg.linalg.pinv(x, rtol=1e-2).tolist() == [[[1.0, 0.0], [0.0, 0.0]]] * 2
    assert gg.linalg.matrix_rank(gg.zeros((2, 0, 3))).tolist() == [0, 0]
    assert gg.linalg.pinv(gg.zeros((0, 3))).shape == (3, 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 0), (0, 2, 2)])
def test_empty_matrices(shape):
    x, L = gg.zeros(shape), gg.linalg
    stack, m, n = shape[:-2], *shape[-2:]
    for ord in ("fro", "nuc", 1, 2, inf):
        assert L.matrix_norm(x, ord=ord).tolist() == np.zeros(stack).tolist()
    assert [v.shape for v in L.svd(x)] == [(*stack, m, m), (*stack, 0 if shape != (0, 2, 2) else 2), (*stack, n, n)]
    assert [v.shape for v in L.qr(x, mode="complete")] == [(*stack, m, m), shape]
    assert L.diagonal(x, offset=5).shape == (*stack, 0)
    assert L.trace(x).shape == stack
    if m == n:
        assert L.matrix_power(x, 0).shape == L.inv(x).shape == L.eigh(x).eigenvectors.shape == shape
        assert L.det(x).tolist() == np.linalg.det(x.numpy()).tolist()


def test_integer_products_keep_their_type():
    x = gg.ones((2, 3), dtype="int8")
    assert gg.vecdot(x, x).dtype == gg.matmul(x, x.mT).dtype == gg.tensordot(x, x, axes=2).dtype == gg.int8
    assert gg.linalg.cross(x, gg.ones(3, dtype="int8")).dtype == gg.int8
    with pytest.raises(RangeError):
        gg.linalg.cross(x, gg.ones(3), axis=-2)


# --- Fourier transforms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"])
def test_transforms_along_an_axis(name, norm):
    rng = np.random.default_rng(8)
    real = name in ("rfft", "ihfft")
    a = rng.normal(size=(4, 5)) + (0 if real else 1j * rng.normal(size=(4, 5)))
    for n, axis in ((None, -1), (3, 1), (7, 0)):
        want = getattr(np.fft, name)(a, n=n, axis=axis, norm=norm)
        for dtype, tol in (("complex128", 1e-12), ("complex64", 1e-5)):
            x = gg.asarray(a.astype(np.empty(0, dtype).real.dtype if real else dtype))
            got = getattr(gg.fft, name)(x, n=n, axis=axis, norm=norm)
            assert got.dtype == (dtype if want.dtype.kind == "c" else np.empty(0, dtype).real.dtype)
            np.testing.assert_allclose(got.numpy(), want, atol=tol)


@pytest.mark.parametrize("name", ["fftn", "ifftn", "rfftn", "irfftn"])
def test_transforms_over_several_axes(name):
    rng = np.random.default_rng(9)
    a = rng.normal(size=(3, 4, 5)) + (0 if name == "rfftn" else 1j * rng.normal(size=(3, 4, 5)))
    for s, axes in ((None, None), ((2, 6), (0, 2)), (None, (2, 1)), ((4, 3, 2), (0, 1, 2))):
        want = getattr(np.fft, name)(a, s=s, axes=axes, norm="ortho")
        np.testing.assert_allclose(getattr(gg.fft, name)(gg.asarray(a), s=s, axes=axes, norm="ortho").numpy(), want)
    last = getattr(gg.fft, name)(gg.asarray(a), s=(2, 6))  # s alone: the last axes
    np.testing.assert_allclose(last.numpy(), getattr(np.fft, name)(a, s=(2, 6), axes=(1, 2)))


def test_frequencies_and_shifts():
    for n in range(1, 8):
        for ours, theirs in ((gg.fft.fftfreq, np.fft.fftfreq), (gg.fft.rfftfreq, np.fft.rfftfreq)):
            np.testing.assert_allclose(ours(n, d=0.3, dtype="float64").numpy(), theirs(n, 0.3), rtol=1e-15)
            assert ours(n).dtype == gg.float32
        x = np.arange(3.0 * n).reshape(3, n)
        for axes in (None, 0, (1,), (0, 1)):
            assert gg.fft.fftshift(gg.asarray(x), axes=axes).tolist() == np.fft.fftshift(x, axes).tolist()
            assert gg.fft.ifftshift(gg.asarray(x), axes=axes).tolist() == np.fft.ifftshift(x, axes).tolist()
    assert gg.grad(lambda x: gg.fft.fftshift(x)[0])(gg.asarray([1.0, 2.0, 3.0])).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("call, kind, word", [
    (lambda: gg.fft.fft(gg.ones(3), norm="none"), RangeError, "'none'"),
    (lambda: gg.fft.rfft(gg.ones(3, dtype="complex64")), DTypeError, "complex64[3]"),
    (lambda: gg.fft.fft(gg.ones(0)), ShapeError, "no points"),
    (lambda: gg.fft.irfft(gg.ones(1)), ShapeError, "n=0"),
    (lambda: gg.fft.fftn(gg.ones((2, 2)), s=(2,), axes=(0, 1)), ShapeError, "differ"),
    (lambda: gg.fft.fftn(gg.ones((2, 0))), ShapeError, "no points"),
    (lambda: gg.fft.fft(gg.ones(3), axis=1), RangeError, "axis 1"),
    (lambda: gg.fft.fftfreq(0), ShapeError, "n is 0"),
    (lambda: gg.fft.fftfreq(3, dtype="int8"), DTypeError, "int8"),
    (lambda: gg.fft.fft(gg.ones(3).requires_grad_()), DTypeError, "no derivative"),
])  # fmt: skip
def test_wrong_transforms(call, kind, word):
    with pytest.raises(kind) as caught:
        call()
    assert word in str(caught.value)


# --- complex numbers compute; what would need their derivative says so ------------------------------------------------


@pytest.mark.parametrize("f", [
    lambda x: gg.abs(x * 1j), lambda x: gg.real(gg.astype(x, gg.complex64)), lambda x: gg.imag(gg.exp(x * 1j)),
    lambda x: gg.abs(gg.concat([x, gg.asarray([1j])])),
])  # fmt: skip
def test_a_graph_through_complex_numbers_is_refused(f):
    with pytest.raises(DTypeError, match="complex numbers"):
        gg.grad(lambda x: gg.sum(f(x)))(gg.ones(3))
    assert f(gg.ones(3)).shape[0] >= 3


def test_tangents_of_complex_numbers_are_refused():
    x = gg.ones(3)
    for f in (lambda x: gg.abs(x * 1j), lambda x: gg.abs(gg.fft.fft(x))):
        with pytest.raises(DTypeError, match="complex numbers"):
            gg.jvp(f, (x,), (x,))


def test_complex_leaves_are_refused():
    with pytest.raises(DTypeError, match="complex64"):
        gg.ones(2, dtype="complex64").requires_grad_()


# --- random arrays, as the standard's own suite makes them ------------------------------------------------------------


def test_hypothesis_makes_arrays_of_this_namespace():
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.extra.array_api")
    xps = strategies.make_strategies_namespace(gg, api_version="2024.12")
    seen = set()

    @hypothesis.settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @hypothesis.given(x=xps.arrays(xps.scalar_dtypes(), xps.array_shapes(min_dims=0, min_side=0, max_side=3)))
    def run(x):
        seen.add(x.dtype.name)
        assert isinstance(x, gg.Tensor)
        again = gg.asarray(x.tolist(), dtype=x.dtype)
        np.testing.assert_array_equal(gg.reshape(again, x.shape).numpy(), x.numpy())

    run()
    assert len(seen) > 5
