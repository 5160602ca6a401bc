"""Launches of kernels/index.cu and index_gather.cu, and what they need to know of an index.

CuPy wraps indices that are out of range. So every integer array of an index passes by a kernel that reports them.
"""

from __future__ import annotations

import math
from typing import Any

from gpugrad.errors import RangeError
from gpugrad.kernel import kernel

ARRAY = "array"  # stands for an index array in the template of an index
FULL = slice(None)
COPIES = {1: "unsigned char", 2: "__half", 4: "float", 8: "double"}  # types that stand for all of their size
PIECE = 64  # least number of rows that one thread adds up
OUT_OF_RANGE = "index {{value}} at position {{at}} is out of range for axis {axis} of length {n}"

Index = tuple[Any, ...]


def block(index: Index, arrays: Any) -> tuple[int, int]:
    """(first axis, number of axes) if integer arrays index neighbouring axes and all others are whole; else (0, 0)."""
    first = next((i for i, entry in enumerate(index) if isinstance(entry, str)), 0)
    after = first + len(arrays)
    alone = all(e == FULL for e in index[:first]) and all(e is Ellipsis or e == FULL for e in index[after:])
    if alone and all(isinstance(e, str) for e in index[first:after]) and all(a.dtype.kind != "b" for a in arrays):
        return first, len(arrays)
    return 0, 0


def array_axes(index: Index, arrays: Any, ndim: int) -> list[int]:
    """The first axis that each index array stands for."""
    rest, axis, found = iter(arrays), 0, []
    widths = [a.ndim if a.dtype.kind == "b" else 1 for a in arrays]
    named = sum(widths) + sum(1 for e in index if e is not None and e is not Ellipsis and not isinstance(e, str))
    for entry in index:
        if isinstance(entry, str):
            found.append(axis)
            a = next(rest)
            axis += a.ndim if a.dtype.kind == "b" else 1
        elif entry is Ellipsis:
            axis += ndim - named
        elif entry is not None:
            axis += 1
    return found


def _numbers(ids: Any) -> Any:
    """Row numbers of a type that the kernels read."""
    return ids if ids.dtype.name in ("int32", "int64") else ids.astype("int64")


def _placed(launch: Any, op: str, ids: Any, axis: int, n: int, weight: int) -> Any:
    """What an index array adds to flat positions; its offenders go to the mailbox."""
    ids, out = _numbers(ids), launch.xp.empty(ids.shape, "int64")
    site = launch.site(RangeError, op, OUT_OF_RANGE.format(axis=axis, n=n), ids.shape)
    launch.map("place", (ids.dtype,), (out, ids, ids.size, n, weight, launch.mailbox, site), ids.size)
    return out


def _flat(launch: Any, op: str, arrays: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """Flat positions in neighbouring axes, from `axis` on, of these lengths; negative for offenders."""
    flat = None
    for k, (a, n) in enumerate(zip(arrays, shape)):
        place = _placed(launch, op, a, axis + k, n, math.prod(shape[k + 1 :]))
        flat = place if flat is None else flat + place
    return flat


def _watch(launch: Any, op: str, x: Any, arrays: Any, index: Index) -> Any:
    """Report offenders and leave the rest to the op's forward, which reads or writes somewhere else for them."""
    for a, axis in zip(arrays, array_axes(index, arrays, x.ndim)):
        if a.dtype.kind in "iu":
            _placed(launch, op, a, axis, x.shape[axis], 1)
    return NotImplemented


def _slices(launch: Any, x: Any, ids: Any, axis: int, count: int, wrap: bool, box: Any, site: int) -> Any:
    """The slices of x at row numbers of the axes from `axis` on, `count` of them taken as one."""
    before, named, after = x.shape[:axis], x.shape[axis : axis + count], x.shape[axis + count :]
    ids, out = _numbers(ids), launch.xp.empty((*before, *ids.shape, *after), x.dtype)
    outer, rows, width = math.prod(before), math.prod(named), math.prod(after)
    args = (out, x, ids, outer, ids.size, rows, width, wrap, box, site)
    packets = outer * ids.size * -(-width * x.itemsize // 16)
    launch.map("gather", (COPIES[x.itemsize], ids.dtype), args, packets)
    return out


def _gather(launch: Any, x: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    axis, count = block(index, arrays)
    if not count or x.itemsize not in COPIES or not x.flags.c_contiguous:
        return _watch(launch, "gather", x, arrays, index)
    if count == 1:
        message = OUT_OF_RANGE.format(axis=axis, n=x.shape[axis])
        site = launch.site(RangeError, "gather", message, arrays[0].shape)
        return _slices(launch, x, arrays[0], axis, 1, True, launch.mailbox, site)
    flat = _flat(launch, "gather", arrays, axis, x.shape[axis : axis + count])
    return _slices(launch, x, flat, axis, count, False, None, 0)


def _embedding(launch: Any, weight: Any, ids: Any, padding: int | None) -> Any:
    if weight.itemsize not in COPIES or not weight.flags.c_contiguous:
        return NotImplemented
    expected = f"id is {{value}} at {{at}}, expected a row from 0 to {weight.shape[0] - 1}"
    site = launch.site(RangeError, "embedding", expected, ids.shape)
    return _slices(launch, weight, ids, 0, 1, False, launch.mailbox, site)


def _put(launch: Any, x: Any, v: Any, *arrays: Any, index: Index, distinct: bool) -> Any:
    return _watch(launch, "put", x, arrays, index)


def _positions(launch: Any, *arrays: Any, index: Index, shape: tuple[int, ...]) -> Any:
    if not len(index) == len(arrays) == len(shape) or any(a.dtype.kind == "b" for a in arrays):
        return NotImplemented
    return _flat(launch, "positions", arrays, 0, shape)


def piece(n: int) -> int:
    """Rows that one thread adds up of a long run of equal numbers: about as many as there are pieces of n rows."""
    return max(PIECE, 1 << n.bit_length() // 2)


def _scatter_rows(launch: Any, t: Any, ids: Any, rows: int, distinct: bool) -> Any:
    if not launch.takes(t):
        return NotImplemented
    xp, rest, ids = launch.xp, t.shape[ids.ndim :], ids.reshape(-1).astype("int64", copy=False)
    n, width, order, starts, parts = ids.size, math.prod(rest), None, None, None
    cut = piece(n)
    if not distinct:
        order = xp.argsort(ids, kind="stable")
        ids = ids[order]
        if n > cut:
            starts = xp.searchsorted(ids, ids)
            parts = xp.empty((2 * ((n - 1) // cut + 1), width), "float64" if t.itemsize == 8 else "float32")
    out, types = xp.zeros((rows, *rest), t.dtype), (t.dtype,)
    args = (out, parts, t, ids, order, starts, n, rows, width, cut)
    launch.map("scatter_rows", types, args, n * -(-width * t.itemsize // 16))
    if parts is not None:
        launch.map("scatter_long", types, (out, parts, ids, starts, n, rows, width, cut), (n - 1) // cut * width)
    return out


gather = kernel("index_gather", "gather", _gather)
embedding = kernel("index_gather", "gather", _embedding)
put = kernel("index_gather", "gather", _put)
positions = kernel("index_gather", "gather", _positions)
scatter_rows = kernel("index", "scatter_rows", _scatter_rows)
