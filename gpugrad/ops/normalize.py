"""Normalisations: elements set against the mean and variance of their neighbours.

Half precision is summed in float32. All share one forward and one backward, for any axes:

    xhat = (x - mean) rstd,   y = w xhat + b,   u = w t
    dx = rstd (u - mean(u) - xhat mean(u xhat)),   dw = sum(t xhat),   db = sum(t)

Without `centred` there is no mean, in the forward or the backward: root-mean-square normalisation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.define import general, update
from gpugrad.dtypes import is_float, promote
from gpugrad.errors import DTypeError, ShapeError, describe, fail
from gpugrad.launch import normalize as launch
from gpugrad.ops._sums import dots
from gpugrad.ops.creation import ones
from gpugrad.ops.shape import astype, operand, reshape, sizes

Axes = tuple[int, ...]


def wide(x: Any) -> Any:
    """x in the type sums are taken in: its own, at least float32."""
    return x.astype("float32") if x.dtype.itemsize == 2 else x


# --- normalisations -------------------------------------------------------------------------------------------


def average(xp: Any, x: Any, axis: Axes, y: Any = None) -> Any:
    """Mean of x, or of x y, over axes that stay with length 1."""
    if xp is np and axis == (x.ndim - 1,):
        return (dots(xp, x, y) / x.shape[-1])[..., None]
    return (x if y is None else x * y).mean(axis, keepdims=True)


def standardize(xp: Any, x: Any, axis: Axes, eps: float, centred: bool) -> tuple[Any, Any, Any, Any]:
    """(xhat, mean or None, variance, rstd) in the type of sums; statistics keep the reduced axes with length 1."""
    v = wide(x)
    mean = average(xp, v, axis) if centred else None
    y = v - mean if centred else v.copy("K")
    var = average(xp, y, axis, y)
    rstd = 1 / xp.sqrt(var + eps)
    y *= rstd
    return y, mean, var, rstd


def affine(y: Any, weight: Any, bias: Any, dtype: Any) -> Any:
    """w y + b in place, in the wanted type; no weight is 1, no bias 0."""
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y.astype(dtype, copy=False)


def _layer_norm(xp: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool) -> tuple[Any, Any]:
    y, mean, _, rstd = standardize(xp, x, axis, eps, centred)
    return affine(y, weight, bias, x.dtype), (mean, rstd)


def _add_layer_norm(
    xp: Any, x: Any, residual: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool
) -> tuple[Any, Any]:
    total = xp.add(x, residual)
    y, statistics = _layer_norm(xp, total, weight, bias, axis, eps, centred)
    return (y, total), statistics


def _batch_norm(xp: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float) -> tuple[Any, Any]:
    y, mean, var, rstd = standardize(xp, x, axis, eps, True)
    return (affine(y, weight, bias, x.dtype), mean.astype(x.dtype), var.astype(x.dtype)), (mean, rstd)


def _batch_norm_eval(xp: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
    slope, m = 1 / xp.sqrt(wide(var) + eps), wide(mean)
    slope = slope if weight is None else slope * weight
    y = wide(x) * slope
    y += -m * slope if bias is None else bias - m * slope
    return y.astype(x.dtype, copy=False)


def folds(shape: Axes, like: Axes) -> Axes:
    """The axes over which an array is summed to a shape that broadcasts against it."""
    lead = len(shape) - len(like)
    return tuple(i for i, n in enumerate(shape) if i < lead or like[i - lead] != n)


def _layer_norm_bwd(
    xp: Any, t: Any, x: Any, weight: Any, mean: Any, rstd: Any, more: Any = None, *, axis: Axes, eps: float,
    centred: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """(dx + more, dw, db), the last two empty without weight."""
    t, v = wide(t), wide(x)
    if rstd is None:
        xhat, _, _, rstd = standardize(xp, x, axis, eps, centred)
    else:
        xhat = v - mean if centred else v.copy("K")
        xhat *= rstd
    dw = db = xp.zeros(0, x.dtype)
    u, scale, means = t, rstd, None
    if weight is not None:
        over = folds(x.shape, weight.shape)
        sums = [g.sum(over, keepdims=True) for g in (t * xhat, t)]
        dw, db = (g.reshape(weight.shape).astype(weight.dtype, copy=False) for g in sums)
        if over == axis:  # one weight for all elements that are set against each other
            scale, means = rstd * weight, [g / math.prod(x.shape[i] for i in axis) for g in sums]
        else:
            u = t * weight
    along, level = means or (average(xp, u, axis, xhat), average(xp, u, axis) if centred else None)
    xhat *= along
    if centred:
        xhat += level
    u = xp.subtract(u, xhat, out=xhat)
    u *= scale
    if more is not None:
        u += more
    return u.astype(x.dtype, copy=False), dw, db


def mean(F: Any, x: Any, axis: Axes) -> Any:
    """Mean over axes, which stay with length 1."""
    return F.sum(x, axis=axis, keepdims=True) / math.prod(x.shape[i] for i in axis)


def moments(F: Any, x: Any, axis: Axes, eps: float, centred: bool) -> tuple[Any, Any]:
    """(xhat, rstd) of table ops."""
    c = x - mean(F, x, axis) if centred else x
    rstd = 1 / F.sqrt(mean(F, c * c, axis) + eps)
    return c * rstd, rstd


def project(F: Any, u: Any, xhat: Any, axis: Axes, centred: bool) -> Any:
    """u without its mean and its component along xhat: the Jacobian of x -> xhat, up to rstd. It is symmetric."""
    v = u - xhat * mean(F, u * xhat, axis)
    return v - mean(F, u, axis) if centred else v


def norm_bwd_via(
    F: Any, t: Any, x: Any, weight: Any, _mean: Any, _rstd: Any, more: Any = None, *, axis: Axes, eps: float,
    centred: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """layer_norm_bwd of table ops, so that it can be differentiated in everything."""
    xhat, rstd = moments(F, x, axis, eps, centred)
    dx = rstd * project(F, t if weight is None else t * weight, xhat, axis, centred)
    dx = dx if more is None else dx + more
    if weight is None:
        none = F.getitem(F.reshape(t, shape=(math.prod(t.shape),)), index=(slice(0, 0),))
        return dx, none, none
    over = folds(x.shape, weight.shape)
    return dx, *(F.reshape(F.sum(g, axis=over, keepdims=False), shape=weight.shape) for g in (t * xhat, t))


def layer_norm_rule(
    F: Any, t: Any, _out: Any, x: Any, weight: Any, _bias: Any, statistics: Any, **a: Any
) -> tuple[Any, ...]:
    """The fused backward; a recorded one finds the statistics again. What an absent weight or bias gets is ignored."""
    return F.layer_norm_bwd(t, x, weight, *(statistics or (None, None)), **a)  # type: ignore[no-any-return]


def group_norm_rule(
    F: Any, t: Any, _out: Any, x: Any, weight: Any, _bias: Any, statistics: Any, **a: Any
) -> tuple[Any, ...]:
    """The same where each channel has its own weight."""
    return F.group_norm_bwd(t, x, weight, *(statistics or (None, None)), **a)  # type: ignore[no-any-return]


def add_layer_norm_rule(
    F: Any, ts: Any, out: Any, _x: Any, _residual: Any, weight: Any, _bias: Any, statistics: Any, **a: Any
) -> tuple[Any, ...]:
    """layer_norm of the sum, and what flows back from the sum itself."""
    (t, dx), dw, db = ts, None, None
    if t is not None:
        dx, dw, db = F.layer_norm_bwd(t, out[1], weight, *(statistics or (None, None)), dx, **a)
    return dx, F.reshape(dx, shape=dx.shape), dw, db  # a view: the walk sees that they share memory


def batch_norm_rule(
    F: Any, ts: Any, _out: Any, x: Any, weight: Any, _bias: Any, statistics: Any, *, axis: Axes, eps: float
) -> tuple[Any, ...]:
    """As layer_norm, and what flows back from the mean and the variance."""
    t, t_mean, t_var = ts
    dx, dw, db = 0, None, None
    if t is not None:
        dx, dw, db = group_norm_rule(F, t, None, x, weight, None, statistics, axis=axis, eps=eps, centred=True)
    n = math.prod(x.shape[i] for i in axis)
    if t_mean is not None:
        dx = dx + F.broadcast_to(t_mean / n, shape=x.shape)
    if t_var is not None:
        dx = dx + (2 / n) * t_var * (x - mean(F, x, axis))
    return dx, dw, db


def layer_norm_jvp(
    F: Any, ts: Any, out: Any, x: Any, weight: Any, _bias: Any, _aux: Any, *, axis: Axes, eps: float, centred: bool
) -> Any:
    """The tangent of w xhat + b."""
    v, t_weight, t_bias = ts
    xhat, rstd = moments(F, x, axis, eps, centred)
    slope = rstd if weight is None else weight * rstd
    total = F.zeros_like(out) if v is None else slope * project(F, v, xhat, axis, centred)
    total = total if t_weight is None else total + t_weight * xhat
    return total if t_bias is None else total + t_bias


def add_layer_norm_jvp(
    F: Any, ts: Any, out: Any, _x: Any, _residual: Any, weight: Any, _bias: Any, _statistics: Any, **a: Any
) -> tuple[Any, ...]:
    """Tangents of both outputs."""
    y, total = out
    given = [t for t in ts[:2] if t is not None]
    moved = F.zeros_like(total) if not given else given[0] if len(given) == 1 else given[0] + given[1]
    return layer_norm_jvp(F, (moved, *ts[2:]), y, total, weight, None, None, **a), moved


def batch_norm_eval_via(F: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *, eps: float) -> Any:
    """batch_norm_eval of table ops."""
    slope = 1 / F.sqrt(var + eps) if weight is None else weight / F.sqrt(var + eps)
    return x * slope + (-mean * slope if bias is None else bias - mean * slope)


def batch_norm_jvp(
    F: Any, ts: Any, out: Any, x: Any, weight: Any, _bias: Any, _statistics: Any, *, axis: Axes, eps: float
) -> tuple[Any, ...]:
    """Tangents of the three outputs."""
    y, of_mean, of_var = out
    moved = layer_norm_jvp(F, ts, y, x, weight, None, None, axis=axis, eps=eps, centred=True)
    if ts[0] is None:
        return moved, F.zeros_like(of_mean), F.zeros_like(of_var)
    return moved, mean(F, ts[0], axis), 2 * mean(F, (x - mean(F, x, axis)) * ts[0], axis)


_layer = general(
    "layer_norm", _layer_norm, joint=layer_norm_rule, jvp=layer_norm_jvp, aux=True, cuda=launch.layer_norm,
    doc="Over the last axes, a weight for each of their elements.",
)  # fmt: skip
_add_layer = general(
    "add_layer_norm", _add_layer_norm, joint=add_layer_norm_rule, jvp=add_layer_norm_jvp, aux=True, nout=2,
    cuda=launch.add_layer_norm, doc="layer_norm of x + residual, and that sum.",
)  # fmt: skip
_group = general(
    "group_norm", _layer_norm, joint=group_norm_rule, jvp=layer_norm_jvp, aux=True, cuda=launch.group_norm,
    doc="Over any axes, a weight for each channel.",
)  # fmt: skip
_batch = general(
    "batch_norm", _batch_norm, joint=batch_norm_rule, jvp=batch_norm_jvp, aux=True, nout=3, cuda=launch.batch_norm
)
_batch_eval = general(
    "batch_norm_eval", _batch_norm_eval, via=batch_norm_eval_via, cuda=launch.batch_norm_eval,
    doc="By given statistics, one for each of axis 1.",
)  # fmt: skip
general("layer_norm_bwd", _layer_norm_bwd, via=norm_bwd_via, nout=3, cuda=launch.layer_norm_bwd)
general("group_norm_bwd", _layer_norm_bwd, via=norm_bwd_via, nout=3, cuda=launch.group_norm_bwd)


def track(xp: Any, running: Any, value: Any, momentum: float) -> None:
    """running += momentum (value - running), in place."""
    running += momentum * (value.reshape(running.shape) - running)


_track = update("track", track, doc="Move a running statistic towards a new value.")


def parameters(op: str, x: Any, shape: Axes, *params: Any) -> list[Any]:
    """Tensors of `shape`; None stays, but for a first one of which there are others: ones. Raises ShapeError."""
    first = params[0]
    if first is None and any(p is not None for p in params):
        first = ones(shape, dtype=x.dtype, device=x.device)
    given = [None if p is None else operand(p, op, x) for p in (first, *params[1:])]
    if any(p is not None and p.shape != shape for p in given):
        listed = ", ".join(describe(p) for p in given if p is not None)
        raise fail(ShapeError, op, f"input {describe(x)} with {listed}: expected parameters of shape {list(shape)}")
    return given


def floats(op: str, x: Any, least: int) -> Any:
    """The input as a floating tensor of at least so many axes. Raises DTypeError or ShapeError."""
    x = operand(x, op)
    if not is_float(x.dtype):
        raise fail(DTypeError, op, f"{describe(x)}: expected a floating-point input")
    if x.ndim < least:
        raise fail(ShapeError, op, f"{describe(x)} has {x.ndim} axes, expected at least {least}")
    return x


def trailing(op: str, x: Any, normalized_shape: Any) -> tuple[Axes, Axes]:
    """(shape, axes) of the last axes of x, which must have the lengths given. Raises ShapeError."""
    shape = sizes(normalized_shape, (), op)
    if not shape or x.shape[x.ndim - len(shape) :] != shape:
        raise fail(ShapeError, op, f"{describe(x)} does not end in normalized_shape {list(shape)}")
    return shape, tuple(range(x.ndim - len(shape), x.ndim))


def layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes of each sample, with their biased variance.

    normalized_shape: the lengths of those axes, which weight and bias have too. Raises ShapeError for other shapes.
    """
    x = floats("layer_norm", x, 1)
    shape, axis = trailing("layer_norm", x, normalized_shape)
    return _layer(x, *parameters("layer_norm", x, shape, weight, bias), axis=axis, eps=eps, centred=True)


