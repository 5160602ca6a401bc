"""Launches of kernels/normalize.cu, normalize_batch.cu and normalize_batch_bwd.cu."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpugrad.kernel import kernel
from gpugrad.launch.reduce import tile

Axes = tuple[int, ...]
THREADS = 512  # the most that kernels of rows are compiled for
RESIDENT = 1 << 17  # threads that the blocks of layer_norm_bwd have together
WIDEST = 1 << 16  # elements of a cell


def team(cols: int, itemsize: int) -> tuple[int, int]:
    """Threads (x, y) of a block: two packets of a row each, 8 rows of a warp each or one row."""
    x = min(max(32, 1 << (-(-cols * itemsize // 32) - 1).bit_length()), THREADS)
    return x, 8 if x == 32 else 1


def _working(dtype: Any) -> str:
    return "float64" if dtype.itemsize == 8 else "float32"


def _rows(x: Any, axis: Axes, *parameters: Any) -> tuple[int, int] | None:
    """(rows, columns) if the last axes are normalised and each element of them has its own weight."""
    k = len(axis)
    if x.size == 0 or not k or axis != tuple(range(x.ndim - k, x.ndim)):
        return None
    if any(p is not None and p.shape != x.shape[x.ndim - k :] for p in parameters):
        return None
    cols = math.prod(x.shape[x.ndim - k :])
    return x.size // cols, cols


def _statistics(launch: Any, x: Any, axis: Axes) -> Any:
    """Room for one value a row, as the op keeps it."""
    shape = tuple(1 if i in axis else n for i, n in enumerate(x.shape))
    return launch.xp.empty(shape, _working(x.dtype))


def _given(*arrays: Any) -> list[Any]:
    return [a for a in arrays if a is not None]


def _norm_rows(
    launch: Any, x: Any, residual: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool
) -> Any:
    """(y, x + residual or None, (mean or None, rstd)) by rows."""
    found = _rows(x, axis, weight, bias)
    if found is None or not launch.takes(*_given(x, residual, weight, bias)) or (weight is None and bias is not None):
        return NotImplemented
    (rows, cols), xp = found, launch.xp
    y, total = xp.empty(x.shape, x.dtype), None if residual is None else xp.empty(x.shape, x.dtype)
    mean, rstd = _statistics(launch, x, axis) if centred else None, _statistics(launch, x, axis)
    block = team(cols, x.dtype.itemsize)
    args = (y, total, mean, rstd, x, residual, weight, bias, rows, cols, eps, centred)
    launch.tiles("layer_norm", (x.dtype,), args, (-(-rows // block[1]),), block)
    return y, total, (mean, rstd)


def _layer_norm(launch: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool) -> Any:
    done = _norm_rows(launch, x, None, weight, bias, axis, eps, centred)
    return done if done is NotImplemented else (done[0], done[2])


def _add_layer_norm(
    launch: Any, x: Any, residual: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool
) -> Any:
    if x.shape != residual.shape:
        return NotImplemented
    done = _norm_rows(launch, x, residual, weight, bias, axis, eps, centred)
    return done if done is NotImplemented else (done[:2], done[2])


def _layer_norm_bwd(
    launch: Any, t: Any, x: Any, weight: Any, mean: Any, rstd: Any, more: Any = None, *, axis: Axes, eps: float,
    centred: bool,
) -> Any:  # fmt: skip
    if rstd is None or not launch.takes(*_given(t, x, weight, more)) or t.shape != x.shape:
        return NotImplemented
    found, xp = _rows(x, axis, weight), launch.xp
    if found is None:
        return NotImplemented
    rows, cols = found
    block = team(cols, x.dtype.itemsize)
    span = max(8 * block[1], -(-rows // (RESIDENT // (block[0] * block[1]))))
    blocks = -(-rows // span)
    dx, sums = xp.empty(x.shape, x.dtype), None
    dw, db = (xp.empty(0 if weight is None else weight.shape, x.dtype) for _ in range(2))
    if weight is not None:
        sums = xp.empty((blocks, 2, cols), _working(x.dtype))
    launch.tiles(
        "layer_norm_bwd", (x.dtype,), (dx, sums, t, x, weight, mean, rstd, more, rows, cols, span), (blocks,), block
    )
    if weight is not None:
        block = tile(2 * cols)
        launch.tiles("layer_norm_sums", (x.dtype,), (dw, db, sums, blocks, cols), (-(-2 * cols // block[0]),), block)
    return dx, dw, db


# --- batches and groups -----------------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """x as (outer, channels, inner), its cells, and the sets of them that share statistics; see the kernels.

    A set's cells are `members` numbers from set * first on, `step` apart; `size` elements in all.
    """

    outer: int
    channels: int
    inner: int
    sets: int
    per: int
    first: int
    step: int
    members: int
    turned: bool = False  # x has one element a channel in each sample, and is transposed on the way

    @property
    def number(self) -> int:
        """Of cells."""
        return self.outer * self.channels

    @property
    def size(self) -> float:
        """Elements of a set."""
        return float(self.members * self.inner)


def _cells(launch: Any, x: Any, axis: Axes, *parameters: Any) -> Cells | None:
    """How x falls into cells: for one axis kept (batches), or the last axes with parameters by channel (groups)."""
    given, shape = _given(*parameters), x.shape
    kept = [i for i in range(x.ndim) if i not in axis]
    if x.size == 0 or not launch.takes(x, *given):
        return None
    if len(kept) == 1:
        c = kept[0]
        outer, channels, inner = math.prod(shape[:c]), shape[c], math.prod(shape[c + 1 :])
        if any(p.size != channels or p.ndim != x.ndim - c for p in given):
            return None
        if inner == 1:
            return Cells(1, channels, outer, channels, 1, 1, channels, 1, True)
        return Cells(outer, channels, inner, channels, 1, 1, channels, outer)
    grouped = given and kept == list(range(len(kept))) and all(p.shape == given[0].shape for p in given)
    if not grouped or given[0].ndim != x.ndim - len(kept) + 1:
        return None
    groups, per, *rest = given[0].shape
    c = len(kept) - 1
    if (groups, per) != shape[c : c + 2] or any(n != 1 for n in rest) or math.prod(shape[c + 2 :]) < 2:
        return None
    outer, inner = math.prod(shape[:c]), math.prod(shape[c + 2 :])
    return Cells(outer, groups * per, inner, outer * groups, per, per, 1, per)


def _turned(launch: Any, x: Any, cells: Cells) -> Any:
    """x with the elements of each cell side by side."""
    return launch.xp.ascontiguousarray(x.reshape(-1, cells.channels).T) if cells.turned else x


def _returned(launch: Any, y: Any, cells: Cells, shape: tuple[int, ...]) -> Any:
    """Back from `_turned`."""
    return launch.xp.ascontiguousarray(y.T).reshape(shape) if cells.turned else y


def _moments(
    launch: Any, x: Any, cells: Cells, axis: Axes, eps: float, mean_out: Any = None, var_out: Any = None
) -> Any:
    states, v = launch.xp.empty((cells.number, 3), _working(x.dtype)), _turned(launch, x, cells)
    mean, rstd = _statistics(launch, x, axis), _statistics(launch, x, axis)
    args: tuple[Any, ...] = (states, v, cells.number, cells.inner, cells.per, cells.sets, cells.first)
    launch.rows("cell_moments", (x.dtype,), args, cells.number, min(cells.inner, WIDEST))
    sizes = (cells.inner, cells.sets, cells.members, cells.first, cells.step, eps)
    args = (mean, rstd, mean_out, var_out, states, v, *sizes)
    launch.rows("merge_moments", (x.dtype,), args, cells.sets, min(cells.members, WIDEST))
    return mean, rstd


def _normalized(
    launch: Any, x: Any, weight: Any, bias: Any, statistics: tuple[Any, ...], cells: Cells, eps: float
) -> Any:
    v = _turned(launch, x, cells)
    y = launch.xp.empty(v.shape, x.dtype)
    sizes = (cells.number, cells.inner, cells.channels, cells.per, cells.sets, eps)
    args = (y, v, weight, bias, *statistics, *sizes)
    launch.rows("normalize_cells", (x.dtype,), args, cells.number, min(cells.inner, WIDEST))
    return _returned(launch, y, cells, x.shape)


def _group_norm(launch: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float, centred: bool) -> Any:
    cells = _cells(launch, x, axis, weight, bias) if centred else None
    if cells is None:
        return NotImplemented
    mean, rstd = _moments(launch, x, cells, axis, eps)
    return _normalized(launch, x, weight, bias, (mean, rstd, None, None), cells, 0.0), (mean, rstd)


def _group_norm_bwd(
    launch: Any, t: Any, x: Any, weight: Any, mean: Any, rstd: Any, axis: Axes, eps: float, centred: bool
) -> Any:
    if rstd is None or not centred or t.shape != x.shape or not launch.takes(t, x):
        return NotImplemented
    cells = _cells(launch, x, axis, weight)
    if cells is None:
        return NotImplemented
    xp, types, acc, n, inner = launch.xp, (x.dtype,), _working(x.dtype), cells.number, min(cells.inner, WIDEST)
    u, v = _turned(launch, t, cells), _turned(launch, x, cells)
    sums, means, dx = xp.empty((n, 2), acc), xp.empty((cells.sets, 2), acc), xp.empty(v.shape, x.dtype)
    dw, db = (xp.empty(0 if weight is None else weight.shape, x.dtype) for _ in range(2))
    launch.rows("cell_sums", types, (sums, u, v, mean, rstd, n, cells.inner, cells.per, cells.sets), n, inner)

    def merge(out: tuple[Any, ...], weight: Any, sets: int, count: int, first: int, step: int, size: float) -> None:
        args = (*out, sums, weight, sets, count, first, step, cells.channels, size)
        launch.rows("merge_sums", types, args, sets, min(count, WIDEST))

    if weight is not None:
        merge((None, dw, db), None, cells.channels, cells.outer, 1, cells.channels, 1.0)
    merge((means, None, None), weight, cells.sets, cells.members, cells.first, cells.step, cells.size)
    args = (dx, u, v, weight, mean, rstd, means, n, cells.inner, cells.channels, cells.per, cells.sets)
    launch.rows("normalize_cells_bwd", types, args, n, inner)
    return _returned(launch, dx, cells, x.shape), dw, db


def _batch_norm(launch: Any, x: Any, weight: Any, bias: Any, axis: Axes, eps: float) -> Any:
    cells = _cells(launch, x, axis, weight, bias)
    if cells is None:
        return NotImplemented
    shape = tuple(1 if i in axis else n for i, n in enumerate(x.shape))
    mean_out, var_out = (launch.xp.empty(shape, x.dtype) for _ in range(2))
    mean, rstd = _moments(launch, x, cells, axis, eps, mean_out, var_out)
    y = _normalized(launch, x, weight, bias, (mean, rstd, None, None), cells, 0.0)
    return (y, mean_out, var_out), (mean, rstd)


def _batch_norm_eval(launch: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
    axis = tuple(i for i in range(x.ndim) if i != 1)
    cells = _cells(launch, x, axis, *_given(weight, bias, mean, var))
    if cells is None:
        return NotImplemented
    return _normalized(launch, x, weight, bias, (None, None, mean, var), cells, eps)


layer_norm = kernel("normalize", "layer_norm", _layer_norm)
add_layer_norm = kernel("normalize", "layer_norm", _add_layer_norm)
layer_norm_bwd = kernel("normalize", "layer_norm_bwd", _layer_norm_bwd)
group_norm = kernel("normalize_batch", "normalize_cells", _group_norm)
group_norm_bwd = kernel("normalize_batch_bwd", "normalize_cells_bwd", _group_norm_bwd)
batch_norm = kernel("normalize_batch", "normalize_cells", _batch_norm)
batch_norm_eval = kernel("normalize_batch", "normalize_cells", _batch_norm_eval)
