"""Ops that are not elementwise against exact arithmetic: cases as data, each with the bound that it keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np

from gpugrad.op import TABLE

from .truth import last_place

exact = np.vectorize(lambda v: mp.mpf(v), otypes=[object])
exp = np.vectorize(lambda v: mp.exp(v), otypes=[object])
log = np.vectorize(lambda v: mp.log(v), otypes=[object])
sqrt = np.vectorize(lambda v: mp.sqrt(v), otypes=[object])


class Case(NamedTuple):
    """A call and the same in exact arithmetic on arrays of mpmath numbers.

    bound: units in the last place of `scale(*inputs)` (the size of the terms, so that cancellation among them does not
    count), or of each value itself.
    """

    bound: float
    arrays: tuple[np.ndarray, ...]
    truth: Callable[..., Any]
    attrs: dict[str, Any] = {}
    scale: Callable[..., Any] | None = None


rng = np.random.default_rng(99)
long = np.exp(rng.normal(size=(3, 5000)) * 4) * rng.choice([-1.0, 1.0], (3, 5000))  # seven orders of magnitude
offset = 1e4 + rng.normal(size=(4, 500))
logits = np.concatenate(
    [rng.normal(size=(4, 50)) * 30, rng.normal(size=(1, 50)) * 1e4, rng.normal(size=(1, 50)) * 1e-4]
)
rows, image, kernel = rng.normal(size=(4, 64)), rng.normal(size=(2, 4, 7, 6)), rng.normal(size=(6, 2, 3, 2))
left, right = rng.normal(size=(5, 300)), rng.normal(size=(300, 4))
LAST, PLAIN = {"axis": (1,), "keepdims": False}, {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
NORM = {"eps": 1e-5}


def variance(x: Any, correction: float = 0.0) -> Any:
    d = x - x.sum(1, keepdims=True) / x.shape[1]
    return (d * d).sum(1) / (x.shape[1] - correction)


def shares(x: Any) -> Any:
    e = exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_sum(x: Any) -> Any:
    m = x.max(1)
    return m + log(exp(x - m[:, None]).sum(1))


def conv(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """The sum over channels and taps, written out."""
    (n, c, h, width), (out, per, kh, kw) = x.shape, w.shape
    padded = np.full((n, c, h + 2 * padding[0], width + 2 * padding[1]), x.ravel()[0] * 0, dtype=object)
    padded[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + width] = x
    high = (padded.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wide = (padded.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.full((n, out, high, wide), x.ravel()[0] * 0, dtype=object)
    for o, ci, i, j in np.ndindex(out, per, kh, kw):
        source = o // (out // groups) * per + ci
        a, b = i * dilation[0], j * dilation[1]
        y[:, o] = y[:, o] + w[o, ci, i, j] * padded[
            :, source, a : a + stride[0] * high : stride[0], b : b + stride[1] * wide : stride[1]
        ]  # fmt: skip
    return y


def norm(x: Any, power: Any) -> Any:
    return np.array([mp.fsum(abs(v) ** power for v in row) ** (1 / mp.mpf(power)) for row in x], dtype=object)


def layer_norm(x: Any, w: Any, b: Any) -> Any:
    d = x - x.sum(1, keepdims=True) / x.shape[1]
    return d / sqrt(variance(x)[:, None] + mp.mpf(NORM["eps"])) * w + b


CASES: dict[str, list[Case]] = {
    "sum": [Case(2, (long,), lambda x: x.sum(1), LAST, lambda x: np.abs(x).sum(1))],
    "mean": [Case(2, (long,), lambda x: x.sum(1) / 5000, LAST, lambda x: np.abs(x).sum(1) / 5000)],
    "prod": [Case(16, (1 + rows / 9,), lambda x: x.prod(1), LAST)],
    "var": [Case(24, (offset,), variance, {**LAST, "correction": 0.0})],
    "std": [Case(16, (offset,), lambda x: sqrt(variance(x, 1)), {**LAST, "correction": 1.0})],
    "norm": [
        Case(4, (long,), lambda x: norm(x, 2), {**LAST, "power": 2}),
        Case(4, (rows,), lambda x: norm(x, 3), {**LAST, "power": 3}),
    ],
    "cumulative_sum": [
        Case(8, (rows,), lambda x: x.cumsum(1), {"axis": 1, "reverse": False}, lambda x: np.abs(x).cumsum(1))
    ],
    "cumulative_prod": [Case(16, (1 + rows / 9,), lambda x: x.cumprod(1), {"axis": 1, "reverse": False})],
    "softmax": [Case(6, (logits,), shares, {"axis": 1}, lambda x: shares(x) * abs(x - x.max(1, keepdims=True)))],
    "log_softmax": [
        Case(4, (logits,), lambda x: x - log_sum(x)[:, None], {"axis": 1}, lambda x: np.abs(x).max(1, keepdims=True))
    ],
    "logsumexp": [Case(4, (logits,), log_sum, LAST, lambda x: np.abs(x).max(1))],
    "matmul": [Case(8, (left, right), lambda x, y: x @ y, {}, lambda x, y: np.abs(x) @ np.abs(y))],
    "conv2d": [Case(8, (image, kernel), lambda x, w, **k: conv(x, w, **k), PLAIN,
                    lambda x, w: conv(np.abs(x), np.abs(w), **PLAIN))],
}  # fmt: skip


@functools.cache
def worst(name: str, dtype: str) -> tuple[float, str]:
    """The largest error of an op in its units, and where."""
    kind, found = np.dtype(dtype).type, (0.0, "")
    for case in CASES[name]:
        arrays = [a.astype(dtype) for a in case.arrays]
        op = TABLE[name]
        out = op.impls[np.ndarray](*arrays, **case.attrs)
        out = out[0] if op.aux else out
        assert out.dtype == kind
        with mp.workprec(300):
            inputs = [exact(a) for a in arrays]
            want = case.truth(*inputs, **(case.attrs if name == "conv2d" else {}))
            size = np.abs(want)
            if case.scale is not None:
                size = np.maximum(size, np.broadcast_to(case.scale(*inputs), want.shape))
            assert want.shape == out.shape
            for at in np.ndindex(out.shape):
                error = float(abs(mp.mpf(float(out[at])) - want[at])) / last_place(size[at], kind)
                if error > found[0]:
                    found = (error, f"{name}{at} = {out[at]!r}, {dtype}")
    return found
