"""Elementwise ops in arbitrary precision (mpmath), and the points at which each is compared with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np

from gpugrad.op import TABLE

Exact = Callable[..., Any]
LIMIT = 4.0  # units in the last place that an elementwise op may be off, in float32 and float64
PRECISIONS = (160, 320, 2400, 9600)  # bits; the higher ones are for differences such as x - tanh(x) of a tiny x


class Case(NamedTuple):
    """An op in exact arithmetic: `exact(*numbers, **attrs)`; it raises ValueError (or is complex) where the op is NaN.

    near: where to look closely; reach: a range to sample evenly; attrs: of the call; spans: what each operand may be,
    in order (a backward op's `out` has the range of its forward), any number where there is none. scale: a size beside
    the value's own whose last place the error is measured in, such as that of the terms whose sum crosses zero.
    magnified: the last operand multiplies an exponential, and so what that has lost below the smallest normal number.
    """

    exact: Exact
    near: tuple[float, ...] = (0.0, 1.0)
    reach: tuple[float, float] = (-20.0, 20.0)
    attrs: dict[str, Any] = {}
    arity: int = 1
    spans: tuple[tuple[float, float], ...] = ()
    scale: Exact | None = None
    magnified: bool = False


# --- exact functions ------------------------------------------------------------------------------------------------


def exp(x: Any) -> Any:
    """mpmath's, without the digits of what is too small for any float."""
    return mp.exp(x) if x > -2000 else mp.mpf(0)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


def softplus(x: Any, beta: float = 1.0) -> Any:
    z = beta * x
    return (max(z, 0) + mp.log1p(exp(-abs(z)))) / beta


def logaddexp(x: Any, y: Any) -> Any:
    return max(x, y) + mp.log1p(exp(-abs(x - y)))


def logaddexp2(x: Any, y: Any) -> Any:
    return max(x, y) + mp.log1p(mp.mpf(2) ** -abs(x - y)) / mp.ln2


def logaddexp_scale(x: Any, y: Any) -> Any:
    """The larger operand, and what the exponential makes of the rounded difference; they cancel where the sum is 1."""
    d = abs(x - y)
    return max(abs(max(x, y)), d * exp(-d))


def erfc(x: Any) -> Any:
    """mpmath's, which does not take arguments where it is 2 or next to nothing."""
    return mp.erfc(x) if abs(x) < 60 else 1 - mp.sign(x)


def erfinv(x: Any) -> Any:
    """mpmath's, which is slow and imprecise close to 1: Newton's steps on erfc."""
    if abs(x) == 1 or x == 0:
        return mp.sign(x) * (mp.inf if x else 0)
    s = abs(x)
    y = mp.mpf(float(mp.sqrt(-mp.log1p(-s)))) if s > 0.5 else s
    for _ in range(60):
        gap = mp.erf(y) - s if s < 0.5 else (1 - s) - mp.erfc(y)
        step = gap * mp.sqrt(mp.pi) / 2 * mp.exp(y * y)
        y -= step / (1 + y * step)
        if abs(step) < abs(y) * mp.mpf(2) ** (-mp.mp.prec // 2):
            break
    return mp.sign(x) * y


def lgamma(x: Any) -> Any:
    return mp.inf if x <= 0 and x == mp.floor(x) else mp.re(mp.loggamma(x))


def lgamma_terms(x: Any) -> Any:
    """The terms of the reflection, log(pi / |sin(pi x)|) - lgamma(1 - x), which cancel near the zeros below 0."""
    if x > 0 or x == mp.floor(x):
        return 0
    return max(mp.log(mp.pi), abs(mp.log(abs(mp.sinpi(x)))), abs(mp.loggamma(1 - x)))


def polygamma(x: Any, n: int) -> Any:
    if x <= 0 and x == mp.floor(x):
        if n % 2 == 0 and x != 0:
            raise ValueError
        return mp.inf
    return psi(x, n) if x > 0 else (-1) ** n * psi(1 - x, n) - sum(cotangent_terms(x, n))


def psi(x: Any, n: int) -> Any:
    """mpmath's for x > 0, and the asymptotic series where that takes long."""
    if x < 10**6:
        return mp.psi(n, x)
    total = mp.log(x) if n == 0 else (-1) ** (n + 1) * mp.factorial(n - 1) / x**n
    total += (-1) ** (n + 1) * mp.factorial(n) / (2 * x ** (n + 1))
    for j in range(1, 9):
        term = mp.bernoulli(2 * j) * mp.factorial(2 * j + n - 1) / (mp.factorial(2 * j) * x ** (2 * j + n))
        total += (-1) ** (n + 1) * term
    return total


def cotangent_terms(x: Any, n: int) -> list[Any]:
    """The n-th derivative of pi cot(pi x), as terms of a polynomial in cot(pi x)."""
    c, z = [mp.mpf(0), mp.pi], mp.cospi(x) / mp.sinpi(x)
    for _ in range(n):
        d = [-mp.pi * k * a for k, a in enumerate(c)][1:]
        c = [p + q for p, q in zip([*d, 0, 0], [0, 0, *d])]
    return [a * z**k for k, a in enumerate(c)]


def polygamma_terms(x: Any, n: int) -> Any:
    """The logarithm and, below 0, the terms of the reflection: a power n + 1 passes on so many errors of its base."""
    logarithm = mp.log(10 + abs(x)) if n == 0 else 0
    if x > 0 or x == mp.floor(x):
        return logarithm
    return max(logarithm, abs(psi(1 - x, n)), (n + 1) * max(map(abs, cotangent_terms(x, n))))


def erfcx(x: Any) -> Any:
    """By the confluent hypergeometric function where erfc is too small for mpmath."""
    return mp.exp(x * x) * mp.erfc(x) if x < 20 else mp.hyperu(0.5, 0.5, x * x) / mp.sqrt(mp.pi)


def erfcinv(x: Any) -> Any:
    """Newton's steps on the logarithm of erfc, from the leading term of its asymptotic series or from 0."""
    if x in (0, 2):
        return (1 - x) * mp.inf
    if x > 1:
        return -erfcinv(2 - x)
    y = mp.sqrt(-mp.log(x)) if x < 0.1 else 1 - x
    for _ in range(200):
        e = mp.erfc(y)
        step = mp.log(e / x) * e / (2 / mp.sqrt(mp.pi) * mp.exp(-y * y))
        y += step
        if abs(step) <= abs(y) * mp.mpf(2) ** (-mp.mp.prec // 2):
            break
    return y


def scaled_bessel(order: int) -> Exact:
    """exp(-|x|) I(x), far out by the asymptotic series."""

    def run(x: Any) -> Any:
        v = abs(x)
        if v < 500:
            out = mp.besseli(order, v) * mp.exp(-v)
        else:
            term = total = mp.mpf(1)
            for k in range(1, 60):
                term *= -(4 * order * order - (2 * k - 1) ** 2) / (8 * k * v)
                total += term
            out = total / mp.sqrt(2 * mp.pi * v)
        return out * mp.sign(x) if order else out

    return run


def betaln(a: Any, b: Any) -> Any:
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def gammainc(a: Any, x: Any, upper: bool, n: int) -> Any:
    return mp.gammainc(a, x, mp.inf, regularized=True) if upper else mp.gammainc(a, 0, x, regularized=True)


def gamma_density(a: Any, x: Any) -> Any:
    return mp.exp((a - 1) * mp.log(x) - x - mp.loggamma(a))


def betainc(a: Any, b: Any, x: Any, wrt: str = "") -> Any:
    return mp.betainc(a, b, 0, x, regularized=True)


def beta_density(a: Any, b: Any, x: Any) -> Any:
    return mp.exp((a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) - betaln(a, b))


def betaln_terms(a: Any, b: Any) -> Any:
    """What does not cancel from the start: of parameters below 10 all, else the logarithm of the smaller one."""
    return 1 + abs(mp.loggamma(a + b if max(a, b) < 10 else min(a, b)))


def log_ndtr_far(x: Any) -> Any:
    return mp.log(erfcx(-x / mp.sqrt(2)) / 2) - x * x / 2


def logarithms(f: Exact) -> Exact:
    """The value times the logarithms whose sum its density at x is the exponential of; the last argument is x."""

    def run(a: Any, *rest: Any, **attrs: Any) -> Any:
        *b, x = rest
        terms = [a * mp.log(x), mp.loggamma(a), b[0] * mp.log1p(-x) if b else x, *map(mp.loggamma, b)]
        return f(a, *rest, **attrs) * (1 + mp.fsum(map(abs, terms)))

    return run


def phi(x: Any) -> Any:
    """The normal distribution function."""
    return erfc(-x / mp.sqrt(2)) / 2


def density(x: Any) -> Any:
    """The normal density."""
    return exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return x * phi(x)
    return x * sigmoid(2 * gelu_argument(x))  # (1 + tanh(z)) / 2 is the sigmoid of 2 z


def gelu_argument(x: Any) -> Any:
    return mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)


def gelu_slope(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return phi(x) + x * density(x)
    z = 2 * gelu_argument(x)
    dz = 2 * mp.sqrt(2 / mp.pi) * (1 + 3 * mp.mpf("0.044715") * x * x)
    return sigmoid(z) + x * sigmoid(z) * sigmoid(-z) * dz


def gelu_bwd(t: Any, x: Any, approximate: str) -> Any:
    return t * gelu_slope(x, approximate)


def gelu_tanh_bwd_scale(t: Any, x: Any, **_: Any) -> Any:
    return t * max(1, x * x)


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def mish(x: Any) -> Any:
    return x * mp.tanh(softplus(x))


def silu_slope(x: Any) -> Any:
    return sigmoid(x) + x * sigmoid(x) * sigmoid(-x)


def mish_slope(x: Any) -> Any:
    w = mp.tanh(softplus(x))
    return w + x * mp.sech(softplus(x)) ** 2 * sigmoid(x)


def mish_bwd_scale(t: Any, x: Any) -> Any:
    return t * max(mp.tanh(softplus(x)), abs(x * mp.sech(softplus(x)) ** 2 * sigmoid(x)))


def elu(x: Any, alpha: float, rate: float, scale: float) -> Any:
    return mp.mpf(scale) * (x if x > 0 else alpha * mp.expm1(rate * x))


def elu_slope(out: Any, alpha: float, rate: float, scale: float) -> Any:
    """From the output, as the op has it."""
    return mp.mpf(scale) if out > 0 else rate * (out + mp.mpf(scale) * alpha)


def power(x: Any, y: Any) -> Any:
    if x == 0 and y < 0:
        raise ZeroDivisionError
    return x**y


def whole(x: Any, rounded: Callable[[Fraction], int]) -> Any:
    return mp.mpf(rounded(Fraction(*x.as_integer_ratio())) if isinstance(x, float) else rounded(fraction(x)))


def fraction(x: Any) -> Fraction:
    """An mpmath number, which is a binary one, as a fraction."""
    sign, mantissa, exponent, _ = x._mpf_
    return Fraction((-1) ** sign * int(mantissa)) * Fraction(2) ** exponent


def quotient_of(p: Fraction) -> Any:
    return mp.mpf(p.numerator) / p.denominator


def remainder(x: Any, y: Any) -> Any:
    p, q = fraction(x), fraction(y)
    return quotient_of(p - q * (p // q))


def heaviside(x: Any, y: Any) -> Any:
    return y if x == 0 else mp.mpf(x > 0)


def domain(ok: Callable[..., bool], f: Exact) -> Exact:
    """A function that is not a number outside its domain."""

    def run(*args: Any, **attrs: Any) -> Any:
        if not ok(*args):
            raise ValueError
        return f(*args, **attrs)

    return run


UNIT, ANY = (-1.0, 1.0), (-np.inf, np.inf)
SLOPE = ((-9.0, 9.0), ANY)  # a large cotangent would show where the slope alone underflows
RANGE = (-1.0, -0.5, 0.0, 0.5, 1.0)
ERF = (0.0, 0.84375, 1.25, 1 / 0.35, 4.0, 4.5, 6.0, -0.84375, -1.25, -1 / 0.35, 9.0, 26.0)
SHAPES = ((0.05, 40.0), (0.05, 40.0), (2.0**-20, 1 - 2.0**-10))  # of a gamma or beta distribution, and its argument
ELU = {"alpha": 1.7, "rate": 0.6, "scale": 1.05}

CASES: dict[str, list[Case]] = {
    # arithmetic
    "add": [Case(lambda x, y: x + y, arity=2)],
    "subtract": [Case(lambda x, y: x - y, arity=2)],
    "multiply": [Case(lambda x, y: x * y, arity=2)],
    "divide": [Case(lambda x, y: x / y, arity=2)],
    "absorb": [Case(lambda t, s: t * s, arity=2)],
    "absorbed": [Case(lambda g, t, infinite: g, attrs={"infinite": True}, arity=2)],
    "quotient": [Case(lambda t, d: t / d if t else t, arity=2)],
    "remainder": [Case(domain(lambda _x, y: y != 0, remainder), arity=2)],
    "negative": [Case(lambda x: -x)],
    "positive": [Case(lambda x: x)],
    "reciprocal": [Case(lambda x: 1 / x)],
    "square": [Case(lambda x: x * x)],
    "sqrt": [Case(mp.sqrt)],
    "cbrt": [Case(lambda x: mp.sign(x) * mp.cbrt(abs(x)))],
    "abs": [Case(abs)],
    "sign": [Case(mp.sign)],
    "copysign": [Case(lambda x, y: abs(x) if y >= 0 else -abs(x), arity=2)],
    "hypot": [Case(lambda x, y: mp.sqrt(x * x + y * y), arity=2)],
    "pow": [Case(power, reach=(0.0, 4.0), arity=2), Case(power, arity=2)],
    # exponentials and logarithms
    "exp": [Case(mp.exp, reach=(-110, 90)), Case(mp.exp, reach=(-750, 710))],
    "exp2": [Case(lambda x: mp.mpf(2) ** x, reach=(-150, 130)), Case(lambda x: mp.mpf(2) ** x, reach=(-1080, 1030))],
    "expm1": [Case(mp.expm1, reach=(-3, 3)), Case(mp.expm1, reach=(-40, 90))],
    "log": [Case(mp.log, reach=(0.0, 4.0))],
    "log2": [Case(lambda x: mp.log(x) / mp.ln2, reach=(0.0, 4.0))],
    "log10": [Case(mp.log10, reach=(0.0, 4.0))],
    "log1p": [Case(mp.log1p, near=(0.0, -1.0), reach=(-1.0, 3.0))],
    "logaddexp": [Case(logaddexp, arity=2, reach=r, scale=logaddexp_scale) for r in ((-20.0, 20.0), (-1.0, 0.0))],
    "logaddexp2": [Case(logaddexp2, arity=2, reach=r, scale=logaddexp_scale) for r in ((-20.0, 20.0), (-1.0, 0.0))],
    "xlogy": [Case(lambda x, y: x * mp.log(y) if x else x, reach=(0.0, 4.0), arity=2)],
    # trigonometry
    "sin": [Case(mp.sin, near=(0.0, np.pi, np.pi / 2, 100 * np.pi))],
    "cos": [Case(mp.cos, near=(0.0, np.pi, np.pi / 2, 100 * np.pi))],
    "tan": [Case(mp.tan, near=(0.0, np.pi, np.pi / 2, 100 * np.pi))],
    "asin": [Case(mp.asin, RANGE, UNIT)],
    "acos": [Case(mp.acos, RANGE, UNIT)],
    "atan": [Case(mp.atan)],
    "atan2": [Case(mp.atan2, arity=2)],
    "sinh": [Case(mp.sinh), Case(mp.sinh, reach=(-720, 720))],
    "cosh": [Case(mp.cosh), Case(mp.cosh, reach=(-720, 720))],
    "tanh": [Case(mp.tanh), Case(mp.tanh, reach=(-2, 2))],
    "asinh": [Case(mp.asinh)],
    "acosh": [Case(mp.acosh, near=(1.0, 2.0), reach=(1.0, 10.0))],
    "atanh": [Case(mp.atanh, RANGE, UNIT)],
    "deg2rad": [Case(lambda x: x * mp.pi / 180, reach=(-400, 400))],
    "rad2deg": [Case(lambda x: x * 180 / mp.pi)],
    "sinc": [Case(mp.sincpi)],
    "tanh_bwd": [Case(lambda t, y: t * (1 - y * y), RANGE, UNIT, arity=2, spans=(ANY, UNIT))],
    # rounding
    "floor": [Case(lambda x: whole(x, lambda q: q.__floor__()), near=(0.0, 1.0, -1.0, 2.0**22))],
    "ceil": [Case(lambda x: whole(x, lambda q: q.__ceil__()), near=(0.0, 1.0, -1.0, 2.0**22))],
    "trunc": [Case(lambda x: whole(x, int), near=(0.0, 1.0, -1.0, 2.0**22))],
    "round": [Case(lambda x: whole(x, round), near=(0.0, 0.5, -1.5, 2.0**22))],
    "rint": [Case(lambda x: whole(x, round), near=(0.0, 0.5, -1.5, 2.0**22))],
    # error function
    "erf": [Case(lambda x: mp.erf(x) if abs(x) < 100 else mp.sign(x), ERF, (-6.0, 6.0))],
    "erfc": [Case(erfc, ERF, (-6.0, 27.0))],
    # gamma function
    "lgamma": [Case(lgamma, (0.0, 0.5, 1.0, 2.0, 3.0, 10.0, -2.5), r, scale=lgamma_terms) for r in ((0, 14), (-9, 1))],
    "polygamma": [
        Case(polygamma, (0.0, 1.0, 1.46163214496836, -1.0, -2.5), r, {"n": n}, scale=polygamma_terms)
        for n in (0, 1, 2) for r in ((0, 14), (-9, 1))
    ],
    "erfcx": [Case(erfcx, (0.0, 0.84375, 1.25, 1 / 0.35, 28.0, -26.0), r) for r in ((-26.0, 40.0), (-2.0, 3.0))],
    "erfcinv": [Case(domain(lambda x: 0 <= x <= 2, erfcinv), (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 2.0))],
    # the normal distribution, Bessel functions
    "ndtr": [Case(phi, (0.0, 1.0, -1.0), r) for r in ((-38.0, 9.0), (-3.0, 3.0))],
    "log_ndtr": [Case(lambda x: mp.log1p(-phi(-x)) if x > 0 else mp.log(phi(x)) if x > -60 else log_ndtr_far(x),
                      (0.0, 1.0, -1.0), r) for r in ((-38.0, 9.0), (-3.0, 3.0))],
    "i0e": [Case(scaled_bessel(0), (0.0, 25.0), (-40.0, 40.0))],
    "i1e": [Case(scaled_bessel(1), (0.0, 25.0), (-40.0, 40.0))],
    # incomplete gamma and beta functions
    "betaln": [Case(betaln, (1.0, 10.0), (0.0, 40.0), arity=2, spans=SHAPES[:2], scale=betaln_terms)],
    "gammainc": [
        Case(gammainc, (1.0, 10.0), (0.0, 40.0), {"upper": upper, "n": 0}, 2, SHAPES[:2], scale=logarithms(gammainc))
        for upper in (False, True)
    ],
    "gamma_density": [
        Case(gamma_density, (1.0, 10.0), (0.0, 40.0), {}, 2, SHAPES[:2], scale=logarithms(gamma_density))
    ],
    "betainc": [Case(betainc, (1.0, 10.0), (0.0, 40.0), {"wrt": ""}, 3, SHAPES, scale=logarithms(betainc))],
    "beta_density": [Case(beta_density, (1.0, 10.0), (0.0, 40.0), {}, 3, SHAPES, scale=logarithms(beta_density))],
    "erfinv": [Case(domain(lambda x: abs(x) <= 1, erfinv), RANGE, UNIT)],
    # choice
    "maximum": [Case(max, arity=2)],
    "minimum": [Case(min, arity=2)],
    "fmax": [Case(max, arity=2)],
    "fmin": [Case(min, arity=2)],
    "maximum_bound": [Case(max, arity=2)],
    "minimum_bound": [Case(min, arity=2)],
    "fmax_bound": [Case(max, arity=2)],
    "fmin_bound": [Case(min, arity=2)],
    "clip": [Case(lambda x, low, high: min(max(x, low), high), arity=3)],
    "where": [Case(lambda c, x, y: x if c else y, arity=3)],
    "heaviside": [Case(heaviside, arity=2)],
    "nan_to_num": [Case(lambda x, **_: x, attrs={"nan": 0.0, "posinf": None, "neginf": None})],
    "real": [Case(lambda x: x)],
    "imag": [Case(lambda x: 0 * x)],
    "conj": [Case(lambda x: x)],
    # activations
    "relu": [Case(lambda x: max(x, 0))],
    "relu_bwd": [Case(lambda t, y: t if y > 0 else mp.mpf(0), arity=2)],
    "leaky_relu": [Case(lambda x, negative_slope: x if x > 0 else negative_slope * x, attrs={"negative_slope": 0.125})],
    "leaky_relu_bwd": [
        Case(lambda t, x, negative_slope: t if x > 0 else negative_slope * t, attrs={"negative_slope": 0.125}, arity=2)
    ],
    "elu": [Case(elu, attrs=ELU), Case(elu, reach=(-1.0, 1.0), attrs={"alpha": 1.0, "rate": 1.0, "scale": 1.0})],
    "elu_bwd": [
        Case(lambda t, y, **k: t * elu_slope(y, **k), reach=(-1, 1), attrs=ELU, arity=2, spans=(ANY, (-1.7, np.inf))),
    ],
    "sigmoid": [Case(sigmoid), Case(sigmoid, reach=(-750, 20))],
    "sigmoid_bwd": [Case(lambda t, y: t * y * (1 - y), RANGE, (0.0, 1.0), arity=2, spans=(ANY, (0.0, 1.0)))],
    "log_sigmoid": [Case(lambda x: -softplus(-x)), Case(lambda x: -softplus(-x), reach=(-20, 750))],
    "softplus": [Case(softplus, attrs={"beta": 1.0}), Case(softplus, attrs={"beta": 0.5}, reach=(-1500, 20))],
    "softplus_bwd": [Case(lambda t, x, beta: t * sigmoid(beta * x), attrs={"beta": 1.0}, arity=2, spans=SLOPE)],
    "softsign": [Case(lambda x: x / (1 + abs(x)))],
    "logit": [Case(lambda x: mp.log(x / (1 - x)), (0.0, 0.5, 1.0), (0.0, 1.0))],
    "gelu": [
        *(Case(gelu, attrs={"approximate": "none"}, reach=r) for r in ((-40, 10), (-3, 3))),
        # an approximation, good to the digits of x alone
        *(Case(gelu, attrs={"approximate": "tanh"}, reach=r, scale=lambda x, **_: x) for r in ((-12, 10), (-3, 3))),
    ],
    "gelu_bwd": [
        Case(gelu_bwd, attrs={"approximate": a}, arity=2, spans=SLOPE, magnified=True, scale=scale)
        for a, scale in (("none", lambda t, x, **_: t * phi(x)), ("tanh", gelu_tanh_bwd_scale))
    ],
    "silu": [Case(silu, reach=r, magnified=True) for r in ((-20, 20), (-750, 20))],
    "silu_bwd": [
        Case(lambda t, x: t * silu_slope(x), arity=2, spans=SLOPE, magnified=True, scale=lambda t, x: t * sigmoid(x)),
    ],
    "mish": [Case(mish, reach=r, magnified=True) for r in ((-20, 20), (-750, 20))],
    "mish_bwd": [
        Case(lambda t, x: t * mish_slope(x), arity=2, spans=SLOPE, magnified=True, scale=mish_bwd_scale),
    ],
    "hardsigmoid": [Case(lambda x: min(max((x + 3) / 6, 0), 1), (-3.0, 0.0, 3.0), (-4.0, 4.0))],
    "hardswish": [Case(lambda x: x * min(max((x + 3) / 6, 0), 1), (-3.0, 0.0, 3.0), (-4.0, 4.0))],
    "hardswish_bwd": [Case(lambda t, x: t * (0 if x <= -3 else 1 if x >= 3 else x / 3 + mp.mpf(1) / 2),
                           (-3.0, -1.5, 0.0, 3.0), (-4.0, 4.0), arity=2)],
    "tanhshrink": [Case(lambda x: x - mp.tanh(x), reach=(-3.0, 3.0))],
    "softshrink": [Case(lambda x, lambd: x - min(max(x, -lambd), lambd), (0.0, 0.5, -0.5), attrs={"lambd": 0.5})],
    "bce_logits": [
        Case(lambda x, y: max(x, 0) - x * y + softplus(-abs(x)), reach=(-30.0, 30.0), arity=2, spans=(ANY, (0.0, 1.0)),
             scale=lambda x, y: x),
    ],
}  # fmt: skip


# --- points ---------------------------------------------------------------------------------------------------------


def line(case: Case, dtype: Any) -> np.ndarray:
    """Numbers of every magnitude and sign, close neighbours of `near`, and an even sample of `reach`."""
    info = np.finfo(dtype)
    low, high = int(np.floor(np.log2(float(info.smallest_subnormal)))), info.maxexp - 1
    powers = np.ldexp(np.linspace(1.0, 1.9, 24), np.linspace(low + 1, high, 24).astype(int))
    edges = np.array([info.smallest_subnormal, info.tiny, info.max, info.eps, 1 - info.epsneg, 1 + info.eps])
    magnitudes = np.concatenate([powers, edges]).astype(dtype)
    near = [s for s in case.near if abs(s) < float(info.max)]
    close = [s + k * np.spacing(dtype(s)) for s in near for k in (-2, -1, 0, 1, 2)]
    close += [s + h * sign for s in near for h in (1e-6, 1e-4, 1e-2) for sign in (-1, 1)]
    even = np.random.default_rng(7).uniform(*case.reach, 120 if case.arity == 1 else 40)
    return np.unique(np.concatenate([magnitudes, -magnitudes, np.array(close), even]).astype(dtype))


def points(case: Case, dtype: Any) -> list[np.ndarray]:
    """The arguments: all of the line, or for several operands a random pairing of it with itself (about 500)."""
    first = line(case, dtype)
    if case.arity == 1:
        return [first]
    rng, n = np.random.default_rng(11), 320
    arrays = []
    for low, high in case.spans or (ANY,) * case.arity:
        allowed = first[(first >= low) & (first <= high)]
        even = rng.uniform(max(case.reach[0], low), min(case.reach[1], high), n // 2)
        arrays.append(np.concatenate([rng.choice(allowed, n // 2), even.astype(dtype)]))
    return arrays


# --- comparison -----------------------------------------------------------------------------------------------------


def evaluate(case: Case, numbers: tuple[float, ...]) -> Any:
    """The exact value, good to 100 bits; None where the op is not a number, inf at a pole."""
    last = None
    for bits in PRECISIONS:
        with mp.workprec(bits):
            try:
                value = case.exact(*map(mp.mpf, numbers), **case.attrs)
            except ZeroDivisionError:
                return mp.inf  # of either sign
            except ValueError:
                return None
            if isinstance(value, mp.mpc) or mp.isnan(value):
                return None
            if last is not None and (mp.isinf(value) or abs(value - last) <= abs(value) * mp.mpf(2) ** -100 != 0):
                return value
            last = value
    return last


def last_place(size: Any, dtype: Any) -> float:
    """The distance of neighbouring numbers at a size, which is brought into the range of the dtype."""
    info = np.finfo(dtype)
    inside = min(max(float(min(size, mp.mpf(float(info.max)))), float(info.tiny)), float(info.max))
    return float(np.ldexp(1.0, int(np.floor(np.log2(inside))) - info.nmant))


def ulp(got: float, want: Any, unit: float, top: float) -> float:
    """Distance in units. Where the exact value is beyond `top`, infinity is right; numbers are measured from top."""
    if want is None or np.isnan(got):
        return 0.0 if want is None and np.isnan(got) else np.inf
    if abs(want) > top:
        right = np.isinf(got) and (mp.isinf(want) or (got > 0) == (want > 0))
        return 0.0 if right else float((top - got * mp.sign(want)) / unit)
    if np.isinf(got):
        return float((top - abs(want)) / unit) + 1 if (got > 0) == (want > 0) else np.inf
    return float(abs(mp.mpf(got) - want) / unit)


@functools.cache
def worst(name: str, dtype: str) -> tuple[float, str]:
    """The largest error of an op in ulp, and where."""
    kind, found = np.dtype(dtype).type, (0.0, "")
    for case in CASES[name]:
        arrays = points(case, kind)
        if name == "where":
            arrays[0] = arrays[0] > 0
        with np.errstate(all="ignore"):
            out = TABLE[name].impls[np.ndarray](*arrays, **case.attrs)
        assert out.dtype == kind
        for numbers, got in zip(zip(*[a.tolist() for a in arrays]), out.tolist()):
            want = evaluate(case, numbers)
            size = 0 if want is None else abs(want)
            if case.scale and want is not None:
                size = max(size, abs(case.scale(*map(mp.mpf, numbers), **case.attrs)))
            if case.magnified:
                size = max(size, abs(numbers[-1]) * float(np.finfo(kind).tiny))
            error = ulp(got, want, last_place(size, kind), float(np.finfo(kind).max))
            if error > found[0]:
                found = (error, f"{name}{numbers} = {got!r}, {dtype}")
    return found
