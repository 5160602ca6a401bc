"""One tiny kernel for each bug that a kernel can have: the bug is named with its line, its correction passes.

A line that the error must name ends in `//!`. `BUG(x)` is in the broken kernel only, `FIX(x)` in the corrected one.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpugrad.testing import EmulatorError, check_kernel
from gpugrad.testing.emulator import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

f32 = np.float32
BROKEN, CORRECT = ("-DBUG(...)=__VA_ARGS__", "-DFIX(...)="), ("-DBUG(...)=", "-DFIX(...)=__VA_ARGS__")


def zeros(n=64, dtype=f32):
    return np.zeros(n, dtype)


def ramp(n=64, dtype=f32):
    return np.arange(n, dtype=dtype)


class Bug:
    """A kernel `k`, how it is launched, and what the error must say."""

    def __init__(self, said, source, args, *, grid=1, block=64, shared=0, outputs=(0,)):
        self.said, self.source, self.args = said, source, args
        self.launch = {"shared_mem": shared, "outputs": outputs}
        self.shape = (grid,), (block,)

    def run(self, flags):
        return check_kernel(self.source, "k", *self.shape, self.args, **self.launch, filename="bug.cu", flags=flags)

    def places(self):
        lines = [i for i, line in enumerate(self.source.split("\n"), 1) if line.endswith("//!")]
        return [f"bug.cu:{i}" for i in lines]


SAME = ramp(4)
BUGS = {
    "missing barrier": Bug("race", """
        __global__ void k(float* out, const float* x) {
            __shared__ float part[64];
            part[threadIdx.x] = x[threadIdx.x]; //!
            FIX(__syncthreads();)
            BUG(__syncwarp();)
            out[threadIdx.x] = part[63 - threadIdx.x]; //!
        }""", (zeros(), ramp())),
    "buffer reused between two reductions": Bug("race", """
        __device__ float total(float x) {
            __shared__ float part[2];
            for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
            FIX(__syncthreads();)
            if (threadIdx.x % 32 == 0)
                part[threadIdx.x / 32] = x; //!
            __syncthreads();
            return part[0] + part[1]; //!
        }
        __global__ void k(float* out, const float* x) {
            float a = total(x[threadIdx.x]);
            out[threadIdx.x] = a + total(x[threadIdx.x] * 2);
        }""", (zeros(), ramp())),
    "missing __syncwarp": Bug("race", """
        __global__ void k(float* out, const float* x) {
            __shared__ float part[64];
            part[threadIdx.x] = x[threadIdx.x]; //!
            FIX(__syncwarp();)
            out[threadIdx.x] = part[threadIdx.x ^ 1]; //!
        }""", (zeros(), ramp())),
    "shuffle taken for a barrier": Bug("race", """
        __global__ void k(float* out, const float* x) {
            __shared__ float part[64];
            part[threadIdx.x] = x[threadIdx.x]; //!
            float one = __shfl_sync(0xffffffffu, 1.0f, 0);
            FIX(__syncwarp();)
            out[threadIdx.x] = one * part[threadIdx.x ^ 1]; //!
        }""", (zeros(), ramp())),
    "slot overwritten while it is read": Bug("race", """
        __global__ void k(float* out, const float* x) {
            __shared__ float slot;
            for (int i = 0; i < 3; i++) {
                if (threadIdx.x == 0)
                    slot = x[i]; //!
                __syncthreads();
                out[threadIdx.x + 64 * i] = slot; //!
                FIX(__syncthreads();)
            }
        }""", (zeros(192), ramp())),
    "addition without an atomic": Bug("race", """
        __global__ void k(int* out) {
            BUG(out[0] += 1;) //!
            FIX(atomicAdd(out, 1);)
        }""", (zeros(1, np.int32),), outputs=()),
    "atomic and plain access mixed": Bug("race", """
        __global__ void k(int* out, int* sum) {
            atomicAdd(sum, 1); //!
            FIX(__syncthreads();)
            if (threadIdx.x == 0)
                *out = *sum; //!
        }""", (zeros(1, np.int32), zeros(1, np.int32))),
    "lock without a fence": Bug("race", """
        __global__ void k(int* sum, int* lock) {
            while (atomicCAS(lock, 0, 1) != 0);
            FIX(__threadfence();)
            *sum += 1; //!
            FIX(__threadfence();)
            atomicExch(lock, 0);
        }""", (zeros(1, np.int32), zeros(1, np.int32)), grid=2, outputs=()),
    "last block without a fence": Bug("race", """
        __global__ void k(float* out, float* part, int* done, const float* x) {
            if (threadIdx.x == 0) {
                part[blockIdx.x] = x[blockIdx.x]; //!
                FIX(__threadfence();)
                if (atomicAdd(done, 1) + 1 == gridDim.x) {
                    FIX(__threadfence();)
                    float sum = 0;
                    for (int i = 0; i < gridDim.x; i++)
                        sum += part[i]; //!
                    *out = sum;
                }
            }
        }""", (zeros(1), zeros(4), zeros(1, np.int32), ramp(4)), grid=4),
    "blocks that overwrite each other": Bug("race", """
        __global__ void k(int* out) {
            BUG(out[threadIdx.x] = blockIdx.x;) //!
            FIX(out[threadIdx.x + 64 * blockIdx.x] = blockIdx.x;)
        }""", (zeros(128, np.int32),), grid=2, outputs=()),
    "in place where another block still reads": Bug("race", """
        __global__ void k(float* out, const float* x) {
            if (threadIdx.x == 0)
                out[blockIdx.x] = x[blockIdx.x + BUG(1) FIX(gridDim.x)]; //!
        }""", (SAME, SAME), grid=2, outputs=()),
    "result in the order of arrival": Bug("depends on the order", """
        __global__ void k(int* out, int* ticket) { //!
            if (threadIdx.x == 0) {
                int mine = atomicAdd(ticket, 1);
                FIX(mine = blockIdx.x;)
                out[mine] = blockIdx.x;
            }
        }""", (zeros(3, np.int32), zeros(1, np.int32)), grid=3),
    "uninitialised shared slot": Bug("uninitialised", """
        __global__ void k(float* out, const float* x) {
            __shared__ float part[64];
            BUG(if (threadIdx.x != 5))
            part[threadIdx.x] = x[threadIdx.x];
            __syncthreads();
            out[threadIdx.x] = part[63 - threadIdx.x]; //!
        }""", (zeros(), ramp())),
    "uninitialised dynamic shared memory": Bug("uninitialised", """
        __global__ void k(float* out, const float* x) {
            extern __shared__ float part[];
            FIX(part[threadIdx.x] = 0;)
            __syncthreads();
            atomicAdd(&part[0], 1.0f); //!
            __syncthreads();
            out[threadIdx.x] = part[0];
        }""", (zeros(), ramp()), shared=256),
    "output read before it is written": Bug("uninitialised", """
        __global__ void k(float* out, const float* x) {
            BUG(out[threadIdx.x] += x[threadIdx.x];) //!
            FIX(out[threadIdx.x] = x[threadIdx.x];)
        }""", (zeros(), ramp())),
    "bound off by one": Bug("out of bounds", """
        __global__ void k(float* out, const float* x, int n) {
            int i = threadIdx.x;
            if (i < n FIX(- 1))
                out[i] = x[i + 1]; //!
            FIX(if (i == n - 1) out[i] = 0;)
        }""", (zeros(61), ramp(61), np.int32(61))),
    "index below the array": Bug("out of bounds", """
        __global__ void k(float* out, const float* x) {
            FIX(if (threadIdx.x))
            out[threadIdx.x] = x[threadIdx.x - 1]; //!
            FIX(else out[0] = 0;)
        }""", (zeros(), ramp())),
    "dynamic shared memory overrun": Bug("out of bounds", """
        __global__ void k(float* out, const float* x) {
            extern __shared__ float part[];
            part[threadIdx.x BUG(+ 1)] = x[threadIdx.x]; //!
            __syncthreads();
            out[threadIdx.x] = part[threadIdx.x];
        }""", (zeros(), ramp()), shared=256),
    "static shared index out of range": Bug("index out of bounds, 64 in type 'float [64]'", """
        __global__ void k(float* out, const float* x) {
            __shared__ float part[64];
            part[threadIdx.x BUG(+ 1)] = x[threadIdx.x]; //!
            out[threadIdx.x] = x[threadIdx.x];
        }""", (zeros(), ramp())),
    "local index out of range": Bug("index out of bounds, 4 in type 'float [4]'", """
        __global__ void k(float* out, const float* x, int n) {
            float mine[4];
            for (int i = 0; i < n; i++)
                mine[i FIX(% 4)] = x[i]; //!
            out[threadIdx.x] = mine[threadIdx.x % 4];
        }""", (zeros(), ramp(), np.int32(5))),
    "misaligned packet": Bug("misaligned address, 4 bytes past a multiple of 16 for type 'const struct float4'", """
        __global__ void k(float* out, const float* x) {
            float4 four = *reinterpret_cast<const float4*>(x BUG(+ 1)); //!
            out[threadIdx.x] = four.x;
        }""", (zeros(), ramp())),
    "divergent barrier": Bug("divergent __syncthreads", """
        __global__ void k(float* out) {
            BUG(if (threadIdx.x < 32))
                __syncthreads(); //!
            BUG(else)
                __syncthreads(); //!
            out[threadIdx.x] = 1;
        }""", (zeros(),)),
    "early return before a barrier": Bug("deadlock", """
        __global__ void k(float* out, int n) {
            BUG(if (threadIdx.x >= n) return;)
            __syncthreads(); //!
            if (threadIdx.x < n) out[threadIdx.x] = 1;
        }""", (zeros(40), np.int32(40))),
    "lane missing from a mask": Bug("lane 31, which its own mask leaves out", """
        __global__ void k(float* out, const float* x) {
            float v = x[threadIdx.x];
            v += __shfl_xor_sync(BUG(0x7fffffffu) FIX(0xffffffffu), v, 1); //!
            out[threadIdx.x] = v;
        }""", (zeros(), ramp())),
    "collective that a lane skips": Bug("which has exited", """
        __global__ void k(float* out, const float* x) {
            BUG(if (threadIdx.x == 40) return;)
            out[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1); //!
        }""", (zeros(), ramp())),
    "overflow of a 32-bit index": Bug("signed integer overflow, 65536 * 65536 in type 'int'", """
        __global__ void k(long long* out, int rows) {
            out[0] = FIX((long long)) rows * rows; //!
        }""", (zeros(1, np.int64), np.int32(65536)), block=1),
    "shift beyond the width": Bug("shift, 1 by 32 bits", """
        __global__ void k(int* out, int bits) {
            out[0] = 1 << FIX(-1 +) bits; //!
        }""", (zeros(1, np.int32), np.int32(32)), block=1),
    "division by zero": Bug("division by zero", """
        __global__ void k(int* out, int n) {
            FIX(if (n == 0) n = 1;)
            out[0] = 64 / n; //!
        }""", (zeros(1, np.int32), np.int32(0)), block=1),
    "null pointer": Bug("null pointer", """
        __global__ void k(float* out, const float* x) {
            out[threadIdx.x] = FIX(!x ? 0 :) x[threadIdx.x]; //!
        }""", (zeros(), None)),
    "unwritten output element": Bug("3 of the 64 elements of argument 0, an output; the first is element 61", """
        __global__ void k(float* out, const float* x, int n) { //!
            if (threadIdx.x < n BUG(- 3)) out[threadIdx.x] = x[threadIdx.x];
        }""", (zeros(), ramp(), np.int32(64))),
    "wrong argument width": Bug("argument 1 is float64 (f8), the parameter is f4", """
        __global__ void k(float* out, BUG(float) FIX(double) x) { //!
            out[threadIdx.x] = x;
        }""", (zeros(), np.float64(3))),
    "spin on what nobody sets": Bug("livelock", """
        __global__ void k(float* out, int* flag) {
            FIX(if (threadIdx.x == 0) atomicExch(flag, 1);)
            while (atomicCAS(flag, 1, 1) != 1); //!
            out[threadIdx.x] = 1;
        }""", (zeros(), zeros(1, np.int32))),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_reported_with_its_line(name):
    bug = BUGS[name]
    with pytest.raises(EmulatorError) as caught:
        bug.run(BROKEN)
    assert bug.said in str(caught.value)
    assert bug.places()
    for place in bug.places():
        assert place in str(caught.value)


@pytest.mark.parametrize("name", BUGS)
def test_corrected_kernel_passes_every_mode(name):
    bug = BUGS[name]
    before = [np.copy(a) for a in bug.args if a is not None]
    bug.run(CORRECT)
    for a, b in zip(before, [a for a in bug.args if a is not None]):
        assert np.array_equal(a, b), "check_kernel leaves its arguments alone"
