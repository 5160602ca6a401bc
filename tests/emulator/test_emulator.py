"""Tests of the tester: what CUDA guarantees is computed, what it forbids or leaves undefined is reported."""

from __future__ import annotations

from math import erf, exp, expm1, log, log1p, sqrt, tanh

import numpy as np
import pytest

from gpugrad.testing.emulator import EmulatorError, Module, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

SOURCE = r"""
template <class T> __global__ void scale(T* y, const T* x, T a, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
__global__ void sum(float* out, const float* x, int n) {
    __shared__ float part[32];
    float s = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffffu, s, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffffu, s, d);
        if (threadIdx.x == 0) out[blockIdx.x] = s;
    }
}
__global__ void no_barrier(float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = part[63 - threadIdx.x];  // reads what its neighbour may not have written
}
__global__ void early(float* out) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void diverge(float* out) {
    if (threadIdx.x < 3) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void reversed_copy(float* out) {
    extern __shared__ float buf[];
    buf[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = buf[blockDim.x - 1 - threadIdx.x];
}
__global__ void exited_lane(int* out) {
    if (threadIdx.x != 20) out[threadIdx.x] = __shfl_sync(0xffffffffu, (int)threadIdx.x, 16);
}
__global__ void wrong_mask(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 0); }
__global__ void two_halves(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, (int)threadIdx.x, 1);
    else
        out[threadIdx.x] = __shfl_sync(0xffff0000u, (int)threadIdx.x, 16);
}
__global__ void votes(int* out) {
    unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x % 2);
    int count = __syncthreads_count(threadIdx.x < 5);
    int any = __any_sync(0xffffffffu, threadIdx.x == 7), all = __all_sync(0xffffffffu, threadIdx.x == 7);
    out[threadIdx.x] = odd == 0xaaaaaaaau && count == 5 && any && !all;
}
__global__ void block_order(int* out) { *out = *out == 0 ? blockIdx.x + 1 : *out; }
__global__ void halves(unsigned short* out, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = __float2half(x[i]).bits;
}
__global__ void floats(float* out, const unsigned short* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) { __half h; h.bits = x[i]; out[i] = __half2float(h); }
}
"""
NAMES = ["scale<float>", "scale<double>", "sum", "no_barrier", "early", "diverge", "reversed_copy", "exited_lane",
         "wrong_mask", "two_halves", "votes", "block_order", "halves", "floats"]  # fmt: skip


@pytest.fixture(scope="module")
def kernels():
    return Module(SOURCE, NAMES, filename="sample.cu")


def line_of(text: str, occurrence: int = 1) -> str:
    """'sample.cu:N' of the given occurrence of a piece of the source."""
    lines = [i for i, line in enumerate(SOURCE.split("\n"), 1) if text in line]
    return f"sample.cu:{lines[occurrence - 1]}"


def test_map_and_templates(kernels):
    x = np.random.default_rng(0).normal(size=1000)
    for dtype, name in ((np.float32, "scale<float>"), (np.float64, "scale<double>")):
        a, y = x.astype(dtype), np.full(1000, 7, dtype)
        kernels[name]((4,), (256,), (y, a, dtype(3), np.int64(999)))
        assert np.array_equal(y[:999], a[:999] * dtype(3))
        assert y[999] == 7


@pytest.mark.parametrize("schedule, seed", [("natural", 0), ("reversed", 0), ("random", 1), ("random", 2)])
def test_block_reduction_under_every_schedule(kernels, schedule, seed):
    x = np.arange(1000, dtype=np.float32)
    out = np.empty(4, np.float32)
    kernels["sum"]((4,), (256,), (out, x, np.int32(1000)), schedule=schedule, seed=seed)
    assert out.sum() == x.sum()


def test_missing_barrier_reads_poison_in_some_schedule(kernels):
    good = np.arange(63, -1, -1, dtype=np.float32)
    outs = []
    for schedule, seed in [("natural", 0), ("reversed", 0), ("random", 1)]:
        out = np.empty(64, np.float32)
        kernels["no_barrier"]((1,), (64,), (out,), schedule=schedule, seed=seed)
        outs.append(out)
    assert all(np.isnan(o).any() for o in outs)
    assert not any(np.array_equal(o, good) for o in outs)


