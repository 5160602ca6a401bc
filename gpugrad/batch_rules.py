"""How each op runs on a whole batch: rules for `vmap`.

Most ops move their axis arguments up by one, or take the batch as a part of an axis that is a batch already. A rule
gets the call and the attributes, and returns the output with its batch axis first, or NotImplemented.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpugrad import backends
from gpugrad.errors import ShapeError, fail
from gpugrad.interpret import apply
from gpugrad.layered import Layered
from gpugrad.op import RAW
from gpugrad.ops.activation import AFTER_BIAS

F: Any = RAW[Layered]  # serves arrays of any level, and plain ones
ARRAY, FULL = "array", slice(None)  # in an index, see ops/index.py


class Call:
    """An op's arguments as a rule sees them: `xs` with the batch axis first where `on`, and `args` as they came."""

    def __init__(self, level: Any, op: Any, args: tuple[Any, ...], xs: list[Any], on: list[bool]) -> None:
        self.level, self.op, self.args, self.xs, self.on, self.size = level, op, args, xs, on, level.size

    def __call__(self, *xs: Any, **attrs: Any) -> Any:
        """The op on whole arrays, without an auxiliary output."""
        out = apply(self.op, *xs, **attrs)
        return out[0] if self.op.aux else out

    def ndim(self, i: int) -> int:
        """Axes of one example of argument i; 0 for a number."""
        return getattr(self.xs[i], "ndim", 0) - self.on[i]

    def full(self, i: int) -> Any:
        """Argument i with a batch axis in any case."""
        x = self.xs[i]
        if self.on[i] or not hasattr(x, "shape"):
            return x
        return F.broadcast_to(x, shape=(self.size, *x.shape))

    def padded(self, i: int, ndim: int) -> Any:
        """Argument i with axes of length 1 after the batch axis, up to `ndim` for one example: it broadcasts."""
        x, lack = self.xs[i], ndim - self.ndim(i)
        return F.reshape(x, shape=(x.shape[0], *(1,) * lack, *x.shape[1:])) if self.on[i] and lack > 0 else x

    def together(self) -> list[Any]:
        """All arguments, so that they broadcast against each other as one example's do."""
        ndim = max(self.ndim(i) for i in range(len(self.xs)))
        return [self.padded(i, ndim) for i in range(len(self.xs))]

    def numbers(self) -> Any:
        """0 to size-1, on the device of the arguments."""
        like = next(x for x, on in zip(self.xs, self.on) if on)
        backend = backends.of(like)
        with backend.scope(backend.device_of(like)):
            return backend.xp.arange(self.size)


def looped(c: Call, **attrs: Any) -> Any:
    """One example after another. Raises ShapeError where their results cannot be stacked."""
    rows = [c(*[F.getitem(x, index=(i,)) if on else x for x, on in zip(c.xs, c.on)], **attrs) for i in range(c.size)]
    several = c.op.nout > 1
    outs = list(zip(*rows)) if several else [tuple(rows)]
    if any(len({o.shape for o in out}) > 1 for out in outs):
        raise fail(
            ShapeError, c.op.name, "the results have a shape of their own for each example; vmap cannot stack them"
        )
    stacked = tuple([F.stack(*out, axis=0) for out in outs])
    return stacked if several else stacked[0]


def elementwise(c: Call, **attrs: Any) -> Any:
    """Broadcast as one example's arguments are; backward ops take arguments of one shape."""
    xs = [c.full(i) for i in range(len(c.xs))] if c.op.name.endswith("_bwd") else c.together()
    return c(*xs, **attrs)


def straight(c: Call, **attrs: Any) -> Any:
    """Ops that take leading axes as they come: each element or the last axes of each array."""
    return c(*c.xs, **attrs) if len(c.xs) == 1 else NotImplemented


def first_only(c: Call, **attrs: Any) -> Any:
    """Ops that take leading axes as they come in their first argument, with the others shared."""
    return NotImplemented if any(c.on[1:]) else c(*c.xs, **attrs)


