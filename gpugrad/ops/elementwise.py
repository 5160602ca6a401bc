"""Elementwise functions: arithmetic, powers, exponentials, trigonometry, comparison and choice.

One derivative an input, used in both directions. Slopes at kinks: docs/kinks.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.backends import threads
from gpugrad.define import elementwise, finish, nondiff
from gpugrad.dtypes import get_default_dtype
from gpugrad.errors import DomainError, describe, fail
from gpugrad.launch import activation as launch
from gpugrad.layered import LAYERS
from gpugrad.op import RECORDING, TABLE, Op, nary
from gpugrad.operands import alive, join, scalar_array
from gpugrad.tensor import Tensor

__all__ = [
    "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and", "bitwise_invert",
    "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "cbrt", "ceil", "clip", "conj",
    "copysign", "cos", "cosh", "deg2rad", "divide", "equal", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "floor",
    "floor_divide", "fmax", "fmin", "greater", "greater_equal", "heaviside", "hypot", "imag", "isfinite", "isinf",
    "isnan", "less", "less_equal", "log", "log1p", "log2", "log10", "logaddexp", "logaddexp2", "logical_and",
    "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "nan_to_num", "negative", "nextafter",
    "not_equal", "positive", "pow", "rad2deg", "real", "reciprocal", "remainder", "rint", "round", "sign", "signbit",
    "sin", "sinc", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc", "where", "xlogy",
]  # fmt: skip

LN2, LN10 = math.log(2.0), math.log(10.0)


# --- helpers ------------------------------------------------------------------------------------------------


def select(xp: Any, condition: Any, x: Any, y: Any, into: Any = None) -> Any:
    """x where the condition holds, else y; of one dtype, or one of them a Python scalar. `into`: memory for it.

    NumPy's where takes a branch an element, ten times slower than arithmetic when the mask is irregular, so large
    float arrays on the host are blended bit by bit: exact for NaN, inf and -0 too.
    """
    array = y if hasattr(y, "dtype") else x
    if xp is not np or array.size < 4096 or array.dtype.kind != "f" or array.itemsize > 8 or condition.dtype != bool:
        return xp.where(condition, x, y)
    dtype, bits = array.dtype, f"i{array.itemsize}"
    b = np.asarray(y, dtype).view(bits)
    if type(x) is int and x == 0:
        mask = condition.view("i1") - ONE
        out = np.bitwise_and(b, mask, out=None if into is None else into.view(bits))
        return out.view(dtype) if into is None else into
    blend = (np.asarray(x, dtype).view(bits) ^ b) & -condition.view("i1")
    blend ^= b
    return blend.view(dtype)


ONE = np.ones((), "i1")
BLOCK = 1 << 16
SMALL = 8192  # of fewer elements a dot product is the fastest look, and made by one thread


def blocked(forward: Callable[..., Any], block: int = BLOCK, least: int = 0) -> Callable[..., Any]:
    """A formula of many passes, run in cache-sized pieces on large host arrays: 4 times faster at 1e6 elements,
    because its temporaries stay in the cache. The result has the dtype of the last array; with `reuse`, its memory.
    A formula with a parameter `into` may put each piece there itself. least: elements from which pieces are worth it.
    """
    least = least or min(block, threads.SHARED)
    direct = "into" in forward.__code__.co_varnames

    @functools.wraps(forward)
    def run(xp: Any, *arrays: Any, into: Any = None, reuse: bool = False, **attrs: Any) -> Any:
        x = arrays[-1]
        into = x if reuse else into
        whole = xp is not np or x.size <= least or any(a.shape != x.shape for a in arrays)
        if not whole and not x.flags.c_contiguous:
            axes = sorted(range(x.ndim), key=lambda i: -x.strides[i])
            out = np.empty_like(x) if into is None else into
            turned = [a.transpose(axes) for a in (*arrays, out)]
            if all(a.flags.c_contiguous for a in turned):
                run(xp, *turned[:-1], into=turned[-1], **attrs)
                return out
            whole = True
        if whole:
            if not direct:
                return forward(xp, *arrays, **attrs)
            if into is None and all((a.shape, a.dtype) == (x.shape, x.dtype) for a in arrays) and xp is np:
                into = np.empty_like(x)  # lies as with `reuse`, on which the bits of later sums depend
            return forward(xp, *arrays, into=into, **attrs)
        out = np.empty(x.shape, x.dtype) if into is None else into
        flat, put, step = [a.reshape(-1) for a in arrays], out.reshape(-1), threads.portion(x.size, block)

        def work(i: int) -> None:
            here, pieces = put[i : i + step], [a[i : i + step] for a in flat]
            made = forward(xp, *pieces, into=here, **attrs) if direct else forward(xp, *pieces, **attrs)
            if made is not here:
                here[...] = made

        threads.share(work, range(0, x.size, step), x.size)
        return out

    return run


def beside(value: Any, x: Any) -> Any:
    """A Python scalar as a 0-d tensor of x's dtype and device (the default float for a float beside integers)."""
    if not isinstance(x, Tensor) or hasattr(value, "shape"):
        return value
    dtype = get_default_dtype() if isinstance(value, float) and x.dtype.kind in "iub" else x.dtype
    return Tensor(backends.of(x.data).asarray(value, dtype=dtype, device=x.device))


