"""Ops that rearrange, cast, move or repeat elements without arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.define import linear, nondiff
from gpugrad.dtypes import is_float
from gpugrad.errors import DomainError, DTypeError, RangeError, ShapeError, describe, fail
from gpugrad.op import RECORDING
from gpugrad.operands import constant, scalar_array
from gpugrad.ops._axes import normalize_axis, one_axis, whole
from gpugrad.tensor import Tensor

__all__ = [
    "alias", "broadcast_arrays", "broadcast_shapes", "broadcast_to", "concat", "concatenate", "diff",
    "expand_dims", "flatten", "flip", "matrix_transpose", "moveaxis", "pad", "permute", "permute_dims", "ravel",
    "repeat", "reshape", "roll", "split", "squeeze", "stack", "swapaxes", "tile", "transpose", "tril", "triu",
    "unstack",
]  # fmt: skip


def _cuts(F: Any, t: Any, shapes: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """The pieces of t that lie where concat put each input."""
    lead, parts, start = (slice(None),) * axis, [], 0
    for shape in shapes:
        parts.append(F.getitem(t, index=(*lead, slice(start, start + shape[axis]))))
        start += shape[axis]
    return tuple(parts)


def _to_device(xp: Any, x: Any, device: str, source: str, non_blocking: bool = False) -> Any:
    here: Any = backends.of(x)
    there: Any = backends.get(device)
    if non_blocking and here is not there:
        return here.fetch(x) if there.name == "cpu" else there.send(x, device)
    return there.asarray(x if here is there else here.to_numpy(x), device=device)


alias = linear(
    "alias", lambda xp, x: x, lambda F, t, _out, _x: t,
    doc="The same values as a new variable of the graph. Any shape and dtype; shares memory.",
)  # fmt: skip
zeros_like = nondiff("zeros_like", "zeros_like")
ones_like = nondiff("ones_like", "ones_like")
_astype = linear("astype", lambda xp, x, dtype: x.astype(dtype), lambda F, t, _out, _x, dtype: t)
_move = linear(
    "to_device", _to_device,
    lambda F, t, _out, _x, device, source, non_blocking=False: F.to_device(t, device=source, source=device),
)  # fmt: skip
_reshape = linear(
    "reshape", lambda xp, x, shape: x.reshape(shape), lambda F, t, _out, x_shape, shape: F.reshape(t, shape=x_shape),
)  # fmt: skip
_broadcast_to = linear(
    "broadcast_to", lambda xp, x, shape: xp.broadcast_to(x, shape), lambda F, t, _out, _x, shape: t,
)  # the walk sums back  # fmt: skip
_transpose = linear(
    "transpose", lambda xp, x, axes: x.transpose(axes),
    lambda F, t, _out, _x, axes: F.transpose(t, axes=inverse(axes)),
)  # fmt: skip
_matrix_transpose = linear(
    "matrix_transpose", lambda xp, x: x.swapaxes(-1, -2), lambda F, t, _out, _x: F.matrix_transpose(t),
)  # fmt: skip
_flip = linear("flip", lambda xp, x, axis: xp.flip(x, axis), lambda F, t, _out, _x, axis: F.flip(t, axis=axis))
_roll = linear(
    "roll", lambda xp, x, shift, axis: xp.roll(x, shift, axis),
    lambda F, t, _out, _x, shift, axis: F.roll(t, shift=tuple(-s for s in shift), axis=axis),
)  # fmt: skip
_concat = linear(
    "concat", lambda xp, *xs, axis: xp.concatenate(xs, axis),
    joint=lambda F, t, _out, *xs_shape, axis: _cuts(F, t, xs_shape, axis), promotes=True,
)  # fmt: skip
_stack = linear(
    "stack", lambda xp, *xs, axis: xp.stack(xs, axis), promotes=True,
    joint=lambda F, t, _out, *xs_shape, axis: (
        tuple(F.getitem(t, index=(*(slice(None),) * axis, i)) for i in range(len(xs_shape)))
    ),
)  # fmt: skip
_tril = linear("tril", lambda xp, x, k: xp.tril(x, k), lambda F, t, _out, _x, k: F.tril(t, k=k))
_triu = linear("triu", lambda xp, x, k: xp.triu(x, k), lambda F, t, _out, _x, k: F.triu(t, k=k))


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def operand(x: Any, op: str, like: Any = None) -> Tensor:
    """An argument as a Tensor: arrays are wrapped, and numbers in the precision of `like` and on its device.

    DTypeError for the rest.
    """
    if type(x) is Tensor:
        return x
    a = constant(op, x, like)
    if hasattr(a, "dtype"):
        return Tensor(a)
    weak = like is not None and is_float(like.dtype) and type(a) is not complex
    number = Tensor(np.asarray(a, like.dtype) if weak else scalar_array(a))
    return number if like is None else to_device(number, like.device)  # type: ignore[no-any-return]


def sizes(shape: Any, more: tuple[Any, ...], op: str) -> tuple[int, ...]:
    """A shape given as one integer, a sequence, or several integers, as a tuple."""
    try:
        return (operator.index(shape), *map(operator.index, more)) if more else _as_tuple(shape)
    except TypeError:
        given = (shape, *more) if more else shape
        raise fail(DTypeError, op, f"{given!r} is not an integer or a sequence of them") from None


def lengths(shape: Any, op: str) -> tuple[int, ...]:
    """The shape of a new array. Raises ShapeError for a negative length."""
    found = sizes(shape, (), op)
    if min(found, default=0) < 0:
        raise fail(ShapeError, op, f"shape {list(found)} has a negative length")
    return found


def _as_tuple(shape: Any) -> tuple[int, ...]:
    return tuple(map(operator.index, shape)) if isinstance(shape, (tuple, list)) else (operator.index(shape),)


def astype(x: Any, dtype: Any) -> Any:
    """x in another dtype; x itself if it has that dtype. Gradients are cast back; a non-float result is a constant."""
    x = operand(x, "astype")
    try:
        want = np.dtype("None" if dtype is None else dtype)  # NumPy would take None for float64
    except TypeError:
        raise fail(DTypeError, "astype", f"{dtype!r} is not a data type") from None
    if want == x.dtype:
        return x
    return _astype(x if is_float(want) or want.kind == "c" else x.detach(), dtype=want)


def to_device(x: Tensor, device: str, **how: bool) -> Any:
    """x on another device; x itself if it is there. Raises DeviceError for a device that cannot be used."""
    kind, _, number = device.partition(":")
    target = device if number or kind == "cpu" else f"{kind}:0"
    return x if x.device == target else _move(x, device=target, source=x.device, **how)


def reshape(x: Any, shape: Any, *more: int, copy: bool | None = None) -> Any:
    """The elements in another shape, in row-major order; one length may be -1. Also x.reshape(2, 3).

    copy: None gives a view where the memory layout allows one, True a copy, False a view or an error. Raises ShapeError
    if the sizes differ, or for a copy that must not be.
    """
    x = operand(x, "reshape")
    if copy is not None:
        out = reshape(x, shape, *more)
        shared = x.data.size == 0 or backends.of(x.data).xp.may_share_memory(x.data, out.data)
        if not shared and not copy:
            raise fail(ShapeError, "reshape", f"{describe(x)} to {list(out.shape)} cannot be done without a copy")
        return RECORDING.astype(out, dtype=out.dtype) if copy and shared else out
    want = sizes(shape, more, "reshape")
    unknown = want.count(-1)
    known = math.prod(n for n in want if n != -1)
    if unknown == 1 and known and x.size % known == 0:
        want = tuple(x.size // known if n == -1 else n for n in want)
    elif unknown or known != x.size or min(want, default=0) < 0:
        raise fail(ShapeError, "reshape", f"{describe(x)} has {x.size} elements, which do not fill shape {list(want)}")
    return _reshape(x, shape=want)


def flatten(x: Any) -> Any:
    """All elements as one axis."""
    return reshape(x, -1)


ravel = flatten


def transpose(x: Any, axes: Any = None, *more: int) -> Any:
    """Axes in another order, by default reversed; a view. Raises ShapeError if `axes` is not a permutation."""
    x = operand(x, "transpose")
    if axes is None:
        return _transpose(x, axes=tuple(range(x.ndim))[::-1])
    order = normalize_axis((axes, *more) if more else axes, x.ndim, "transpose")
    if len(order) != x.ndim:
        raise fail(
            ShapeError, "transpose", f"axes {list(order)} do not name each of the {x.ndim} axes of {describe(x)}"
        )
    return _transpose(x, axes=order)


permute_dims = permute = transpose


def matrix_transpose(x: Any) -> Any:
    """The last two axes exchanged; a view."""
    if x.ndim < 2:
        raise fail(ShapeError, "matrix_transpose", f"{describe(x)} has {x.ndim} axes, expected at least 2")
    return _matrix_transpose(x)


def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """Axes moved to new places, the others in their old order; a view."""
    x = operand(x, "moveaxis")
    src, dst = (normalize_axis(a, x.ndim, "moveaxis") for a in (source, destination))
    if len(src) != len(dst):
        raise fail(ShapeError, "moveaxis", f"source {list(src)} and destination {list(dst)} differ in length")
    order = [i for i in range(x.ndim) if i not in src]
    for d, s in sorted(zip(dst, src)):
        order.insert(d, s)
    return _transpose(x, axes=tuple(order))


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """Two axes exchanged; a view."""
    x = operand(x, "swapaxes")
    i, j = (one_axis(a, x.ndim, "swapaxes") for a in (axis1, axis2))
    order = list(range(x.ndim))
    order[i], order[j] = j, i
    return _transpose(x, axes=tuple(order))


def expand_dims(x: Any, axis: Any = 0) -> Any:
    """New axes of length 1 at the given places of the result; a view."""
    x = operand(x, "expand_dims")
    ndim = x.ndim + (len(axis) if isinstance(axis, (tuple, list)) else 1)
    new = normalize_axis(axis, ndim, "expand_dims")
    old = iter(x.shape)
    return _reshape(x, shape=tuple(1 if i in new else next(old) for i in range(ndim)))


def squeeze(x: Any, axis: Any = None) -> Any:
    """Without the given axes of length 1 (by default all of them); a view. Raises ShapeError for a longer axis."""
    x = operand(x, "squeeze")
    gone = (
        tuple(i for i, n in enumerate(x.shape) if n == 1) if axis is None else normalize_axis(axis, x.ndim, "squeeze")
    )
    if any(x.shape[i] != 1 for i in gone):
        raise fail(ShapeError, "squeeze", f"{describe(x)}: axis {axis} is not of length 1")
    return _reshape(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in gone))


def broadcast_to(x: Any, shape: Any, *more: int) -> Any:
    """x repeated along new or length-1 axes to the given shape, without a copy; read-only."""
    return _broadcast_to(operand(x, "broadcast_to"), shape=sizes(shape, more, "broadcast_to"))


def broadcast_shapes(*shapes: Any) -> tuple[int, ...]:
    """The common shape that the given ones broadcast to. Raises ShapeError if there is none."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = ", ".join(str(list(_as_tuple(s))) for s in shapes)
        raise fail(ShapeError, "broadcast_shapes", f"shapes {listed} do not broadcast together") from None


