"""Reading and writing elements by position: basic and array indexing, functional updates, sorting.

An index is kept as a template, `index`, of integers, slices, None and Ellipsis with the word "array" where an index
array stands; the arrays themselves are ordinary inputs. Everything that gathers elements is differentiated by one
primitive, `scatter_rows`: rows added up at row numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.define import general, linear, multilinear, nondiff, update
from gpugrad.dtypes import get_default_dtype, is_float
from gpugrad.errors import DTypeError, GraphError, RangeError, ShapeError, describe, fail
from gpugrad.launch import index as launch
from gpugrad.launch.index import ARRAY, FULL, Index, block
from gpugrad.layered import LAYERS, innermost
from gpugrad.op import RECORDING
from gpugrad.operands import explain_failure
from gpugrad.ops._axes import one_axis, whole
from gpugrad.ops.shape import astype, broadcast_to, flatten, operand, reshape
from gpugrad.tensor import Tensor

__all__ = [
    "argsort", "gather", "nonzero", "one_hot", "put_along_axis", "scatter_add", "searchsorted", "sort", "take",
    "take_along_axis", "topk",
]  # fmt: skip


# --- templates --------------------------------------------------------------------------------------------


def parse(x: Tensor, index: Any) -> tuple[Index, list[Tensor], bool]:
    """An index expression as (template, index arrays on x's device, whether no element can be named twice)."""
    template: list[Any] = []
    arrays = []
    for entry in index if isinstance(index, tuple) else (index,):
        if entry is None or entry is Ellipsis or isinstance(entry, slice):
            template.append(entry)
        elif isinstance(entry, (int, np.integer)) and not isinstance(entry, bool):
            template.append(int(entry))
        else:
            template.append(ARRAY)
            arrays.append(_index_array(x, entry))
    return tuple(template), arrays, len(arrays) == 1 and arrays[0].dtype.kind == "b"


def _index_array(x: Tensor, entry: Any) -> Tensor:
    a: Any = entry.data if isinstance(entry, Tensor) else entry
    if not backends.is_raw(a):
        if not isinstance(a, (bool, np.bool_, list, tuple)):
            raise fail(DTypeError, "getitem", f"a {type(a).__name__} cannot index {describe(x)}")
        try:
            a = np.asarray(a)
        except ValueError as error:
            raise fail(ShapeError, "getitem", f"index list: {error}") from None
        a = a if a.size else a.astype("int64")
    if a.dtype.kind not in "iub":
        raise fail(DTypeError, "getitem", f"index arrays are integers or booleans, not {describe(a)}")
    return Tensor(backends.of(x.data).asarray(a, device=x.device) if type(a) is np.ndarray else a)


def fill(index: Index, arrays: Any) -> Index:
    """The template with the arrays in their places: what the array library takes."""
    rest = iter(arrays)
    return tuple(next(rest) if isinstance(entry, str) else entry for entry in index)


# --- table ------------------------------------------------------------------------------------------------


def _unslice(xp: Any, t: Any, index: Index, shape: tuple[int, ...]) -> Any:
    out = xp.zeros(shape, t.dtype)
    out[index] = t
    return out


def inside(op: str, shape: tuple[int, ...], index: Index, arrays: Any) -> None:
    """Raise RangeError for the first index array (of the CPU) that leaves its axis."""
    axis, count = block(index, arrays)
    for i, (a, n) in enumerate(zip(arrays[:count], shape[axis:])):
        bad = np.argwhere((a < -n) | (a >= n))
        if len(bad):
            at = tuple(bad[0].tolist())
            where = f"axis {axis + i} of length {n}"
            message = f"index {a[at]} at position {list(at)} is out of range for {where}"
            raise fail(RangeError, op, message) from None


def _gather(xp: Any, x: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    try:
        return x[fill(index, arrays)]
    except IndexError:
        inside("gather", x.shape, index, arrays)
        raise


def _positions(xp: Any, *arrays: Any, index: Index, shape: tuple[int, ...]) -> Any:
    if len(index) == len(arrays) == len(shape) and all(a.dtype.kind != "b" for a in arrays):
        flat: Any = 0
        for a, n in zip(arrays, shape):
            a = a.astype("int64", copy=False)
            flat = flat * n + xp.where(a < 0, a + n, a)
        return flat
    return xp.arange(math.prod(shape)).reshape(shape)[fill(index, arrays)]


def _scatter_rows(xp: Any, t: Any, ids: Any, rows: int, distinct: bool) -> Any:
    """Sorted by row, then summed by doubling within each run: no atomics, so the bits are the same at every run."""
    kind, rest, ids = t.dtype, t.shape[ids.ndim :], ids.reshape(-1)
    order = xp.argsort(ids, kind="stable")
    ids, sums = ids[order], t.reshape(len(ids), math.prod(rest))[order].astype(working(kind))
    reach = 1
    while reach < len(ids):
        same = (ids[reach:] == ids[:-reach])[:, None]
        sums[reach:] = sums[reach:] + xp.where(same, sums[:-reach], 0)
        reach *= 2
    last = xp.concatenate([ids[1:] != ids[:-1], xp.ones(min(len(ids), 1), bool)])
    out = xp.zeros((rows + 1, sums.shape[1]), sums.dtype)
    out[xp.where(last, ids, rows)] = sums  # partial sums land in the spare row
    return out[:rows].astype(kind, copy=False).reshape(rows, *rest)


def _scatter_rows_cpu(xp: Any, t: Any, ids: Any, rows: int, distinct: bool) -> Any:
    """One flat `add.at`, which NumPy runs as a plain loop; several times faster than row by row or sorted."""
    kind, rest = t.dtype, t.shape[ids.ndim :]
    width, ids = math.prod(rest), ids.reshape(-1)
    out = xp.zeros(rows * width, kind if distinct else working(kind))
    if distinct:
        out.reshape(rows, width)[ids] = t.reshape(len(ids), width)
    elif out.size:
        flat = ids if width == 1 else (ids[:, None] * width + xp.arange(width)).reshape(-1)
        xp.add.at(out, flat, t.reshape(-1).astype(out.dtype, copy=False))
    return out.astype(kind, copy=False).reshape(rows, *rest)


def working(dtype: Any) -> Any:
    """The type that sums are kept in: at least float32."""
    return np.dtype("float32") if is_float(dtype) and dtype.itemsize < 4 else dtype


def _assign(xp: Any, x: Any, v: Any, *arrays: Any, index: Index) -> None:
    x[fill(index, arrays)] = v


def _put(xp: Any, x: Any, v: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    out = x.copy()
    out[fill(index, arrays)] = v
    return out


def _put_value_vjp(F: Any, t: Any, _out: Any, x_shape: Any, _v: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    if not arrays:
        return F.getitem(t, index=index)
    picked = F.gather(t, *arrays, index=index, distinct=distinct)
    return picked if distinct else picked * F.last_written(*arrays, index=index, shape=x_shape)


def _put_jvp(F: Any, ts: Any, out: Any, x: Any, v: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    dx, dv = F.zeros_like(x) if ts[0] is None else ts[0], 0.0 if ts[1] is None else ts[1]
    return F.put(dx, dv, *arrays, index=index, distinct=distinct)


def _last_written(xp: Any, *arrays: Any, index: Index, shape: tuple[int, ...]) -> Any:
    """Which elements of the value survive an assignment that names some place twice."""
    where = fill(index, arrays)
    written = xp.zeros(shape, "int64")
    turn = xp.arange(written[where].size).reshape(written[where].shape)
    written[where] = turn
    return written[where] == turn


def spread(F: Any, t: Any, shape: tuple[int, ...], arrays: Any, index: Index, distinct: bool) -> Any:
    """Zeros of a shape with t added up at an array index: the transpose of gather."""
    axis, count = block(index, arrays)
    if not count:
        ids = F.positions(*arrays, index=index, shape=shape)
        return F.reshape(F.scatter_rows(t, ids, rows=math.prod(shape), distinct=distinct), shape=shape)
    before, named, after = shape[:axis], shape[axis : axis + count], shape[axis + count :]
    ids = F.positions(*arrays, index=(ARRAY,) * count, shape=named)
    n = len(ids.shape)
    if axis:
        t = F.transpose(t, axes=(*range(axis, axis + n), *range(axis), *range(axis + n, len(t.shape))))
    out = F.scatter_rows(t, ids, rows=math.prod(named), distinct=distinct)
    out = out if count == 1 else F.reshape(out, shape=(*named, *before, *after))
    if axis:
        out = F.transpose(out, axes=(*range(count, count + axis), *range(count), *range(count + axis, len(shape))))
    return out


def _embedding_cpu(xp: Any, weight: Any, ids: Any, padding: int | None) -> Any:
    rows = len(weight)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        at = tuple(np.argwhere((ids < 0) | (ids >= rows))[0].tolist())
        raise fail(RangeError, "embedding", f"id is {ids[at]} at {list(at)}, expected a row from 0 to {rows - 1}")
    return weight[ids]


def _unpadded(F: Any, t: Any, ids: Any, padding: int | None) -> Any:
    """Rows t, those of the padding set to 0."""
    return t if padding is None else F.where(F.reshape(F.not_equal(ids, padding), shape=(*ids.shape, 1)), t, 0.0)


def _embedding_vjp(F: Any, t: Any, _out: Any, weight_shape: Any, ids: Any, *, padding: int | None) -> Any:
    return F.scatter_rows(_unpadded(F, t, ids, padding), ids, rows=weight_shape[0], distinct=False)


def _embedding_jvp(F: Any, ts: Any, _out: Any, _weight: Any, ids: Any, *, padding: int | None) -> Any:
    return _unpadded(F, F.embedding(ts[0], ids, padding=padding), ids, padding)


_getitem = linear(
    "getitem", lambda xp, x, index: x[index],
    lambda F, t, _out, x_shape, index: F.unslice(t, index=index, shape=x_shape), singular=1,
)  # fmt: skip
_unslice_op = linear(
    "unslice", _unslice, lambda F, t, _out, _t, index, shape: F.getitem(t, index=index),
    doc="Zeros of `shape` with t at a basic index.",
)  # fmt: skip
_gather_op = multilinear(
    "gather", _gather,
    lambda F, t, _out, x_shape, *arrays, index, distinct: spread(F, t, x_shape, arrays, index, distinct),
    promotes=False, cuda=launch.gather, singular=1,
    doc="x at an index that holds arrays; distinct: no element is named twice.",
)  # fmt: skip
_scatter_rows_op = multilinear(
    "scatter_rows", _scatter_rows,
    lambda F, t, _out, _t, ids, rows, distinct: F.gather(t, ids, index=(ARRAY,), distinct=distinct),
    promotes=False, cpu=_scatter_rows_cpu, cuda=launch.scatter_rows,
    doc="(*ids.shape, *rest) and row numbers 0 <= ids < rows to (rows, *rest): the sum of the rows of each number.",
)  # fmt: skip
_put_op = general(
    "put", _put,
    lambda F, t, _out, _x, _v, *arrays, index, distinct: F.put(t, 0.0, *arrays, index=index, distinct=distinct),
    _put_value_vjp, jvp=_put_jvp, cuda=launch.put, singular=1,
    doc="A copy of x with v at the index; of a place named twice the last value stays.",
)  # fmt: skip
_positions_op = nondiff(
    "positions", _positions, attrs=True, promotes=False, cuda=launch.positions,
    doc="Flat positions of the elements that an index selects.",
)  # fmt: skip
_embedding_op = general(
    "embedding", lambda xp, weight, ids, padding: weight[ids], _embedding_vjp, jvp=_embedding_jvp,
    cpu=_embedding_cpu, cuda=launch.embedding, doc="Rows of weight; those of number `padding` let no gradient through.",
)  # fmt: skip
assign = update("assign", _assign, doc="x[index] = v, in place.")
_last_op = nondiff("last_written", _last_written, attrs=True, promotes=False)


# --- reading ----------------------------------------------------------------------------------------------


def getitem(x: Tensor, index: Any) -> Any:
    """x[index] by NumPy's rules: a view for integers, slices, Ellipsis and None; a copy for integer or boolean arrays.

    Gradients of elements named several times add up. Raises RangeError out of range, DTypeError for other indices.
    """
    return Selection(x, index).get()


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Elements (of the flattened array) or whole slices of an axis, by integer positions of any shape.

    Raises RangeError with the first position out of range; on a GPU at the next host read.
    """
    x = operand(x, "take")
    if axis is None:
        x, axis = flatten(x), 0
    ids = _integers(x, indices, "take")
    return _gather_op(x, ids, index=(*(FULL,) * one_axis(axis, x.ndim, "take"), ARRAY), distinct=False)


def _integers(x: Tensor, indices: Any, op: str) -> Tensor:
    ids = _index_array(x, [indices] if isinstance(indices, (int, np.integer)) else indices)
    if ids.dtype.kind == "b":
        raise fail(DTypeError, op, "indices are integers, not booleans")
    return reshape(ids, ()) if isinstance(indices, (int, np.integer)) else ids  # type: ignore[no-any-return]


def embedding(ids: Any, weight: Any, padding_idx: int | None = None) -> Any:
    """Rows of weight (rows, dim) by integers (...): (..., dim). Gradients of a row named several times add up.

    padding_idx: the row, from the end if negative, that gets no gradient. Raises RangeError for an id, or a
    padding_idx, that is no row; DTypeError for ids that are no integers, ShapeError for another weight.
    """
    w = operand(weight, "embedding")
    ids, rows = _integers(w, ids, "embedding"), w.shape[:1]
    if w.ndim != 2:
        raise fail(ShapeError, "embedding", f"weight {describe(w)}: expected (rows, dim)")
    if padding_idx is not None and not -rows[0] <= padding_idx < rows[0]:
        raise fail(RangeError, "embedding", f"padding_idx is {padding_idx}; weight {describe(w)} has no such row")
    return _embedding_op(w, ids, padding=None if padding_idx is None else padding_idx % rows[0])


def take_along_axis(x: Any, indices: Any, axis: int = -1, *, distinct: bool = False) -> Any:
    """For each lane along an axis the elements at that lane's own positions, as argsort gives them.

    indices: integers, broadcast against x outside `axis`. distinct: promises that no element is named twice.
    """
    x = operand(x, "take_along_axis")
    arrays = _lanes(x, indices, axis, "take_along_axis", x.shape)
    return _gather_op(x, *arrays, index=(ARRAY,) * x.ndim, distinct=distinct)


def _lanes(x: Tensor, indices: Any, axis: int, op: str, reach: tuple[int, ...] | None = None) -> list[Tensor]:
    """Index arrays: `indices` on the axis, on every other the position itself, up to `reach` or that of `indices`."""
    axis, ids = one_axis(axis, x.ndim, op), _integers(x, indices, op)
    if ids.ndim != x.ndim:
        raise fail(ShapeError, op, f"{describe(x)} and indices {describe(ids)} differ in number of axes")
    reach = ids.shape if reach is None else reach
    if any(n > m for i, (n, m) in enumerate(zip(reach, x.shape)) if i != axis):
        raise fail(ShapeError, op, f"indices {describe(ids)} reach beyond {describe(x)} outside axis {axis}")
    backend = backends.of(x.data)
    with backend.scope(x.device):
        grid = [Tensor(backend.xp.arange(n).reshape(-1, *(1,) * (x.ndim - 1 - i))) for i, n in enumerate(reach)]
    return [*grid[:axis], ids, *grid[axis + 1 :]]


def put_along_axis(x: Any, indices: Any, values: Any, axis: int = -1) -> Any:
    """x with `values` at each lane's own positions along an axis: what undoes `take_along_axis`; x stays as it is.

    indices: integers, broadcast against x outside `axis`; values: broadcast to them. Of a place named twice the last
    value stays (undefined on a GPU). Raises RangeError for a position that is none.
    """
    x = operand(x, "put_along_axis")
    return Selection(x, tuple(_lanes(x, indices, axis, "put_along_axis", x.shape))).set(values)


def gather(x: Any, axis: int, index: Any) -> Any:
    """PyTorch's gather: out[i, j] = x[index[i, j], j] for axis 0, and so on; out has the shape of `index`.

    index: integers with as many axes as x, and outside `axis` no longer than x. Raises ShapeError for another shape,
    RangeError for a position that is none.
    """
    x = operand(x, "gather")
    return _gather_op(x, *_lanes(x, index, axis, "gather"), index=(ARRAY,) * x.ndim, distinct=False)


def scatter_add(x: Any, axis: int, index: Any, values: Any) -> Any:
    """PyTorch's scatter_add: x with values[i, j] added at [index[i, j], j] for axis 0, and so on; x stays as it is.

    index: as for `gather`; several values for one place add up. values: a number, or an array of at least the shape of
    `index`, of which the first are taken. Raises ShapeError for another shape.
    """
    x = operand(x, "scatter_add")
    arrays, v = _lanes(x, index, axis, "scatter_add"), operand(values, "scatter_add", x)
    shape = _integers(x, index, "scatter_add").shape
    if v.ndim:
        if v.ndim != len(shape) or any(n < m for n, m in zip(v.shape, shape)):
            raise fail(ShapeError, "scatter_add", f"values {describe(v)} do not cover the index, {list(shape)}")
        v = getitem(v, tuple(slice(n) for n in shape))
    return Selection(x, tuple(arrays)).add(v)


def nonzero(x: Any) -> tuple[Tensor, ...]:
    """Positions of the true or nonzero elements, one int64 array per axis; waits for the device."""
    x = operand(x, "nonzero")
    if not x.ndim:
        raise fail(ShapeError, "nonzero", "a 0-d array has no axis to give positions on")
    return tuple(Tensor(i) for i in backends.of(x.data).xp.nonzero(x.data))


# --- writing ----------------------------------------------------------------------------------------------


def hidden(a: Any) -> bool:
    """Whether an index array shows the shape of an example and holds a batch. Raises ShapeError for such a mask."""
    if type(a) not in LAYERS or a.level.in_place:
        return False
    if a.dtype.kind == "b":
        raise fail(ShapeError, "put", "a mask that differs between examples selects another number of elements in each")
    return True


class At:
    """`x.at[index]`: functional updates of a tensor, which leave x as it is and are differentiable."""

    __slots__ = ("_x",)

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def __getitem__(self, index: Any) -> Selection:
        return Selection(self._x, index)


class Selection:
    """The elements of x at an index; each method returns a new tensor of x's shape and dtype.

    v is an array or number that broadcasts to the selection. With integer arrays one element may be named
    several times: `set` keeps the last value (undefined on a GPU), the others combine them all.
    """

    __slots__ = ("_arrays", "_distinct", "_index", "_x")

    def __init__(self, x: Tensor, index: Any) -> None:
        self._x = x
        self._index, self._arrays, self._distinct = parse(x, index)

    def get(self) -> Any:
        """x[index]."""
        if self._arrays:
            return _gather_op(self._x, *self._arrays, index=self._index, distinct=self._distinct)
        return _getitem(self._x, index=self._index)

    def set(self, v: Any) -> Any:
        """x with v at the index."""
        return self._put(self._value(v, "set"))

    def add(self, v: Any) -> Any:
        """x with v added at the index."""
        v = self._value(v, "add", exact=True)
        if not self._arrays or self._distinct:
            return self._put(self.get() + v)
        wide = broadcast_to(v, self._shape())
        return self._x + spread(RECORDING, wide, self._x.shape, self._arrays, self._index, False)

    def multiply(self, v: Any) -> Any:
        """x multiplied by v at the index."""
        return self._combine(RECORDING.multiply, self._value(v, "multiply", exact=True))

    mul = multiply

    def min(self, v: Any) -> Any:
        """x with the smaller of x and v at the index; ties as in `minimum`."""
        return self._combine(RECORDING.minimum, self._value(v, "min", exact=True))

    def max(self, v: Any) -> Any:
        """x with the larger of x and v at the index; ties as in `maximum`."""
        return self._combine(RECORDING.maximum, self._value(v, "max", exact=True))

    def _put(self, v: Tensor) -> Any:
        return _put_op(self._x, v, *self._arrays, index=self._index, distinct=self._distinct or not self._arrays)

    def _value(self, v: Any, op: str, exact: bool = False) -> Tensor:
        """v in x's dtype and with no more axes than the selection. exact: integers take no fractions."""
        x = self._x
        v = operand(v, op, x)
        if exact and x.dtype.kind in "iub" and v.dtype.kind in "fcV":
            raise fail(DTypeError, op, f"{describe(v)} would be truncated by {describe(x)}")
        if v.node is not None and not is_float(x.dtype) and x.dtype.kind != "c":
            raise fail(DTypeError, op, f"a differentiable {describe(v)} would be truncated to {x.dtype}")
        if v.ndim > 1:
            n = len(self._shape())
            if v.ndim > n and all(k == 1 for k in v.shape[: v.ndim - n]):
                v = reshape(v, v.shape[v.ndim - n :])
        if v.device != x.device and v.ndim == 0 and v.node is None:  # a number joins any device
            v = Tensor(backends.of(x.data).asarray(v.data, device=x.device))
        return astype(v, x.dtype)  # type: ignore[no-any-return]

    def _shape(self) -> tuple[int, ...]:
        """The selection's shape, found on stand-ins without memory of their own. Raises RangeError on the CPU."""
        backend, at = backends.of(self._x.data), [a.data for a in self._arrays]
        with backend.scope(self._x.device):
            stand_in = backend.xp.broadcast_to(backend.xp.zeros((), bool), self._x.shape)
            like = [innermost(a) if not hidden(a) else backend.xp.zeros(a.shape, "int64") for a in at]
        try:
            if any(map(hidden, at)) and backend.name == "cpu":
                inside("put", self._x.shape, self._index, [innermost(a) for a in at])
            return stand_in[fill(self._index, like)].shape  # type: ignore[no-any-return]
        except IndexError as error:
            inside("put", self._x.shape, self._index, like)
            raise explain_failure("put", error, (self._x.data, *at), {}) from None

    def _combine(self, f: Callable[[Any, Any], Any], v: Tensor) -> Any:
        """x with f(x, v) at the index. Elements named k times are updated in k rounds, none of which repeats one."""
        if not self._arrays or self._distinct:
            return self._put(f(self.get(), v))
        x, values = self._x, flatten(broadcast_to(v, self._shape()))
        places, flat = flatten(_positions_op(*self._arrays, index=self._index, shape=x.shape)), flatten(x)
        for now in rounds(places):
            turn = Tensor(backends.of(places.data).asarray(now, device=x.device))
            at, new = (_gather_op(t, turn, index=(ARRAY,), distinct=True) for t in (places, values))
            old = _gather_op(flat, at, index=(ARRAY,), distinct=True)
            flat = _put_op(flat, f(old, new), at, index=(ARRAY,), distinct=True)
        return reshape(flat, x.shape)


def rounds(places: Tensor) -> Iterator[Any]:
    """Positions in a list of places, in groups of which none names a place twice; waits for a GPU."""
    try:
        ids = backends.of(places.data).to_numpy(places.data)
    except GraphError:  # the examples of a vmap differ: one after the other is right for all
        yield from np.arange(places.size)[:, None]
        return
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
    turn = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    for k in range(turn.max(initial=-1) + 1):
        yield order[turn == k]


# --- sorting and searching --------------------------------------------------------------------------------


def _argsort_fwd(xp: Any, x: Any, axis: int, descending: bool, stable: bool) -> Any:
    kind = "stable" if stable else None
    if not descending:
        return xp.argsort(x, axis=axis, kind=kind)
    return (
        x.shape[axis] - 1 - xp.flip(xp.argsort(xp.flip(x, axis), axis=axis, kind=kind), axis)
    )  # equal ones keep order


def _one_hot_fwd(xp: Any, x: Any, n: int, dtype: Any) -> Any:
    return (x[..., None] == xp.arange(n)).astype(dtype)


def _one_hot_cpu(xp: Any, x: Any, n: int, dtype: Any) -> Any:
    bad = xp.argwhere((x < 0) | (x >= n))
    if len(bad):
        at = tuple(bad[0].tolist())
        raise fail(RangeError, "one_hot", f"class {x[at]} at position {list(at)} is outside 0 <= class < {n}")
    return _one_hot_fwd(xp, x, n, dtype)


_argsort = nondiff("argsort", _argsort_fwd, attrs=True)
_searchsorted = nondiff("searchsorted", lambda xp, a, v, side: xp.searchsorted(a, v, side=side), 2, attrs=True)
_one_hot = nondiff("one_hot", _one_hot_fwd, attrs=True, cpu=_one_hot_cpu)


def argsort(x: Any, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Any:
    """The int64 positions that sort an axis; NaN counts as largest. stable: equal elements keep their order."""
    x = operand(x, "argsort")
    return _argsort(x, axis=one_axis(axis, x.ndim, "argsort"), descending=descending, stable=stable)


def sort(x: Any, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Any:
    """An axis in order; the gradient goes back to where each element came from, so ties go by position."""
    x = operand(x, "sort")
    return take_along_axis(x, argsort(x, axis, descending=descending, stable=stable), axis, distinct=True)


def topk(x: Any, k: int, axis: int = -1, *, largest: bool = True) -> tuple[Any, Any]:
    """The k largest (or smallest) elements of an axis in order, and their int64 positions; ties go to the first.

    Raises RangeError unless 0 <= k <= the length of the axis.
    """
    x = operand(x, "topk")
    axis = one_axis(axis, x.ndim, "topk")
    if not 0 <= whole(k, "topk", "k") <= x.shape[axis]:
        raise fail(RangeError, "topk", f"k is {k}; axis {axis} of {describe(x)} has {x.shape[axis]} elements")
    order = _getitem(argsort(x, axis, descending=largest), index=(*(FULL,) * axis, slice(0, k)))
    return take_along_axis(x, order, axis, distinct=True), order


def searchsorted(x: Any, values: Any, side: str = "left", *, sorter: Any = None) -> Any:
    """Int64 positions at which `values` would keep the sorted 1-d x in order; 'right' is after equal elements.

    sorter: positions that sort x, where it is not sorted itself.
    """
    x = operand(x, "searchsorted")
    if x.ndim != 1 or side not in ("left", "right"):
        raise fail(ShapeError, "searchsorted", f"{describe(x)}, side={side!r}; expected a 1-d array, 'left' or 'right'")
    x = x if sorter is None else take(x, sorter)
    return _searchsorted(x, operand(values, "searchsorted", x), side=side)


def one_hot(x: Any, num_classes: int, dtype: Any = None) -> Any:
    """Class numbers of any shape to rows of 0 with a 1 at the class, in the default float type or `dtype`.

    Raises DTypeError for non-integers and RangeError for a class outside 0 <= class < num_classes (GPU: a zero row).
    """
    x = operand(x, "one_hot")
    if x.dtype.kind not in "iu":
        raise fail(DTypeError, "one_hot", f"classes are integers, not {describe(x)}")
    return _one_hot(x, n=whole(num_classes, "one_hot", "num_classes"), dtype=np.dtype(dtype or get_default_dtype()))
