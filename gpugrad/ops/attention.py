"""Scaled dot-product attention, and rotary position embedding.

For queries q, keys k and values v of one head, with scores S = scale q k' + mask,

    lse_i = log sum_j exp(S_ij)      P = exp(S - lse)      out = P v

    dv = P' t      dP = t v'      dS = P (dP - rowsum(t out))      dq = scale dS k      dk = scale dS' q

Only out and lse are kept for the gradient, which computes P again (Dao et al., 2022). On the CPU both directions work
on tiles of queries, so the scores never exist as a whole. A query that may see no key gets zeros, and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from gpugrad.backends.blas import single
from gpugrad.backends.threads import portion, share
from gpugrad.define import general, nondiff
from gpugrad.dtypes import is_float
from gpugrad.errors import DomainError, DTypeError, ShapeError, describe, fail
from gpugrad.launch import attention as launch
from gpugrad.op import RECORDING
from gpugrad.ops import random
from gpugrad.ops._sums import dots
from gpugrad.ops.index import working
from gpugrad.ops.shape import astype, broadcast_to, operand, reshape
from gpugrad.tensor import Tensor

__all__ = ["rotary", "scaled_dot_product_attention"]

BLOCK = 1 << 18  # scores at a time on the CPU
DIAGONAL = 128  # most queries a tile when causal: keys after the tile's last query are left out

# In the table q is (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, Dv) with G a divisor of H: query head h reads key head
# h G / H. mask is None, or four-dimensional and broadcastable to (B, H, Tq, Tk): bool (True: may be seen) or float
# (added to the scores, a constant). causal: query i sees keys 0 to i. Inside, query heads lie in groups, (B, G, H / G).


def grouped(F: Any, x: Any, groups: int) -> Any:
    """(B, H, ...) as (B, groups, H / groups, ...); an axis of heads of length 1 stands for all."""
    b, h = x.shape[:2]
    return F.reshape(x, shape=(b, *((1, 1) if h == 1 else (groups, h // max(1, groups))), *x.shape[2:]))


class Arrays:
    """`F` of the one function that `grouped` needs, for plain arrays."""

    reshape = staticmethod(lambda x, shape: x.reshape(shape))


class Tiles:
    """Scores of some query rows at a time: the arithmetic that forward and backward share."""

    def __init__(self, xp: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> None:
        groups, self.dtype, self.xp, self.causal = k.shape[1], working(q.dtype), xp, causal
        self.q = grouped(Arrays, q, groups).astype(self.dtype, copy=False) * self.dtype.type(scale)
        self.k, self.v = (a[:, :, None].astype(self.dtype, copy=False) for a in (k, v))
        self.turned = self.upright(self.k)
        self.mask = None if mask is None else grouped(Arrays, mask, groups)
        (b, g, r, tq), tk = self.q.shape[:4], self.k.shape[3]
        self.rows, heads, batch = max(1, tq), max(1, g), max(1, b)
        if xp is np and self.q.size:
            block = portion(b * g * r * tq * tk, BLOCK)
            self.rows = max(1, min(tq, block // max(1, r * tk), DIAGONAL if causal else tq))
            heads = max(1, min(g, block // max(1, r * self.rows * tk)))
            batch = max(1, min(b, block // max(1, g * r * self.rows * tk)))
        self.parts = [
            (slice(i, i + batch), slice(j, j + heads)) for i in range(0, b, batch) for j in range(0, g, heads)
        ]

    def upright(self, x: Any) -> Any:
        """Keys or values with their rows as columns, in memory too: products with them are faster."""
        return self.xp.ascontiguousarray(x.swapaxes(-1, -2))

    def each(self, work: Callable[[Any, Any, Any, Any], object]) -> None:
        """work(queries, keys, keys of upright matrices, scores) for all tiles, masked scores at -inf.

        The first three are slices. Threads share the heads, of which each has its tiles in order.
        """
        (r, tq), tk = self.q.shape[2:4], self.k.shape[3]

        def tiles(part: tuple[slice, slice]) -> None:
            for row in range(0, tq, self.rows):
                last = min(row + self.rows, tq)
                keys = slice(0, min(tk, last) if self.causal else tk)
                outer = (*part, slice(None))
                mine, turned = (*outer, slice(row, last)), (*outer, slice(None), keys)
                work(mine, (*outer, keys), turned, self.scores(mine, turned))

        many = len(self.parts) > 1 and self.xp is np
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"), single if many else nullcontext():
            share(tiles, self.parts if tk else (), r * tq * tk * math.prod(self.q.shape[:2]) if many else 0)

    def scores(self, mine: tuple[slice, ...], turned: tuple[slice, ...]) -> Any:
        """scale q k' + mask of some rows and keys."""
        xp, keys = self.xp, turned[4]
        s = xp.matmul(self.q[mine], self.turned[turned])
        if self.mask is not None:
            of = tuple(slice(None) if n == 1 else part for n, part in zip(self.mask.shape, (*mine, keys)))
            mask = self.mask[of]
            if mask.dtype == bool:
                s = xp.where(mask, s, -math.inf)
            else:
                s += mask
        if self.causal and keys.stop > mine[3].start:
            near, queries = xp.arange(mine[3].start, keys.stop), xp.arange(mine[3].start, mine[3].stop)
            xp.copyto(s[..., mine[3].start :], -math.inf, where=near > queries[:, None])
        return s


