"""Convolution (strictly: cross-correlation, as every library calls it) and pooling over images (N, C, H, W).

The convolution and its two adjoints are linear in each argument and are each other's derivatives, so every order
of derivative is one of the three. All work on columns (the pixels under each kernel position). On the CPU they lie with
the batch last, where a column is copied in long runs; results are views of that layout, so that a stack of layers stays
in it. Columns are made for a few output rows at a time and never exist as a whole. On a GPU see launch/conv.py.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from gpugrad.backends.blas import single
from gpugrad.backends.threads import portion, share
from gpugrad.define import general, linear, multilinear
from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, ShapeError, describe, fail
from gpugrad.launch import conv as launch
from gpugrad.ops._windows import Pair, counts, reach
from gpugrad.ops.reduce import mean
from gpugrad.ops.shape import operand, reshape

__all__ = [
    "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d",
    "max_pool1d", "max_pool2d",
]  # fmt: skip

# Elements of the columns at a time, so that they stay in a CPU cache between being written and read. The adjoint in the
# input adds tap by tap and wants longer runs (5 x 5 kernels, batch 64: 0.8 ms, against 1.4 ms with the smaller chunk).
CHUNK, CHUNK_ADJOINT = 1 << 18, 1 << 20
LOCKED = 500  # elements of a product that NumPy makes without letting other threads run
SMALL_PRODUCT = 10**6  # multiply-adds that OpenBLAS does straight away, without making blocks of the factors first


def tap(i: int, count: int, stride: int, dilation: int) -> slice:
    """The pixels under tap i of a kernel at `count` positions."""
    return slice(i * dilation, i * dilation + (count - 1) * stride + 1, stride)


def summed_in(dtype: Any) -> Any:
    """The type in which elements of this one are added up."""
    return np.dtype("float32") if is_float(dtype) and dtype.itemsize == 2 else dtype


# --- convolution ----------------------------------------------------------------------------------------------


def batch_last(xp: Any, x: Any, padding: Pair = (0, 0)) -> Any:
    """(N, C, H, W) as contiguous (C, H + 2 ph, W + 2 pw, N) with zeros round it, in the type of sums."""
    y, (ph, pw) = x.transpose(1, 2, 3, 0), padding
    dtype = summed_in(x.dtype)
    if not ph and not pw:
        return xp.ascontiguousarray(y, dtype=dtype)
    c, h, w, n = y.shape
    framed = xp.zeros((c, h + 2 * ph, w + 2 * pw, n), dtype)
    framed[:, ph : ph + h, pw : pw + w] = y
    return framed


def blocks(xp: Any, out: Pair, n: int, limit: int) -> Pair:
    """Into how many blocks of whole rows, and cuts of those, output pixels are split so that each has up to `limit`."""
    if xp is not np:
        return 1, 1
    (oh, ow), pixels = out, max(limit, 1)
    parts = -(-oh // max(1, pixels // max(1, ow * n))), -(-ow * n // pixels)
    return tuple(next(i for i in range(max(1, min(k, m)), m + 1) if m % i == 0) for k, m in zip(parts, out))  # type: ignore[return-value]


def in_blocks(y: Any, split: Pair) -> Any:
    """(groups, channels, pixels) as (rows of blocks, cuts, groups, channels, pixels of a block)."""
    (groups, c, pixels), (rows, cuts) = y.shape, split
    return y.reshape(groups, c, rows, cuts, pixels // (rows * cuts)).transpose(2, 3, 0, 1, 4)


def with_columns(
    xp: Any, work: Callable[[slice, Any], object], x: Any, kernel: Pair, out: Pair, stride: Pair, dilation: Pair,
    groups: int, split: Pair,
) -> None:  # fmt: skip
    """work(rows of blocks, their columns (rows, cuts, groups, C/groups kh kw, pixels)) of a batch-last array.

    On the host threads share the rows, and what one of them makes at a time has up to CHUNK elements.
    """
    (c, _, _, n), (sc, sh, sw, sn), (kh, kw), (rows, cuts) = x.shape, x.strides, kernel, split
    down, across, (dh, dw) = out[0] // rows, out[1] // cuts, (sh * stride[0], sw * stride[1])
    view = xp.lib.stride_tricks.as_strided(
        x, (rows, cuts, c, kh, kw, down, across, n),
        (dh * down, dw * across, sc, sh * dilation[0], sw * dilation[1], dh, dw, sn),
    )  # fmt: skip
    shape = cuts, groups, c // groups * kh * kw, down * across * n
    step, spare = max(1, CHUNK // max(1, math.prod(shape))) if xp is np else rows, list[Any]()

    def at(start: int) -> None:
        part = view[start : start + step]
        memory = spare.pop() if spare else None
        if kh * kw > 1:
            memory = xp.empty((step, *view.shape[1:]), x.dtype) if memory is None else memory
            memory[: len(part)] = part
            part = memory[: len(part)]
        work(slice(start, start + step), part.reshape(len(part), *shape))
        spare.append(memory)

    threaded(xp, at, range(0, rows, step), view.size)


def threaded(xp: Any, work: Callable[[int], object], starts: range, size: int) -> None:
    """work(start) for all of them: on the host by several threads, each of which makes its products alone."""
    with single if xp is np else nullcontext():
        share(work, starts, size if xp is np else 0)


def at_once(row: int, taps: int, outs: int, groups: int, least: int) -> int:
    """How many pixels to make columns of, with `taps` elements each.

    As many as stay in the cache, but a row; or fewer, down to `least`, if that makes a small product.
    """
    many, few = max(row, CHUNK // 2 // max(taps, 1)), SMALL_PRODUCT * groups * groups // max(taps * outs, 1)
    return min(few, many) if few >= least else many


def row_chunks(xp: Any, per_row: int, rows: int, limit: int) -> Iterator[slice]:
    """Output rows whose columns have at most `limit` elements (but one row at least); all of them on a GPU."""
    step = max(1, limit // max(per_row, 1)) if xp is np else rows
    return (slice(a, min(a + step, rows)) for a in range(0, rows, step))


def matrices(xp: Any, w: Any, groups: int, dtype: Any) -> Any:
    """A kernel (O, C/groups, kh, kw) as (groups, O/groups, C/groups kh kw)."""
    return xp.ascontiguousarray(w, dtype=dtype).reshape(groups, w.shape[0] // groups, -1)


def _conv2d(xp: Any, x: Any, w: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Any:
    n, o = x.shape[0], w.shape[0]
    oh, ow = counts(x.shape[2:], w.shape[2:], stride, padding, dilation)
    framed = batch_last(xp, x, padding)
    kernels = matrices(xp, w, groups, framed.dtype)
    out = xp.empty((groups, o // groups, oh * ow * n), framed.dtype)
    limit = at_once(ow * n, x.shape[1] * math.prod(w.shape[2:]), o, groups, 128)
    split = blocks(xp, (oh, ow), n, limit)
    places = in_blocks(out, split)

    def work(rows: slice, cols: Any) -> None:
        xp.matmul(kernels, cols, out=places[rows])

    with_columns(xp, work, framed, w.shape[2:], (oh, ow), stride, dilation, groups, split)
    return out.reshape(o, oh, ow, n).transpose(3, 0, 1, 2).astype(x.dtype, copy=False)


def _conv2d_weight(
    xp: Any, t: Any, x: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int, kernel: Pair
) -> Any:
    n, o, oh, ow = t.shape
    framed, last = batch_last(xp, x, padding), batch_last(xp, t).reshape(groups, o // groups, oh * ow * n)
    taps = x.shape[1] * math.prod(kernel)
    limit = at_once(ow * n, taps, o, groups, 1024)
    split = blocks(xp, (oh, ow), n, limit if taps * o > LOCKED * groups else limit // 4)  # more of them at a time
    parts, slopes = dict[int, Any](), in_blocks(last, split)

    def work(rows: slice, cols: Any) -> None:
        mine = slopes[rows]
        if cols.shape[3] > mine.shape[3]:  # the longer one first: up to twice as fast on OpenBLAS, the bits the same
            parts[rows.start] = xp.matmul(cols, mine.swapaxes(3, 4)).sum((0, 1)).swapaxes(1, 2)
        else:
            parts[rows.start] = xp.matmul(mine, cols.swapaxes(3, 4)).sum((0, 1))

    with_columns(xp, work, framed, kernel, (oh, ow), stride, dilation, groups, split)
    total = sum(parts[start] for start in sorted(parts))
    return xp.ascontiguousarray(total.reshape(o, x.shape[1] // groups, *kernel), dtype=t.dtype)


def _conv2d_input(
    xp: Any, t: Any, w: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int, shape: Pair
) -> Any:
    (n, o, oh, ow), (kh, kw), (h, width), (ph, pw) = t.shape, w.shape[2:], shape, padding
    c, around = w.shape[1] * groups, tuple([d * (k - 1) - p for k, p, d in zip((kh, kw), padding, dilation)])
    whole = (h - oh, width - ow) == tuple([a - p for a, p in zip(around, padding)])  # nothing beyond the last tap
    if xp is np and stride == (1, 1) and whole and min(around) >= 0 and o * h * width < 2 * c * oh * ow:
        # a convolution with the kernel turned round: up to twice the columns are made as fast as others are added up
        turned = w.reshape(groups, o // groups, *w.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
        return _conv2d(xp, t, turned.reshape(c, o // groups, kh, kw), stride, around, dilation, groups)  # type: ignore[arg-type]
    last = batch_last(xp, t).reshape(groups, o // groups, -1)
    kernels = matrices(xp, w, groups, last.dtype).swapaxes(1, 2)
    framed = xp.zeros((groups, c // groups, h + 2 * ph, width + 2 * pw, n), last.dtype)
    each = groups * kh * kw * oh * ow * n
    step = max(1, portion(c // groups * each, CHUNK_ADJOINT) // max(1, each)) if xp is np else c // groups

    def work(start: int) -> None:
        mine, taps = framed[:, start : start + step], kernels[:, start * kh * kw : (start + step) * kh * kw]
        for rows in row_chunks(xp, math.prod(mine.shape[:2]) * kh * kw * ow * n, oh, CHUNK_ADJOINT):
            cols = xp.matmul(taps, last[:, :, rows.start * ow * n : rows.stop * ow * n])
            cols = cols.reshape(*mine.shape[:2], kh, kw, rows.stop - rows.start, ow, n)
            below = mine[:, :, rows.start * stride[0] :]
            for i in range(kh):
                for j in range(kw):
                    at = (tap(i, cols.shape[4], stride[0], dilation[0]), tap(j, ow, stride[1], dilation[1]))
                    below[:, :, at[0], at[1]] += cols[:, :, i, j]

    threaded(xp, work, range(0, c // groups, step), c // groups * each)
    framed = framed.reshape(c, *framed.shape[2:])
    inner = xp.ascontiguousarray(framed[:, ph : ph + h, pw : pw + width], dtype=t.dtype)
    return inner.transpose(3, 0, 1, 2)


def cropped(F: Any, x: Any, shape: Any) -> Any:
    """x, or the corner of it that has this shape: with a dilation a larger image may have room for more windows."""
    return x if tuple(x.shape) == tuple(shape) else F.getitem(x, index=tuple([slice(n) for n in shape]))


_conv = multilinear(
    "conv2d", _conv2d,
    lambda F, t, _out, x_shape, w, **a: F.conv2d_input(t, w, shape=tuple(x_shape[2:]), **a),
    lambda F, t, _out, x, w_shape, **a: F.conv2d_weight(t, x, kernel=tuple(w_shape[2:]), **a), cuda=launch.conv2d,
)  # fmt: skip
_conv_input = multilinear(
    "conv2d_input", _conv2d_input,
    lambda F, u, _out, t_shape, w, *, shape, **a: cropped(F, F.conv2d(u, w, **a), t_shape),
    lambda F, u, _out, t, w_shape, *, shape, **a: F.conv2d_weight(t, u, kernel=tuple(w_shape[2:]), **a),
    cuda=launch.conv2d_input,
)  # fmt: skip
_conv_weight = multilinear(
    "conv2d_weight", _conv2d_weight,
    lambda F, u, _out, t_shape, x, *, kernel, **a: cropped(F, F.conv2d(x, u, **a), t_shape),
    lambda F, u, _out, t, x_shape, *, kernel, **a: F.conv2d_input(t, u, shape=tuple(x_shape[2:]), **a),
    cuda=launch.conv2d_weight,
)  # fmt: skip


def pair(value: Any, op: str, name: str, least: int) -> Pair:
    """A hyper-parameter of both axes, given as one integer or two. Raises ShapeError below `least`."""
    try:
        both = tuple(map(operator.index, value)) if isinstance(value, (tuple, list)) else (operator.index(value),) * 2
    except TypeError:
        raise fail(DTypeError, op, f"{name} is {value!r}; expected an integer or a pair of them") from None
    if len(both) != 2 or min(both) < least:
        raise fail(ShapeError, op, f"{name} is {value!r}; expected one or two integers of at least {least}")
    return both  # type: ignore[return-value]


def images(x: Any, op: str) -> Any:
    """The argument as a tensor (N, C, H, W)."""
    x = operand(x, op)
    if x.ndim != 4:
        raise fail(ShapeError, op, f"{describe(x)} has {x.ndim} axes, expected (N, C, H, W)")
    return x


def geometry(op: str, stride: Any, padding: Any, dilation: Any, groups: Any) -> dict[str, Any]:
    """The attributes that the three convolutions share, checked."""
    if not isinstance(groups, int) or groups < 1:
        raise fail(ShapeError, op, f"groups is {groups!r}; expected a positive integer")
    pairs = {"stride": pair(stride, op, "stride", 1), "padding": pair(padding, op, "padding", 0)}
    return {**pairs, "dilation": pair(dilation, op, "dilation", 1), "groups": groups}


def conv2d(x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Any:
    """Slide kernels over images: out[n, o, y, x] is the sum of a kernel times the pixels under it.

    x: (N, C, H, W); w: (O, C/groups, kh, kw); result (N, O, oh, ow) with
    oh = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1. Each hyper-parameter is an integer or a (vertical,
    horizontal) pair; padding is with zeros. 16-bit types are summed in float32. Raises ShapeError naming both shapes
    if channels and groups do not fit or the kernel is larger than the padded image.
    """
    x, a = images(x, "conv2d"), geometry("conv2d", stride, padding, dilation, groups)
    w = operand(w, "conv2d", x)
    shapes = f"input {describe(x)}, kernel {describe(w)}, groups {groups}"
    if w.ndim != 4:
        raise fail(ShapeError, "conv2d", f"{shapes}: expected a kernel (O, C/groups, kh, kw)")
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise fail(
            ShapeError, "conv2d",
            f"{shapes}: expected {w.shape[1]} x {groups} = {w.shape[1] * groups} input channels and a multiple of "
            f"{groups} output channels, got {x.shape[1]} and {w.shape[0]}",
        )  # fmt: skip
    out = counts(x.shape[2:], w.shape[2:], a["stride"], a["padding"], a["dilation"])
    if min(out) < 1 or min(w.shape[2:]) < 1:
        raise fail(
            ShapeError, "conv2d",
            f"{shapes}: with stride {a['stride']}, padding {a['padding']} and dilation {a['dilation']} the output "
            f"would be {out[0]} x {out[1]}; the kernel does not fit into the image",
        )  # fmt: skip
    return _conv(x, w, **a)


def conv_transpose2d(
    x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """The adjoint of `conv2d` in its input, as a layer that enlarges images.

    x: (N, C, H, W); w: (C, O/groups, kh, kw); result (N, O, oh, ow) with
    oh = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1. Raises ShapeError if they do not fit.
    """
    x, a = images(x, "conv_transpose2d"), geometry("conv_transpose2d", stride, padding, dilation, groups)
    w, extra = operand(w, "conv_transpose2d", x), pair(output_padding, "conv_transpose2d", "output_padding", 0)
    shapes = f"input {describe(x)}, kernel {describe(w)}, groups {groups}"
    if w.ndim != 4 or x.shape[1] != w.shape[0] or w.shape[0] % groups:
        raise fail(ShapeError, "conv_transpose2d", f"{shapes}: expected a kernel ({x.shape[1]}, O/groups, kh, kw)")
    out = tuple(
        (n - 1) * s - 2 * p + reach(k, d) + e
        for n, k, s, p, d, e in zip(x.shape[2:], w.shape[2:], a["stride"], a["padding"], a["dilation"], extra)
    )
    if min(out) < 1 or any(e >= max(s, d) for e, s, d in zip(extra, a["stride"], a["dilation"])):
        raise fail(
            ShapeError, "conv_transpose2d",
            f"{shapes}: stride {a['stride']}, padding {a['padding']}, dilation {a['dilation']} and output_padding "
            f"{extra} give {out[0]} x {out[1]}; expected a positive size, output_padding below stride or dilation",
        )  # fmt: skip
    return _conv_input(x, w, shape=out, **a)


def conv1d(x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Any:
    """`conv2d` of signals: x (N, C, L) with kernels (O, C/groups, k) gives (N, O, ol)."""
    x, w, a = *signals(x, w, "conv1d", "(O, C/groups, k)"), flat_settings(stride, padding, dilation)
    return signal(conv2d(x, w, **a, groups=groups))


def conv_transpose1d(
    x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """`conv_transpose2d` of signals: x (N, C, L) with kernels (C, O/groups, k) gives (N, O, ol)."""
    x, w, a = *signals(x, w, "conv_transpose1d", "(C, O/groups, k)"), flat_settings(stride, padding, dilation)
    return signal(conv_transpose2d(x, w, output_padding=across(0, output_padding), **a, groups=groups))


def signals(x: Any, w: Any, op: str, kernel: str) -> tuple[Any, Any]:
    """Signals and their kernels as images of height 1."""
    x, w = operand(x, op), operand(w, op)
    if x.ndim != 3 or w.ndim != 3:
        raise fail(ShapeError, op, f"{describe(x)}, {describe(w)}: expected (N, C, L) and {kernel}")
    return flat_images(x), flat_images(w)


def across(aside: int, value: Any) -> tuple[Any, ...]:
    """A hyper-parameter of the only axis, a number or a sequence of one, beside that of the axis of height 1."""
    return (aside, *value) if isinstance(value, (tuple, list)) else (aside, value)


def flat_settings(stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """Hyper-parameters of signals as those of images of height 1."""
    return {"stride": across(1, stride), "padding": across(0, padding), "dilation": across(1, dilation)}


def flat_images(x: Any) -> Any:
    """(N, C, L) as images of height 1."""
    return reshape(x, (*x.shape[:2], 1, x.shape[2]))


def signal(x: Any) -> Any:
    """Images of height 1 as (N, C, L)."""
    return reshape(x, (*x.shape[:2], x.shape[3]))


# --- pooling --------------------------------------------------------------------------------------------------


def framed(xp: Any, x: Any, out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float) -> Any:
    """x with `fill` round it as far as the windows reach; x itself where they stay inside."""
    (h, w), (ph, pw) = x.shape[2:], padding
    ends = ((m - 1) * s + reach(k, d) for m, k, s, d in zip(out, kernel, stride, dilation))
    need = [max(n + p, end) for n, p, end in zip((h, w), padding, ends)]
    if (need[0], need[1]) == (h, w):
        return x
    wide = xp.full_like(x, fill, shape=(*x.shape[:2], *need))  # of the same layout
    wide[:, :, ph : ph + h, pw : pw + w] = x
    return wide


def along(xp: Any, combine: Any, x: Any, out: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Any:
    """Combine the taps of every window, first down its columns and then along its row: kh + kw steps, not kh kw."""
    rows = [x[:, :, tap(i, out[0], stride[0], dilation[0])] for i in range(kernel[0])]
    x = functools.reduce(combine, rows)
    return functools.reduce(combine, [x[:, :, :, tap(j, out[1], stride[1], dilation[1])] for j in range(kernel[1])])


def _max_pool2d(xp: Any, x: Any, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Any:
    out = counts(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    low = -math.inf if is_float(x.dtype) else np.iinfo(x.dtype).min
    wide = framed(xp, x, out, kernel, stride, padding, dilation, low)
    return along(xp, xp.maximum, wide, out, kernel, stride, dilation)


def inside(i: int, size: int, count: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """(pixels, windows) along an axis where tap i of a window lies on a pixel of the image."""
    start = i * dilation - padding
    first, end = max(0, -(start // stride)), min(count, (size - 1 - start) // stride + 1)
    if first >= end:
        return slice(0), slice(0)
    return slice(first * stride + start, (end - 1) * stride + start + 1, stride), slice(first, end)


def window_taps(
    shape: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[Any, Any]]:
    """(pixels, windows) under each tap, in row-major order of the window; taps in the padding are left out."""
    rows, cols = (
        [inside(i, n, m, s, p, d) for i in range(k)]
        for n, m, k, s, p, d in zip(shape, out, kernel, stride, padding, dilation)
    )
    return (((..., y, x), (..., i, j)) for y, i in rows for x, j in cols)


def winners(xp: Any, x: Any, y: Any, **a: Pair) -> Iterator[tuple[Any, Any, Any]]:
    """(pixels, windows, where they are what the window has its maximum from), tap by tap.

    Of equal pixels it is the first, and NaN is the largest. A NumPy array without NaN is not asked for it at every tap.
    """
    free, exact = xp.ones_like(y, dtype=bool), xp is np and not np.isnan(y).any()
    for pixels, at in window_taps(x.shape[2:], y.shape[2:], **a):
        values = x[pixels]
        hit = values == y[at]
        if not exact:
            hit |= values != values
        hit &= free[at]
        free[at] ^= hit
        yield pixels, at, hit


def _max_pool2d_bwd(xp: Any, t: Any, x: Any, y: Any, **a: Pair) -> Any:
    grad, given = xp.zeros_like(x), t
    if t.strides != y.strides:  # in one order, so that loops go through all of them side by side
        t = xp.empty_like(y)
        t[...] = given
    apart = all(s >= reach(k, d) for s, k, d in zip(a["stride"], a["kernel"], a["dilation"]))
    for pixels, at, hit in winners(xp, x, y, **a):
        if apart:  # a pixel belongs to one window at most
            xp.multiply(t[at], hit, out=grad[pixels])
        else:
            grad[pixels] += t[at] * hit
    return grad


def _max_pool2d_pick(xp: Any, u: Any, x: Any, y: Any, **a: Pair) -> Any:
    total = xp.zeros_like(y)
    for pixels, at, hit in winners(xp, x, y, **a):
        total[at] += u[pixels] * hit
    return total


def pool_jvp(F: Any, ts: Any, out: Any, x: Any, *, ceil_mode: bool, **a: Any) -> Any:
    """The tangent at the place of each window's maximum."""
    return F.max_pool2d_pick(ts[0], x, out, **a)


