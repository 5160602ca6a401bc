"""Launches of kernels/attention.cu, attention_bwd.cu and attention_rotary.cu."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from gpugrad.kernel import kernel

WIDEST = 128  # columns of a head that tiles on chip are made for


def tiled(q: Any, v: Any) -> bool:
    """Whether the scores stay on chip, in tiles; else they are written out by matrix products."""
    return bool(max(q.shape[3], v.shape[3]) <= WIDEST)


def columns(q: Any, v: Any) -> int:
    """Columns of the tiles, the constant D of the kernels."""
    return next(d for d in (32, 64, WIDEST) if d >= max(q.shape[3], v.shape[3]))


def geometry(name: str, d: int, itemsize: int, rows: int, heads: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(grid, block, bytes of shared memory) for so many rows of so many heads; tile sizes as in the kernels."""
    held = (64 if name == "attention" else 32) * 4 // itemsize
    passing = held // 2 if d > 64 else held
    pad = 16 // itemsize
    tiles = held + passing if name == "attention" else 2 * (held + passing)
    shared = (tiles * (d + pad) + held * (passing + pad)) * itemsize
    return (-(-rows // held) * heads,), (128,), shared


def accumulator(dtype: Any) -> Any:
    """The type in which kernels sum."""
    return np.dtype("float64" if dtype.itemsize == 8 else "float32")


def options(q: Any, k: Any, v: Any, mask: Any, dtype: Any, causal: bool, scale: float) -> tuple[Any, Any, bytes]:
    """(bool mask, float mask, struct Sizes of kernels/attention.cuh)."""
    steps, step = [0] * 4, 1
    if mask is not None:
        for axis in (3, 2, 1, 0):
            steps[axis] = 0 if mask.shape[axis] == 1 else step
            step *= mask.shape[axis]
    sizes = (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], causal)
    seen, bias = (mask, None) if mask is None or mask.dtype == bool else (None, mask.astype(dtype, copy=False))
    return seen, bias, struct.pack("4qd7i4x", *steps, scale, *sizes)


def takes(launch: Any, *arrays: Any) -> bool:
    """Whether a kernel can run: arrays of one type, none of them empty."""
    return launch.takes(*arrays) and all(a.size for a in arrays)


def by_groups(a: Any, groups: int) -> Any:
    """(B, H, rows, n) as (B, groups, H / groups rows, n): all heads that share a key head, one after another."""
    b, h, rows, n = a.shape
    return a.reshape(b, groups, h // groups * rows, n)


def products(launch: Any, a: Any, b: Any, dtype: Any) -> Any:
    """Matrix products of query heads (B, H, rows, ...) with key heads (B, G, ...) of the same type: (B, H, rows, n)."""
    n, g = b.shape[3], b.shape[1]
    rows = by_groups(a, g)
    out = launch.xp.empty((*rows.shape[:3], n), dtype)
    launch.gemm(rows, b, out=out)
    return out.reshape(*a.shape[:3], n)


def _attention(launch: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> Any:
    if not takes(launch, q, k, v):
        return NotImplemented
    (b, h, rows, _), dtype = q.shape, q.dtype
    sums = accumulator(dtype)
    lse = launch.xp.empty((b, h, rows), sums)
    if tiled(q, v):
        seen, bias, sizes = options(q, k, v, mask, dtype, causal, scale)
        d, out = columns(q, v), launch.xp.empty((b, h, rows, v.shape[3]), dtype)
        args = (out, lse, q, k, v, seen, bias, sizes)
        launch.tiles("attention", (dtype, str(d)), args, *geometry("attention", d, sums.itemsize, rows, b * h))
        return out, lse
    seen, bias, sizes = options(q, k, v, mask, sums, causal, scale)
    p = products(launch, q, k.swapaxes(2, 3), sums)
    launch.rows("masked_softmax", (sums,), (p, lse, seen, bias, lse.size, sizes), lse.size, k.shape[2])
    return products(launch, p, v.astype(sums, copy=False), sums).astype(dtype, copy=False), lse


def _attention_bwd(
    launch: Any, t: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, lse: Any, causal: bool, scale: float
) -> Any:
    if lse is None or out is None or not takes(launch, t, q, k, v, out):
        return NotImplemented
    (b, h, rows, _), (_, g, keys, _), dtype = q.shape, k.shape, q.dtype
    xp, sums = launch.xp, lse.dtype
    if tiled(q, v):
        seen, bias, sizes = options(q, k, v, mask, dtype, causal, scale)
        d, delta = columns(q, v), xp.empty(lse.shape, sums)
        dq, dk, dv = (xp.empty(a.shape, dtype) for a in (q, k, v))
        shape, types = ("attention_bwd", d, sums.itemsize), (dtype, str(d))
        shared = (lse, seen, bias, sizes)
        launch.tiles("attention_dq", types, (dq, delta, t, q, k, v, out, *shared), *geometry(*shape, rows, b * h))
        launch.tiles("attention_dkv", types, (dk, dv, t, q, k, v, delta, *shared), *geometry(*shape, keys, b * g))
        return dq, dk, dv
    seen, bias, sizes = options(q, k, v, mask, sums, causal, scale)
    p, ds = products(launch, q, k.swapaxes(2, 3), sums), products(launch, t, v.swapaxes(2, 3), sums)
    t, q, k, out = (a.astype(sums, copy=False) for a in (t, q, k, out))
    launch.map("attention_slopes", (sums,), (p, ds, (t * out).sum(-1), lse, seen, bias, p.size, sizes), p.size)
    dk, dv = (launch.gemm(by_groups(x, g).swapaxes(2, 3), by_groups(y, g)) for x, y in ((ds, q), (p, t)))
    return tuple(a.astype(dtype, copy=False) for a in (products(launch, ds, k, sums), dk, dv))


def _rotary(launch: Any, x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    if not takes(launch, x, cos, sin):
        return NotImplemented
    (positions, depth), pairs = x.shape[-2:], x.size // 2
    out = launch.xp.empty(x.shape, x.dtype)
    n = -(-pairs * x.itemsize // 16)  # a packet a thread
    launch.map(
        "rotary", (x.dtype,), (out, x, cos, sin, pairs, positions, depth, interleaved), pairs if interleaved else n
    )
    return out


attention = kernel("attention", "attention", _attention)
attention_bwd = kernel("attention_bwd", "attention_dq", _attention_bwd)
rotary = kernel("attention_rotary", "rotary", _rotary)