def _attention(xp: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> tuple[Any, Any]:
    """(out, log-sum-exp of the scores of each query); a query that sees nothing has (0, -inf)."""
    tiles = Tiles(xp, q, k, v, mask, causal, scale)
    out = xp.zeros((*tiles.q.shape[:4], v.shape[3]), q.dtype)
    lse = xp.full(tiles.q.shape[:4], -math.inf, tiles.dtype)

    def work(mine: Any, seen: Any, _turned: Any, s: Any) -> None:
        top = s.max(-1, keepdims=True)
        top = xp.where(top == -math.inf, 0, top)
        p = xp.exp(xp.subtract(s, top, out=s), out=s)
        total = dots(xp, p)[..., None]
        out[mine] = xp.matmul(p, tiles.v[seen]) / xp.where(total == 0, 1, total)
        lse[mine] = (top + xp.log(total))[..., 0]

    tiles.each(work)
    return out.reshape(*q.shape[:3], v.shape[3]), lse.reshape(q.shape[:3])


def _attention_bwd(
    xp: Any, t: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, lse: Any, causal: bool, scale: float
) -> tuple[Any, Any, Any]:
    """(dq, dk, dv). Without out and lse, which the forward gave, they are computed again."""
    if lse is None or out is None:
        out, lse = _attention(xp, q, k, v, mask, causal, scale)
    tiles = Tiles(xp, q, k, v, mask, causal, scale)
    t, out, lse = (grouped(Arrays, a, k.shape[1]).astype(tiles.dtype, copy=False) for a in (t, out, lse[..., None]))
    values, factor = tiles.upright(tiles.v), tiles.dtype.type(scale)
    dq, dk, dv = (xp.zeros(a.shape, tiles.dtype) for a in (tiles.q, tiles.k, tiles.v))

    def work(mine: Any, seen: Any, turned: Any, s: Any) -> None:
        near, slope = lse[mine], t[mine]
        p = xp.exp(xp.subtract(s, xp.where(near == -math.inf, 0, near), out=s), out=s)
        dv[seen] += xp.matmul(p.swapaxes(-1, -2), slope).sum(2, keepdims=True)
        ds = xp.matmul(slope, values[turned])
        ds -= dots(xp, slope, out[mine])[..., None]
        ds *= p
        dk[seen] += xp.matmul(ds.swapaxes(-1, -2), tiles.q[mine]).sum(2, keepdims=True)
        dq[mine] = xp.matmul(ds, tiles.k[seen]) * factor

    tiles.each(work)
    return tuple(g.reshape(a.shape).astype(a.dtype, copy=False) for g, a in ((dq, q), (dk, k), (dv, v)))  # type: ignore[return-value]


def _visible(xp: Any, q: Any, k: Any, mask: Any, causal: bool) -> Any:
    """Whether a query may see a key, broadcastable to (B, G, H / G, Tq, Tk)."""
    seen = xp.ones((1, 1, 1, 1, 1), bool)
    if mask is not None:
        mask = grouped(Arrays, mask, k.shape[1])
        seen = mask if mask.dtype == bool else mask != -math.inf
    return seen & (xp.arange(k.shape[2]) <= xp.arange(q.shape[2])[:, None]) if causal else seen


# --- the same by whole matrices, of table ops: for higher derivatives, tangents, dropout and learned masks -------


def probabilities(F: Any, q: Any, k: Any, mask: Any, causal: bool, scale: float) -> Any:
    """P (B, G, H / G, Tq, Tk)."""
    s = F.matmul(grouped(F, q, k.shape[1]) * scale, F.matrix_transpose(grouped(F, k, k.shape[1])))
    if mask is None and not causal:
        return F.softmax(s, axis=4)
    seen = F.attention_visible(q, k, mask, causal=causal)
    if mask is not None and mask.dtype != bool:
        s = s + grouped(F, mask, k.shape[1])
    lowest = np.finfo("float16" if s.dtype.itemsize < 4 else s.dtype).min  # finite: a row of these has a softmax
    return F.softmax(F.where(seen, s, float(lowest)), axis=4) * seen


def merged(F: Any, x: Any) -> Any:
    """Query heads (B, G, H / G, ...) as (B, H, ...)."""
    return F.reshape(x, shape=(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:]))


