"""Constructors of table entries: what the files in `gpugrad.ops` (and users with an op of their own) call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpugrad.errors import GraphError, fail
from gpugrad.layered import LAYERS, constant, innermost, top
from gpugrad.op import Op, binary, nary, unary
from gpugrad.operands import explain_failure
from gpugrad.rules import Rule
from gpugrad.state import Draws, mode, writes
from gpugrad.tensor import Tensor


def finish(op: Op, call: Callable[..., Any], doc: str, floating: bool = False) -> Callable[..., Any]:
    """Name the dispatcher after its op, so that it reads as an ordinary function."""
    op.call = call
    call.__name__ = call.__qualname__ = op.name
    call.__doc__ = doc
    call.op, call.floating = op, floating  # type: ignore[attr-defined]
    return call


def elementwise(
    name: str, fwd: Any, *d: Rule | None, doc: str = "", floating: bool = False, attrs: bool = False, **more: Any
) -> Callable[..., Any]:
    """An elementwise op of len(d) arrays; d[i](F, t, out, *inputs) is t times the derivative in input i.

    `attrs`: the forward and the rules take keyword attributes. `floating`: integer inputs become the default float.
    """
    op = Op(name, fwd, d, kind="elementwise", **more)
    plain = not attrs and len(d) in (1, 2)
    call = (unary if len(d) == 1 else binary)(op, floating) if plain else nary(op, floating, promotes=len(d) > 1)
    return finish(op, call, doc, floating)


def linear(
    name: str, fwd: Any, *vjps: Rule | None, doc: str = "", promotes: bool = False, **more: Any
) -> Callable[..., Any]:
    """An op linear in all its array inputs jointly: its jvp is itself, the rules are its transpose."""
    op = Op(name, fwd, vjps, kind="linear", **more)
    return finish(op, nary(op, promotes=promotes), doc)


def multilinear(
    name: str, fwd: Any, *vjps: Rule | None, doc: str = "", promotes: bool = True, attrs: bool = True, **more: Any
) -> Callable[..., Any]:
    """An op linear in each array input separately: its jvp is the product rule. attrs=False: just two arrays."""
    op = Op(name, fwd, vjps, kind="multilinear", **more)
    return finish(op, nary(op, promotes=promotes) if attrs else binary(op, False), doc)


def general(
    name: str, fwd: Any, *vjps: Rule | None, doc: str = "", floating: bool = False, promotes: bool = False, **more: Any
) -> Callable[..., Any]:
    """Any other differentiable op: give `jvp=` beside the vjp rules (or `joint=`)."""
    op = Op(name, fwd, vjps, kind="general", **more)
    return finish(op, nary(op, floating, promotes), doc)


def nondiff(
    name: str, fwd: Any, arity: int = 1, *, doc: str = "", attrs: bool = False, promotes: bool = True, **more: Any
) -> Callable[..., Any]:
    """An op that has no derivative (comparisons, argmax, integer functions): never recorded."""
    op = Op(name, fwd, (None,) * arity, kind="nondiff", **more)
    call = nary(op, promotes=promotes) if attrs or arity not in (1, 2) else (unary if arity == 1 else binary)(op, False)
    return finish(op, call, doc)


def inplace(op: Op, written: int) -> Callable[..., None]:
    """Dispatcher of an op that overwrites its first `written` arguments: never recorded, noted in the write log.

    An argument is a Tensor or a list of Tensors (None where one is absent).
    """

    def bare(x: Any) -> Any:
        return [bare(v) for v in x] if type(x) is list else x.data if isinstance(x, Tensor) else x

    def call(*xs: Any, **attrs: Any) -> None:
        if mode.draws and Draws.replaying():  # the first run has made this update
            return
        raws = bare(list(xs))
        raws[written:] = [list(map(constant, x)) if type(x) is list else constant(x) for x in raws[written:]]
        outputs = [a for x in raws[:written] for a in (x if type(x) is list else (x,))]
        level = top([a for x in raws for a in (x if type(x) is list else (x,))])
        if any(type(a) in LAYERS and not a.level.in_place for a in outputs):
            raise fail(GraphError, op.name, "jvp and vmap cannot follow an in-place update of a value of theirs")
        try:
            if level is not None and level.in_place:
                level.run(op, tuple(raws), attrs)
            else:
                op.impls[type(outputs[0])](*raws, **attrs)
        except Exception as error:
            raise explain_failure(op.name, error, tuple(raws), attrs) from None
        writes.note(*map(innermost, outputs))

    call.written = written  # type: ignore[attr-defined]
    return call


def update(name: str, fwd: Any, written: int = 1, *, doc: str = "", **more: Any) -> Callable[..., Any]:
    """An op that overwrites its first `written` arguments (arrays or lists of arrays): no result, no derivative."""
    op = Op(name, fwd, kind="update", **more)
    return finish(op, inplace(op, written), doc)
