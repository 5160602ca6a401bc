"""Arrays that carry more than values: the base class of `forward.Dual` and `batching.Batched`, and their levels.

Each call of `jvp` or `vmap` opens a Level; its arrays wrap plain arrays or arrays of outer levels. Nested calls have
higher levels, and an op is worked off from the highest level down, so that no derivative is taken for another.
"""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

LAYERS: set[type] = set()  # the array types of this kind; dispatchers look here
_next = itertools.count(1)
BORROWED = SimpleNamespace(owndata=False, c_contiguous=False, writeable=False)


class Level:
    """One running transformation. `open` until its function has returned.

    A subclass says how arrays of its kind are made of constants, and how ops run on them. `in_place`: whether they
    may be written to.
    """

    in_place = False

    def __init__(self) -> None:
        self.rank, self.open = next(_next), True
        self._dtypes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def wrap(self, x: Any) -> Any:
        """A raw array as a constant of this level."""
        raise NotImplementedError

    def lift(self, x: Any) -> Any:
        """As `wrap`, for Tensors too, which record it."""
        raise NotImplementedError

    def lower(self, g: Any) -> Any:
        """The transpose of `lift`: the cotangent of a constant, from one of this level."""
        raise NotImplementedError

    def run(self, op: Any, args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """An op on raw arguments of which this is the highest level."""
        raise NotImplementedError

    def dtype(self, *parts: Any) -> Any:
        """The dtype of an array of this level that holds parts of these dtypes: equal to theirs, yet another object.

        So a dispatcher that meets it beside a plain dtype takes the path for unequal operands, at no cost to plain
        calls, and the walk sees that a cotangent has levels that the value does not have. It names all its levels.
        """
        key = tuple(map(id, parts))
        known = self._dtypes.get(key)
        if known is None:
            inner = {level for d in parts for level in levels(d)}
            named = (*sorted(inner, key=lambda v: v.rank), self)  # weakly: no collector looks into a dtype
            mark = {"levels": tuple(map(weakref.ref, named)), "plain": plain(parts[0])}
            made = np.dtype(mark["plain"], copy=True, metadata=mark)
            known = self._dtypes[key] = parts, made  # holding the parts keeps their ids their own
        return known[1]


def levels(dtype: Any) -> tuple[Level, ...]:
    """The levels that a raw array's dtype names, lowest first."""
    if not dtype.metadata:
        return ()
    return tuple([level for known in dtype.metadata.get("levels", ()) if (level := known()) is not None])


def plain(dtype: Any) -> Any:
    """The dtype without levels."""
    return dtype.metadata.get("plain", dtype) if dtype.metadata else dtype


class Layered:
    """An array of a level. To the engine it is an array: shape, dtype, operators (see `interpret`), but no memory."""

    __slots__ = ("level",)
    __array_ufunc__ = None  # NumPy and CuPy leave the operators to us
    __hash__ = None  # type: ignore[assignment]
    base, flags = None, BORROWED
    level: Any

    @property
    def inner(self) -> Any:
        """What holds the values: an array of lower levels, or a plain one."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, as the function sees them."""
        return self.inner.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """The data type, marked with the levels."""
        return self.level.dtype(self.inner.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def varied(self) -> bool:
        """Whether there is a tangent at some level."""
        return isinstance(self.inner, Layered) and self.inner.varied

    @property
    def constant(self) -> Any:
        """The same values without tangents, at any level."""
        raise NotImplementedError

    def mapped(self, f: Any) -> Any:
        """The array with f applied to what it holds: for maps of lower levels."""
        raise NotImplementedError

    @property
    def values(self) -> Any:
        """The values alone, as a plain array."""
        raise NotImplementedError

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array inside jvp or vmap cannot be handed to NumPy; use gpugrad functions")


def innermost(x: Any) -> Any:
    """The plain array under all levels."""
    while isinstance(x, Layered):
        x = x.inner
    return x


def constant(x: Any) -> Any:
    """A raw array without tangents."""
    return x.constant if isinstance(x, Layered) else x


def top(args: Any) -> Level | None:
    """The highest level among raw arguments, or None."""
    found: Level | None = None
    for a in args:
        if isinstance(a, Layered) and (found is None or a.level.rank > found.rank):
            found = a.level
    return found
