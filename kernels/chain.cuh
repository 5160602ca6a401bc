// What the kernel of a chain of elementwise ops stands on; gpugrad/chain.py writes its body from functors.cuh.
//
// Outputs and inputs of the common shape move in 16-byte packets where all of them lie on 16 bytes; inputs that are broadcast
// are read where they are needed, from the cache. A thread computes SPAN neighbours at a time: those of a packet, or with a
// dropout the 8 that share a Philox block, so that bias, activation and dropout are one pass over memory.
#pragma once
#include "common.cuh"
#include "functors.cuh"

// Where an element of the common shape lies in a smaller array: strides in elements, 0 where the array is broadcast.
struct Place {
    long long dims, shape[6], strides[6];

    __device__ __forceinline__ long long operator()(long long i) const {
        long long at = 0;
#pragma unroll
        for (int d = 5; d >= 0; d--) {
            if (d >= dims) continue;
            long long above = quotient(i, shape[d]);
            at += (i - above * shape[d]) * strides[d];
            i = above;
        }
        return at;
    }
};

// The factors of a dropout for the 8 elements of a block.
template <class A> struct Dropped {
    unsigned words[8];
    unsigned long long threshold;
    A scale;

    __device__ __forceinline__ Dropped(const unsigned long long* counter, unsigned long long key0, unsigned long long key1,
                                       unsigned long long threshold, A scale, long long i)
        : threshold(threshold), scale(scale) {
        Philox random(*counter, i / 8, key0, key1);
#pragma unroll
        for (int k = 0; k < 8; k++) words[k] = random.half_word(k);
    }
    __device__ __forceinline__ A operator[](int k) const { return words[k] < threshold ? scale : A(0); }
};

template <class T, int OUTS, class F, class... Ps>
__device__ __forceinline__ void apply_all(Packet<T> (&results)[OUTS], F f, long long i, int k, Ps... ps) {
#pragma unroll
    for (int j = 0; j < Packet<T>::N; j++) {
        Acc<T> r[OUTS];
        f(r, i + j, k + j, widen(ps.v[j])...);
#pragma unroll
        for (int o = 0; o < OUTS; o++) results[o].v[j] = narrow<T>(r[o]);
    }
}

// f(r, i, k, in[i]...) sets r, what the outputs get at i; k is the place of i among its span. start(i) opens a span: what
// it returns is called with the arguments of f.
template <class T, int SPAN, int OUTS, class Start, class... In>
__device__ __forceinline__ void compute(long long n, Start start, T* const (&out)[OUTS], const In*... in) {
    using A = Acc<T>;
    constexpr int N = Packet<T>::N;
    Team team = whole_grid();
    bool packets = aligned(in...);
#pragma unroll
    for (int o = 0; o < OUTS; o++) packets = packets && aligned(out[o]);
    for (long long first = team.rank * SPAN; first < n; first += team.size * SPAN) {
        auto f = start(first);
        if (packets && first + SPAN <= n) {
#pragma unroll
            for (int k = 0; k < SPAN; k += N) {
                Packet<T> results[OUTS];
                apply_all(results, f, first + k, k, packet(in + first + k)...);
#pragma unroll
                for (int o = 0; o < OUTS; o++) store(out[o] + first + k, results[o]);
            }
        } else {
#pragma unroll
            for (int k = 0; k < SPAN; k++) // unrolled, so that a dropout's words stay in registers
                if (first + k < n) {
                    A r[OUTS];
                    f(r, first + k, k, widen(in[first + k])...);
#pragma unroll
                    for (int o = 0; o < OUTS; o++) out[o][first + k] = narrow<T>(r[o]);
                }
        }
    }
}
