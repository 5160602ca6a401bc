"""Streams, events, graphs and pinned memory of CuPy's double.

Work is done at once. Inside `late(seed)` it waits in its stream, as on a GPU, and is done at odd moments that only
the order of streams, events and waiting bound. Memory that was freed, on the device or pinned, is overwritten once
somebody else could have got it. So a missing wait gives a wrong number, under most seeds.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

POISON = 0xFF
waited: list[str] = []


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""


def poison(host: Any) -> None:
    """Make unwritten memory visible: all bytes 0xFF."""
    host.reshape(-1, order="A").view(np.uint8).fill(POISON) if host.flags.forc else host.fill(-1)


# --- work -----------------------------------------------------------------------------------------------------------


class Work:
    """A piece of work in a stream: what to do, what has to be done before, and when it was done."""

    def __init__(self, do: Callable[[], Any], after: Iterable[Work] = ()) -> None:
        self.do, self.after = do, [w for w in after if w.moment is None]
        self.moment: float | None = None

    def perform(self) -> None:
        """Do it."""
        try:
            self.do()
        finally:
            self.moment, self.after = time.perf_counter(), []


class Late:
    """Streams whose work waits; `rate` is how likely some of it is done while the host goes on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rate = self.random.choice((0.0, 0.2, 0.5, 0.8))
        self.queues: dict[int, deque[Work]] = {}  # by the stream's address
        self.apart: set[int] = set()  # addresses of non-blocking streams
        self.free: dict[Any, list[Any]] = {}  # memory that nobody holds, by pool and address of its stream
        self.used: list[Any] = []  # the same once it has a next owner: old work still has its address
        self.pinned: list[bytearray] = []  # pinned memory that nobody holds
        self.busy = False

    def add(self, do: Callable[[], Any], stream: Stream, after: Iterable[Work] = ()) -> Work:
        """Queue work in a stream. The null stream and the blocking ones wait for each other."""
        if stream.non_blocking:
            self.apart.add(stream.ptr)
        pairs = [(p, q) for p, q in self.queues.items() if q and p != stream.ptr and (p == 0 or stream.ptr == 0)]
        work = Work(do, [*after, *(q[-1] for p, q in pairs if not {p, stream.ptr} & self.apart)])
        self.queues.setdefault(stream.ptr, deque()).append(work)
        while self.random.random() < self.rate and self.step():
            pass
        return work

    def step(self) -> bool:
        """Do the next work of some stream, if there is any that may be done."""
        if self.busy:
            return False
        self.busy = True
        try:
            ready = [q for q in self.queues.values() if q and all(w.moment is not None for w in q[0].after)]
            if not ready:
                return False
            queue = self.random.choice(ready)
            try:
                queue[0].perform()
            finally:
                queue.popleft()
            return True
        finally:
            self.busy = False

    def until(self, work: Work) -> None:
        """Do whatever comes up until this is done."""
        while work.moment is None:
            assert self.step(), "work that waits for itself"

    def drain(self, streams: Iterable[Stream] | None = None) -> None:
        """Do all work of these streams, or of all."""
        for address in [s.ptr for s in streams] if streams else list(self.queues):
            while queue := self.queues.get(address):
                self.until(queue[-1])


@contextlib.contextmanager
def late(seed: int) -> Iterator[Late]:
    """Let work wait, and be done in an order drawn from `seed`."""
    Stream.late = Late(seed)
    try:
        yield Stream.late
        Stream.late.drain()
    finally:
        Stream.late = None


def deferred() -> bool:
    """Whether work is not done at once: it waits, or is captured."""
    return Stream.capturing is not None or Stream.late is not None


def submit(do: Callable[[], Any], stream: Stream | None = None, after: Iterable[Work] = ()) -> Work:
    """Give work to a stream: it is done at once, later, or at each launch of the graph that is captured."""
    work = Work(do)
    if Stream.capturing is not None:
        Stream.capturing.work.append(do)
    elif Stream.late is not None:
        return Stream.late.add(do, stream or Stream.current, after)
    else:
        work.perform()
    return work


def settle() -> None:
    """What CuPy does where a shape depends on values, or a decomposition may fail: wait for the current stream."""
    if Stream.late is not None:
        Stream.late.drain([Stream.current])


def wait(what: str, work: Work | None = None, streams: Iterable[Stream] | None = None) -> None:
    """The host waits for work, or for streams, or for all; a capture does not allow it."""
    if Stream.capturing is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream captures")
    waited.append(what)
    if Stream.late is not None and work is not None:
        Stream.late.until(work)
    elif Stream.late is not None:
        Stream.late.drain(streams)


def freed(host: Any, pool: Any, stream: Stream) -> None:
    """Memory goes back to the arena of its stream in a pool."""
    if stream.late is not None:
        stream.late.free.setdefault((id(pool), stream.ptr), []).append(host)


