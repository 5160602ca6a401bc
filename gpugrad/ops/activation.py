"""Activations. Every one is finite, with a finite gradient, for |x| up to 1e4; slopes at kinks: docs/kinks.md."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpugrad.define import elementwise, general
from gpugrad.errors import DomainError, ShapeError, describe, fail
from gpugrad.launch import activation as launch
from gpugrad.op import RECORDING, raw
from gpugrad.ops._axes import one_axis, rank, shape_of
from gpugrad.ops.elementwise import abs as _abs
from gpugrad.ops.elementwise import add, blocked, clip, expm1, minimum, polynomial, select, where
from gpugrad.rules import add_up

__all__ = [
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid",
    "logit", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "swish",
    "tanhshrink",
]  # fmt: skip

# --- rectifiers ---------------------------------------------------------------------------------------------


def rectify(xp: Any, x: Any, into: Any = None) -> Any:
    """max(x, 0); of many elements NumPy's clip is faster than its maximum with a number."""
    if x.size < 1 << 14 or xp is not np or x.dtype.kind != "f":
        return xp.maximum(x, 0, out=into)
    return np.clip(x, 0, np.inf, out=into)


_masked = blocked(lambda xp, t, out, into=None: select(xp, out <= 0, 0, t, into), 1 << 18, 1 << 19)
relu = elementwise(
    "relu", rectify, lambda F, t, out, _x, **lent: F.relu_bwd(t, out, **lent), cuda=launch.relu, reuse=0,
    doc="max(x, 0); slope 0 at 0.",
)  # fmt: skip
relu_bwd = elementwise(
    "relu_bwd", lambda xp, t, out, into=None, reuse=False: (
        xp.where(out <= 0, 0, t) if out.size < 4096 else _masked(xp, t, out, into=into, reuse=reuse)
    ),
    lambda F, u, _out, _t, out: F.relu_bwd(u, out), None, cuda=launch.relu_bwd,
    doc="t where relu's output is above 0 (or NaN), else 0.",
)  # fmt: skip
_leaky_relu = elementwise(
    "leaky_relu", lambda xp, x, negative_slope: select(xp, x > 0, x, (x * negative_slope).astype(x.dtype, copy=False)),
    lambda F, t, _out, x, negative_slope: F.leaky_relu_bwd(t, x, negative_slope=negative_slope), attrs=True,
    floating=True, cuda=launch.leaky_relu,
)  # fmt: skip
leaky_relu_bwd = elementwise(
    "leaky_relu_bwd",
    lambda xp, t, x, negative_slope: select(xp, x > 0, t, (t * negative_slope).astype(t.dtype, copy=False)),
    lambda F, u, _out, _t, x, negative_slope: F.leaky_relu_bwd(u, x, negative_slope=negative_slope), None, attrs=True,
    cuda=launch.leaky_relu_bwd, doc="t times the derivative of leaky_relu at x.",
)  # fmt: skip


@blocked
def elu_forward(xp: Any, x: Any, alpha: float, rate: float, scale: float) -> Any:
    """One formula for the exponential family."""
    out = scale * select(xp, x > 0, x, alpha * xp.expm1(rate * xp.minimum(x, 0)))
    return out.astype(x.dtype, copy=False)


def elu_back(xp: Any, t: Any, out: Any, alpha: float, rate: float, scale: float) -> Any:
    """t scale above 0, else t rate (out + scale alpha): with alpha rate > 0, x and out have one sign."""
    slope = out + scale * alpha
    if rate != 1:
        slope *= rate
    return (t * select(xp, out > 0, scale, slope)).astype(out.dtype, copy=False)


_elu = elementwise(
    "elu", elu_forward, lambda F, t, out, _x, **options: F.elu_bwd(t, out, **options), attrs=True, floating=True,
    cuda=launch.elu,
)  # fmt: skip
elu_bwd = elementwise(
    "elu_bwd", elu_back, lambda F, u, _out, _t, out, **options: F.elu_bwd(u, out, **options),
    lambda F, u, _out, t, out, rate, **_options: F.where(out > 0, 0, u * t * rate), attrs=True, cuda=launch.elu_bwd,
    doc="t times the derivative of elu at its output.",
)  # fmt: skip


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x above 0, negative_slope * x elsewhere; the slope at 0 is negative_slope."""
    return _leaky_relu(x, negative_slope=negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x above 0, alpha (exp(x) - 1) elsewhere."""
    if alpha < 0:  # the output does not tell the sign of x
        return where(x > 0, x, alpha * expm1(minimum(x, 0)))
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


