"""NumPy's counts, sets, positions and in-place functions on Tensors; see `numpy_functions`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import DTypeError, RangeError, ShapeError, describe, fail
from gpugrad.numpy_functions import at_axis, floating, together
from gpugrad.ops._axes import normalize_axis, one_axis
from gpugrad.protocols import Call, operand, write
from gpugrad.tensor import Tensor


def host(x: Any) -> Any:
    """Values for the host, where a result's shape depends on them."""
    return x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)


# --- counts


def _np_histogram_bin_edges(a: Any, bins: Any = 10, range: Any = None, weights: Any = None) -> Any:
    """The edges that `histogram` counts between; constants."""
    x = floating(a)
    edges = np.histogram_bin_edges(host(x), host(bins) if isinstance(bins, Tensor) else bins, range, weights)
    return gg.asarray(edges.astype(x.dtype), device=x.device)


def _np_histogram(a: Any, bins: Any = 10, range: Any = None, density: bool = False, weights: Any = None) -> Any:
    """How many elements lie in each bin, or the sum of their weights, which get gradients; and the edges."""
    edges = _np_histogram_bin_edges(a, bins, range, None)
    counts, _ = _np_histogramdd([gg.flatten(gg.asarray(a))], [edges], None, density, weights)
    return counts if density or weights is not None else gg.astype(counts, "int64"), edges


def _np_histogram2d(
    x: Any, y: Any, bins: Any = 10, range: Any = None, density: bool = False, weights: Any = None
) -> Any:  # fmt: skip
    """The histogram of points (x, y), and the edges along both axes."""
    counts, edges = _np_histogramdd(together([x, y]), bins, range, density, weights)
    return counts, *edges


def _np_histogramdd(sample: Any, bins: Any = 10, range: Any = None, density: bool = False, weights: Any = None) -> Any:
    """The histogram of points, rows of `sample` or a list of their coordinates; and the edges along each axis."""
    points = hasattr(sample, "shape")
    columns = list(gg.unstack(gg.reshape(sample, (len(sample), -1)), axis=1)) if points else together(sample)
    given = [bins] * len(columns) if isinstance(bins, (int, np.integer)) or len(bins) != len(columns) else bins
    spans = range or [None] * len(columns)
    edges = [_np_histogram_bin_edges(c, b, r) for c, b, r in zip(columns, given, spans)]
    shape = tuple(e.size - 1 for e in edges)
    places, inside = [], True
    for column, e in zip(columns, edges):
        c = floating(column).detach()
        i = gg.searchsorted(e, c, "right") - 1
        inside = (c >= e[0]) & (c <= e[-1]) & inside
        places.append(gg.clip(i, 0, e.size - 2))  # the last bin has its upper edge
    first = columns[0]
    one = gg.ones_like(first, dtype="int64") if weights is None else gg.flatten(together([weights, first])[0])
    counts = gg.zeros(shape, dtype=one.dtype, device=one.device).at[tuple(places)].add(gg.where(inside, one, 0))
    counts = gg.astype(counts, edges[0].dtype) if weights is None else counts
    if density:
        sizes = functools.reduce(lambda v, e: v[..., None] * gg.diff(e), edges, gg.ones((), dtype=edges[0].dtype))
        return counts / gg.sum(counts) / sizes, edges
    return counts, edges


# --- sets


def _np_union1d(ar1: Any, ar2: Any) -> Any:
    """The sorted values that are in either array."""
    return gg.unique_values(gg.concat(together([ar1, ar2]), axis=None))


def _np_intersect1d(ar1: Any, ar2: Any, assume_unique: bool = False, return_indices: bool = False) -> Any:
    """The sorted values that are in both arrays; and where they are first."""
    a, b = (gg.flatten(v) for v in together([ar1, ar2]))
    both = gg.unique_values(a)
    both = both[gg.isin(both, b)]
    if not return_indices:
        return both
    return both, *(gg.take(o, gg.searchsorted(gg.take(v, o), both)) for v, o in ((v, gg.argsort(v)) for v in (a, b)))


def _np_setdiff1d(ar1: Any, ar2: Any, assume_unique: bool = False) -> Any:
    """The sorted values of the first array that are not in the second."""
    a, b = together([ar1, ar2])
    a = gg.flatten(a) if assume_unique else gg.unique_values(a)
    return a[~gg.isin(a, b)]


def _np_setxor1d(ar1: Any, ar2: Any, assume_unique: bool = False) -> Any:
    """The sorted values that are in one of the arrays only."""
    a, b = together([ar1, ar2])
    return _np_union1d(_np_setdiff1d(a, b), _np_setdiff1d(b, a))


