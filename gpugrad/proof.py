"""Whether compiled code gives what its ops mean, to within the rounding that their published bounds allow.

What a compiled piece computes is computed again in float64, from the very arrays that it was given: elementwise ops by
the text of their NumPy code, row kernels by the formulas below. With every value goes a bound on how far code of the
piece's own type may be from it; a `Ball` is the two. Of an elementwise op the bound is its own (`gpugrad.accuracy`) and
what the errors of the operands make of it: the op is computed at the ends of what they may be. So a value that may lie
on either side of a decision counts both ways, and an error that grows without limit, at a pole or an overflow, leaves
nothing to compare: such elements are counted. Sums, and products of matrices, add n u sum |terms| (Higham, Accuracy and
Stability of Numerical Algorithms, chapters 3 and 4), n the longest run of additions in the piece's type, u half the
distance of 1 from the next number. In float64 the reference has errors of its own, and the bounds count twice.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpugrad import accuracy, backends
from gpugrad.backends.threads import share
from gpugrad.chain import DROPOUT, Chain, Const, common_shape, drop_factor, tiles
from gpugrad.op import TABLE
from gpugrad.ops.activation import AFTER_BIAS, bias_act_back
from gpugrad.ops.loss import BOTH
from gpugrad.ops.normalize import folds
from gpugrad.ops.random import chances
from gpugrad.precision import get_matmul_precision
from gpugrad.program import Call, mapped

ROW, STRANDS = 512, 16  # elements that compiled code adds in its own type; bytes of the shortest vector that does so
MERGED = 32  # of so many elements one sum is carried on: TILE / LANES in kernels/host/loops.h
PIECE = 1 << 18  # the same of the gradient of a kernel of convolution, EXACT in kernels/host/conv.h
NEAR, FAR = 1 << 16, 1 << 24  # elements that are looked at together: what a cache holds all of, and a GPU's memory
FACTORS = {"highest": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}  # what a GPU rounds float32 factors by


class Ball:
    """Values in float64 (or bool) and how far their stand-ins may be from them; rad 0.0: they are exact.

    Of a bool, rad is whether it may be the other one. dtype: what the stand-ins are computed in.
    """

    __slots__ = ("dtype", "mid", "rad")

    def __init__(self, mid: Any, rad: Any, dtype: Any) -> None:
        self.mid = np.asarray(mid) if isinstance(mid, np.generic) else mid
        self.rad, self.dtype = rad, dtype

    shape = property(lambda self: self.mid.shape)
    ndim = property(lambda self: self.mid.ndim)
    size = property(lambda self: self.mid.size)

    def __add__(self, y: Any) -> Ball:
        return elementwise("add", self, y)

    def __sub__(self, y: Any) -> Ball:
        return elementwise("subtract", self, y)

    def __rsub__(self, x: Any) -> Ball:
        return elementwise("subtract", x, self)

    def __mul__(self, y: Any) -> Ball:
        return elementwise("multiply", self, y)

    def __truediv__(self, y: Any) -> Ball:
        return elementwise("divide", self, y)

    def mapped(self, f: Callable[[Any], Any]) -> Ball:
        """Both halves moved about."""
        return Ball(f(self.mid), self.rad if type(self.rad) is float else f(self.rad), self.dtype)

    def to(self, dtype: Any) -> Ball:
        """The same numbers, to be computed with in another type."""
        return Ball(self.mid, self.rad, np.dtype(dtype))


def module(a: Any) -> Any:
    """NumPy or CuPy."""
    return backends.of(a).xp  # type: ignore[attr-defined]


def working(dtype: Any) -> Any:
    """The type that compiled code computes in: of half types float32."""
    return np.dtype("float32") if dtype.itemsize == 2 else dtype


def exact(a: Any) -> Any:
    """An array as a Ball; anything else as it is."""
    if isinstance(a, Ball) or not hasattr(a, "dtype"):
        return a
    real = a.dtype.kind == "f" or a.dtype.name == "bfloat16"
    return Ball(a.astype("float64") if real else a, 0.0, working(a.dtype) if real else a.dtype)


def twin(name: str, xp: Any) -> Any:
    """The text of an op's NumPy code, for an array module."""
    op = TABLE[name]
    fwd = op.impls.special.get("cpu", op.fwd) if xp is np else op.fwd
    return getattr(xp, fwd) if isinstance(fwd, str) else functools.partial(fwd, xp)


# --- one op -----------------------------------------------------------------------------------------------------


