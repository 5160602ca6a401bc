"""The backend without a GPU: refusals with a remedy, how an op is implemented, what a launch hands to the driver."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import backends
from gpugrad.backends import cuda, launch
from gpugrad.errors import DeviceError
from gpugrad.kernel import Kernel, Parameter, kernel, signature
from gpugrad.testing import fake_cupy

from .conftest import registered

# --- load -----------------------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class DynamicLibNotFoundError(RuntimeError):
    pass


def double(count=1, status=0, driver=12020, missing=(), headers="/include"):
    """Modules `cupy` and `cuda.pathfinder` of a machine with these properties."""

    def get_device_count():
        if status:
            raise CUDARuntimeError(status, "cudaErrorUnknown: odd")
        return count

    def load(name):
        if name in missing:
            raise DynamicLibNotFoundError(name)

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=get_device_count, driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13020,
    )  # fmt: skip
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=fake_cupy.Device,
        Stream=fake_cupy.Stream,
        get_current_stream=fake_cupy.Stream,
        alloc_pinned_memory=bytearray,
    )
    cupy.ndarray = fake_cupy.ndarray
    pathfinder = types.ModuleType("cuda.pathfinder")
    pathfinder.DynamicLibNotFoundError = DynamicLibNotFoundError
    pathfinder.load_nvidia_dynamic_lib = load
    pathfinder.find_nvidia_header_directory = lambda name: headers
    package = types.ModuleType("cuda")
    package.pathfinder = pathfinder
    return {"cupy": cupy, "cuda": package, "cuda.pathfinder": pathfinder}


@pytest.fixture
def machine(monkeypatch):
    def install(modules):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        cuda.find.cache_clear()

    monkeypatch.setattr(backends, "_by_name", {"cpu": backends.get("cpu")})
    yield install
    cuda.find.cache_clear()


@pytest.mark.parametrize(
    "modules, reason, remedy",
    [
        ({"cupy": None}, "CuPy is not installed", r"gpugrad\[cuda12\].*gpugrad\[cuda13\]"),
        (double(status=35, driver=0), "no NVIDIA driver", "install the driver"),
        (double(status=35, driver=12020), r"supports CUDA 12\.2, CuPy is built for 13\.2", "update the driver"),
        (double(status=100), "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        (double(count=0), "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        (double(status=999), "cudaErrorUnknown: odd", "nvidia-smi"),
        (double(missing=("nvrtc",)), "NVRTC.*not installed", r"pip install.*\[cuda12\].*\[cuda13\]"),
        (double(missing=("cublas",)), "cuBLAS.*not installed", r"pip install.*\[cuda12\].*\[cuda13\]"),
        (double(headers=None), "CUDA headers.*not installed", r"pip install.*\[cuda12\].*\[cuda13\]"),
    ],
)
def test_a_refusal_names_the_reason_and_the_remedy(machine, modules, reason, remedy):
    machine(modules)
    with pytest.raises(DeviceError, match=reason) as caught:
        backends.get("cuda:0")
    first, second, at = str(caught.value).split("\n")
    assert first.startswith("[cuda] ")
    assert re.search(remedy, second)
    assert at.startswith("  at ")
    assert not backends.is_available("cuda")


def test_a_broken_cupy_keeps_its_own_words(machine, tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("raise ImportError('libfoo.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    machine({})
    with pytest.raises(DeviceError, match=r"libfoo\.so"):
        cuda.load()


def test_a_missing_dependency_of_cupy_is_named(machine, tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("import module_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    machine({})
    with pytest.raises(DeviceError, match="module_that_is_not_there"):
        cuda.load()


def test_the_machine_is_looked_at_once(machine, monkeypatch):
    modules = double()
    looks, look = [], cuda.problem
    monkeypatch.setattr(cuda, "problem", lambda xp: looks.append(1) or look(xp))
    machine(modules)
    assert cuda.load().xp is modules["cupy"]
    assert cuda.load().name == "cuda"
    assert backends.is_available("cuda")
    assert looks == [1]


def test_importing_gpugrad_and_its_kernels_does_not_import_cupy():
    code = "import sys, gpugrad, gpugrad.kernel, gpugrad.launch.loss; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- arrays, devices, streams ---------------------------------------------------------------------------------------


@pytest.fixture
def backend():
    return cuda.load(fake_cupy)


def test_asarray_moves_converts_and_copies_as_asked(backend):
    host = np.arange(3)
    a = backend.asarray(host, "float32", device="cuda:0")
    assert backend.array_type is type(a)
    assert a.dtype == np.float32
    assert backend.asarray(a) is a
    assert backend.asarray(a, copy=True) is not a
    assert backend.to_numpy(backend.asarray([1.5, 2.0])).tolist() == [1.5, 2.0]
    assert backend.device_of(a) == "cuda:0"
    assert np.array_equal(backend.to_numpy(a), host)


@pytest.mark.parametrize("name", ["cuda:1", "cuda:x", "cuda:-1"])
def test_an_unknown_device_is_refused(backend, name):
    with pytest.raises(DeviceError, match=f"there is no {name}; the GPUs are cuda:0 to cuda:0"), backend.scope(name):
        pass


class StreamLog:
    """Streams and current streams of two devices, as CuPy keeps them for a thread."""

    def __init__(self) -> None:
        log = self
        self.now, self.current, self.made, self.waited = 0, {0: 0, 1: 0}, [], []

        class Device:
            def __init__(self, index=None):
                self.id = log.now if index is None else index

            def __enter__(self):
                self.before, log.now = log.now, self.id

            def __exit__(self, *_):
                log.now = self.before

            def synchronize(self):
                log.waited.append(self.id)

        class Stream:
            def __init__(self, non_blocking):
                self.ptr = 10 + log.now + 100 * [device for device, _ in log.made].count(log.now)
                log.made.append((log.now, non_blocking))

            def use(self):
                log.current[log.now] = self.ptr

        class Event:
            def __init__(self):
                self.device = log.now

            def record(self, stream):
                assert stream.ptr % 10 == log.now == self.device

        self.xp = types.SimpleNamespace(
            ndarray=fake_cupy.ndarray,
            cuda=types.SimpleNamespace(
                Device=Device, Event=Event, Stream=Stream, runtime=types.SimpleNamespace(getDeviceCount=lambda: 2),
                get_current_stream=log.stream,
                alloc_pinned_memory=bytearray,
            ),
        )  # fmt: skip

    def stream(self):
        """The current one of the current device."""
        found = types.SimpleNamespace(ptr=self.current[self.now])
        found.use = lambda: self.current.__setitem__(self.now, found.ptr)
        return found


def test_a_stream_of_another_gpu_is_made_recorded_and_used_there():
    log = StreamLog()
    with registered(cuda.load(log.xp)):
        stream = gg.Stream("cuda:1")
        assert (stream.raw.ptr, log.made[-1]) == (111, (1, False))
        with stream:
            assert log.current == {0: 10, 1: 111}
            assert stream.record().device == "cuda:1"
            with gg.Stream("cuda:0"):
                assert log.current == {0: 110, 1: 111}
            assert gg.current_stream("cuda:1").raw.ptr == 111
        assert log.current == {0: 10, 1: 11}
        assert log.now == 0


def test_each_device_gets_one_blocking_stream_of_its_own():
    log = StreamLog()
    backend = cuda.load(log.xp)
    assert log.current == {0: 10, 1: 0}
    for _ in range(2):
        with backend.scope("cuda:1"):
            assert log.now == 1
    assert log.now == 0
    assert log.current == {0: 10, 1: 11}
    assert log.made == [(0, False), (1, False)]
    backend.synchronize()
    assert log.waited == [0, 1]


def test_a_stream_that_the_user_chose_is_kept():
    log = StreamLog()
    log.current[0] = 99
    backend = cuda.load(log.xp)
    with backend.scope("cuda:0"):
        assert log.current[0] == 99
    assert log.made == []
    backend.synchronize()
    assert log.waited == [0]


# --- implementations ------------------------------------------------------------------------------------------------


def test_implement_by_name_by_function_and_by_override(backend):
    x = backend.asarray([0.0, 1.0])
    assert backend.to_numpy(backend.implement("exp", {})(x)).tolist() == [1.0, np.e]
    assert backend.to_numpy(backend.implement(lambda xp, x: xp.exp(x) - 1, {})(x))[0] == 0
    assert backend.to_numpy(backend.implement("exp", {"cuda": lambda xp, x: x * 3, "cpu": "sin"})(x))[1] == 3


class Recorder:
    """RawModules made and launches done, in place of a compiler: of CuPy's own path, and of the short one."""

    def __init__(self) -> None:
        self.made, self.checked, self.short = [], [], []
        recorder = self

        class Function:
            def __init__(self, name):
                self.name, self.kernel = name, types.SimpleNamespace(ptr=len(recorder.made))

            def __call__(self, grid, block, args, *, shared_mem):
                recorder.checked.append((self.name, grid, block, args, shared_mem))

        class RawModule:
            def __init__(self, *, code, options, name_expressions):
                recorder.made.append((code, options, name_expressions))

            def get_function(self, name):
                return Function(name)

        self.RawModule = RawModule

    def launch(self, f, *rest):
        *dims, shared, stream, params, extra = rest
        self.short.append((f, tuple(dims), shared, stream, (ctypes.c_void_p * 8).from_address(params)))
        assert extra == 0


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(fake_cupy, "RawModule", recorder.RawModule)
    monkeypatch.setattr(fake_cupy.cuda.driver, "launchKernel", recorder.launch)
    return recorder