def bwd_via(
    F: Any, t: Any, q: Any, k: Any, v: Any, mask: Any, _out: Any, _lse: Any, *, causal: bool, scale: float
) -> tuple[Any, Any, Any]:
    """attention_bwd of table ops."""
    groups, turn = k.shape[1], F.matrix_transpose
    p = probabilities(F, q, k, mask, causal, scale)
    q, k, v, t = (grouped(F, a, groups) for a in (q, k, v, t))
    dp = F.matmul(t, turn(v))
    ds = p * (dp - F.sum(p * dp, axis=(4,), keepdims=True)) * scale
    dk, dv = (F.sum(F.matmul(turn(a), b), axis=(2,), keepdims=False) for a, b in ((ds, q), (p, t)))
    return merged(F, F.matmul(ds, k)), dk, dv


def attention_jvp(
    F: Any, ts: Any, _out: Any, q: Any, k: Any, v: Any, mask: Any, _lse: Any, *, causal: bool, scale: float
) -> Any:
    """dP v + P dv with dP = P (dS - rowsum(P dS))."""
    groups, turn = k.shape[1], F.matrix_transpose
    p = probabilities(F, q, k, mask, causal, scale)
    q, k, v = (grouped(F, a, groups) for a in (q, k, v))
    tq, tk, tv = (None if a is None else grouped(F, a, groups) for a in ts[:3])
    out = None if tv is None else F.matmul(p, tv)
    for pushed in (tq is not None and F.matmul(tq, turn(k)), tk is not None and F.matmul(q, turn(tk))):
        if pushed is not False:
            ds = p * pushed * scale
            ds = F.matmul(ds - p * F.sum(ds, axis=(4,), keepdims=True), v)
            out = ds if out is None else out + ds
    return merged(F, out)


def attention_joint(
    F: Any, t: Any, out: Any, q: Any, k: Any, v: Any, mask: Any, lse: Any, *, causal: bool, scale: float
) -> Any:
    """All three at once, none for the mask."""
    return (*F.attention_bwd(t, q, k, v, mask, out, lse, causal=causal, scale=scale), None)


nondiff("attention_visible", _visible, attrs=True, promotes=False)
_attend = general("attention", _attention, joint=attention_joint, jvp=attention_jvp, aux=True, cuda=launch.attention)
general("attention_bwd", _attention_bwd, via=bwd_via, nout=3, cuda=launch.attention_bwd)


# --- rotary position embedding ------------------------------------------------------------------------------------


