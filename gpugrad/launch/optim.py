"""Launches of kernels/optim.cu and kernels/optim_grads.cu: one for all arrays, a few where their table is full."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpugrad.backends.launch import FLOATS
from gpugrad.kernel import Kernel, kernel

WORDS = 496  # of struct Table
SETTINGS = 6  # of struct Settings
SLOTS = 1024  # of `tickets`: updates that may run at the same time
THREADS = 256

Entry = tuple[int, list[Any]]  # a tensor's number, and its arrays in the order of the kernel

slots: dict[int, int] = {}


def accumulator(dtype: Any) -> str:
    """The dtype that a kernel computes in."""
    return "float64" if dtype.itemsize == 8 else "float32"


def chunk_size(total: int) -> int:
    """Elements of a block's piece: about a thousand pieces, of whole packets, from the sizes alone."""
    return min(max(-(-total // (1 << 21)), 1), 32) * 2048


def tables(entries: list[Entry]) -> Iterator[tuple[bytes, int]]:
    """(struct Table, number of blocks) of each launch that the entries need."""
    arrays = len(entries[0][1])
    chunk = chunk_size(sum(a[0].size for _, a in entries))
    for start in range(0, len(entries), WORDS // (arrays + 2)):
        part = entries[start : start + WORDS // (arrays + 2)]
        sizes = np.array([a[0].size for _, a in part], "int64")
        ends = np.cumsum(-(-sizes // chunk))
        first = np.concatenate([[0], ends[:-1]])
        numbers = np.array([number for number, _ in part], "int64")
        addresses = np.array([[a.data.ptr for a in group] for _, group in part], "uint64").view("int64")
        words = np.concatenate([addresses.T.reshape(-1), sizes, first | numbers << 32])
        yield struct.pack("ii", len(part), chunk) + words.tobytes().ljust(8 * WORDS, b"\0"), max(int(ends[-1]), 1)


def by_dtype(entries: list[Entry]) -> list[tuple[Any, list[Entry]]]:
    """The entries of each storage type, which is that of the first array."""
    kinds: dict[Any, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(entry[1][0].dtype, []).append(entry)
    return list(kinds.items())


def gather(launch: Any, params: list[Any], grads: list[Any], states: list[list[Any]]) -> list[Entry] | None:
    """The tensors that have a gradient, each with its arrays; None if a kernel cannot take one as it lies."""
    xp, entries = launch.xp, []
    for i, (p, g, *state) in enumerate(zip(params, grads, *states)):
        if g is None:
            continue
        kind = accumulator(p.dtype)
        written = p.flags.c_contiguous and all(s.flags.c_contiguous and s.dtype == kind for s in state)
        if not written or p.dtype.name not in FLOATS or any(a.shape != p.shape for a in (g, *state)):
            return None
        entries.append((i, [p, xp.ascontiguousarray(g.astype(p.dtype, copy=False)), *state]))
    return entries


def run_update(
    launch: Any, functor: str, entries: list[Entry] | None, settings: tuple[float, ...], step: Any = None,
    product: Any = None, lr: Any = None, skip: Any = None,
) -> Any:  # fmt: skip
    """Launch `update` with a functor over the entries."""
    counters = [a for a in (step, product, lr) if a is not None]
    if entries is None or any(a.dtype != "float64" or not a.flags.c_contiguous for a in counters):
        return NotImplemented
    if skip is not None and skip.dtype != "int32":
        return NotImplemented
    if launch.xp is np:  # compiled for the host: gpugrad/jit.py
        return launch.update(functor, entries, settings, step, product, lr, skip)
    given = struct.pack(f"{SETTINGS}d", *settings, *[0.0] * (SETTINGS - len(settings)))
    slot = 0 if step is None else slots.setdefault(step.data.ptr, len(slots)) % SLOTS
    for dtype, some in by_dtype(entries):
        for table, blocks in tables(some):
            args = (table, given, step, product, lr, skip, slot)
            launch.tiles("update", (dtype, functor), args, (blocks,), (THREADS,))
    return None


def _sgd(
    launch: Any, params: Any, velocities: Any, step: Any, grads: Any, lr: Any, skip: Any = None, *, weight_decay: float,
    momentum: float, dampening: float, nesterov: bool,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [velocities] if momentum else [])
    settings = (weight_decay, momentum, dampening, nesterov)
    return run_update(launch, "Momentum" if momentum else "Sgd", entries, settings, step, None, lr, skip)


def _adagrad(
    launch: Any, params: Any, sums: Any, step: Any, grads: Any, lr: Any, skip: Any = None, *, weight_decay: float,
    lr_decay: float, eps: float,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [sums])
    return run_update(launch, "Adagrad", entries, (weight_decay, lr_decay, eps), step, None, lr, skip)


def _adadelta(
    launch: Any, params: Any, squares: Any, deltas: Any, step: Any, grads: Any, lr: Any, skip: Any = None, *,
    weight_decay: float, rho: float, eps: float,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [squares, deltas])
    return run_update(launch, "Adadelta", entries, (weight_decay, rho, eps), step, None, lr, skip)


def _rmsprop(
    launch: Any, params: Any, squares: Any, means: Any, velocities: Any, step: Any, grads: Any, lr: Any,
    skip: Any = None, *, weight_decay: float, alpha: float, eps: float, momentum: float,
) -> Any:  # fmt: skip
    functor = {(0, 0): "", (0, 1): "Momentum", (1, 0): "Centered", (1, 1): "Both"}[bool(means), bool(velocities)]
    entries = gather(launch, params, grads, [s for s in (squares, means, velocities) if s])
    return run_update(
        launch, "RmsProp" + functor, entries, (weight_decay, alpha, eps, momentum), step, None, lr, skip
    )  # fmt: skip


def _adam(
    launch: Any, params: Any, means: Any, squares: Any, peaks: Any, step: Any, grads: Any, lr: Any, skip: Any = None, *,
    weight_decay: float, beta1: float, beta2: float, eps: float, decoupled: bool,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [s for s in (means, squares, peaks) if s])
    settings = (weight_decay, beta1, beta2, eps, decoupled)
    return run_update(launch, "AmsGrad" if peaks else "Adam", entries, settings, step, None, lr, skip)


def _adamax(
    launch: Any, params: Any, means: Any, norms: Any, step: Any, grads: Any, lr: Any, skip: Any = None, *,
    weight_decay: float, beta1: float, beta2: float, eps: float,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [means, norms])
    return run_update(launch, "Adamax", entries, (weight_decay, beta1, beta2, eps), step, None, lr, skip)


def _nadam(
    launch: Any, params: Any, means: Any, squares: Any, step: Any, products: Any, grads: Any, lr: Any, skip: Any = None,
    *, weight_decay: float, beta1: float, beta2: float, eps: float, momentum_decay: float,
) -> Any:  # fmt: skip
    entries = gather(launch, params, grads, [means, squares])
    settings = (weight_decay, beta1, beta2, eps, momentum_decay)
    return run_update(launch, "Nadam", entries, settings, step, products, lr, skip)


def _average_into(launch: Any, averages: Any, step: Any, params: Any, *, decay: float | None) -> Any:
    entries = gather(launch, params, params, [averages])
    if entries is None:
        return NotImplemented
    entries = [(number, [p, average]) for number, (p, _, average) in entries]
    return run_update(launch, "Average", entries, (-1.0 if decay is None else decay,), step)


def dense(arrays: Any) -> list[Entry] | None:
    """Arrays without gaps, in whatever order of their axes; None if a kernel cannot take one as it lies."""
    fits = all(a.dtype.name in FLOATS and a.flags.forc for a in arrays)
    return [(i, [a]) for i, a in enumerate(arrays)] if fits else None


def _clamp_into(launch: Any, arrays: Any, *, limit: float) -> Any:
    return run_update(launch, "Clamp", dense(arrays), (limit,))


def _scale_into(launch: Any, arrays: Any, factor: Any, *, limit: float | None = None) -> Any:
    entries = dense(arrays)
    if entries is None or factor.dtype.name not in ("float32", "float64"):
        return NotImplemented
    for dtype, some in by_dtype(entries):
        for table, blocks in tables(some):
            args = (table, factor, 0.0 if limit is None else limit)
            launch.tiles("scale_into", (dtype, factor.dtype), args, (blocks,), (THREADS,))
    return None


def _unscale_into(launch: Any, arrays: Any, flag: Any, scale: Any) -> Any:
    entries = dense(arrays)
    if entries is None or (flag.dtype, scale.dtype) != ("int32", "float32"):
        return NotImplemented
    for dtype, some in by_dtype(entries):
        for table, blocks in tables(some):
            launch.tiles("unscale_into", (dtype,), (table, flag, scale), (blocks,), (THREADS,))
    return None


def _next_scale(launch: Any, scale: Any, good: Any, flags: Any, *, growth: float, backoff: float, interval: int) -> Any:
    ((table, _),) = tables([(i, [flag]) for i, flag in enumerate(flags)])
    launch.tiles("next_scale", (), (scale, good, table, growth, backoff, interval), (1,), (1,))


def _global_norm(launch: Any, *arrays: Any, ord: float) -> Any:
    entries = dense(arrays)
    if entries is None:
        return NotImplemented
    functor = "Peak" if ord == math.inf else "Squares" if ord == 2 else "Powers"
    kind = "float64" if any(a.dtype.itemsize == 8 for a in arrays) else "float32"
    work = [(dtype, *table) for dtype, some in by_dtype(entries) for table in tables(some)]
    xp, first = launch.xp, 0
    parts, out = xp.empty(sum(blocks for *_, blocks in work), "float64"), xp.empty((), kind)
    for dtype, table, blocks in work:
        args = (parts[first : first + blocks], table, ord)
        launch.tiles("norm_parts", (dtype, functor), args, (blocks,), (THREADS,))
        first += blocks
    root = 1.0 if functor == "Peak" else 1 / ord
    launch.tiles("norm_total", (out.dtype, functor), (out, parts, root, parts.size), (1,), (THREADS,))
    return out


sgd = kernel("optim", "update", _sgd)
adagrad = kernel("optim", "update", _adagrad)
adadelta = kernel("optim", "update", _adadelta)
rmsprop = kernel("optim", "update", _rmsprop)
adam = kernel("optim", "update", _adam)
adamax = kernel("optim", "update", _adamax)
nadam = kernel("optim", "update", _nadam)
average_into = kernel("optim", "update", _average_into)
clamp_into = kernel("optim", "update", _clamp_into)
scale_into = kernel("optim_grads", "scale_into", _scale_into)
unscale_into = kernel("optim_grads", "unscale_into", _unscale_into)
next_scale = kernel("optim_grads", "next_scale", _next_scale)
global_norm: Kernel = kernel("optim_grads", "norm_parts", _global_norm)