def relu_bwd(backend):
    return backend.implement(lambda xp, t, out: xp.where(out <= 0, 0, t), {"cuda": kernel("activation", "relu_bwd")})


def pointed(address, kind):
    return kind.from_address(address).value


def test_the_first_launch_goes_through_cupy_with_the_declared_types(backend, recorder):
    run = relu_bwd(backend)
    t, out = backend.asarray(np.ones((3, 5), "float32")), backend.asarray(np.ones((5, 3), "float32")).T
    dx = run(t, out)
    ((name, grid, block, args, shared),) = recorder.checked
    assert name == "relu_bwd<float>"
    assert (grid, block, shared) == ((1,), (256,), 0)
    assert args[0] is dx
    assert args[1] is t
    assert args[2].flags.c_contiguous
    assert type(args[3]) is np.int64
    assert args[3] == 15
    ((code, options, names),) = recorder.made
    assert "-std=c++17" in options
    assert names == ["relu_bwd<float>"]
    assert '#include "' not in code


def test_later_launches_fill_the_argument_block_and_ask_the_driver(backend, recorder):
    run = relu_bwd(backend)
    t = backend.asarray(np.ones((3, 5), "float32"))
    run(t, t)
    small = backend.asarray(np.ones(7, "float32"))
    dx = run(small, t.reshape(-1)[:7])
    assert len(recorder.checked) == len(recorder.made) == len(recorder.short) == 1
    ((handle, dims, shared, _, params),) = recorder.short
    assert (handle, dims, shared) == (1, (1, 1, 1, 256, 1, 1), 0)
    pointers = [pointed(params[i], ctypes.c_void_p) for i in range(3)]
    assert pointers == [dx.data.ptr, small.data.ptr, t.data.ptr]
    assert pointed(params[3], ctypes.c_longlong) == 7
    run(*(backend.asarray(np.ones(2)) for _ in "ab"))
    assert [m[2] for m in recorder.made] == [["relu_bwd<float>"], ["relu_bwd<double>"]]


