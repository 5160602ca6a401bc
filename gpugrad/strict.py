"""Strict shapes: no elementwise function stretches an array to more axes than it has, unless it is asked to.

What users write is held to it, at whatever level (`grad`, `jvp`, `vmap`); what gpugrad does for them is not: layers,
losses (which never broadcast anyway) and derivative rules broadcast as they need to.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpugrad import op, protocols, swap
from gpugrad.errors import INTERNAL, ShapeError, describe, fail
from gpugrad.op import Op
from gpugrad.ops import elementwise
from gpugrad.swap import implementations

# Comparisons, logic and bits have no derivative; of the other elementwise functions the kind tells.
STEPS = frozenset({
    "bitwise_and", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "equal", "floor_divide",
    "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or", "logical_xor", "nextafter",
    "not_equal",
})  # fmt: skip
BESIDE = frozenset({__file__, swap.__file__, str(Path(__file__).with_name("profile.py"))})
SPELLINGS = frozenset({op.__file__, elementwise.__file__, protocols.__file__})


class Setting(threading.local):
    """What `strict_shapes` chose in this thread; None: what the process has."""

    chosen: bool | None = None


setting = Setting()
process = contextlib.ExitStack()  # holds the layer of `set_strict_shapes`


def set_strict_shapes(enabled: bool) -> None:
    """Refuse implicit broadcasting to more axes, in the whole process, until it is switched off again.

    An elementwise function or operator of arrays that have different numbers of axes, none of them 0-d, then raises
    ShapeError at the user's line: say x[None], expand_dims or broadcast_to. Axes of length 1 and numbers broadcast as
    ever. Programs that are not strict pay nothing for it.
    """
    process.close()
    if enabled:
        process.enter_context(implementations(watch, everywhere=True))


@contextlib.contextmanager
def strict_shapes(enabled: bool = True) -> Iterator[None]:
    """`set_strict_shapes` for a block of code or, as a decorator, a function, in this thread only.

    enabled=False allows broadcasting to more axes inside a strict program.
    """
    before, setting.chosen = setting.chosen, enabled
    with implementations(watch) if enabled else contextlib.nullcontext():
        try:
            yield
        finally:
            setting.chosen = before


def watch(op: Op, run: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """The op, if the user did not ask for it with arrays of different ranks."""
    if setting.chosen is not False and (op.kind == "elementwise" or op.name in STEPS):
        ranks = {len(a.shape) for a in args if hasattr(a, "shape")} - {0}
        if len(ranks) > 1 and by_the_user(op.name):
            given = ", ".join(describe(a) for a in args if a is not None)
            raise fail(
                ShapeError, op.name,
                f"({given}): {' and '.join(map(str, sorted(ranks)))} axes; strict shapes allow no implicit "
                "broadcasting to more axes; use x[None], expand_dims or broadcast_to",
            )  # fmt: skip
    return run(*args, **attrs)


def by_the_user(name: str) -> bool:
    """Whether the op that is about to run was called by the user, not by a rule, a layer or a transformation."""
    f: Any = sys._getframe(1)
    while f.f_code.co_filename in BESIDE:
        f = f.f_back
    if f.f_code.co_filename != op.__file__:
        return False
    while f is not None and (f.f_code.co_filename in SPELLINGS or f.f_code.co_name == f"_np_{name}"):
        f = f.f_back
    return f is not None and not INTERNAL[f.f_code.co_filename]