_max_pool = general(
    "max_pool2d", _max_pool2d, lambda F, t, out, x, *, ceil_mode, **a: F.max_pool2d_bwd(t, x, out, **a), jvp=pool_jvp,
    cuda=launch.max_pool2d,
)  # fmt: skip
general(
    "max_pool2d_bwd", _max_pool2d_bwd, lambda F, u, _out, _t, x, y, **a: F.max_pool2d_pick(u, x, y, **a), None, None,
    jvp=lambda F, ts, _out, _t, x, y, **a: F.max_pool2d_bwd(ts[0], x, y, **a), cuda=launch.max_pool2d_bwd,
)  # fmt: skip
general(
    "max_pool2d_pick", _max_pool2d_pick, lambda F, t, _out, _u, x, y, **a: F.max_pool2d_bwd(t, x, y, **a), None, None,
    jvp=lambda F, ts, _out, _u, x, y, **a: F.max_pool2d_pick(ts[0], x, y, **a), cuda=launch.max_pool2d_pick,
)  # fmt: skip


def _avg_pool2d(xp: Any, x: Any, kernel: Pair, stride: Pair, padding: Pair) -> Any:
    out = counts(x.shape[2:], kernel, stride, padding, (1, 1), False)
    wide = framed(xp, x, out, kernel, stride, padding, (1, 1), 0)
    total = along(xp, xp.add, wide.astype(summed_in(x.dtype), copy=False), out, kernel, stride, (1, 1))
    return (total * (1 / (kernel[0] * kernel[1]))).astype(x.dtype, copy=False)


