"""Backends: which array type lives on which device, and how an op is implemented for it.

A backend sees raw arrays only. `cpu` is always there; `cuda` is imported at the first use of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from gpugrad.backends.cpu import CPU
from gpugrad.errors import DeviceError, DTypeError, describe, fail
from gpugrad.layered import LAYERS


class Backend(Protocol):
    """What a device must offer."""

    name: str
    xp: Any
    array_type: type

    def implement(self, fwd: Any, special: dict[str, Any]) -> Any:
        """The callable that runs an op on raw arrays."""

    def asarray(self, value: Any, dtype: Any = None, *, device: str | None = None, copy: bool | None = None) -> Any:
        """A raw array on this backend from a sequence, scalar, NumPy array or array of this backend."""

    def to_numpy(self, array: Any) -> Any:
        """The values as a NumPy array (waits for the device; may share memory on the CPU)."""

    def device_of(self, array: Any) -> str:
        """Device name of an array, such as 'cpu' or 'cuda:0'."""

    def scope(self, device: str) -> Any:
        """Context manager in which new arrays are made on `device`."""

    def synchronize(self) -> None:
        """Wait until all submitted work is done."""


_by_name: dict[str, Backend] = {"cpu": CPU}
_by_type: dict[type, Backend] = {CPU.array_type: CPU}


def register(backend: Backend) -> None:
    """Add or replace a backend (tests put a double here)."""
    _by_name[backend.name] = backend
    _by_type[backend.array_type] = backend


def get(device: str) -> Backend:
    """The backend of a device name: 'cpu', 'cuda' or 'cuda:N'. Raises DeviceError with the reason if unusable."""
    kind = device.partition(":")[0] if isinstance(device, str) else device
    if kind == "cuda" and kind not in _by_name:
        from gpugrad.backends import cuda

        register(cuda.load())
    if kind not in _by_name:
        raise fail(DeviceError, "device", f"unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    return _by_name[kind]


def of_type(cls: type) -> Backend:
    """The backend whose arrays have this type (NumPy scalars count as CPU arrays)."""
    backend = _by_type.get(cls)
    if backend is None:
        for known, candidate in _by_type.items():
            if issubclass(cls, known):
                return candidate
        if issubclass(cls, CPU.xp.generic):
            return CPU
        if cls.__module__.partition(".")[0] == "cupy":
            return get("cuda")
        raise fail(DTypeError, "array", f"{cls.__name__} is not an array; wrap it with gpugrad.tensor")
    return backend


class Impls(dict[type, Any]):
    """Array type to code; an unseen type asks its backend once. `layers`: what `swap` puts around every code."""

    layers: ClassVar[list[Callable[[Any, Any], Any]]] = []

    def __init__(self, fwd: Any, special: dict[str, Any]) -> None:
        self.fwd, self.special = fwd, special

    def __missing__(self, cls: type) -> Any:
        run = of_type(cls).implement(self.fwd, self.special)
        for layer in self.layers:
            run = layer(self.special["op"], run)
        self[cls] = run
        return run


def of(array: Any) -> Backend:
    """The backend of a raw array."""
    backend = of_type(type(array))
    return backend.holding(array) if type(array) in LAYERS else backend  # type: ignore[attr-defined,no-any-return]


def array_types() -> list[type]:
    """The array types of the backends that are in use."""
    return list(_by_type)


def is_raw(x: Any) -> bool:
    """Whether x is a raw array of some known backend (NumPy scalars excluded)."""
    return type(x) in _by_type or isinstance(x, CPU.array_type) or type(x).__module__.partition(".")[0] == "cupy"


def is_available(device: str) -> bool:
    """Whether `device` can be used here."""
    try:
        get(device)
    except DeviceError:
        return False
    return True


def mixed(arrays: tuple[Any, ...]) -> str | None:
    """A line about operands on different devices, or None."""
    places = sorted({of(a).device_of(a) for a in arrays if is_raw(a)})
    return None if len(places) < 2 else f"operands on different devices: {', '.join(places)}; move one with .to(device)"


__all__ = ["Backend", "array_types", "describe", "get", "is_available", "is_raw", "mixed", "of", "of_type", "register"]
