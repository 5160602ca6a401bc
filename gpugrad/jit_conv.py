"""Convolution, pooling and batch norm compiled for the CPU, for `jit.lookup`: what kernels/host/conv.h is given.

Results lie with the batch last, as those of NumPy do; arguments that lie otherwise are copied first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad.chain import order_of
from gpugrad.launch.conv import Frame, packed
from gpugrad.ops._windows import counts

VECTOR, MOST_TAPS = 64, 256  # bytes of the longest vectors there are; of kernels/host/conv.h

Packed = tuple[bytes, tuple[Any, ...], Any]  # the struct, what it points to, the result


def at(a: Any) -> int:
    """The address of an array; null for None."""
    return 0 if a is None else int(a.ctypes.data)


def last(a: Any) -> Any:
    """(N, C, H, W) as (C, H, W, N)."""
    return a.transpose(1, 2, 3, 0)


def images(a: Any) -> tuple[bytes, Any]:
    """struct Images of an array or None, and the memory for its copy with the batch last."""
    if a is None:
        return bytes(6 * 8), None
    room = None if last(a).flags.c_contiguous else np.empty_like(last(a), order="C")
    return struct.pack("QQ4q", at(a), at(room), *(s // a.itemsize for s in a.strides)), room


def conv(
    out: Any, shape: tuple[int, ...], frame: Frame, x: Any, t: Any, y: Any = None, kernel: Any = None, room: int = 0,
    groups: int = 1,
) -> Packed | None:  # fmt: skip
    """struct Conv. shape: of results with the batch last, or of a kernel; room: elements, zero beforehand."""
    given = [a for a in (x, t, y) if a is not None]
    n, dtype = given[0].shape[0], given[0].dtype
    ins, outs = (1 if a is None else a.shape[1] // groups for a in (x, t))
    if kernel is not None:
        outs, ins = kernel.shape[0] // groups, kernel.shape[1]
    whole = kernel is None and t is not None and y is None  # the result is a kernel, as it is
    result = out
    if out is None:
        result = np.empty(shape, dtype) if whole else np.empty(shape, dtype).transpose(3, 0, 1, 2)
    arrays = [a for a in (*given, kernel, result) if a is not None]
    if any(a.dtype != dtype or any(s % a.itemsize for s in a.strides) for a in arrays):
        return None
    if not (result if whole else last(result)).flags.c_contiguous or not (kernel is None or kernel.flags.c_contiguous):
        return None
    space, sides = np.zeros(room, dtype), [images(a) for a in (x, t, y)]
    words = struct.pack("QQQ", at(result), at(kernel), at(space)) + b"".join(side for side, _ in sides)
    words += struct.pack("4q", n, groups, ins, outs) + packed(frame)
    return words, (*arrays, space, *(copy for _, copy in sides)), result


def pack_conv2d(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(images, kernel) to what the windows give."""
    (x, w), a = args, dict(attrs)
    groups = a.pop("groups")
    count = counts(x.shape[2:], w.shape[2:], **a)
    frame = Frame(x.shape[2:], count, w.shape[2:], **a)
    return conv(out, (w.shape[0], *count, len(x)), frame, x, None, kernel=w, room=w.size, groups=groups)