def test_each_thread_has_an_argument_block_of_its_own(backend, recorder):
    run, x = relu_bwd(backend), backend.asarray(np.ones(4, "float32"))
    run(x, x)
    thread = threading.Thread(target=lambda: [run(x, x) for _ in range(2)])
    thread.start()
    thread.join()
    run(x, x)
    assert len(recorder.checked) == 2
    first, second = ([*s[4]] for s in recorder.short)
    assert not set(first[:4]) & set(second[:4])


def test_a_checked_backend_never_takes_the_short_path(backend, recorder):
    backend.checked = True
    run, x = relu_bwd(backend), backend.asarray(np.ones(4, "float32"))
    for _ in range(3):
        run(x, x)
    assert len(recorder.checked) == 3
    assert recorder.short == []


@pytest.mark.parametrize("value, checked", [("", False), ("0", False), ("1", True)])
def test_the_environment_asks_for_checks(monkeypatch, value, checked):
    monkeypatch.setenv("GPUGRAD_DEBUG", value or "0")
    assert cuda.load(fake_cupy).checked is checked


def test_what_has_no_kernel_runs_the_twin(backend, recorder):
    run = relu_bwd(backend)
    x = backend.asarray(np.array([1.0, -1.0], "float32"))
    for t in (np.ones(2), np.ones((3, 1), "float32"), np.array([1, 2]), 2.0):
        given = t if isinstance(t, float) else backend.asarray(t)
        assert np.array_equal(backend.to_numpy(run(given, x)), np.where([False, True], 0, t))
    assert recorder.made == []


