"""The CUDA backend: CuPy arrays, CuPy functions and our own kernels. The only module that imports CuPy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpugrad.errors import DeviceError, fail
from gpugrad.kernel import Kernel, source, source_path

TYPES = {
    "float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16", "int32": "int",
    "int64": "long long",
}  # fmt: skip
FLOATS = ("float32", "float64", "float16", "bfloat16")
OPTIONS = ("-std=c++17",)
NULL = np.uintp(0)  # passed by value; for None CuPy would pass no argument at all

INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100  # cudaError_t
INSTALL = "install it with: pip install 'gpugrad[cuda12]' (driver 525 or newer) or 'gpugrad[cuda13]' (580 or newer)"
NO_GPU = "the driver sees no GPU\n  check CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all"
COMPLETE = "pip install --upgrade 'gpugrad[cuda12]' (or [cuda13], whichever CuPy is installed) brings it"


# --- is there a usable GPU ------------------------------------------------------------------------------------------


@functools.cache
def find() -> tuple[Any, str]:
    """(CuPy, "") or (None, what is missing and how to mend it); looked for once."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return None, f"CuPy cannot be imported: {error}\n  {INSTALL}"
        return None, f"CuPy is not installed\n  {INSTALL}"
    except ImportError as error:
        return None, f"CuPy cannot be imported: {error}\n  uninstall every cupy package, then {INSTALL}"
    reason = problem(cupy)
    return (None, reason) if reason else (cupy, "")


def problem(xp: Any) -> str:
    """What keeps this CuPy from working here, with the remedy on a second line; empty if nothing does."""
    runtime = xp.cuda.runtime
    try:
        if runtime.getDeviceCount() == 0:
            return NO_GPU
    except runtime.CUDARuntimeError as error:
        if error.status == NO_DEVICE:
            return NO_GPU
        if error.status == INSUFFICIENT_DRIVER:
            versions = runtime.driverGetVersion(), runtime.runtimeGetVersion()
            have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in versions)
            if have == "0.0":
                return "no NVIDIA driver is loaded\n  install the driver; in a container, start it with --gpus all"
            return (
                f"the NVIDIA driver supports CUDA {have}, CuPy is built for {need}\n"
                "  update the driver, or install an extra for an older CUDA: pip install 'gpugrad[cuda12]'"
            )
        return f"the CUDA runtime does not start: {error}\n  nvidia-smi shows whether the driver sees the GPU"
    return missing_parts()


def missing_parts() -> str:
    """Which of the libraries and headers that CuPy loads at first use is not there; empty if none."""
    from cuda import pathfinder  # type: ignore[import-not-found]  # comes with CuPy: finds them where CuPy will

    try:
        lacking = "NVRTC, which compiles kernels, is"
        pathfinder.load_nvidia_dynamic_lib("nvrtc")
        lacking = "cuBLAS, which multiplies matrices, is"
        pathfinder.load_nvidia_dynamic_lib("cublas")
    except pathfinder.DynamicLibNotFoundError:
        return f"{lacking} not installed\n  {COMPLETE}"
    if pathfinder.find_nvidia_header_directory("cudart") is None:
        return f"the CUDA headers, which kernels include, are not installed\n  {COMPLETE}"
    return ""


def load(xp: Any = None) -> CUDABackend:
    """The backend over CuPy, or over a double of it, `xp`. Raises DeviceError with the reason and the remedy."""
    if xp is None:
        xp, reason = find()
        if reason:
            raise fail(DeviceError, "cuda", reason)
    return CUDABackend(xp)


# --- the backend ----------------------------------------------------------------------------------------------------


