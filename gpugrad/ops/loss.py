"""Losses that are worth one pass: softmax cross-entropy and binary cross-entropy, both of logits.

With target weights q (the row of the true class, smoothed and weighted, Q its sum) a row costs

    loss = sum_c q_c (lse - x_c),   lse = log sum_c exp(x_c),   d loss / d x_c = Q exp(x_c - lse) - q_c

A class with q_c = 0 contributes nothing, whatever its logit. The forward reads the logits once, the backward reads
them once and writes once. On the CPU both take exp(x_c - max x) on blocks of rows, which threads share; in a replay
`both` takes it once for the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpugrad.backends.threads import portion, share
from gpugrad.define import elementwise, general
from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, RangeError, ShapeError, describe, fail
from gpugrad.launch import loss as launch
from gpugrad.ops.shape import operand
from gpugrad.rules import Rule, add_up

__all__ = ["bce_logits", "softmax_xent"]

BLOCK = 1 << 18  # elements of the logits at a time: smaller blocks would often wait for Python's lock
BOTH = "softmax_xent+softmax_xent_bwd"  # what replay makes of the two
NARROW = 28  # up to so many classes a block is worked on transposed: long runs of rows instead of short ones of classes


def within(labels: Any, classes: int) -> bool:
    """Whether all class numbers, on the host, are in [0, classes): one look at them as unsigned, -1 as the largest."""
    return not labels.size or int(labels.view(f"u{labels.itemsize}").max()) < classes


def check_labels(labels: Any, classes: int, ignore_index: int) -> None:
    """Raise RangeError naming the first row whose class number is neither in [0, classes) nor ignore_index.

    On the CPU only: reading labels would make the host wait for a GPU, whose kernel reports them by itself.
    """
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bad.any():
        row = int(bad.argmax())
        raise fail(
            RangeError, "softmax_xent",
            f"label {int(labels[row])} in row {row}; expected 0 to {classes - 1}, or {ignore_index} to ignore it",
        )  # fmt: skip


class Rows:
    """Logits and their targets in blocks of rows, classes first: the arithmetic that forward and backward share."""

    def __init__(self, xp: Any, logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> None:
        self.xp, self.logits, self.labels = xp, logits, labels
        self.keep, self.smoothing, (n, classes) = 1.0 - smoothing, smoothing, logits.shape
        self.step = -(-portion(n * classes, BLOCK) // max(classes, 1)) if xp is np else max(n, 1)
        self.dtype = np.dtype("float32") if logits.dtype == np.float16 else logits.dtype
        self.weight = w = None if weight is None else weight.astype(self.dtype, copy=False)
        self.top, self.own = xp.empty((2, n), self.dtype)
        self.log, self.lse = xp.empty(n, "float64"), xp.empty(n, "float64")
        self.base = self.hit = None
        self.cost: Any = xp.empty(n, self.dtype) if smoothing or labels.ndim == 2 else 0
        if labels.ndim == 2:
            self.total, self.plain = xp.empty(n, self.dtype), False
            return
        self.true, self.places, self.some_ignored = labels, xp.arange(self.step), True
        if xp is np and within(labels, classes):
            self.some_ignored = 0 <= ignore_index < classes and bool((labels == ignore_index).any())
        elif xp is np:
            check_labels(labels, classes, ignore_index)
        valid = xp.ones(n, self.dtype)
        if self.some_ignored:
            self.ignored = labels == ignore_index
            self.true, valid = xp.where(self.ignored, 0, labels), ~self.ignored
        self.hit = self.total = self.keep * (valid if w is None else valid * w[self.true]).astype(self.dtype)
        self.plain = w is None and not smoothing and not self.some_ignored  # all of these are 1
        if smoothing:
            even = xp.full(classes, smoothing / classes, self.dtype)
            even = even if w is None else even * w
            self.base, self.total = even[:, None], self.hit + valid * even.sum()

    def each(self, work: Callable[[slice, Any, Any], object], out: Any = None) -> None:
        """work(rows, x, z) for all rows, by several threads; x are logits, z is memory, both (classes, rows).

        What is left in z goes to the rows of a given `out`, which may be the logits.
        """
        xp, (n, classes) = self.xp, self.logits.shape
        narrow = xp is np and classes <= NARROW
        direct = out is not None and not narrow and out.dtype == self.dtype
        spare: list[Any] = []

        def at(start: int) -> None:
            rows = slice(start, min(start + self.step, n))
            x, m = self.logits[rows].T, rows.stop - start
            if direct:
                work(rows, x, out[rows].T)
                return
            try:
                pool = spare.pop()
            except IndexError:
                pool = xp.empty((classes, self.step) if narrow else (self.step, classes), self.dtype)
            z = pool[:, :m] if narrow else pool[:m].T
            if narrow:
                z[...] = x
            work(rows, z if narrow else x, z)
            if out is not None:
                out[rows] = z.T
            spare.append(pool)

        with np.errstate(all="ignore"):
            share(at, range(0, n, self.step), self.logits.size if xp is np else 0)

    def targets(self, rows: slice) -> Any:
        """Target weights (classes, rows or 1), None for zero; in a row with a class of its own `hit` is added there."""
        if self.labels.ndim == 1:
            return self.base
        base = self.labels[rows].T.astype(self.dtype, copy=False)
        if self.smoothing:
            base = self.keep * base + self.smoothing / base.shape[0]
        base = base if self.weight is None else base * self.weight[:, None]
        self.total[rows] = base.sum(0)
        return base

    def mine(self, rows: slice) -> Any:
        """Where in (classes, rows) the rows' own classes are."""
        return self.true[rows], self.places[: rows.stop - rows.start]

    def lower(self, rows: slice, x: Any, z: Any) -> Any:
        """z = x - top, at most 0, so that no term cancels another; the row's largest logit, even if it is infinite."""
        xp, top = self.xp, x.max(0).astype(self.dtype, copy=False)
        self.top[rows] = least = xp.where(xp.isfinite(top), top, 0)
        xp.subtract(x, least, out=z)
        return top

    def costs(self, rows: slice, x: Any, z: Any) -> tuple[Any, Any]:
        """What the losses are made of. z = exp(x - top); gives what `slopes` takes."""
        xp, base = self.xp, self.targets(rows)
        if self.hit is not None:
            self.own[rows] = x[self.mine(rows)]
        top = self.lower(rows, x, z)
        if base is not None:
            self.cost[rows] = -dot(xp, base, z)
        self.log[rows] = xp.log(xp.exp(z, out=z).sum(0).astype("float64"))
        self.lse[rows] = self.log[rows] + self.top[rows]
        return base, top

    def losses(self) -> Any:
        """One a row."""
        xp, hit = self.xp, self.hit
        with np.errstate(all="ignore"):
            cost = self.log if self.plain else self.cost + self.total * self.log
            if hit is not None:
                below = xp.subtract(self.top, self.own, dtype="float64")
                below = below if self.plain else xp.where(hit == 0, 0, hit * below)
                cost = xp.where(self.ignored, 0, cost + below) if self.some_ignored else cost + below
            return cost.astype(self.logits.dtype)

    def slopes(self, rows: slice, z: Any, g: Any, base: Any, top: Any) -> None:
        """From exp(x - top) in z to g times the gradient."""
        xp, g = self.xp, g[rows]
        scale = (g if self.plain else g * self.total[rows]) * xp.exp(top - self.lse[rows])
        xp.multiply(z, scale.astype(self.dtype), out=z)
        if base is not None:
            xp.subtract(z, g * base, out=z)
        if self.hit is not None:
            z[self.mine(rows)] -= g if self.plain else g * self.hit[rows]
            if self.some_ignored:
                z[:, self.ignored[rows]] = 0


