"""Activations. Every one is finite, with a finite gradient, for |x| up to 1e4; slopes at kinks: docs/kinks.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.define import elementwise
from gpugrad.errors import DomainError, ShapeError, describe, fail
from gpugrad.launch import activation as launch
from gpugrad.op import RECORDING
from gpugrad.ops._axes import one_axis
from gpugrad.ops.elementwise import abs as _abs
from gpugrad.ops.elementwise import blocked, clip, erf_forward, select, where

__all__ = [
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid",
    "logit", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "swish",
    "tanhshrink",
]  # fmt: skip

# --- rectifiers ---------------------------------------------------------------------------------------------

relu = elementwise(
    "relu", lambda xp, x: xp.maximum(x, 0), lambda F, t, out, _x: F.relu_bwd(t, out), doc="max(x, 0); slope 0 at 0.",
)  # fmt: skip
relu_bwd = elementwise(
    "relu_bwd", lambda xp, t, out: xp.where(out <= 0, 0, t) if out.size < 4096 else select(xp, out <= 0, 0, t),
    lambda F, u, _out, _t, out: F.relu_bwd(u, out), None, cuda=launch.relu_bwd,
    doc="t where relu's output is above 0 (or NaN), else 0.",
)  # fmt: skip
_leaky_relu = elementwise(
    "leaky_relu", lambda xp, x, negative_slope: select(xp, x > 0, x, x * negative_slope),
    lambda F, t, _out, x, negative_slope: F.where(x > 0, t, t * negative_slope), attrs=True, floating=True,
)  # fmt: skip


@blocked
def elu_forward(xp: Any, x: Any, alpha: float, rate: float, scale: float) -> Any:
    """One formula for the exponential family."""
    return scale * select(xp, x > 0, x, alpha * xp.expm1(rate * xp.minimum(x, 0)))


_elu = elementwise(
    "elu", elu_forward,
    lambda F, t, out, x, alpha, rate, scale: t * F.where(x > 0, scale, rate * (out + scale * alpha)),
    attrs=True, floating=True,
)  # fmt: skip


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x above 0, negative_slope * x elsewhere; the slope at 0 is negative_slope."""
    return _leaky_relu(x, negative_slope=negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x above 0, alpha (exp(x) - 1) elsewhere."""
    return _elu(x, alpha=alpha, rate=1.0, scale=1.0)


def selu(x: Any) -> Any:
    """Scaled elu that keeps mean 0 and variance 1 (Klambauer et al. 2017)."""
    return _elu(x, alpha=1.6732632423543772, rate=1.0, scale=1.0507009873554805)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """x above 0, alpha (exp(x / alpha) - 1) elsewhere: slope 1 at 0 for every alpha. Raises DomainError for alpha 0."""
    if alpha == 0:
        raise fail(DomainError, "celu", "alpha is 0; expected a nonzero number")
    return _elu(x, alpha=alpha, rate=1.0 / alpha, scale=1.0)


# --- sigmoid and softplus -----------------------------------------------------------------------------------


def sigmoid_forward(xp: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)) without overflow: the numerator is 1 from 0 on, exp(x) below."""
    e = xp.exp(-xp.abs(x))
    return xp.maximum(e, x >= 0) / (1 + e)


@blocked
def softplus_forward(xp: Any, x: Any, beta: float = 1.0) -> Any:
    """max(z, 0) + log(1 + exp(-|z|)), z = beta x: no overflow, and faster than logaddexp."""
    z = x if beta == 1 else beta * x
    out = xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.abs(z)))
    return out if beta == 1 else out / beta


sigmoid = elementwise(
    "sigmoid", sigmoid_forward, lambda F, t, out, _x: t * (out * (1 - out)), floating=True, doc="1 / (1 + exp(-x)).",
)  # fmt: skip
log_sigmoid = elementwise(
    "log_sigmoid", lambda xp, x: -softplus_forward(xp, -x), lambda F, t, _out, x: t * F.sigmoid(-x), floating=True,
    doc="log(sigmoid(x)) without overflow.",
)  # fmt: skip
_softplus = elementwise(
    "softplus", softplus_forward, lambda F, t, _out, x, beta: t * F.sigmoid(beta * x), attrs=True, floating=True,
)  # fmt: skip
softsign = elementwise(
    "softsign", lambda xp, x: x / (1 + xp.abs(x)), lambda F, t, _out, x: t / F.square(1 + F.abs(x)), floating=True,
    doc="x / (1 + |x|).",
)  # fmt: skip
_logit = elementwise(
    "logit", lambda xp, x: xp.log(x) - xp.log1p(-x), lambda F, t, _out, x: F.quotient(t, x * (1 - x)), floating=True,
)  # fmt: skip


def softplus(x: Any, beta: float = 1.0) -> Any:
    """log(1 + exp(beta x)) / beta without overflow. Raises DomainError for beta 0."""
    if beta == 0:
        raise fail(DomainError, "softplus", "beta is 0; expected a nonzero number")
    return _softplus(x, beta=beta)


def logit(x: Any, eps: float | None = None) -> Any:
    """log(x / (1 - x)), the inverse of sigmoid; eps first clips x to [eps, 1 - eps]."""
    return _logit(x if eps is None else clip(x, eps, 1 - eps))


# --- gates: x times a smooth step ---------------------------------------------------------------------------

# gelu(x) = x Phi(x) (Hendrycks & Gimpel 2016); "tanh" takes Phi(x) = (1 + tanh(K (x + C x^3))) / 2.
K, C = math.sqrt(2 / math.pi), 0.044715


@blocked
def gelu_forward(xp: Any, x: Any, approximate: str) -> Any:
    """x Phi(x)."""
    step = xp.tanh(x * (K + (K * C) * (x * x))) if approximate == "tanh" else erf_forward(xp, x * math.sqrt(0.5))
    step += 1
    step *= x
    step *= 0.5
    return step


