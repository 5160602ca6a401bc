"""A double of CuPy for machines without a GPU: arrays that hold NumPy memory, kernels that run on the emulator.

It refuses what CuPy refuses: names that CuPy lacks, arguments that CuPy's function does not take (read from the real
one into `cupy_signatures.json`), implicit conversion to NumPy, mixing with NumPy arrays, host reads and cuBLAS during
capture. A capture is recorded and not run, as on a GPU; `Graph.launch` runs it. `late` lets work wait, as on a GPU.

`launched` and `called` list the kernels and the CuPy functions that a GPU would have launched, `waited` what would have
made the host wait. `scheduled` chooses the order of the threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpugrad.launch.index import ARRAY, array_axes
from gpugrad.testing.emulator import POINTERS, Kernel, Module
from gpugrad.testing.fake_cublaslt import Library
from gpugrad.testing.fake_streams import (
    CUDARuntimeError,
    Event,
    Graph,
    PinnedMemoryPointer,
    Stream,
    alloc_pinned_memory,
    allocated,
    behind,
    deferred,
    elapsed,
    freed,
    late,
    poison,
    settle,
    submit,
    wait,
    waited,
)

__all__ = ["called", "late", "launched", "scheduled", "waited"]

launched: list[str] = []
called: list[str] = []

# --- what the real CuPy takes ---------------------------------------------------------------------------------------

SIGNATURES: dict[str, str | None] = json.loads(Path(__file__).with_name("cupy_signatures.json").read_text())


@functools.cache
def accepted(name: str) -> inspect.Signature | None:
    """The parameters of a function of CuPy by its dotted name, None if CuPy does not tell. Raises AttributeError."""
    if name not in SIGNATURES:
        raise AttributeError(f"CuPy has no {name}")
    text = SIGNATURES[name]
    if text is None:
        return None
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for part in filter(None, text[1:-1].split(", ")):
        word, _, default = part.partition("=")
        if word.startswith("**"):
            parameters.append(inspect.Parameter(word[2:], inspect.Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            kind = inspect.Parameter.KEYWORD_ONLY
            if word != "*":
                parameters.append(inspect.Parameter(word[1:], inspect.Parameter.VAR_POSITIONAL))
        else:
            parameters.append(inspect.Parameter(word, kind, default=default or inspect.Parameter.empty))
    return inspect.Signature(parameters)


def check(name: str, *args: Any, **kwargs: Any) -> None:
    """Raise TypeError for arguments that CuPy's function does not take."""
    signature = accepted(name)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"cupy.{name}{signature}: {error}") from None


