"""Streams and events: orders of work on a GPU beside each other, and how one waits for another. No-ops on the CPU."""

from __future__ import annotations

import threading
from typing import Any

from gpugrad import backends
from gpugrad.errors import DeviceError, fail
from gpugrad.tensor import Tensor


class Event:
    """A moment in the work of a stream: what `stream.record()` gives."""

    def __init__(self, stream: Stream) -> None:
        self.device, self._backend = stream.device, stream._backend
        with self._backend.scope(self.device):
            self._moment = self._backend.moment(stream.raw)

    @property
    def done(self) -> bool:
        """Whether the device has got there."""
        return self._backend.is_done(self._moment)  # type: ignore[no-any-return]

    def synchronize(self) -> None:
        """Wait until the device has got there. Raises what a kernel reported until then."""
        self._backend.wait_for(self._moment)

    def seconds_since(self, earlier: Event) -> float:
        """The device's own time between two events that are done."""
        return self._backend.seconds(earlier._moment, self._moment)  # type: ignore[no-any-return]


class Stream:
    """An order of work on a device: inside `with stream:` what this thread starts on that device belongs to it.

    Work of two streams runs in any order, at the same time too, unless one waits for the other: before a stream reads
    what another writes, or writes what another reads, `stream.wait(other)`. The host waits with `synchronize`, and for
    the current stream whenever it reads a value. Memory of an array belongs to the stream it was made in; see `keep`.
    Give each stream that draws random numbers a Generator of its own.

    device: on 'cpu' all work is done when a call returns, and there is nothing to wait for. external: a stream of
    another library to use as it is, such as PyTorch's: an object with `__cuda_stream__`, or the address as an integer.
    `raw` is CuPy's stream, None on the CPU. Raises DeviceError for an unusable device.
    """

    def __init__(self, device: str = "cuda", *, external: Any = None) -> None:
        backend: Any = backends.get(device)
        self._backend, self.device = backend, str(backend.full_name(device))
        self.raw = backend.new_stream(self.device, external)

    def __enter__(self) -> Stream:
        _entered.__dict__.setdefault("before", []).append(current_stream(self.device))
        self._backend.use_stream(self.device, self.raw)
        return self

    def __exit__(self, *_: object) -> None:
        before = _entered.before.pop()
        self._backend.use_stream(self.device, before.raw)

    def record(self) -> Event:
        """The moment when all that this stream was given so far is done."""
        return Event(self)

    def wait(self, other: Event | Stream) -> None:
        """Begin what this stream is given from now on after an event, or after all that another stream was given."""
        event = other.record() if isinstance(other, Stream) else other
        if "cpu" not in (self.device, event.device):
            self.raw.wait_event(event._moment)

    def synchronize(self) -> None:
        """Wait until all that this stream was given is done. Raises what a kernel reported until then."""
        self._backend.wait_for(self.raw)

    @property
    def done(self) -> bool:
        """Whether all that this stream was given is done."""
        return self._backend.is_done(self.raw)  # type: ignore[no-any-return]

    def keep(self, *tensors: Tensor) -> None:
        """Hold the memory of tensors until this stream has done what it was given so far.

        For what was made in another stream: memory that nobody holds is used again in the order of that one, while
        this one may still read it.
        """
        with self._backend.scope(self.device):
            self._backend.keep(self.raw, *(t.data for t in tensors))

    def __repr__(self) -> str:
        return f"Stream({self.device!r})" if self.raw is None else f"Stream({self.device!r}, {self.raw.ptr:#x})"


_entered = threading.local()  # the streams that were current before `with`, innermost last


def current_stream(device: str = "cuda") -> Stream:
    """The stream that this thread's work on a device goes to."""
    backend: Any = backends.get(device)
    stream = Stream.__new__(Stream)
    stream._backend, stream.device = backend, str(backend.full_name(device))
    stream.raw = backend.current_stream(stream.device)
    return stream


def pin_memory(self: Tensor) -> Tensor:
    """A copy in page-locked memory, from which `to(device, non_blocking=True)` does not wait. A constant.

    Itself if it lies there already, or without a GPU. Raises DeviceError for a tensor that is not on the CPU.
    """
    if self.device != "cpu":
        raise fail(DeviceError, "pin_memory", f"the tensor is on {self.device}; only memory of the host is pinned")
    if not backends.is_available("cuda"):
        return self
    backend: Any = backends.get("cuda")
    return self if backend.is_pinned(self.data) else Tensor(backend.pinned(self.data))


Tensor.pin_memory = pin_memory  # type: ignore[attr-defined]
