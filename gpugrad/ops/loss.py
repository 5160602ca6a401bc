"""Losses that are worth one pass: softmax cross-entropy and binary cross-entropy, both of logits.

With target weights q (the row of the true class, smoothed and weighted, Q its sum) a row costs

    loss = sum_c q_c (lse - x_c),   lse = log sum_c exp(x_c),   d loss / d x_c = Q exp(x_c - lse) - q_c

A class with q_c = 0 contributes nothing, whatever its logit. The forward reads the logits once, the backward reads
them once and writes once; both work on blocks of rows that stay in a CPU cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpugrad.define import elementwise, general
from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, RangeError, ShapeError, describe, fail
from gpugrad.launch import loss as launch
from gpugrad.ops.shape import operand
from gpugrad.rules import Rule, add_up

__all__ = ["bce_logits", "softmax_xent"]

BLOCK = 1 << 16  # elements of the logits at a time
NARROW = 64  # up to so many classes a block is worked on transposed: long runs of rows instead of short ones of classes


def check_labels(labels: Any, classes: int, ignore_index: int) -> None:
    """Raise RangeError naming the first row whose class number is neither in [0, classes) nor ignore_index.

    On the CPU only: reading labels would make the host wait for a GPU, whose kernel reports them by itself.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
        if bad.any():
            row = int(bad.argmax())
            raise fail(
                RangeError, "softmax_xent",
                f"label {int(labels[row])} in row {row}; expected 0 to {classes - 1}, or {ignore_index} to ignore it",
            )  # fmt: skip