# --- memory ---------------------------------------------------------------------------------------------------------


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class MemoryPool:
    """Counts the bytes of live arrays, in CuPy's pieces of 512, and keeps what was freed for later arrays."""

    def __init__(self, allocator: Any = None) -> None:
        self.used = self.total = self.limit = self.count = 0

    def malloc(self, size: int) -> int:
        """Take a piece of at least `size` bytes; its size."""
        piece = -(-size // 512) * 512
        if self.limit and max(self.total, self.used + piece) > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {piece:,} bytes (limit: {self.limit:,} bytes).")
        self.used += piece
        self.count += 1
        self.total = max(self.total, self.used)
        return piece

    def used_bytes(self) -> int:
        """Bytes of live arrays."""
        return self.used

    def total_bytes(self) -> int:
        """Bytes taken from the device."""
        return self.total

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give back what no array uses."""
        self.total = self.used

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Largest total in bytes; 0 for none."""
        self.limit = int(fraction * TOTAL_MEMORY) if fraction is not None else size or 0

    def get_limit(self) -> int:
        """The limit, 0 for none."""
        return self.limit


TOTAL_MEMORY = 1 << 34
default_pool = MemoryPool()
allocators: list[Any] = [default_pool.malloc]
Stream.pool_is_shared = lambda: allocators[-1].__self__ is default_pool  # type: ignore[method-assign]


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Take memory from a pool's `malloc` in the block."""
    allocators.append(allocator or default_pool.malloc)
    try:
        yield
    finally:
        allocators.pop()


# --- arrays ---------------------------------------------------------------------------------------------------------


class ndarray:
    """An array on the pretended device: its values are reached through `get()` only."""

    __array_priority__ = 100
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    _pool: Any = None

    def __init__(self, host: Any, base: ndarray | None = None) -> None:
        self._host = host
        self.base: ndarray | None = base if base is None or base.base is None else base.base
        if base is None:
            pool = allocators[-1].__self__
            self._piece, self._pool, self._stream = pool.malloc(host.nbytes), pool, Stream.current
            allocated(pool, Stream.current)
        if Stream.capturing is not None:
            Stream.capturing.kept.append(self)  # a graph's pool holds its memory

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.used -= self._piece
            freed(self._host, self._pool, self._stream)

    def get(self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        """A copy of the values on the host; waits for the stream unless told not to."""
        if blocking and Stream.capturing is not None:
            wait("get")  # refused
        host, values = np.empty(self.shape, self._host.dtype) if out is None else out, self._host
        target = behind(host) if out is not None else host
        work = submit(functools.partial(np.copyto, host if target is None else target, values), stream)
        if blocking:
            wait("get", work)
        return host

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` explicitly.")

    def item(self, *args: Any) -> Any:
        """One element as a Python number."""
        return self.get().item(*args)

    def tolist(self) -> Any:
        """Nested lists of the values."""
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __index__(self) -> int:
        return self.get().__index__()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._host)

    @property
    def device(self) -> Device:
        """The one pretended device."""
        return Device(0)

    @property
    def data(self) -> Any:
        """An object with the address, as CuPy's MemoryPointer."""
        return types.SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._host.shape  # type: ignore[no-any-return]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        known = self._host.__array_interface__
        return {**known, "data": (known["data"][0], False), "version": 3, "stream": Stream.current.ptr or 1}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **wishes: Any) -> Any:
        check("ndarray.__dlpack__", **wishes)
        return types.SimpleNamespace(array=self.copy() if wishes.get("copy") else self)  # type: ignore[attr-defined]

    @property
    def T(self) -> ndarray:
        """Reversed axes."""
        return wrap(self._host.T, self)  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Any:
        if Stream.capturing is not None and masked(index):
            raise RuntimeError("a boolean mask has to be read by the host, which a capture does not allow")
        return run("getitem", lambda x, i: x[around(x, i)], (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        run("setitem", lambda x, i, v: x.__setitem__(around(x, i), v), (self, index, value), {}, writes=True)

    def __repr__(self) -> str:
        return f"fake_cupy.{self._host!r}"


def around(x: Any, index: Any) -> Any:
    """An index with its integer arrays taken modulo the lengths of their axes, as CuPy does instead of raising."""
    parts = list(index) if isinstance(index, tuple) else [index]
    places = [k for k, e in enumerate(parts) if isinstance(e, np.ndarray)]
    template = tuple(ARRAY if k in places else e for k, e in enumerate(parts))
    axes = array_axes(template, [parts[k] for k in places], x.ndim)
    for k, axis in zip(places, axes):
        if parts[k].dtype != bool and axis < x.ndim and x.shape[axis]:
            parts[k] = parts[k] % x.shape[axis]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def unwrap(x: Any) -> Any:
    """The NumPy values inside; a NumPy array itself is refused, as CuPy refuses it."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, tuple):
        return tuple(unwrap(v) for v in x)
    if isinstance(x, list):
        return [unwrap(v) for v in x]
    return x


def wrap(x: Any, *sources: Any) -> Any:
    """A result as an array of the double (0-d ones too), remembering whose memory a view shows."""
    if isinstance(x, (tuple, list)):
        return (list if type(x) is list else tuple)(wrap(v, *sources) for v in x)
    if isinstance(x, np.generic):
        return ndarray(np.array(x))
    if not isinstance(x, np.ndarray):
        return x
    base = next((s for s in sources if isinstance(s, ndarray) and np.may_share_memory(x, s._host)), None)
    return ndarray(x, base)


WAITING = frozenset({"nonzero", "flatnonzero", "argwhere", "unique", "repeat", "compress", "extract"})


def run(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool = False) -> Any:
    """NumPy's function on the values inside: now, in its stream, or at each launch of the graph that is captured."""
    out = kwargs.get("out")
    values, named = [unwrap(a) for a in args], {k: unwrap(v) for k, v in kwargs.items()}
    if writes or out is not None:
        submit(lambda: function(*values, **named))
        called.append(name)
        return out if out is not None else args[0]
    if name.rpartition(".")[2] in WAITING or name.startswith("linalg.") or (name == "getitem" and masked(args[1])):
        settle()
        now = Stream.capturing is None
    else:
        now = not deferred()
    if now:
        result = function(*values, **named)
    else:
        with np.errstate(all="ignore"):  # it computes with poison
            result = function(*values, **named)
    made = wrap(result, *args)
    fresh = [(m, r) for m, r in zip(flat(made), flat(result)) if isinstance(m, ndarray) and m.base is None]
    if fresh:
        called.append(name)
    fresh = [(m, r) for m, r in fresh if m._host.flags.writeable]  # the others are constants of NumPy's making
    if fresh and not now:
        places = [m._host for m, _ in fresh]

        def again() -> None:
            for place, r in zip(places, flat(function(*values, **named))):
                place[...] = r

        for place in places:
            poison(place)
        submit(again)
    return made


def masked(index: Any) -> bool:
    """Whether an index selects by a mask."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(i, ndarray) and i._host.dtype == bool for i in parts)


def flat(x: Any) -> Sequence[Any]:
    """The results of a function with several, or the one."""
    return x if isinstance(x, (tuple, list)) else (x,)


def forward(function: Any, name: str, method: bool = False, writes: bool = False) -> Any:
    """NumPy's function under CuPy's name and signature."""

    def call(*args: Any, **kwargs: Any) -> Any:
        check(name, *args[method:], **kwargs)
        return run(name, function, args, kwargs, writes)

    return call


def deferring(method: Any) -> Any:
    """A binary operator that leaves the operation to another operand whose `__array_ufunc__` is None."""

    def call(self: ndarray, other: Any) -> Any:
        leave = not isinstance(other, ndarray) and getattr(other, "__array_ufunc__", self) is None
        return NotImplemented if leave else method(self, other)

    return call


for _name in ("dtype", "ndim", "size", "nbytes", "strides", "flags", "itemsize", "real", "imag"):
    setattr(
        ndarray, _name, property(functools.partial(lambda name, self: wrap(getattr(self._host, name), self), _name))
    )
for _name in ("astype", "reshape", "sum", "copy", "transpose", "view", "ravel", "mean", "max", "min", "any",
              "all", "prod", "cumsum", "cumprod", "clip", "round", "flatten", "var", "std", "dot", "squeeze",
              "swapaxes", "argmax", "argmin", "argsort", "take", "repeat", "nonzero"):  # fmt: skip
    setattr(ndarray, _name, forward(getattr(np.ndarray, _name), f"ndarray.{_name}", method=True))
for _name in ("fill", "sort"):
    setattr(ndarray, _name, forward(getattr(np.ndarray, _name), f"ndarray.{_name}", method=True, writes=True))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift",
              "rshift"):  # fmt: skip
    for _form in ("", "r", "i"):
        _dunder = f"__{_form}{_name}__"
        _method = forward(getattr(np.ndarray, _dunder), f"ndarray.{_dunder}", method=True, writes=_form == "i")
        setattr(ndarray, _dunder, _method if _form else deferring(_method))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert"):
    _method = forward(getattr(np.ndarray, f"__{_name}__"), f"ndarray.__{_name}__", method=True)
    setattr(ndarray, f"__{_name}__", deferring(_method) if len(_name) == 2 else _method)


# --- device ---------------------------------------------------------------------------------------------------------


class Device:
    """The pretended GPU."""

    def __init__(self, index: int = 0) -> None:
        if index:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = index

    def use(self) -> None:
        """Nothing to switch."""

    def synchronize(self) -> None:
        """Wait."""
        wait("Device.synchronize")

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...


# --- kernels --------------------------------------------------------------------------------------------------------

schedule: dict[str, Any] = {}


class RawKernel:
    """A kernel of a RawModule, launched on the emulator under the schedule of `scheduled`."""

    def __init__(self, kernel: Kernel, most: int = 1024) -> None:
        self._kernel, self._most = kernel, most
        self.max_dynamic_shared_size_bytes = 48 * 1024
        handles.append(self)
        self.kernel = types.SimpleNamespace(ptr=len(handles))

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        self.launch(grid, block, shared_mem, [a._host if isinstance(a, ndarray) else a for a in args])

    def launch(self, grid: Sequence[int], block: Sequence[int], shared: int, args: Any) -> None:
        """Run it; `args` is a list of arguments or the address of an array of their addresses."""
        if shared > self.max_dynamic_shared_size_bytes:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE: more dynamic shared memory than the kernel asked for")
        if math.prod(block) > self._most:
            raise CUDARuntimeError(f"CUDA_ERROR_INVALID_VALUE: {math.prod(block)} threads, declared are {self._most}")
        launched.append(self._kernel.name)
        run = self._kernel.launch_pointers if isinstance(args, int) else self._kernel
        held: Any = None
        if deferred() and isinstance(args, int):  # the caller's block of arguments is read at the launch
            given = (ctypes.c_void_p * len(self._kernel.signature)).from_address(args)
            boxes = [
                ctypes.create_string_buffer(ctypes.string_at(p, width(k)))
                for p, k in zip(given, self._kernel.signature)
            ]
            block_of_args = (ctypes.c_void_p * max(1, len(boxes)))(*[ctypes.addressof(b) for b in boxes])
            args, held = ctypes.addressof(block_of_args), (boxes, block_of_args)
        how = dict(schedule)

        def work(held: Any = held) -> None:
            run(grid, block, args, shared, **how)

        submit(work)


def width(kind: str) -> int:
    """Bytes of an argument, from the emulator's name of its type."""
    return 8 if kind[0] in POINTERS else int(kind[1:])


handles: list[RawKernel] = []


def launch_kernel(
    f: int, grid_dim_x: int, grid_dim_y: int, grid_dim_z: int, block_dim_x: int, block_dim_y: int, block_dim_z: int,
    shared_mem_bytes: int, stream: int, kernel_params: int, extra: int,
) -> None:  # fmt: skip
    """As cupy.cuda.driver.launchKernel: no argument of the kernel is checked."""
    grid, block = (grid_dim_x, grid_dim_y, grid_dim_z), (block_dim_x, block_dim_y, block_dim_z)
    if stream != Stream.current.ptr:
        raise CUDARuntimeError("a launch on a stream that is not the current one")
    handles[f - 1].launch(grid, block, shared_mem_bytes, kernel_params)


@contextlib.contextmanager
def scheduled(**how: Any) -> Iterator[None]:
    """Run kernels under another thread schedule: schedule=, seed=, reverse_blocks= of `emulator.Kernel`."""
    before = dict(schedule)
    schedule.update(how)
    try:
        yield
    finally:
        schedule.clear()
        schedule.update(before)


class RawModule:
    """CUDA source compiled for the CPU, one instantiation at a time, at first use."""

    def __init__(
        self, *, code: str, options: Sequence[str] = (), name_expressions: Sequence[str] | None = None, **_: Any
    ) -> None:
        self._code, self._flags = code, tuple(o for o in options if o.startswith("-D"))
        self._names = list(name_expressions or ())
        self._module: Module | None = None

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile every name expression now."""
        if self._module is None and self._names:
            self._module = Module(self._code, self._names, flags=self._flags)

    def get_function(self, name: str) -> RawKernel:
        """The kernel of that name."""
        if Stream.capturing is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: a module is loaded while a stream captures")
        if name in self._names:
            self.compile()
            assert self._module is not None
            bound = re.search(rf"__launch_bounds__\((\d+)[^)]*\)\s*{name.partition('<')[0]}\s*\(", self._code)
            return RawKernel(self._module[name], int(bound[1]) if bound else 1024)
        return RawKernel(Module(self._code, [name], flags=self._flags)[name])


# --- functions ------------------------------------------------------------------------------------------------------


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Uninitialised memory, made visibly so: all bytes 0xFF."""
    host = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    poison(host)
    return ndarray(host)


def empty_like(x: ndarray, dtype: Any = None, **kwargs: Any) -> ndarray:
    """`empty` of the same shape."""
    check("empty_like", x, dtype, **kwargs)
    return empty(x.shape, dtype or x.dtype)  # type: ignore[attr-defined]


def asarray(x: Any, dtype: Any = None, **kwargs: Any) -> Any:
    """Move host data to the pretended device, or pass a device array on."""
    check("asarray", x, dtype, **kwargs)
    if isinstance(x, ndarray):
        same = dtype is None or x._host.dtype == np.dtype(dtype)
        return x if same and not kwargs.get("copy") else x.astype(dtype or x._host.dtype)  # type: ignore[attr-defined]
    host = np.asarray(x, dtype)
    made = ndarray(np.empty_like(host, subok=False))
    poison(made._host)
    values = behind(host)  # pinned memory is read when the stream gets there, other memory now
    if values is None:
        if Stream.capturing is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: pageable host memory while a stream captures")
        values = np.array(host)
    copied = submit(functools.partial(np.copyto, made._host, values))
    if kwargs.get("blocking"):
        wait("asarray", copied)
    return made


def array(x: Any, dtype: Any = None, copy: bool = True, **kwargs: Any) -> Any:
    """A new device array."""
    check("array", x, dtype, copy, **kwargs)
    return asarray(x, dtype, copy=copy)


def from_dlpack(array: Any, **kwargs: Any) -> Any:
    """The array behind an object that exports the device's memory."""
    check("from_dlpack", array, **kwargs)
    assert array.__dlpack_device__() == (2, 0), "memory of another device"
    return wrap(array.__dlpack__().array._host.view(), array.__dlpack__().array)


def asnumpy(x: Any, **kwargs: Any) -> Any:
    """The values on the host."""
    check("asnumpy", x, **kwargs)
    return x.get() if isinstance(x, ndarray) else np.asarray(x)


def ascontiguousarray(x: ndarray, dtype: Any = None) -> Any:
    """C order; the array itself if it has it."""
    return run("ascontiguousarray", np.ascontiguousarray, (x, dtype), {})


def needs_cublas(function: Any, name: str) -> Any:
    """Refused during capture, where CuPy calls no cuBLAS or cuSOLVER."""
    known = forward(function, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if Stream.capturing is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        return known(*args, **kwargs)

    return call


matmul, dot, tensordot, vdot, inner, outer = (
    needs_cublas(getattr(np, n), n) for n in ("matmul", "dot", "tensordot", "vdot", "inner", "outer")
)
for _form in ("__matmul__", "__rmatmul__", "dot"):
    _method = needs_cublas(getattr(np.ndarray, _form), f"ndarray.{_form}")
    setattr(ndarray, _form, deferring(_method) if _form == "__matmul__" else _method)
runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1, getDevice=lambda: 0,
    runtimeGetVersion=lambda: 12090, driverGetVersion=lambda: 12090,
    memGetInfo=lambda: (TOTAL_MEMORY - default_pool.total, TOTAL_MEMORY),
    getDeviceProperties=lambda device: {"name": b"emulated", "multiProcessorCount": 4, "major": 9, "minor": 0},
)  # fmt: skip
cuda = types.SimpleNamespace(
    Device=Device, Stream=Stream, Event=Event, get_elapsed_time=elapsed, Graph=Graph, runtime=runtime,
    is_available=lambda: True,
    get_current_stream=lambda *_: Stream.current, alloc_pinned_memory=alloc_pinned_memory, MemoryPool=MemoryPool,
    PinnedMemoryPointer=PinnedMemoryPointer,
    using_allocator=using_allocator, driver=types.SimpleNamespace(launchKernel=launch_kernel),
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError), get_allocator=lambda: allocators[-1],
)  # fmt: skip
lib = types.SimpleNamespace(
    stride_tricks=types.SimpleNamespace(
        as_strided=lambda x, *args, **kwargs: run("as_strided", np.lib.stride_tricks.as_strided, (x, *args), kwargs)
    )
)


def get_default_memory_pool() -> MemoryPool:
    """The pool of arrays made outside of `using_allocator`."""
    return default_pool


class Part:
    """A module of CuPy's by that name, with NumPy's functions; `how` makes one of ours of each."""

    def __init__(self, name: str, how: Callable[..., Any]) -> None:
        self._name, self._how = name, how

    def __getattr__(self, name: str) -> Any:
        found = self._how(getattr(getattr(np, self._name), name), f"{self._name}.{name}")
        accepted(f"{self._name}.{name}")
        setattr(self, name, found)
        return found


linalg, fft = Part("linalg", needs_cublas), Part("fft", forward)
cublaslt = Library(lambda: Stream.capturing, lambda: Stream.current.ptr)
pi, inf, nan, newaxis, e = np.pi, np.inf, np.nan, None, np.e
__version__ = "14.0.0"


@functools.cache
def __getattr__(name: str) -> Any:
    """Everything else is NumPy's function of that name, if CuPy has one of that name as well."""
    if name.startswith("__"):
        raise AttributeError(name)
    found = getattr(np, name)
    if isinstance(found, (type, np.dtype)) or not callable(found):
        return found
    accepted(name)
    return forward(found, name)
