"""Reductions and what accumulates along an axis: sums, products, extremes.

Half precision accumulates in float32. Table entries take `axis` as a tuple of distinct non-negative integers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.define import general, linear, nondiff
from gpugrad.dtypes import get_default_dtype
from gpugrad.errors import DomainError, ShapeError, describe, fail
from gpugrad.launch import reduce as launch
from gpugrad.op import RECORDING
from gpugrad.ops._axes import kept_shape, normalize_axis, one_axis, rank, shape_of
from gpugrad.ops._sums import accumulator, total
from gpugrad.ops.elementwise import abs as _abs
from gpugrad.ops.elementwise import beside
from gpugrad.ops.index import take_along_axis
from gpugrad.ops.shape import operand, pad

__all__ = [
    "all", "any", "argmax", "argmin", "count_nonzero", "cummax", "cummin", "cumprod", "cumsum", "cumulative_max",
    "cumulative_min", "cumulative_prod", "cumulative_sum", "linear_scan", "max", "mean", "min", "norm", "prod", "std",
    "sum", "var",
]  # fmt: skip

Axis = int | tuple[int, ...] | None


# --- helpers ------------------------------------------------------------------------------------------------


def lengthen(F: Any, t: Any, shape: tuple[int, ...], axis: tuple[int, ...]) -> Any:
    """A reduced value repeated along the axes it was reduced over."""
    return F.broadcast_to(F.reshape(t, shape=kept_shape(shape, axis)), shape=shape)


def count(shape: tuple[int, ...], axis: tuple[int, ...]) -> float:
    """How many elements one result is made of, to divide by: NaN for none, so that their mean is NaN."""
    return math.prod([shape[i] for i in axis]) or math.nan


def floating(x: Any) -> Any:
    """x, or the default float of an integer array."""
    if hasattr(x, "dtype") and x.dtype.kind in "iub":
        return RECORDING.astype(x, dtype=get_default_dtype())
    return x


def nonempty(op: str, x: Any, axis: tuple[int, ...]) -> None:
    """Refuse to reduce no elements where that has no value."""
    shape = shape_of(x)
    if math.prod([shape[i] for i in axis]) == 0:
        raise fail(ShapeError, op, f"({describe(x)}, axis={axis}): an empty axis has no {op}")


# --- sum, mean, prod ----------------------------------------------------------------------------------------


def reduction(name: str) -> Any:
    """Forward of sum or prod. Integers and bools come out in 64 bits, as the Array API has it."""

    def forward(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool, dtype: Any = None) -> Any:
        wide = accumulator(x, dtype)
        out = total(xp, x, axis, keepdims, dtype) if name == "sum" else x.prod(axis, dtype=wide, keepdims=keepdims)
        return out if dtype is not None or wide is None else out.astype(x.dtype)

    return forward


_sum = linear(
    "sum", reduction("sum"),
    lambda F, t, _out, x_shape, axis, keepdims, dtype=None: lengthen(F, t, x_shape, axis), cuda=launch.sum_,
)  # fmt: skip
_mean = linear(
    "mean",
    lambda xp, x, axis, keepdims: (total(xp, x, axis, keepdims) / count(x.shape, axis)).astype(x.dtype, copy=False),
    lambda F, t, _out, x_shape, axis, keepdims: (
        lengthen(F, t * (1 / count(x_shape, axis)), x_shape, axis)
    ),
    cuda=launch.mean,
)  # fmt: skip


def others(F: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """For each element the product of all others over the axes, without a division: right where elements are 0."""
    result = None
    for a in axis:
        before = F.cumulative_prod(F.shift(x, axis=a, by=1, fill=1), axis=a, reverse=False)
        after = F.cumulative_prod(F.shift(x, axis=a, by=-1, fill=1), axis=a, reverse=True)
        result = before * after if result is None else result * (before * after)
        x = F.prod(x, axis=(a,), keepdims=True)
    return F.ones_like(x) if result is None else result


_prod = general(
    "prod", reduction("prod"),
    lambda F, t, _out, x, axis, keepdims, dtype=None: lengthen(F, t, x.shape, axis) * others(F, x, axis),
    jvp=lambda F, ts, _out, x, axis, keepdims, dtype=None: (
        F.sum(ts[0] * others(F, x, axis), axis=axis, keepdims=keepdims)
    ),
)  # fmt: skip


def sum(x: Any, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Any:
    """Sum over axes (all by default); 0 over none. Integers sum to 64 bits, half precision through float32.

    dtype: of the accumulation and the result.
    """
    return _sum(x, axis=normalize_axis(axis, rank(x), "sum"), keepdims=keepdims, dtype=dtype and np.dtype(dtype))


def mean(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Mean over axes (all by default); integers give the default float. NaN over an empty axis."""
    return _mean(floating(x), axis=normalize_axis(axis, rank(x), "mean"), keepdims=keepdims)


