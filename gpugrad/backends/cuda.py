"""The CUDA backend: CuPy arrays, CuPy functions and our own kernels. The only module that imports CuPy."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpugrad.backends.cublaslt import Gemm
from gpugrad.backends.launch import Launch
from gpugrad.backends.mailbox import BYTES, Mailbox
from gpugrad.errors import DeviceError, fail
from gpugrad.kernel import Kernel

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


def cublaslt(xp: Any) -> Any:
    """libcublasLt, found where CuPy finds its libraries, or what a double of CuPy brings; a string says what failed."""
    if hasattr(xp, "cublaslt"):
        return xp.cublaslt
    from cuda import pathfinder

    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (pathfinder.DynamicLibNotFoundError, OSError) as error:
        return f"cuBLASLt cannot be loaded: {str(error).partition(chr(10))[0]}"


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

    checked: launch every kernel through CuPy's own path and wait for it (the default with GPUGRAD_DEBUG=1).
    """

    name = "cuda"

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.array_type: type = xp.ndarray
        self.streams: dict[int, Any] = {}
        self.used: set[int] = set()  # numbers of devices
        self.lock = threading.Lock()
        self.kept: list[tuple[Any, Any]] = []  # objects that a device still uses, and the event after which it does not
        self.mailbox = Mailbox(xp.cuda.alloc_pinned_memory(BYTES), self.finish)
        self.launches = 0  # of kernels of ours
        self.checked = os.environ.get("GPUGRAD_DEBUG", "0") != "0"
        self.count = xp.cuda.runtime.getDeviceCount()
        self.use(xp.cuda.Device().id)

    def use(self, index: int) -> None:
        """Make the device's stream current, unless the user chose one. The device is the current one."""
        self.used.add(index)
        if self.xp.cuda.get_current_stream().ptr == 0:
            if index not in self.streams:
                self.streams[index] = self.xp.cuda.Stream(non_blocking=False)
            self.streams[index].use()

    def implement(self, fwd: Any, special: dict[str, Any]) -> Any:
        """A kernel of ours, a CuPy function by name, or a Python function of (xp, *arrays, **attrs) bound to CuPy."""
        run = special.get("cuda", fwd)
        if isinstance(run, Kernel):
            call: Any = Launch(self, run, self.implement(fwd, {}))
        else:
            call = getattr(self.xp, run) if isinstance(run, str) else functools.partial(run, self.xp)
        return call if self.count == 1 else self.following(call)

    def following(self, run: Any) -> Any:
        """`run` on the device where its first array lies."""

        @functools.wraps(run)
        def call(*arrays: Any, **attrs: Any) -> Any:
            flat = (a for x in arrays for a in (x if isinstance(x, list) else (x,)))
            first = next((a for a in flat if isinstance(a, self.xp.ndarray)), None)
            with contextlib.nullcontext() if first is None else self.scope(self.device_of(first)):
                return run(*arrays, **attrs)

        return call

    def asarray(self, value: Any, dtype: Any = None, *, device: str | None = None, copy: bool | None = None) -> Any:
        """A CuPy array on `device` (the current one if None); from another device by a copy between the two.

        The values of the host are read before this returns.
        """
        with self.scope(device or "cuda"):
            if isinstance(value, self.xp.ndarray) and value.device.id != self.xp.cuda.Device().id:
                if copy is False:
                    raise ValueError(f"{self.device_of(value)} to {device} needs a copy")
                return self.xp.array(value, dtype=dtype, copy=True)
            return self.xp.asarray(value, dtype=dtype, copy=copy, blocking=self.is_pinned(value))

    def to_numpy(self, array: Any) -> Any:
        """A copy of the values on the host; waits for the current stream. Raises what a kernel reported until then."""
        values = self.xp.asnumpy(array)
        self.mailbox.check()
        return values

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
        """Wait for everything on every device that was used. Raises what a kernel reported."""
        self.finish()
        self.mailbox.check()

    def finish(self) -> None:
        """Wait for everything on every device that was used."""
        for index in sorted(self.used):
            self.xp.cuda.Device(index).synchronize()

    # --- streams ----------------------------------------------------------------------------------------------------

    def full_name(self, device: str) -> str:
        """'cuda:N', of 'cuda' the current one."""
        return device if ":" in device else f"cuda:{self.device}"

    def new_stream(self, device: str, external: Any = None) -> Any:
        """Another stream on a device, or that of another library. Like the device's own it is a blocking one."""
        if external is None:
            with self.scope(device):
                return self.xp.cuda.Stream(non_blocking=False)
        known = external if hasattr(external, "__cuda_stream__") else Address(external)
        return self.xp.cuda.Stream.from_external(known)

    def current_stream(self, device: str) -> Any:
        """The stream that work on a device goes to."""
        with self.scope(device):
            return self.xp.cuda.get_current_stream()

    def use_stream(self, device: str, stream: Any) -> None:
        """Let work on a device go to a stream."""
        with self.scope(device):
            stream.use()

    def follow(self, before: Any) -> Any:
        """The current stream, which begins after all that another was given if that is another."""
        now = self.xp.cuda.get_current_stream()
        if now.ptr != before.ptr:
            now.wait_event(self.moment(before))
        return now

    def is_done(self, work: Any) -> bool:
        """Whether a stream or an event is done."""
        return work.done  # type: ignore[no-any-return]

    def wait_for(self, work: Any) -> None:
        """Wait for a stream or an event. Raises what a kernel reported until then."""
        work.synchronize()
        self.mailbox.check()

    def keep(self, stream: Any, *objects: Any) -> None:
        """Hold objects until a stream has done what it was given so far; that is looked at with the next ones."""
        if self.xp.cuda.get_current_stream().is_capturing():
            raise fail(DeviceError, "to", "a copy that does not wait cannot be captured")
        with self.lock:
            kept = [pair for pair in self.kept if not pair[0].done]
            self.kept = [*kept, (self.moment(stream), objects)]

    def is_pinned(self, value: Any) -> bool:
        """Whether an array lies in page-locked memory."""
        while value is not None and not isinstance(value, self.xp.cuda.PinnedMemoryPointer):
            value = getattr(value, "base", None)
        return value is not None

    def pinned(self, like: Any, copy: bool = True) -> Any:
        """A NumPy array in page-locked memory: a copy of an array, or one of its shape and dtype."""
        memory = self.xp.cuda.alloc_pinned_memory(max(1, like.nbytes))
        array = np.ndarray(like.shape, like.dtype, memory)
        if copy:
            array[...] = like
        return array

    def send(self, array: Any, device: str) -> Any:
        """A NumPy array on a device without waiting: from pinned memory, which is read when the stream gets there."""
        with self.scope(device):
            made, stream = self.xp.asarray(array), self.xp.cuda.get_current_stream()
            self.keep(stream, array)
            return made

    def fetch(self, array: Any) -> Any:
        """An array in pinned memory without waiting: its values are there when the stream gets there."""
        with self.scope(self.device_of(array)):
            host, stream = self.pinned(array, copy=False), self.xp.cuda.get_current_stream()
            array.get(out=host, blocking=False)
            self.keep(stream, host)
            return host

    def moment(self, stream: Any = None) -> Any:
        """An event in a stream, the current one if None."""
        event = self.xp.cuda.Event()
        event.record(stream)
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """The device's own time between two events that have happened."""
        return self.xp.cuda.get_elapsed_time(start, end) / 1e3  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def capture(self) -> Iterator[Captured]:
        """Record the work of the block as a CUDA graph instead of doing it; yields what can do it, again and again.

        Run the same work once before, so that kernels are compiled and workspaces exist. Nothing in the block may read
        values on the host. What changes between launches has to live in arrays made before the block.
        """
        stream, captured = self.xp.cuda.get_current_stream(), Captured(self.xp.cuda.MemoryPool())
        with self.xp.cuda.using_allocator(captured.pool.malloc):
            stream.begin_capture()
            try:
                yield captured
            except BaseException:
                with contextlib.suppress(self.xp.cuda.runtime.CUDARuntimeError):
                    stream.end_capture()  # which may fail as well: the first error is the one to show
                raise
            captured.graph = stream.end_capture()

    def memory(self) -> dict[str, int]:
        """Bytes on the current device.

        `used` by arrays and `reserved` in CuPy's pool, its `limit` (0: none), `free` on the device, `total`.
        """
        pool, (free, total) = self.xp.get_default_memory_pool(), self.xp.cuda.runtime.memGetInfo()
        sizes = {"used": pool.used_bytes(), "reserved": pool.total_bytes(), "limit": pool.get_limit()}
        return {**sizes, "free": free, "total": total}

    def set_memory_limit(self, limit: int | float) -> None:
        """Largest total of CuPy's pool on the current device: bytes, or a share of the device."""
        size = {"fraction": limit} if isinstance(limit, float) and limit else {"size": int(limit)}
        self.xp.get_default_memory_pool().set_limit(**size)

    def release_memory(self) -> None:
        """Give unused pieces of CuPy's pool back to the device."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def card(self) -> dict[str, Any]:
        """Name and properties of the current device, and the versions of driver, CuPy and its CUDA."""
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(self.device)
        driver, built = (
            f"{v // 1000}.{v % 1000 // 10}" for v in (runtime.driverGetVersion(), runtime.runtimeGetVersion())
        )
        return {
            "name": properties["name"].decode(), "capability": f"{properties['major']}.{properties['minor']}",
            "processors": properties["multiProcessorCount"], "gigabytes": runtime.memGetInfo()[1] >> 30,
            "driver": driver, "runtime": built, "cupy": self.xp.__version__,
        }  # fmt: skip

    @property
    def device(self) -> int:
        """Number of the current device."""
        return 0 if self.count == 1 else self.xp.cuda.runtime.getDevice()  # type: ignore[no-any-return]

    @functools.cached_property
    def gemm(self) -> Gemm:
        """Matrix products: `gemm(a, b)`."""
        return Gemm(self, cublaslt(self.xp))

    @functools.cached_property
    def processors(self) -> int:
        """Number of multiprocessors of the first device."""
        return int(self.xp.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"])


class Address:
    """A stream of another library by its address, as CuPy takes one."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


class Captured:
    """A CUDA graph with the pool that its arrays came from, which must live as long: launches use the same memory."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.graph = pool, None

    def launch(self) -> None:
        """Do the recorded work on the current stream."""
        self.graph.launch()  # type: ignore[attr-defined]
