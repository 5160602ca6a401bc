"""Softmax and its kin, and the normalisations: everything that sets elements against statistics of their neighbours.

Half precision is summed in float32. The normalisations share one forward and one backward, for any axes:

    xhat = (x - mean) rstd,   y = w xhat + b,   u = w t
    dx = rstd (u - mean(u) - xhat mean(u xhat)),   dw = sum(t xhat),   db = sum(t)

Root-mean-square normalisation is the same without a mean: xhat = x rstd, dx = rstd (u - xhat mean(u xhat)).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.define import general
from gpugrad.errors import ShapeError, describe, fail
from gpugrad.ops._axes import normalize_axis, one_axis
from gpugrad.ops.shape import operand, reshape
from gpugrad.tensor import Tensor

__all__ = ["log_softmax", "logsumexp", "softmax"]

Axes = tuple[int, ...]


def wide(x: Any) -> Any:
    """x in the type sums are taken in: its own, at least float32."""
    return x.astype("float32") if x.dtype.itemsize == 2 else x


# --- softmax --------------------------------------------------------------------------------------------------


def _softmax(xp: Any, x: Any, axis: int) -> Any:
    v = wide(x)
    with np.errstate(invalid="ignore"):
        y = v - v.max(axis, keepdims=True)
        xp.exp(y, out=y)
        y /= y.sum(axis, keepdims=True)
    return y.astype(x.dtype, copy=False)


def _log_softmax(xp: Any, x: Any, axis: int) -> Any:
    v = wide(x)
    with np.errstate(invalid="ignore"):
        y = v - v.max(axis, keepdims=True)
        y -= xp.log(xp.exp(y).sum(axis, keepdims=True))
    return y.astype(x.dtype, copy=False)


def _logsumexp(xp: Any, x: Any, axis: Axes, keepdims: bool) -> Any:
    v = wide(x)
    top = v.max(axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        out = xp.log(xp.exp(v - top).sum(axis, keepdims=True)) + top
    return (out if keepdims else out.reshape(shrunk(x.shape, axis))).astype(x.dtype, copy=False)


def shrunk(shape: Axes, axis: Axes) -> Axes:
    """A shape without the reduced axes."""
    return tuple(n for i, n in enumerate(shape) if i not in axis)


def kept(shape: Axes, axis: Axes) -> Axes:
    """A shape whose reduced axes have length 1."""
    return tuple(1 if i in axis else n for i, n in enumerate(shape))


def softmax_rule(F: Any, t: Any, out: Any, _x: Any, *, axis: int) -> Any:
    """The Jacobian diag(y) - y y' is symmetric, so this is both directions."""
    g = t * out
    return g - out * F.sum(g, axis=(axis,), keepdims=True)


def shares(F: Any, out: Any, x: Any, axis: Axes) -> Any:
    """exp(x - logsumexp); 0 throughout a row that is all -inf, whose log-sum-exp is moved to the smallest float."""
    return F.exp(x - F.reshape(F.maximum(out, float(np.finfo(out.dtype).min)), shape=kept(x.shape, axis)))


_soft = general(
    "softmax", _softmax, softmax_rule, floating=True,
    jvp=lambda F, ts, out, x, *, axis: softmax_rule(F, ts[0], out, x, axis=axis),
)  # fmt: skip
_log_soft = general(
    "log_softmax", _log_softmax, floating=True,
    joint=lambda F, t, out, _x, *, axis: (t - F.exp(out) * F.sum(t, axis=(axis,), keepdims=True),),
    jvp=lambda F, ts, out, _x, *, axis: ts[0] - F.sum(F.exp(out) * ts[0], axis=(axis,), keepdims=True),
)  # fmt: skip
_lse = general(
    "logsumexp", _logsumexp, floating=True,
    joint=lambda F, t, out, x, *, axis, keepdims: (F.reshape(t, shape=kept(x.shape, axis)) * shares(F, out, x, axis),),
    jvp=lambda F, ts, out, x, *, axis, keepdims: F.sum(shares(F, out, x, axis) * ts[0], axis=axis, keepdims=keepdims),
)  # fmt: skip


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along an axis, without overflow; a slice that is all -inf or holds +inf gives NaN."""
    x = operand(x, "softmax")
    return _soft(x, axis=one_axis(axis, x.ndim, "softmax"))


def log_softmax(x: Any, axis: int = -1) -> Any:
    """x - logsumexp(x) along an axis: the logarithm of softmax, accurate where softmax underflows."""
    x = operand(x, "log_softmax")
    return _log_soft(x, axis=one_axis(axis, x.ndim, "log_softmax"))


def logsumexp(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over axes (all by default), without overflow; -inf where all are -inf, with gradient 0."""
    x = operand(x, "logsumexp")
    return _lse(x, axis=normalize_axis(axis, x.ndim, "logsumexp"), keepdims=keepdims)


# --- normalisations -------------------------------------------------------------------------------------------


