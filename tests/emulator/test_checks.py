"""Guard pages, faults, `check_kernel` as users call it, and the cache of compiled kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpugrad import compiler as builds
from gpugrad.testing import EmulatorError, check_kernel, guarded
from gpugrad.testing.emulator import Module, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

FAULTS = r"""
__global__ void after(float* out, const float* x, int n) {
    if (threadIdx.x < n) out[threadIdx.x] =
        x[threadIdx.x + 1];
}
__global__ void before(float* out, const float* x, int n) {
    int i = threadIdx.x;
    if (i < n) out[i - 1] = x[i];
}
__global__ void null(float* out) { out[threadIdx.x] = 1; }
__global__ void divide(int* out) {
    out[1] =
        out[0] / out[1];
}
__global__ void deep(float* out, int n) {
    volatile float big[50000];
    for (int i = 0; i < 50000; i++) big[i] = i;
    out[0] = big[n];
}
__global__ void copy(float* out, const float* x) { memcpy(out + 1, x, 16 * sizeof(float)); }
"""
FAULTY = ["after", "before", "null", "divide", "deep", "copy"]


@pytest.fixture(scope="module")
def plain():
    return Module(FAULTS, FAULTY, filename="faults.cu", mode="plain")


def f32(n):
    return np.arange(n, dtype=np.float32)


FIRST = "thread (0,0,0) of block (0,0,0)"


@pytest.mark.parametrize(
    "name, args, said",
    [
        (
            "after",
            (f32(64), guarded(f32(64)), np.int32(64)),
            "thread (63,0,0) of block (0,0,0) reads element 64 of argument 1, which has 64, at faults.cu:4",
        ),
        (
            "before",
            (guarded(f32(64), before=True), f32(64), np.int32(64)),
            f"{FIRST} writes element -1 of argument 0 at faults.cu:8",
        ),
        ("null", (None,), f"{FIRST} writes memory that belongs to no argument at faults.cu:10"),
        ("divide", (np.zeros(2, np.int32),), f"division by zero: {FIRST} at faults.cu:13"),
        ("deep", (f32(1), np.int32(0)), f"stack overflow: {FIRST} at faults.cu:15"),
        (
            "copy",
            (guarded(f32(16)), f32(16)),
            f"{FIRST} writes element 16 of argument 0, which has 16, at faults.cu:20",
        ),
    ],
    ids=FAULTY,
)
def test_faults_are_errors_with_a_line_at_full_speed(plain, name, args, said):
    with pytest.raises(EmulatorError) as caught:
        plain[name]((1,), (64,) if name in ("after", "before") else (1,), args)
    assert said in str(caught.value)
    out = f32(3)
    plain["after"]((1,), (64,), (out, f32(9), np.int32(3)))  # the machine goes on as before
    assert out.tolist() == [1, 2, 3]


def test_a_loop_without_end_is_an_error():
    source = "__global__ void k(volatile int* x) {\n    while (*x == 0)\n        ;\n}"
    with pytest.raises(EmulatorError, match=r"endless: thread \(0,0,0\) of block \(0,0,0\) at kernel\.cu:2"):
        Module(source, ["k"], mode="plain")["k"]((1,), (1,), (np.zeros(1, np.int32),))


def test_a_fault_elsewhere_is_not_taken_for_the_kernels():
    """After a launch the handlers of before are in place."""
    code = f"""
