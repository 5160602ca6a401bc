"""Reductions."""

from __future__ import annotations

from typing import Any

from gpugrad.define import linear

__all__ = ["sum"]

_sum = linear(
    "sum", lambda xp, x, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims),
    lambda F, t, _out, x_shape, axis, keepdims: F.broadcast_to(t if keepdims else F.reshape(t, shape=tuple(1 if i in axis else n for i, n in enumerate(x_shape))), shape=x_shape),
)


def sum(x: Any, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Any:  # noqa: A001
    """Sum over axes (all by default)."""
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    return _sum(x, axis=tuple(a % x.ndim for a in axes), keepdims=keepdims)
