"""Sums on both backends, accurate over every axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.launch.reduce import extents

LEAST, ROWS, WIDTH = 1 << 14, 512, 1024  # elements worth the care, rows added one by one, elements that make a long row


def accumulator(x: Any, dtype: Any = None) -> Any:
    """The dtype to sum x in, where it is not the library's own choice."""
    return dtype or ("float32" if x.dtype.itemsize == 2 and x.dtype.kind in "fV" else None)


def total(xp: Any, x: Any, axis: tuple[int, ...], keepdims: bool, dtype: Any = None) -> Any:
    """Sum in the accumulation dtype. NumPy adds up rows one by one, so that errors grow: `column_sums` does not."""
    wide = accumulator(x, dtype)
    careful = xp is np and x.size > LEAST and len(axis) < x.ndim and x.dtype.kind == "f"
    if careful and np.dtype(wide or x.dtype).kind == "f":
        if x.flags.f_contiguous and not x.flags.c_contiguous:
            return total(np, x.T, tuple([x.ndim - 1 - a for a in axis]), keepdims, dtype).T
        outer, rows, columns = (x.flags.c_contiguous and extents(x.shape, axis)) or (0, 0, 0)
        if columns > 1 and rows > ROWS:
            out = np.empty((outer, columns), wide or x.dtype)
            for slab, sums in zip(x.reshape(outer, rows, columns), out):
                sums[:] = column_sums(slab, out.dtype)
            return out.reshape([1 if i in axis else n for i, n in enumerate(x.shape) if keepdims or i not in axis])
    return x.sum(axis=axis, dtype=wide, keepdims=keepdims)


def dots(xp: Any, x: Any, y: Any = None) -> Any:
    """Sums over the last axis of x y, or of x: on the host by BLAS, which is faster than NumPy on short rows.

    Long rows are cut, so that errors do not grow with their length, and BLAS wakes no threads.
    """
    if xp is not np or x.dtype.char not in "fd" or (y is not None and y.dtype != x.dtype):
        return (x if y is None else x * y).sum(-1)
    n = x.shape[-1]
    y = np.ones(n, x.dtype) if y is None else y
    if n <= ROWS:
        return np.vecdot(x, y)
    whole = n // ROWS * ROWS
    parts = [a[..., :whole].reshape(*a.shape[:-1], -1, ROWS) for a in (x, y)]
    return np.vecdot(*parts).sum(-1) + np.vecdot(x[..., whole:], y[..., whole:])


def column_sums(x: Any, dtype: Any) -> Any:
    """Sums of the columns of a matrix, in blocks of rows and then by halves: the error grows with log(rows).

    Rows that are short are taken several at a time, for the speed of long ones.
    """
    n, m = x.shape
    group = 1 << min(max(WIDTH // m, 1), math.isqrt(n)).bit_length() - 1
    whole = n // group * group
    wide = x[:whole].reshape(-1, group * m)
    blocks = np.empty((-(-len(wide) // ROWS), group * m), dtype)
    for i, block in enumerate(blocks):
        np.add.reduce(wide[i * ROWS : (i + 1) * ROWS], axis=0, dtype=dtype, out=block)
    sums = halved(halved(blocks).reshape(group, m))
    return sums + np.add.reduce(x[whole:], axis=0, dtype=dtype) if whole < n else sums


def halved(x: Any) -> Any:
    """Sum over the first axis, pairwise."""
    while len(x) > 1:
        half = len(x) // 2
        y = x[:half] + x[half : 2 * half]
        if len(x) % 2:
            y[0] += x[-1]
        x = y
    return x[0]
