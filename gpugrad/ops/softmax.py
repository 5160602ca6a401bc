"""Softmax, log-softmax and log-sum-exp. Half precision is computed in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad.define import general
from gpugrad.launch import reduce
from gpugrad.launch import softmax as launch
from gpugrad.op import TABLE
from gpugrad.ops._axes import kept_shape, normalize_axis, one_axis
from gpugrad.ops.normalize import wide
from gpugrad.ops.shape import operand

__all__ = ["log_softmax", "logsumexp", "softmax"]

Axes = tuple[int, ...]


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
    return (out if keepdims else out.squeeze(axis)).astype(x.dtype, copy=False)


def _softmax_bwd(xp: Any, t: Any, out: Any, axis: int) -> Any:
    y = wide(out)
    g = y * t
    y = y * g.sum(axis, keepdims=True)
    return xp.subtract(g, y, out=y).astype(out.dtype, copy=False)


def _log_softmax_bwd(xp: Any, t: Any, out: Any, axis: int) -> Any:
    y = xp.exp(wide(out))
    y *= wide(t).sum(axis, keepdims=True)
    return xp.subtract(t, y, out=y).astype(out.dtype, copy=False)


def _logsumexp_bwd(xp: Any, t: Any, out: Any, x: Any, axis: Axes) -> Any:
    shape = kept_shape(x.shape, axis)
    y = wide(x) - xp.maximum(out, finite(out)).reshape(shape)
    xp.exp(y, out=y)
    y *= t.reshape(shape)
    return y.astype(x.dtype, copy=False)


def finite(x: Any) -> float:
    """The smallest finite number of x's dtype, in place of the log-sum-exp of -inf alone: all shares become 0."""
    return float(np.finfo(x.dtype).min) if x.dtype.kind == "f" else float(np.finfo("float32").min)


def softmax_rule(F: Any, t: Any, out: Any, *, axis: int) -> Any:
    """The Jacobian diag(y) - y y' is symmetric, so this is both directions."""
    g = t * out
    return g - out * F.sum(g, axis=(axis,), keepdims=True)


def shares(F: Any, out: Any, x: Any, axis: Axes) -> Any:
    """exp(x - logsumexp); 0 throughout a row that is all -inf."""
    return F.exp(x - F.reshape(F.maximum(out, finite(out)), shape=kept_shape(x.shape, axis)))


_soft = general(
    "softmax", _softmax, lambda F, t, out, _x, *, axis: F.softmax_bwd(t, out, axis=axis), floating=True,
    jvp=lambda F, ts, out, _x, *, axis: softmax_rule(F, ts[0], out, axis=axis), cuda=launch.softmax,
)  # fmt: skip
_log_soft = general(
    "log_softmax", _log_softmax, lambda F, t, out, _x, *, axis: F.log_softmax_bwd(t, out, axis=axis), floating=True,
    jvp=lambda F, ts, out, _x, *, axis: ts[0] - F.sum(F.exp(out) * ts[0], axis=(axis,), keepdims=True),
    cuda=launch.log_softmax,
)  # fmt: skip
_lse = general(
    "logsumexp", _logsumexp,
    lambda F, t, out, x, *, axis, keepdims: F.logsumexp_bwd(t, out, x, axis=axis), floating=True,
    jvp=lambda F, ts, out, x, *, axis, keepdims: F.sum(shares(F, out, x, axis) * ts[0], axis=axis, keepdims=keepdims),
    cuda=reduce.logsumexp,
)  # fmt: skip
general("softmax_bwd", _softmax_bwd, via=softmax_rule, cuda=launch.softmax_bwd)
general(
    "log_softmax_bwd", _log_softmax_bwd, cuda=launch.log_softmax_bwd,
    via=lambda F, t, out, *, axis: t - F.exp(out) * F.sum(t, axis=(axis,), keepdims=True),
)  # fmt: skip
general(
    "logsumexp_bwd", _logsumexp_bwd, cuda=launch.logsumexp_bwd,
    via=lambda F, t, out, x, *, axis: F.reshape(t, shape=kept_shape(x.shape, axis)) * shares(F, out, x, axis),
)  # fmt: skip
for name in ("softmax", "log_softmax"):  # NaN in a row that is all -inf, which where() then does not choose
    TABLE[name].fragile = True


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