def prod(x: Any, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Any:
    """Product over axes (all by default); 1 over none. The gradient is right where elements are 0.

    dtype: of the accumulation and the result.
    """
    return _prod(x, axis=normalize_axis(axis, rank(x), "prod"), keepdims=keepdims, dtype=dtype and np.dtype(dtype))


# --- variance -----------------------------------------------------------------------------------------------


def var_forward(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool, correction: float) -> Any:
    """Two passes: the mean, then the mean square deviation from it."""
    n = count(x.shape, axis)
    d = x - total(xp, x, axis, True) / n
    d *= d
    return (total(xp, d, axis, keepdims) / freedom(n, correction)).astype(x.dtype, copy=False)


def freedom(n: float, correction: float) -> float:
    """What the squared deviations are divided by; NaN where nothing is left, so that the variance is NaN."""
    return n - correction if n > correction else math.nan


def deviation(F: Any, x: Any, axis: tuple[int, ...], correction: float) -> Any:
    """(x - mean) / (n - correction): half the gradient of the variance."""
    return (x - F.mean(x, axis=axis, keepdims=True)) * (1 / freedom(count(x.shape, axis), correction))


_var = general(
    "var", var_forward,
    lambda F, t, _out, x, axis, keepdims, correction: (
        lengthen(F, 2 * t, x.shape, axis) * deviation(F, x, axis, correction)
    ),
    jvp=lambda F, ts, _out, x, axis, keepdims, correction: (
        F.sum(2 * ts[0] * deviation(F, x, axis, correction), axis=axis, keepdims=keepdims)
    ),
    cuda=launch.var,
)  # fmt: skip
_std = general(
    "std", lambda xp, x, axis, keepdims, correction: xp.sqrt(var_forward(xp, x, axis, keepdims, correction)),
    lambda F, t, out, x, axis, keepdims, correction: (
        F.quotient(lengthen(F, t, x.shape, axis) * deviation(F, x, axis, correction), lengthen(F, out, x.shape, axis))
    ),
    jvp=lambda F, ts, out, x, axis, keepdims, correction: (
        F.quotient(F.sum(ts[0] * deviation(F, x, axis, correction), axis=axis, keepdims=keepdims), out)
    ),
    cuda=launch.std,
)  # fmt: skip


def spread(op: str, x: Any, axis: Axis, correction: float, keepdims: bool) -> Any:
    """var or std, by its canonical arguments."""
    axes = normalize_axis(axis, rank(x), op)
    return getattr(RECORDING, op)(floating(x), axis=axes, keepdims=keepdims, correction=correction)


def var(x: Any, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Any:
    """Variance over axes (all by default): squared deviations summed and divided by n - correction.

    NaN if n <= correction, so also over an empty axis.
    """
    return spread("var", x, axis, correction, keepdims)


def std(x: Any, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Any:
    """Standard deviation over axes (all by default), the root of `var`; its gradient is 0 where it is 0."""
    return spread("std", x, axis, correction, keepdims)


# --- extremes -----------------------------------------------------------------------------------------------


def ties(F: Any, t: Any, out: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """1 / k at each of the k elements that attain the extreme (NaN attains it), else 0; in t's dtype."""
    hits = F.astype((x == F.reshape(out, shape=kept_shape(x.shape, axis))) | (x != x), dtype=t.dtype)
    return hits / F.sum(hits, axis=axis, keepdims=True)


def extreme(name: str, cuda: Any) -> Any:
    """The table entry of max or min."""
    return general(
        name, lambda xp, x, axis, keepdims: getattr(x, name)(axis=axis, keepdims=keepdims),
        lambda F, t, out, x, axis, keepdims: lengthen(F, t, x.shape, axis) * ties(F, t, out, x, axis),
        jvp=lambda F, ts, out, x, axis, keepdims: (
            F.sum(ts[0] * ties(F, ts[0], out, x, axis), axis=axis, keepdims=keepdims)
        ),
        cuda=cuda, singular=1,
    )  # fmt: skip


_max, _min = extreme("max", launch.max_), extreme("min", launch.min_)


def max(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Largest element over axes (all by default); ties share the gradient. Raises ShapeError over an empty axis."""
    axes = normalize_axis(axis, rank(x), "max")
    nonempty("max", x, axes)
    return _max(x, axis=axes, keepdims=keepdims)


def min(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Smallest element over axes (all by default); ties share the gradient. Raises ShapeError over an empty axis."""
    axes = normalize_axis(axis, rank(x), "min")
    nonempty("min", x, axes)
    return _min(x, axis=axes, keepdims=keepdims)


_argmax = nondiff(
    "argmax", lambda xp, x, axis, keepdims: xp.argmax(x, axis=axis, keepdims=keepdims), attrs=True, cuda=launch.argmax
)
_argmin = nondiff(
    "argmin", lambda xp, x, axis, keepdims: xp.argmin(x, axis=axis, keepdims=keepdims), attrs=True, cuda=launch.argmin
)


def position(op: str, x: Any, axis: int | None, keepdims: bool) -> Any:
    """argmax or argmin, with the checks they share."""
    nonempty(op, x, normalize_axis(axis, rank(x), op))
    return getattr(RECORDING, op)(x, axis=None if axis is None else one_axis(axis, rank(x), op), keepdims=keepdims)


def argmax(x: Any, axis: int | None = None, *, keepdims: bool = False) -> Any:
    """Index (int64) of the first largest element along an axis, or in the flattened array."""
    return position("argmax", x, axis, keepdims)


def argmin(x: Any, axis: int | None = None, *, keepdims: bool = False) -> Any:
    """Index (int64) of the first smallest element along an axis, or in the flattened array."""
    return position("argmin", x, axis, keepdims)


# --- truth --------------------------------------------------------------------------------------------------

_all = nondiff("all", lambda xp, x, axis, keepdims: xp.all(x, axis=axis, keepdims=keepdims), attrs=True)
_any = nondiff("any", lambda xp, x, axis, keepdims: xp.any(x, axis=axis, keepdims=keepdims), attrs=True)
_count = nondiff("count_nonzero", lambda xp, x, axis, keepdims: (x != 0).sum(axis=axis, keepdims=keepdims), attrs=True)


def all(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Whether every element over the axes (all by default) is nonzero; true over none."""
    return _all(x, axis=normalize_axis(axis, rank(x), "all"), keepdims=keepdims)


def any(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Whether some element over the axes (all by default) is nonzero; false over none."""
    return _any(x, axis=normalize_axis(axis, rank(x), "any"), keepdims=keepdims)


def count_nonzero(x: Any, axis: Axis = None, *, keepdims: bool = False) -> Any:
    """Number (int64) of nonzero elements over axes (all by default)."""
    return _count(x, axis=normalize_axis(axis, rank(x), "count_nonzero"), keepdims=keepdims)


# --- cumulative ---------------------------------------------------------------------------------------------


def accumulate(name: str) -> Any:
    """Forward of cumsum or cumprod, from either end."""

    def forward(xp: Any, x: Any, axis: int, reverse: bool, dtype: Any = None) -> Any:
        wide = accumulator(x, dtype)
        v = xp.flip(x, axis) if reverse else x
        out = getattr(v, name)(axis=axis, dtype=wide)
        out = out if dtype is not None or wide is None else out.astype(x.dtype)
        return xp.flip(out, axis) if reverse else out

    return forward


def shift_forward(xp: Any, x: Any, axis: int, by: int, fill: float) -> Any:
    """One step along the axis, `fill` at the end that is left behind."""
    out, lead = xp.empty_like(x), (slice(None),) * axis
    late, early = (*lead, slice(1, None)), (*lead, slice(None, -1))
    first, last = (*lead, slice(0, 1)), (*lead, slice(-1, None))
    if by > 0:
        out[late], out[first] = x[early], fill
    else:
        out[early], out[last] = x[late], fill
    return out


def scan_forward(xp: Any, a: Any, b: Any, axis: int, reverse: bool) -> Any:
    """Doubling: after the step of width d each pair (a, b) covers 2d elements."""
    a, b = (xp.flip(v, axis).copy() if reverse else v.copy() for v in (a, b))
    lead, d = (slice(None),) * axis, 1
    while d < a.shape[axis]:
        late, early = (*lead, slice(d, None)), (*lead, slice(None, -d))
        b[late] = b[late] + a[late] * b[early]
        a[late] = a[late] * a[early]
        d *= 2
    return xp.flip(b, axis) if reverse else b


def scan_db(F: Any, t: Any, a: Any, axis: int, reverse: bool) -> Any:
    """The recurrence run backwards: s[i] = t[i] + a[i+1] s[i+1]."""
    return F.linear_scan(F.shift(a, axis=axis, by=1 if reverse else -1, fill=0), t, axis=axis, reverse=not reverse)


_shift = general(
    "shift", shift_forward,
    lambda F, t, _out, _x, axis, by, fill: F.shift(t, axis=axis, by=-by, fill=0),
    jvp=lambda F, ts, _out, _x, axis, by, fill: F.shift(ts[0], axis=axis, by=by, fill=0),
    doc="x moved one step along an axis (by = 1 or -1), `fill` at the end it left.",
)  # fmt: skip
_scan = general(
    "linear_scan", scan_forward,
    lambda F, t, out, a, _b, axis, reverse: (
        scan_db(F, t, a, axis, reverse) * F.shift(out, axis=axis, by=-1 if reverse else 1, fill=0)
    ),
    lambda F, t, _out, a, _b, axis, reverse: scan_db(F, t, a, axis, reverse),
    jvp=lambda F, ts, out, a, b, axis, reverse: F.linear_scan(
        a,
        (F.zeros_like(out) if ts[1] is None else ts[1])
        + (0 if ts[0] is None else ts[0] * F.shift(out, axis=axis, by=-1 if reverse else 1, fill=0)),
        axis=axis, reverse=reverse,
    ),
    promotes=True, floating=True,
)  # fmt: skip
_cumsum = linear(
    "cumulative_sum", accumulate("cumsum"),
    lambda F, t, _out, _x, axis, reverse, dtype=None: F.cumulative_sum(t, axis=axis, reverse=not reverse),
)  # fmt: skip
_cumprod = general(
    "cumulative_prod", accumulate("cumprod"),
    lambda F, t, out, x, axis, reverse, dtype=None: (
        scan_db(F, t, x, axis, reverse) * F.shift(out, axis=axis, by=-1 if reverse else 1, fill=1)
    ),
    jvp=lambda F, ts, out, x, axis, reverse, dtype=None: (
        F.linear_scan(x, ts[0] * F.shift(out, axis=axis, by=-1 if reverse else 1, fill=1), axis=axis, reverse=reverse)
    ),
)  # fmt: skip


def holder(xp: Any, x: Any, axis: int, largest: bool) -> Any:
    """Doubling, as in scan_forward: each place beside its neighbours' whose value it must exceed."""
    shape = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
    v, place = x.copy(), xp.broadcast_to(xp.arange(x.shape[axis]).reshape(shape), x.shape).copy()
    lead, d = (slice(None),) * axis, 1
    while d < x.shape[axis]:
        late, early = (*lead, slice(d, None)), (*lead, slice(None, -d))
        a, b = v[early], v[late]
        stays = ((a >= b) if largest else (a <= b)) | (a != a)
        v[late], place[late] = xp.where(stays, a, b), xp.where(stays, place[early], place[late])
        d *= 2
    return place


def holder_cpu(xp: Any, x: Any, axis: int, largest: bool) -> Any:
    """Where the running extreme changes, a new element holds it."""
    best = xp.moveaxis((xp.maximum if largest else xp.minimum).accumulate(x, axis), axis, -1)
    place = xp.zeros(x.shape, "int64")
    lanes, before, after = xp.moveaxis(place, axis, -1), best[..., :-1], best[..., 1:]
    lanes[..., 1:] = xp.where((before != after) & (before == before), xp.arange(1, x.shape[axis]), 0)
    return xp.maximum.accumulate(place, axis, out=place)


_holder = nondiff(
    "cumulative_argmax", holder, attrs=True, cpu=holder_cpu,
    doc="Position (int64) of the first largest (or smallest) element up to each; the first NaN counts as that.",
)  # fmt: skip


def linear_scan(a: Any, b: Any, axis: int = -1, *, reverse: bool = False) -> Any:
    """The recurrence y[i] = a[i] y[i-1] + b[i] along an axis, from y[-1] = 0; from the far end if `reverse`.

    a and b broadcast. log2(n) passes over the axis (discounted returns, moving averages, state-space layers).
    """
    shape = np.broadcast_shapes(shape_of(a), shape_of(b))
    a, b = (RECORDING.broadcast_to(v, shape=shape) for v in (beside(a, b), beside(b, a)))
    return _scan(a, b, axis=one_axis(axis, len(shape), "linear_scan"), reverse=reverse)


def running_axis(op: str, x: Any, axis: int | None) -> int:
    """The axis to accumulate along, which a 1-d array need not name."""
    ndim = rank(x)
    if axis is None and ndim != 1:
        raise fail(ShapeError, op, f"({describe(x)}): axis can be left out of a 1-d array only")
    return one_axis(0 if axis is None else axis, ndim, op)


def cumulative(op: str, x: Any, axis: int | None, dtype: Any, include_initial: bool, start: int) -> Any:
    """cumulative_sum or cumulative_prod, with the checks they share."""
    i = running_axis(op, x, axis)
    out = getattr(RECORDING, op)(x, axis=i, reverse=False, dtype=dtype and np.dtype(dtype))
    if not include_initial:
        return out
    return pad(out, [(int(k == i), 0) for k in range(out.ndim)], constant_values=start)


def cumulative_sum(x: Any, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False) -> Any:
    """Running sums along an axis, which a 1-d array need not name. Integers sum to 64 bits.

    dtype: of the accumulation and the result. include_initial: a 0 comes first, one element more.
    """
    return cumulative("cumulative_sum", x, axis, dtype, include_initial, 0)


def cumulative_prod(x: Any, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False) -> Any:
    """Running products along an axis, which a 1-d array need not name. The gradient is right where elements are 0.

    dtype: of the accumulation and the result. include_initial: a 1 comes first, one element more.
    """
    return cumulative("cumulative_prod", x, axis, dtype, include_initial, 1)


def cumulative_max(x: Any, axis: int | None = None) -> Any:
    """Largest element so far along an axis, which a 1-d array need not name; NaN from the first NaN on.

    Of equal elements the first takes the gradient, as in `argmax`.
    """
    x = operand(x, "cumulative_max")
    i = running_axis("cumulative_max", x, axis)
    return take_along_axis(x, _holder(x, axis=i, largest=True), i)


def cumulative_min(x: Any, axis: int | None = None) -> Any:
    """Smallest element so far along an axis, which a 1-d array need not name; NaN from the first NaN on.

    Of equal elements the first takes the gradient, as in `argmin`.
    """
    x = operand(x, "cumulative_min")
    i = running_axis("cumulative_min", x, axis)
    return take_along_axis(x, _holder(x, axis=i, largest=False), i)


cumsum, cumprod, cummax, cummin = cumulative_sum, cumulative_prod, cumulative_max, cumulative_min


# --- norm ---------------------------------------------------------------------------------------------------


def norm_forward(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool, power: float) -> Any:
    """Root of the summed squares (or powers)."""
    v = x.astype(accumulator(x) or x.dtype, copy=False)
    if power == 2:
        return xp.sqrt((v * v).sum(axis=axis, keepdims=keepdims)).astype(x.dtype, copy=False)
    return ((xp.abs(v) ** power).sum(axis=axis, keepdims=keepdims) ** (1 / power)).astype(x.dtype, copy=False)


def norm_slope(F: Any, t: Any, out: Any, x: Any, axis: tuple[int, ...], power: float) -> Any:
    """t sign(x) (|x| / out)^(power-1), 0 where the vector is zero; t is of x's shape."""
    out = lengthen(F, out, x.shape, axis)
    if power == 2:
        return F.quotient(t * x, out)
    return F.absorb(t * F.sign(x), F.quotient(F.abs(x), out) ** (power - 1))


_norm = general(
    "norm", norm_forward,
    lambda F, t, out, x, axis, keepdims, power: norm_slope(F, lengthen(F, t, x.shape, axis), out, x, axis, power),
    jvp=lambda F, ts, out, x, axis, keepdims, power: (
        F.sum(norm_slope(F, ts[0], out, x, axis, power), axis=axis, keepdims=keepdims)
    ),
)  # fmt: skip


def norm(x: Any, axis: Axis = None, *, ord: float = 2, keepdims: bool = False) -> Any:
    """Vector norm over axes (all by default): (sum |x|^ord)^(1/ord); the largest |x| for inf, the smallest for -inf.

    The gradient at the zero vector is 0. Raises DomainError for ord = 0, ShapeError for +-inf over an empty axis.
    """
    axes = normalize_axis(axis, rank(x), "norm")
    if not isinstance(ord, (int, float, np.number)) or ord == 0 or ord != ord:
        raise fail(DomainError, "norm", f"ord is {ord!r}; expected a nonzero number, inf or -inf")
    x = floating(x)
    if ord == 1:
        return _sum(_abs(x), axis=axes, keepdims=keepdims)
    if math.isinf(ord):
        nonempty("norm", x, axes)
        return (_max if ord > 0 else _min)(_abs(x), axis=axes, keepdims=keepdims)
    return _norm(x, axis=axes, keepdims=keepdims, power=ord)
