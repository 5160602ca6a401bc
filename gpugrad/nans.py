"""Where a NaN comes from: every op, forward and backward, looked at as it runs, for as long as a block is open."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gpugrad import backends
from gpugrad.errors import DomainError, describe, fail
from gpugrad.layered import innermost
from gpugrad.op import Op
from gpugrad.profile import arrays
from gpugrad.swap import implementations
from gpugrad.tape import walk
from gpugrad.tensor import Tensor


@contextlib.contextmanager
def detect_nan(infinities: bool = False) -> Iterator[None]:
    """Raise DomainError at the first NaN that an op or its derivative makes in this thread, with the user's line.

    The message names the op, where the NaN is, and the range of each operand; for a gradient, the line whose derivative
    made it. A NaN that comes in with the data is reported by the first op whose result has it. infinities: report inf
    as well, where it is made of finite numbers. A branch that `where` drops counts when it is computed; in a gradient,
    where dropped branches are absorbed, it does not. Every result is read back, so it is slow, on a GPU above all.
    """
    inside = [0]  # how many rules are running: what they compute on the way may be absorbed

    def forward(op: Op, run: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        out = run(*args, **attrs)
        if not inside[0] and op.kind != "update":
            found = bad(out[0] if op.aux else out, args, infinities)
            if found:
                raise fail(DomainError, op.name, f"the result is {found}; from {ranges(args)}")
        return out

    def backward(op: Op, rule: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        F, t, *saved = args
        inside[0] += 1
        try:
            out = rule(*args, **attrs)
        finally:
            inside[0] -= 1
        found = bad(out, args[1:], infinities)
        care = found and care_of_the_walk()
        if care and op.fragile:  # as the walk will do with it
            found = bad(F.absorbed(out, t, infinite=care > 1), args[1:], infinities)
        if found:
            raise DomainError(f"the gradient is {found}; from {ranges((t, *saved))}")
        return out

    with implementations(forward, backward):
        yield


def care_of_the_walk() -> int:
    """What the walk that runs a rule now lets become zero instead of NaN; see `tape.walk`."""
    f: Any = sys._getframe(1)
    while f is not None and f.f_code is not walk.__code__:
        f = f.f_back
    return 0 if f is None else f.f_locals["care"]


def numbers(x: Any) -> Iterator[tuple[Any, Any]]:
    """Plain floating arrays of an argument or result, each with its array module."""
    if isinstance(x, (tuple, list)):
        for part in x:
            yield from numbers(part)
        return
    for array in arrays(innermost(x.data if isinstance(x, Tensor) else x)):
        if array.dtype.kind in "fcV" and array.size:
            yield array, backends.of(array).xp


def bad(out: Any, given: Any, infinities: bool) -> str:
    """'NaN at [1, 2]' for the first such number in a result, empty if there is none."""
    for array, xp in numbers(out):
        for kind, test in (("NaN", xp.isnan), ("infinite", xp.isinf))[: 1 + infinities]:
            if kind == "infinite" and any(mod.isinf(a).any() for a, mod in numbers(given)):
                continue
            where = test(array)
            if where.any():
                at = [int(i) for i in xp.argwhere(where)[0]]
                return f"{kind} at {at}" if at else kind
    return ""


def ranges(given: Any) -> str:
    """What went in: each array with its smallest and largest number, and how much of it is NaN."""
    shown = []
    for array, xp in numbers(given):
        missing = int(xp.isnan(array).sum())
        real = xp.abs(array) if array.dtype.kind == "c" else array
        span = "" if missing == array.size else f" in [{float(xp.nanmin(real)):g}, {float(xp.nanmax(real)):g}]"
        shown.append(f"{describe(array)}{span}" + (f", {missing} NaN" if missing else ""))
    return "; ".join(shown) or "no floating-point arrays"