# --- integers


def _np_gcd(x: Any, y: Any) -> Any:
    """The greatest common divisor of integers, broadcast, by Euclid's algorithm."""
    a, b = (gg.abs(v) for v in whole("gcd", x, y))
    while bool(gg.any(b != 0)):
        divisor = gg.where(b == 0, 1, b)
        a, b = gg.where(b == 0, a, b), gg.where(b == 0, 0, gg.remainder(a, divisor))
    return a


def _np_lcm(x: Any, y: Any) -> Any:
    """The least common multiple of integers, broadcast; 0 where one of them is."""
    a, b = whole("lcm", x, y)
    divisor = _np_gcd(a, b)
    return gg.abs(gg.floor_divide(a, gg.where(divisor == 0, 1, divisor)) * b)


def whole(name: str, *values: Any) -> list[Any]:
    """Integers, broadcast to one shape."""
    xs = together(values)
    for x in xs:
        if x.dtype.kind not in "iu":
            raise fail(DTypeError, f"numpy.{name}", f"{describe(x)}: expected integers")
    return gg.broadcast_arrays(*xs)


# --- positions


def _np_ix_(*args: Any) -> tuple[Any, ...]:
    """Index arrays that choose the rows, columns, ... named by each argument, integers or a mask."""
    xs = [gg.nonzero(x)[0] if x.dtype.kind == "b" else x for x in together(args)]
    if any(x.ndim != 1 for x in xs):
        raise fail(ShapeError, "numpy.ix_", f"{', '.join(map(describe, xs))}: expected vectors")
    return tuple(gg.reshape(x, (*(1,) * i, -1, *(1,) * (len(xs) - 1 - i))) for i, x in enumerate(xs))


def _np_unravel_index(indices: Any, shape: Any) -> tuple[Any, ...]:
    """Flat positions in an array of a shape as one array of positions an axis, in row-major order."""
    flat = gg.asarray(indices)
    size = math.prod(shape := (shape,) if isinstance(shape, int) else tuple(shape))
    within("unravel_index", flat, size)
    return tuple(
        gg.remainder(gg.floor_divide(flat, math.prod(shape[i + 1 :])), n) for i, n in enumerate(shape)
    )  # fmt: skip


def _np_ravel_multi_index(multi_index: Any, dims: Any, mode: str = "raise") -> Any:
    """One array of positions an axis as flat positions; mode: 'raise', 'wrap' or 'clip' what is out of range."""
    xs = together(list(multi_index))
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    modes = (mode,) * len(dims) if isinstance(mode, str) else mode
    if len(xs) != len(dims) or not {*modes} <= {"raise", "wrap", "clip"}:
        raise fail(ShapeError, "numpy.ravel_multi_index", f"{len(xs)} arrays for dims {list(dims)}, mode={mode!r}")
    total: Any = 0
    for x, n, m in zip(xs, dims, modes):
        if m == "raise":
            within("ravel_multi_index", x, n)
        total = total * n + (gg.remainder(x, n) if m == "wrap" else gg.clip(x, 0, n - 1))
    return total


def within(name: str, x: Any, n: int) -> None:
    """Refuse positions outside 0 <= x < n."""
    if x.size and not bool(gg.all((x >= 0) & (x < n))):
        raise fail(RangeError, f"numpy.{name}", f"positions {describe(x)} are not all in 0 <= position < {n}")


def _np_lexsort(keys: Any, axis: int = -1) -> Any:
    """The positions that sort by several keys, of which the last counts most."""
    keys = list(gg.unstack(keys)) if isinstance(keys, Tensor) else together(keys)
    order = gg.argsort(keys[0], axis)
    for key in keys[1:]:
        order = gg.take_along_axis(order, gg.argsort(gg.take_along_axis(key, order, axis), axis), axis)
    return order


def _np_partition(a: Any, kth: Any, axis: Any = -1) -> Any:
    """Sorted, so that every element stands where it would."""
    return gg.sort(gg.flatten(a)) if axis is None else gg.sort(a, axis)


def _np_argpartition(a: Any, kth: Any, axis: Any = -1) -> Any:
    """The positions that sort, so that every element stands where it would."""
    return gg.argsort(gg.flatten(a)) if axis is None else gg.argsort(a, axis)


# --- made of pieces


