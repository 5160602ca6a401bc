"""Kernel launches: the geometry, the checked first call, and the short path that every later call takes."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpugrad.errors import GpugradError
from gpugrad.kernel import Kernel, signature

if TYPE_CHECKING:
    from gpugrad.backends.cublaslt import Gemm
    from gpugrad.backends.cuda import CUDABackend

TYPES = {
    "float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16", "int32": "int",
    "int64": "long long", "uint8": "unsigned char", "bool": "bool",
}  # fmt: skip
FLOATS = ("float32", "float64", "float16", "bfloat16")
OPTIONS = ("-std=c++17",)
SCALARS: dict[str, Any] = {
    "int": ctypes.c_int, "unsigned": ctypes.c_uint, "long long": ctypes.c_longlong, "float": ctypes.c_float,
    "unsigned long long": ctypes.c_ulonglong, "double": ctypes.c_double, "bool": ctypes.c_bool,
}  # fmt: skip
LARGE_SHARED = 48 * 1024  # bytes of dynamic shared memory that a kernel may have without asking

Dims = tuple[tuple[int, ...], tuple[int, ...]]


def launch_shape(rows: int, columns: int | None, processors: int) -> Dims:
    """(grid, block) of a map over `rows` pieces of work, or with `columns` of one team a row; see kernels/common.cuh.

    Map: a thread a piece, and a grid-stride loop once 32 blocks wait on each multiprocessor.
    Rows: up to 1024 columns a warp a row, 8 rows a block; beyond, a block a row, of 512
    threads at most, so that each can have 128 registers.
    """
    if columns is None:
        return (min(-(-rows // 256), 32 * processors),), (256,)
    if columns <= 1024:
        return (-(-rows // 8),), (32, 8)
    return (rows,), (256 if columns <= 8192 else 512,)


class Struct:
    """An argument by value of a struct type, given as bytes."""

    def __init__(self, size: int) -> None:
        self.memory = (ctypes.c_char * size)()

    def store(self, data: bytes) -> None:
        """Overwrite the bytes."""
        self.memory.raw = data

    value = property(None, store)


class Instance:
    """One compiled instance of a template as one thread launches it: arguments go into a block made once.

    The first call, and every call when the backend is `checked`, goes through CuPy's own path with NumPy scalars of
    the types that the source declares; on the double that path compares them with the compiled signature. Later calls
    fill the block and ask the driver, at a tenth of the cost.
    """

    def __init__(self, backend: CUDABackend, name: str, function: Any, parameters: list[str], types: list[str]) -> None:
        self.backend, self.xp, self.name, self.function = backend, backend.xp, name, function
        sums = "double" if types[:1] == ["double"] else "float"
        self.parameters = [p.replace("Acc<T>", sums) for p in parameters]
        self.slots: list[Any] = []
        self.address = self.handle = self.shared = 0
        self.go = backend.xp.cuda.driver.launchKernel

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, args: tuple[Any, ...]) -> None:
        xp = self.xp
        self.backend.launches += 1
        if len(args) != len(self.parameters):
            raise TypeError(f"[{self.name}] takes {len(self.parameters)} arguments, got {len(args)}")
        if not self.handle or self.backend.checked or shared > self.shared:
            self.first(grid, block, shared, args)
            return
        array = xp.ndarray
        for slot, a in zip(self.slots, args):
            slot.value = a.data.ptr if type(a) is array else a
        self.go(
            self.handle, *grid, *(1, 1)[len(grid) - 1 :], *block, *(1, 1)[len(block) - 1 :], shared,
            xp.cuda.get_current_stream().ptr, self.address, 0,
        )  # fmt: skip

    def first(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, args: tuple[Any, ...]) -> None:
        """Launch through CuPy, with every argument converted to the declared type, and prepare the short path."""
        if shared > max(self.shared, LARGE_SHARED):
            self.function.max_dynamic_shared_size_bytes = shared
        self.shared = max(shared, self.shared)
        self.function(grid, block, tuple(map(self.typed, args, self.parameters)), shared_mem=shared)
        if not self.slots:
            self.slots = [
                SCALARS[p]() if p in SCALARS else ctypes.c_void_p() if p.endswith("*") else Struct(len(a))
                for a, p in zip(args, self.parameters)
            ]
            places = [ctypes.addressof(getattr(s, "memory", s)) for s in self.slots]
            self.block = (ctypes.c_void_p * max(1, len(places)))(*places)
            self.address, self.handle = ctypes.addressof(self.block), self.function.kernel.ptr
        stream = self.xp.cuda.get_current_stream()
        if self.backend.checked and not stream.is_capturing():
            stream.synchronize()  # an error of the kernel shows at the call that made it

    def typed(self, value: Any, parameter: str) -> Any:
        """An argument as CuPy passes it rightly: it sends Python numbers as 8 bytes whatever the parameter is."""
        if parameter in SCALARS:
            return np.dtype(SCALARS[parameter]).type(value)
        if parameter.endswith("*"):
            return value if isinstance(value, self.xp.ndarray) else np.uintp(value or 0)
        return np.frombuffer(value, f"V{len(value)}")


class Launch:
    """An op's implementation by a kernel: called like the op's forward, which it falls back to."""

    def __init__(self, backend: CUDABackend, kernel: Kernel, twin: Any) -> None:
        self.backend, self.kernel, self.twin = backend, kernel, twin
        self.xp, self.mailbox = backend.xp, backend.mailbox.address
        self.call = kernel.call or elementwise
        self.mine = threading.local()  # instances: an argument block belongs to one thread

    def __call__(self, *arrays: Any, **attrs: Any) -> Any:
        out = self.call(self, *arrays, **attrs)
        return self.twin(*arrays, **attrs) if out is NotImplemented else out

    def takes(self, *arrays: Any) -> bool:
        """Whether these are arrays of one floating type that kernels are made for."""
        if not all(isinstance(a, self.xp.ndarray) for a in arrays):
            return False
        return len({a.dtype for a in arrays}) == 1 and arrays[0].dtype.name in FLOATS

    def place(self, like: Any, reuse: bool) -> Any:
        """Memory for a result like an operand: the operand's own, if it may be overwritten."""
        return like if reuse and like.flags.c_contiguous else self.xp.empty(like.shape, like.dtype)

    def map(self, name: str, types: tuple[Any, ...], args: tuple[Any, ...], n: int) -> None:
        """Launch kernel `name` over n pieces of work, none: nothing. See `tiles` for types and args."""
        if n:
            self.tiles(name, types, args, *launch_shape(n, None, self.backend.processors))

    def rows(self, name: str, types: tuple[Any, ...], args: tuple[Any, ...], rows: int, columns: int) -> None:
        """Launch kernel `name` with one team of threads a row of `columns`; no rows or no columns: nothing."""
        if rows and columns:
            self.tiles(name, types, args, *launch_shape(rows, columns, self.backend.processors))

    def tiles(
        self, name: str, types: tuple[Any, ...], args: tuple[Any, ...], grid: tuple[int, ...], block: tuple[int, ...],
        shared: int = 0,
    ) -> None:  # fmt: skip
        """Launch an instance with an explicit geometry and `shared` bytes of dynamic shared memory.

        types: template arguments, as dtypes or as strings. args: outputs, inputs, sizes, in the order of the signature;
        arrays are read as contiguous, None is the null pointer, numbers are Python's, bytes are a struct by value.
        """
        key = (name, types, self.backend.device)
        try:
            instance = self.mine.bound[key]
        except (AttributeError, KeyError):
            instance = self.bind(key)
        array = self.xp.ndarray
        for i, a in enumerate(args):
            if type(a) is array and not a.flags.c_contiguous:
                args = (*args[:i], self.xp.ascontiguousarray(a), *args[i + 1 :])
        instance(grid, block, shared, args)

    def bind(self, key: tuple[Any, ...]) -> Instance:
        """Compile the instance.

        One module an instance: only what is used is compiled, and CuPy keeps the result on disk by source, options
        and name. Templates rather than a type macro, so that a .cu file is plain C++ and names appear in profiles.
        """
        name, types, _device = key
        code = self.kernel.code()
        arguments = [t if isinstance(t, str) else TYPES[t.name] for t in types]
        full = f"{name}<{', '.join(arguments)}>" if arguments else name
        module = self.xp.RawModule(code=code, options=OPTIONS, name_expressions=[full])
        made = Instance(
            self.backend, full, module.get_function(full), [p.type for p in signature(code, name)], arguments
        )
        bound: dict[Any, Instance] = self.mine.__dict__.setdefault("bound", {})
        bound[key] = made
        return made

    @property
    def gemm(self) -> Gemm:
        """Matrix products, with epilogues: `launch.gemm(a, b, out=, bias=, epilogue=, addend=)`."""
        return self.backend.gemm

    def site(self, kind: type[GpugradError], op: str, message: str, shape: tuple[int, ...] | None = None) -> int:
        """The number under which a kernel reports an offender of this call to the mailbox; see `Mailbox.site`."""
        return self.backend.mailbox.site(kind, op, message, shape)


def elementwise(launch: Launch, *arrays: Any, reuse: bool = False) -> Any:
    """`name<T>(out, in..., n)` on arrays of one shape and dtype; with `reuse` over the last one."""
    first = arrays[0]
    if not launch.takes(*arrays) or any(a.shape != first.shape for a in arrays):
        return NotImplemented
    out = launch.place(arrays[-1], reuse)
    launch.map(launch.kernel.name, (first.dtype,), (out, *arrays, out.size), -(-out.nbytes // 16))  # a packet a thread
    return out