def tracked(x: Any) -> bool:
    """Whether x is an operand that gradients flow to, or tangents come from."""
    return type(x) is Tensor and (alive(x.node) is not None or (type(x.data) in LAYERS and x.data.varied))


def zero_slope(F: Any, t: Any, _out: Any, *_inputs: Any) -> Any:
    """The derivative of a piecewise constant function, recorded all the same."""
    return F.zeros_like(t)


# A zero cotangent stays zero whatever the slope, inf and NaN included: where(x > 0, sqrt(x), 0) has a finite gradient.
# Rules whose slope is infinite somewhere are written with absorb and quotient; what any other elementwise rule makes of
# zeros goes through absorbed, once the walk has passed an op that puts zeros into cotangents.


def quotient_forward(xp: Any, t: Any, d: Any) -> Any:
    """The form without a spurious 0 / 0; of a large host array with no divisor 0 or NaN, the quotient."""
    if xp is np and d.size >= SMALL and d.all() and d.max() == d.max():
        return t / d
    return t / xp.where(t == 0, 1, d)


def absorbed_forward(xp: Any, g: Any, t: Any, infinite: bool) -> Any:
    """g itself if a look at all its elements, on the host cheaper than any arithmetic, shows no NaN."""
    if xp is np and g.shape == t.shape:
        seen = (flat := g.ravel()).dot(flat) if g.size < SMALL else g.max()
        if seen == seen:
            return g
    return xp.where((g != g) & ((t == 0) | xp.isinf(t) if infinite else t == 0), 0, g)


absorb = elementwise(
    "absorb", lambda xp, t, slope: t * select(xp, t == 0, 0, slope),
    lambda F, u, _out, _t, slope: F.absorb(u, slope),
    lambda F, u, _out, t, _slope: F.absorb(t, u), singular=2,
    doc="t * slope, and 0 where t is 0 even if the slope is infinite or NaN.",
)  # fmt: skip
quotient = elementwise(
    "quotient", quotient_forward,
    lambda F, u, _out, _t, d: F.quotient(u, d),
    lambda F, u, out, _t, d: -F.quotient(F.absorb(out, u), d),
    doc="t / d, and 0 where t is 0 even if d is 0 or NaN.", floating=True, singular=2,
)  # fmt: skip
absorbed = elementwise(
    "absorbed", absorbed_forward,
    lambda F, u, out, g, t, infinite: F.absorbed(F.where((g != g) & (out == out), 0, u), t, infinite=infinite), None,
    attrs=True, singular=1, cuda=launch.absorbed,
    doc="g = t * slope, but 0 where that is NaN and t is 0 or, if `infinite`, inf: what 0 * inf and 0 * NaN count as.",
)  # fmt: skip


# --- arithmetic ---------------------------------------------------------------------------------------------

add = elementwise("add", "add", lambda F, t, _out, _x, _y: t, lambda F, t, _out, _x, _y: t, doc="x + y, broadcast.")
subtract = elementwise(
    "subtract", "subtract", lambda F, t, _out, _x, _y: t, lambda F, t, _out, _x, _y: -t, doc="x - y, broadcast.",
)  # fmt: skip
multiply = elementwise(
    "multiply", "multiply", lambda F, t, _out, _x, y: t * y, lambda F, t, _out, x, _y: t * x, doc="x * y, broadcast.",
)  # fmt: skip
divide = elementwise(
    "divide", "divide", lambda F, t, _out, _x, y: t / y, lambda F, t, out, _x, y: -t * out / y, floating=True,
    doc="x / y, broadcast; integers give the default float.",
)  # fmt: skip


def floor_divide_forward(xp: Any, x: Any, y: Any) -> Any:
    """The array module's, but for infinite operands: the Array API has floor of the quotient, Python NaN and -1."""
    out = xp.floor_divide(x, y)
    if out.dtype.kind != "f":
        return out
    return xp.where(xp.isinf(x) | xp.isinf(y), xp.floor(xp.divide(x, y)), out)


