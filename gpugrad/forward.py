"""Forward mode: dual arrays that carry a tangent through every op, and `jvp`, which streams them.

A Dual is a pair (primal, tangent); a missing tangent stands for zero. Each op pushes tangents by its `jvp` rule as it
runs, and nothing is kept: memory does not grow with depth. A Dual inside a Tensor goes through the tape like any
array, which makes the gradient itself a Dual: Pearlmutter's R-operator.

The other way round, when a graph that was recorded on duals of a finished level is walked, cotangents are duals with
their halves exchanged: with x + e x', the transpose of d(f, f') in (cotangent of f', cotangent of f) is again
multiplication by the dual Jacobian. Hence `primal` and `embed`, `tangent` and `lift` are each other's transposes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpugrad.dtypes import is_float
from gpugrad.errors import DTypeError, ShapeError, describe, fail
from gpugrad.interpret import Map, apply, boxed, descend, namespace, register
from gpugrad.layered import Layered, Level, constant
from gpugrad.op import RAW, RECORDING
from gpugrad.ops.creation import asarray
from gpugrad.tensor import Tensor
from gpugrad.tree import tree_map


class Dual(Layered):
    """A raw array with the tangent of one level, of equal shape and dtype; None is a zero tangent."""

    __slots__ = ("primal", "tangent")

    def __init__(self, level: Level, primal: Any, tangent: Any = None) -> None:
        self.level, self.primal, self.tangent = level, primal, tangent

    @property
    def inner(self) -> Any:
        """The primal."""
        return self.primal

    @property
    def dtype(self) -> Any:
        """The data type, marked with the levels of both halves."""
        if self.tangent is None:
            return self.level.dtype(self.primal.dtype)
        return self.level.dtype(self.primal.dtype, self.tangent.dtype)

    @property
    def varied(self) -> bool:
        """Whether there is a tangent, here or at a lower level."""
        return self.tangent is not None or super().varied

    @property
    def constant(self) -> Any:
        """The primal without its own tangents."""
        return constant(self.primal)

    @property
    def values(self) -> Any:
        """The primal's values."""
        return self.primal.values if isinstance(self.primal, Layered) else self.primal

    def mapped(self, f: Callable[[Any], Any]) -> Dual:
        """Both halves through a linear map of a lower level."""
        return Dual(self.level, f(self.primal), None if self.tangent is None else f(self.tangent))


register(Dual)


