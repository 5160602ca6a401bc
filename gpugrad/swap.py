"""Another path through the op table, swapped in for a while: what watches programs costs nothing when it is away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gpugrad.backends import Impls
from gpugrad.op import RAW, TABLE, Op


class Layer:
    """What stands around implementations (and rules) while a block is open; `thread` None: in every thread."""

    def __init__(self, enter: Callable[..., Any], rule: Callable[..., Any] | None, thread: int | None) -> None:
        self.enter, self.rule, self.thread = enter, rule, thread


class Around:
    """`run` as an implementation that the layer's thread gets to through `enter(op, run, args, attrs)`."""

    __slots__ = ("layer", "op", "run")

    def __init__(self, layer: Layer, op: Op, run: Callable[..., Any]) -> None:
        self.layer, self.op, self.run = layer, op, run

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        if self.layer.thread is not None and threading.get_ident() != self.layer.thread:
            return self.run(*args, **attrs)
        enter: Any = self.layer.enter if type(self) is Around else self.layer.rule
        return enter(self.op, self.run, args, attrs)


class AroundRule(Around):
    """The same for a derivative rule, whose parameter names say what a call has to keep."""

    __slots__ = ("__wrapped__",)

    def __init__(self, layer: Layer, op: Op, run: Callable[..., Any]) -> None:
        super().__init__(layer, op, run)
        self.__wrapped__ = getattr(run, "__wrapped__", run)


def unwatched(_op: Op, run: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """The implementation as it is."""
    return run(*args, **attrs)


def without(run: Any, layer: Layer) -> Any:
    """An implementation without a layer, which may have others around it that were opened later."""
    if not isinstance(run, Around):
        return run
    run.run = without(run.run, layer)
    return run.run if run.layer is layer else run


def bare(run: Any) -> Any:
    """An implementation without the layers that are open, for what outlives them and is not to be watched."""
    while isinstance(run, Around):
        run = run.run
    return run


@contextlib.contextmanager
def implementations(
    enter: Callable[..., Any], rule: Callable[..., Any] | None = None, everywhere: bool = False
) -> Iterator[None]:
    """While open, this thread (or all of them) runs every op on raw arrays as `enter(op, run, args, attrs)`.

    rule: likewise for every vjp rule of the table, as `rule(op, run, args, attrs)`. Several may be open, and be closed
    in any order.
    """
    layer = Layer(enter, rule, None if everywhere else threading.get_ident())

    def wrap(op: Op, run: Any) -> Around:
        return Around(layer, op, run)

    Impls.layers.append(wrap)
    for op in TABLE.values():
        for cls, run in list(op.impls.items()):
            op.impls[cls] = wrap(op, run)
        if rule is not None:
            op.vjps = tuple([r and AroundRule(layer, op, r) for r in op.vjps])
            op.joint = op.joint and AroundRule(layer, op, op.joint)
    forget()
    try:
        yield
    finally:
        Impls.layers.remove(wrap)
        layer.enter = layer.rule = unwatched  # for a program that was made meanwhile and holds an Around
        for op in TABLE.values():
            for cls, run in list(op.impls.items()):
                op.impls[cls] = without(run, layer)
            op.vjps, op.joint = tuple([without(r, layer) for r in op.vjps]), without(op.joint, layer)
        forget()


def forget() -> None:
    """Make the raw namespaces look their ops up again."""
    for namespace in list(RAW.values()):
        for name in [n for n in vars(namespace) if n in TABLE]:
            del vars(namespace)[name]
