"""Launches of kernels/conv.cu, with the products between them, of kernels/conv_pool.cu and kernels/conv_adaptive.cu."""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpugrad.kernel import kernel
from gpugrad.ops._windows import Pair, counts

COLUMNS = 1 << 28  # bytes of columns at a time; those of one window or of one channel, if that is more


class Frame(NamedTuple):
    """How windows lie over images: pixels, grid of windows, taps, stride, padding and dilation, down and across."""

    image: Pair
    grid: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    @property
    def windows(self) -> int:
        """Of a channel."""
        return math.prod(self.grid)

    @property
    def taps(self) -> int:
        """Of a window."""
        return math.prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether an image is its own columns."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)


@functools.lru_cache(1024)
def packed(frame: Frame) -> bytes:
    """struct Windows of kernels/windows.cuh."""
    return b"".join(struct.pack("6i", *axis) for axis in zip(*frame))


# --- convolution ----------------------------------------------------------------------------------------------------


def ranges(end: int, step: int) -> list[slice]:
    """0 to end in steps."""
    return [slice(a, min(a + step, end)) for a in range(0, end, step)]


def length(part: slice) -> int:
    """Of a range."""
    return int(part.stop - part.start)


def pieces(images: int, parts: int, size: int) -> Iterator[tuple[slice, slice]]:
    """(images, parts of each) whose columns, `size` bytes a part, fit at once: many images, or some parts of one."""
    fit = max(1, COLUMNS // size)
    return itertools.product(ranges(images, max(1, fit // parts)), ranges(parts, min(fit, parts)))


class Buffer:
    """Memory for the columns of one piece after another, of which the first is the largest."""

    memory: Any = None

    def __init__(self, xp: Any, dtype: Any) -> None:
        self.xp, self.dtype = xp, dtype

    def __call__(self, *shape: int) -> Any:
        """An array in it."""
        size = math.prod(shape)
        if self.memory is None:
            self.memory = self.xp.empty(size, self.dtype)
        return self.memory[:size].reshape(shape)


def columns(
    launch: Any, x: Any, frame: Frame, groups: int, rows_first: bool = False
) -> Iterator[tuple[slice, slice, Any]]:
    """(images, windows, their columns), in memory that is overwritten when the next are asked for.

    (images, groups, rows, windows), a row being a tap of a channel; rows_first: (groups, rows, images windows).
    """
    (n, c), taps = x.shape[:2], frame.taps
    buffer, x = Buffer(launch.xp, x.dtype), launch.xp.ascontiguousarray(x)
    for images, part in pieces(n, frame.windows, c * taps * x.dtype.itemsize):
        b, p, rows = length(images), length(part), c // groups * taps
        cols = buffer(groups, rows, b * p) if rows_first else buffer(b, groups, rows, p)
        steps = (b * p, p) if rows_first else (p, c * taps * p)
        launch.map("im2col", (x.dtype,), (cols, x[images], packed(frame), b * c, c, part.start, p, *steps), b * c * p)
        yield images, part, cols


def _conv2d(launch: Any, x: Any, w: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Any:
    if not launch.takes(x, w) or not x.size or not w.size:
        return NotImplemented
    n, (o, c) = len(x), w.shape[:2]
    count = counts(x.shape[2:], w.shape[2:], stride, padding, dilation)
    frame = Frame(x.shape[2:], count, w.shape[2:], stride, padding, dilation)
    out = launch.xp.empty((n, o, *count), x.dtype)
    kernels, flat = w.reshape(groups, o // groups, -1), out.reshape(n, groups, o // groups, -1)
    if frame.pointwise:
        launch.gemm(kernels, x.reshape(n, groups, c, -1), out=flat)
    else:
        for images, part, cols in columns(launch, x, frame, groups):
            launch.gemm(kernels, cols, out=flat[images, :, :, part])
    return out


def _conv2d_weight(
    launch: Any, t: Any, x: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int, kernel: Pair
) -> Any:
    if not launch.takes(t, x) or not t.size or not x.size:
        return NotImplemented
    (n, o), c = t.shape[:2], x.shape[1] // groups
    frame = Frame(x.shape[2:], t.shape[2:], kernel, stride, padding, dilation)
    total = launch.xp.empty((groups, o // groups, c * frame.taps), accumulator(x.dtype))
    rows = t.reshape(n, groups, o // groups, -1).transpose(1, 2, 0, 3)
    for i, (images, part, cols) in enumerate(columns(launch, x, frame, groups, rows_first=True)):
        slopes = launch.xp.ascontiguousarray(rows[:, :, images, part]).reshape(groups, o // groups, -1)
        launch.gemm(slopes, cols.swapaxes(1, 2), out=total, addend=total if i else None)
    return total.reshape(o, c, *kernel).astype(x.dtype, copy=False)


def _conv2d_input(
    launch: Any, t: Any, w: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int, shape: Pair
) -> Any:
    if not launch.takes(t, w) or not t.size or not w.size:
        return NotImplemented
    (n, o), c = t.shape[:2], w.shape[1]
    frame = Frame(shape, t.shape[2:], w.shape[2:], stride, padding, dilation)
    dx, taps = launch.xp.empty((n, groups * c, *shape), t.dtype), frame.taps
    kernels, t = w.reshape(groups, o // groups, -1).swapaxes(1, 2), t.reshape(n, groups, o // groups, -1)
    if frame.pointwise:
        launch.gemm(kernels, t, out=dx.reshape(n, groups, c, -1))
        return dx
    buffer = Buffer(launch.xp, accumulator(t.dtype))
    for images, part in pieces(n, c, groups * taps * frame.windows * buffer.dtype.itemsize):
        b, channels = length(images), length(part)
        cols = buffer(b, groups, channels * taps, frame.windows)
        launch.gemm(kernels[:, part.start * taps : part.stop * taps], t[images], out=cols)
        args = (dx[images], cols, packed(frame), b * groups, channels, part.start, c)
        launch.map("col2im", (t.dtype,), args, b * groups * channels * math.prod(shape))
    return dx


def accumulator(dtype: Any) -> Any:
    """The type in which kernels sum."""
    return np.dtype("float64" if dtype.itemsize == 8 else "float32")


conv2d = kernel("conv", "im2col", _conv2d)
conv2d_input = kernel("conv", "col2im", _conv2d_input)
conv2d_weight = kernel("conv", "im2col", _conv2d_weight)


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool(launch: Any, name: str, shape: Pair, frame: Frame, *arrays: Any) -> Any:
    """The result of a kernel: planes of this shape."""
    if not launch.takes(*arrays):
        return NotImplemented
    (n, c), dtype = arrays[0].shape[:2], arrays[0].dtype
    out = launch.xp.empty((n, c, *shape), dtype)
    launch.map(name, (dtype,), (out, *arrays, packed(frame), n * c), out.size)
    return out


def _max_pool2d(launch: Any, x: Any, ceil_mode: bool, **a: Any) -> Any:
    count = counts(x.shape[2:], **a, ceil_mode=ceil_mode)
    return _pool(launch, "max_pool2d", count, Frame(x.shape[2:], count, **a), x)


def _max_pool2d_bwd(launch: Any, t: Any, x: Any, y: Any, **a: Pair) -> Any:
    return _pool(launch, "max_pool2d_bwd", x.shape[2:], Frame(x.shape[2:], y.shape[2:], **a), t, x, y)


def _max_pool2d_pick(launch: Any, u: Any, x: Any, y: Any, **a: Pair) -> Any:
    return _pool(launch, "max_pool2d_pick", y.shape[2:], Frame(x.shape[2:], y.shape[2:], **a), u, x, y)


def _avg_pool2d(launch: Any, x: Any, kernel: Pair, stride: Pair, padding: Pair) -> Any:
    count = counts(x.shape[2:], kernel, stride, padding)
    return _pool(launch, "avg_pool2d", count, Frame(x.shape[2:], count, kernel, stride, padding), x)


def _avg_pool2d_bwd(launch: Any, t: Any, shape: Pair, **a: Pair) -> Any:
    return _pool(launch, "avg_pool2d_bwd", shape, Frame(shape, t.shape[2:], **a), t)


def _adaptive_avg_pool2d(launch: Any, x: Any, size: Pair) -> Any:
    return _pool(launch, "adaptive_avg_pool2d", size, cells(x.shape[2:], size), x)


def _adaptive_avg_pool2d_bwd(launch: Any, t: Any, shape: Pair) -> Any:
    return _pool(launch, "adaptive_avg_pool2d_bwd", shape, cells(shape, t.shape[2:]), t)


def cells(image: Pair, grid: Pair) -> Frame:
    """Of an adaptive pooling: only pixels and cells are read."""
    return Frame(image, grid, (0, 0), (0, 0), (0, 0))


max_pool2d = kernel("conv_pool", "max_pool2d", _max_pool2d)
max_pool2d_bwd = kernel("conv_pool", "max_pool2d_bwd", _max_pool2d_bwd)
max_pool2d_pick = kernel("conv_pool", "max_pool2d_pick", _max_pool2d_pick)
avg_pool2d = kernel("conv_pool", "avg_pool2d", _avg_pool2d)
avg_pool2d_bwd = kernel("conv_pool", "avg_pool2d_bwd", _avg_pool2d_bwd)
adaptive_avg_pool2d = kernel("conv_adaptive", "adaptive_avg_pool2d", _adaptive_avg_pool2d)
adaptive_avg_pool2d_bwd = kernel("conv_adaptive", "adaptive_avg_pool2d_bwd", _adaptive_avg_pool2d_bwd)
