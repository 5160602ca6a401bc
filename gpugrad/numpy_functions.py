"""Functions of NumPy that mean something else, or take something else, than ours of that name, or have none of it.

`gpugrad.protocols` finds them by name: `_np_<name>`, `_linalg_<name>`, `_fft_<name>`, here and in `numpy_matrices`
(products, polynomials, linear algebra) and `numpy_sets` (counts, sets, positions). Each has NumPy's arguments and
defaults, and is made of functions of gpugrad, which bring the gradients.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import DTypeError, ShapeError, describe, fail
from gpugrad.ops._axes import normalize_axis, one_axis
from gpugrad.protocols import Call, first_tensor, operand, public, reduction, weak, write
from gpugrad.tensor import Tensor
from gpugrad.tree import tree_leaves


def floating(x: Any) -> Any:
    """x as a Tensor of floating numbers: integers become the default float type."""
    x = gg.asarray(x)
    return x if x.dtype.kind in "fcV" else gg.astype(x, gg.get_default_dtype())


def at_axis(x: Any, axis: int, index: Any) -> Any:
    """x[index] on one axis, and all of the others."""
    return x[(slice(None),) * one_axis(axis, x.ndim, "numpy") + (index,)]


def together(parts: Sequence[Any]) -> list[Any]:
    """The arrays of a sequence as Tensors; lists and numbers go by the first Tensor among them."""
    like = first_tensor(parts)
    loose = (list, tuple, bool, int, float, complex, np.generic)
    return [weak(p, like) if like is not None and isinstance(p, loose) else gg.asarray(p) for p in parts]


# --- reductions and statistics


def _np_sum(
    a: Any, axis: Any = None, dtype: Any = None, keepdims: Any = False, initial: Any = None, where: Any = True
) -> Any:
    return reduction("sum", a, axis, dtype, keepdims, initial, where)


def _np_prod(
    a: Any, axis: Any = None, dtype: Any = None, keepdims: Any = False, initial: Any = None, where: Any = True
) -> Any:
    return reduction("prod", a, axis, dtype, keepdims, initial, where)


def _np_max(a: Any, axis: Any = None, keepdims: Any = False, initial: Any = None, where: Any = True) -> Any:
    return reduction("max", a, axis, None, keepdims, initial, where)


def _np_min(a: Any, axis: Any = None, keepdims: Any = False, initial: Any = None, where: Any = True) -> Any:
    return reduction("min", a, axis, None, keepdims, initial, where)


def _np_all(a: Any, axis: Any = None, keepdims: Any = False, where: Any = True) -> Any:
    return reduction("all", a, axis, None, keepdims, None, where)


def _np_any(a: Any, axis: Any = None, keepdims: Any = False, where: Any = True) -> Any:
    return reduction("any", a, axis, None, keepdims, None, where)


_np_amax, _np_amin = _np_max, _np_min


def _np_mean(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False, where: Any = True) -> Any:
    x = floating(a) if dtype is None else gg.astype(gg.asarray(a), dtype)
    if where is True:
        return gg.mean(x, axis=axis, keepdims=keepdims)
    here = gg.broadcast_to(gg.asarray(where), x.shape)
    return _np_sum(x, axis, keepdims=keepdims, where=here) / gg.sum(here, axis=axis, keepdims=keepdims)


def _np_var(
    a: Any, axis: Any = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False, correction: Any = None
) -> Any:  # fmt: skip
    x = floating(a) if dtype is None else gg.astype(gg.asarray(a), dtype)
    return gg.var(x, axis=axis, correction=ddof if correction is None else correction, keepdims=keepdims)


def _np_std(
    a: Any, axis: Any = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False, correction: Any = None
) -> Any:  # fmt: skip
    x = floating(a) if dtype is None else gg.astype(gg.asarray(a), dtype)
    return gg.std(x, axis=axis, correction=ddof if correction is None else correction, keepdims=keepdims)


def _np_ptp(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return gg.max(a, axis=axis, keepdims=keepdims) - gg.min(a, axis=axis, keepdims=keepdims)


def _np_average(
    a: Any, axis: Any = None, weights: Any = None, returned: bool = False, keepdims: bool = False
) -> Any:  # fmt: skip
    x = floating(a)
    if weights is None:
        w = gg.ones_like(x)
    else:
        w = gg.asarray(operand(weights, x))
        if w.shape != x.shape:
            at = one_axis(axis, x.ndim, "numpy.average") if isinstance(axis, (int, np.integer)) else None
            if at is None or w.shape != x.shape[at : at + 1]:
                raise fail(ShapeError, "numpy.average", f"weights {describe(w)} fit neither {describe(x)} nor its axis")
            w = gg.broadcast_to(gg.reshape(w, (-1, *(1,) * (x.ndim - at - 1))), x.shape)
    total = gg.sum(w, axis=axis, keepdims=keepdims)
    mean = gg.sum(x * w, axis=axis, keepdims=keepdims) / total
    return (mean, total) if returned else mean


def quantiles(name: str, a: Any, q: Any, axis: Any, method: str, keepdims: bool, holes: bool) -> Any:
    """Quantiles along axes, between neighbours in proportion; NaN stands for itself, or (`holes`) is left out."""
    x, q = floating(a), np.asarray(q, "float64")
    if method != "linear" or not ((q >= 0) & (q <= 1)).all():
        raise fail(DTypeError, f"numpy.{name}", f"method={method!r}, q={q}; expected 'linear' and 0 <= q <= 1")
    axes = normalize_axis(axis, x.ndim, f"numpy.{name}")
    kept = [n for i, n in enumerate(x.shape) if i not in axes]
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)] if keepdims else kept
    if not x.size:
        return gg.full((*q.shape, *shape), math.nan, dtype=x.dtype, device=x.device)
    rows = gg.sort(gg.reshape(gg.moveaxis(x, tuple(axes), tuple(range(-len(axes), 0))), (*kept, -1)))
    known = gg.sum(~gg.isnan(rows), axis=-1, keepdims=True)  # NaN comes last
    last = gg.astype(gg.maximum(known - 1, 0), "float64")
    place = last * gg.asarray(q.ravel(), device=x.device)
    low = gg.floor(place)
    weight: Any = gg.astype(place - low, x.dtype)
    under, over = (gg.take_along_axis(rows, gg.astype(i, "int64"), axis=-1) for i in (low, gg.ceil(place)))
    found = gg.where(weight == 0, under, under * (1 - weight) + over * weight)
    found = found if holes else gg.where(known < rows.shape[-1], math.nan, found)
    return gg.reshape(gg.moveaxis(found, -1, 0), (*q.shape, *shape))


def _np_quantile(a: Any, q: Any, axis: Any = None, method: str = "linear", keepdims: bool = False) -> Any:
    return quantiles("quantile", a, q, axis, method, keepdims, holes=False)


def _np_nanquantile(a: Any, q: Any, axis: Any = None, method: str = "linear", keepdims: bool = False) -> Any:
    return quantiles("nanquantile", a, q, axis, method, keepdims, holes=True)


def _np_nanpercentile(a: Any, q: Any, axis: Any = None, method: str = "linear", keepdims: bool = False) -> Any:
    return quantiles("nanpercentile", a, np.asarray(q) / 100, axis, method, keepdims, holes=True)


def _np_nanmedian(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return quantiles("nanmedian", a, 0.5, axis, "linear", keepdims, holes=True)


def _np_percentile(a: Any, q: Any, axis: Any = None, method: str = "linear", keepdims: bool = False) -> Any:
    return quantiles("percentile", a, np.asarray(q) / 100, axis, method, keepdims, holes=False)


def _np_median(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return quantiles("median", a, 0.5, axis, "linear", keepdims, holes=False)


def _np_nansum(a: Any, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Any:
    return reduction("sum", a, axis, dtype, keepdims, None, ~gg.isnan(a))


def _np_nanprod(a: Any, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Any:
    return reduction("prod", a, axis, dtype, keepdims, None, ~gg.isnan(a))


def _np_nanmax(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    if a.dtype.kind in "biu":
        return gg.max(a, axis=axis, keepdims=keepdims)
    found = gg.max(gg.where(gg.isnan(a), -np.inf, a), axis=axis, keepdims=keepdims)
    return gg.where(gg.all(gg.isnan(a), axis=axis, keepdims=keepdims), np.nan, found)


def _np_nanmin(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return -_np_nanmax(-a, axis, keepdims)


def _np_nanmean(a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return _np_mean(a, axis, dtype, keepdims, where=~gg.isnan(a))


def _np_nanvar(a: Any, axis: Any = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False) -> Any:
    here = ~gg.isnan(a)
    apart = gg.where(here, a - _np_nanmean(a, axis, dtype, True), 0)
    count = gg.sum(here, axis=axis, keepdims=keepdims)
    found = gg.sum(apart**2, axis=axis, keepdims=keepdims) / gg.where(count > ddof, count - ddof, 1)
    return gg.where(count > ddof, found, np.nan)


def _np_nanstd(a: Any, axis: Any = None, dtype: Any = None, ddof: float = 0, keepdims: bool = False) -> Any:
    return gg.sqrt(_np_nanvar(a, axis, dtype, ddof, keepdims))


def _np_cov(m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None) -> Any:
    rows = [_np_atleast_2d(v) if rowvar or np.ndim(v) < 2 else gg.transpose(v) for v in (m, y) if v is not None]
    x = floating(gg.concat(rows, axis=0))
    apart = x - gg.mean(x, axis=1, keepdims=True)
    return gg.squeeze(apart @ gg.transpose(apart) / (x.shape[1] - (int(not bias) if ddof is None else ddof)))


def _np_corrcoef(x: Any, y: Any = None, rowvar: bool = True) -> Any:
    c = _np_cov(x, y, rowvar)
    if not c.ndim:
        return c / c
    scale = gg.sqrt(gg.linalg.diagonal(c))
    return gg.clip(c / scale[:, None] / scale, -1, 1)


def _np_bincount(x: Any, weights: Any = None, minlength: int = 0) -> Any:
    x = gg.asarray(x)
    size = max(int(gg.max(x)) + 1 if x.size else 0, minlength)
    ones = gg.ones(x.shape, dtype="int64", device=x.device) if weights is None else gg.asarray(operand(weights, x))
    return gg.zeros(size, dtype=ones.dtype, device=x.device).at[x].add(ones)


def _np_digitize(x: Any, bins: Any, right: bool = False) -> Any:
    return gg.searchsorted(gg.asarray(bins), x, "left" if right else "right")


# --- along an axis


def _np_cumsum(a: Any, axis: Any = None, dtype: Any = None) -> Any:
    x = gg.asarray(a)
    return gg.cumulative_sum(gg.flatten(x) if axis is None else x, axis=axis or 0, dtype=dtype)


def _np_cumprod(a: Any, axis: Any = None, dtype: Any = None) -> Any:
    x = gg.asarray(a)
    return gg.cumulative_prod(gg.flatten(x) if axis is None else x, axis=axis or 0, dtype=dtype)


def _np_nancumsum(a: Any, axis: Any = None, dtype: Any = None) -> Any:
    return _np_cumsum(gg.where(gg.isnan(a), 0, a), axis, dtype)


def _np_nancumprod(a: Any, axis: Any = None, dtype: Any = None) -> Any:
    return _np_cumprod(gg.where(gg.isnan(a), 1, a), axis, dtype)


def _np_sort(a: Any, axis: Any = -1) -> Any:
    return gg.sort(gg.flatten(a)) if axis is None else gg.sort(a, axis)


def _np_argsort(a: Any, axis: Any = -1) -> Any:
    return gg.argsort(gg.flatten(a)) if axis is None else gg.argsort(a, axis)


def _np_ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    parts = (to_begin, gg.diff(gg.flatten(ary)), to_end)
    return gg.concat([gg.flatten(p) for p in together([p for p in parts if p is not None])])


def _np_gradient(f: Any, *spacing: Any, axis: Any = None, edge_order: int = 1) -> Any:
    f = floating(f)
    axes = normalize_axis(axis, f.ndim, "numpy.gradient")
    steps = spacing * len(axes) if len(spacing) == 1 else spacing or (1.0,) * len(axes)
    if len(steps) != len(axes) or edge_order not in (1, 2):
        raise fail(
            ShapeError, "numpy.gradient",
            f"{len(spacing)} spacings for {len(axes)} axes of {describe(f)}, edge_order={edge_order}; expected 1 or 2",
        )  # fmt: skip
    found = [slope(f, i, h, edge_order) for i, h in zip(axes, steps)]
    return found[0] if len(found) == 1 else tuple(found)


def slope(f: Any, axis: int, h: Any, edge_order: int) -> Any:
    """The derivative along an axis whose points are h apart, or stand at h: second order inside."""
    n = f.shape[axis]
    if n <= edge_order:
        raise fail(ShapeError, "numpy.gradient", f"axis {axis} of {describe(f)} needs {edge_order + 1} points")
    h = together([h, f])[0]
    if h.ndim > 1 or (h.ndim and h.size != n):
        raise fail(ShapeError, "numpy.gradient", f"spacing {describe(h)}; expected a number or {n} coordinates")
    h = gg.broadcast_to(h, n - 1) if not h.ndim else gg.diff(h)
    gaps = gg.reshape(h, (-1, *(1,) * (f.ndim - axis - 1)))
    rise = gg.diff(f, axis=axis) / gaps  # the slope of each gap
    first, last = (at_axis(rise, axis, slice(i, i + 1 or None)) for i in (0, -1))
    if n == 2:
        return gg.concat([first, last], axis)
    r0, r1 = at_axis(rise, axis, slice(None, -1)), at_axis(rise, axis, slice(1, None))
    g0, g1 = gaps[:-1], gaps[1:]
    inside = (g1 * r0 + g0 * r1) / (g0 + g1)
    if edge_order == 2:
        bend = (r1 - r0) / (g0 + g1)
        first = first - at_axis(bend, axis, slice(0, 1)) * gaps[:1]
        last = last + at_axis(bend, axis, slice(-1, None)) * gaps[-1:]
    return gg.concat([first, inside, last], axis)


def _np_trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    y = floating(y)
    axis = one_axis(axis, y.ndim, "numpy.trapezoid")
    if x is not None:
        x = gg.asarray(operand(x, y))
        dx = gg.diff(x, axis=axis) if x.ndim > 1 else gg.reshape(gg.diff(x), (-1, *(1,) * (y.ndim - axis - 1)))
    low, high = at_axis(y, axis, slice(None, -1)), at_axis(y, axis, slice(1, None))
    return gg.sum(dx * (low + high) / 2, axis=axis)


# --- shapes


def _np_shape(a: Any) -> tuple[int, ...]:
    return a.shape  # type: ignore[no-any-return]


def _np_ndim(a: Any) -> int:
    return a.ndim  # type: ignore[no-any-return]


def _np_size(a: Any, axis: Any = None) -> int:
    return a.size if axis is None else a.shape[one_axis(axis, a.ndim, "numpy.size")]  # type: ignore[no-any-return]


def _np_copy(a: Any) -> Any:
    return gg.asarray(a, copy=True)


def _np_concatenate(arrays: Any, axis: Any = 0, dtype: Any = None) -> Any:
    return joined(gg.concat, together(arrays), axis, dtype)


def _np_stack(arrays: Any, axis: int = 0, dtype: Any = None) -> Any:
    return joined(gg.stack, together(arrays), axis, dtype)


def joined(join: Call, parts: list[Any], axis: Any, dtype: Any = None) -> Any:
    """Tensors put together, in a dtype of choice."""
    whole = join(parts, axis=axis)
    return whole if dtype is None else gg.astype(whole, dtype)


def _np_append(arr: Any, values: Any, axis: Any = None) -> Any:
    parts = together([arr, values])
    return gg.concat([gg.flatten(p) for p in parts] if axis is None else parts, axis=axis or 0)


def _np_atleast_1d(*arys: Any) -> Any:
    return each(arys, lambda x: gg.reshape(x, (1,)) if x.ndim == 0 else x)


def _np_atleast_2d(*arys: Any) -> Any:
    return each(arys, lambda x: gg.reshape(x, (1, -1)) if x.ndim < 2 else x)


def _np_atleast_3d(*arys: Any) -> Any:
    return each(arys, lambda x: gg.reshape(x, (1, -1, 1)) if x.ndim < 2 else x[..., None] if x.ndim == 2 else x)


def each(arrays: tuple[Any, ...], change: Call) -> Any:
    """A change of each array; a tuple where there are several."""
    found = tuple(change(x) for x in together(arrays))
    return found[0] if len(found) == 1 else found


def _np_vstack(tup: Any, dtype: Any = None) -> Any:
    return joined(gg.concat, [_np_atleast_2d(p) for p in together(tup)], 0, dtype)


def _np_hstack(tup: Any, dtype: Any = None) -> Any:
    parts = [_np_atleast_1d(p) for p in together(tup)]
    return joined(gg.concat, parts, 0 if parts[0].ndim == 1 else 1, dtype)


def _np_dstack(tup: Any) -> Any:
    return gg.concat([_np_atleast_3d(p) for p in together(tup)], axis=2)


def _np_column_stack(tup: Any) -> Any:
    return gg.concat([gg.transpose(_np_atleast_2d(p)) if p.ndim < 2 else p for p in together(tup)], axis=1)


def _np_block(arrays: Any) -> Any:
    def depth(x: Any) -> int:
        return 1 + max(map(depth, x)) if isinstance(x, list) else 0

    def rank(x: Any) -> int:
        return max(map(rank, x)) if isinstance(x, list) else np.ndim(x)

    deep = depth(arrays)
    ndim = max(rank(arrays), deep)

    def joint(x: Any, level: int) -> Any:
        if isinstance(x, list):
            return gg.concat([joint(p, level - 1) for p in x], axis=-level)
        x = together([x, *tensors])[0]
        return gg.reshape(x, (*(1,) * (ndim - x.ndim), *x.shape))

    tensors = [t for t in tree_leaves(arrays) if isinstance(t, Tensor)][:1]
    return joint(arrays, deep)


def _np_array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    if isinstance(indices_or_sections, (int, np.integer)):
        n = ary.shape[one_axis(axis, ary.ndim, "numpy.array_split")]
        long, extra = divmod(n, int(indices_or_sections))
        sizes = [long + 1] * extra + [long] * (int(indices_or_sections) - extra)
        indices_or_sections = list(itertools.accumulate(sizes))[:-1]
    return gg.split(ary, indices_or_sections, axis)


def _np_hsplit(ary: Any, indices_or_sections: Any) -> Any:
    return gg.split(ary, indices_or_sections, 0 if ary.ndim == 1 else 1)


def _np_vsplit(ary: Any, indices_or_sections: Any) -> Any:
    return gg.split(ary, indices_or_sections, 0)


def _np_dsplit(ary: Any, indices_or_sections: Any) -> Any:
    return gg.split(ary, indices_or_sections, 2)


def _np_fliplr(m: Any) -> Any:
    return gg.flip(m, axis=1)


def _np_flipud(m: Any) -> Any:
    return gg.flip(m, axis=0)


def _np_rot90(m: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Any:
    i, j = normalize_axis(tuple(axes), m.ndim, "numpy.rot90")
    turned = m if k % 2 == 0 else gg.swapaxes(m, i, j)
    return gg.flip(turned, axis={0: (), 1: i, 2: (i, j), 3: j}[k % 4])


def _np_rollaxis(a: Any, axis: int, start: int = 0) -> Any:
    axis, start = one_axis(axis, a.ndim, "numpy.rollaxis"), start + a.ndim if start < 0 else start
    return gg.moveaxis(a, axis, start - (axis < start))


def _np_ravel(a: Any, order: str = "C") -> Any:
    return gg.flatten(gg.transpose(a) if order == "F" else a)


def _np_reshape(a: Any, shape: Any, order: str = "C", copy: Any = None) -> Any:
    if order != "F":
        return gg.reshape(a, shape, copy=copy)
    return gg.transpose(gg.reshape(gg.transpose(a), tuple(reversed(shape)) if np.ndim(shape) else shape))


def _np_broadcast_arrays(*args: Any) -> Any:
    return tuple(gg.broadcast_arrays(*args))


def _np_meshgrid(*xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    if not sparse:
        return tuple(gg.meshgrid(*xi, indexing=indexing))
    place = {0: 1, 1: 0} if indexing == "xy" and len(xi) > 1 else {}
    lengths = [[-1 if k == place.get(i, i) else 1 for k in range(len(xi))] for i in range(len(xi))]
    return tuple(gg.reshape(x, n) for x, n in zip(xi, lengths))


def _np_delete(arr: Any, obj: Any, axis: Any = None) -> Any:
    x = gg.flatten(arr) if axis is None else gg.asarray(arr)
    axis = one_axis(axis or 0, x.ndim, "numpy.delete")
    kept = np.delete(np.arange(x.shape[axis]), obj.numpy() if isinstance(obj, Tensor) else obj)
    return gg.take(x, gg.asarray(kept, device=x.device), axis=axis)


def like(make: str, a: Any, dtype: Any, shape: Any, device: Any, *fill: Any) -> Any:
    """zeros, ones, empty or full with what is not given taken from a."""
    a = gg.asarray(a)
    want = a.shape if shape is None else shape
    return public(make)(want, *fill, dtype=a.dtype if dtype is None else dtype, device=device or a.device)


def _np_zeros_like(a: Any, dtype: Any = None, shape: Any = None, device: Any = None) -> Any:
    return like("zeros", a, dtype, shape, device)


def _np_ones_like(a: Any, dtype: Any = None, shape: Any = None, device: Any = None) -> Any:
    return like("ones", a, dtype, shape, device)


def _np_empty_like(prototype: Any, dtype: Any = None, shape: Any = None, device: Any = None) -> Any:
    return like("empty", prototype, dtype, shape, device)


def _np_full_like(a: Any, fill_value: Any, dtype: Any = None, shape: Any = None, device: Any = None) -> Any:
    if isinstance(fill_value, Tensor):
        return fill_value + like("zeros", a, dtype, shape, device)
    return like("full", a, dtype, shape, device, fill_value)


def _np_linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0
) -> Any:  # fmt: skip
    start, stop = map(floating, together([start, stop]))
    place = np.linspace(0.0, 1.0, num, endpoint=endpoint)
    weight = gg.asarray(place.astype(np.result_type(start.dtype, stop.dtype)), device=start.device)
    weight = gg.reshape(weight, (-1, *(1,) * max(start.ndim, stop.ndim)))
    found = gg.moveaxis(start * (1 - weight) + stop * weight, 0, axis)
    return found if dtype is None else gg.astype(found, dtype)


def _np_logspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, base: Any = 10.0, dtype: Any = None, axis: int = 0
) -> Any:  # fmt: skip
    found = gg.pow(base, _np_linspace(start, stop, num, endpoint, axis=axis))
    return found if dtype is None else gg.astype(found, dtype)


def _np_geomspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0
) -> Any:  # fmt: skip
    first, last = map(gg.log, together([start, stop]))
    found = gg.exp(_np_linspace(first, last, num, endpoint, axis=axis))
    return found if dtype is None else gg.astype(found, dtype)


# --- choosing elements


def _np_where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None and y is None:
        return gg.nonzero(condition)
    known = first_tensor((x, y, condition))
    return gg.where(gg.asarray(condition), operand(x, known), operand(y, known))


def _np_clip(a: Any, a_min: Any = None, a_max: Any = None, min: Any = None, max: Any = None) -> Any:
    return gg.clip(a, a_min if min is None else min, a_max if max is None else max)


def _np_round(a: Any, decimals: int = 0) -> Any:
    if not decimals or a.dtype.kind in "iu":
        return gg.round(a)
    return gg.round(a * 10.0**decimals) / 10.0**decimals


_np_around = _np_round


def _np_select(condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    pairs = list(zip(condlist, choicelist))
    return functools.reduce(lambda rest, pair: gg.where(gg.asarray(pair[0]), pair[1], rest), reversed(pairs), default)


def _np_compress(condition: Any, a: Any, axis: Any = None) -> Any:
    x = gg.flatten(a) if axis is None else gg.asarray(a)
    return gg.take(x, gg.nonzero(gg.asarray(condition))[0], axis=axis or 0)


def _np_extract(condition: Any, arr: Any) -> Any:
    return _np_compress(gg.flatten(gg.asarray(condition)), arr)


def _np_argwhere(a: Any) -> Any:
    return gg.stack(list(gg.nonzero(a)), axis=-1)


def _np_flatnonzero(a: Any) -> Any:
    return gg.nonzero(gg.flatten(a))[0]


def _np_nanargmax(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return gg.argmax(gg.where(gg.isnan(a), -np.inf, a), axis, keepdims=keepdims)


def _np_nanargmin(a: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return gg.argmin(gg.where(gg.isnan(a), np.inf, a), axis, keepdims=keepdims)


def _np_unique(
    ar: Any, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False
) -> Any:  # fmt: skip
    found = gg.unique_all(ar)
    wanted = (True, return_index, return_inverse, return_counts)
    return tuple(f for f, w in zip(found, wanted) if w) if any(wanted[1:]) else found[0]


def _np_diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    return gg.linalg.diagonal(a, offset=offset, axis1=axis1, axis2=axis2)


def _np_trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Any:
    return gg.sum(_np_diagonal(a, offset, axis1, axis2), -1, dtype=dtype)


def _np_diag(v: Any, k: int = 0) -> Any:
    return gg.linalg.diag(v, k)


def _np_diagflat(v: Any, k: int = 0) -> Any:
    return gg.linalg.diag(gg.flatten(v), k)


def _np_tril_indices_from(arr: Any, k: int = 0) -> Any:
    return np.tril_indices(arr.shape[-2], k, arr.shape[-1])


def _np_triu_indices_from(arr: Any, k: int = 0) -> Any:
    return np.triu_indices(arr.shape[-2], k, arr.shape[-1])


def _np_diag_indices_from(arr: Any) -> Any:
    return np.diag_indices(arr.shape[0], arr.ndim)


def _np_copyto(dst: Any, src: Any, where: Any = True) -> None:
    write(dst, together([src, dst])[0] if where is True else gg.where(where, src, gg.asarray(dst)), "copyto")


# --- comparing and asking


def _np_isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    a, b = (x.detach() for x in together([a, b]))
    near = gg.abs(a - b) <= atol + rtol * gg.abs(b)
    close = gg.where(gg.isfinite(b), near, a == b)
    return close | (gg.isnan(a) & gg.isnan(b)) if equal_nan else close


def _np_allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    return bool(gg.all(_np_isclose(a, b, rtol, atol, equal_nan)))


def _np_array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    return np.shape(a1) == np.shape(a2) and _np_array_equiv(a1, a2, equal_nan)


def _np_array_equiv(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    a, b = together([a1, a2])
    try:
        same = a == b
    except ShapeError:
        return False
    return bool(gg.all(same | ((a != a) & (b != b)) if equal_nan else same))


def _np_isneginf(x: Any) -> Any:
    return x == -np.inf


def _np_isposinf(x: Any) -> Any:
    return x == np.inf


def _np_iscomplexobj(x: Any) -> bool:
    return x.dtype.kind == "c"  # type: ignore[no-any-return]


def _np_isrealobj(x: Any) -> bool:
    return x.dtype.kind != "c"  # type: ignore[no-any-return]


def _np_iscomplex(x: Any) -> Any:
    return gg.imag(x) != 0 if _np_iscomplexobj(x) else gg.zeros_like(x, dtype="bool")


def _np_isreal(x: Any) -> Any:
    return ~_np_iscomplex(x)


def _np_real(val: Any) -> Any:
    return gg.real(val) if _np_iscomplexobj(val) else val


def _np_imag(val: Any) -> Any:
    return gg.imag(val) if _np_iscomplexobj(val) else gg.zeros_like(val)


def _np_angle(z: Any, deg: bool = False) -> Any:
    found = gg.atan2(_np_imag(z), _np_real(z))
    return gg.rad2deg(found) if deg else found


def _np_fix(x: Any) -> Any:
    return gg.trunc(x)


def _np_result_type(*arrays_and_dtypes: Any) -> Any:
    return gg.result_type(*arrays_and_dtypes)


# --- ufuncs of two results, and those made of others


def _np_i0(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 0."""
    return gg.special.i0(x)


def _np_divmod(x: Any, y: Any) -> Any:
    return gg.floor_divide(x, y), gg.remainder(x, y)


def _np_modf(x: Any) -> Any:
    return x - gg.trunc(x), gg.trunc(x)


def _np_fmod(x: Any, y: Any) -> Any:
    return gg.where(x < 0, -gg.remainder(-x, abs(y)), gg.remainder(x, abs(y)))


def _np_float_power(x: Any, y: Any) -> Any:
    return gg.pow(*(v if isinstance(v, (int, float, complex)) else floating(v) for v in (x, y)))


def _np_ldexp(x: Any, n: Any) -> Any:
    x = floating(x)
    return x * gg.pow(2.0, weak(n, x))


def _np_matvec(x: Any, y: Any) -> Any:
    return (x @ y[..., None])[..., 0]


def _np_vecmat(x: Any, y: Any) -> Any:
    return (gg.conj(x)[..., None, :] @ y)[..., 0, :]
