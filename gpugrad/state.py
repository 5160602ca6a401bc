"""State beside the graph: recording switch, creation counter, log of in-place writes."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from gpugrad.errors import user_frame

counter = itertools.count(1)
next_seq: Callable[[], int] = counter.__next__


class Mode(threading.local):
    """Per-thread recording switch, and how many functional gradients are being taken right now."""

    enabled: bool = True
    depth: int = 0
    draws: tuple[Draws, ...] = ()


mode = Mode()
switched: list[None] = []  # one for every open `switch` of any thread: only then does a call have to ask its `mode`


class Draws:
    """What random generators gave out during a call, so that a second run of it gets the same: a context.

    Inner contexts come later in `mode.draws`. A log notes the draws made within it, a replay of a log gives them again.
    """

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log: list[Any] = [] if log is None else log
        self._rest = None if log is None else iter(log)

    def again(self) -> Draws:
        """A replay of this log."""
        return Draws(self.log)

    def __enter__(self) -> Draws:
        mode.draws = (*mode.draws, self)
        return self

    def __exit__(self, *_: object) -> None:
        mode.draws = mode.draws[:-1]

    @staticmethod
    def replaying() -> bool:
        """Whether some call is being run a second time."""
        return any(d._rest is not None for d in mode.draws)

    @staticmethod
    def take(draw: Callable[[], Any]) -> Any:
        """The next draw: from the innermost replay, else a new one; noted in the logs inside that."""
        logs = []
        for d in reversed(mode.draws):
            if d._rest is not None:
                value = next(d._rest)
                break
            logs.append(d.log)
        else:
            value = draw()
        for log in logs:
            log.append(value)
        return value


def owner(array: Any) -> Any:
    """The array whose memory `array` is a view of; itself if it owns it or lives in a foreign buffer."""
    base = getattr(array, "base", None)
    return base if hasattr(base, "dtype") else array


class Writes:
    """Log of in-place writes: the walk compares a node's age with the last write to what it saved."""

    def __init__(self) -> None:
        self.last = 0
        self.log: dict[int, tuple[Any, int, CodeType, int]] = {}

    def note(self, *arrays: Any) -> None:
        """Remember that the memory of `arrays` was written now, by the user's current line."""
        code, lasti = user_frame()
        self.last = next_seq()
        for array in arrays:
            base = owner(array)
            old = self.log.get(id(base))  # an optimiser writes the same arrays at every step: keep their references
            self.log[id(base)] = (old[0] if old else self._watch(base), self.last, code, lasti)

    def _watch(self, base: Any) -> Any:
        """A weak reference that takes the entry out of the log when the memory is freed."""
        key = id(base)
        return weakref.ref(base, lambda _: self.log.pop(key, None))

    def since(self, array: Any, seq: int) -> tuple[CodeType, int] | None:
        """Where `array`'s memory was last written after `seq`, or None."""
        entry = self.log.get(id(owner(array)))
        return None if entry is None or entry[1] < seq else entry[2:]


writes = Writes()


LENT = 1 << 12  # bytes of memory that is worth asking for
ALONE = (lambda held: sys.getrefcount(held[0]))((object(),))  # references to a value that a tuple alone holds


def spare(parents: tuple[Any, ...], saved: tuple[Any, ...], i: int, g: Any, lean: bool) -> bool:
    """Whether saved array i may be overwritten: only its node holds it or a view of it, for one gradient alone.

    A rule of another input could still read it; views keep their owner alive, so its reference count tells of them.
    Of a `lean` node both it and the tuple `saved` hold the value. The cotangent `g` must be an array of its kind: what
    a layered one pulls back is computed more than once.
    """
    if sys.getrefcount(saved[i]) > ALONE + lean or len(parents) - parents.count(None) > 1:
        return False
    return type(g) is type(saved[i]) and saved[i].base is None and saved[i].flags.owndata  # type: ignore[no-any-return]


class Handle:
    """Removable registration of a hook."""

    def __init__(self, table: dict[int, Any], key: int) -> None:
        self._table, self._key = table, key

    def remove(self) -> None:
        """Take the hook out; calling twice is harmless."""
        self._table.pop(self._key, None)


Fn = TypeVar("Fn", bound=Callable[..., Any])


class switch:
    """Context manager and decorator that sets the recording switch of this thread; generators keep their own."""

    def __init__(self, enabled: bool) -> None:
        self._enabled, self._before = enabled, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        switched.append(None)
        self._before.append(mode.enabled)
        mode.enabled = self._enabled

    def __exit__(self, *_: object) -> None:
        mode.enabled = self._before.pop()
        switched.pop()

    def __call__(self, fn: Fn) -> Fn:
        if inspect.isgeneratorfunction(fn):

            @functools.wraps(fn)
            def steps(*args: Any, **kwargs: Any) -> Any:
                gen, sent = fn(*args, **kwargs), None
                while True:  # the switch holds while the body runs, never while it is suspended
                    try:
                        with switch(self._enabled):
                            value = gen.send(sent)
                    except StopIteration as stop:
                        return stop.value
                    sent = yield value

            return steps  # type: ignore[return-value]

        @functools.wraps(fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            with switch(self._enabled):
                return fn(*args, **kwargs)

        return run  # type: ignore[return-value]


def no_grad() -> switch:
    """Context or decorator in which nothing is recorded (this thread only)."""
    return switch(False)


def enable_grad() -> switch:
    """Context or decorator in which recording is on again, inside `no_grad`."""
    return switch(True)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return mode.enabled
