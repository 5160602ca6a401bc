"""Launches of kernels/reduce.cu."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from gpugrad.kernel import kernel

STATE, STORED, WIDE = 0, 1, 2  # enum Form of the kernels
BYTES = {"Sum": (4, 8), "Largest": (4, 8), "First": (16, 16), "Moments": (12, 24), "LogSumExp": (8, 16)}  # of a state
SLICES = 4096  # at most, of one result
WIDEST = 1 << 15  # a row for 512 threads, the most that reduce_rows is compiled for


class Plan(NamedTuple):
    """How x (outer, reduced, inner) is cut: `span` of the reduced elements a slice, threads (x, y) for a tile."""

    slices: int
    span: int
    block: tuple[int, int]
    tiles: int


def extents(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(outer, reduced, inner) of a contiguous array, None where a kept axis lies between two that are reduced."""
    axes = [a for a in range(len(shape)) if a in axis and shape[a] != 1]
    if not axes:
        return math.prod(shape), 1, 1
    first, end = axes[0], axes[-1] + 1
    if any(shape[a] != 1 and a not in axis for a in range(first, end)):
        return None
    return math.prod(shape[:first]), math.prod(shape[first:end]), math.prod(shape[end:])


def tile(width: int) -> tuple[int, int]:
    """A block of 256 threads over so many neighbours, up to 32 of them at a time."""
    x = min(32, 1 << (width - 1).bit_length())
    return x, 256 // x


def plan(reduced: int, inner: int, itemsize: int) -> Plan:
    """From the sizes alone, so that the order of a sum is the same everywhere."""
    lanes = 16 // itemsize
    block = tile(-(-inner // lanes))
    least = 8192 if inner == 1 else 32 * block[1]
    span = max(least, -(-reduced // (SLICES * 8)) * 8)  # a whole number of packets
    return Plan(-(-reduced // span), span, block, -(-inner // (block[0] * lanes)))


def reduce(
    launch: Any, state: str, x: Any, axis: tuple[int, ...], keepdims: bool, dtype: Any = None, divisor: float = 1.0,
    sign: float = 1.0,
) -> Any:  # fmt: skip
    """One of the reductions, or NotImplemented: for no elements, for other dtypes, and where CuPy is better placed.

    That is with strided arrays, which would be copied, and with a few elements a result, which leave a team idle.
    """
    if not launch.takes(x) or not x.flags.c_contiguous or x.size == 0:
        return NotImplemented
    acc = np.dtype("float64" if x.dtype.itemsize == 8 else "float32")
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if dtype not in (x.dtype, acc, np.dtype("int64")):
        return NotImplemented
    found = extents(x.shape, axis)
    if found is None and state in ("Sum", "Largest"):  # the axes behind the last kept one, then the others
        kept = max([a for a in range(max(axis)) if a not in axis and x.shape[a] != 1])
        x = reduce(launch, state, x, tuple([a for a in axis if a > kept]), True, acc, 1.0, sign)
        out = x if x is NotImplemented else reduce(launch, state, x, axis, keepdims, acc, divisor, sign)
        return out if out is NotImplemented else out.astype(dtype, copy=False)
    if found is None or found[1] < 2 or found[1] * found[2] < 16:
        return NotImplemented
    outer, reduced, inner = found
    shape = [1 if i in axis else n for i, n in enumerate(x.shape) if keepdims or i not in axis]
    out, xp, types = launch.xp.empty(tuple(shape), dtype), launch.xp, (x.dtype, state)
    form = (divisor, sign, STORED if dtype == x.dtype else WIDE)
    cut = plan(reduced, inner, x.dtype.itemsize)
    into, first = out, form
    if cut.slices > 1:
        into = xp.empty(outer * cut.slices * inner * BYTES[state][acc.itemsize == 8], "uint8")
        first = (divisor, sign, STATE)
    args = (into, x, outer if inner == 1 else reduced, reduced if inner == 1 else inner, cut.slices, cut.span, *first)
    if inner == 1:
        launch.rows("reduce_rows", types, args, outer * cut.slices, min(reduced, cut.span, WIDEST))
    else:
        launch.tiles("reduce_columns", types, args, (outer * cut.slices * cut.tiles,), cut.block)
    if cut.slices > 1:
        block = tile(inner)
        grid = (outer * -(-inner // block[0]),)
        launch.tiles("reduce_finish", types, (out, into, cut.slices, inner, *form), grid, block)
    return out


def _count(x: Any, axis: tuple[int, ...]) -> int:
    return math.prod([x.shape[i] for i in axis])


def _sum(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool, dtype: Any = None) -> Any:
    return reduce(launch, "Sum", x, axis, keepdims, dtype)


def _mean(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return reduce(launch, "Sum", x, axis, keepdims, divisor=_count(x, axis) or math.nan)


def _extreme(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool, sign: float) -> Any:
    return reduce(launch, "Largest", x, axis, keepdims, sign=sign)


def _place(launch: Any, x: Any, axis: int | None, keepdims: bool, sign: float) -> Any:
    axes = tuple(range(x.ndim)) if axis is None else (axis,)
    return reduce(launch, "First", x, axes, keepdims, "int64", sign=sign)


def _var(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool, correction: float, dtype: Any = None) -> Any:
    n = _count(x, axis)
    return reduce(launch, "Moments", x, axis, keepdims, dtype, divisor=n - correction if n > correction else math.nan)


def _std(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool, correction: float) -> Any:
    wide = "float64" if x.dtype.itemsize == 8 else "float32"
    out = _var(launch, x, axis, keepdims, correction, wide)
    return out if out is NotImplemented else launch.xp.sqrt(out).astype(x.dtype, copy=False)


def _logsumexp(launch: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return reduce(launch, "LogSumExp", x, axis, keepdims)


sum_ = kernel("reduce", "reduce_rows", _sum)
mean = kernel("reduce", "reduce_rows", _mean)
max_ = kernel("reduce", "reduce_rows", functools.partial(_extreme, sign=1.0))
min_ = kernel("reduce", "reduce_rows", functools.partial(_extreme, sign=-1.0))
argmax = kernel("reduce", "reduce_rows", functools.partial(_place, sign=1.0))
argmin = kernel("reduce", "reduce_rows", functools.partial(_place, sign=-1.0))
var = kernel("reduce", "reduce_rows", _var)
std = kernel("reduce", "reduce_rows", _std)
logsumexp = kernel("reduce", "reduce_rows", _logsumexp)
