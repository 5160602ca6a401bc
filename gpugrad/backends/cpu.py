"""The NumPy backend: always present, and the specification of every op."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from typing import Any

import numpy as np


class CPUBackend:
    """NumPy arrays on the host."""

    name = "cpu"
    xp: Any = np
    array_type: type = np.ndarray
    launches = 0

    def implement(self, fwd: Any, special: dict[str, Any]) -> Any:
        """A NumPy function by name, or a Python function of (xp, *arrays, **attrs) bound to NumPy."""
        run = special.get("cpu", fwd)
        return getattr(np, run) if isinstance(run, str) else functools.partial(run, np)

    def asarray(self, value: Any, dtype: Any = None, *, device: str | None = None, copy: bool | None = None) -> Any:
        """NumPy's asarray, always a base-class array."""
        return np.array(value, dtype=dtype, copy=copy)

    def to_numpy(self, array: Any) -> Any:
        """The array itself."""
        return array

    def device_of(self, array: Any) -> str:
        """Always 'cpu'."""
        return "cpu"

    def scope(self, device: str) -> Any:
        """Nothing to switch on the host."""
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Nothing to wait for on the host."""

    def release_memory(self) -> None:
        """Give freed memory back to the system, where the C library can; it is kept for later arrays otherwise."""
        with contextlib.suppress(AttributeError, OSError, TypeError):  # neither musl, macOS nor Windows has it
            ctypes.CDLL(None).malloc_trim(0)

    def moment(self, stream: None = None) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start

    def full_name(self, device: str) -> str:
        """Always 'cpu'."""
        return "cpu"

    def new_stream(self, device: str, external: Any = None) -> None:
        """There is no order but the host's own."""

    use_stream = current_stream = new_stream

    def is_done(self, work: Any) -> bool:
        """Work is done when the call returns."""
        return True

    def wait_for(self, work: Any) -> None:
        """Nothing to wait for on the host."""

    def keep(self, stream: None, *objects: Any) -> None:
        """Nothing happens later."""


CPU = CPUBackend()