def last_only(c: Call, **attrs: Any) -> Any:
    """The same for the last argument."""
    return NotImplemented if any(c.on[:-1]) else c(*c.xs, **attrs)


def up(axis: Any) -> Any:
    """An axis argument, counted with the batch axis."""
    return tuple(a + 1 for a in axis) if isinstance(axis, tuple) else axis + 1


def along(c: Call, *, axis: Any, **attrs: Any) -> Any:
    """Ops that work along axes, on arguments of one shape."""
    return c(*[c.full(i) for i in range(len(c.xs))], axis=up(axis), **attrs)


def weighted(c: Call, *, axis: Any, **attrs: Any) -> Any:
    """The same with shared weights."""
    return NotImplemented if any(c.on[1:]) else c(*c.xs, axis=up(axis), **attrs)


def arg_extreme(c: Call, *, axis: Any, keepdims: bool) -> Any:
    """argmax and argmin, also of the flattened array."""
    x = c.xs[0]
    if axis is not None:
        return c(x, axis=axis + 1, keepdims=keepdims)
    flat = c(F.reshape(x, shape=(c.size, math.prod(x.shape[1:]))), axis=1, keepdims=False)
    return F.reshape(flat, shape=(c.size, *(1,) * (x.ndim - 1))) if keepdims else flat


def shaped(c: Call, *, shape: Any, **attrs: Any) -> Any:
    """Ops that name the shape of their result."""
    return c(*[c.padded(i, len(shape)) if c.op.name == "broadcast_to" else x for i, x in enumerate(c.xs)],
             shape=(c.size, *shape), **attrs)  # fmt: skip


def transpose(c: Call, *, axes: Any) -> Any:
    """The batch axis stays first."""
    return c(*c.xs, axes=(0, *up(axes)))


def getitem(c: Call, *, index: Any, **attrs: Any) -> Any:
    """All examples at the index."""
    if "shape" in attrs:
        attrs["shape"] = (c.size, *attrs["shape"])
    return c(*c.xs, index=(FULL, *index), **attrs)


def diagonal(c: Call, *, axis1: int, axis2: int, **attrs: Any) -> Any:
    """`diagonal` and its transpose."""
    if "shape" in attrs:
        attrs["shape"] = (c.size, *attrs["shape"])
    return c(*c.xs, axis1=axis1 + 1, axis2=axis2 + 1, **attrs)


def in_place(index: Any) -> bool:
    """Whether NumPy leaves the axes of array indices where they were: they, and integers, are neighbours."""
    places = [i for i, entry in enumerate(index) if isinstance(entry, (str, int))]
    return places == list(range(places[0], places[-1] + 1))


def aligned(c: Call, first: int) -> tuple[list[Any], int]:
    """Index arrays from argument `first` on, broadcasting against each other; their axes for one example."""
    ndim = max(c.ndim(i) for i in range(first, len(c.xs)))
    return [c.padded(i, ndim) for i in range(first, len(c.xs))], ndim


def gather(c: Call, *, index: Any, distinct: bool) -> Any:
    """Shared index arrays: one more whole axis. Arrays of the first axes: the example's number is one more of them."""
    x, ids = c.xs[0], c.xs[1:]
    if not any(c.on[1:]):
        return c(x, *ids, index=(FULL, *index), distinct=distinct) if in_place(index) else NotImplemented
    rest = index[len(ids) :]
    if any(isinstance(e, (str, int)) for e in rest) or any(a.dtype.kind == "b" for a in ids):
        return NotImplemented
    places, ndim = aligned(c, 1)
    if not c.on[0]:
        return c(x, *places, index=index, distinct=False)
    number = F.reshape(c.numbers(), shape=(c.size, *(1,) * ndim))
    return c(x, number, *places, index=(ARRAY, *index), distinct=distinct)


