"""Launches of kernels/loss.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad.errors import RangeError
from gpugrad.kernel import kernel
from gpugrad.launch.reduce import WIDEST


def _operands(logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> Any:
    """(dtypes of the instance, labels, weight, sizes and options) of a softmax cross-entropy."""
    dtype = logits.dtype
    of = dtype if labels.ndim == 2 else labels.dtype if labels.dtype.name in ("int32", "int64") else np.dtype("int64")
    weight = None if weight is None else weight.astype(dtype, copy=False)
    return (dtype, of), labels.astype(of, copy=False), weight, (*logits.shape, ignore_index, smoothing)


def _softmax_xent(launch: Any, logits: Any, labels: Any, weight: Any, **options: Any) -> Any:
    if not launch.takes(logits) or logits.shape[1] == 0:
        return NotImplemented
    n, classes = logits.shape
    types, labels, weight, sizes = _operands(logits, labels, weight, **options)
    expected = f"expected 0 to {classes - 1}, or {options['ignore_index']} to ignore it"
    site = launch.site(RangeError, "softmax_xent", f"label {{value}} in row {{row}}; {expected}")
    loss, lse = launch.xp.empty(n, logits.dtype), launch.xp.empty(n, "float64")
    args = (loss, lse, logits, labels, weight, *sizes, launch.mailbox, site)
    launch.rows("softmax_xent", types, args, n, min(classes, WIDEST))
    return loss, lse


def _softmax_xent_bwd(
    launch: Any, t: Any, logits: Any, labels: Any, weight: Any, lse: Any, reuse: bool = False, **options: Any
) -> Any:
    n, classes = logits.shape
    if lse is None or not launch.takes(logits, t) or t.shape != (n,):
        return NotImplemented
    types, labels, weight, sizes = _operands(logits, labels, weight, **options)
    out = logits if reuse and logits.flags.c_contiguous else launch.xp.empty((n, classes), logits.dtype)
    launch.rows("softmax_xent_bwd", types, (out, t, logits, labels, weight, lse, *sizes), n, min(classes, WIDEST))
    return out


softmax_xent = kernel("loss", "softmax_xent", _softmax_xent)
softmax_xent_bwd = kernel("loss", "softmax_xent_bwd", _softmax_xent_bwd)