floor_divide = nondiff("floor_divide", floor_divide_forward, 2, doc="floor(x / y), broadcast.")
remainder = elementwise(
    "remainder", "remainder", lambda F, t, _out, _x, _y: t, lambda F, t, _out, x, y: -t * F.floor_divide(x, y),
    doc="x - y * floor(x / y): the remainder with the sign of y.",
)  # fmt: skip
negative = elementwise("negative", "negative", lambda F, t, _out, _x: -t, doc="-x.")
positive = elementwise("positive", "positive", lambda F, t, _out, _x: t, doc="+x, a copy.")
reciprocal = elementwise(
    "reciprocal", "reciprocal", lambda F, t, out, _x: F.absorb(-t, out * out), floating=True, doc="1 / x.",
)  # fmt: skip
square = elementwise("square", "square", lambda F, t, _out, x: t * (2 * x), doc="x * x.")
sqrt = elementwise(
    "sqrt", "sqrt", lambda F, t, out, _x: F.quotient(0.5 * t, out), floating=True, singular=2,
    doc="Square root; NaN below 0.",
)  # fmt: skip
cbrt = elementwise(
    "cbrt", "cbrt", lambda F, t, out, _x: F.quotient(t, 3 * (out * out)), floating=True, singular=2, doc="Cube root.",
)  # fmt: skip
abs = elementwise("abs", "abs", lambda F, t, _out, x: t * F.sign(x), doc="Absolute value.")


def unsigned_zero(name: str) -> Callable[..., Any]:
    """A NumPy function whose zeros lose their sign."""

    def forward(xp: Any, x: Any) -> Any:
        out = getattr(xp, name)(x)
        return out if out.dtype.kind in "iu" else out + out.dtype.type(0)

    return forward


sign = elementwise(
    "sign", "sign", zero_slope, cpu=unsigned_zero("sign"), doc="-1, 0 or 1, and x / |x| of a complex number.",
)  # fmt: skip
signbit = nondiff("signbit", "signbit", doc="Whether the sign bit is set: true for -0.0.")
copysign = elementwise(
    "copysign", "copysign", lambda F, t, out, x, _y: t * (F.sign(x) * F.sign(out)), zero_slope, floating=True,
    doc="|x| with the sign of y.",
)  # fmt: skip
nextafter = nondiff("nextafter", "nextafter", 2, doc="The floating-point number after x towards y.")
hypot = elementwise(
    "hypot", "hypot", lambda F, t, out, x, _y: F.quotient(t * x, out),
    lambda F, t, out, _x, y: F.quotient(t * y, out), floating=True, doc="sqrt(x^2 + y^2) without overflow.",
)  # fmt: skip


def pow_dx(F: Any, t: Any, _out: Any, x: Any, y: Any) -> Any:
    """y x^(y-1); 0 where y is 0, even at x = 0. A Python exponent decides without looking at the data."""
    if hasattr(y, "dtype"):
        return F.absorb(t, F.absorb(y, x ** (y - 1)))
    if y == 0:
        return F.zeros_like(x)
    return t * (y * x ** (y - 1)) if y >= 1 else F.absorb(t, y * x ** (y - 1))


def pow_dy(F: Any, t: Any, out: Any, x: Any, _y: Any) -> Any:
    """out log(x); 0 where x is 0."""
    return F.absorb(t, F.absorb(F.log(F.where(x == 0, 1, x)), out))


def power(xp: Any, x: Any, y: Any) -> Any:
    """x**y of C's pow: NumPy takes one exponent 0.5 for many bases as a square root, NaN at -inf and -0 at -0."""
    out = x**y
    many = 0 in y.strides or y.size < out.size or out.size == 1 if hasattr(y, "strides") else y == 0.5
    if xp is np and many and out.dtype.kind == "f":
        out, halves = np.asarray(out), y == 0.5
        for base, root in ((-math.inf, math.inf), (0.0, 0.0)):
            at = x == base
            np.copyto(out, root, where=at if halves is True else at & halves)
    return out


_pow = elementwise("pow", power, pow_dx, pow_dy, singular=2)


def pow(x: Any, y: Any) -> Any:
    """x to the power y, broadcast.

    The derivative in x is 0 where y is 0; the one in y is 0 where x is 0 and NaN below. A Python exponent keeps
    x's dtype. Raises DomainError for integers to a negative Python integer.
    """
    if isinstance(y, (int, float)):
        if y == 2:
            return square(x)
        if y < 0 and isinstance(y, int) and hasattr(x, "dtype") and x.dtype.kind in "iub":
            raise fail(
                DomainError, "pow", f"({describe(x)}, {y}): a negative power of integers; convert to float first"
            )
    return _pow(beside(x, y), y)  # a base needs its logarithm, hence its dtype


# --- exponentials and logarithms ----------------------------------------------------------------------------

exp = elementwise("exp", "exp", lambda F, t, out, _x: t * out, floating=True, doc="e to the x.")
exp2 = elementwise("exp2", "exp2", lambda F, t, out, _x: t * (out * LN2), floating=True, doc="2 to the x.")


def complex_where(xp: Any, z: Any, *cases: tuple[Any, Any, Any]) -> Any:
    """z with its parts replaced case by case: (mask, real part, imaginary part), None for a part that stays."""
    re, im = z.real, z.imag
    for mask, u, v in cases:
        re, im = re if u is None else xp.where(mask, u, re), im if v is None else xp.where(mask, v, im)
    return whole_complex(xp, re, im)