def _np_insert(arr: Any, obj: Any, values: Any, axis: Any = None) -> Any:
    """Values put in before the given positions of an axis, or of the flattened array."""
    x = gg.flatten(arr) if axis is None else gg.asarray(arr)
    axis = 0 if axis is None else one_axis(axis, x.ndim, "numpy.insert")
    v = together([values, x])[0]
    n, rest = x.shape[axis], tuple(m for i, m in enumerate(x.shape) if i != axis)
    places = np.arange(n)[obj] if isinstance(obj, slice) else host(obj)
    places = np.flatnonzero(places) if places.dtype == bool else places
    if places.size and places.dtype.kind not in "iu":
        raise fail(DTypeError, "numpy.insert", f"positions {obj!r}: expected integers")
    single, places = not places.ndim, np.atleast_1d(places).astype("int64")
    if single and v.ndim == x.ndim and v.shape[axis] != 1:  # several rows before one position
        places = np.repeat(places, v.shape[axis])
    if single and v.ndim == len(rest) and v.ndim:  # one slice: NumPy has its axes where those of x are
        v = gg.expand_dims(v, axis)
    where = np.where(places < 0, places + n, places)
    if ((where < 0) | (where > n)).any():
        raise fail(RangeError, "numpy.insert", f"positions {places.tolist()}: axis {axis} of {describe(x)}")
    wide = gg.broadcast_to(v, (*x.shape[:axis], len(where), *x.shape[axis + 1 :]))
    whole = gg.concat([x, gg.astype(wide, x.dtype)], axis)
    rank = np.concatenate([np.arange(n) * 2 + 1, where * 2])  # what is put in comes before the element it is named by
    return gg.take(whole, gg.asarray(np.argsort(rank, kind="stable"), device=x.device), axis=axis)


