"""Functions defined by integrals: the normal distribution, Bessel functions, incomplete gamma and beta functions.

Computed in float64; narrower types are rounded from it. Loaded with `gpugrad.special`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from gpugrad.define import elementwise
from gpugrad.errors import GraphError, fail
from gpugrad.ops.elementwise import (
    ERF_ONE,
    PA,
    QA,
    RA,
    RB,
    SA,
    SB,
    blocked,
    erfc_forward,
    erfinv_forward,
    polynomial,
    ratio,
)
from gpugrad.ops.special import STIRLING, lgamma_forward, polygamma_forward

ROOT_PI = math.sqrt(math.pi)


# --- error function, normal distribution --------------------------------------------------------------------


def tail_ratio(count: int) -> list[float]:
    """Coefficients in 1/x^2 of the asymptotic series of sqrt(pi) x erfcx(x): (-1)^k (2k-1)!! / 2^k."""
    c = [1.0]
    for k in range(1, count):
        c.append(-c[-1] * (2 * k - 1) / 2)
    return c


def squared(xp: Any, x: Any) -> tuple[Any, Any]:
    """x^2 as an exact number and the rest, for exponentials that keep their digits."""
    h = x.astype("float32").astype("float64")
    return h * h, (x - h) * (x + h)


def scaled(xp: Any, y: Any) -> Any:
    """erfcx(y) for y >= 0, by the formulas of erfc without their exponential."""
    near, middle = xp.minimum(y, 1.25), xp.clip(y, 1.25, 28.0)
    one = xp.exp(near * near)
    below = one * erfc_forward(xp, xp.minimum(near, 0.84375))
    around = one * ((1 - ERF_ONE) - ratio(PA, QA, xp.maximum(near, 0.84375) - 1))
    w = 1 / (middle * middle)
    r = xp.where(middle < 1 / 0.35, ratio(RA, SA, xp.clip(w, 0.1225, 0.64)), ratio(RB, SB, xp.minimum(w, 0.1225)))
    z = 1 / xp.maximum(y, 28.0)
    far = z / ROOT_PI * polynomial(tail_ratio(8), z * z)
    out = xp.where(y < 1.25, around, xp.exp(r - 0.5625) / middle)
    return xp.where(y < 0.84375, below, xp.where(y < 28, out, far))


@blocked
def erfcx_forward(xp: Any, x: Any) -> Any:
    """exp(x^2) erfc(x); below 0 it is 2 exp(x^2) - erfcx(-x)."""
    v = x.astype("float64", copy=False)
    upper = scaled(xp, xp.abs(v))
    least = -26.6287357137514  # minus the root of log(largest number / 2)
    main, rest = squared(xp, xp.clip(v, least, 0.0))
    lower = xp.where(v < least, math.inf, xp.exp(main) * xp.exp(rest) * 2 - upper)
    return xp.where(v < 0, lower, upper).astype(x.dtype, copy=False)


def erfcx_dx(F: Any, t: Any, out: Any, x: Any) -> Any:
    """2 x erfcx(x) - 2 / sqrt(pi), by its asymptotic series where the terms cancel."""
    far = x > 16
    z = 1 / F.where(far, x, 16.0)
    w, c = z * z, tail_ratio(11)
    series = 0.0
    for a in reversed(c[1:]):
        series = (series + a) * w
    return t * F.where(far, (2 / ROOT_PI) * series, 2 * x * out - 2 / ROOT_PI)


@blocked
def ndtr_forward(xp: Any, x: Any) -> Any:
    """erfc(-x / sqrt 2) / 2, corrected for the rounding of the argument, which the tail magnifies."""
    v = xp.clip(x.astype("float64", copy=False), -40.0, 40.0)
    c = math.sqrt(0.5)
    head, low = 0.707106769084930419921875, c - 0.707106769084930419921875  # the first in 24 bits
    y = v * -c
    h = v.astype("float32").astype("float64")
    rest = -(h * head + y) - h * low - (v - h) * c + v * 4.8336466567264e-17  # what c lacks of the square root of 1/2
    out = 0.5 * erfc_forward(xp, y) * xp.exp(-2 * xp.maximum(y, 0) * rest)
    return out.astype(x.dtype, copy=False)


@blocked
def log_ndtr_forward(xp: Any, x: Any) -> Any:
    """log(1 - ndtr(-x)) above 0, log(erfcx(-x / sqrt 2) / 2) - x^2 / 2 below."""
    v = x.astype("float64", copy=False)
    least = -1.8961503816218e154  # minus the root of twice the largest number
    low = xp.clip(v, least, 0)
    below = xp.log(0.5 * scaled(xp, -low * math.sqrt(0.5))) - 0.5 * low * low
    out = xp.where(v > 0, xp.log1p(-ndtr_forward(xp, -xp.maximum(v, 0))), below)
    return xp.where(v < least, -math.inf, out).astype(x.dtype, copy=False)


@blocked
def erfcinv_forward(xp: Any, x: Any) -> Any:
    """erfinv(1 - x) about 1, and in the tails four of Halley's steps on the logarithm of erfc."""
    v = x.astype("float64", copy=False)
    inside = (v > 0) & (v < 2)
    p = xp.where(inside, xp.minimum(v, 2 - v), 0.25)
    s = xp.minimum(p, 0.5)
    w = -xp.log(s) - xp.log1p(1 - s)  # -log(1 - erf^2)
    b = 2 / (0.147 * math.pi) - 0.5 * w
    y, goal = xp.sqrt(xp.sqrt(b * b + w / 0.147) - b), xp.log(s)
    for _ in range(4):
        e = scaled(xp, y)
        slope = (-2 / ROOT_PI) / e
        step = (xp.log(e) - y * y - goal) / slope
        y = y - step / (1 + step * (y + 0.5 * slope))
    y = xp.where(p < 0.5, y, erfinv_forward(xp, 1 - p))
    y = xp.where(v > 1, -y, y)
    ends = xp.where(v == 0, math.inf, xp.where(v == 2, -math.inf, math.nan))
    return xp.where(inside, y, ends).astype(x.dtype, copy=False)