def whole_complex(xp: Any, re: Any, im: Any) -> Any:
    """re + i im without arithmetic, which would spoil infinities."""
    parts = xp.stack([re, im], -1)
    return parts.view(np.result_type(parts.dtype, np.complex64))[..., 0]


def expm1_forward(xp: Any, x: Any) -> Any:
    """The array module's; a complex one by exp(a) cis(b) - 1 = expm1(a) cos b - 2 sin(b/2)^2 + i exp(a) sin b."""
    if x.dtype.kind != "c":
        return xp.expm1(x)
    a, b = x.real, x.imag
    half = xp.sin(b / 2)
    z = whole_complex(xp, xp.expm1(a) * xp.cos(b) - 2 * half * half + 0.0, xp.exp(a) * xp.sin(b))
    low, high = a == -math.inf, a == math.inf
    return complex_where(
        xp, z, (b == 0, xp.expm1(a) + 0.0, b), (low, -1.0, None), (low & ~xp.isfinite(b), None, 0.0),
        (high & ~xp.isfinite(b), math.inf, math.nan),
    )  # fmt: skip


expm1 = elementwise(
    "expm1", expm1_forward, lambda F, t, out, _x: t * (out + 1), floating=True, doc="exp(x) - 1, accurate near 0.",
)  # fmt: skip
log = elementwise(
    "log", "log", lambda F, t, _out, x: F.quotient(t, x), floating=True,
    doc="Natural logarithm; -inf at 0, NaN below.",
)  # fmt: skip
log2 = elementwise(
    "log2", "log2", lambda F, t, _out, x: F.quotient(t * (1 / LN2), x), floating=True, doc="Logarithm to base 2.",
)  # fmt: skip
log10 = elementwise(
    "log10", "log10", lambda F, t, _out, x: F.quotient(t * (1 / LN10), x), floating=True, doc="Logarithm to base 10.",
)  # fmt: skip
log1p = elementwise(
    "log1p", "log1p", lambda F, t, _out, x: F.quotient(t, 1 + x), floating=True, doc="log(1 + x), accurate near 0.",
)  # fmt: skip


def share(F: Any, out: Any, x: Any) -> Any:
    """x - out, and 0 where they are equal, infinities included."""
    return F.where(x == out, 0, x - out)


logaddexp = elementwise(
    "logaddexp", "logaddexp", lambda F, t, out, x, _y: t * F.exp(share(F, out, x)),
    lambda F, t, out, _x, y: t * F.exp(share(F, out, y)), floating=True, doc="log(exp(x) + exp(y)) without overflow.",
)  # fmt: skip
logaddexp2 = elementwise(
    "logaddexp2", "logaddexp2", lambda F, t, out, x, _y: t * F.exp2(share(F, out, x)),
    lambda F, t, out, _x, y: t * F.exp2(share(F, out, y)), floating=True, doc="log2(2^x + 2^y) without overflow.",
)  # fmt: skip
_xlogy = elementwise(
    "xlogy", lambda xp, x, y: x * xp.log(xp.where((x == 0) & (y == y), xp.ones_like(y), y)),
    lambda F, t, _out, _x, y: F.absorb(t, F.log(y)), lambda F, t, _out, x, y: F.quotient(t * x, y), floating=True,
)  # fmt: skip


def xlogy(x: Any, y: Any) -> Any:
    """x log(y), and 0 where x is 0 (unless y is NaN), broadcast."""
    return _xlogy(x, beside(y, x))


# --- trigonometry -------------------------------------------------------------------------------------------

sin = elementwise("sin", "sin", lambda F, t, _out, x: t * F.cos(x), floating=True, doc="Sine of radians.")
cos = elementwise("cos", "cos", lambda F, t, _out, x: -t * F.sin(x), floating=True, doc="Cosine of radians.")
tan = elementwise("tan", "tan", lambda F, t, out, _x: t * (1 + out * out), floating=True, doc="Tangent of radians.")
asin = elementwise(
    "asin", "arcsin", lambda F, t, _out, x: F.quotient(t, F.sqrt((1 - x) * (1 + x))), floating=True,
    singular=2, doc="Inverse sine in radians; NaN outside [-1, 1].",
)  # fmt: skip
acos = elementwise(
    "acos", "arccos", lambda F, t, _out, x: F.quotient(-t, F.sqrt((1 - x) * (1 + x))), floating=True,
    singular=2, doc="Inverse cosine in radians; NaN outside [-1, 1].",
)  # fmt: skip
atan = elementwise(
    "atan", "arctan", lambda F, t, _out, x: t / (1 + x * x), floating=True, doc="Inverse tangent in radians.",
)  # fmt: skip
atan2 = elementwise(
    "atan2", "arctan2", lambda F, t, _out, y, x: F.quotient(t * x, x * x + y * y),
    lambda F, t, _out, y, x: F.quotient(-t * y, x * x + y * y), floating=True,
    doc="Angle of the point (second, first) in radians, (-pi, pi].",
)  # fmt: skip
sinh = elementwise("sinh", "sinh", lambda F, t, _out, x: t * F.cosh(x), floating=True, doc="Hyperbolic sine.")
cosh = elementwise("cosh", "cosh", lambda F, t, _out, x: t * F.sinh(x), floating=True, doc="Hyperbolic cosine.")