def positions(c: Call, *, index: Any, shape: Any) -> Any:
    """Arithmetic, where every axis has an array of integers."""
    simple = len(index) == len(c.xs) == len(shape) and all(a.dtype.kind != "b" for a in c.xs)
    return c(*aligned(c, 0)[0], index=index, shape=shape) if simple else NotImplemented


def scatter_rows(c: Call, *, rows: int, distinct: bool) -> Any:
    """Shared row numbers: the batch is one more axis of each row. Else every example has rows of its own."""
    (t, ids), n = c.xs, c.ndim(1)
    if not c.on[1]:
        out = c(F.transpose(t, axes=(*range(1, n + 1), 0, *range(n + 1, t.ndim))), ids, rows=rows, distinct=distinct)
        return F.transpose(out, axes=(1, 0, *range(2, out.ndim)))
    start = F.reshape(c.numbers() * rows, shape=(c.size, *(1,) * n))
    out = c(c.full(0), ids + start, rows=c.size * rows, distinct=distinct)
    return F.reshape(out, shape=(c.size, rows, *out.shape[1:]))


def matmul(c: Call) -> Any:
    """A 1-d operand becomes a row or a column, but for the examples themselves, which are the rows of a matrix."""
    if c.ndim(0) == 1 and not c.on[1] and c.ndim(1) == 2:
        return c(*c.xs)
    if c.ndim(1) == 1 and not c.on[0] and c.ndim(0) == 2:
        return c(c.xs[1], F.matrix_transpose(c.xs[0]))
    ends = c.ndim(0) == 1, c.ndim(1) == 1
    if not any(ends):
        return c(*c.together())
    x, y = c.xs
    x = F.reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1])) if ends[0] else x
    y = F.reshape(y, shape=(*y.shape, 1)) if ends[1] else y
    out = c(*Call(c.level, c.op, c.args, [x, y], c.on).together())
    kept = [n for n, gone in zip(out.shape[-2:], ends) if not gone]
    return F.reshape(out, shape=(*out.shape[:-2], *kept))


def affine(c: Call) -> Any:
    """One product where the weights are shared."""
    if not any(c.on[1:]):
        return c(*c.xs)
    x, weight, bias = c.args
    return F.matmul(x, F.matrix_transpose(weight)) + bias


def bias_act(c: Call, *, kind: str) -> Any:
    """One pass where the bias is shared."""
    x, bias = c.args
    return AFTER_BIAS[kind][0](F, x + bias) if c.on[1] else c(*c.xs, kind=kind)


def solve(c: Call) -> Any:
    """Stacks of matrices; a vector is a column."""
    x, y = c.xs
    if c.ndim(1) > 1:
        return c(*c.together())
    out = c(*Call(c.level, c.op, c.args, [x, F.reshape(y, shape=(*y.shape, 1))], c.on).together())
    return F.reshape(out, shape=out.shape[:-1])


def dropout(c: Call, **attrs: Any) -> Any:
    """One mask for all examples: draws are shared."""
    x, counter = c.args
    return x * c(F.ones_like(F.getitem(c.xs[0], index=(0,))), counter, **attrs) if c.on[0] else NotImplemented


def merged(*places: int) -> Any:
    """A rule that makes the batch a part of the first axis of these arguments; the others are shared."""

    def rule(c: Call, **attrs: Any) -> Any:
        if any(on and i not in places for i, on in enumerate(c.on)):
            return NotImplemented
        xs = [flat(c.full(i)) if i in places else x for i, x in enumerate(c.xs)]
        return unflat(c, c(*xs, **attrs))

    return rule


def attention(c: Call, **attrs: Any) -> Any:
    """More sequences, unless each has a mask of its own."""
    mask = c.xs[3]
    return merged(0, 1, 2)(c, **attrs) if mask is None or mask.shape[0] == 1 else NotImplemented