erfcx = elementwise(
    "erfcx", erfcx_forward, erfcx_dx, floating=True, doc="exp(x^2) erfc(x), which stays finite in the upper tail.",
)  # fmt: skip
erfcinv = elementwise(
    "erfcinv", erfcinv_forward, lambda F, t, out, _x: F.absorb(t, F.exp(out * out) * (-0.5 * ROOT_PI)), floating=True,
    singular=2, doc="The inverse of erfc, however small its argument: inf at 0, -inf at 2, NaN beyond.",
)  # fmt: skip
ndtr = elementwise(
    "ndtr", ndtr_forward, lambda F, t, _out, x: t * (F.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))),
    floating=True, doc="The normal distribution function: the integral of the standard normal density up to x.",
)  # fmt: skip
log_ndtr = elementwise(
    "log_ndtr", log_ndtr_forward, lambda F, t, _out, x: t * (math.sqrt(2 / math.pi) / F.erfcx(x * -math.sqrt(0.5))),
    floating=True, doc="The logarithm of the normal distribution function, in the far tail too.",
)  # fmt: skip


# --- Bessel functions ---------------------------------------------------------------------------------------

POINTS, FAR = 24, 25.0


@functools.cache
def hankel(order: int) -> list[float]:
    """Coefficients in 1/x of sqrt(2 pi x) exp(-x) I_order(x): to 1e-17 from x = 25 on."""
    c = [1.0]
    for k in range(1, 27):
        c.append(-c[-1] * (4 * order * order - (2 * k - 1) ** 2) / (8 * k))
    return c