def add_layer_norm(
    x: Any, residual: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> tuple[Any, Any]:
    """(layer_norm(x + residual, ...), x + residual) in one pass, as a residual block needs them.

    x and residual have one shape. Raises ShapeError for other shapes.
    """
    return _added("add_layer_norm", x, residual, normalized_shape, (weight, bias), eps, True)


def add_rms_norm(
    x: Any, residual: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> tuple[Any, Any]:
    """(rms_norm(x + residual, ...), x + residual) in one pass, as a residual block needs them.

    x and residual have one shape. Raises ShapeError for other shapes.
    """
    return _added("add_rms_norm", x, residual, normalized_shape, (weight, None), eps, False)


def _added(
    op: str, x: Any, residual: Any, normalized_shape: Any, params: tuple[Any, Any], eps: float | None, centred: bool
) -> tuple[Any, Any]:
    x = floats(op, x, 1)
    r = operand(residual, op, x)
    if r.shape != x.shape:
        raise fail(ShapeError, op, f"input {describe(x)} and residual {describe(r)} differ in shape")
    shape, axis = trailing(op, x, normalized_shape)
    kind = promote(x.dtype, r.dtype)
    w, b = parameters(op, x, shape, *params)
    small = spacing(kind) if eps is None else eps
    return _add_layer(astype(x, kind), astype(r, kind), w, b, axis=axis, eps=small, centred=centred)  # type: ignore[no-any-return]


def spacing(dtype: Any) -> float:
    """The spacing of numbers at 1, which stands in for an eps that is not given."""
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7  # bfloat16, which NumPy does not know


def rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes of each sample; eps: the spacing at 1 of x's dtype if None.

    normalized_shape: the lengths of those axes, which weight has too. Raises ShapeError for other shapes.
    """
    x = floats("rms_norm", x, 1)
    shape, axis = trailing("rms_norm", x, normalized_shape)
    small = spacing(x.dtype) if eps is None else eps
    return _layer(x, *parameters("rms_norm", x, shape, weight), None, axis=axis, eps=small, centred=False)


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Layer normalisation of each of num_groups groups of channels: x (N, C, ...); weight, bias (C,).

    Raises ShapeError for other shapes, or where the channels do not divide into the groups.
    """
    x = floats("group_norm", x, 2)
    n, c, *rest = x.shape
    if num_groups < 1 or c % num_groups:
        raise fail(ShapeError, "group_norm", f"{describe(x)}: {c} channels do not divide into {num_groups} groups")
    shape = (num_groups, c // num_groups, *(1 for _ in rest))
    w, b = (p if p is None else reshape(p, shape) for p in parameters("group_norm", x, (c,), weight, bias))
    grouped = reshape(x, (n, *shape[:2], *rest))
    norm = _layer if w is None else _group
    return reshape(norm(grouped, w, b, axis=tuple(range(2, grouped.ndim)), eps=eps, centred=True), x.shape)


def batch_norm(
    x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """(x - mean) / sqrt(var + eps) * weight + bias per channel (axis 1): x (N, C, ...), all else (C,).

    training: normalise by the statistics of the batch (biased variance) and move running_mean and running_var
    (unbiased; None for none) in place by `momentum` towards them. Otherwise use the running ones, as constants, or
    the batch's if there are none.
    Raises ShapeError for other shapes, or for a single value a channel in training.
    """
    op = "batch_norm"
    x = floats(op, x, 2)
    channels, spread = (x.shape[1],), (x.shape[1], *(1 for _ in x.shape[2:]))
    w, b = (p if p is None else reshape(p, spread) for p in parameters(op, x, channels, weight, bias))
    if not training and running_mean is not None and running_var is not None:
        m, v = (reshape(p.detach(), spread) for p in parameters(op, x, channels, running_mean, running_var))
        return _batch_eval(x, w, b, m, v, eps=eps)
    axis = (0, *range(2, x.ndim))
    count = math.prod(x.shape[i] for i in axis)
    if count < 2:
        raise fail(ShapeError, op, f"{describe(x)} has {count} value a channel; the variance needs two in training")
    out, m, v = _batch(x, w, b, axis=axis, eps=eps)
    if training and running_mean is not None:
        _track(running_mean, m.detach(), momentum=momentum)
    if training and running_var is not None:
        _track(running_var, v.detach() * (count / (count - 1)), momentum=momentum)
    return out