def standardize(xp: Any, x: Any, axis: Axes, eps: float, centred: bool = True) -> tuple[Any, Any, Any, Any]:
    """(xhat, mean, variance, rstd) in the type of sums; statistics keep the reduced axes with length 1."""
    v = wide(x)
    mean = v.mean(axis, keepdims=True) if centred else None
    y = v - mean if centred else v.copy()
    var = xp.square(y).mean(axis, keepdims=True)
    rstd = 1 / xp.sqrt(var + eps)
    y *= rstd
    return y, mean, var, rstd


def affine(y: Any, weight: Any, bias: Any, dtype: Any) -> Any:
    """w y + b in place, in the wanted type."""
    y *= weight
    if bias is not None:
        y += bias
    return y.astype(dtype, copy=False)


def _layer_norm(xp: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float) -> tuple[Any, Any]:
    y, mean, _, rstd = standardize(xp, x, axis, eps)
    return affine(y, weight, bias, x.dtype), (mean, rstd)


def _batch_norm(xp: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float) -> tuple[Any, Any]:
    y, mean, var, rstd = standardize(xp, x, axis, eps)
    return (affine(y, weight, bias, x.dtype), mean.astype(x.dtype), var.astype(x.dtype)), (mean, rstd)


def _rms_norm(xp: Any, x: Any, weight: Any, axis: Axes, eps: float) -> tuple[Any, Any]:
    y, _, _, rstd = standardize(xp, x, axis, eps, centred=False)
    return affine(y, weight, None, x.dtype), rstd


def pull(xp: Any, t: Any, xhat: Any, weight: Any, rstd: Any, axis: Axes, centred: bool) -> tuple[Any, Any]:
    """(dx, t xhat) of a normalisation."""
    tx = t * xhat
    u, ux = t * weight, tx * weight
    xhat = xhat * ux.mean(axis, keepdims=True)
    if centred:
        xhat += u.mean(axis, keepdims=True)
    u -= xhat
    u *= rstd
    return u, tx


def folded(a: Any, like: Any) -> Any:
    """Sum of `a` down to the shape of `like`, which broadcasts against it, in the dtype of `like`."""
    lead = a.ndim - like.ndim
    axes = tuple(i for i in range(a.ndim) if i < lead or like.shape[i - lead] != a.shape[i])
    return a.sum(axes).reshape(like.shape).astype(like.dtype, copy=False)


def _layer_norm_bwd(
    xp: Any, t: Any, x: Any, weight: Any, mean: Any, rstd: Any, axis: Axes, eps: float
) -> tuple[Any, Any, Any]:
    g, v = wide(t), wide(x)
    if mean is None:
        xhat, _, _, rstd = standardize(xp, x, axis, eps)
    else:
        xhat = (v - mean) * rstd
    dx, tx = pull(xp, g, xhat, weight, rstd, axis, True)
    return dx.astype(x.dtype, copy=False), folded(tx, weight), folded(g, weight)


def _rms_norm_bwd(xp: Any, t: Any, x: Any, weight: Any, rstd: Any, axis: Axes, eps: float) -> tuple[Any, Any]:
    g = wide(t)
    xhat = standardize(xp, x, axis, eps, centred=False)[0] if rstd is None else wide(x) * rstd
    rstd = 1 / xp.sqrt(xp.square(wide(x)).mean(axis, keepdims=True) + eps) if rstd is None else rstd
    dx, tx = pull(xp, g, xhat, weight, rstd, axis, False)
    return dx.astype(x.dtype, copy=False), folded(tx, weight)


def mean(F: Any, x: Any, axis: Axes) -> Any:
    """Mean over axes, which stay with length 1."""
    return F.sum(x, axis=axis, keepdims=True) * (1 / math.prod(x.shape[i] for i in axis))


def moments(F: Any, x: Any, axis: Axes, eps: float, centred: bool = True) -> tuple[Any, Any]:
    """(xhat, rstd) of table ops."""
    c = x - mean(F, x, axis) if centred else x
    rstd = 1 / F.sqrt(mean(F, c * c, axis) + eps)
    return c * rstd, rstd


def norm_bwd_via(F: Any, t: Any, x: Any, weight: Any, axis: Axes, eps: float, centred: bool) -> tuple[Any, ...]:
    """The backward of table ops, so that it can be differentiated in everything."""
    xhat, rstd = moments(F, x, axis, eps, centred)
    u = t * weight
    dx = rstd * (u - xhat * mean(F, u * xhat, axis) - (mean(F, u, axis) if centred else 0))
    lead = tuple(range(x.ndim - weight.ndim))
    axes = lead + tuple(i for i in range(len(lead), x.ndim) if weight.shape[i - len(lead)] != x.shape[i])
    return dx, *(F.reshape(F.sum(g, axis=axes, keepdims=False), shape=weight.shape) for g in ((t * xhat, t) if centred else (t * xhat,)))


def norm_jvp(F: Any, ts: Any, x: Any, weight: Any, axis: Axes, eps: float, centred: bool) -> Any:
    """Tangent of w xhat + b."""
    xhat, rstd = moments(F, x, axis, eps, centred)
    v, tw, tb = (*ts, None)[:3]
    total = F.zeros_like(x) if v is None else weight * rstd * (v - (mean(F, v, axis) if centred else 0) - xhat * mean(F, v * xhat, axis))
    total = total if tw is None else total + tw * xhat
    return total if tb is None else total + tb
