"""Derivative rules: how a rule's signature is its save list, and the forward rules that follow from an op's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
DROP, SHAPE, KEEP = 0, 1, 2  # of several rules the one that needs most decides
VARARGS = 4  # inspect.CO_VARARGS


def save_list(rule: Rule | None) -> tuple[int, ...]:
    """Read a rule's signature: codes for (out, *inputs, aux); a starred parameter's code is negative minus one."""
    if rule is None:
        return ()
    rule = getattr(rule, "__wrapped__", rule)
    code = getattr(rule, "func", rule).__code__  # read directly: inspect takes longer than all the rest of the import
    names = code.co_varnames[: code.co_argcount][2:]
    codes = [code_of(name) for name in names]
    if code.co_flags & VARARGS:
        codes.append(-1 - code_of(code.co_varnames[code.co_argcount + code.co_kwonlyargcount]))
    return tuple(codes)


def code_of(name: str) -> int:
    """What a parameter's name asks for."""
    return DROP if name.startswith("_") else SHAPE if name.endswith("_shape") else KEEP


def expand(codes: tuple[int, ...], n: int) -> tuple[int, ...]:
    """A save list of exactly n codes: a starred entry is repeated, missing ones are dropped values."""
    for i, c in enumerate(codes):
        if c < 0:
            codes = codes[:i] + (-1 - c,) * (n - len(codes) + 1) + codes[i + 1 :]
    return codes + (DROP,) * (n - len(codes))


def reading_shapes(rule: Rule, codes: tuple[int, ...], others: list[tuple[int, ...]]) -> Rule:
    """The rule itself, or where it asks for the shape of a value that another rule keeps, one that takes the shape."""
    kept = {i for other in others for i, c in enumerate(other) if c == KEEP}
    asked = [i for i, c in enumerate(codes) if c == SHAPE and i in kept]
    if not asked:
        return rule

    def run(F: Any, t: Any, *saved: Any, **attrs: Any) -> Any:
        values = list(saved)
        for i in asked:
            values[i] = getattr(values[i], "shape", values[i])
        return rule(F, t, *values, **attrs)

    run.__wrapped__ = rule  # type: ignore[attr-defined]
    return run


def push_elementwise(op: Any, F: Any, ts: tuple[Any, ...], out: Any, *inputs: Any, **attrs: Any) -> Any:
    """The Jacobian is diagonal, so the one derivative serves both directions."""
    parts = [d(F, t, out, *inputs, **attrs) for d, t in zip(op.vjps, ts) if t is not None and d is not None]
    total = add_up(parts)
    return total if total.shape == out.shape else F.broadcast_to(total, shape=out.shape)


def push_linear(op: Any, F: Any, ts: tuple[Any, ...], out: Any, *inputs: Any, **attrs: Any) -> Any:
    """Linear in all array inputs jointly: the op itself, on tangents (zero where an input is not varied)."""
    full = [F.zeros_like(x) if t is None and hasattr(x, "shape") else t for t, x in zip(ts, inputs)]
    return getattr(F, op.name)(*full, **attrs)


def push_multilinear(op: Any, F: Any, ts: tuple[Any, ...], out: Any, *inputs: Any, **attrs: Any) -> Any:
    """Linear in each input separately: the product rule."""
    run = getattr(F, op.name)
    return add_up([run(*inputs[:i], t, *inputs[i + 1 :], **attrs) for i, t in enumerate(ts) if t is not None])


PUSH = {"elementwise": push_elementwise, "linear": push_linear, "multilinear": push_multilinear}


def add_up(parts: list[Any]) -> Any:
    """Sum of at least one array, in order."""
    total = parts[0]
    for p in parts[1:]:
        total = total + p
    return total