def flat(x: Any) -> Any:
    """The first two axes as one."""
    return F.reshape(x, shape=(x.shape[0] * x.shape[1], *x.shape[2:])) if hasattr(x, "shape") else x


def unflat(c: Call, out: Any) -> Any:
    """The first axis as two, the batch and the rest."""
    if isinstance(out, tuple):
        return tuple(unflat(c, o) for o in out)
    return F.reshape(out, shape=(c.size, out.shape[0] // c.size, *out.shape[1:]))


def channels(x: Any) -> Any:
    """(batch, N, C, ...) as (N, batch C, ...)."""
    x = F.transpose(x, axes=(1, 0, *range(2, x.ndim)))
    return F.reshape(x, shape=(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:]))


def conv(c: Call, *, groups: int, **attrs: Any) -> Any:
    """Shared weights: more images. Else the examples are groups of channels, each with weights of its own."""
    weight = c.op.name == "conv2d_weight"
    if not weight and not c.on[1]:
        return merged(0)(c, groups=groups, **attrs)
    x, y = c.full(0), c.full(1)
    out = c(channels(x), channels(y) if weight else flat(y), groups=groups * c.size, **attrs)
    if weight:
        return unflat(c, out)
    out = F.reshape(out, shape=(out.shape[0], c.size, out.shape[1] // c.size, *out.shape[2:]))
    return F.transpose(out, axes=(1, 0, *range(2, out.ndim)))


def xent(c: Call, **attrs: Any) -> Any:
    """Rows of all examples; class weights are shared."""
    rows = len(c.xs) - (2 if c.op.name == "softmax_xent_bwd" else 1)  # t, logits, labels; then weight and lse
    if any(c.on[rows:]):
        return NotImplemented
    flats = [flat(c.full(i)) for i in range(rows)]
    return unflat(c, c(*flats, c.xs[rows], *(None for _ in c.xs[rows + 1 :]), **attrs))


AXES = """all any count_nonzero cumulative_argmax cumulative_prod cumulative_sum flip linear_scan log_softmax
log_softmax_bwd logsumexp logsumexp_bwd max mean min norm prod shift softmax softmax_bwd std sum var argsort roll concat
stack"""
STRAIGHT = """alias assert_finite astype cholesky det eigh inv matrix_transpose one_hot ones_like qr slogdet svd
to_device tril triu zeros_like"""
POINTWISE = """bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor equal
floor_divide greater greater_equal isfinite isinf isnan less less_equal logical_and logical_not logical_or logical_xor
nextafter not_equal signbit"""
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(AXES.split(), along), **dict.fromkeys(STRAIGHT.split(), straight),
    **dict.fromkeys(POINTWISE.split(), elementwise),
    **dict.fromkeys(("argmax", "argmin"), arg_extreme), **dict.fromkeys(("reshape", "broadcast_to"), shaped),
    **dict.fromkeys(("getitem", "unslice"), getitem), **dict.fromkeys(("diagonal", "undiagonal"), diagonal),
    **dict.fromkeys(("conv2d", "conv2d_input", "conv2d_weight"), conv),
    **dict.fromkeys(("bias_act", "bias_act_out"), bias_act),
    **dict.fromkeys(("softmax_xent", "softmax_xent_bwd"), xent),
    **dict.fromkeys(("avg_pool2d", "avg_pool2d_bwd", "adaptive_avg_pool2d", "adaptive_avg_pool2d_bwd"), merged(0)),
    **dict.fromkeys(("max_pool2d", "group_norm", "xent_targets"), merged(0)),
    **dict.fromkeys(("max_pool2d_bwd", "max_pool2d_pick"), merged(0, 1, 2)),
    "attention": attention, "transpose": transpose, "gather": gather, "scatter_rows": scatter_rows,
    "positions": positions, "matmul": matmul,
    "affine": affine, "solve": solve, "dropout": dropout, "layer_norm": weighted, "rotary": first_only,
    "embedding": last_only, "searchsorted": last_only,
}  # fmt: skip