def bessel(order: int) -> Any:
    """Forward of exp(-|x|) I(x) for order 0 or 1.

    Below 25 its integral, the mean of exp(x cos(u)) cos(order u) over an angle u, by the trapezoidal rule, which on a
    period converges faster than any power; angles u and pi - u are taken together, so that no term is negative.
    """

    @blocked
    def forward(xp: Any, x: Any) -> Any:
        v = xp.abs(x.astype("float64", copy=False))
        near, total = xp.minimum(v, FAR), 0.0
        for j in range(POINTS // 2, -1, -1):
            u = math.pi * j / POINTS
            cosine = math.cos(u) if 2 * j < POINTS else 0.0
            high = xp.exp(near * (-2 * math.sin(u / 2) ** 2))
            weight = (0.5 if j in (0, POINTS // 2) else 1.0) / POINTS
            if order:
                total = total - high * xp.expm1(-2 * cosine * near) * (cosine * weight)
            else:
                total = total + (high + xp.exp(-near * (1 + cosine))) * weight
        z = 1 / xp.maximum(v, FAR)
        far = xp.sqrt(z * (0.5 / math.pi)) * polynomial(hankel(order), z)
        out = xp.where(v < FAR, total, far)
        return (xp.copysign(out, x) if order else out).astype(x.dtype, copy=False)

    return forward


def i1e_dx(F: Any, t: Any, out: Any, x: Any) -> Any:
    """i0e(x) - i1e(x) / x - sign(x) i1e(x); 1/2 at 0."""
    zero = x == 0
    return t * F.where(zero, 0.5, F.i0e(x) - out / F.where(zero, 1.0, x) - F.sign(x) * out)


i0e = elementwise(
    "i0e", bessel(0), lambda F, t, out, x: t * (F.i1e(x) - F.sign(x) * out), floating=True,
    doc="exp(-|x|) I0(x), of the modified Bessel function of order 0.",
)  # fmt: skip
i1e = elementwise(
    "i1e", bessel(1), i1e_dx, floating=True, doc="exp(-|x|) I1(x), of the modified Bessel function of order 1.",
)  # fmt: skip


# --- incomplete gamma and beta functions --------------------------------------------------------------------

# Both are the integral of a density up to x. With t = x exp(-w) below the mode, and t = x + s above it, what is left
# beside the density at x falls from 1 to 0 within a known width. In units of that it is summed by the trapezoidal rule
# in u, where v = exp(u - exp(-u)) (Takahasi and Mori 1974): 65 positive terms, whatever the arguments. The derivatives
# in the parameters are the same sums with logarithms of t.

STEP = 0.12
NODES = [
    (v, v * (1 + math.exp(-u)) * STEP)
    for u in (STEP * k for k in range(-31, 34)) for v in (math.exp(u - math.exp(-u)),)
]  # fmt: skip


def usual(a: Any) -> Any:
    """Where a parameter is positive and so small that the rounding of x beside it leaves digits."""
    return (a > 1e-290) & (a < 1e15)


def log1p_less(xp: Any, ratio: Any, u: Any) -> Any:
    """log(1 + u) - u, of ratio = 1 + u."""
    near = xp.abs(u) < 0.5
    v = xp.where(near, u, 0.0)
    r = v / (2 + v)
    q = r * r
    series = r * (2 * q * polynomial([1 / (2 * k + 3) for k in range(17)], q) - v)
    return xp.where(near, series, xp.log(xp.where(near, 1.0, ratio)) - u)


def stirling(a: Any) -> Any:
    """What Stirling's formula lacks of lgamma(a), a >= 10."""
    z = 1 / a
    return z * polynomial(STIRLING, z * z)


def gamma_front(xp: Any, a: Any, x: Any) -> Any:
    """x^a exp(-x) / gamma(a), of a > 0 and x > 0."""
    large, small = xp.maximum(a, 10.0), xp.minimum(a, 10.0)
    exponent = large * log1p_less(xp, x / large, (x - large) / large) - stirling(large)
    far = xp.exp(exponent) * xp.sqrt(large * (0.5 / math.pi))
    return xp.where(a < 10, xp.exp(small * xp.log(x) - x - lgamma_forward(xp, small)), far)


def bell(L: Any, cumulants: list[Any]) -> Any:
    """The complete Bell polynomial: the n-th derivative of exp(f) over exp(f), from those of f: L, then `cumulants`."""
    kappa, found = [L, *cumulants], [1.0]
    for n in range(len(kappa)):
        found.append(sum(math.comb(n, k) * found[n - k] * kappa[k] for k in range(n + 1)))
    return found[-1]


@blocked
def gammainc_forward(xp: Any, a: Any, x: Any, upper: bool, n: int) -> Any:
    """The n-th derivative in a of the regularised lower (or upper) incomplete gamma function."""
    a64, x64 = (v.astype("float64", copy=False) for v in (a, x))
    good = usual(a64) & (x64 > 0) & (x64 < math.inf)
    a, v = xp.where(good, a64, 1.0), xp.where(good, x64, 1.0)
    lower = v < xp.where(a < 1, xp.maximum(0.5 * a, 0.05), a)
    shift = lower & (a < 1)  # P(a, x) = P(a + 1, x) + x^a exp(-x) / gamma(a + 1), whose derivatives do not cancel
    a1 = xp.where(shift, a + 1, a)
    al, xl, au, xu = xp.where(lower, a1, 1.0), xp.where(lower, v, 0.5), xp.where(lower, 1.0, a), xp.where(lower, 1.0, v)
    below, above = 1 / xp.maximum(al - xl, xp.sqrt(al)), 1 / xp.maximum((xu - au) / xu, 1 / xp.sqrt(xp.maximum(xu, 1)))
    kappa = [polygamma_forward(xp, a1, n=k) for k in range(n)]
    log_x, total = xp.log(v), 0.0
    for node, weight in NODES:
        w, s = node * below, node * above
        away = xp.log1p(s / xu)
        g = xp.where(lower, below * xp.exp(-al * w - xl * xp.expm1(-w)), above * xp.exp((au - 1) * away - s) / xu)
        if n:
            g = g * bell(log_x + xp.where(lower, -w, away) - kappa[0], [-k for k in kappa[1:]])
        total = total + weight * g
    front = gamma_front(xp, a1, v)
    first = xp.where(shift, front / v, 0.0)
    out = front * total + (first * bell(log_x - kappa[0], [-k for k in kappa[1:]]) if n else first)
    if n == 0:
        out = xp.clip(xp.where(lower == upper, 1 - out, out), 0.0, 1.0)
        ends = (x64 == 0) & (a64 > 0) | (a64 <= 1e-290) & (x64 > 0) | xp.isinf(x64) ^ xp.isinf(a64)
        end = xp.where(ends & (a64 >= 0) & (x64 >= 0), (x64 > a64) != upper, math.nan)
    else:
        out = xp.where(lower == upper, -out, out)
        end = xp.where((x64 >= 0) & (a64 > 0), 0.0, math.nan)
    return xp.where(good, out, end).astype(x.dtype, copy=False)


def gammainc_da(F: Any, t: Any, _out: Any, a: Any, x: Any, upper: bool, n: int) -> Any:
    """The next derivative in a, by the same integral."""
    return t * F.gammainc(a, x, upper=upper, n=n + 1)


def gammainc_dx(F: Any, t: Any, _out: Any, a: Any, x: Any, upper: bool, n: int) -> Any:
    """The density at x, and its derivatives in a."""
    slope = F.gamma_density(a, x)
    if n:
        kappa = [F.polygamma(a, n=k) for k in range(n)]
        slope = slope * bell(F.log(x) - kappa[0], [-k for k in kappa[1:]])
    return F.absorb(-t if upper else t, slope)


@blocked
def gamma_density_forward(xp: Any, a: Any, x: Any) -> Any:
    """x^(a-1) exp(-x) / gamma(a); 0 below 0."""
    a64, x64 = (v.astype("float64", copy=False) for v in (a, x))
    good = usual(a64) & (x64 > 0) & (x64 < math.inf)
    v = xp.where(good, x64, 1.0)
    out = gamma_front(xp, xp.where(good, a64, 1.0), v) / v
    zero = xp.where(a64 > 1, 0.0, xp.where(a64 == 1, 1.0, math.inf))
    end = xp.where(x64 == 0, zero, xp.where(xp.isnan(x64) | (x64 < 0), math.nan, 0.0))
    return xp.where(good, out, xp.where(a64 > 0, end, math.nan)).astype(x.dtype, copy=False)


gammainc = elementwise(
    "gammainc", gammainc_forward, gammainc_da, gammainc_dx, floating=True, attrs=True, singular=2,
    doc="The regularised incomplete gamma function, lower or upper, and its n-th derivative in a.",
)  # fmt: skip
gamma_density = elementwise(
    "gamma_density", gamma_density_forward,
    lambda F, t, out, a, x: F.absorb(t, out * (F.log(x) - F.polygamma(a, n=0))),
    lambda F, t, out, a, x: F.absorb(t, out * ((a - 1) / x - 1)), floating=True, singular=2,
    doc="The density of the gamma distribution of shape a and scale 1 at x > 0.",
)  # fmt: skip


def lgamma_rise(xp: Any, p: Any, q: Any) -> Any:
    """lgamma(p + q) - lgamma(q) of 0 < p <= q, without their cancellation where q is large."""
    large = xp.maximum(q, 10.0)
    total = large + p
    far = (large - 0.5) * xp.log1p(p / large) + p * (xp.log(total) - 1) + stirling(total) - stirling(large)
    few = xp.minimum(q, 10.0)
    return xp.where(q < 10, lgamma_forward(xp, xp.minimum(p, few) + few) - lgamma_forward(xp, few), far)


@blocked
def betaln_forward(xp: Any, a: Any, b: Any) -> Any:
    """lgamma(a) + lgamma(b) - lgamma(a + b)."""
    a64, b64 = (v.astype("float64", copy=False) for v in (a, b))
    good = (a64 > 0) & (b64 > 0) & (a64 < 1e300) & (b64 < 1e300)
    c, d = xp.where(good, a64, 1.0), xp.where(good, b64, 1.0)
    p, q = xp.minimum(c, d), xp.maximum(c, d)
    few, u, v = xp.minimum(p, 10.0), xp.maximum(p, 10.0), xp.maximum(q, 10.0)
    part = u / (u + v)
    far = stirling(u) + stirling(v) - stirling(u + v) + (u - 0.5) * xp.log(part) + v * xp.log1p(-part)
    far = far + 0.5 * (math.log(2 * math.pi) - xp.log(v))
    out = xp.where(p < 10, lgamma_forward(xp, few) - lgamma_rise(xp, few, q), far)
    other = lgamma_forward(xp, a64) + lgamma_forward(xp, b64) - lgamma_forward(xp, xp.where(good, 1.0, a64 + b64))
    return xp.where(good, out, other).astype(b.dtype, copy=False)


def beta_front(xp: Any, a: Any, b: Any, x: Any, y: Any, log_x: Any, log_y: Any) -> Any:
    """x^a y^b / beta(a, b), where y = 1 - x."""
    p, q = xp.minimum(a, b), xp.maximum(a, b)
    gap = lgamma_rise(xp, p, q) - lgamma_forward(xp, xp.minimum(p, 10.0))
    near = xp.exp(xp.where(p < 10, a * log_x + b * log_y + gap, 0.0))
    c, d = xp.maximum(a, 10.0), xp.maximum(b, 10.0)
    e, away = c + d, x * d - y * c
    power = c * log1p_less(xp, x * e / c, away / c) + d * log1p_less(xp, y * e / d, -away / d)
    far = xp.exp(power + stirling(e) - stirling(c) - stirling(d)) * xp.sqrt(c / e * d * (0.5 / math.pi))
    return xp.where(p < 10, near, far)


@blocked
def betainc_forward(xp: Any, a: Any, b: Any, x: Any, wrt: str) -> Any:
    """The regularised incomplete beta function, or its derivative in a or b."""
    a64, b64, x64 = (v.astype("float64", copy=False) for v in (a, b, x))
    good = usual(a64) & usual(b64) & (x64 > 0) & (x64 < 1)
    a, b, x0 = xp.where(good, a64, 1.0), xp.where(good, b64, 1.0), xp.where(good, x64, 0.5)
    swap = x0 > a / (a + b)  # I(a, b, x) = 1 - I(b, a, 1 - x): integrate the smaller tail
    a, b = xp.where(swap, b, a), xp.where(swap, a, b)
    v, y = xp.where(swap, 1 - x0, x0), xp.where(swap, x0, 1 - x0)
    log_v, log_y = xp.log(x0), xp.log1p(-x0)
    log_v, log_y = xp.where(swap, log_y, log_v), xp.where(swap, log_v, log_y)
    shift = a < 1  # I(a, b, x) = I(a + 1, b, x) + x^a (1 - x)^b / (a beta(a, b)), whose derivatives do not cancel
    a1, odds = xp.where(shift, a + 1, a), v / y
    steep = xp.maximum(a1 - (b - 1) * odds, xp.sqrt(xp.maximum(b - 1, 0) * odds * (1 + odds)))
    width, total = 1 / xp.where(b < 1, a1, steep), 0.0
    if wrt:
        least = polygamma_forward(xp, a1 + b, n=0)
        own = {"a": swap, "b": ~swap}[wrt]  # whether the derivative is in the second parameter of the integral
        mean = xp.where(own, polygamma_forward(xp, b, n=0), polygamma_forward(xp, a1, n=0)) - least
    for node, weight in NODES:
        w = node * width
        rise = xp.log1p(-odds * xp.expm1(-w))
        g = xp.exp((b - 1) * rise - a1 * w)
        total = total + weight * (g * (xp.where(own, log_y + rise, log_v - w) - mean) if wrt else g)
    front = beta_front(xp, a1, b, v, y, log_v, log_y)
    out, first = front / y * width * total, xp.where(shift, front / (v * (a + b)), 0.0)
    if wrt:
        before = polygamma_forward(xp, a + b, n=0) - least
        out = out + first * (xp.where(own, log_y, log_v) - mean + before)
        out = xp.where(swap, -out, out)
    else:
        out = xp.clip(xp.where(swap, 1 - (out + first), out + first), 0.0, 1.0)
    ends = (a64 > 0) & (b64 > 0) & ((x64 == 0) | (x64 == 1))
    out = xp.where(good, out, xp.where(ends, 0.0 if wrt else x64, math.nan))
    return out.astype(x.dtype, copy=False)


def betainc_parameter(name: str) -> Any:
    """The derivative of betainc in a or b: one more op, which goes no further in them."""

    def rule(F: Any, t: Any, _out: Any, a: Any, b: Any, x: Any, wrt: str) -> Any:
        if wrt:
            raise fail(GraphError, "betainc", f"a second derivative in {wrt} and {name} is not available; stop at one")
        return t * F.betainc(a, b, x, wrt=name)

    return rule


def betainc_dx(F: Any, t: Any, _out: Any, a: Any, b: Any, x: Any, wrt: str) -> Any:
    """The density at x; or its derivative in a or b."""
    slope = F.beta_density(a, b, x)
    if wrt:
        own = F.log(x) - F.polygamma(a, n=0) if wrt == "a" else F.log1p(-x) - F.polygamma(b, n=0)
        slope = slope * F.astype(own + F.polygamma(a + b, n=0), dtype=slope.dtype)
    return F.absorb(t, slope)


@blocked
def beta_density_forward(xp: Any, a: Any, b: Any, x: Any) -> Any:
    """x^(a-1) (1-x)^(b-1) / beta(a, b)."""
    a64, b64, x64 = (v.astype("float64", copy=False) for v in (a, b, x))
    good = usual(a64) & usual(b64) & (x64 > 0) & (x64 < 1)
    v = xp.where(good, x64, 0.5)
    c, d = xp.where(good, a64, 1.0), xp.where(good, b64, 1.0)
    out = beta_front(xp, c, d, v, 1 - v, xp.log(v), xp.log1p(-v)) / (v * (1 - v))
    one, other = xp.where(x64 == 0, a64, b64), xp.where(x64 == 0, b64, a64)
    end = xp.where(one > 1, 0.0, xp.where(one == 1, other, math.inf))
    ends = (a64 > 0) & (b64 > 0) & ((x64 == 0) | (x64 == 1))
    return xp.where(good, out, xp.where(ends, end, math.nan)).astype(x.dtype, copy=False)


betaln = elementwise(
    "betaln", betaln_forward, lambda F, t, _out, a, b: F.absorb(t, F.polygamma(a, n=0) - F.polygamma(a + b, n=0)),
    lambda F, t, _out, a, b: F.absorb(t, F.polygamma(b, n=0) - F.polygamma(a + b, n=0)), floating=True, singular=2,
    doc="The logarithm of the beta function, accurate where one parameter is much larger than the other.",
)  # fmt: skip
betainc = elementwise(
    "betainc", betainc_forward, betainc_parameter("a"), betainc_parameter("b"), betainc_dx, floating=True, attrs=True,
    singular=2, doc="The regularised incomplete beta function, or its derivative in a or b.",
)  # fmt: skip
beta_density = elementwise(
    "beta_density", beta_density_forward,
    lambda F, t, out, a, b, x: F.absorb(t, out * (F.log(x) - F.polygamma(a, n=0) + F.polygamma(a + b, n=0))),
    lambda F, t, out, a, b, x: (
        F.absorb(t, out * (F.log1p(-x) - F.polygamma(b, n=0) + F.polygamma(a + b, n=0)))
    ),
    lambda F, t, out, a, b, x: F.absorb(t, out * ((a - 1) / x - (b - 1) / (1 - x))), floating=True, singular=2,
    doc="The density of the beta distribution at 0 < x < 1.",
)  # fmt: skip
