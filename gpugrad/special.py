"""Special functions by SciPy's names, differentiable: `gpugrad.special.ndtr(x)`. Arrays and numbers are welcome.

Functions of several arguments broadcast. Integers become the default float type. What gpugrad has under another name
(`sigmoid`, `lgamma`, ...) is here too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.ops import integrals
from gpugrad.ops.activation import log_sigmoid as log_expit
from gpugrad.ops.activation import logit
from gpugrad.ops.activation import sigmoid as expit
from gpugrad.ops.elementwise import cbrt, erf, erfc, erfinv, exp2, expm1, log1p, sinc, xlogy
from gpugrad.ops.integrals import erfcinv, erfcx, i0e, i1e, log_ndtr, ndtr
from gpugrad.ops.softmax import log_softmax, logsumexp, softmax
from gpugrad.ops.special import digamma, lgamma, polygamma

__all__ = [
    "beta", "betainc", "betaln", "cbrt", "digamma", "entr", "erf", "erfc", "erfcinv", "erfcx", "erfinv", "exp2",
    "expit", "expm1", "gammainc", "gammaincc", "gammaln", "i0", "i0e", "i1", "i1e", "kl_div", "lgamma", "log1p",
    "log_expit", "log_ndtr", "log_softmax", "loggamma", "logit", "logsumexp", "ndtr", "ndtri", "polygamma", "psi",
    "rel_entr", "sinc", "softmax", "xlog1py", "xlogy",
]  # fmt: skip

gammaln, loggamma, psi = lgamma, lgamma, digamma


def ndtri(p: Any) -> Any:
    """The inverse of `ndtr`, the quantiles of the normal distribution: -inf at 0, inf at 1, NaN beyond."""
    return -math.sqrt(2) * erfcinv(floating(p) * 2)


def floating(x: Any) -> Any:
    """x as a Tensor of floating numbers."""
    x = gg.asarray(x)
    return x if x.dtype.kind in "fV" else gg.astype(x, gg.get_default_dtype())


def i0(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 0."""
    half = gg.exp(abs(floating(x)) * 0.5)  # twice, for the whole could overflow where the product does not
    return i0e(x) * half * half


def i1(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 1."""
    half = gg.exp(abs(floating(x)) * 0.5)
    return i1e(x) * half * half


def gammainc(a: Any, x: Any) -> Any:
    """The regularised lower incomplete gamma function: the integral of t^(a-1) exp(-t) / gamma(a) from 0 to x.

    0 < a < 1e15, x >= 0, NaN beyond; differentiable in both, to any order. In float64 the relative error of this or of
    `gammaincc`, whichever is smaller, is some 1e-15 times its logarithm, and 1e-16 times the root of a where that is
    more; of derivatives in a 1e-12.
    """
    return integrals.gammainc(*numbers(a, x), upper=False, n=0)


def gammaincc(a: Any, x: Any) -> Any:
    """The regularised upper incomplete gamma function, 1 - gammainc(a, x), without that difference if it is small."""
    return integrals.gammainc(*numbers(a, x), upper=True, n=0)


def betaln(a: Any, b: Any) -> Any:
    """The logarithm of the absolute value of the beta function, lgamma(a) + lgamma(b) - lgamma(a + b)."""
    return integrals.betaln(*numbers(a, b))


def beta(a: Any, b: Any) -> Any:
    """The beta function gamma(a) gamma(b) / gamma(a + b) of positive a and b."""
    return gg.exp(betaln(a, b))


def betainc(a: Any, b: Any, x: Any) -> Any:
    """The regularised incomplete beta function: the integral of t^(a-1) (1-t)^(b-1) / beta(a, b) from 0 to x.

    0 < a, b < 1e15, 0 <= x <= 1, NaN beyond. Differentiable in x to any order, in a and b once, beyond which GraphError
    is raised. In float64 the relative error is some 1e-15 times the logarithm of the value; of derivatives 1e-10.
    """
    return integrals.betainc(*numbers(a, b, x), wrt="")


def numbers(*values: Any) -> list[Any]:
    """Arguments as floating Tensors; numbers take the type of the first array among them."""
    like = next((floating(v) for v in values if hasattr(v, "dtype") and not isinstance(v, np.generic)), None)
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    loose = (bool, int, float, list, tuple)
    return [floating(gg.asarray(v, **kind) if isinstance(v, loose) else v) for v in map(plain, values)]


def plain(x: Any) -> Any:
    """A scalar of NumPy as a number of Python, as weak as those are everywhere."""
    return x.item() if isinstance(x, np.generic) else x


def xlog1py(x: Any, y: Any) -> Any:
    """x log(1 + y), and 0 where x is 0 (unless y is NaN); accurate where y is small."""
    x, y = numbers(x, y)
    return gg.where(x == 0, xlogy(x, 1 + y), x * log1p(y))


def entr(x: Any) -> Any:
    """-x log(x), the terms of an entropy: 0 at 0, -inf below."""
    x = floating(x)
    return gg.where(x < 0, -math.inf, -xlogy(x, x))


def rel_entr(x: Any, y: Any) -> Any:
    """x log(x / y), the terms of a relative entropy: 0 at x = 0 and y >= 0, inf where either is negative."""
    x, y = numbers(x, y)
    return gg.where((x > 0) & (y > 0), xlogy(x, x / y), gg.where((x == 0) & (y >= 0), 0.0, math.inf))


def kl_div(x: Any, y: Any) -> Any:
    """x log(x / y) - x + y, the terms of a divergence that are never negative; inf where x or y is."""
    x, y = numbers(x, y)
    return rel_entr(x, y) - x + y