def tanh_forward(xp: Any, x: Any) -> Any:
    """The array module's; a complex one of infinite real part and finite imaginary part b is +-1 with b's zero."""
    out = xp.tanh(x)
    if x.dtype.kind != "c":
        return out
    far = xp.isinf(x.real) & xp.isfinite(x.imag)
    return complex_where(xp, out, (far, xp.sign(x.real), xp.copysign(xp.zeros_like(x.imag), x.imag)))


tanh = elementwise(
    "tanh", tanh_forward, lambda F, t, out, _x: F.tanh_bwd(t, out), floating=True, cuda=launch.tanh,
    doc="Hyperbolic tangent.",
)  # fmt: skip


def tanh_back(xp: Any, t: Any, out: Any) -> Any:
    """t (1 - out) (1 + out), without the cancellation of 1 - out^2."""
    slope = 1 - out
    slope *= 1 + out
    slope *= t
    return slope


tanh_bwd = elementwise(
    "tanh_bwd", tanh_back, lambda F, u, _out, _t, out: F.tanh_bwd(u, out),
    lambda F, u, _out, t, out: u * t * (-2 * out), cuda=launch.tanh_bwd,
    doc="t times the derivative of tanh at its output.",
)  # fmt: skip
asinh = elementwise(
    "asinh", "arcsinh", lambda F, t, _out, x: t / F.hypot(x, 1.0), floating=True, doc="Inverse hyperbolic sine.",
)  # fmt: skip
acosh = elementwise(
    "acosh", "arccosh", lambda F, t, _out, x: F.quotient(t, F.sqrt(x - 1) * F.sqrt(x + 1)), floating=True,
    singular=2, doc="Inverse hyperbolic cosine; NaN below 1.",
)  # fmt: skip
atanh = elementwise(
    "atanh", "arctanh", lambda F, t, _out, x: F.quotient(t, (1 - x) * (1 + x)), floating=True,
    doc="Inverse hyperbolic tangent; NaN outside [-1, 1].",
)  # fmt: skip
deg2rad = elementwise(
    "deg2rad", "deg2rad", lambda F, t, _out, _x: F.deg2rad(t), floating=True, doc="Degrees to radians.",
)  # fmt: skip
rad2deg = elementwise(
    "rad2deg", "rad2deg", lambda F, t, _out, _x: F.rad2deg(t), floating=True, doc="Radians to degrees.",
)  # fmt: skip


def sinc_dx(F: Any, t: Any, out: Any, x: Any) -> Any:
    """(cos(pi x) - sinc(x)) / x, by its series where the difference would cancel."""
    z = math.pi * x
    s = z * z
    near = z * (-1 / 3 + s * (1 / 30 + s * (-1 / 840 + s * (1 / 45360 + s * (-1 / 3991680)))))
    close = F.abs(z) < 0.3
    far = (F.cos(z) - out) / F.where(close, 1, z)
    return t * (math.pi * F.where(close, near, far))


def sinc_forward(xp: Any, x: Any) -> Any:
    """(-1)^n sin(pi (x - n)) / (pi x), n the nearest integer: exactly 0 at the integers, however large."""
    n = xp.rint(x)
    sine = xp.sin(math.pi * (x - n))
    out = xp.where(xp.remainder(n, 2) == 1, -sine, sine) / xp.where(x == 0, 1, math.pi * x)
    return xp.where(x == 0, 1, out).astype(x.dtype, copy=False)


sinc = elementwise("sinc", sinc_forward, sinc_dx, floating=True, doc="sin(pi x) / (pi x), and 1 at 0.")


# --- rounding -----------------------------------------------------------------------------------------------


def whole(name: str) -> Callable[..., Any]:
    """A rounding function that returns integers as they are (NumPy 2.0 would make them float64)."""
    return lambda xp, x: x.copy() if x.dtype.kind in "iub" else getattr(xp, name)(x)


floor = elementwise("floor", whole("floor"), zero_slope, doc="The largest integer not above x, in x's dtype.")
ceil = elementwise("ceil", whole("ceil"), zero_slope, doc="The smallest integer not below x, in x's dtype.")
trunc = elementwise("trunc", whole("trunc"), zero_slope, doc="x without its fraction, in x's dtype.")
round = elementwise("round", whole("rint"), zero_slope, doc="The nearest integer, halves to even, in x's dtype.")
rint = elementwise("rint", "rint", zero_slope, floating=True, doc="The nearest integer, halves to even, as a float.")


