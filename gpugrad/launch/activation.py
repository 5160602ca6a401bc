"""Launches of kernels/activation.cu and kernels/activation_bias.cu."""

from __future__ import annotations

from typing import Any

from gpugrad.kernel import Kernel, kernel
from gpugrad.launch.reduce import STATE, STORED, tile

GELU = {"none": "Gelu", "tanh": "GeluTanh"}
AFTER_BIAS = {
    "relu": "Relu", "gelu": "Gelu", "gelu_tanh": "GeluTanh", "silu": "Silu", "sigmoid": "Sigmoid", "tanh": "Tanh",
}  # fmt: skip
BLOCKS = 2048  # of activation_bias.cu: beyond, a block takes more rows


def _map(
    launch: Any, name: str, functor: str, arrays: tuple[Any, ...], options: tuple[float, ...], reuse: bool = False
) -> Any:
    """One result of the arrays' common shape and type; with `reuse` over the last of them."""
    first = arrays[0]
    if not launch.takes(*arrays) or any(a.shape != first.shape for a in arrays):
        return NotImplemented
    out = launch.place(arrays[-1], reuse)
    a, b, c = (*options, 0.0, 0.0, 0.0)[:3]
    packets = -(-out.nbytes // 16)  # one a thread
    launch.map(name, (first.dtype, functor), (out, *arrays, out.size, a, b, c), packets)
    return out


def _pair(functor: str, *options: str | float) -> tuple[Kernel, Kernel]:
    """The kernels of a function and of its backward pass; options: numbers, or names of the op's attributes."""

    def entry(name: str) -> Kernel:
        def call(launch: Any, *arrays: Any, reuse: bool = False, **attrs: Any) -> Any:
            chosen = GELU[attrs["approximate"]] if functor == "Gelu" else functor
            given = tuple(attrs[o] if isinstance(o, str) else o for o in options)
            return _map(launch, name, chosen, arrays, given, reuse)

        return kernel("activation", name, call)

    return entry("activation"), entry("activation_bwd")


def columns(rows: int, cols: int, itemsize: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid, block, rows a block) of a pass over columns, from the sizes alone: sums are the same everywhere."""
    lanes = 16 // itemsize
    block = tile(-(-cols // lanes))
    tiles = -(-cols // (block[0] * lanes))
    span = max(4 * block[1], -(-rows // max(1, BLOCKS // tiles)))
    return (tiles, -(-rows // span)), block, span


def _bias_act(launch: Any, x: Any, b: Any, kind: str) -> Any:
    if not launch.takes(x, b) or x.size == 0:
        return NotImplemented
    y, cols = launch.xp.empty(x.shape, x.dtype), x.shape[-1]
    rows = x.size // cols
    grid, block, span = columns(rows, cols, x.dtype.itemsize)
    launch.tiles("bias_act", (x.dtype, AFTER_BIAS[kind]), (y, x, b, rows, cols, span), grid, block)
    return y


def _bias_act_bwd(launch: Any, t: Any, v: Any, b: Any, kind: str) -> Any:
    if not launch.takes(t, v, *([] if b is None else [b])) or t.shape != v.shape or v.size == 0:
        return NotImplemented
    xp, dtype, cols = launch.xp, v.dtype, v.shape[-1]
    rows = v.size // cols
    grid, block, span = columns(rows, cols, dtype.itemsize)
    dx, db, slices = xp.empty(v.shape, dtype), xp.empty((cols,), dtype), grid[1]
    sums = db if slices == 1 else xp.empty((slices, cols), "float64" if dtype.itemsize == 8 else "float32")
    args = (dx, sums, t, v, b, rows, cols, span, STORED if slices == 1 else STATE)
    launch.tiles("bias_act_bwd", (dtype, AFTER_BIAS[kind]), args, grid, block)
    if slices > 1:
        block = tile(cols)
        launch.tiles("sum_slices", (dtype,), (db, sums, slices, cols), (-(-cols // block[0]),), block)
    return dx, db


def _absorbed(launch: Any, g: Any, t: Any, infinite: bool) -> Any:
    if not launch.takes(g, t) or g.shape != t.shape:
        return NotImplemented
    out = launch.xp.empty(g.shape, g.dtype)
    launch.map("absorbed", (g.dtype,), (out, g, t, out.size, int(infinite)), -(-out.nbytes // 16))
    return out


relu, _ = _pair("Relu")
relu_bwd = kernel("activation", "relu_bwd")
leaky_relu, leaky_relu_bwd = _pair("LeakyRelu", "negative_slope")
elu, elu_bwd = _pair("Elu", "alpha", "rate", "scale")
gelu, gelu_bwd = _pair("Gelu")
silu, silu_bwd = _pair("Silu")
sigmoid, sigmoid_bwd = _pair("Sigmoid")
tanh, tanh_bwd = _pair("Tanh")
softplus, softplus_bwd = _pair("Softplus", "beta")
log_sigmoid, _ = _pair("Softplus", -1.0)
mish, mish_bwd = _pair("Mish")
hardswish, hardswish_bwd = _pair("Hardswish")
absorbed = kernel("activation", "absorbed", _absorbed)
bias_act = kernel("activation_bias", "bias_act", _bias_act)
bias_act_bwd = kernel("activation_bias", "bias_act_bwd", _bias_act_bwd)