def _avg_pool2d_bwd(xp: Any, t: Any, kernel: Pair, stride: Pair, padding: Pair, shape: Pair) -> Any:
    (n, c, oh, ow), (h, w), (ph, pw) = t.shape, shape, padding
    share = t.astype(summed_in(t.dtype), copy=False) * (1 / (kernel[0] * kernel[1]))
    rows = xp.zeros((n, c, oh, w + 2 * pw), share.dtype)
    for j in range(kernel[1]):
        rows[:, :, :, tap(j, ow, stride[1], 1)] += share
    grad = xp.zeros((n, c, h + 2 * ph, w + 2 * pw), share.dtype)
    for i in range(kernel[0]):
        grad[:, :, tap(i, oh, stride[0], 1)] += rows
    return grad[:, :, ph : ph + h, pw : pw + w].astype(t.dtype, copy=False)


_avg_pool = linear(
    "avg_pool2d", _avg_pool2d, lambda F, t, _out, x_shape, **a: F.avg_pool2d_bwd(t, shape=tuple(x_shape[2:]), **a),
    cuda=launch.avg_pool2d,
)  # fmt: skip
linear(
    "avg_pool2d_bwd", _avg_pool2d_bwd, lambda F, u, _out, _t, *, shape, **a: F.avg_pool2d(u, **a),
    cuda=launch.avg_pool2d_bwd,
)  # fmt: skip