SILENT = 800.0  # exp(-800) is 0 in every dtype


def wide(x: Any) -> Any:
    """x in float32, if it is narrower."""
    return x if x.dtype in ("float32", "float64") else x.astype("float32")


def sigmoid_forward(xp: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)) without overflow: the numerator is 1 from 0 on, exp(x) below."""
    e = xp.exp(-xp.abs(x))
    step = xp.maximum(e, x >= 0)
    e += 1
    step /= e
    return step


@blocked
def softplus_forward(xp: Any, x: Any, beta: float = 1.0) -> Any:
    """max(z, 0) + log(1 + exp(-|z|)), z = beta x: no overflow, and faster than logaddexp."""
    z = x if beta == 1 else beta * x
    out = xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.abs(z)))
    return out if beta == 1 else out / beta


def sigmoid_back(xp: Any, t: Any, out: Any) -> Any:
    """t out (1 - out)."""
    slope = 1 - out
    slope *= out
    slope *= t
    return slope


@blocked
def softplus_back(xp: Any, t: Any, x: Any, beta: float) -> Any:
    """t sigmoid(beta x)."""
    slope = sigmoid_forward(xp, x if beta == 1 else beta * x)
    slope *= t
    return slope


def logit_forward(xp: Any, x: Any) -> Any:
    """log(x / (1 - x)), through log1p where the quotient is near 1."""
    rest = 1 - x
    return select(xp, x < 0.25, xp.log(x / rest), xp.log1p((2 * x - 1) / rest))


sigmoid = elementwise(
    "sigmoid", sigmoid_forward, lambda F, t, out, _x: F.sigmoid_bwd(t, out), floating=True, cuda=launch.sigmoid,
    doc="1 / (1 + exp(-x)).",
)  # fmt: skip
sigmoid_bwd = elementwise(
    "sigmoid_bwd", sigmoid_back, lambda F, u, _out, _t, out: F.sigmoid_bwd(u, out),
    lambda F, u, _out, t, out: u * t * (1 - 2 * out), cuda=launch.sigmoid_bwd,
    doc="t times the derivative of sigmoid at its output.",
)  # fmt: skip
log_sigmoid = elementwise(
    "log_sigmoid", lambda xp, x: -softplus_forward(xp, -x), lambda F, t, _out, x: F.softplus_bwd(t, x, beta=-1.0),
    floating=True, cuda=launch.log_sigmoid, doc="log(sigmoid(x)) without overflow.",
)  # fmt: skip
_softplus = elementwise(
    "softplus", softplus_forward, lambda F, t, _out, x, beta: F.softplus_bwd(t, x, beta=beta), attrs=True,
    floating=True, cuda=launch.softplus,
)  # fmt: skip
softplus_bwd = elementwise(
    "softplus_bwd", softplus_back, lambda F, u, _out, _t, x, beta: F.softplus_bwd(u, x, beta=beta),
    lambda F, u, _out, t, x, beta: F.sigmoid_bwd(u * t * beta, F.sigmoid(beta * x)), attrs=True,
    cuda=launch.softplus_bwd, doc="t times the derivative of softplus at x.",
)  # fmt: skip
softsign = elementwise(
    "softsign", lambda xp, x: x / (1 + xp.abs(x)), lambda F, t, _out, x: t / F.square(1 + F.abs(x)), floating=True,
    doc="x / (1 + |x|).",
)  # fmt: skip
_logit = elementwise(
    "logit", logit_forward, lambda F, t, _out, x: F.quotient(t, x * (1 - x)), floating=True,
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

# gelu(x) = x Phi(x) (Hendrycks & Gimpel 2016); "tanh" takes Phi(x) = (1 + tanh(K (x + C x^3))) / 2. The exact form is
# made of Phi(-|x|), which has no cancellation: x Phi(x) is max(x, 0) - |x| Phi(-|x|); slopes at x and -x add up to 1.
K, C = math.sqrt(2 / math.pi), 0.044715
FAR = 40.0  # beyond, Phi(-|x|) rounds to 0
in_pieces = functools.partial(blocked, block=1 << 17)  # as large as with few temporaries they may be

# Phi(-a) exp(a^2 / 2) is P((1.1875 a - 4) / (a + 4)) / (a + 4): P interpolates at the Chebyshev points that stand for
# 0 <= a <= 128/3, with relative errors of 8e-10 and 4e-17.
MILLS_SINGLE = (
    0.8103555844, -0.6203686554, 0.3659710017, -0.158766337, 0.04416757256, -0.003516717653, -0.002578619789,
    0.0007880267374, 0.0001453324513, -9.259030658e-5, -8.960520862e-6, 8.185417751e-6,
)  # fmt: skip
MILLS_DOUBLE = (
    0.81035558498789432, -0.6203686559461561, 0.36597095711338757, -0.15876630110974729, 0.044168101030273833,
    -0.0035171394574215131, -0.0025809445951957733, 0.00078985741133177517, 0.00015008691715989457,
    -9.6237037269334718e-5, -1.3745730782801255e-5, 1.165372470415526e-5, 2.2620896511060814e-6,
    -1.4011963842528976e-6, -4.7103631039460878e-7, 1.4231234273576501e-7, 9.4955734599712512e-8,
    -6.1871295513469231e-9, -1.635325399924004e-8, -1.457716815378861e-9, 2.1077856706072614e-9,
    2.7937793821817555e-10, -1.5041229771603135e-10,
)  # fmt: skip


def normal_tail(xp: Any, x: Any) -> tuple[Any, Any, Any]:
    """a = |x| up to 40, Phi(-a) exp(a^2 / 2) and exp(-a^2 / 2), in float32 at least."""
    a = wide(xp.minimum(xp.abs(x), FAR))
    d, u = a + 4, 1.1875 * a
    u -= 4
    u /= d
    mills = polynomial(MILLS_DOUBLE if a.dtype == "float64" else MILLS_SINGLE, u)
    mills /= d
    if a.dtype != "float64":  # where a * a is exact
        bell = a.astype("float64")
        bell *= bell
        bell *= -0.5
        return a, mills, xp.exp(bell, out=bell).astype("float32")
    h = a.astype("float32").astype("float64")  # h * h is exact
    bell, d = xp.exp(-0.5 * h * h), 0.5 * (h - a) * (h + a)  # |d| < 1e-4
    return a, mills, bell + bell * (d + d * d * (0.5 + d / 6))


@in_pieces
def gelu_forward(xp: Any, x: Any, approximate: str, into: Any = None) -> Any:
    """x Phi(x)."""
    if approximate == "tanh":
        x = xp.clip(x, -FAR, math.inf, out=xp.empty_like(x))
        step = xp.multiply(x, x, out=xp.empty_like(x) if into is None else into)
        step *= K * C
        step += K
        step *= x
        xp.tanh(step, out=step)
        step += 1
        x *= 0.5
        step *= x
        return step
    a, mills, bell = normal_tail(xp, x)
    a *= mills
    a *= bell
    return (xp.maximum(x, 0) - a).astype(x.dtype, copy=False)


@in_pieces
def gelu_back(xp: Any, t: Any, x: Any, approximate: str, into: Any = None) -> Any:
    """t (Phi(x) + x Phi'(x))."""
    if approximate == "tanh":
        x, slope, step = (xp.clip(x, -FAR, FAR, out=xp.empty_like(x)), xp.empty_like(x), xp.empty_like(x))
        xp.multiply(x, x, out=slope)
        xp.multiply(slope, K * C, out=step)
        step += K
        step *= x
        xp.tanh(step, out=step)
        slope *= 3 * K * C
        slope += K
        slope *= x
        xp.multiply(step, step, out=x)
        xp.subtract(1, x, out=x)
        slope *= x
        slope += step
        slope += 1
        slope *= 0.5
        return xp.multiply(t, slope, out=into)  # not before, for it may be the memory of t
    a, mills, bell = normal_tail(xp, x)
    a *= -0.5 * K
    a += mills
    a *= bell
    return (t * select(xp, x < 0, a, 1 - a)).astype(x.dtype, copy=False)


def gelu_curvature(F: Any, x: Any, approximate: str) -> Any:
    """Second derivative of gelu."""
    if approximate == "tanh":
        z = x * x
        step, d1, d2 = F.tanh(x * (K + (K * C) * z)), K + (3 * K * C) * z, (6 * K * C) * x
        return (1 - step * step) * (d1 + 0.5 * x * d2 - x * step * (d1 * d1))
    return F.exp(-0.5 * x * x) * ((2 - x * x) * (0.5 * K))


_gelu = elementwise(
    "gelu", gelu_forward,
    lambda F, t, _out, x, approximate, **lent: F.gelu_bwd(t, x, approximate=approximate, **lent), attrs=True,
    floating=True, cuda=launch.gelu, reuse=1,
)  # fmt: skip
gelu_bwd = elementwise(
    "gelu_bwd", gelu_back,
    lambda F, u, _out, _t, x, approximate: F.gelu_bwd(u, x, approximate=approximate),
    lambda F, u, _out, t, x, approximate: u * t * gelu_curvature(F, x, approximate),
    attrs=True, cuda=launch.gelu_bwd, doc="t times the derivative of gelu at x.",
)  # fmt: skip


@blocked
def silu_back(xp: Any, t: Any, x: Any) -> Any:
    """t s (1 + x (1 - s)), s the sigmoid: below 0, e (1 + e + x) / (1 + e)^2."""
    a = wide(xp.minimum(xp.abs(x), SILENT))
    e = xp.exp(-a)
    d = 1 + e
    a -= d
    a *= e
    d *= d
    a /= d
    return (t * select(xp, x < 0, -a, 1 + a)).astype(x.dtype, copy=False)


def silu_curvature(F: Any, x: Any) -> Any:
    """s (1 - s) (2 + x (1 - 2 s))."""
    s = F.sigmoid(x)
    return F.sigmoid_bwd(2 + x * (1 - 2 * s), s)


# tanh(softplus(x)) is n / d with e = exp(x), n = e (e + 2), d = n + 2; from 20 on it rounds to 1 and its slope to 0.


def gate(xp: Any, x: Any) -> tuple[Any, Any, Any]:
    """x within its limits, e and n: in float32 at least, for float16 has no room for them."""
    x = wide(xp.clip(x, -SILENT, 20))
    e = xp.exp(x)
    return x, e, e * (e + 2)


@blocked
def mish_forward(xp: Any, x: Any) -> Any:
    """x n / d."""
    n = gate(xp, x)[2]
    return (xp.maximum(x, -SILENT) * (n / (n + 2))).astype(x.dtype, copy=False)


@blocked
def mish_back(xp: Any, t: Any, x: Any) -> Any:
    """t (n + 4 x e (e + 1) / d) / d."""
    v, e, n = gate(xp, x)
    d = n + 2
    return (t * ((n + v * (4 * e) * ((e + 1) / d)) / d)).astype(x.dtype, copy=False)


def mish_curvature(F: Any, x: Any) -> Any:
    """w' (2 + x (1 - s - 2 w s)), w = tanh(softplus(x)), w' = (1 - w^2) s, s the sigmoid."""
    s, w = F.sigmoid(x), F.tanh(F.softplus(x, beta=1.0))
    return F.tanh_bwd(s, w) * (2 + x * (1 - s - 2 * w * s))


silu = elementwise(
    "silu", lambda xp, x: (xp.maximum(x, -SILENT) * sigmoid_forward(xp, x)).astype(x.dtype, copy=False),
    lambda F, t, _out, x, **lent: F.silu_bwd(t, x, **lent), floating=True, cuda=launch.silu, reuse=1,
    doc="x sigmoid(x), also called swish.",
)  # fmt: skip
silu_bwd = elementwise(
    "silu_bwd", silu_back, lambda F, u, _out, _t, x: F.silu_bwd(u, x),
    lambda F, u, _out, t, x: u * t * silu_curvature(F, x), cuda=launch.silu_bwd,
    doc="t times the derivative of silu at x.",
)  # fmt: skip
swish = silu
mish = elementwise(
    "mish", mish_forward, lambda F, t, _out, x: F.mish_bwd(t, x), floating=True, cuda=launch.mish,
    doc="x tanh(softplus(x)) (Misra 2019).",
)  # fmt: skip
mish_bwd = elementwise(
    "mish_bwd", mish_back, lambda F, u, _out, _t, x: F.mish_bwd(u, x),
    lambda F, u, _out, t, x: u * t * mish_curvature(F, x), cuda=launch.mish_bwd,
    doc="t times the derivative of mish at x.",
)  # fmt: skip


def gelu(x: Any, approximate: str = "none") -> Any:
    """x times the normal distribution function; approximate='tanh' is the faster form of the paper, off by up to 5e-4.

    Raises DomainError for another `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise fail(DomainError, "gelu", f"approximate is {approximate!r}; expected 'none' or 'tanh'")
    return _gelu(x, approximate=approximate)


# --- piecewise linear ---------------------------------------------------------------------------------------


def hardswish_back(xp: Any, t: Any, x: Any) -> Any:
    """t (2 x + 3) / 6 within (-3, 3), 0 below, t above."""
    return select(xp, x <= -3, 0, select(xp, x >= 3, t, t * ((2 * x + 3) / 6)))


hardsigmoid = elementwise(
    "hardsigmoid", lambda xp, x: (xp.clip(x + 3, 0, 6) / 6).astype(x.dtype, copy=False),
    lambda F, t, _out, x: F.where(F.abs(x) >= 3, 0, t * (1 / 6)), floating=True, doc="x / 6 + 1/2 clipped to [0, 1].",
)  # fmt: skip
hardswish = elementwise(
    "hardswish", lambda xp, x: (x * (xp.clip(x + 3, 0, 6) / 6)).astype(x.dtype, copy=False),
    lambda F, t, _out, x: F.hardswish_bwd(t, x), floating=True, cuda=launch.hardswish, doc="x hardsigmoid(x).",
)  # fmt: skip
hardswish_bwd = elementwise(
    "hardswish_bwd", hardswish_back, lambda F, u, _out, _t, x: F.hardswish_bwd(u, x),
    lambda F, u, _out, t, x: F.where(F.abs(x) >= 3, 0, u * t * (1 / 3)), cuda=launch.hardswish_bwd,
    doc="t times the derivative of hardswish at x.",
)  # fmt: skip


def tanhshrink_forward(xp: Any, x: Any) -> Any:
    """x c / (1 + c) up to 2, by the continued fraction tanh(x) = x / (1 + c), c = x^2 / (3 + x^2 / (5 + ...))."""
    z = xp.minimum(xp.abs(x), 2)
    z = z * z
    c = z / 25
    for k in range(23, 1, -2):
        c = z / (k + c)
    return select(xp, z < 4, x * (c / (1 + c)), x - xp.tanh(x))


tanhshrink = elementwise(
    "tanhshrink", tanhshrink_forward, lambda F, t, _out, x: t * F.square(F.tanh(x)), floating=True,
    doc="x - tanh(x).",
)  # fmt: skip
_softshrink = elementwise(
    "softshrink", lambda xp, x, lambd: x - xp.clip(x, -lambd, lambd).astype(x.dtype, copy=False),
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


# --- bias and activation ------------------------------------------------------------------------------------

# kind: the function of z = x + b, and t times its derivative, from the output for FROM_OUTPUT, else from z.
AFTER_BIAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (lambda F, z: F.relu(z), lambda F, t, out: F.relu_bwd(t, out)),
    "sigmoid": (lambda F, z: F.sigmoid(z), lambda F, t, out: F.sigmoid_bwd(t, out)),
    "tanh": (lambda F, z: F.tanh(z), lambda F, t, out: F.tanh_bwd(t, out)),
    "gelu": (lambda F, z: F.gelu(z, approximate="none"), lambda F, t, z: F.gelu_bwd(t, z, approximate="none")),
    "gelu_tanh": (lambda F, z: F.gelu(z, approximate="tanh"), lambda F, t, z: F.gelu_bwd(t, z, approximate="tanh")),
    "silu": (lambda F, z: F.silu(z), lambda F, t, z: F.silu_bwd(t, z)),
}
FROM_OUTPUT = ("relu", "sigmoid", "tanh")


def bias_act_forward(_xp: Any, x: Any, b: Any, kind: str) -> Any:
    """The function of x + b."""
    return AFTER_BIAS[kind][0](raw(x), x + b)


def bias_act_back(F: Any, t: Any, v: Any, b: Any, kind: str) -> tuple[Any, Any]:
    """Gradients of x and b; v is the output, with b None, or x."""
    dx = AFTER_BIAS[kind][1](F, t, v if b is None else v + b)
    return dx, F.sum(dx, axis=tuple(range(dx.ndim - 1)), keepdims=False)


def bias_act_push(F: Any, ts: tuple[Any, ...], out: Any, v: Any, kind: str) -> Any:
    """The tangents of x and b arrive at their sum; v as in `bias_act_back`, b added."""
    t = F.broadcast_to(add_up([t for t in ts if t is not None]), shape=out.shape)
    return AFTER_BIAS[kind][1](F, t, v)


# Two ops of one forward, because what a call keeps is the output, or x and b.
_bias_act = general(
    "bias_act", bias_act_forward, joint=lambda F, t, _out, x, b, *, kind: F.bias_act_bwd(t, x, b, kind=kind),
    jvp=lambda F, ts, out, x, b, *, kind: bias_act_push(F, ts, out, x + b, kind), floating=True, promotes=True,
    cuda=launch.bias_act,
)  # fmt: skip
_bias_act_out = general(
    "bias_act_out", bias_act_forward, joint=lambda F, t, out, _x, _b, *, kind: F.bias_act_bwd(t, out, None, kind=kind),
    jvp=lambda F, ts, out, _x, _b, *, kind: bias_act_push(F, ts, out, out, kind), floating=True, promotes=True,
    cuda=launch.bias_act,
)  # fmt: skip
general(
    "bias_act_bwd", lambda _xp, t, v, b, kind: bias_act_back(raw(t), t, v, b, kind), via=bias_act_back, nout=2,
    cuda=launch.bias_act_bwd,
)  # fmt: skip


def bias_act(x: Any, bias: Any, activation: str = "relu") -> Any:
    """activation(x + bias) in one pass over memory: x (..., features), bias (features,).

    activation: 'relu', 'gelu', 'gelu_tanh', 'silu', 'sigmoid', 'tanh' or 'none'. What is kept for the backward pass is
    the output, or for 'gelu', 'gelu_tanh' and 'silu' x and the bias. Raises ShapeError, DomainError.
    """
    if rank(x) == 0 or shape_of(bias) != shape_of(x)[-1:]:
        message = f"({describe(x)}, {describe(bias)}): expected a bias of the length of the last axis"
        raise fail(ShapeError, "bias_act", message)
    if activation == "none":
        return add(x, bias)
    if activation not in AFTER_BIAS:
        message = f"activation is {activation!r}; expected one of {', '.join(AFTER_BIAS)}, none"
        raise fail(DomainError, "bias_act", message)
    return (_bias_act_out if activation in FROM_OUTPUT else _bias_act)(x, bias, kind=activation)


def glu(x: Any, axis: int = -1) -> Any:
    """First half times the sigmoid of the second, along an axis of even length. Raises ShapeError for an odd one."""
    i = one_axis(axis, rank(x), "glu")
    n = shape_of(x)[i]
    if n % 2:
        raise fail(ShapeError, "glu", f"({describe(x)}, axis={axis}): length {n} cannot be halved")
    lead = (slice(None),) * i
    first, second = (RECORDING.getitem(x, index=(*lead, part)) for part in (slice(None, n // 2), slice(n // 2, None)))
    return first * sigmoid(second)