def elementwise(name: str, *operands: Any, **attrs: Any) -> Ball:
    """An op of Balls and numbers, rounded as its published bound says."""
    balls = [o for o in operands if isinstance(o, Ball)]
    xp, dtype = module(balls[0].mid), next((b.dtype for b in balls if b.mid.dtype.kind == "f"), balls[0].dtype)
    real = dtype.kind == "f"
    mids = [o.mid if isinstance(o, Ball) else float(dtype.type(o)) if real and o is not None else o for o in operands]
    run = twin(name, xp)
    mid, moved = xp.asarray(run(*mids, **attrs)), 0.0
    varied = [isinstance(o, Ball) and type(o.rad) is not float for o in operands]
    if any(varied):
        spread = MOVED.get(name)
        if spread is not None:
            moved = spread(
                *[o if isinstance(o, Ball) else Ball(xp.asarray(m), 0.0, dtype) for o, m in zip(operands, mids)]
            )
        else:
            ends = [ends_of(o) if v else (m,) for o, m, v in zip(operands, mids, varied)]
            corners = (xp.asarray(run(*at, **attrs)) for at in itertools.product(*ends))
            moved = functools.reduce(xp.maximum, (distance(xp, c, mid) for c in corners))
            if name in TURNING and varied[-1] and not tame(operands[-1].rad, WIDEST):
                moved = xp.where(operands[-1].rad < WIDEST, moved, math.inf)
    if mid.dtype == bool:
        if name in ("equal", "not_equal") and any(varied):
            moved = moved | (abs(mids[0] - mids[1]) <= sum(o.rad for o in balls))
        return Ball(mid, moved, mid.dtype)
    return rounded(name, mid, moved, mids, attrs, dtype)


def by_product(x: Ball, y: Ball) -> Any:
    """How far a product moves."""
    parts = [abs(a.mid) * b.rad for a, b in ((x, y), (y, x)) if type(b.rad) is not float]
    return sum(parts) if len(parts) == 1 else sum(parts) + x.rad * y.rad


def by_quotient(x: Ball, y: Ball) -> Any:
    """How far a quotient moves; without limit where the divisor may be 0."""
    xp = module(y.mid)
    return (x.rad + abs(x.mid / y.mid) * y.rad) / xp.maximum(abs(y.mid) - y.rad, 0)


def by_root(x: Ball) -> Any:
    """How far a root moves, of what is not below 0."""
    xp = module(x.mid)
    return xp.fmin(x.rad / xp.sqrt(x.mid), xp.sqrt(x.rad))


MOVED: dict[str, Callable[..., Any]] = {  # the most frequent ones, and poles, which lie between ends
    "add": lambda x, y: x.rad + y.rad, "subtract": lambda x, y: x.rad + y.rad, "multiply": by_product,
    "absorb": by_product, "divide": by_quotient, "quotient": by_quotient, "sqrt": by_root,
    "reciprocal": lambda y: by_quotient(Ball(module(y.mid).ones_like(y.mid), 0.0, y.dtype), y),
    "sin": lambda x: module(x.mid).minimum(x.rad, 2), "cos": lambda x: module(x.mid).minimum(x.rad, 2),
}  # fmt: skip
# These turn between ends that are further apart than this, and nothing is said of them there.
TURNING = ("gelu", "gelu_bwd", "hardswish", "mish", "mish_bwd", "silu", "silu_bwd")
WIDEST = 0.5


def ends_of(ball: Ball) -> tuple[Any, Any]:
    """The least and the largest that a value may be, which differ from it in float64 if they differ at all."""
    xp, mid, rad = module(ball.mid), ball.mid, ball.rad
    if mid.dtype == bool:
        return mid, mid ^ rad
    if ball.dtype == np.float64:
        rad = xp.where(rad > 0, xp.maximum(rad, abs(mid) * resolution(ball.dtype)), 0)
    return mid - rad, mid + rad


def distance(xp: Any, a: Any, b: Any) -> Any:
    """How far apart values are; bool: whether they differ. Equal infinities, and NaN, are where they are."""
    if b.dtype == bool:
        return a != b
    apart = abs(a - b)
    return apart if tame(apart) else xp.where((a == b) | ((a != a) & (b != b)), 0, apart)


def tame(size: Any, top: float = math.inf) -> bool:
    """Whether all sizes are below a limit, and none is NaN."""
    return not size.size or bool(size.max() < top)


def rounded(name: str, mid: Any, moved: Any, mids: Any, attrs: dict[str, Any], dtype: Any) -> Ball:
    """The result of an elementwise op, moved by the errors of its operands, with its own."""
    xp, bound, rad, size = module(mid), accuracy.BOUNDS[name], moved, abs(mid)
    if bound == 0.5 and dtype != np.float64:  # the nearest number, in float64 too
        own: Any = xp.maximum(size, smallest(dtype))
        own *= bound * resolution(dtype)
    elif bound:
        own = accuracy.unit(xp, name, accuracy.SIZES, size, mids, attrs, dtype)
        own += accuracy.unit(xp, name, accuracy.NUMPY_SIZES, size, mids, attrs, np.dtype("float64"))
        own *= bound
    if bound:
        own += rad
        rad = own if tame(size) else xp.where(xp.isfinite(mid), own, moved)
    return within(Ball(mid, rad, dtype), size)