class Rows:
    """Blocks of logits with their targets, classes first: the arithmetic that forward and backward share."""

    def __init__(self, xp: Any, logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> None:
        self.xp, self.logits, self.labels = xp, logits, labels
        self.soft, self.keep, self.smoothing = labels.ndim == 2, 1.0 - smoothing, smoothing
        self.dtype = np.dtype("float32") if logits.dtype == np.float16 else logits.dtype
        self.weight = None if weight is None else weight.astype(self.dtype, copy=False)
        if not self.soft:
            if xp is np:
                check_labels(labels, logits.shape[1], ignore_index)
            self.ignored = labels == ignore_index
            self.true = xp.where(self.ignored, 0, labels)

    def blocks(self, out: Any = None) -> Iterator[tuple[slice, Any, Any]]:
        """(rows, logits, result), both (classes, rows); what is left in `result` goes to the rows of a given `out`."""
        n, classes = self.logits.shape
        step = max(1, min(n, BLOCK // max(classes, 1)) if self.xp is np else n)
        narrow = self.xp is np and classes <= NARROW
        direct = out is not None and not narrow and out.dtype == self.dtype
        pool = None if direct else self.xp.empty((classes, step) if narrow else (step, classes), self.dtype)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            block, m = self.logits[rows].T, rows.stop - start
            z = out[rows].T if direct else pool[:, :m] if narrow else pool[:m].T  # type: ignore[index]
            if narrow:
                z[...] = block
            yield rows, z if narrow else block, z
            if out is not None and not direct:
                out[rows] = z.T

    def target(self, rows: slice) -> tuple[Any, Any, Any]:
        """(base, hit, Q): q is base (classes, rows or 1; None for zero) plus, in a row of its own class, hit."""
        xp, w = self.xp, self.weight
        if self.soft:
            base = self.labels[rows].T.astype(self.dtype, copy=False)
            if self.smoothing:
                base = self.keep * base + self.smoothing / base.shape[0]
            base = base if w is None else base * w[:, None]
            return base, None, base.sum(0)
        valid = ~self.ignored[rows]
        hit = self.keep * (valid if w is None else valid * w[self.true[rows]]).astype(self.dtype)
        if not self.smoothing:
            return None, hit, hit
        classes = self.logits.shape[1]
        even = xp.full(classes, self.smoothing / classes, self.dtype)
        even = even if w is None else even * w
        return even[:, None], hit, hit + valid * even.sum()


def dot(xp: Any, q: Any, z: Any) -> Any:
    """Sum over classes of q z, where q = 0 absorbs an infinite z."""
    return xp.where(q == 0, 0, q * z).sum(0)


def _xent(xp: Any, logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> tuple[Any, Any]:
    """Per-row losses and the float64 log-sum-exp of each row."""
    n, r = logits.shape[0], Rows(xp, logits, labels, weight, ignore_index, smoothing)
    loss, lse = xp.empty(n, logits.dtype), xp.empty(n, "float64")
    with np.errstate(invalid="ignore", divide="ignore"):
        for rows, x, z in r.blocks():
            base, hit, total = r.target(rows)
            top = x.max(0)
            top = xp.where(xp.isfinite(top), top, 0)
            if hit is not None:
                below = top.astype("float64") - xp.take_along_axis(logits[rows], r.true[rows][:, None], 1)[:, 0]
            xp.subtract(x, top, out=z)  # at most 0, so that no term below cancels another
            cost = 0 if base is None else -dot(xp, base, z)
            log = xp.log(xp.exp(z, out=z).sum(0).astype("float64"))
            lse[rows] = log + top
            cost = cost + total * log
            if hit is not None:
                cost = xp.where(r.ignored[rows], 0, cost + xp.where(hit == 0, 0, hit * below))
            loss[rows] = cost
    return loss, lse


def _xent_bwd(
    xp: Any, t: Any, logits: Any, labels: Any, weight: Any, lse: Any, ignore_index: int, smoothing: float,
    reuse: bool = False, into: Any = None,
) -> Any:  # fmt: skip
    """Gradient in the logits, written over them with `reuse`."""
    r = Rows(xp, logits, labels, weight, ignore_index, smoothing)
    if lse is None:
        lse = _xent(xp, logits, labels, weight, ignore_index, smoothing)[1]
    grad = logits if reuse else xp.empty_like(logits) if into is None else into
    near = lse.astype(r.dtype)
    with np.errstate(invalid="ignore"):
        rest = xp.exp(near - lse)  # what rounding took from a float64 log-sum-exp, as a factor
        for rows, x, z in r.blocks(grad):
            base, hit, total = r.target(rows)
            g = t[rows].astype(r.dtype, copy=False)
            xp.exp(xp.subtract(x, near[rows], out=z), out=z)
            xp.multiply(z, (g * total * rest[rows]).astype(r.dtype), out=z)
            if base is not None:
                xp.subtract(z, g * base, out=z)
            if hit is not None:
                z[r.true[rows], xp.arange(z.shape[1])] -= g * hit
                z[:, r.ignored[rows]] = 0
    return grad


def _targets(xp: Any, labels: Any, classes: int, ignore_index: int, smoothing: float, dtype: Any) -> Any:
    """Smoothed target rows (N, classes): those given, or one-hot ones of class numbers, all zero where ignored."""
    if labels.ndim == 2:
        return ((1.0 - smoothing) * labels + smoothing / classes).astype(dtype, copy=False)
    hits = xp.arange(classes) == labels[:, None]
    rows = (1.0 - smoothing) * hits + smoothing / classes
    return (rows * (labels != ignore_index)[:, None]).astype(dtype, copy=False)


def column(F: Any, t: Any) -> Any:
    """(N,) as (N, 1)."""
    return F.reshape(t, shape=(t.shape[0], 1))


def weighted(F: Any, labels: Any, weight: Any, like: Any, **a: Any) -> Any:
    """The target weights q (N, C)."""
    q = F.xent_targets(labels, classes=like.shape[1], dtype=like.dtype, **a)
    return q if weight is None else q * weight


def xent_bwd_via(
    F: Any, t: Any, logits: Any, labels: Any, weight: Any, _lse: Any, reuse: bool = False, **a: Any
) -> Any:
    """softmax_xent_bwd of table ops, so that it can be differentiated in everything."""
    q = weighted(F, labels, weight, logits, **a)
    return column(F, t) * (F.sum(q, axis=(1,), keepdims=True) * F.softmax(logits, axis=1) - q)


def d_logits(F: Any, t: Any, _out: Any, logits: Any, labels: Any, weight: Any, lse: Any, **a: Any) -> Any:
    """The fused backward."""
    return F.softmax_xent_bwd(t, logits, labels, weight, lse, **a)


def d_labels(
    F: Any, t: Any, _out: Any, logits: Any, _labels: Any, weight: Any, _lse: Any, *, smoothing: float, **_a: Any
) -> Any:
    """Soft targets: minus the weighted log-probabilities."""
    slope = (smoothing - 1.0) * F.log_softmax(logits, axis=1)
    return column(F, t) * (slope if weight is None else slope * weight)


def d_weight(
    F: Any, t: Any, _out: Any, logits: Any, labels: Any, _weight: Any, _lse: Any, reuse: bool = False, **a: Any
) -> Any:
    """Class weights: what each class contributed (the walk sums over the rows)."""
    return -column(F, t) * F.absorb(weighted(F, labels, None, logits, **a), F.log_softmax(logits, axis=1))


def xent_jvp(F: Any, ts: Any, out: Any, *inputs: Any, **a: Any) -> Any:
    """Rows are independent: the gradient of each, times the tangent."""
    ones: Any = F.ones_like(out)
    rules: tuple[Rule, ...] = (d_logits, d_labels, d_weight)
    moved = [rule(F, ones, out, *inputs, **a) * t for rule, t in zip(rules, ts) if t is not None]
    return F.sum(add_up(moved), axis=(1,), keepdims=False)


general(
    "xent_targets", _targets, lambda F, t, _out, _labels, *, smoothing, **_a: (1.0 - smoothing) * t,
    jvp=lambda F, ts, _out, _labels, *, smoothing, **_a: (1.0 - smoothing) * ts[0],
)  # fmt: skip
_softmax_xent = general(
    "softmax_xent", _xent, d_logits, d_labels, d_weight, jvp=xent_jvp, aux=True, cuda=launch.softmax_xent, reuse=1
)
general("softmax_xent_bwd", _xent_bwd, via=xent_bwd_via, cuda=launch.softmax_xent_bwd)


def softmax_xent(
    logits: Any, labels: Any, weight: Any = None, *, ignore_index: int = -100, smoothing: float = 0.0
) -> Any:
    """Cross-entropy of the softmax of each row with its target, in nats: one loss a row.

    logits: (N, C) floats. labels: (N,) class numbers, or (N, C) target weights (soft rows). weight: (C,) factor of
    each class. smoothing: share of every target that is spread evenly over the classes. A row whose class number is
    ignore_index has loss 0 and gradient 0. The losses have the logits' dtype and are summed in at least float32.
    Differentiable in logits, soft labels and weight. Raises RangeError for a class number out of range (on the CPU),
    ShapeError or DTypeError for operands that do not fit.
    """
    x, y = operand(logits, "softmax_xent"), operand(labels, "softmax_xent")
    w = None if weight is None else operand(weight, "softmax_xent", x)
    shapes = f"logits {describe(x)}, labels {describe(y)}" + ("" if w is None else f", weight {describe(w)}")
    if not is_float(x.dtype) or (y.dtype.kind not in "iu" if y.ndim == 1 else not is_float(y.dtype)):
        raise fail(DTypeError, "softmax_xent", f"{shapes}: expected float logits; integer (N,) or float (N, C) labels")
    if x.ndim != 2 or y.shape not in (x.shape[:1], x.shape) or (w is not None and w.shape != x.shape[1:]):
        raise fail(ShapeError, "softmax_xent", f"{shapes}: expected (N, C), (N,) or (N, C), and (C,)")
    if not 0.0 <= smoothing <= 1.0:
        raise fail(RangeError, "softmax_xent", f"smoothing is {smoothing!r}; expected 0 to 1")
    return _softmax_xent(x, y, w, ignore_index=ignore_index, smoothing=smoothing)


bce_logits = elementwise(
    "bce_logits", lambda xp, x, y: xp.maximum(x, 0) - x * y + xp.log1p(xp.exp(-xp.abs(x))),
    lambda F, t, _out, x, y: t * (F.sigmoid(x) - y), lambda F, t, _out, x, _y: -t * x, floating=True,
    doc="Binary cross-entropy of logits x with targets y in [0, 1], one value an element, broadcast; finite for any x.",
)  # fmt: skip
