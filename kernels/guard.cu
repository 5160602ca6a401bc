// Guards: what must not be goes to the mailbox, with its place and value. Launched by gpugrad/ops/guard.py.
//
//   assert_finite: reports the first of the n elements of x, in memory order, that is NaN or infinite.
//
// x: n elements, contiguous; nothing but the mailbox is written. Moves one element an element.
// Exponent bits decide rather than comparisons, which a compiler may assume away. Only an offender takes the lock.
#include "common.cuh"

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_int(x) & 0x7f800000) != 0x7f800000; }
__device__ __forceinline__ bool is_finite(double x) { return x - x == 0; }

template <class T> __global__ void assert_finite(Mailbox* box, const T* x, int site, long long n) {
    each(whole_grid(), n, [=](long long i, Acc<T> v) {
        if (!is_finite(v)) report(box, site, i, __double_as_longlong(double(v)));
    }, x);
}
