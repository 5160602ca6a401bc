"""Matrix products on NumPy: BLAS held to one thread, and large products in pieces for our own threads.

OpenBLAS's threads spin while they wait for work, so beside a busy neighbour a step takes many times its quiet time.
How a product is cut depends on its shapes alone: its bits are the same with any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from gpugrad.backends import threads

ALONE = 1 << 18  # multiplications up to which OpenBLAS uses one thread anyway
SHARED = 5_000_000  # multiplications that are worth waking another thread
MANY = (8_000_000_000, 16), (200_000_000, 4), (SHARED, 2)  # pieces of so many multiplications: each packs a factor anew
WIDE = 16  # rows or columns that a piece is a multiple of: the tile of a BLAS


@functools.cache
def controls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """How to read and set the number of threads of NumPy's BLAS, if it is an OpenBLAS whose names can be found."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]  # and what it needs
    except (AttributeError, OSError):
        return None
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", "_64", ""):
            found = [getattr(library, f"{prefix}_{verb}_num_threads{suffix}", None) for verb in ("get", "set")]
            if all(found):
                return tuple(found)  # type: ignore[return-value]
    return None


class Single:
    """A block in which BLAS has one thread, in whatever thread it is called; `before` is how many it had."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, 1

    def __enter__(self) -> Single:
        with self.lock:
            self.inside += 1
            if self.inside == 1 and (found := controls()):
                self.before = found[0]()
                found[1](1)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and (found := controls()):
                found[1](self.before)

    def forked(self) -> None:
        """In a child nobody is inside, whoever was in its parent, and BLAS has the threads that it had outside."""
        if self.inside and (found := controls()):
            found[1](self.before)
        self.lock, self.inside = threading.Lock(), 0


single = Single()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=single.forked)


def matmul(x: Any, y: Any, into: Any = None) -> Any:
    """np.matmul of two arrays, which writes to `into` where that is given."""
    with single:
        cut = pieces(x, y, into) if controls() else None
        if cut is None:
            return np.matmul(x, y, out=into)
        lead, parts = cut
        out = np.empty((*lead, x.shape[-2], y.shape[-1]), x.dtype) if into is None else into
        size = out.size * x.shape[-1] * threads.SHARED // SHARED

        def work(part: tuple[Any, Any, Any]) -> None:
            np.matmul(x[part[0]], y[part[1]], out=out[part[2]])

        threads.share(work, parts, size if single.before > 1 else 0)
    return out


def pieces(x: Any, y: Any, into: Any) -> tuple[tuple[int, ...], list[tuple[Any, Any, Any]]] | None:
    """The batch axes of a product and, for each piece, the parts of both operands and of the result; None to leave it.

    A stack is cut along its first axis, one product along the longer side of its result.
    """
    if not (x.ndim == y.ndim > 1 and x.dtype == y.dtype and x.dtype.char in "fdFD" and blasable(x) and blasable(y)):
        return None
    if x.strides == (*y.strides[:-2], *y.strides[:-3:-1]) and x.ctypes.data == y.ctypes.data:
        return None  # x x': BLAS makes half of it, and it is symmetric to the bit
    lead, (m, k), n = x.shape[:-2], x.shape[-2:], y.shape[-1]
    work = math.prod(lead) * m * k * n
    if work < SHARED or lead != y.shape[:-2] or not (into is None or into.flags.c_contiguous):
        return None
    many = next(many for least, many in MANY if work >= least)
    if lead:
        whole = slices(lead[0], many, 1)
        return lead, [(s, s, s) for s in whole]
    if m < n:
        return lead, [(..., (slice(None), s), (slice(None), s)) for s in slices(n, many, WIDE)]
    return lead, [(s, ..., s) for s in slices(m, many, WIDE)]


def slices(length: int, many: int, unit: int) -> list[slice]:
    """An axis in so many slices or fewer, each a multiple of `unit` but the last."""
    step = -(-length // (many * unit)) * unit
    return [slice(start, start + step) for start in range(0, length, step)]


def blasable(a: Any) -> bool:
    """Whether BLAS takes the matrices of an array as they lie; NumPy would copy others, for every piece again."""
    rows, columns = a.strides[-2:]
    return bool(columns == a.itemsize <= rows or rows == a.itemsize <= columns)
