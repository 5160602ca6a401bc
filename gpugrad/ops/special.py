"""The logarithm of the gamma function and its derivatives. Computed in float64; narrower types are rounded from it."""

from __future__ import annotations

import math
from typing import Any

from gpugrad.define import elementwise
from gpugrad.errors import DomainError, fail
from gpugrad.ops.elementwise import blocked, polynomial

__all__ = ["digamma", "lgamma", "polygamma"]

# The Bernoulli numbers B2, B4, ..., B20.
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
STIRLING = [b / (2 * j * (2 * j - 1)) for j, b in enumerate(BERNOULLI, 1)]

# lgamma(x) x / ((x - 1) (x - 2)) for 1/2 <= x <= 3 as a polynomial in (x - 1.25) / (x + 1.25), which interpolates at
# the Chebyshev points, with a relative error of 2e-17: both zeros of lgamma are exact factors.
NEAR = (
    0.65514557614542108, 0.73354620092579131, 0.31885112657858857, 0.28265572318130206, 0.19234632649370678,
    0.17905845904475937, 0.13831008490479431, 0.13142921127308214, 0.10813502304868211, 0.10391347854421034,
    0.088817638076923545, 0.085962446566727565, 0.075378379490806438, 0.073257660808688896, 0.065426489600539836,
    0.064491092790984418, 0.058425575825359641, 0.052378350436769549, 0.047824223174118264, 0.071610754505413921,
    0.066565590776426223, -0.015672653504004474, -0.015454161646642804, 0.13883767624053846, 0.13066462383475822,
)  # fmt: skip


def lgamma_above(xp: Any, x: Any) -> Any:
    """lgamma of x > -1/2: from 10 on Stirling's series, between by the recurrence from [1/2, 3), whose terms add up."""
    large = xp.maximum(x, 10)
    z = 1 / large
    far = large * (xp.log(large) - 1) - 0.5 * xp.log(large)
    far = far + (0.5 * math.log(2 * math.pi) + z * polynomial(STIRLING, z * z))
    small = x < 0.5
    v, product = xp.where(small, x + 1, xp.minimum(x, 10)), xp.where(small, xp.abs(x), 1)
    for _ in range(7):
        step = v >= 3
        v = xp.where(step, v - 1, v)
        product = xp.where(step, product * v, product)
    logarithm = xp.log(product)
    near = (v - 1) * (v - 2) / v * polynomial(NEAR, (v - 1.25) / (v + 1.25))
    return xp.where(x < 10, near + xp.where(small, -logarithm, logarithm), far)


def split(xp: Any, x: Any) -> tuple[Any, Any, Any]:
    """What both functions begin with: which x are poles, x with 1/2 in their place, its distance from an integer."""
    poles = (x <= 0) & (xp.floor(x) == x)
    v = xp.where(poles | xp.isinf(x), 0.5, x)
    return poles, v, v - xp.rint(v)


@blocked
def lgamma_forward(xp: Any, x: Any) -> Any:
    """log |gamma(x)|; below -1/2 by reflection, log(pi / |sin(pi x)|) - lgamma(1 - x)."""
    x64 = x.astype("float64", copy=False)
    poles, v, rest = split(xp, x64)
    low = v < -0.5
    above = lgamma_above(xp, xp.where(low, 1 - v, v))
    sine = xp.abs(xp.sin(math.pi * xp.where(low, rest, 0.5)))
    out = xp.where(low, math.log(math.pi) - xp.log(sine) - above, above)
    return xp.where(poles | xp.isinf(x64), math.inf, out).astype(x.dtype, copy=False)


def tail(xp: Any, y: Any, n: int) -> Any:
    """What remains of the sum of 1 / (y + k)^(n+1), by Euler and Maclaurin, times y^n; no logarithm for n = 0."""
    z, terms = 1 / y, []
    for j, b in enumerate(BERNOULLI, 1):
        rising = math.factorial(n + 2 * j - 1) // math.factorial(n)  # (n + 1) (n + 2) ... (n + 2j - 1)
        terms.append(b * (rising / math.factorial(2 * j)))
    return (1 / n if n else 0.0) + 0.5 * z + z * z * polynomial(terms, z * z)


def cotangent_slope(n: int) -> list[float]:
    """The n-th derivative of pi cot(pi x), as the coefficients of a polynomial in cot(pi x)."""
    c = [0.0, math.pi]
    for _ in range(n):
        d = [-math.pi * k * a for k, a in enumerate(c)][1:]
        c = [p + q for p, q in zip([*d, 0.0, 0.0], [0.0, 0.0, *d])]
    return c


@blocked
def polygamma_forward(xp: Any, x: Any, n: int) -> Any:
    """The sum of 1 / (x + k)^(n+1), the first terms one by one; below 0 by reflection."""
    x64 = x.astype("float64", copy=False)
    poles, v, rest = split(xp, x64)
    a, first = xp.where(v < 0, 1 - v, v), 10 + n
    y = a + first
    total = tail(xp, y, n) / y**n if n else tail(xp, y, 0) - xp.log(y)
    for k in range(first - 1, -1, -1):  # small terms first
        total = total + 1 / (a + k) ** (n + 1)
    total = (-1.0) ** (n + 1) * math.factorial(n) * total
    off, near = xp.abs(rest), xp.abs(rest) < 0.25
    tangent = xp.tan(math.pi * xp.where(v < 0, xp.where(near, off, 0.5 - off), 0.25))
    cotangent = xp.copysign(xp.where(near, 1 / xp.where(near, tangent, 1), tangent), rest)
    below = (-1.0) ** n * total - polynomial(cotangent_slope(n), cotangent)
    out = xp.where(v < 0, below, total)
    # at a pole both sides of an odd derivative go to inf; of an even one only 0 tells its side
    pole = math.inf if n % 2 else xp.where(x64 == 0, xp.copysign(math.inf, -x64), math.nan)
    out = xp.where(xp.isinf(x64), xp.where(x64 < 0, math.nan, 0.0 if n else math.inf), xp.where(poles, pole, out))
    return out if x.dtype.kind in "iub" else out.astype(x.dtype, copy=False)


lgamma = elementwise(
    "lgamma", lgamma_forward, lambda F, t, _out, x: F.absorb(t, F.polygamma(x, n=0)), floating=True, singular=2,
    doc="log |gamma(x)|: inf at 0, -1, -2, ...",
)  # fmt: skip
_polygamma = elementwise(
    "polygamma", polygamma_forward, lambda F, t, _out, x, n: F.absorb(t, F.polygamma(x, n=n + 1)), floating=True,
    attrs=True, singular=2,
)  # fmt: skip


def polygamma(n: int, x: Any) -> Any:
    """The n-th derivative of digamma; n = 0 is digamma itself. Raises DomainError unless n is an integer from 0 on."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise fail(DomainError, "polygamma", f"n is {n!r}; expected an integer, 0 or more")
    return _polygamma(x, n=n)


def digamma(x: Any) -> Any:
    """The derivative of lgamma; -inf at 0, NaN at -1, -2, ..."""
    return _polygamma(x, n=0)