@blocked
def gelu_slope(xp: Any, x: Any, approximate: str) -> Any:
    """Phi(x) + x Phi'(x)."""
    if approximate == "tanh":
        z = x * x
        step = xp.tanh(x * (K + (K * C) * z))
        return 0.5 * (1 + step + x * (1 - step * step) * (K + (3 * K * C) * z))
    return 0.5 * (1 + erf_forward(xp, x * math.sqrt(0.5))) + x * xp.exp(-0.5 * x * x) * (0.5 * K)


def gelu_curvature(F: Any, x: Any, approximate: str) -> Any:
    """Second derivative of gelu."""
    if approximate == "tanh":
        z = x * x
        step, d1, d2 = F.tanh(x * (K + (K * C) * z)), K + (3 * K * C) * z, (6 * K * C) * x
        return (1 - step * step) * (d1 + 0.5 * x * d2 - x * step * (d1 * d1))
    return F.exp(-0.5 * x * x) * ((2 - x * x) * (0.5 * K))


_gelu = elementwise(
    "gelu", gelu_forward, lambda F, t, _out, x, approximate: F.gelu_bwd(t, x, approximate=approximate), attrs=True,
    floating=True,
)  # fmt: skip
gelu_bwd = elementwise(
    "gelu_bwd", lambda xp, t, x, approximate: t * gelu_slope(xp, x, approximate),
    lambda F, u, _out, _t, x, approximate: F.gelu_bwd(u, x, approximate=approximate),
    lambda F, u, _out, t, x, approximate: u * t * gelu_curvature(F, x, approximate),
    attrs=True, doc="t times the derivative of gelu at x.",
)  # fmt: skip


def silu_dx(F: Any, t: Any, out: Any, x: Any) -> Any:
    """s + out (1 - s), s the sigmoid."""
    s = F.sigmoid(x)
    return t * (s + out * (1 - s))


def mish_dx(F: Any, t: Any, _out: Any, x: Any) -> Any:
    """w + x (1 - w^2) sigmoid(x), w = tanh(softplus(x))."""
    w = F.tanh(F.softplus(x, beta=1.0))
    return t * (w + x * (1 - w * w) * F.sigmoid(x))


silu = elementwise(
    "silu", lambda xp, x: x * sigmoid_forward(xp, x), silu_dx, floating=True, doc="x sigmoid(x), also called swish.",
)  # fmt: skip
swish = silu
mish = elementwise(
    "mish", lambda xp, x: x * xp.tanh(softplus_forward(xp, x)), mish_dx, floating=True,
    doc="x tanh(softplus(x)) (Misra 2019).",
)  # fmt: skip


def gelu(x: Any, approximate: str = "none") -> Any:
    """x times the normal distribution function; approximate='tanh' is the faster form of the paper, off by up to 5e-4.

    Raises DomainError for another `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise fail(DomainError, "gelu", f"approximate is {approximate!r}; expected 'none' or 'tanh'")
    return _gelu(x, approximate=approximate)


# --- piecewise linear ---------------------------------------------------------------------------------------

hardsigmoid = elementwise(
    "hardsigmoid", lambda xp, x: xp.clip(x / 6 + 0.5, 0, 1),
    lambda F, t, _out, x: F.where(F.abs(x) >= 3, 0, t * (1 / 6)), floating=True, doc="x / 6 + 1/2 clipped to [0, 1].",
)  # fmt: skip
hardswish = elementwise(
    "hardswish", lambda xp, x: x * xp.clip(x / 6 + 0.5, 0, 1),
    lambda F, t, _out, x: F.where(x <= -3, 0, F.where(x >= 3, t, t * (x / 3 + 0.5))), floating=True,
    doc="x hardsigmoid(x).",
)  # fmt: skip
tanhshrink = elementwise(
    "tanhshrink", lambda xp, x: x - xp.tanh(x), lambda F, t, _out, x: t * F.square(F.tanh(x)), floating=True,
    doc="x - tanh(x).",
)  # fmt: skip
_softshrink = elementwise(
    "softshrink", lambda xp, x, lambd: x - xp.clip(x, -lambd, lambd),
    lambda F, t, _out, x, lambd: F.where(F.abs(x) <= lambd, 0, t), attrs=True, floating=True,
)  # fmt: skip


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x clipped to [min_val, max_val]; slope 0 at both."""
    return clip(x, min_val, max_val)


def relu6(x: Any) -> Any:
    """x clipped to [0, 6]; slope 0 at both."""
    return clip(x, 0, 6)


def softshrink(x: Any, lambd: float = 0.5) -> Any:
    """x moved towards 0 by lambd, 0 within; slope 0 at +-lambd. Raises DomainError for a negative lambd."""
    if lambd < 0:
        raise fail(DomainError, "softshrink", f"lambd is {lambd!r}; expected 0 or more")
    return _softshrink(x, lambd=lambd)


def hardshrink(x: Any, lambd: float = 0.5) -> Any:
    """x where |x| > lambd, else 0; slope 0 at +-lambd."""
    return where(_abs(x) <= lambd, 0, x)


def glu(x: Any, axis: int = -1) -> Any:
    """First half times the sigmoid of the second, along an axis of even length. Raises ShapeError for an odd one."""
    i = one_axis(axis, np.ndim(x), "glu")
    n = np.shape(x)[i]
    if n % 2:
        raise fail(ShapeError, "glu", f"({describe(x)}, axis={axis}): length {n} cannot be halved")
    lead = (slice(None),) * i
    first, second = (RECORDING.getitem(x, index=(*lead, part)) for part in (slice(None, n // 2), slice(n // 2, None)))
    return first * sigmoid(second)