def _rotary(xp: Any, x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    half, out = x.shape[-1] // 2, xp.empty(x.shape, x.dtype)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


_turn = general(
    "rotary", _rotary,
    lambda F, t, _out, _x, cos, sin, *, interleaved: F.rotary(t, cos, -sin, interleaved=interleaved), None, None,
    jvp=lambda F, ts, _out, _x, cos, sin, *, interleaved: F.rotary(ts[0], cos, sin, interleaved=interleaved),
    cuda=launch.rotary,
)  # fmt: skip


def rotary(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Tensor:
    """Turn pairs of features of x (..., T, D) by angles given as cosines and sines (T, D / 2). Su et al., 2021.

    Feature i is paired with i + D / 2, or with interleaved=True feature 2 i with 2 i + 1. Angles proportional to the
    position make products of queries and keys depend on distances alone. Differentiable in x.
    Raises ShapeError for an odd D or angles of another shape, DTypeError for integers.
    """
    a = operand(x, "rotary")
    c, s = (operand(angle, "rotary", a) for angle in (cos, sin))
    if not is_float(a.dtype):
        raise fail(DTypeError, "rotary", f"{describe(a)}: expected a floating-point input")
    if a.ndim < 2 or a.shape[-1] % 2 or not c.shape == s.shape == (a.shape[-2], a.shape[-1] // 2):
        raise fail(
            ShapeError, "rotary",
            f"x {describe(a)}, cos {describe(c)}, sin {describe(s)}: expected (..., T, D) and (T, D / 2) twice",
        )  # fmt: skip
    return _turn(a, astype(c, a.dtype), astype(s, a.dtype), interleaved=bool(interleaved))  # type: ignore[no-any-return]


# --- attention as users call it -----------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False, *, generator: Any = None,
) -> Tensor:  # fmt: skip
    """softmax(scale q k' + mask) v: query (..., Tq, D), key (..., Tk, D), value (..., Tk, Dv) to (..., Tq, Dv).

    attn_mask: broadcastable to (..., Tq, Tk); bool (True: the query may see the key) or float (added to the scores,
    differentiable). is_causal: query i sees keys 0 to i, counted from the start also when Tq and Tk differ; with a
    mask, both hold. scale: 1 / sqrt(D) if None. dropout_p: share of the weights that is dropped, from `generator` or
    the default one. enable_gqa: axis -3 of query may be a multiple of that of key and value, whose heads are shared.
    Other leading axes broadcast. A query that sees no key gives zeros and has no gradient. The scores are never stored
    as a whole, except for dropout, a mask with gradients and higher derivatives. Sums are at least float32.
    Raises ShapeError, DTypeError, or DomainError for a dropout_p outside [0, 1].
    """
    op = "scaled_dot_product_attention"
    q = operand(query, op)
    k, v = (operand(a, op, q) for a in (key, value))
    mask = None if attn_mask is None else operand(attn_mask, op, q)
    said = f"query {describe(q)}, key {describe(k)}, value {describe(v)}"
    said += "" if mask is None else f", mask {describe(mask)}"
    if not is_float(q.dtype) or len({a.dtype for a in (q, k, v)}) > 1:
        raise fail(DTypeError, op, f"{said}: expected one floating-point type")
    if mask is not None and mask.dtype != bool and not is_float(mask.dtype):
        raise fail(DTypeError, op, f"{said}: expected a mask of booleans or floats")
    if not 0.0 <= dropout_p <= 1.0:
        raise fail(DomainError, op, f"dropout_p is {dropout_p!r}; expected a probability in [0, 1]")
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise fail(ShapeError, op, f"{said}: expected (..., Tq, D), (..., Tk, D), (..., Tk, Dv)")
    lead, shared = leading(op, said, q.shape[:-2], k.shape[:-2], v.shape[:-2], enable_gqa)
    b, h, g = math.prod(lead[:-1]), math.prod(lead[-1:]), math.prod(shared[-1:])
    tq, tk = q.shape[-2], k.shape[-2]
    q, k, v = (
        as4(a, (*of, *a.shape[-2:]), (b, heads)) for a, of, heads in ((q, lead, h), (k, shared, g), (v, shared, g))
    )
    if mask is not None:
        mask = mask4(op, said, mask, (*lead, tq, tk), (b, h))
        mask = mask if mask.dtype == bool else astype(mask, q.dtype)
    scale = float(1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale)
    if dropout_p == 0.0 and (mask is None or not mask.requires_grad):
        out = _attend(q, k, v, mask, causal=bool(is_causal), scale=scale)
    else:
        p = probabilities(RECORDING, q, k, mask, bool(is_causal), scale)
        p = random.dropout(p, dropout_p, generator=generator)
        out = RECORDING.matmul(p, grouped(RECORDING, v, g))
    return reshape(out, (*lead, tq, out.shape[-1]))  # type: ignore[no-any-return]


def leading(op: str, said: str, q: Any, k: Any, v: Any, gqa: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The common leading axes of queries, and of keys and values, which may have fewer heads. Raises ShapeError."""
    try:
        shared = np.broadcast_shapes(k, v)
        if gqa and q and shared and shared[-1] and q[-1] % shared[-1] == 0:
            lead = np.broadcast_shapes(q[:-1], shared[:-1])
            return (*lead, q[-1]), (*lead, shared[-1])
        lead = np.broadcast_shapes(q, shared)
    except ValueError:
        hint = "" if gqa else "; enable_gqa=True lets query heads share key heads"
        raise fail(ShapeError, op, f"{said}: the leading axes do not broadcast{hint}") from None
    return lead, lead


def as4(x: Tensor, shape: tuple[int, ...], outer: tuple[int, ...]) -> Tensor:
    """x broadcast to `shape`, whose leading axes become the two of `outer`."""
    return reshape(x if x.shape == shape else broadcast_to(x, shape), (*outer, *shape[-2:]))  # type: ignore[no-any-return]


def mask4(op: str, said: str, mask: Tensor, full: tuple[int, ...], outer: tuple[int, int]) -> Tensor:
    """A mask as four axes, broadcast no further than merging the leading ones needs. Raises ShapeError."""
    try:
        fits = np.broadcast_shapes(mask.shape, full) == full
    except ValueError:
        fits = False
    if not fits:
        raise fail(ShapeError, op, f"{said}: expected a mask that broadcasts to {list(full)}")
    shape = (1,) * (len(full) - mask.ndim) + mask.shape
    if math.prod(shape[:-3]) == 1:
        return reshape(mask, (1, *(1,) * (3 - len(shape)), *shape[-3:]))  # type: ignore[no-any-return]
    whole = (*full[:-3], *shape[-3:])
    return reshape(broadcast_to(mask, whole), (outer[0], *shape[-3:]))  # type: ignore[no-any-return]