def dot(xp: Any, q: Any, z: Any) -> Any:
    """Sum over classes of q z, where q = 0 absorbs an infinite z."""
    return xp.where(q == 0, 0, q * z).sum(0)


def _xent(xp: Any, logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float) -> tuple[Any, Any]:
    """Per-row losses and the float64 log-sum-exp of each row."""
    r = Rows(xp, logits, labels, weight, ignore_index, smoothing)
    r.each(r.costs)
    return r.losses(), r.lse


def _xent_bwd(
    xp: Any, t: Any, logits: Any, labels: Any, weight: Any, lse: Any, ignore_index: int, smoothing: float,
    reuse: bool = False, into: Any = None,
) -> Any:  # fmt: skip
    """Gradient in the logits, written over them with `reuse`."""
    into = logits if reuse else into
    if lse is None:
        return both(xp, t, logits, labels, weight, ignore_index, smoothing, into)[2]
    r = Rows(xp, logits, labels, weight, ignore_index, smoothing)
    g, r.lse, grad = t.astype(r.dtype, copy=False), lse, xp.empty_like(logits) if into is None else into

    def work(rows: slice, x: Any, z: Any) -> None:
        base, top = r.targets(rows), r.lower(rows, x, z)
        r.slopes(rows, xp.exp(z, out=z), g, base, top)

    r.each(work, grad)
    return grad


def both(
    xp: Any, t: Any, logits: Any, labels: Any, weight: Any, ignore_index: int, smoothing: float, into: Any = None
) -> tuple[Any, Any, Any]:
    """(losses, log-sum-exp, gradient), with the bits of forward and backward; the exponentials are taken once."""
    r = Rows(xp, logits, labels, weight, ignore_index, smoothing)
    g, grad = t.astype(r.dtype, copy=False), xp.empty_like(logits) if into is None else into
    r.each(lambda rows, x, z: r.slopes(rows, z, g, *r.costs(rows, x, z)), grad)
    return r.losses(), r.lse, grad


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
