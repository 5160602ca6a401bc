"""Ops that rearrange, cast, copy or repeat without arithmetic."""

from __future__ import annotations

from typing import Any

from gpugrad.define import linear, nondiff
from gpugrad.tensor import Tensor

__all__ = ["alias", "ones_like", "zeros_like"]

alias = linear(
    "alias", lambda xp, x: x, lambda F, t, _out, _x: t,
    doc="The same values as a new variable of the graph. Any shape and dtype; shares memory.",
)  # fmt: skip
_astype = linear("astype", lambda xp, x, dtype: x.astype(dtype), lambda F, t, _out, _x, dtype: t)
_reshape = linear(
    "reshape", lambda xp, x, shape: xp.reshape(x, shape), lambda F, t, _out, x_shape, shape: F.reshape(t, shape=x_shape)
)
_broadcast_to = linear(
    "broadcast_to", lambda xp, x, shape: xp.broadcast_to(x, shape), lambda F, t, _out, _x, shape: t
)  # the walk itself sums back to the input's shape
zeros_like = nondiff("zeros_like", "zeros_like", doc="Zeros of the shape, dtype and device of x.")
ones_like = nondiff("ones_like", "ones_like", doc="Ones of the shape, dtype and device of x.")
