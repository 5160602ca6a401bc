"""Launches of kernels/softmax.cu."""

from __future__ import annotations

import functools
import math
from typing import Any

from gpugrad.kernel import Kernel, kernel
from gpugrad.launch.reduce import extents

PIECE = 1 << 14  # elements of a row that one team takes where nothing is summed


def team_shape(rows: int, cols: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(grid, block): two packets a thread, so that rows stay in registers: a warp a row, or a block (MOST<T>)."""
    threads = 1 << ((cols * itemsize - 1) // 32).bit_length()
    return ((-(-rows // 8),), (32, 8)) if threads <= 32 else ((rows,), (min(threads, 1024 if itemsize < 8 else 512),))


def _along(launch: Any, name: str, suffix: str, arrays: tuple[Any, ...], axis: int, log: bool) -> Any:
    """A result of the arrays' shape from the row kernel, or from the strided one where the axis is not the last."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if not launch.takes(*arrays) or any(a.shape != shape for a in arrays) or arrays[0].size == 0:
        return NotImplemented
    out, cols, inner = launch.xp.empty(shape, dtype), shape[axis], math.prod(shape[axis + 1 :])
    rows = out.size // (cols * inner)
    if inner == 1:
        launch.tiles(name + suffix, (dtype,), (out, *arrays, rows, cols, log), *team_shape(rows, cols, dtype.itemsize))
    else:
        launch.map(f"{name}_strided{suffix}", (dtype,), (out, *arrays, rows, cols, inner, log), rows * inner)
    return out


def _softmax(launch: Any, x: Any, axis: int, log: bool) -> Any:
    return _along(launch, "softmax", "", (x,), axis, log)


def _softmax_bwd(launch: Any, t: Any, out: Any, axis: int, log: bool) -> Any:
    return _along(launch, "softmax", "_bwd", (t, out), axis, log)


def _logsumexp_bwd(launch: Any, t: Any, out: Any, x: Any, axis: tuple[int, ...]) -> Any:
    found = extents(x.shape, axis)
    if found is None or not launch.takes(t, out, x) or x.size == 0:
        return NotImplemented
    (rows, cols, inner), dx = found, launch.xp.empty(x.shape, x.dtype)
    if inner == 1:
        parts = -(-cols // PIECE)
        args = (dx, t, out, x, rows, cols, parts)
        launch.rows("logsumexp_bwd", (x.dtype,), args, rows * parts, min(cols, PIECE))
    else:
        launch.map("logsumexp_strided_bwd", (x.dtype,), (dx, t, out, x, rows, cols, inner), rows * inner)
    return dx


def _pair(name: str, call: Any) -> tuple[Kernel, Kernel]:
    """The kernel for softmax and that for log-softmax."""
    plain, log = (kernel("softmax", name, functools.partial(call, log=log)) for log in (False, True))
    return plain, log


softmax, log_softmax = _pair("softmax", _softmax)
softmax_bwd, log_softmax_bwd = _pair("softmax_bwd", _softmax_bwd)
logsumexp_bwd = kernel("softmax", "logsumexp_bwd", _logsumexp_bwd)
