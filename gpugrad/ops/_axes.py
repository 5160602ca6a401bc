"""Axis arguments as users write them, to the canonical form the table works with."""

from __future__ import annotations

import operator
from typing import Any

from gpugrad.errors import DTypeError, RangeError, ShapeError, describe, fail


def shape_of(x: Any) -> tuple[int, ...]:
    """Lengths of the axes of an array, none of a number: what `np.shape` says, without asking through its protocol."""
    return getattr(x, "shape", ())


def rank(x: Any) -> int:
    """Number of axes of an array, 0 of a number."""
    return getattr(x, "ndim", 0)


def whole(value: Any, op: str, name: str) -> int:
    """An argument that counts something, as an int. Raises DTypeError for what is not an integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise fail(DTypeError, op, f"{name} is {value!r}, expected an integer") from None


def one_axis(axis: Any, ndim: int, op: str) -> int:
    """A single axis as 0 <= axis < ndim. Raises RangeError out of range, DTypeError for a non-integer."""
    try:
        i = operator.index(axis)
    except (TypeError, ShapeError):  # a Tensor of several elements
        shown = describe(axis) if hasattr(axis, "shape") else repr(axis)
        raise fail(DTypeError, op, f"axis is {shown}; expected an integer") from None
    if not -ndim <= i < ndim:
        allowed = f"-{ndim} <= axis < {ndim}" if ndim else "no axis at all"
        raise fail(RangeError, op, f"axis {i} is out of range for a {ndim}-d array; expected {allowed}")
    return i % ndim


def normalize_axis(axis: Any, ndim: int, op: str) -> tuple[int, ...]:
    """Axes as a tuple of distinct non-negative integers in the given order; None means all of them.

    axis: None, an integer or a sequence of integers. Raises RangeError out of range, ShapeError for a
    repeated axis, DTypeError for a non-integer.
    """
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(one_axis(a, ndim, op) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(set(axes)) != len(axes):
        raise fail(ShapeError, op, f"axis {axis!r} names an axis of a {ndim}-d array twice")
    return axes


def kept_shape(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a reduction over these axes has with keepdims."""
    return tuple(1 if i in axis else n for i, n in enumerate(shape))
