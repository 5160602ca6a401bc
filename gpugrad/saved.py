"""Hooks on what the graph saves: how to hold it between the forward and the backward pass (elsewhere, or smaller).

Nothing of this is on the path of ordinary calls: while a context is open, in any thread, another `carry` stands in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpugrad import op
from gpugrad.errors import DTypeError, describe, fail
from gpugrad.layered import LAYERS
from gpugrad.state import no_grad
from gpugrad.tensor import Full, Node, Tensor


class Hooks(NamedTuple):
    """A pair of functions that are each other's inverse."""

    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any], Tensor]


class Opened(threading.local):
    """The contexts that are open in a thread, innermost last."""

    hooks: tuple[Hooks, ...] = ()


opened = Opened()
lock = threading.Lock()
count = 0  # of open contexts, in all threads
carry = op.carry


class Packed:
    """What a node saved, in place of the tuple: reading it unpacks all of it.

    The rules of a call read it one after the other; so the values of the call read last are remembered, as long as
    it lives.
    """

    __slots__ = ("__weakref__", "hooks", "items")
    latest: weakref.WeakKeyDictionary[Packed, tuple[Any, ...]] = weakref.WeakKeyDictionary()

    def __init__(self, hooks: Hooks, saved: tuple[Any, ...]) -> None:
        self.hooks = hooks
        self.items = [((a.shape, a.dtype), hooks.pack(Tensor(a))) if packable(a) else (None, a) for a in saved]

    def unpack(self, promised: Any, value: Any) -> Any:
        """One saved value, of the promised shape and dtype."""
        if promised is None:
            return value
        x = self.hooks.unpack(value)
        if not isinstance(x, Tensor) or (x.data.shape, x.data.dtype) != promised:
            shape, dtype = promised
            raise fail(
                DTypeError, "saved_tensors_hooks",
                f"unpack returned {describe(x)}; pack was given a tensor {dtype}{list(shape)}",
            )  # fmt: skip
        return x.data

    def __iter__(self) -> Iterator[Any]:
        values = Packed.latest.get(self)
        if values is None:
            values = tuple([self.unpack(*item) for item in self.items])
            Packed.latest.clear()
            Packed.latest[self] = values
        return iter(values)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: Any) -> Any:
        return tuple(self)[i]


def packable(a: Any) -> bool:
    """Whether a saved value is an array with memory: no shape, number, or array of jvp or vmap."""
    return hasattr(a, "dtype") and hasattr(a, "flags") and type(a) not in LAYERS


def packing(node: Any, called: Any, first: Node | None, out: Any) -> Tensor:
    """`carry`, with the saved values packed if a context is open in this thread."""
    hooks, node.op = opened.hooks, called
    if not hooks or not any(map(packable, node.saved)):
        return carry(node, called, first, out)
    full = Full()
    full.attrs, full.parents, full.saved = node.attrs, node.parents, node.saved
    result = carry(full, called, first, out)
    opened.hooks = ()  # what pack computes is not packed
    try:
        full.saved = Packed(hooks[-1], node.saved)  # type: ignore[assignment]
    finally:
        opened.hooks = hooks
    return result


class saved_tensors_hooks:
    """Context in which what calls save for their gradient goes through pack, and through unpack when it is needed.

    pack(tensor) returns any object to keep instead; unpack(that) returns a tensor of the same shape, dtype and device,
    with values as exact as the gradient should be. Both see constants and record nothing. It holds for the thread that
    opened it; of nested contexts the innermost counts. Inputs are saved like results are, numbers and shapes are not
    packed. unpack runs once for each gradient that is taken; DTypeError where it gives another shape or dtype. Writing
    in place to a tensor that is packed is noticed only if unpack returns that very tensor.
    """

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        self._hooks = Hooks(quietly(pack), quietly(unpack))
        self._before: list[tuple[Hooks, ...]] = []

    def __enter__(self) -> None:
        global count
        self._before.append(opened.hooks)
        opened.hooks = (*opened.hooks, self._hooks)
        with lock:
            count += 1
            op.carry = packing  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        global count
        opened.hooks = self._before.pop()
        with lock:
            count -= 1
            if count == 0:
                op.carry = carry


def quietly(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f, recording nothing."""

    def run(x: Any) -> Any:
        with no_grad():
            return f(x)

    return run


def save_on_cpu() -> saved_tensors_hooks:
    """Context in which what is saved for the gradient waits in the host's memory: less on the GPU, for two copies.

    Each copy waits for the GPU. On the CPU it changes nothing.
    """
    return saved_tensors_hooks(
        lambda x: (x.device, x if x.device == "cpu" else x.to(device="cpu")),
        lambda kept: kept[1] if kept[0] == "cpu" else kept[1].to(device=kept[0]),
    )