# --- error function -----------------------------------------------------------------------------------------

# float64: argument ranges and coefficients of s_erf.c in Sun Microsystems' fdlibm (1993), which documents their
# derivation. Below 0.84375, erf(x) = x + x PP(x^2)/QQ(x^2); up to 1.25 around erf(1); beyond through the exponential.
ERF_ONE = 8.45062911510467529297e-01
PP = (
    1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02,
    -5.77027029648944159157e-03, -2.37630166566501626084e-05,
)  # fmt: skip
QQ = (
    1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03,
    1.32494738004321644526e-04, -3.96022827877536812320e-06,
)  # fmt: skip
PA = (
    -2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01, 3.18346619901161753674e-01,
    -1.10894694282396677476e-01, 3.54783043256182359371e-02, -2.16637559486879084300e-03,
)  # fmt: skip
QA = (
    1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02,
    1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02,
)  # fmt: skip
RA = (
    -9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e01, -6.23753324503260060396e01,
    -1.62396669462573470355e02, -1.84605092906711035994e02, -8.12874355063065934246e01, -9.81432934416914548592e00,
)  # fmt: skip
SA = (
    1.0, 1.96512716674392571292e01, 1.37657754143519042600e02, 4.34565877475229228821e02, 6.45387271733267880336e02,
    4.29008140027567833386e02, 1.08635005541779435134e02, 6.57024977031928170135e00, -6.04244152148580987438e-02,
)  # fmt: skip
RB = (
    -9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e01, -1.60636384855821916062e02,
    -6.37566443368389627722e02, -1.02509513161107724954e03, -4.83519191608651397019e02,
)  # fmt: skip
SB = (
    1.0, 3.03380607434824582924e01, 3.25792512996573918826e02, 1.53672958608443695994e03, 3.19985821950859553908e03,
    2.55305040643316442583e03, 4.74528541206955367215e02, -2.24409524465858183362e01,
)  # fmt: skip
# float32: artanh(erf(x))/x - 1 = TP(x^2)/TQ(x^2) on [0, 4], a rational fit weighted by its effect on erf (3e-9);
# beyond, erf rounds to 1.
TP = (0.128379171, 0.122914252, 0.0189566299, 0.00185335588)
TQ = (1.0, 0.15689259, 0.0236899122, 0.000324923974)


def polynomial(coefficients: Sequence[float], z: Any) -> Any:
    """c[0] + c[1] z + c[2] z^2 + ... by Horner's rule, in one buffer."""
    total = coefficients[-1] * z
    for c in coefficients[-2:0:-1]:
        total += c
        total *= z
    total += coefficients[0]
    return total


def ratio(p: Sequence[float], q: Sequence[float], z: Any) -> Any:
    """Quotient of two polynomials in z."""
    return polynomial(p, z) / polynomial(q, z)


def erfc_upper(xp: Any, y: Any) -> Any:
    """erfc(y) for 0.84375 <= y <= 28 in float64. Each formula's argument is clipped to the range it is made for."""
    middle = (1 - ERF_ONE) - ratio(PA, QA, xp.minimum(y - 1, 0.25))
    w = 1 / (y * y)
    r = xp.where(y < 1 / 0.35, ratio(RA, SA, xp.clip(w, 0.1225, 0.64)), ratio(RB, SB, xp.minimum(w, 0.1225)))
    h = y.astype("float32").astype(
        "float64"
    )  # h * h is exact, so exp(-y^2) = exp(-h^2) exp((h-y)(h+y)) keeps its digits
    tail = xp.exp(-h * h - 0.5625) * xp.exp((h - y) * (h + y) + r) / y
    return xp.where(y < 1.25, middle, tail)


@blocked
def erf_forward(xp: Any, x: Any) -> Any:
    """Error function, within 4 ulp in float32 and float64."""
    if x.dtype == "float64":
        near = xp.clip(x, -0.84375, 0.84375)
        small = near + near * ratio(PP, QQ, near * near)
        large = 1 - erfc_upper(xp, xp.clip(xp.abs(x), 0.84375, 6.0))
        return xp.where(xp.abs(x) < 0.84375, small, xp.copysign(large, x))
    c = xp.clip(x.astype("float32", copy=False), -4.5, 4.5)  # where tanh has long become 1
    return xp.tanh(c + c * ratio(TP, TQ, c * c)).astype(x.dtype, copy=False)


@blocked
def erfc_forward(xp: Any, x: Any) -> Any:
    """Complementary error function, within 4 ulp; narrower types go through float64."""
    v = x.astype("float64", copy=False)
    near = xp.clip(v, -0.84375, 0.84375)
    small = (1 - near) - near * ratio(PP, QQ, near * near)
    upper = erfc_upper(xp, xp.clip(xp.abs(v), 0.84375, 28.0))
    large = xp.where(v < 0, 2 - upper, upper)
    return xp.where(xp.abs(v) < 0.84375, small, large).astype(x.dtype, copy=False)