class CUDABackend:
    """CuPy arrays on NVIDIA GPUs.

    Work goes to CuPy's current stream. Each device gets a stream of its own here instead of the null stream, which no
    CUDA graph can capture. It is a blocking one: CUDA orders it with the null stream, so that arrays made by a user's
    CuPy code, or on a thread that never came by here, need no events.
    """

    name = "cuda"

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.array_type: type = xp.ndarray
        self.streams: dict[int, Any] = {}
        self.use(xp.cuda.Device().id)

    def use(self, index: int) -> None:
        """Make the device's stream current, unless the user chose one. The device is the current one."""
        if self.xp.cuda.get_current_stream().ptr == 0:
            if index not in self.streams:
                self.streams[index] = self.xp.cuda.Stream(non_blocking=False)
            self.streams[index].use()

    def implement(self, fwd: Any, special: dict[str, Any]) -> Any:
        """A kernel of ours, a CuPy function by name, or a Python function of (xp, *arrays, **attrs) bound to CuPy."""
        run = special.get("cuda", fwd)
        if isinstance(run, Kernel):
            return Launch(self, run, self.implement(fwd, {}))
        return getattr(self.xp, run) if isinstance(run, str) else functools.partial(run, self.xp)

    def asarray(self, value: Any, dtype: Any = None, *, device: str | None = None, copy: bool | None = None) -> Any:
        """A CuPy array on `device` (the current one if None); from another device by a copy between the two."""
        with self.scope(device or "cuda"):
            if isinstance(value, self.xp.ndarray) and value.device.id != self.xp.cuda.Device().id:
                if copy is False:
                    raise ValueError(f"{self.device_of(value)} to {device} needs a copy")
                return self.xp.array(value, dtype=dtype, copy=True)
            return self.xp.asarray(value, dtype=dtype, copy=copy)

    def to_numpy(self, array: Any) -> Any:
        """A copy of the values on the host; waits for the current stream."""
        return self.xp.asnumpy(array)

    def device_of(self, array: Any) -> str:
        """'cuda:N'."""
        return f"cuda:{array.device.id}"

    @contextlib.contextmanager
    def scope(self, device: str) -> Iterator[None]:
        """Make 'cuda:N' current with its stream; 'cuda' is the current device. Raises DeviceError for no such GPU."""
        number = device.partition(":")[2]
        if not number:
            yield
            return
        count = self.xp.cuda.runtime.getDeviceCount()
        if not number.isdecimal() or int(number) >= count:
            raise fail(DeviceError, "device", f"there is no {device}; the GPUs are cuda:0 to cuda:{count - 1}")
        with self.xp.cuda.Device(int(number)):
            self.use(int(number))
            yield

    def synchronize(self) -> None:
        """Wait for everything on every device that was used."""
        for index in self.streams:
            self.xp.cuda.Device(index).synchronize()

    @functools.cached_property
    def processors(self) -> int:
        """Number of multiprocessors of the first device."""
        return int(self.xp.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"])


# --- kernels --------------------------------------------------------------------------------------------------------

Dims = tuple[tuple[int, ...], tuple[int, ...]]


def launch_shape(rows: int, columns: int | None, processors: int) -> Dims:
    """(grid, block) of a map over `rows` pieces of work, or with `columns` of one team a row; see kernels/common.cuh.

    Map: a thread a piece, and a grid-stride loop once 32 blocks wait on each multiprocessor.
    Rows: up to 1024 columns a warp a row, 8 rows a block; beyond, a block a row that grows with the row.
    """
    if columns is None:
        return (min(-(-rows // 256), 32 * processors),), (256,)
    if columns <= 1024:
        return (-(-rows // 8),), (32, 8)
    return (rows,), (256 if columns <= 8192 else 512 if columns <= 32768 else 1024,)


class Launch:
    """An op's implementation by a kernel: called like the op's forward, which it falls back to."""

    def __init__(self, backend: CUDABackend, kernel: Kernel, twin: Any) -> None:
        self.backend, self.kernel, self.twin = backend, kernel, twin
        self.xp = backend.xp
        self.call = kernel.call or elementwise
        self.bound: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *arrays: Any, **attrs: Any) -> Any:
        out = self.call(self, *arrays, **attrs)
        return self.twin(*arrays, **attrs) if out is NotImplemented else out

    def takes(self, *arrays: Any) -> bool:
        """Whether these are arrays of one floating type that kernels are made for."""
        if not all(isinstance(a, self.xp.ndarray) for a in arrays):
            return False
        return len({a.dtype for a in arrays}) == 1 and arrays[0].dtype.name in FLOATS

    def run(self, types: tuple[Any, ...], args: tuple[Any, ...], rows: int, columns: int | None = None) -> None:
        """Launch the instance for these dtypes over `rows` pieces of work, or `rows` rows of `columns`; none: nothing.

        args: outputs, inputs, sizes. Arrays are read as contiguous; None is the null pointer; every number is a NumPy
        scalar of the parameter's type, because CuPy passes a Python number as 8 bytes whatever the parameter is.
        """
        if rows == 0 or columns == 0:
            return
        function = self.bound.get(types) or self.bind(types)
        grid, block = launch_shape(rows, columns, self.backend.processors)
        function(grid, block, tuple([self.pack(a) for a in args]))

    def pack(self, value: Any) -> Any:
        """An argument as CuPy passes it rightly."""
        if value is None:
            return NULL
        if isinstance(value, np.generic):
            return value
        if isinstance(value, (bool, int, float)):
            raise TypeError(
                f"{self.kernel.name} was given a Python {type(value).__name__}; give the parameter's NumPy type"
            )
        return value if value.flags.c_contiguous else self.xp.ascontiguousarray(value)

    def bind(self, types: tuple[Any, ...]) -> Any:
        """Compile the template for these dtypes.

        One module an instance: only what is used is compiled, and CuPy keeps the result on disk by source, options
        and name. Templates rather than a type macro, so that a .cu file is plain C++ and names appear in profiles.
        """
        name = f"{self.kernel.name}<{', '.join(TYPES[t.name] for t in types)}>"
        code = source(source_path(self.kernel.family))
        module = self.xp.RawModule(code=code, options=OPTIONS, name_expressions=[name])
        function = self.bound[types] = module.get_function(name)
        return function


def elementwise(launch: Launch, *arrays: Any) -> Any:
    """`name<T>(out, in..., n)` on arrays of one shape and dtype."""
    first = arrays[0]
    if not launch.takes(*arrays) or any(a.shape != first.shape for a in arrays):
        return NotImplemented
    out = launch.xp.empty(first.shape, first.dtype)
    launch.run((first.dtype,), (out, *arrays, np.int64(out.size)), -(-out.nbytes // 16))  # a packet a thread
    return out