def pack_conv2d_input(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(slopes of the windows, kernel) to those of the images."""
    (t, w), a = args, dict(attrs)
    groups, shape = a.pop("groups"), a.pop("shape")
    frame = Frame(shape, t.shape[2:], w.shape[2:], **a)
    return conv(out, (w.shape[1] * groups, *shape, len(t)), frame, None, t, kernel=w, room=w.size, groups=groups)


def pack_conv2d_weight(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(slopes of the windows, images) to those of the kernel."""
    (t, x), a = args, dict(attrs)
    groups, kernel = a.pop("groups"), a.pop("kernel")
    frame = Frame(x.shape[2:], t.shape[2:], kernel, **a)
    shape = (t.shape[1], x.shape[1] // groups, *kernel)
    return conv(out, shape, frame, x, t, room=t.shape[3] * len(t), groups=groups)


def pack_max_pool2d(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """Images to the maxima of their windows."""
    (x,), a = args, dict(attrs)
    count = counts(x.shape[2:], **a)
    del a["ceil_mode"]
    return conv(out, (x.shape[1], *count, len(x)), Frame(x.shape[2:], count, **a), x, None)


def pack_max_pool2d_bwd(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(slopes of the windows, images, maxima) to the slopes of the images."""
    t, x, y = args
    return conv(out, (*x.shape[1:], len(x)), Frame(x.shape[2:], y.shape[2:], **attrs), x, t, y)


def channels(x: Any, *like: Any) -> bool:
    """Whether each channel (index of axis 1) of an array is one stretch of memory, and other arrays lie alike."""
    order = order_of(x.shape, x.strides, x.itemsize)
    axes = [i for i in (range(x.ndim) if order == () else order or ()) if x.shape[i] != 1 or i == 1]
    alike = all((a.shape, a.strides, a.dtype) == (x.shape, x.strides, x.dtype) for a in like)
    return alike and (axes[:1] == [1] or (order is not None and x.shape[1] == 1))


def small(dtype: Any, *arrays: Any) -> bool:
    """Whether arrays (None apart) are contiguous and of this dtype."""
    return all(a is None or (a.dtype == dtype and a.flags.c_contiguous) for a in arrays)


def pack_batch_norm(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """((y, mean, variance), (mean, rstd)) of (x, weight, bias)."""
    x, w, b = args
    shape = tuple(n if i == 1 else 1 for i, n in enumerate(x.shape))
    if out is None:
        m, v, again, r = (np.empty(shape, x.dtype) for _ in range(4))
        out = (np.empty_like(x), m, v), (again, r)
    (y, m, v), (again, r) = out
    if not channels(x, y) or not small(x.dtype, w, b, m, v, again, r):
        return None
    words = struct.pack(
        "11Q2qd", at(y), at(m), at(v), at(again), at(r), 0, 0, at(x), at(w), at(b), 0, x.shape[1], x.size // x.shape[1],
        attrs["eps"],
    )  # fmt: skip
    return words, (x, w, b, y, m, v, again, r), out


def pack_batch_norm_bwd(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(dx, dw, db) of (t, x, weight, mean, rstd)."""
    t, x, w, m, r = args
    if out is None:
        out = np.empty_like(x), *(np.empty(0 if w is None else w.shape, x.dtype) for _ in range(2))
    dx, dw, db = out
    if not channels(x, t, dx) or not small(x.dtype, w, m, r, dw, db):
        return None
    words = struct.pack(
        "11Q2qd", at(dx), at(m), 0, 0, at(r), at(dw), at(db), at(x), at(w), 0, at(t), x.shape[1],
        x.size // x.shape[1], attrs["eps"],
    )  # fmt: skip
    return words, (t, x, w, m, r, dx, dw, db), out


Pack = Callable[[tuple[Any, ...], Any, dict[str, Any]], Packed | None]
# op: function of conv.h, its struct, its template's parameters after the number's type, what packs the struct
IMAGES: dict[str, tuple[str, str, tuple[str, ...], Pack]] = {
    "conv2d": ("conv2d", "Conv", ("false",), pack_conv2d),
    "conv2d_input": ("conv2d", "Conv", ("true",), pack_conv2d_input),
    "conv2d_weight": ("conv2d_weight", "Conv", (), pack_conv2d_weight),
    "max_pool2d": ("max_pool2d", "Conv", (), pack_max_pool2d),
    "max_pool2d_bwd": ("max_pool2d_bwd", "Conv", (), pack_max_pool2d_bwd),
    "batch_norm": ("batch_norm", "BatchNorm", (), pack_batch_norm),
    "group_norm_bwd": ("batch_norm_bwd", "BatchNorm", (), pack_batch_norm_bwd),
}


def suits(op: str, args: Sequence[Any], attrs: dict[str, Any]) -> bool:
    """Whether conv.h computes this: a vector of images, a list of taps that is not too long; one norm a channel."""
    if "norm" in op:
        x, w = args[op == "group_norm_bwd"], args[1 + (op == "group_norm_bwd")]
        others = tuple(i for i in range(len(x.shape)) if i != 1)
        spread = (x.shape[1], *[1] * (len(x.shape) - 2))
        plain = len(args) == 3 or (len(args) == 5 and args[4] is not None and attrs["centred"])
        return 0 not in x.shape and tuple(attrs["axis"]) == others and plain and (w is None or w.shape == spread)
    x, kernel = args[0], args[1].shape[2:] if op in ("conv2d", "conv2d_input") else attrs["kernel"]
    taps = kernel[0] * kernel[1]
    return bool(
        x.shape[0] * x.dtype.itemsize >= VECTOR and 0 < taps <= MOST_TAPS and 0 not in args[1 % len(args)].shape
    )