@blocked
def erfinv_forward(xp: Any, x: Any) -> Any:
    """Three of Halley's steps, which triple the digits, on erf below 1/2 and on erfc above; all in float64.

    They start from the series, or Winitzki's formula (2008), which is within 1 %.
    """
    v = x.astype("float64", copy=False)
    s = xp.minimum(xp.abs(v), 1 - 2.0**-53)
    w = -xp.log1p(-s) - xp.log1p(s)  # -log(1 - s^2)
    b = 2 / (0.147 * math.pi) - 0.5 * w
    y = xp.where(s < 0.5, s * (0.886 + 0.232 * (s * s)), xp.sqrt(xp.sqrt(b * b + w / 0.147) - b))
    for _ in range(3):
        gap = xp.where(s < 0.5, erf_forward(xp, y) - s, (1 - s) - erfc_forward(xp, y))
        u = gap * xp.exp(y * y) * (0.5 * math.sqrt(math.pi))
        y = y - u / (1 + y * u)
    y = xp.where(xp.abs(v) < 1, y, xp.where(xp.abs(v) == 1, math.inf, math.nan))
    return xp.copysign(y, v).astype(x.dtype, copy=False)


erf = elementwise(
    "erf", erf_forward, lambda F, t, _out, x: t * (F.exp(-x * x) * (2 / math.sqrt(math.pi))), floating=True,
    doc="Error function, within 4 ulp.",
)  # fmt: skip
erfc = elementwise(
    "erfc", erfc_forward, lambda F, t, _out, x: -t * (F.exp(-x * x) * (2 / math.sqrt(math.pi))), floating=True,
    doc="1 - erf(x), within 4 ulp however small.",
)  # fmt: skip
erfinv = elementwise(
    "erfinv", erfinv_forward, lambda F, t, out, _x: F.absorb(t, F.exp(out * out) * (0.5 * math.sqrt(math.pi))),
    floating=True, singular=2, doc="The inverse of erf, within 4 ulp: -inf and inf at -1 and 1, NaN beyond.",
)  # fmt: skip


# --- choice -------------------------------------------------------------------------------------------------


def where_forward(xp: Any, condition: Any, x: Any, y: Any) -> Any:
    """The branches come to a common dtype apart from the condition."""
    if not (hasattr(x, "dtype") or hasattr(y, "dtype")):
        x = xp.asarray(scalar_array(x))
    a, b = getattr(x, "dtype", None), getattr(y, "dtype", None)
    weak = a is None or b is None  # a Python scalar takes the other branch's type, unless that is an integer's
    if a is not b and ((b if a is None else a).kind != "f" if weak else a != b):  # type: ignore[union-attr]
        x, y = join([x, y])
    return select(xp, condition, x, y) if hasattr(condition, "dtype") else xp.where(condition, x, y)


_where_op = Op(
    "where", where_forward,
    (None, lambda F, t, _out, c, _x, _y: F.where(c, t, 0), lambda F, t, _out, c, _x, _y: F.where(c, 0, t)),
    kind="elementwise", singular=1,
)  # fmt: skip
_where = finish(_where_op, nary(_where_op), "")


def where(condition: Any, x: Any, y: Any, /) -> Any:
    """x where the condition holds, else y, broadcast; gradients follow the choice."""
    return _where(condition, x, y)


def extremum(name: str, loses: Callable[[Any, Any], Any], doc: str) -> Callable[[Any, Any], Any]:
    """A choice between two operands: differentiated operands share a tie, a constant wins it. loses(x, y): x is out."""

    def shared(F: Any, t: Any, x: Any, y: Any) -> Any:
        return F.where(loses(x, y), 0, F.where(x == y, 0.5 * t, t))

    split = elementwise(
        name, name, lambda F, t, _out, x, y: shared(F, t, x, y), lambda F, t, _out, x, y: shared(F, t, y, x),
        singular=1,
    )  # fmt: skip
    bound = elementwise(
        name + "_bound", name, lambda F, t, _out, x, y: F.where(loses(x, y) | (x == y), 0, t), None, singular=1,
    )  # fmt: skip

    def call(x: Any, y: Any, /) -> Any:
        if tracked(y):
            return split(x, y) if tracked(x) else bound(y, x)
        return bound(x, y)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = doc
    return call


maximum = extremum("maximum", lambda x, y: x < y, "The larger of x and y, broadcast; NaN if either is.")
minimum = extremum("minimum", lambda x, y: x > y, "The smaller of x and y, broadcast; NaN if either is.")
fmax = extremum("fmax", lambda x, y: (x < y) | (x != x), "The larger of x and y, broadcast; a number wins over NaN.")
fmin = extremum("fmin", lambda x, y: (x > y) | (x != x), "The smaller of x and y, broadcast; a number wins over NaN.")


