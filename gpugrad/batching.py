"""vmap: functions of one example run on all of them at once, by arrays whose batch axis the function does not see.

A Batched holds an array with the batch axis first, or one that is the same for every example. `batch_rules` says how
each op runs on the whole array; an op without a rule is done as its `via`, or example by example.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gpugrad.batch_rules import RULES, Call, elementwise, looped
from gpugrad.errors import GraphError, ShapeError, describe, fail
from gpugrad.interpret import Map, register
from gpugrad.layered import Layered, Level, constant
from gpugrad.op import RAW
from gpugrad.ops._axes import one_axis
from gpugrad.ops.creation import asarray
from gpugrad.tensor import Tensor
from gpugrad.tree import children, matching, tree_map

F: Any = RAW[Layered]  # serves arrays of any level, and plain ones


class Batched(Layered):
    """A raw array for each example of one level: the batch axis is the first of `array`, unless all share it."""

    __slots__ = ("array", "batched")

    def __init__(self, level: Level, array: Any, batched: bool = True) -> None:
        self.level, self.array, self.batched = level, array, batched

    @property
    def inner(self) -> Any:
        """The array with the batch axis."""
        return self.array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.array.shape[1:] if self.batched else self.array.shape)

    @property
    def constant(self) -> Any:
        """The same examples without tangents."""
        return Batched(self.level, constant(self.array), self.batched)

    @property
    def values(self) -> Any:
        """The value that all examples share. Raises GraphError where they may differ."""
        if self.batched:
            raise fail(
                GraphError, "vmap",
                "the examples of a batch differ, so none of them can be read as a number or a NumPy array here; "
                "choose with where(), or return the value",
            )  # fmt: skip
        return self.array.values if isinstance(self.array, Layered) else self.array

    def mapped(self, f: Callable[[Any], Any]) -> Batched:
        """The array through a map of a lower level."""
        return Batched(self.level, f(self.array), self.batched)


register(Batched)


class Examples(Level):
    """One running `vmap` of `size` examples."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def wrap(self, x: Any) -> Batched:
        """A value that all examples share."""
        return Batched(self, x, False)

    def lift(self, x: Any) -> Any:
        """As `wrap`, for Tensors too."""
        return share(x, level=self)

    def lower(self, g: Any) -> Any:
        """The cotangent of a shared value: the sum over the examples."""
        return total(g, level=self)

    def run(self, op: Any, args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """The op's rule, or its composition, or a loop over the examples."""
        mine = [isinstance(a, Batched) and a.level is self for a in args]
        xs = [a.array if m else a for a, m in zip(args, mine)]
        on = [m and a.batched for a, m in zip(args, mine)]
        call, batched = Call(self, op, args, xs, on), any(on)
        rule: Callable[..., Any] | None = RULES.get(op.name, elementwise if op.kind == "elementwise" else None)
        out = call(*xs, **attrs) if not batched else NotImplemented if rule is None else rule(call, **attrs)
        if out is NotImplemented:
            batched = op.via is None  # of a composition, what does not depend on the example comes as it is
            out = looped(call, **attrs) if batched else op.via(F, *args, **attrs)
        outs = [o if isinstance(o, Batched) and o.level is self else Batched(self, o, batched)
                for o in (out if op.nout > 1 else (out,))]  # fmt: skip
        whole = tuple(outs) if op.nout > 1 else outs[0]
        return (whole, None) if op.aux else whole  # rules of a layered call compute the auxiliary value anew


# --- maps between batched and plain arrays ------------------------------------------------------------------


def _around(x: Any, level: Level) -> bool:
    """Whether x is of a higher level, which then holds what the map is about."""
    return isinstance(x, Layered) and x.level.rank > level.rank


def _within(f: Any, x: Any, axis: int, **more: Any) -> Any:
    """f on what a higher level holds, whose own batch axis comes before all others."""
    return x.mapped(lambda v: f(v, axis=axis + (isinstance(x, Batched) and x.batched), **more))


def _first(x: Any, axis: int) -> Any:
    return F.transpose(x, axes=(axis, *(i for i in range(x.ndim) if i != axis))) if axis else x


def _split(x: Any, level: Examples, axis: int) -> Any:
    if _around(x, level):
        return _within(_split, x, axis, level=level)
    return Batched(level, _first(x, axis))


def _gathered(x: Any, level: Examples, axis: int) -> Any:
    if _around(x, level):
        return _within(_gathered, x, axis, level=level)
    if not isinstance(x, Batched) or x.level is not level or not x.batched:
        x = x.array if isinstance(x, Batched) and x.level is level else x
        x = Batched(level, F.broadcast_to(x, shape=(level.size, *x.shape)))
    a = x.array
    return F.transpose(a, axes=(*range(1, axis + 1), 0, *range(axis + 1, a.ndim))) if axis else a


def _total(x: Any, level: Examples) -> Any:
    if _around(x, level):
        return x.mapped(lambda v: _total(v, level))
    if not isinstance(x, Batched) or x.level is not level:
        return x * level.size
    return F.sum(x.array, axis=(0,), keepdims=False) if x.batched else x.array * level.size


split = Map("vmap in", _split)
merge = Map("vmap out", _gathered)
share = Map("vmap constant", lambda x, level: Batched(level, x, False))
total = Map("vmap sum", _total)
split.pulls_back(merge)
merge.pulls_back(split)
share.pulls_back(total)
total.pulls_back(share)


# --- vmap ---------------------------------------------------------------------------------------------------


def vmap(f: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """f for each example of a batch, run once on all of them.

    in_axes: the batch axis of each argument, as one integer for all or a tuple; None for an argument that all examples
    share; for a nested argument also a container like it, of integers and None. Keyword arguments are shared. out_axes:
    where the results get the batch axis, likewise; None where it is known to be the same for all. Inside f shapes are
    those of one example; random draws are the same for all; a value that depends on the example cannot be read, so
    choose with `where`. Composes with grad, jvp and itself. Raises ShapeError where batch sizes differ or are missing.
    """

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        axes = tuple(in_axes) if isinstance(in_axes, (tuple, list)) else (in_axes,) * len(args)
        if len(axes) != len(args):
            raise fail(ShapeError, "vmap", f"in_axes has {len(axes)} entries for {len(args)} arguments")
        given = prefixed(lambda x, axis: x if axis is None else asarray(x), args, axes)
        found: list[int] = []
        prefixed(lambda x, axis: None if axis is None else found.append(length(x, axis)), given, axes)
        sizes = set(found)
        if len(sizes) != 1:
            what = f"batch sizes {sorted(sizes)}" if sizes else "no argument with a batch axis"
            raise fail(ShapeError, "vmap", f"{what}; expected one batch size")
        with Examples(sizes.pop()) as level:
            inside = prefixed(
                lambda x, axis: x if axis is None else split(x, level=level, axis=one_axis(axis, x.ndim, "vmap")),
                given, axes,
            )  # fmt: skip
            return prefixed(lambda y, axis: result(asarray(y), axis, level), f(*inside, **kwargs), out_axes)

    return run


def length(x: Tensor, axis: int) -> int:
    """The batch size of an argument. Raises ShapeError for a number."""
    if not x.ndim:
        raise fail(ShapeError, "vmap", f"{describe(x)} has no axis to be a batch; say in_axes=None for it")
    return x.shape[one_axis(axis, x.ndim, "vmap")]


def result(y: Tensor, axis: int | None, level: Examples) -> Any:
    """A result of the function with its batch axis in place."""
    if axis is not None:
        return merge(y, level=level, axis=one_axis(axis, y.ndim + 1, "vmap"))
    a = y.data
    if isinstance(a, Batched) and a.level is level and a.batched:
        raise fail(ShapeError, "vmap", f"a result {describe(y)} differs between examples; its out_axes cannot be None")
    return merge(y, level=level, axis=0)[0]


def prefixed(fn: Callable[[Any, Any], Any], tree: Any, axes: Any) -> Any:
    """fn(leaf, axis) over a structure, where one axis stands for everything below it."""
    if axes is None or isinstance(axes, int):
        return tree_map(lambda x: fn(x, axes), tree)
    found = children(tree)
    if found is None:
        raise fail(ShapeError, "vmap", f"axes {axes!r} do not fit {describe(tree)}")
    parts, rebuild = found
    return rebuild([prefixed(fn, p, a) for p, a in zip(parts, matching(tree, parts, axes))])