def test_nothing_is_launched_for_empty_arrays(backend, recorder):
    empty = backend.asarray(np.ones((0, 3), "float32"))
    assert relu_bwd(backend)(empty, empty).shape == (0, 3)
    assert recorder.made == recorder.checked == recorder.short == []


SOURCE = """
#include "common.cuh"
struct Table { int entries[3]; };
template <class T> __global__ void __launch_bounds__(256) probe(T* out, const float* __restrict__ none,
    int i, unsigned u, unsigned long long w, Acc<T> a, double d, bool b, Table table) {
    out[0] = narrow<T>(i + u + w + a + d + b + table.entries[2] + (none ? 1000 : 0));
}
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kind_of_argument_arrives_on_both_paths(backend, dtype):
    """Numbers are converted to the declared width; the double compares with the compiled signature."""

    def call(launch, x):
        table = np.array([7, 7, 64], "int32").tobytes()
        for scale in (1, 2):  # the checked launch, the short one
            out = launch.xp.zeros(1, x.dtype)
            launch.map("probe", (x.dtype,), (out, None, -scale, 2 * scale, 4, 8 * scale, 16, True, table), 1)
            yield launch.backend.to_numpy(out)[0]

    run = backend.implement("exp", {"cuda": Kernel("probe", "probe", call, SOURCE)})
    assert list(run(backend.asarray(np.ones(1, dtype)))) == [1 + 4 + 8 + 16 + 1 + 64, 2 + 4 + 16 + 16 + 1 + 64]


def test_more_threads_than_declared_are_refused(backend):
    def call(launch, x):
        launch.tiles("probe", (x.dtype,), (x, None, 1, 2, 4, 8, 16, True, bytes(12)), (1,), (512,))

    run = backend.implement("exp", {"cuda": Kernel("probe", "probe", call, SOURCE)})
    with pytest.raises(fake_cupy.CUDARuntimeError, match="512 threads, declared are 256"):
        run(backend.asarray(np.ones(1)))


def test_a_wrong_number_of_arguments_is_refused(backend):
    def call(launch, x):
        launch.map("relu_bwd", (x.dtype,), (x, x, 1), 1)

    with pytest.raises(TypeError, match=r"relu_bwd<float>\] takes 4 arguments, got 3"):
        backend.implement("exp", {"cuda": kernel("activation", "relu_bwd", call)})(
            backend.asarray(np.ones(1, "float32"))
        )


def test_signatures_are_read_from_the_text():
    code = (
        "__global__ void f(const unsigned long long* a, Acc<T> b, unsigned c, Mailbox *box) {}\n__global__ void g() {}"
    )
    assert signature(code, "f") == [
        Parameter("unsigned long long*", "a", True), Parameter("Acc<T>", "b", False), Parameter("unsigned", "c", False),
        Parameter("Mailbox*", "box", False),
    ]  # fmt: skip
    assert signature(code, "g") == []
    with pytest.raises(DeviceError, match="no kernel h"):
        signature(code, "h")


@pytest.mark.parametrize(
    "rows, columns, grid, block",
    [
        (1, None, (1,), (256,)),
        (256, None, (1,), (256,)),
        (257, None, (2,), (256,)),
        (10**9, None, (128,), (256,)),
        (1, 10, (1,), (32, 8)),
        (17, 1024, (3,), (32, 8)),
        (17, 1025, (17,), (256,)),
        (17, 10_000, (17,), (512,)),
        (70_000, 50_257, (70_000,), (512,)),
    ],
)
def test_launch_shapes(rows, columns, grid, block):
    assert launch.launch_shape(rows, columns, processors=4) == (grid, block)
