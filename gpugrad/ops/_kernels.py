"""How the CUDA kernels of the table are called: what is allocated, and the arguments in order.

Each returns NotImplemented where no kernel fits, and the op's forward, its twin, runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.kernel import kernel


def real(dtype: Any) -> Any:
    """The scalar type of a kernel's floating parameters, which are as wide as its sums."""
    return np.float64 if dtype == np.float64 else np.float32


def _scatter_rows(launch: Any, t: Any, ids: Any, rows: int, distinct: bool) -> Any:
    if not launch.takes(t):
        return NotImplemented
    rest, ids = t.shape[ids.ndim :], ids.reshape(-1).astype("int64", copy=False)
    n, width, order = ids.size, math.prod(rest), None
    if not distinct:
        order = launch.xp.argsort(ids, kind="stable")
        ids = ids[order]
    out = launch.xp.zeros((rows, *rest), t.dtype)
    launch.run((t.dtype,), (out, t, ids, order, np.int64(n), np.int64(width)), n * width)
    return out


def _xent_operands(logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> Any:
    """(dtypes of the instance, labels, weight, sizes and options) of a softmax cross-entropy."""
    dtype = logits.dtype
    of = dtype if labels.ndim == 2 else labels.dtype if labels.dtype.name in ("int32", "int64") else np.dtype("int64")
    weight = None if weight is None else weight.astype(dtype, copy=False)
    sizes = (*map(np.int64, logits.shape), np.int64(ignore_index), real(dtype)(smoothing))
    return (dtype, of), labels.astype(of, copy=False), weight, sizes


def _softmax_xent(launch: Any, logits: Any, labels: Any, weight: Any, **options: Any) -> Any:
    if not launch.takes(logits) or logits.shape[1] == 0:
        return NotImplemented
    n, classes = logits.shape
    types, labels, weight, sizes = _xent_operands(logits, labels, weight, **options)
    loss, lse = launch.xp.empty(n, logits.dtype), launch.xp.empty(n, "float64")
    launch.run(types, (loss, lse, logits, labels, weight, *sizes), n, classes)
    return loss, lse


def _softmax_xent_bwd(launch: Any, t: Any, logits: Any, labels: Any, weight: Any, lse: Any, **options: Any) -> Any:
    n, classes = logits.shape
    if lse is None or not launch.takes(logits, t) or t.shape != (n,):
        return NotImplemented
    types, labels, weight, sizes = _xent_operands(logits, labels, weight, **options)
    out = launch.xp.empty((n, classes), logits.dtype)
    launch.run(types, (out, t, logits, labels, weight, lse, *sizes), n, classes)
    return out


def _dropout(launch: Any, x: Any, counter: Any, key: tuple[int, int], p: float) -> Any:
    if not launch.takes(x):
        return NotImplemented
    out, keys = launch.xp.empty(x.shape, x.dtype), map(np.uint64, key)
    threshold, scale = np.uint64(round((1.0 - p) * 2**32)), x.dtype.type(1.0 / (1.0 - p) if p < 1.0 else 0.0)
    args = (out, x, counter, *keys, threshold, real(x.dtype)(scale), np.int64(x.size))
    launch.run((x.dtype,), args, -(-x.size // 8))
    return out


relu_bwd = kernel("activation", "relu_bwd")
scatter_rows = kernel("index", "scatter_rows", _scatter_rows)
softmax_xent = kernel("loss", "softmax_xent", _softmax_xent)
softmax_xent_bwd = kernel("loss", "softmax_xent_bwd", _softmax_xent_bwd)
dropout = kernel("random", "dropout", _dropout)