@pytest.mark.parametrize(
    "name, said",
    [
        ("early", ["deadlock", "__syncthreads", line_of("__syncthreads();", 2), "1 have exited"]),
        ("diverge", ["divergent", "thread (3,0,0)", line_of("threadIdx.x < 3)"), line_of("__syncthreads();", 4)]),
        ("exited_lane", ["__shfl_sync", "lane 20", "exited", line_of("threadIdx.x != 20")]),
        ("wrong_mask", ["lane 16", "own mask leaves out", line_of("0x0000ffffu, (int)threadIdx.x, 0")]),
    ],
)  # fmt: skip
def test_forbidden_synchronisation_is_named(kernels, name, said):
    with pytest.raises(EmulatorError) as caught:
        kernels[name]((1,), (32,), (np.zeros(32, np.float32 if name in ("early", "diverge") else np.int32),))
    for piece in said:
        assert piece in str(caught.value)


def test_dynamic_shared_memory_and_its_limit(kernels):
    out = np.empty(64, np.float32)
    kernels["reversed_copy"]((1,), (64,), (out,), 256)
    assert np.array_equal(out, np.arange(63, -1, -1))
    with pytest.raises(EmulatorError, match="limits"):
        kernels["reversed_copy"]((1,), (64,), (out,), 1 << 20)
    with pytest.raises(EmulatorError, match="limits"):
        kernels["reversed_copy"]((1,), (2048,), (out,), 256)


def test_disjoint_masks_run_independently(kernels):
    out = np.empty(32, np.int32)
    kernels["two_halves"]((1,), (32,), (out,))
    assert out[:15].tolist() == list(range(1, 16))
    assert out[15] == -1  # lane 16 is outside the mask: undefined on the GPU, poison here
    assert (out[16:] == 16).all()


def test_votes(kernels):
    out = np.zeros(32, np.int32)
    kernels["votes"]((1,), (32,), (out,))
    assert out.all()


def test_block_order_can_be_reversed(kernels):
    for reverse, first in ((False, 1), (True, 5)):
        out = np.zeros(1, np.int32)
        kernels["block_order"]((5,), (1,), (out,), reverse_blocks=reverse)
        assert out[0] == first


@pytest.mark.parametrize(
    "args, said",
    [
        (lambda y, x: (y, x, 3.0, np.int64(5)), "expected a NumPy scalar"),
        (lambda y, x: (y, x, np.float64(3), np.int64(5)), "float64"),
        (lambda y, x: (y, x, np.float32(3), np.int32(5)), "int32"),
        (lambda y, x: (y, x.astype(np.float64), np.float32(3), np.int64(5)), "expected elements of 4 bytes"),
        (lambda y, x: (y, np.float32(1), np.float32(3), np.int64(5)), "expected an array"),
        (lambda y, x: (y, x, np.float32(3)), "takes 4 arguments, got 3"),
    ],
)
def test_arguments_must_fit_the_signature(kernels, args, said):
    x = np.ones(5, np.float32)
    with pytest.raises(EmulatorError, match=said) as caught:
        kernels["scale<float>"]((1,), (32,), args(np.empty_like(x), x))
    assert line_of("void scale(") in str(caught.value)


def test_half_conversions_are_numpys(kernels):
    every = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    kernels["floats"]((1,), (256,), (out, every, np.int32(65536)))
    assert np.array_equal(out, every.view(np.float16).astype(np.float32), equal_nan=True)
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [rng.normal(size=20000) * 10.0 ** rng.integers(-9, 6, 20000), [65504, 65519.9, 65520, 6.1e-5, 0, -0.0, np.inf]]
    )
    x = x.astype(np.float32)
    bits = np.empty(x.size, np.uint16)
    kernels["halves"]((1,), (256,), (bits, x, np.int32(x.size)))
    with np.errstate(over="ignore"):
        assert np.array_equal(bits, x.astype(np.float16).view(np.uint16))