def clip_forward(xp: Any, x: Any, low: Any, high: Any) -> Any:
    """Either bound may be absent."""
    if low is None:
        return x.copy() if high is None else xp.minimum(x, high)
    if high is not None and x.dtype.kind != "V":  # NumPy would clip bfloat16 in float32
        return xp.clip(x, low, high)
    return xp.maximum(x, low) if high is None else xp.minimum(xp.maximum(x, low), high)


def clip_dx(F: Any, t: Any, _out: Any, x: Any, low: Any, high: Any) -> Any:
    """1 strictly inside the bounds, 0 on them and outside."""
    if low is not None:
        t = F.where(x <= low, 0, t)
    return t if high is None else F.where(x >= high, 0, t)


_clip = elementwise("clip", clip_forward, clip_dx, None, None, attrs=True, singular=1)


def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """x limited to [min, max], broadcast; either bound may be None. The slope is 0 on a constant bound.

    Bounds that require gradients receive them where they apply. Where min > max the result is max. The result has x's
    dtype; but floating bounds of integers give the common one.
    """
    if not (tracked(min) or tracked(max)):
        out = _clip(x, min, max)
    else:
        out = x if min is None else maximum(x, min)
        out = out if max is None else minimum(out, max)
    narrower = hasattr(x, "dtype") and out.dtype != x.dtype and (out.dtype.kind == "f") == (x.dtype.kind == "f")
    return RECORDING.astype(out, dtype=x.dtype) if narrower else out


heaviside = elementwise(
    "heaviside", "heaviside", zero_slope, lambda F, t, _out, x, _y: F.where(x == 0, t, 0), floating=True,
    doc="0 below zero, 1 above, y at zero.",
)  # fmt: skip
_nan_to_num = elementwise(
    "nan_to_num", lambda xp, x, nan, posinf, neginf: xp.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf),
    lambda F, t, _out, x, nan, posinf, neginf: F.where(F.isfinite(x), t, 0), attrs=True, singular=1,
)  # fmt: skip


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    """x with NaN and the infinities replaced (by the dtype's largest numbers unless given)."""
    return _nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


# --- comparison, logic, bits, complex -----------------------------------------------------------------------

equal = nondiff("equal", "equal", 2, doc="x == y, broadcast.")
not_equal = nondiff("not_equal", "not_equal", 2, doc="x != y, broadcast.")
less = nondiff("less", "less", 2, doc="x < y, broadcast.")
less_equal = nondiff("less_equal", "less_equal", 2, doc="x <= y, broadcast.")
greater = nondiff("greater", "greater", 2, doc="x > y, broadcast.")
greater_equal = nondiff("greater_equal", "greater_equal", 2, doc="x >= y, broadcast.")
isnan = nondiff("isnan", "isnan", doc="Whether an element is NaN.")
isinf = nondiff("isinf", "isinf", doc="Whether an element is inf or -inf.")
isfinite = nondiff("isfinite", "isfinite", doc="Whether an element is neither NaN nor infinite.")
logical_and = nondiff("logical_and", "logical_and", 2, doc="Whether both are nonzero, broadcast.")
logical_or = nondiff("logical_or", "logical_or", 2, doc="Whether one or both are nonzero, broadcast.")
logical_xor = nondiff("logical_xor", "logical_xor", 2, doc="Whether exactly one is nonzero, broadcast.")
logical_not = nondiff("logical_not", "logical_not", doc="Whether an element is zero.")
bitwise_and = nondiff("bitwise_and", "bitwise_and", 2, doc="x & y of integers or bools, broadcast.")
bitwise_or = nondiff("bitwise_or", "bitwise_or", 2, doc="x | y of integers or bools, broadcast.")
bitwise_xor = nondiff("bitwise_xor", "bitwise_xor", 2, doc="x ^ y of integers or bools, broadcast.")
bitwise_invert = nondiff("bitwise_invert", "invert", doc="~x of integers or bools.")
bitwise_left_shift = nondiff("bitwise_left_shift", "left_shift", 2, doc="x << y of integers, broadcast.")
bitwise_right_shift = nondiff("bitwise_right_shift", "right_shift", 2, doc="x >> y of integers, broadcast.")
real = elementwise("real", "real", lambda F, t, _out, _x: t, doc="Real part; x itself if it is real.")
imag = elementwise("imag", "imag", zero_slope, doc="Imaginary part; zeros if x is real.")
conj = elementwise("conj", "conj", lambda F, t, _out, _x: F.conj(t), doc="Complex conjugate.")

for call in (sqrt, cbrt, reciprocal, log, log1p, log2, log10, asin, acos, acosh, atanh):
    TABLE[call.__name__].fragile = False  # their rules absorb zeros themselves
