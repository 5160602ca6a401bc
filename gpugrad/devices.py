"""What a program may ask of a device: to finish, how much memory it uses, how much it may."""

from __future__ import annotations

from typing import Any

from gpugrad import backends
from gpugrad.errors import DeviceError, DomainError, fail


def synchronize(device: str = "cuda") -> None:
    """Wait until everything submitted to a device is done. Raises what a kernel reported, DeviceError for no GPU."""
    backends.get(device).synchronize()


def memory(device: str = "cuda") -> dict[str, int]:
    """Bytes of a GPU: `used`, `reserved`, `limit`, `free`, `total`.

    used: by arrays. reserved: these, and what is kept for later ones; limit bounds it, 0 for none. What others
    use on the same GPU, and CUDA itself, is total - free - reserved. Raises DeviceError for the CPU, whose memory is
    NumPy's.
    """
    return managed("memory", device).memory()  # type: ignore[no-any-return]


def set_memory_limit(limit: int | float, device: str = "cuda") -> None:
    """Let arrays take no more than `limit`: bytes, or a share of the GPU if it is a fraction; 0 for no limit.

    An array beyond it raises CuPy's OutOfMemoryError. Raises DomainError for a negative number or a share above 1.
    """
    if limit < 0 or (isinstance(limit, float) and limit > 1):
        raise fail(DomainError, "set_memory_limit", f"limit is {limit!r}; expected bytes, or a share up to 1.0")
    managed("set_memory_limit", device).set_memory_limit(limit)


def release_memory(device: str = "cuda") -> None:
    """Give back to the GPU what is reserved but used by no array."""
    managed("release_memory", device).release_memory()


def managed(op: str, device: str) -> Any:
    """The backend of a device whose memory gpugrad can speak of."""
    backend = backends.get(device)
    if backend.name == "cpu":
        raise fail(DeviceError, op, "the CPU's memory is NumPy's; ask for a GPU, as in device='cuda'")
    return backend