import ctypes, faulthandler, numpy as np
from gpugrad.testing.emulator import Module
Module({FAULTS!r}, ["after"], mode="plain")["after"]((1,), (1,), (np.zeros(2, "f4"), np.zeros(2, "f4"), np.int32(1)))
faulthandler.enable()
ctypes.string_at(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -11
    assert "Fatal Python error: Segmentation fault" in done.stderr


def test_guarded_arrays_hold_the_values():
    for before in (False, True):
        for shape in ((0,), (3,), (2, 5), (1024,)):
            x = np.random.default_rng(0).normal(size=shape)
            copy = guarded(x, before=before)
            assert np.array_equal(x, copy)
            assert copy.ctypes.data % 16 == 0
            copy += 1


ADD = r"""
template <class T> __global__ void add(T* out, const T* x, const T* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] + y[i];
}
__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
__global__ void either(int* out, const int* mine) { // whoever comes last
    atomicExch(out, mine[threadIdx.x]);
}
"""


def test_check_kernel_returns_what_the_kernel_computes():
    x, y = f32(100), np.ones(100, "f4")
    out, *_ = check_kernel(ADD, "add<float>", (2,), (64,), (np.zeros(100, "f4"), x, y, np.int32(100)), outputs=[0])
    assert np.array_equal(out, x + y)


def test_check_kernel_keeps_an_array_given_twice_one():
    x = f32(100)
    out, again, *_ = check_kernel(ADD, "add<float>", (2,), (64,), (x, x, np.ones(100, "f4"), np.int32(100)))
    assert out is again
    assert np.array_equal(out, x + 1)
    assert np.array_equal(x, f32(100))


def test_check_kernel_may_allow_results_that_depend_on_the_order():
    args = np.zeros(1, np.int32), np.arange(64, dtype=np.int32)
    with pytest.raises(EmulatorError, match=r"element 0 of argument 0 depends on the order.*'reversed'"):
        check_kernel(ADD, "either", (1,), (64,), args)
    check_kernel(ADD, "either", (1,), (64,), args, deterministic=False)


def test_errors_name_the_schedule_and_its_seed():
    source = "__global__ void k(int* x) { __shared__ int s; s = threadIdx.x; __syncwarp(); x[threadIdx.x] = s; }"
    kernel = Module(source, ["k"], mode="checked")["k"]
    with pytest.raises(EmulatorError, match=r"race.*\(schedule random, seed 17, blocks reversed\)"):
        kernel((1,), (64,), (np.zeros(64, np.int32),), schedule="random", seed=17, reverse_blocks=True)


def test_memory_that_is_reached_by_addresses_is_watched_for_races_alone():
    """With a table of addresses nobody knows where the arrays end, but their guard pages do."""
    source = (
        "struct Two { float *a, *b; };\n__global__ void k(Two t, int i, int k) { t.a[threadIdx.x * k + i] = *t.b; }"
    )
    kernel = Module(source, ["k"], mode="checked")["k"]
    a, b = guarded(f32(64)), guarded(f32(1))
    two = np.array((a.ctypes.data, b.ctypes.data), [("a", "u8"), ("b", "u8")])
    kernel((1,), (64,), (two, np.int32(0), np.int32(1)))
    assert not a.any()
    with pytest.raises(EmulatorError, match=r"race.*memory that belongs to no argument at kernel\.cu:2"):
        kernel((1,), (64,), (two, np.int32(0), np.int32(0)))
    with pytest.raises(EmulatorError, match=r"out of bounds.*kernel\.cu:2"):
        kernel((1,), (64,), (two, np.int32(1), np.int32(1)))


def test_unknown_mode():
    with pytest.raises(EmulatorError, match="no mode 'fast'; expected one of plain, checked"):
        Module(ADD, ["twice"], mode="fast")


@pytest.fixture
def cache(plain, monkeypatch, tmp_path):
    """An empty cache but for the machine, which takes long to compile."""
    shutil.copy(plain.machine, tmp_path)
    monkeypatch.setenv("GPUGRAD_EMULATOR_CACHE", str(tmp_path))
    return tmp_path


def test_compiled_kernels_are_kept_within_the_budget(monkeypatch, cache):

    def compiled(name):
        module = Module(ADD, [name], mode="plain")
        return module.path, module.machine

    first, machine = compiled("twice")
    stamp = first.stat().st_ino
    assert compiled("twice")[0].stat().st_ino == stamp, "compiled once"
    monkeypatch.setattr(builds, "BUDGET", machine.stat().st_size + first.stat().st_size * 3 // 2)
    second, _ = compiled("add<double>")
    assert not first.exists(), "the one that was used longest ago"
    assert second.exists()
    assert machine.exists()
    x = f32(4)
    Module(ADD, ["twice"], mode="plain")["twice"]((1,), (4,), (x,))
    assert x.tolist() == [0, 2, 4, 6]


def test_modules_are_compiled_by_several_processes_at_once(cache):
    code = """
import numpy as np
from gpugrad.testing.emulator import Module
x = np.ones(4, "f4")
Module("__global__ void twice(float* x) { x[threadIdx.x] *= 2; }", ["twice"])["twice"]((1,), (4,), (x,))
assert x.tolist() == [2, 2, 2, 2]
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    assert len(list(cache.glob("*.so"))) == 2
    assert len(list(cache.iterdir())) == 2