def within(ball: Ball, size: Any) -> Ball:
    """What is beyond the numbers of a type is infinite; what may be, unknown. size: its absolute values."""
    xp, mid, rad, top = module(ball.mid), ball.mid, ball.rad, largest(ball.dtype)
    if ball.dtype != np.float64 and not tame(size, top / 2):
        rad = xp.where(size - rad > top, 0, xp.where(size + rad > top, math.inf, rad))
        mid = xp.where((size > top) & (rad == 0), xp.copysign(math.inf, mid), mid)
    return Ball(mid, rad, ball.dtype)


@functools.cache
def resolution(dtype: Any) -> float:
    """The distance of 1 from the next number of a floating dtype."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


@functools.cache
def largest(dtype: Any) -> float:
    """The largest number of a floating dtype."""
    return float.fromhex("0x1.fep127") if dtype.name == "bfloat16" else float(np.finfo(dtype).max)


@functools.cache
def smallest(dtype: Any) -> float:
    """The smallest normal number of a floating dtype."""
    return 2.0**-126 if dtype.name == "bfloat16" else float(np.finfo(dtype).tiny)


def stored(ball: Ball, dtype: Any) -> Ball:
    """Rounded once more, to the type of an array."""
    if dtype.kind not in "fV" or dtype.itemsize >= ball.dtype.itemsize:
        return ball
    xp, size = module(ball.mid), abs(ball.mid)
    unit = resolution(dtype) / 2 * xp.fmax(size + ball.rad, smallest(dtype))
    return within(Ball(ball.mid, xp.where(xp.isfinite(size), ball.rad + unit, ball.rad), dtype), size)


# --- sums and products --------------------------------------------------------------------------------------------


def run_length(n: int, dtype: Any) -> int:
    """How many additions in their own type n elements go through, at most, where compiled code adds them up.

    Runs are added up in float64, which for elements of that type is their own.
    """
    return min(n, ROW * int(dtype.itemsize) // STRANDS + (n // MERGED if dtype == np.float64 else 0))


def added(mid: Any, rad: Any, size: Any, length: float, dtype: Any) -> Ball:
    """A sum of terms whose absolute values add up to `size`, in runs of a length; unknown where some may overflow."""
    xp, unit, whole = module(mid), resolution(dtype) / 2 * (1 + (dtype == np.float64)), abs(mid)
    own = length * unit * size
    own += unit * xp.fmax(whole, smallest(dtype))
    own += rad
    if not tame(size, largest(dtype)):
        own = xp.where(size < largest(dtype), own, math.inf)
    return within(Ball(mid, own, dtype), whole)


def total(x: Ball, axis: Sequence[int], keepdims: bool = True, length: int | None = None) -> Ball:
    """The sum over axes."""
    axis = tuple(axis)
    n = math.prod(x.shape[i] for i in axis)
    mid, size = (twin("sum", module(x.mid))(a, axis=axis, keepdims=keepdims) for a in (x.mid, abs(x.mid)))
    rad = 0.0 if type(x.rad) is float else x.rad.sum(axis, keepdims=keepdims)
    if length is None:
        length = run_length(n, x.dtype) if module(mid) is np else min(n, ROW)
    return added(mid, rad, size, length, x.dtype)


def largest_of(x: Ball, axis: Sequence[int], keepdims: bool = True) -> Ball:
    """The maximum over axes."""
    return x.mapped(lambda a: a.max(tuple(axis), keepdims=keepdims))


def product(x: Ball, y: Ball, length: int | None = None) -> Ball:
    """A matrix product, its terms bounded by Cauchy's inequality: a row's length times a column's."""
    xp = module(x.mid)
    terms = x.shape[-1] if length is None else length
    relative = terms + (2 * FACTORS[get_matmul_precision()] / 2**-24 if xp is not np and x.dtype == np.float32 else 0)

    def norms(a: Any, b: Any) -> Any:
        return (
            xp.sqrt(xp.einsum("...ij,...ij->...i", a, a))[..., None]
            * xp.sqrt(xp.einsum("...ij,...ij->...j", b, b))[..., None, :]
        )

    rad: Any = 0.0
    for a, b in ((x.mid, y.rad), (x.rad, y.mid), (x.rad, y.rad)):
        if type(a) is not float and type(b) is not float:
            rad = rad + norms(a, b)
    return added(twin("matmul", xp)(x.mid, y.mid), rad, norms(x.mid, y.mid), relative, x.dtype)


# --- what row kernels compute -------------------------------------------------------------------------------------


def exp(x: Ball) -> Ball:
    """The exponential."""
    return elementwise("exp", x)