def broadcast_arrays(*xs: Any) -> list[Any]:
    """All arguments broadcast to their common shape."""
    shape = broadcast_shapes(*(np.shape(x) for x in xs))
    return [broadcast_to(x, shape) for x in xs]


def concat(xs: Sequence[Any], axis: int | None = 0) -> Any:
    """Arrays joined along an existing axis (None: flattened first), in their common dtype.

    Raises ShapeError for an empty list or lengths that differ elsewhere.
    """
    given = [operand(x, "concat") for x in xs]
    if not given:
        raise fail(ShapeError, "concat", "there is nothing to join")
    if axis is None:
        given, axis = [flatten(x) for x in given], 0
    return _concat(*given, axis=one_axis(axis, given[0].ndim, "concat"))


concatenate = concat


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of one shape joined along a new axis, in their common dtype."""
    given = [operand(x, "stack") for x in xs]
    if not given:
        raise fail(ShapeError, "stack", "there is nothing to join")
    return _stack(*given, axis=one_axis(axis, given[0].ndim + 1, "stack"))


def split(x: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    """Views of consecutive pieces along an axis: a number of equal ones, or cut at the given positions.

    Raises ShapeError if the axis does not divide into that number.
    """
    x = operand(x, "split")
    axis = one_axis(axis, x.ndim, "split")
    n, lead = x.shape[axis], (slice(None),) * axis
    if isinstance(indices_or_sections, (tuple, list)):
        cuts = [operator.index(i) for i in indices_or_sections]
    else:
        parts = operator.index(indices_or_sections)
        if parts < 1 or n % parts:
            raise fail(ShapeError, "split", f"axis {axis} of {describe(x)} does not divide into {parts} equal parts")
        cuts = list(range(n // parts, n, n // parts)) if n else [0] * (parts - 1)
    return [RECORDING.getitem(x, index=(*lead, slice(a, b))) for a, b in zip([0, *cuts], [*cuts, n])]


def unstack(x: Any, axis: int = 0) -> tuple[Any, ...]:
    """The slices along an axis, without it; views."""
    x = operand(x, "unstack")
    axis = one_axis(axis, x.ndim, "unstack")
    return tuple(RECORDING.getitem(x, index=(*(slice(None),) * axis, i)) for i in range(x.shape[axis]))


def flip(x: Any, axis: Any = None) -> Any:
    """Order reversed along the given axes (by default all)."""
    return _flip(x, axis=normalize_axis(axis, x.ndim, "flip"))


def roll(x: Any, shift: int | tuple[int, ...], axis: Any = None) -> Any:
    """Elements moved along axes, those that fall off coming in again; without axis, along the flattened array."""
    if axis is None:
        return reshape(roll(flatten(x), shift, 0), x.shape)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise fail(ShapeError, "roll", f"shift {shift} and axis {axis} differ in length")
    steps = tuple(whole(s, "roll", "shift") for s in shifts)
    return _roll(x, shift=steps, axis=tuple(one_axis(a, x.ndim, "roll") for a in axes))


def tile(x: Any, reps: Any) -> Any:
    """The array repeated as a whole, `reps[i]` times along axis i (counted from the last)."""
    times = _as_tuple(reps)
    ndim = max(len(times), x.ndim)
    times = (1,) * (ndim - len(times)) + times
    if min(times, default=0) < 0:
        raise fail(ShapeError, "tile", f"reps has a negative entry: {times}")
    shape = (1,) * (ndim - x.ndim) + tuple(x.shape)
    apart = reshape(x, tuple(k for n in shape for k in (1, n)))
    wide = _broadcast_to(apart, shape=tuple(k for pair in zip(times, shape) for k in pair))
    return _reshape(wide, shape=tuple(r * n for r, n in zip(times, shape)))


def repeat(x: Any, repeats: Any, axis: int | None = None) -> Any:
    """Each element repeated in place; without axis, of the flattened array.

    repeats: one count, or an integer sequence with a count for each position of the axis.
    """
    x = operand(x, "repeat")
    if axis is None:
        x, axis = flatten(x), 0
    axis, shape = one_axis(axis, x.ndim, "repeat"), tuple(x.shape)
    counts = np.asarray(repeats.numpy() if isinstance(repeats, Tensor) else repeats)
    counts = counts if counts.size else counts.astype("int64")  # an empty list has no type of its own
    if counts.dtype.kind not in "iu" or (counts < 0).any() or counts.ndim > 1:
        raise fail(DTypeError, "repeat", f"repeats is {repeats!r}; expected a count, or a list of them, not negative")
    if counts.size == 1:
        r = int(counts.reshape(()))
        apart = _reshape(x, shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]))
        wide = _broadcast_to(apart, shape=(*shape[: axis + 1], r, *shape[axis + 1 :]))
        return _reshape(wide, shape=(*shape[:axis], shape[axis] * r, *shape[axis + 1 :]))
    if counts.shape != (shape[axis],):
        raise fail(ShapeError, "repeat", f"{counts.size} counts for axis {axis} of {describe(x)}")
    return chosen(x, np.repeat(np.arange(shape[axis]), counts), axis)


def chosen(x: Tensor, places: Any, axis: int) -> Any:
    """Rows of an axis by host-made positions, which are known to be in range."""
    ids = backends.of(x.data).asarray(places, device=x.device)
    return RECORDING.gather(x, Tensor(ids), index=(*(slice(None),) * axis, "array"), distinct=False)


REPEATING = ("edge", "reflect", "symmetric", "wrap")
SUMMARIES = {"mean": "mean", "maximum": "max", "minimum": "min"}  # table op by mode


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0, *, end_values: float = 0) -> Any:
    """The array with elements added before and after along each axis.

    pad_width: n, (before, after), or one such pair per axis. mode: 'constant' or 'empty' (zeros), or by NumPy's meaning
    'edge', 'reflect', 'symmetric', 'wrap', 'linear_ramp' (to `end_values`), 'mean', 'maximum', 'minimum' (of the axis).
    Raises ShapeError for negative widths or a mode that the axis is too short for.
    """
    x = operand(x, "pad")
    try:
        if np.asarray(pad_width).dtype.kind not in "iu":
            raise fail(DTypeError, "pad", f"pad_width is {pad_width!r}, expected integers")
        widths = [tuple(map(int, w)) for w in np.broadcast_to(np.asarray(pad_width, "int64"), (x.ndim, 2))]
    except ValueError:
        raise fail(
            ShapeError, "pad", f"pad_width {pad_width!r} does not fit the {x.ndim} axes of {describe(x)}"
        ) from None
    if any(w < 0 for pair in widths for w in pair):
        raise fail(ShapeError, "pad", f"pad_width {pad_width!r} has a negative entry")
    if mode == "empty":
        mode, constant_values = "constant", 0
    if mode == "constant":
        inside = tuple(slice(a, a + n) for (a, _), n in zip(widths, x.shape))
        shape = tuple(a + n + b for (a, b), n in zip(widths, x.shape))
        if constant_values == 0:
            return RECORDING.unslice(x, index=inside, shape=shape)
        with backends.of(x.data).scope(x.device):
            frame = Tensor(backends.of(x.data).xp.full(shape, constant_values, x.dtype))
        return RECORDING.put(frame, x, index=inside, distinct=True)
    if mode not in (*REPEATING, "linear_ramp", *SUMMARIES):
        known = ", ".join(("constant", "empty", *REPEATING, "linear_ramp", *SUMMARIES))
        raise fail(RangeError, "pad", f"mode is {mode!r}; expected one of {known}")
    for axis, (n, width) in enumerate(zip(x.shape, widths)):
        if any(width):
            if n == 0:
                raise fail(
                    ShapeError, "pad", f"axis {axis} of {describe(x)} is empty; mode {mode!r} has nothing to repeat"
                )
            if mode in REPEATING:
                x = chosen(x, np.pad(np.arange(n), width, mode=mode), axis)  # type: ignore[call-overload]
            else:
                x = _concat(*_margins(x, axis, width, mode, end_values), axis=axis)
    return x


def _margins(x: Tensor, axis: int, width: tuple[int, ...], mode: str, end: float) -> tuple[Any, Any, Any]:
    """What stands before x along an axis, x, and what stands after it."""
    if mode != "linear_ramp":
        whole = getattr(RECORDING, SUMMARIES[mode])(x, axis=(axis,), keepdims=True)
        before, after = (
            _broadcast_to(whole, shape=tuple(w if i == axis else n for i, n in enumerate(x.shape))) for w in width
        )
        return before, x, after
    lead, sides = (slice(None),) * axis, []
    for edge, w in zip((slice(0, 1), slice(-1, None)), width):
        rise = np.arange(w, dtype="float64")[:: 1 if edge.start == 0 else -1] / max(w, 1)
        weight = backends.of(x.data).asarray(
            rise.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - axis - 1)), device=x.device
        )
        sides.append(end + (RECORDING.getitem(x, index=(*lead, edge)) - end) * Tensor(weight))
    return sides[0], x, sides[1]


def diff(x: Any, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Any:
    """The n-th difference of neighbours along an axis; prepend and append are joined on first."""
    x = operand(x, "diff")
    axis = one_axis(axis, x.ndim, "diff")
    if whole(n, "diff", "n") < 0:
        raise fail(DomainError, "diff", f"n is {n}, expected at least 0")
    ends = [operand(e, "diff", x) if e is not None else None for e in (prepend, append)]
    if any(e is not None for e in ends):
        one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        first, last = (e if e is None or e.ndim else broadcast_to(e, one) for e in ends)
        x = concat([e for e in (first, x, last) if e is not None], axis)
    lead = (slice(None),) * axis
    for _ in range(n):
        x = RECORDING.getitem(x, index=(*lead, slice(1, None))) - RECORDING.getitem(x, index=(*lead, slice(None, -1)))
    return x


def tril(x: Any, k: int = 0) -> Any:
    """The lower triangle of the last two axes, zero above diagonal k."""
    return _tril(x, k=k)


def triu(x: Any, k: int = 0) -> Any:
    """The upper triangle of the last two axes, zero below diagonal k."""
    return _triu(x, k=k)