def allocated(pool: Any, stream: Stream) -> None:
    """Somebody takes memory of an arena, all that is free there: he writes to it in the order of the stream."""
    if stream.late is not None:
        for host in stream.late.free.pop((id(pool), stream.ptr), []):
            stream.late.used.append(host)
            if host.flags.writeable:
                stream.late.add(functools.partial(poison, host), stream)


# --- streams, events, graphs ----------------------------------------------------------------------------------------


class Graph:
    """What a stream captured: the work in order, and the arrays whose memory it uses."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []
        self.kept: list[Any] = []

    def launch(self, stream: Stream | None = None) -> None:
        """Do the work once more."""
        for do in self.work:
            submit(do, stream)

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing to prepare."""


class Stream:
    """A stream."""

    capturing: Graph | None = None
    late: Late | None = None
    current: Stream
    numbers = itertools.count(1)
    pool_is_shared: Callable[[], bool] = staticmethod(lambda: False)  # whether arrays come from the default pool

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr = 0 if null else next(Stream.numbers)
        self.non_blocking = non_blocking
        self.before: list[Stream] = []

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        """The stream of another library, by its address; it stays that library's."""
        stream = cls(null=True)
        _, stream.ptr = obj.__cuda_stream__()
        return stream

    def begin_capture(self, mode: Any = None) -> None:
        """Record work instead of doing it, until `end_capture`."""
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream cannot capture")
        if Stream.pool_is_shared():
            raise CUDARuntimeError("a capture needs a pool of its own: the default one hands out again what it frees")
        Stream.capturing = Graph()

    def end_capture(self) -> Graph:
        """What was recorded."""
        graph, Stream.capturing = Stream.capturing, None
        assert graph is not None, "no capture was begun"
        return graph

    def is_capturing(self) -> bool:
        """Whether work is being recorded."""
        return Stream.capturing is not None

    @property
    def done(self) -> bool:
        """Whether all its work is."""
        return Stream.late is None or not Stream.late.queues.get(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        """A moment in this stream."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Later work here begins after the event."""
        if Stream.capturing is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureIsolation: an event from outside of the capture")
        submit(lambda: None, self, [event.work] if event.work else [])

    def use(self) -> Stream:
        """Make it current."""
        Stream.current = self
        return self

    def synchronize(self) -> None:
        """Wait."""
        wait("Stream.synchronize", streams=[self])

    def __enter__(self) -> Stream:
        self.before.append(Stream.current)
        return self.use()

    def __exit__(self, *_: object) -> None:
        Stream.current = self.before.pop()


Stream.current = Stream(null=True)


class Event:
    """A moment in a stream, by the host's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.work: Work | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Note the moment."""
        if Stream.capturing is not None:
            raise CUDARuntimeError("cudaErrorCapturedEvent: an event in a capture")
        self.work = submit(lambda: None, stream)

    @property
    def done(self) -> bool:
        """Whether it has happened; one that was never recorded has."""
        return self.work is None or self.work.moment is not None

    def synchronize(self) -> None:
        """Wait."""
        wait("Event.synchronize", self.work)


def elapsed(start: Event, end: Event) -> float:
    """Milliseconds between two recorded moments."""
    if start.work is None or end.work is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event was not recorded")
    if start.work.moment is None or end.work.moment is None:
        raise CUDARuntimeError("cudaErrorNotReady: the work before an event is not done")
    return (end.work.moment - start.work.moment) * 1e3


# --- pinned memory --------------------------------------------------------------------------------------------------


class PinnedMemoryPointer(np.ndarray):
    """Page-locked memory, to which NumPy arrays are made; CuPy hands it out again once none of them is left."""


def alloc_pinned_memory(size: int) -> Any:
    """So many bytes of it. The new owner writes to it at once: it is the host."""
    while Stream.late is not None and Stream.late.pinned:
        free = Stream.late.pinned.pop()
        free[:] = bytes([POISON]) * len(free)
    storage = bytearray(size)
    pointer: Any = np.ndarray.__new__(PinnedMemoryPointer, size, np.uint8, storage)
    weakref.finalize(pointer, dropped, storage).atexit = False
    return pointer


def dropped(storage: bytearray) -> None:
    """Nobody holds a piece of pinned memory any more."""
    if Stream.late is not None:
        Stream.late.pinned.append(storage)


def behind(host: Any) -> Any:
    """An array on the memory of a pinned one that does not keep it; None for memory that is not pinned."""
    owner: Any = host
    while owner is not None and not isinstance(owner, PinnedMemoryPointer):
        owner = getattr(owner, "base", None)
    if owner is None or not host.flags.c_contiguous or not host.size:
        return None
    storage: Any = owner.base
    start = host.ctypes.data - owner.ctypes.data
    return np.frombuffer(storage, host.dtype, host.size, start).reshape(host.shape)