def log(x: Ball) -> Ball:
    """The natural logarithm."""
    return elementwise("log", x)


def anchor(x: Ball) -> Any:
    """The largest value of each row, 0 where it is infinite: any number would do, as long as nothing overflows."""
    xp, top = module(x.mid), x.mid.max(-1, keepdims=True)
    return Ball(xp.where(xp.isfinite(top), top, 0), 0.0, x.dtype)


def softmax(x: Ball, axis: int) -> Ball:
    """As kernels/host/rows.h has it: shares of exponentials below the largest."""
    e = exp(x - largest_of(x, (axis,)))
    return e / total(e, (axis,))


def log_softmax(x: Ball, axis: int) -> Ball:
    """Logits less the logarithm of the sum of their exponentials."""
    z = x - largest_of(x, (axis,))
    return z - log(total(exp(z), (axis,)))


def softmax_bwd(t: Ball, y: Ball, axis: int) -> Ball:
    """y (t - sum t y)."""
    g = t * y
    return g - y * total(g, (axis,))


def log_softmax_bwd(t: Ball, y: Ball, axis: int) -> Ball:
    """t - exp(y) sum t."""
    return t - exp(y) * total(t, (axis,))


class Rows:
    """Cross-entropy: logits, where the labels are, and which rows count."""

    def __init__(self, x: Ball, labels: Ball, ignore_index: int) -> None:
        self.x, self.valid = x, labels.mid != ignore_index
        rows = np.arange(len(x.mid))
        self.hits = np.zeros(x.shape)
        self.hits[rows[self.valid], labels.mid[self.valid]] = 1
        self.own = x.mid[rows, np.where(self.valid, labels.mid, 0)]

    def chosen(self, x: Ball) -> Ball:
        """0 in the rows that are ignored."""
        valid = self.valid.reshape(-1, *[1] * (x.ndim - 1))
        return Ball(np.where(valid, x.mid, 0), np.where(valid, x.rad, 0), x.dtype)

    def forward(self) -> tuple[Ball, Ball, Ball, Ball]:
        """(losses, log-sum-exps, exponentials, their sums)."""
        top = anchor(self.x)
        e = exp(self.x - top)
        s = total(e, (1,))
        logs, top = log(s.to("float64")).mapped(lambda a: a[:, 0]), top.to("float64").mapped(lambda a: a[:, 0])
        loss = logs + (top - Ball(self.own, 0.0, np.dtype("float64")))
        return self.chosen(stored(loss, self.x.dtype)), logs + top, e, s

    def slope(self, shares: Ball, t: Any) -> Ball:
        """The gradient: t times the shares, without the label."""
        return self.chosen(shares - t * Ball(self.hits, 0.0, t.dtype))


def softmax_xent(x: Ball, labels: Ball, weight: None, ignore_index: int, smoothing: float) -> tuple[Ball, Ball]:
    """(losses, log-sum-exps)."""
    return Rows(x, labels, ignore_index).forward()[:2]


def softmax_xent_bwd(
    t: Ball, x: Ball, labels: Ball, weight: None, lse: Ball, ignore_index: int, smoothing: float, reuse: bool = False
) -> Ball:
    """The gradient, by given log-sum-exps."""
    near = Ball(lse.mid.astype(x.dtype).astype("float64")[:, None], 0.0, x.dtype)
    gap = exp(Ball(near.mid - lse.mid[:, None], 0.0, np.dtype("float64"))).to(x.dtype)
    t = t.mapped(lambda a: a[:, None])
    return Rows(x, labels, ignore_index).slope(exp(x - near) * (t * gap), t)


def both(t: Ball, x: Ball, labels: Ball, weight: None, ignore_index: int, smoothing: float) -> tuple[Ball, Ball, Ball]:
    """(losses, log-sum-exps, gradient)."""
    rows, t = Rows(x, labels, ignore_index), t.mapped(lambda a: a[:, None])
    loss, lse, e, s = rows.forward()
    return loss, lse, rows.slope(e * (t / s), t)


def moments(x: Ball, axis: tuple[int, ...], eps: float, centred: bool = True) -> tuple[Ball, Ball, Ball, Ball]:
    """(x - mean, mean, variance, rstd). What the mean is off moves the variance by its square alone."""
    n = math.prod(x.shape[i] for i in axis)
    if centred:
        sums = total(x, axis)
        mean = sums / float(n)
        d = x - mean
    else:
        mean, d = Ball(np.zeros(1), 0.0, x.dtype), x
    square = np.square(d.mid).mean(axis, keepdims=True)
    relative = resolution(x.dtype) / 2 * (1 + (x.dtype == np.float64)) * (run_length(n, x.dtype) + 6)
    var = Ball(square, square * relative + np.square(mean.rad) + smallest(x.dtype) * resolution(x.dtype), x.dtype)
    return d, mean, var, elementwise("reciprocal", elementwise("sqrt", var + eps))


