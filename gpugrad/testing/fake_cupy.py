"""A double of CuPy for machines without a GPU: arrays that hold NumPy memory, kernels that run on the emulator.

It refuses what CuPy refuses: implicit conversion to NumPy, mixing with NumPy arrays, host reads during capture. Every
name it is asked for is kept in `asked`, so that a test can compare them with the real CuPy.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpugrad.testing.emulator import Kernel, Module

asked: set[str] = set()
POISON = 0xFF


class ndarray:
    """An array on the pretended device: its values are reached through `get()` only."""

    __array_priority__ = 100
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, base: ndarray | None = None) -> None:
        self._host = host
        self.base: ndarray | None = base if base is None or base.base is None else base.base

    def get(self, *_: Any, **__: Any) -> Any:
        """A copy of the values on the host; refused while a stream captures."""
        if Stream.capturing:
            raise RuntimeError("a blocking copy to the host is not allowed while a stream captures")
        return self._host.copy()

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
    def T(self) -> ndarray:
        """Reversed axes."""
        return wrap(self._host.T, self)  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Any:
        return wrap(self._host[unwrap(index)], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self._host[unwrap(index)] = unwrap(value)

    def __repr__(self) -> str:
        return f"fake_cupy.{self._host!r}"


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


def forward(function: Any) -> Any:
    """NumPy's function on the values inside."""

    def run(*args: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        result = function(*(unwrap(a) for a in args), **{k: unwrap(v) for k, v in kwargs.items()})
        return out if isinstance(out, ndarray) else wrap(result, *args)

    return run


for _name in ("dtype", "ndim", "size", "nbytes", "strides", "flags", "itemsize", "real", "imag"):
    setattr(
        ndarray, _name, property(functools.partial(lambda name, self: wrap(getattr(self._host, name), self), _name))
    )
for _name in ("astype", "reshape", "sum", "copy", "transpose", "view", "ravel", "fill", "mean", "max", "min", "any",
              "all", "prod", "cumsum", "cumprod", "clip", "round", "flatten", "var", "std", "dot", "squeeze",
              "swapaxes", "argmax", "argmin", "argsort", "sort", "take", "repeat", "nonzero"):  # fmt: skip
    setattr(ndarray, _name, forward(getattr(np.ndarray, _name)))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift",
              "rshift"):  # fmt: skip
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(ndarray, _form, forward(getattr(np.ndarray, _form)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", forward(getattr(np.ndarray, f"__{_name}__")))


class Device:
    """The pretended GPU."""

    def __init__(self, index: int = 0) -> None:
        if index:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = index

    def use(self) -> None:
        """Nothing to switch."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""


class Stream:
    """A stream in program order that records what is launched on it while it captures."""

    capturing = False

    def __init__(self, null: bool = False, non_blocking: bool = False, **_: Any) -> None:
        self.launches: list[str] = []
        self.ptr = 0 if null else 1

    def begin_capture(self, mode: Any = None) -> None:
        """Start recording launches; host reads raise until `end_capture`."""
        Stream.capturing = True

    def end_capture(self) -> None:
        """Stop recording."""
        Stream.capturing = False

    def use(self) -> Stream:
        """Make it current."""
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


launched: list[str] = []
schedule: dict[str, Any] = {}


class RawKernel:
    """A kernel of a RawModule, launched on the emulator under the schedule of `scheduled`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.max_dynamic_shared_size_bytes = 48 * 1024
        handles.append(self)
        self.kernel = types.SimpleNamespace(ptr=len(handles))

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        self.launch(grid, block, shared_mem, [a._host if isinstance(a, ndarray) else a for a in args])

    def launch(self, grid: Sequence[int], block: Sequence[int], shared: int, args: Any) -> None:
        """Run it; `args` is a list of arguments or the address of an array of their addresses."""
        if shared > self.max_dynamic_shared_size_bytes:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE: more dynamic shared memory than the kernel asked for")
        launched.append(self._kernel.name)
        run = self._kernel.launch_pointers if isinstance(args, int) else self._kernel
        run(grid, block, args, shared, **schedule)


handles: list[RawKernel] = []


def launch_kernel(
    f: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int, params: int, extra: int
) -> None:
    """As cupy.cuda.driver.launchKernel: no argument is checked."""
    handles[f - 1].launch((gx, gy, gz), (bx, by, bz), shared, params)


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
        if name in self._names:
            self.compile()
            assert self._module is not None
            return RawKernel(self._module[name])
        return RawKernel(Module(self._code, [name], flags=self._flags)[name])


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Uninitialised memory, made visibly so: all bytes 0xFF."""
    host = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    host.reshape(-1, order="A").view(np.uint8).fill(POISON)
    return ndarray(host)


def empty_like(x: ndarray, dtype: Any = None, **_: Any) -> ndarray:
    """`empty` of the same shape."""
    return empty(x.shape, dtype or x.dtype)  # type: ignore[attr-defined]


def asarray(x: Any, dtype: Any = None, *, copy: bool | None = None, **_: Any) -> ndarray:
    """Move host data to the pretended device, or pass a device array on."""
    if isinstance(x, ndarray):
        same = dtype is None or x._host.dtype == np.dtype(dtype)
        return x if same and not copy else ndarray(x._host.astype(dtype or x._host.dtype))
    if Stream.capturing:
        raise RuntimeError("a copy from pageable host memory is not allowed while a stream captures")
    return ndarray(np.array(x, dtype=dtype))


def array(x: Any, dtype: Any = None, copy: bool = True, **_: Any) -> ndarray:
    """A new device array."""
    return asarray(x, dtype, copy=copy)


def asnumpy(x: Any, **_: Any) -> Any:
    """The values on the host."""
    return x.get() if isinstance(x, ndarray) else np.asarray(x)


def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> Any:
    """NumPy's matmul; refused during capture, where CuPy cannot call cuBLAS."""
    if Stream.capturing:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    return forward(np.matmul)(a, b) if out is None else forward(np.matmul)(a, b, out=out)


def ascontiguousarray(x: ndarray, dtype: Any = None) -> ndarray:
    """C order."""
    return wrap(np.ascontiguousarray(unwrap(x), dtype), x)  # type: ignore[no-any-return]


_stream = Stream(null=True)
runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1,
    runtimeGetVersion=lambda: 12090, driverGetVersion=lambda: 12090,
    getDeviceProperties=lambda i: {"name": b"emulated", "multiProcessorCount": 4, "major": 9, "minor": 0},
)  # fmt: skip
cuda = types.SimpleNamespace(
    Device=Device, Stream=Stream, runtime=runtime, is_available=lambda: True, get_current_stream=lambda *_: _stream,
    alloc_pinned_memory=bytearray, driver=types.SimpleNamespace(launchKernel=launch_kernel),
)  # fmt: skip
lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=forward(np.lib.stride_tricks.as_strided)))
LINALG = ("inv", "det", "slogdet", "solve", "cholesky", "eigh", "svd", "qr", "norm")
linalg = types.SimpleNamespace(**{n: forward(getattr(np.linalg, n)) for n in LINALG})
pi, inf, nan, newaxis, e = np.pi, np.inf, np.nan, None, np.e
__version__ = "14.0.0"


def __getattr__(name: str) -> Any:
    """Everything else is NumPy's function of that name; the name is noted for comparison with the real CuPy."""
    if name.startswith("__"):
        raise AttributeError(name)
    asked.add(name)
    found = getattr(np, name)
    if isinstance(found, (type, np.dtype)) or not callable(found):
        return found
    return forward(found)