def windows(op: str, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> dict[str, Any]:
    """The attributes of a pooling, checked. Raises ShapeError naming the sizes if there is no window."""
    k = pair(kernel, op, "kernel", 1)
    s = k if stride is None else pair(stride, op, "stride", 1)
    p, d = pair(padding, op, "padding", 0), pair(dilation, op, "dilation", 1)
    if any(2 * q > n for q, n in zip(p, k)):
        raise fail(ShapeError, op, f"padding {p} is more than half of kernel {k}: a window could lie outside the image")
    if min(counts(x.shape[2:], k, s, p, d, ceil_mode)) < 1:
        raise fail(ShapeError, op, f"kernel {k} with padding {p} and dilation {d} does not fit {describe(x)}")
    return {"kernel": k, "stride": s, "padding": p, "dilation": d}


def max_pool2d(
    x: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """The largest pixel of each window of (N, C, H, W).

    stride: the kernel size by default. ceil_mode: keep a last window that is only partly inside. Integers or
    (vertical, horizontal) pairs. The gradient goes to the first of several equal pixels in row-major order
    of the window; NaN counts as the largest. Raises ShapeError if no window fits.
    """
    x = images(x, "max_pool2d")
    a = windows("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode)
    return _max_pool(x, **a, ceil_mode=ceil_mode)


def max_pool1d(
    x: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """`max_pool2d` of signals (N, C, L)."""
    a = flat_settings(kernel if stride is None else stride, padding, dilation)
    return signal(max_pool2d(flat_images(lines(x, "max_pool1d")), across(1, kernel), **a, ceil_mode=ceil_mode))


def avg_pool1d(x: Any, kernel: Any, stride: Any = None, padding: Any = 0) -> Any:
    """`avg_pool2d` of signals (N, C, L)."""
    a = flat_settings(kernel if stride is None else stride, padding, 1)
    del a["dilation"]
    return signal(avg_pool2d(flat_images(lines(x, "avg_pool1d")), across(1, kernel), **a))


def lines(x: Any, op: str) -> Any:
    """The argument as a tensor (N, C, L)."""
    x = operand(x, op)
    if x.ndim != 3:
        raise fail(ShapeError, op, f"{describe(x)} has {x.ndim} axes, expected (N, C, L)")
    return x


def avg_pool2d(x: Any, kernel: Any, stride: Any = None, padding: Any = 0) -> Any:
    """The mean of each window of (N, C, H, W); zeros of the padding count as pixels.

    stride: the kernel size by default. Integers or (vertical, horizontal) pairs. Raises ShapeError if no window fits.
    """
    x = images(x, "avg_pool2d")
    a = windows("avg_pool2d", x, kernel, stride, padding, 1, False)
    del a["dilation"]
    return _avg_pool(x, **a)


def _adaptive_avg_pool2d(xp: Any, x: Any, size: Pair) -> Any:
    down, across = (cells(xp, n, m, x.dtype) for n, m in zip(x.shape[2:], size))
    return xp.matmul(xp.matmul(down, x.astype(down.dtype, copy=False)), across.T).astype(x.dtype, copy=False)


def _adaptive_avg_pool2d_bwd(xp: Any, t: Any, shape: Pair) -> Any:
    down, across = (cells(xp, n, m, t.dtype) for n, m in zip(shape, t.shape[2:]))
    return xp.matmul(xp.matmul(down.T, t.astype(down.dtype, copy=False)), across).astype(t.dtype, copy=False)


def cells(xp: Any, size: int, count: int, dtype: Any) -> Any:
    """The averaging matrix (count, size) of an adaptive pooling along one axis."""
    start = np.arange(count) * size // count
    stop = -(-(np.arange(count) + 1) * size // count)
    inside = (np.arange(size) >= start[:, None]) & (np.arange(size) < stop[:, None])
    return xp.asarray(inside / inside.sum(1, keepdims=True), dtype=summed_in(dtype))


_adaptive = linear(
    "adaptive_avg_pool2d", _adaptive_avg_pool2d,
    lambda F, t, _out, x_shape, size: F.adaptive_avg_pool2d_bwd(t, shape=tuple(x_shape[2:])),
    cuda=launch.adaptive_avg_pool2d,
)  # fmt: skip
linear(
    "adaptive_avg_pool2d_bwd", _adaptive_avg_pool2d_bwd,
    lambda F, u, _out, t_shape, shape: F.adaptive_avg_pool2d(u, size=tuple(t_shape[2:])),
    cuda=launch.adaptive_avg_pool2d_bwd,
)  # fmt: skip


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    """Means over a grid of output_size cells of any (N, C, H, W); cell i covers floor(i H/oh) to ceil((i+1) H/oh).

    output_size: an integer or a pair. Cells overlap by a pixel where the sizes do not divide. Raises ShapeError for an
    image without pixels.
    """
    x = images(x, "adaptive_avg_pool2d")
    rows, cols = pair(output_size, "adaptive_avg_pool2d", "output_size", 1)
    if min(x.shape[2:]) < 1:
        raise fail(ShapeError, "adaptive_avg_pool2d", f"{describe(x)} has no pixels")
    if rows == cols == 1:
        return mean(x, (2, 3), keepdims=True)
    if x.shape[2] % rows == 0 and x.shape[3] % cols == 0:
        return avg_pool2d(x, (x.shape[2] // rows, x.shape[3] // cols))
    return _adaptive(x, size=(rows, cols))