def weighted(x: Ball, w: Any, b: Any) -> Ball:
    """w x + b, where there are such."""
    x = x if w is None else x * w
    return x if b is None else x + b


def layer_norm(x: Ball, w: Any, b: Any, axis: tuple[int, ...], eps: float, centred: bool) -> tuple[Any, ...]:
    """(y, (mean or None, rstd))."""
    d, mean, _, rstd = moments(x, axis, eps, centred)
    return weighted(d * rstd, w, b), (mean if centred else None, rstd)


def batch_norm(x: Ball, w: Any, b: Any, axis: tuple[int, ...], eps: float) -> tuple[Any, ...]:
    """((y, mean, variance), (mean, rstd))."""
    d, mean, var, rstd = moments(x, axis, eps)
    return (weighted(d * (rstd if w is None else rstd * w), None, b), mean, var), (mean, rstd)


def norm_bwd(
    t: Ball, x: Ball, w: Any, mean: Any, rstd: Ball, more: Any = None, *, axis: tuple[int, ...], eps: float,
    centred: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """(dx + more, dw, db), the last two None without weight, by given statistics."""
    xhat, u = (x - mean if centred else x) * rstd, t if w is None else t * w
    n = float(math.prod(x.shape[i] for i in axis))
    along = xhat * (total(u * xhat, axis) / n)
    dx = (u - (along + total(u, axis) / n if centred else along)) * rstd
    dw = db = None
    if w is not None:
        over = folds(x.shape, w.shape)
        dw, db = (total(g, over).mapped(lambda a: a.reshape(w.shape)) for g in (t * xhat, t))
    return dx if more is None else dx + more, dw, db


# --- attention ----------------------------------------------------------------------------------------------------


def grouped(x: Ball, groups: int) -> Ball:
    """(B, H, ...) as (B, groups, H / groups, ...): query heads by the keys that they read."""
    return x.mapped(lambda a: a.reshape(len(a), groups, a.shape[1] // max(1, groups), *a.shape[2:]))


def turned(x: Ball) -> Ball:
    """The last two axes exchanged."""
    return x.mapped(lambda a: a.swapaxes(-1, -2))


def hidden(s: Ball, seen: Any) -> Ball:
    """Scores that do not count at -inf."""
    return Ball(np.where(seen, s.mid, -math.inf), np.where(seen, s.rad, 0), s.dtype)


def scores(q: Ball, k: Ball, mask: Any, causal: bool) -> Ball:
    """q k' + mask, of grouped and scaled queries and grouped keys."""
    s = product(q, turned(k))
    if mask is not None:
        own = grouped(mask, 1 if mask.shape[1] == 1 else k.shape[1])
        s = hidden(s, own.mid) if own.dtype == bool else s + own
    return hidden(s, np.arange(k.shape[3]) <= np.arange(q.shape[3])[:, None]) if causal else s


def attention(q: Ball, k: Ball, v: Ball, mask: Any, causal: bool, scale: float) -> tuple[Ball, ...]:
    """(out, log-sum-exps of the scores)."""
    out, lse = (*q.shape[:3], v.shape[3]), q.shape[:3]
    q, k, v = (grouped(a, k.shape[1]) for a in (q, k, v))
    s = scores(q * scale, k, mask, causal)
    top = anchor(s)
    e = exp(s - top)
    sums = total(e, (4,))
    seen, logs = sums.mid > 0, top + log(sums)  # a query that sees no key has 0, and -inf
    by = Ball(np.where(seen, sums.mid, 1), sums.rad, sums.dtype)
    logs = Ball(logs.mid, np.where(seen, logs.rad, 0), logs.dtype)
    return reshape(product(e, v) / by, out), reshape(logs, lse)


def attention_bwd(
    t: Ball, q: Ball, k: Ball, v: Ball, mask: Any, out: Ball, lse: Ball, causal: bool, scale: float
) -> tuple[Ball, ...]:
    """(dq, dk, dv), by what the forward gave."""
    shapes, groups = (q.shape, k.shape, v.shape), k.shape[1]
    t, q, k, v, out, lse = (grouped(a, groups) for a in (t, q, k, v, out, lse))
    q = q * scale
    near = Ball(np.where(np.isneginf(lse.mid), 0, lse.mid)[..., None], 0.0, q.dtype)
    p = exp(scores(q, k, mask, causal) - near)
    ds = (product(t, turned(v)) - total(t * out, (4,))) * p
    terms = math.prod(q.shape[2:4])
    dv, dk = (total(product(turned(a), b, terms), (2,), length=0) for a, b in ((p, t), (ds, q)))
    return tuple(map(reshape, (product(ds, k) * scale, dk, dv), shapes))


# --- images -------------------------------------------------------------------------------------------------------


def linear_in_each(name: str, length: Callable[..., float]) -> Callable[..., Ball]:
    """An op that multiplies and adds up: its terms are what it gives for absolute values. length: of its sums."""

    def run(*operands: Ball, **attrs: Any) -> Ball:
        f, dtype = twin(name, np), operands[0].dtype
        mid = f(*(b.mid for b in operands), **attrs)
        size = f(*(abs(b.mid).astype(dtype) for b in operands), **attrs).astype("float64")
        return added(mid, 0.0, size, length(*operands, **attrs), dtype)

    return run


def of_kernel(t: Ball, x: Ball, **_: Any) -> float:
    """Vectors of images are added up side by side, what is left of a row of windows by itself."""
    n, images = int(min(t.size // max(1, t.shape[1]), PIECE)), len(t.mid)
    return n * int(t.dtype.itemsize) / STRANDS if images % STRANDS == 0 else n


def max_pool2d(x: Ball, **attrs: Any) -> Ball:
    """The largest of every window, which no rounding changes."""
    return x.mapped(lambda a: twin("max_pool2d", np)(a, **attrs))


def max_pool2d_bwd(t: Ball, x: Ball, y: Ball, **attrs: Any) -> Ball:
    """Sums over the windows on a pixel."""
    f = twin("max_pool2d_bwd", np)
    mid, size = (f(a, x.mid, y.mid, **attrs) for a in (t.mid, abs(t.mid)))
    return added(mid, 0.0, size, math.prod(attrs["kernel"]), t.dtype)


# --- what pieces stand for ------------------------------------------------------------------------------------------


class Functions:
    """`F` of rules, for Balls."""

    def __getattr__(self, name: str) -> Any:
        return functools.partial(elementwise, name)

    sum = staticmethod(total)


F = Functions()


def affine(x: Ball, w: Ball, b: Ball) -> Ball:
    """x w' + b."""
    return product(x, turned(w)) + b


def bias_act(x: Ball, b: Ball, kind: str) -> Ball:
    """The activation of x + b."""
    return AFTER_BIAS[kind][0](F, x + b)  # type: ignore[no-any-return]


def reshape(x: Ball, shape: tuple[int, ...]) -> Ball:
    """Another shape."""
    return x.mapped(lambda a: a.reshape(shape))


FORMULAS: dict[str, Callable[..., Any]] = {
    "affine": affine, "attention": attention, "attention_bwd": attention_bwd, "batch_norm": batch_norm,
    "bias_act": bias_act, "bias_act_bwd": functools.partial(bias_act_back, F), "bias_act_out": bias_act,
    "conv2d": linear_in_each("conv2d", lambda x, w, **_: math.prod(w.shape[1:])),
    "conv2d_input": linear_in_each("conv2d_input", lambda t, w, **_: math.prod(w.shape[2:]) * w.shape[0]),
    "conv2d_weight": linear_in_each("conv2d_weight", of_kernel), "group_norm_bwd": norm_bwd, "layer_norm": layer_norm,
    "layer_norm_bwd": norm_bwd, "log_softmax": log_softmax, "log_softmax_bwd": log_softmax_bwd, "matmul": product,
    "max_pool2d": max_pool2d, "max_pool2d_bwd": max_pool2d_bwd, "reshape": reshape, "softmax": softmax,
    "softmax_bwd": softmax_bwd, "softmax_xent": softmax_xent, "softmax_xent_bwd": softmax_xent_bwd, BOTH: both,
    "sum": lambda x, axis, keepdims, dtype=None: total(x, axis, keepdims),
    "mean": lambda x, axis, keepdims: total(x, axis, keepdims) / float(math.prod(x.shape[i] for i in axis)),
    "max": lambda x, axis, keepdims: largest_of(x, axis, keepdims),
}  # fmt: skip


# --- optimisers -----------------------------------------------------------------------------------------------------


class Place(Ball):
    """A Ball that the NumPy code of an update writes to."""

    __slots__ = ()

    def __init__(self, mid: Any, rad: Any, dtype: Any) -> None:
        super().__init__(mid, rad, dtype)

    def __getitem__(self, at: Any) -> Place:
        return Place(self.mid[at], self.rad[at], self.dtype)

    def __setitem__(self, at: Any, ball: Ball) -> None:
        self.mid[at], self.rad[at] = ball.mid, ball.rad

    def reshape(self, shape: tuple[int, ...]) -> Place:
        return Place(self.mid.reshape(shape), self.rad.reshape(shape), self.dtype)


class Updating:
    """NumPy for the code of updates: its functions on Places; coefficients may be off by a unit."""

    def empty(self, n: int, dtype: Any) -> Place:
        """Scratch memory."""
        return Place(np.empty(n), np.zeros(n), dtype)

    def __getattr__(self, name: str) -> Any:
        def run(*args: Any, out: Any = None) -> Any:
            places = [a for a in args if isinstance(a, Ball)]
            if not places:
                return getattr(np, name)(*args)
            made = elementwise(name, *(self.coefficient(a, places[0].dtype) for a in args))
            if out is None:
                return made
            out[...] = made
            return out

        return run

    @staticmethod
    def coefficient(a: Any, dtype: Any) -> Any:
        """What an update formed in float64 and rounded, perhaps to the next number."""
        if not isinstance(a, np.generic):
            return a
        value = np.float64(a)
        return Ball(value, abs(value) * resolution(dtype), dtype)


def update(op: str, args: Sequence[Any], attrs: dict[str, Any]) -> list[Any]:
    """The arguments of an update after it: lists of Balls, other arrays as they are then."""
    written = TABLE[op].call.written  # type: ignore[attr-defined]
    skip = args[written + 2] if len(args) == written + 3 else None

    def place(a: Any) -> Any:
        return None if a is None else Place(a.astype("float64"), np.zeros(a.shape), a.dtype)

    after = [[place(a) for a in x] if isinstance(x, list) else x if x is None else x.copy() for x in args]
    if skip is None or not skip:
        TABLE[op].fwd(Updating(), *after[: written + 2], **attrs)
    return after


# --- verdicts -------------------------------------------------------------------------------------------------------


def judge(got: Any, ball: Ball) -> tuple[int, int]:
    """(elements that are further off than their bounds, elements that nothing can be said of)."""
    xp, ball = module(got), stored(ball, got.dtype)
    mid, rad = ball.mid.reshape(got.shape), ball.rad
    rad = rad if type(rad) is float else xp.broadcast_to(rad, ball.mid.shape).reshape(got.shape)
    if mid.dtype.kind != "f":
        return int(((got != mid) & ~xp.asarray(rad, bool)).sum()), int(xp.asarray(rad, bool).sum())
    off = distance(xp, got.astype("float64"), mid)
    near, known = xp.asarray(off <= rad), xp.asarray(rad < math.inf)
    if bool(near.all() & known.all()):
        return 0, 0
    known = xp.broadcast_to(known, got.shape)
    return int((known & ~near).sum()), int((~known).sum())


def total_of(found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Verdicts together."""
    return sum(f[0] for f in found), sum(f[1] for f in found)


def chain(c: Chain, outs: Sequence[Any], ins: Sequence[Any]) -> tuple[int, int]:
    """The verdict on a chain's results; piece by piece on NumPy, where pieces stay in the cache."""
    if c.order:
        c, outs, ins = c.unordered(outs, ins)
    xp, shape, many = module(outs[0]), common_shape(c, ins), len(c.outputs)
    if 0 in shape:
        return 0, 0
    real = next(d for d in c.dtypes([a.dtype for a in ins]) if d.kind in "fV")
    drops: list[Any] = [(dict(s.attrs), s.operands[1]) for s in c.steps if s.op == DROPOUT]
    factors = [float(drop_factor(attrs["p"], real)) for attrs, _ in drops]
    masks = [chances(xp, ins[k], attrs["key"], math.prod(shape), 1.0 - attrs["p"]).reshape(shape) for attrs, k in drops]
    wholes = [xp.empty(shape) for _ in range(2 * len(c.ends))]
    given = [*outs[:many], *ins, *masks, *wholes]

    def piece(arrays: Sequence[Any]) -> tuple[int, int]:
        own = iter(arrays)
        got, mine, drawn = ([next(own) for _ in part] for part in (c.outputs, ins, masks))
        with np.errstate(all="ignore"):
            kept = [Ball(mask * factor, 0.0, working(real)) for mask, factor in zip(drawn, factors)]
            found, ends = values_of(c, [exact(a) for a in mine], iter(kept))
            for end in ends:
                next(own)[...], next(own)[...] = end.mid, end.rad
            return total_of(list(map(judge, got, found)))

    verdicts: list[tuple[int, int]] = []
    pieces = tiles(shape, given, NEAR if xp is np else FAR)
    share(lambda p: verdicts.append(piece(p)), pieces, math.prod(shape) if xp is np else 0)
    for k, (end, out) in enumerate(zip(c.ends, outs[many:])):
        whole = Ball(wholes[2 * k], wholes[2 * k + 1], working(real))
        axes = tuple(range(len(shape) - end.axes, len(shape)))
        verdicts.append(judge(out, FORMULAS[end.op](whole, axis=axes, keepdims=False)))
    return total_of(verdicts)


def values_of(c: Chain, balls: list[Any], kept: Iterator[Ball]) -> tuple[list[Ball], list[Ball]]:
    """(what a chain computes, what its ends reduce)."""
    values, last = list(balls), c.last_uses()
    for i, step in enumerate(c.steps):
        operands: list[Any] = [
            values[o] if type(o) is int else o.value if isinstance(o, Const) else None for o in step.operands
        ]
        if step.op == DROPOUT:
            values.append(operands[0] * next(kept))
        else:
            values.append(elementwise(step.op, *operands, **dict(step.attrs)))
        for o in step.operands:
            if type(o) is int and last[o] == i:
                values[o] = None
    return [values[o] for o in c.outputs], [values[e.operand] for e in c.ends]


def routine(op: str, got: Sequence[Any], args: Sequence[Any], attrs: dict[str, Any]) -> tuple[int, int]:
    """The verdict on what stands for one op of the table.

    got: its results, or of an update its arguments, without their nesting, None where there is none.
    """
    cut = BY_ROWS.get(op, ())
    rows = len(args[0]) if cut else 1
    elements = max(a.size for a in (*got, args[0]) if a is not None) if rows > 1 else 0
    if "attention" in op:
        q, k = args[1:3] if op.endswith("bwd") else args[:2]
        elements = q.size // max(1, q.shape[3]) * k.shape[2]
    step = max(1, NEAR * rows // max(1, elements))
    if step >= rows:
        return routine_piece(op, got, args, attrs)
    verdicts: list[tuple[int, int]] = []
    cut = tuple(i for i in cut if args[i] is not None and len(args[i]) > 1)
    whole = [None if i in cut else exact(a) for i, a in enumerate(args)]

    def piece(at: slice) -> None:
        own = [a[at] if i in cut else whole[i] for i, a in enumerate(args)]
        verdicts.append(routine_piece(op, [a if a is None else a[at] for a in got], own, attrs))

    share(piece, [slice(i, i + step) for i in range(0, rows, step)], elements)
    return total_of(verdicts)


# Of these every row of the results is made of a row of some arguments, and all of the others.
BY_ROWS: dict[str, tuple[int, ...]] = {
    "attention": (0, 1, 2, 3), "attention_bwd": (0, 1, 2, 3, 4, 5, 6), "layer_norm": (0,), "log_softmax": (0,),
    "log_softmax_bwd": (0, 1), "matmul": (0,), "softmax": (0,), "softmax_bwd": (0, 1), "softmax_xent": (0, 1),
    BOTH: (0, 1, 2),
}  # fmt: skip


def routine_piece(op: str, got: Sequence[Any], args: Sequence[Any], attrs: dict[str, Any]) -> tuple[int, int]:
    """The same of some rows."""
    with np.errstate(all="ignore"):
        if op in FORMULAS:
            found = FORMULAS[op](*map(exact, args), **attrs)
        elif TABLE[op].kind == "update":
            found = update(op, args, attrs)
        else:
            found = elementwise(op, *map(exact, args), **attrs)
        pairs = [(g, b) for g, b in zip(got, leaves(found)) if g is not None and b is not None]
        return total_of([judge(g, b if isinstance(b, Ball) else close(b)) for g, b in pairs])


def close(a: Any) -> Ball:
    """Counts and products of factors that an update keeps in float64."""
    return Ball(a, 0.0 if a.dtype.kind != "f" else abs(a) * 8 * resolution(a.dtype), a.dtype)


def leaves(found: Any) -> Iterator[Any]:
    """What nested lists and tuples hold."""
    if isinstance(found, (list, tuple)):
        for f in found:
            yield from leaves(f)
    else:
        yield found


# Pieces without a bound of their own: the units in the last place that they are given instead, and why.
UNPUBLISHED = {
    "gelu": (512, "cuBLASLt does not say how close its tanh is"), "gelu_bwd": (512, "as gelu"),
}  # fmt: skip


def joined(calls: Sequence[Call], got: dict[int, Any], known: dict[int, Any]) -> tuple[int, int]:
    """The verdict on a product with an epilogue, calls one after the other; got and known: arrays by slot."""
    values: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for c in calls:
            args = [mapped(lambda i: values[i] if i in values else exact(known[i]), a) for a in c.args]
            if c.op == "sum":
                made = total(args[0], c.attrs["axis"], c.attrs["keepdims"], length=math.prod(args[0].shape))
            else:
                made = FORMULAS.get(c.op, functools.partial(elementwise, c.op))(*args, **c.attrs)
            if c.op in UNPUBLISHED:
                xp, mids = module(made.mid), [a.mid for a in args]
                unit = accuracy.unit(xp, c.op, accuracy.NUMPY_SIZES, made.mid, mids, c.attrs, made.dtype)
                made = Ball(made.mid, made.rad + UNPUBLISHED[c.op][0] * unit, made.dtype)
            values[c.outs] = stored(made, got[c.outs].dtype).to(made.dtype) if c.outs in got else made
        return total_of([judge(a, values[m]) for m, a in got.items() if m in values])
