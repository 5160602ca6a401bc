"""Launches of kernels/index.cu."""

from __future__ import annotations

import math
from typing import Any

from gpugrad.kernel import kernel


def _scatter_rows(launch: Any, t: Any, ids: Any, rows: int, distinct: bool) -> Any:
    if not launch.takes(t):
        return NotImplemented
    rest, ids = t.shape[ids.ndim :], ids.reshape(-1).astype("int64", copy=False)
    n, width, order = ids.size, math.prod(rest), None
    if not distinct:
        order = launch.xp.argsort(ids, kind="stable")
        ids = ids[order]
    out = launch.xp.zeros((rows, *rest), t.dtype)
    launch.map("scatter_rows", (t.dtype,), (out, t, ids, order, n, width), n * width)
    return out


scatter_rows = kernel("index", "scatter_rows", _scatter_rows)