LIBRARY = r"""
struct Pair { int a; double b; };
__global__ void by_value(double* out, Pair p, const Pair* q) { out[0] = p.a + p.b + (q ? q->a : 0); }
__global__ void reductions(int* out) {
    int lane = threadIdx.x;
    out[lane] = (__reduce_add_sync(~0u, lane - 5) == 336) & (__reduce_min_sync(~0u, lane - 5) == -5) &
                (__reduce_max_sync(~0u, 7u + lane) == 38u) & (__reduce_and_sync(~0u, 6u + 8 * lane) == 6u) &
                (__reduce_or_sync(~0u, 1u << lane) == ~0u) & (__reduce_xor_sync(~0u, 3u) == 0u) &
                (__match_any_sync(~0u, lane % 4) == 0x11111111u << lane % 4);
}
__global__ void shuffles(int* out) { // & and not &&: every lane must come to every shuffle
    int lane = threadIdx.x, in = lane % 8;
    out[lane] = (__shfl_sync(~0u, lane, 9, 8) == lane - in + 1) & (__shfl_xor_sync(~0u, lane, 16, 16) == lane % 16) &
                (__shfl_xor_sync(~0u, lane, 4, 16) == (lane ^ 4)) &
                (__shfl_up_sync(~0u, lane, 3, 8) == (in < 3 ? lane : lane - 3)) &
                (__shfl_down_sync(~0u, lane, 3, 8) == (in > 4 ? lane : lane + 3));
}
__global__ void atomics(long long* out, unsigned long long* bits, float* sum) {
    atomicMin(out, -(long long)threadIdx.x), atomicMax(out + 1, (long long)threadIdx.x << 40);
    atomicAdd(bits, ~0ull), atomicOr(bits + 1, 1ull << threadIdx.x), atomicAdd(sum, 0.5f);
    atomicInc((unsigned*)(sum + 1), 9u);
}
__global__ void spin(int* lock, int* sum) { // a lock, and a loop that waits for the last thread without one
    while (atomicCAS(lock, 0, 1) != 0);
    __threadfence();
    *sum += 1;
    __threadfence();
    atomicExch(lock, 0);
    volatile int* seen = sum + 1;
    if (threadIdx.x == 63) *seen = 1;
    while (*seen == 0) __nanosleep(100);
}
__global__ void math(float* out, float x) {
    out[0] = fmaf(x, x, 1) + erff(x) + tanhf(x) + expm1f(x) + log1pf(x) + rsqrtf(x) + sqrtf(x) + fabsf(x) +
             fmaxf(x, 1) + fminf(x, 1) + powf(x, 2) + ceilf(x) + floorf(x) + __expf(x) +
             __logf(x) + __ldg(&x) + __saturatef(x);
}
"""
LIBRARY_NAMES = ["by_value", "reductions", "shuffles", "atomics", "spin", "math"]


@pytest.fixture(scope="module", params=["plain", "checked"])
def library(request):
    return Module(LIBRARY, LIBRARY_NAMES, filename="library.cu", mode=request.param)


def test_structs_by_value_and_by_address(library):
    pair = np.zeros(1, [("a", "i4"), ("pad", "i4"), ("b", "f8")])
    pair["a"], pair["b"] = 3, 0.25
    for value, address, want in (
        (pair[0], None, 3.25),
        (pair, np.uintp(pair.ctypes.data), 6.25),
        (pair, np.uintp(0), 3.25),
    ):
        out = np.zeros(1)
        library["by_value"]((1,), (1,), (out, value, address))
        assert out[0] == want
    with pytest.raises(EmulatorError, match="struct of 8 bytes, expected 16"):
        library["by_value"]((1,), (1,), (np.zeros(1), np.zeros(1, "V8"), None))


def test_launch_by_addresses_of_arguments(library):
    out, x = np.zeros(1, "f4"), np.float32(0.5)
    boxes = np.array([out.ctypes.data], np.uintp), np.array([x])
    block = np.array([b.ctypes.data for b in boxes], np.uintp)
    library["math"].launch_pointers((1,), (1,), block.ctypes.data)
    x = 0.5
    want = [
        x * x + 1,
        erf(x),
        tanh(x),
        expm1(x),
        log1p(x),
        x**-0.5,
        sqrt(x),
        x,
        1,
        x,
        x * x,
        1,
        0,
        exp(x),
        log(x),
        x,
        x,
    ]
    assert out[0] == pytest.approx(sum(want), rel=1e-6)


@pytest.mark.parametrize("name", ["reductions", "shuffles"])
def test_warp_collectives(library, name):
    for schedule in ("natural", "reversed", "random"):
        out = np.zeros(32, np.int32)
        library[name]((1,), (32,), (out,), schedule=schedule)
        assert out.all()


def test_atomics(library):
    out, bits, sums = np.zeros(2, np.int64), np.zeros(2, np.uint64), np.zeros(2, np.float32)
    library["atomics"]((1,), (64,), (out, bits, sums))
    assert out.tolist() == [-63, 63 << 40]
    assert bits.tolist() == [2**64 - 64, 2**64 - 1]
    assert sums[0] == 32
    assert sums.view(np.uint32)[1] == 64 % 10


@pytest.mark.parametrize("schedule", ["natural", "reversed", "random"])
def test_threads_that_spin_give_way(library, schedule):
    lock, sums = np.zeros(1, np.int32), np.zeros(2, np.int32)
    library["spin"]((2,), (64,), (lock, sums), schedule=schedule)
    assert (lock[0], sums[0]) == (0, 128)


def test_compiler_errors_speak_of_the_kernel_file():
    with pytest.raises(EmulatorError, match=r"broken\.cu:1"):
        Module("__global__ void k(float* x) { x[0] = undeclared; }", ["k"], filename="broken.cu")
