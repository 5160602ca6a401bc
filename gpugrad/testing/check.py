"""A kernel under every check at once: for gpugrad's own kernels and for users'."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpugrad.testing.emulator import EmulatorError, Module

ALIGNMENT = 16  # of the widest load


def guarded(array: Any, *, before: bool = False) -> Any:
    """A copy of a NumPy array beside memory that cannot be touched: running over its end stops a kernel at once.

    The memory follows the last element (up to 15 bytes further off, because the first one is kept at a multiple of 16
    bytes), or precedes the first with `before`. Raises OSError if memory cannot be had.
    """
    page, size = mmap.PAGESIZE, array.nbytes
    room = -(-max(size, 1) // page) * page
    memory = mmap.mmap(-1, room + page)
    wall = np.frombuffer(memory, np.uint8).ctypes.data + (0 if before else room)
    no_access = 0
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(page), no_access):
        raise OSError(ctypes.get_errno(), "mprotect")
    offset = page if before else room - -(-size // ALIGNMENT) * ALIGNMENT
    copy: Any = np.ndarray(array.shape, array.dtype, memory, offset)
    copy[...] = array
    return copy


def check_kernel(
    source: str, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0,
    outputs: Sequence[int] = (), seeds: Sequence[int] = (1, 2, 3), deterministic: bool = True,
    filename: str = "kernel.cu", flags: Sequence[str] = (),
) -> list[Any]:  # fmt: skip
    """Run a CUDA kernel on the CPU in every mode and order, and return the arguments as it left them.

    source: CUDA C++; name: the kernel, or an instance such as 'scale<float>'; args: NumPy arrays and NumPy scalars of
    exactly the parameters' types, which are left as they are (an array passed twice stays one); outputs: the numbers of
    the arguments whose every element the kernel must write; seeds: of random thread orders; deterministic: whether
    results must be the same, bit for bit, in all orders of threads and blocks.

    Raises EmulatorError, naming the line, for: arguments that do not fit the signature; barriers and warp collectives
    that not all threads reach; races within a block and between blocks; reads of shared memory or outputs that nothing
    has written; access outside of an array or of shared memory, or misaligned; indices out of range; overflow of signed
    integers; output elements left out; results that depend on the order.
    """
    orders: list[dict[str, Any]] = [
        {"schedule": s, "reverse_blocks": r} for s in ("natural", "reversed") for r in (False, True)
    ]
    orders += [{"schedule": "random", "seed": seed, "reverse_blocks": bool(k % 2)} for k, seed in enumerate(seeds)]
    first: list[Any] = []
    for mode in ("checked", "plain"):
        kernel = Module(source, [name], filename=filename, flags=flags, mode=mode)[name]
        for k, order in enumerate(orders):
            result = copies(args, outputs, before=bool(k % 2))
            kernel(grid, block, result, shared_mem, outputs=outputs, **order)
            first = first or result
            for i, (a, b) in enumerate(zip(first, result)):
                if deterministic and isinstance(a, np.ndarray) and a.tobytes() != b.tobytes():
                    raise EmulatorError(f"[{name}] {kernel.place}: {difference(i, a, b)} ({orders[0]}, {order})")
    return first


def copies(args: Sequence[Any], outputs: Sequence[int], *, before: bool) -> list[Any]:
    """Guarded copies of the arrays among arguments, outputs with all bytes 0xFF; an array given twice stays one."""
    made: dict[int, Any] = {}
    for i, a in enumerate(args):
        if isinstance(a, np.ndarray) and id(a) not in made:
            made[id(a)] = guarded(a, before=before)
            if i in outputs:
                made[id(a)].reshape(-1).view(np.uint8)[:] = 0xFF
    return [made.get(id(a), a) for a in args]


def difference(i: int, a: Any, b: Any) -> str:
    """What differs first between two results of argument i, bit for bit."""
    rows = [np.frombuffer(x.tobytes(), np.uint8).reshape(a.size, a.itemsize) for x in (a, b)]
    at = int((rows[0] != rows[1]).any(1).argmax())
    values = f"{a.reshape(-1)[at]} and {b.reshape(-1)[at]}"
    return f"element {at} of argument {i} depends on the order of threads and blocks: {values}"
