// Dropout: y[i] = x[i] * scale where the i-th random word of 32 bits is below `threshold`, else x[i] * 0. Forward and
// backward are the same kernel: the mask is drawn again, not stored. Launched by gpugrad/ops/random.py.
//
// x, y: n elements, contiguous; counter: one number on the device, so that a captured step draws anew at each replay;
// threshold: keep probability times 2^32, an integer up to 2^32. Moves two elements an element.
// A thread makes one Philox block, 128 multiplications, for the 8 elements that share it, and moves them in packets.
// The words are those of numpy.random.Philox, so CPU and GPU drop the same elements.
#include "common.cuh"
#include "functors.cuh"

template <class T>
__global__ void dropout(T* y, const T* x, const unsigned long long* counter, unsigned long long key0, unsigned long long key1,
                        unsigned long long threshold, Acc<T> scale, long long n) {
    constexpr int N = Packet<T>::N;
    Team team = whole_grid();
    bool packets = aligned(y, x);
    for (long long block = team.rank; block * 8 < n; block += team.size) {
        Philox random(*counter, block, key0, key1);
        auto drop = [&](T v, int k) { return narrow<T>(widen(v) * (random.half_word(k) < threshold ? scale : Acc<T>(0))); };
        long long first = block * 8;
        if (packets && first + 8 <= n) {
#pragma unroll
            for (int k = 0; k < 8; k += N) {
                Packet<T> p = packet(x + first + k);
#pragma unroll
                for (int j = 0; j < N; j++) p.v[j] = drop(p.v[j], k + j);
                store(y + first + k, p);
            }
        } else {
#pragma unroll
            for (int k = 0; k < 8; k++) // unrolled, so that the words stay in registers
                if (first + k < n) y[first + k] = drop(x[first + k], k);
        }
    }
}