class Forward(Level):
    """One running `jvp`."""

    def wrap(self, x: Any) -> Dual:
        """A constant of this level."""
        return Dual(self, x)

    def lift(self, x: Any) -> Any:
        """As `wrap`, for Tensors too."""
        return lift(x, level=self)

    def lower(self, g: Any) -> Any:
        """The cotangent of a constant: see the exchange of halves above."""
        return tangent(g, level=self)

    def run(self, op: Any, args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """The op on the primals, and its jvp rule on the tangents."""
        xs, ts = (list(half) for half in zip(*map(self.halves, args)))
        if op.joint is None:  # an input without a rule has no derivative
            ts = [t if i < len(op.vjps) and op.vjps[i] is not None else None for i, t in enumerate(ts)]
        if op.via is not None and (op.jvp is None or op.aux):
            return op.via(RAW[Dual], *args, **attrs)
        out = apply(op, *xs, **attrs)
        out, extra = out if op.aux else (out, None)
        if all(t is None for t in ts) or not op.differentiable:
            pushed: Any = (None,) * op.nout if op.nout > 1 else None
        else:
            pushed = op.jvp(namespace((*xs, *ts)), tuple(ts), out, *xs, *((extra,) if op.aux else ()), **attrs)
        whole = tuple(map(self.paired, out, pushed)) if op.nout > 1 else self.paired(out, pushed)
        return (whole, None) if op.aux else whole  # rules of a layered call compute the auxiliary value anew

    def halves(self, a: Any) -> tuple[Any, Any]:
        """An argument's primal, and its tangent or None."""
        return (a.primal, a.tangent) if isinstance(a, Dual) and a.level is self else (a, None)

    def paired(self, out: Any, t: Any) -> Dual:
        """An output with its tangent, brought to the output's shape and dtype."""
        if t is not None and out.dtype.kind == "c":
            raise fail(DTypeError, "jvp", "a tangent goes into complex numbers, which have no derivative yet")
        if t is None or not is_float(out.dtype):
            return Dual(self, out)
        t = boxed(t)
        F = namespace((out, t))
        if t.shape != out.shape:
            t = F.broadcast_to(t, shape=out.shape)
        return Dual(self, out, t if t.dtype == out.dtype else F.astype(t, dtype=out.dtype))


# --- maps between a level's duals and their halves ----------------------------------------------------------


def _of(x: Any, level: Level) -> Any:
    """x as a dual of the level: constants of the level arrive as they are."""
    return x if isinstance(x, Dual) and x.level is level else Dual(level, x)


def _half(x: Any, level: Level) -> Any:
    x = _of(x, level)
    return namespace((x.primal,)).zeros_like(x.primal) if x.tangent is None else x.tangent


primal = Map("primal", descend(lambda x, level: _of(x, level).primal))
tangent = Map("tangent", descend(_half))
lift = Map("lift", lambda x, level: Dual(level, x))
embed = Map("embed", lambda x, level: Dual(level, namespace((x,)).zeros_like(x), x))
dual = Map("dual", lambda x, t, level: Dual(level, x, t))
primal.pulls_back(embed)
tangent.pulls_back(lift)
lift.pulls_back(tangent)
embed.pulls_back(primal)
dual.pulls_back(tangent, primal)


# --- jvp ----------------------------------------------------------------------------------------------------


def jvp(f: Callable[..., Any], primals: Any, tangents: Any, *, has_aux: bool = False) -> Any:
    """(f(*primals), its derivative along tangents), in one streaming pass that keeps nothing.

    primals: a tuple of arguments, each a Tensor, a number, an array, or nested containers of those; tangents: the same
    structure with shapes as in primals, cast to their dtypes, None where an argument is held fixed. Returns the value
    and the tangent of f in the structure of its result; with has_aux f returns (out, aux) and aux comes third. Nests in
    itself, grad and vmap to any order. Raises ShapeError where structure or shapes differ, DTypeError for integers.
    """
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise fail(DTypeError, "jvp", "primals and tangents are tuples, one entry for each argument of the function")
    if len(primals) != len(tangents):
        raise fail(ShapeError, "jvp", f"{len(primals)} primals and {len(tangents)} tangents; expected as many")
    with Forward() as level:
        result = f(*[tree_map(partial(enter, level), x, t) for x, t in zip(primals, tangents)])
        out, aux = result if has_aux else (result, None)
        halves = [tree_map(lambda y, half=half: half(asarray(y), level=level), out) for half in (primal, tangent)]
        aux = tree_map(lambda y: primal(y, level=level) if isinstance(y, Tensor) else y, aux)
    return (*halves, aux) if has_aux else tuple(halves)


def enter(level: Level, given: Any, t: Any) -> Any:
    """An argument of jvp as a dual; one without a tangent as it is."""
    x = variable(given)
    if t is None:
        return x
    t = asarray(t)
    if t.shape != x.shape:
        raise fail(ShapeError, "jvp", f"the tangent {describe(t)} does not have the shape of its primal {describe(x)}")
    if not is_float(x.dtype):
        raise fail(DTypeError, "jvp", f"only floating-point arguments have tangents, not {describe(x)}")
    if t.dtype != x.dtype:
        t = RECORDING.astype(t, dtype=x.dtype)
    return dual(x, t.to(device=x.device), level=level)


def variable(x: Any) -> Tensor:
    """An argument as a Tensor; a Python int stands for a float."""
    return asarray(float(x) if type(x) is int else x)