def _np_resize(a: Any, new_shape: Any) -> Any:
    """The elements, repeated as often as needed, in another shape."""
    shape = (new_shape,) if isinstance(new_shape, (int, np.integer)) else tuple(new_shape)
    x, size = gg.flatten(gg.asarray(a)), math.prod(shape)
    if not x.size:
        return gg.zeros(shape, dtype=x.dtype, device=x.device)
    return gg.reshape(gg.tile(x, -(-size // x.size))[:size], shape)


def _np_trim_zeros(filt: Any, trim: str = "fb", axis: Any = None) -> Any:
    """Without the zeros in front ('f' in trim) and behind ('b') along axes, by default all."""
    x = gg.asarray(filt)
    axes = normalize_axis(axis, x.ndim, "numpy.trim_zeros")
    places = np.argwhere(host(x))
    for i in axes:
        first, last = (places[:, i].min(), places[:, i].max() + 1) if len(places) else (0, 0)
        n = x.shape[i]
        x = at_axis(x, i, slice(first if "f" in trim.lower() else 0, last if "b" in trim.lower() else n))
    return x


def _np_choose(a: Any, choices: Any, mode: str = "raise") -> Any:
    """Of several arrays, broadcast, the element of the one that `a` names; mode: 'raise', 'wrap' or 'clip'."""
    parts = list(gg.unstack(choices)) if isinstance(choices, Tensor) else together(choices)
    index, *parts = gg.broadcast_arrays(gg.asarray(a), *parts)
    if mode == "raise":
        within("choose", index, len(parts))
    index = gg.remainder(index, len(parts)) if mode == "wrap" else gg.clip(index, 0, len(parts) - 1)
    return gg.take_along_axis(gg.stack(parts), index[None], axis=0)[0]


def _np_piecewise(x: Any, condlist: Any, funclist: Any, *args: Any, **kw: Any) -> Any:
    """By the last condition that holds a function of x, or a number; one more function is for where none holds.

    A function is called with all of x, and its result is taken where its condition holds.
    """
    x = gg.asarray(x)
    several = isinstance(condlist, (list, tuple)) and (not x.ndim or hasattr(condlist[0], "shape"))
    condlist = condlist if several or getattr(condlist, "ndim", 1) > x.ndim else [condlist]
    given = list(funclist)
    if len(given) not in (len(condlist), len(condlist) + 1):
        raise fail(ShapeError, "numpy.piecewise", f"{len(given)} functions for {len(condlist)} conditions")
    value = [f(x, *args, **kw) if callable(f) else f for f in given]
    found = gg.zeros_like(x) + (value.pop() if len(value) > len(condlist) else 0)
    for c, v in zip(condlist, value):
        found = gg.where(gg.asarray(c), v, found)
    return gg.astype(found, x.dtype)


def _np_unwrap(p: Any, discont: Any = None, axis: int = -1, *, period: float = 2 * math.pi) -> Any:
    """Angles without their jumps: to each a multiple of the period is added, so that neighbours differ by less."""
    x = gg.asarray(p)
    x = x if isinstance(period, int) and x.dtype.kind in "iu" else floating(x)
    step = gg.diff(x, axis=axis)
    half = period // 2 if x.dtype.kind in "iu" else period / 2
    wrapped = gg.remainder(step + half, period) - half
    wrapped = gg.where((wrapped == -half) & (step > 0), half, wrapped)
    jump = wrapped - step
    jump = gg.where(gg.abs(step) < (half if discont is None else max(discont, half)), 0, jump)
    rest = at_axis(x, axis, slice(1, None)) + gg.cumulative_sum(jump, axis=axis, dtype=x.dtype)
    return gg.concat([at_axis(x, axis, slice(0, 1)), rest], axis=axis)


def _np_apply_along_axis(func1d: Call, axis: int, arr: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of vectors on each lane along an axis, whose place its results take."""
    x = gg.moveaxis(gg.asarray(arr), axis, -1)
    lanes = [gg.asarray(func1d(lane, *args, **kwargs)) for lane in gg.unstack(gg.reshape(x, (-1, x.shape[-1])))]
    if not lanes:
        raise fail(ShapeError, "numpy.apply_along_axis", f"{describe(x)} has no lanes to apply a function to")
    out = gg.reshape(gg.stack(lanes), (*x.shape[:-1], *lanes[0].shape))
    n, axis = lanes[0].ndim, axis % x.ndim
    return gg.moveaxis(out, tuple(range(out.ndim - n, out.ndim)), tuple(range(axis, axis + n)))


def _np_apply_over_axes(func: Call, a: Any, axes: Any) -> Any:
    """func(x, axis) for one axis after another, each of which stays with length 1."""
    x = gg.asarray(a)
    for axis in axes if isinstance(axes, (list, tuple)) else (axes,):
        found = func(x, axis)
        x = found if found.ndim == x.ndim else gg.expand_dims(found, axis)
    return x


# --- in place: as an assignment is, see `protocols.write`


def _np_put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    whole = gg.flatten(arr) if axis is None else arr
    found = gg.put_along_axis(whole, indices, operand(values, whole), 0 if axis is None else axis)
    write(arr, gg.reshape(found, arr.shape), "put_along_axis")


def _np_put(a: Any, ind: Any, v: Any) -> None:
    flat, ids = gg.flatten(a), gg.asarray(ind)
    values = _np_resize(together([v, flat])[0], ids.size)
    write(a, gg.reshape(flat.at[gg.flatten(ids)].set(values), a.shape), "put")


def _np_place(arr: Any, mask: Any, vals: Any) -> None:
    _np_put(arr, gg.nonzero(gg.flatten(gg.asarray(mask)))[0], vals)


def _np_putmask(a: Any, mask: Any, values: Any) -> None:
    write(a, gg.where(gg.asarray(mask), _np_resize(together([values, a])[0], a.shape), a), "putmask")


def _np_fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    step = a.shape[1] + 1 if a.ndim == 2 else 1 + sum(math.prod(a.shape[i:]) for i in range(1, a.ndim))
    end = a.size if wrap or a.ndim != 2 else min(a.size, a.shape[1] * a.shape[1])
    ids = np.arange(0, end, step)
    values = _np_resize(together([val, a])[0], len(ids))
    write(a, gg.reshape(gg.flatten(a).at[ids].set(values), a.shape), "fill_diagonal")


# --- the parts of a number


def _np_frexp(x: Any) -> Any:
    """(m, e) with x = m 2^e and 1/2 <= |m| < 1; the slope of m is 2^-e."""
    x = floating(x)
    e = gg.asarray(np.frexp(host(x))[1], device=x.device)
    half = gg.floor_divide(e, 2)  # in two steps: a factor of its own could overflow
    return x * gg.pow(2.0, gg.astype(-half, x.dtype)) * gg.pow(2.0, gg.astype(half - e, x.dtype)), e


def _np_spacing(x: Any) -> Any:
    """The distance to the next number away from 0, with the sign of x."""
    x = floating(x).detach()
    away = gg.where(gg.signbit(x), -math.inf, math.inf)
    return gg.where(gg.isfinite(x), gg.nextafter(x, gg.astype(away, x.dtype)) - x, math.nan)


def _np_real_if_close(a: Any, tol: float = 100) -> Any:
    """The real part, where the imaginary one is next to nothing (`tol` times the precision; below 1 as it is)."""
    x = gg.asarray(a)
    if x.dtype.kind != "c":
        return x
    limit = tol * gg.finfo(x.dtype).eps if tol > 1 else tol
    return gg.real(x) if bool(gg.all(gg.abs(gg.imag(x)) < limit)) else x
