"""How far off an elementwise op may be: the published bounds, for its NumPy code and for its compiled functor.

A bound counts units in the last place of the op's value or, where terms cancel or an error within is magnified, of a
`SIZES` of its operands. It holds in float32 and float64 on all operands. 0: no rounding at all; half a unit: the
nearest number. `tests/test_accuracy.py` measures all of them: no op is further off, and none is far below its bound.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

EXACT = (
    "abs", "absorbed", "bitwise_and", "bitwise_invert", "bitwise_or", "clip", "equal", "greater", "greater_equal",
    "isfinite", "isinf", "isnan", "less", "less_equal", "logical_and", "logical_not", "logical_or", "maximum",
    "maximum_bound", "minimum", "minimum_bound", "negative", "not_equal", "positive", "relu", "relu_bwd", "sign",
    "where",
)  # fmt: skip
NEAREST = ("absorb", "add", "divide", "dropout", "multiply", "quotient", "reciprocal", "sqrt", "square", "subtract")
MEASURED: dict[str, float] = {  # the C library's, CUDA's and our own functions, and what is made of them
    "bce_logits": 2, "cos": 2, "elu": 3, "elu_bwd": 2, "exp": 2, "expm1": 2, "gelu": 4, "gelu_bwd": 4, "hardsigmoid": 1,
    "hardswish": 1, "hardswish_bwd": 2, "leaky_relu": 1, "leaky_relu_bwd": 1, "log": 2, "log1p": 2, "log_sigmoid": 3,
    "mish": 4, "mish_bwd": 4, "pow": 4, "sigmoid": 3, "sigmoid_bwd": 2, "silu": 4, "silu_bwd": 4, "sin": 2,
    "softplus": 3, "softplus_bwd": 3, "softshrink": 1, "softsign": 2, "tanh": 2, "tanh_bwd": 2, "tanhshrink": 3,
}  # fmt: skip
BOUNDS: dict[str, float] = {**dict.fromkeys(EXACT, 0.0), **dict.fromkeys(NEAREST, 0.5), **MEASURED}


def gelu_size(xp: Any, x: Any, approximate: str) -> Any:
    """The tail is an exponential, which magnifies what its argument was rounded by."""
    low = xp.minimum(x, 0)
    if approximate == "tanh":
        return abs(x) * xp.exp(tanh_argument(low)) * (1 - tanh_argument(low))
    return abs(x) * xp.exp(-0.5 * low * low) * (1 - low)


def tanh_argument(x: Any) -> Any:
    """2 u, as in kernels/functors.cuh."""
    return x * (1.5957691216057308 + 0.07135481627260025 * x * x)


def gelu_bwd_size(xp: Any, t: Any, x: Any, approximate: str) -> Any:
    """Value and slope of the gate cancel where the gradient crosses 0."""
    if approximate == "tanh":
        z = tanh_argument(x)
        slope = (1 + abs(z)) * xp.exp(-abs(z)) * abs(x) * (1.6 + 0.22 * x * x)
        return abs(t) * (xp.exp(xp.minimum(z, 0)) + xp.where(abs(x) < 1e50, slope, 0))
    near = xp.clip(x, -1e3, 1e3)
    return abs(t) * ((x > -1) + (1 + abs(near)) * (1 + near * near) * xp.exp(-0.5 * near * near))


def gate_bwd_size(xp: Any, t: Any, x: Any) -> Any:
    """The two terms of the derivative of x times a gate that is an exponential below 0."""
    near = xp.clip(x, -1e3, 1e3)
    return abs(t) * ((x > -1) + (1 + abs(near)) * xp.exp(-abs(near)))


def magnified(xp: Any, x: Any, beta: float) -> Any:
    """log(1 + exp(beta x)) / beta, where beta x is rounded."""
    z = beta * x
    return (xp.maximum(z, 0) + (1 - xp.clip(z, -1e3, 0)) * xp.exp(-abs(z))) / abs(beta)


def elu_bwd_size(xp: Any, t: Any, y: Any, alpha: float, rate: float, scale: float) -> Any:
    """Below 0 the output and its limit cancel."""
    return abs(t) * xp.maximum(abs(scale), abs(rate) * (abs(y) + abs(scale * alpha)))


Size = Callable[..., Any]
SIZES: dict[str, Size] = {  # (array module, operands, attributes) -> what the last place is of
    "bce_logits": lambda xp, x, y: abs(x) * xp.maximum(1, abs(y)) + xp.exp(-abs(x)),
    "elu_bwd": elu_bwd_size,
    "gelu": gelu_size,
    "gelu_bwd": gelu_bwd_size,
    "hardsigmoid": lambda xp, x: xp.ones_like(x),
    "hardswish": lambda xp, x: abs(x),
    "hardswish_bwd": lambda xp, t, x: abs(t),
    "mish_bwd": gate_bwd_size,
    "silu_bwd": gate_bwd_size,
    "softplus": magnified,
    "softplus_bwd": lambda xp, t, x, beta: abs(t) * (1 - xp.clip(beta * x, -1e3, 0)) * xp.exp(xp.minimum(beta * x, 0)),
    "softshrink": lambda xp, x, lambd: xp.maximum(abs(x), lambd),
    "tanhshrink": lambda xp, x: abs(x),
}  # fmt: skip

# What NumPy's code is measured against, where that is another: its tanh form of gelu is good to the digits of x alone.
NUMPY_SIZES: dict[str, Size] = SIZES | {
    "gelu": lambda xp, x, approximate: abs(x) if approximate == "tanh" else gelu_size(xp, x, approximate),
    "gelu_bwd": lambda xp, t, x, approximate: (
        abs(t) * xp.maximum(1, x * x) if approximate == "tanh" else gelu_bwd_size(xp, t, x, approximate)
    ),
}
# These multiply an exponential by an operand, and so what that has lost below the smallest normal number.
MAGNIFIED = ("gelu", "gelu_bwd", "mish", "mish_bwd", "sigmoid_bwd", "silu", "silu_bwd", "softplus_bwd")


def unit(xp: Any, op: str, sizes: dict[str, Size], size: Any, operands: Any, attrs: dict[str, Any], dtype: Any) -> Any:
    """An upper bound of the unit in the last place that the bound of an op is counted in, for every element.

    size: of the op's values, operands: arrays or numbers, both in the type to compute in; dtype: that of the results.
    """
    info = np.finfo(dtype)
    least = float(info.tiny)
    if op in sizes:
        size = xp.fmax(size, sizes[op](xp, *operands, **attrs))
    if op in MAGNIFIED:
        least = least * xp.fmax(1, abs(functools.reduce(operator.mul, operands)))
    return float(info.eps) * xp.fmax(size, least)
