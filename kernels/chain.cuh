// What the kernel of a chain of elementwise ops stands on; gpugrad/chain.py writes its body from functors.cuh.
//
// Outputs and inputs of the common shape move in 16-byte packets where all of them lie on 16 bytes, masks beside them; inputs
// that are broadcast are read where they are needed, from the cache. A thread computes SPAN neighbours at a time: those of a
// packet, or with a dropout the 8 that share a Philox block, so that bias, activation and dropout are one pass over memory.
//
// A chain that ends in reductions over its last axes is run as in reduce.cu: a team a slice of a row, whose states are merged
// in an order that follows from the sizes alone, without atomics; reduce_finish merges the slices of a row that has several.
#pragma once
#include "functors.cuh"
#include "reduce.cuh"

// Where an element of the common shape lies in a smaller array: strides in elements, 0 where the array is broadcast.
struct Layout {
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

// An output of the common shape: numbers, or bools that are computed as 0 and 1.
struct Output { void* at; bool mask; };

// The bools beside a packet.
template <class T> struct __align__(Packet<T>::N) Flags { bool v[Packet<T>::N]; };

__device__ __forceinline__ bool widen(bool x) { return x; }
template <class T> __device__ __forceinline__ Packet<T> neighbours(const T* p) { return packet(p); }
template <class T> __device__ __forceinline__ Flags<T> neighbours(const bool* p) { return *reinterpret_cast<const Flags<T>*>(p); }

// The part of a row that this team reduces, as numbers of elements of all rows; none if there is nothing left to do.
struct Slice {
    long long number, begin, end;

    __device__ __forceinline__ Slice(long long rows, long long cols, long long slices, long long span) : number(row_number()) {
        long long row = number / slices, last = (row + 1) * cols;
        begin = row * cols + number % slices * span, end = begin + span < last ? begin + span : last;
        if (row >= rows) number = -1;
    }
};

// What a thread holds of a reduction: a state for each place of a packet.
template <class T> struct States {
    Acc<T> v[Packet<T>::N];

    __device__ __forceinline__ explicit States(Acc<T> none) {
#pragma unroll
        for (int k = 0; k < Packet<T>::N; k++) v[k] = none;
    }
};

// The states of all threads of a team become a result of their row.
template <class T, class F>
__device__ __forceinline__ void conclude(const Reduction<T, F>& end, States<T> s, void* out, long long number) {
#pragma unroll
    for (int k = 1; k < Packet<T>::N; k++) s.v[0] = end(s.v[0], s.v[k]);
    Acc<T> whole = reduce_row(s.v[0], end, end.none());
    if (threadIdx.x == 0) end.put(out, number, whole);
}

template <class T, int OUTS, int ALL, class F, class Take, class... Ps>
__device__ __forceinline__ void compute_packet(F f, Take take, const Output* out, long long i, int k, Ps... ps) {
    constexpr int N = Packet<T>::N;
    Acc<T> r[N][ALL];
#pragma unroll
    for (int j = 0; j < N; j++) {
        f(r[j], i + j, k + j, widen(ps.v[j])...);
        take(r[j], j);
    }
#pragma unroll
    for (int o = 0; o < OUTS; o++) {
        if (out[o].mask) {
            Flags<T> flags;
#pragma unroll
            for (int j = 0; j < N; j++) flags.v[j] = r[j][o] != 0;
            *reinterpret_cast<Flags<T>*>(static_cast<bool*>(out[o].at) + i) = flags;
        } else {
            Packet<T> result;
#pragma unroll
            for (int j = 0; j < N; j++) result.v[j] = narrow<T>(r[j][o]);
            store(static_cast<T*>(out[o].at) + i, result);
        }
    }
}

// f(r, i, k, in[i]...) for every i from begin to end sets r, of which the first OUTS go to out at i, while take(r, place) sees
// all; k is the place of i in its span, place that in its packet. start(i) opens a span: it returns f.
template <class T, int SPAN, int OUTS, int ALL, class Start, class Take, class... In>
__device__ __forceinline__ void compute(Team team, long long begin, long long end, Start start, Take take, const Output* out,
                                        const In*... in) {
    constexpr int N = Packet<T>::N;
    bool packets = aligned(static_cast<const void*>(nullptr), in...);
#pragma unroll
    for (int o = 0; o < OUTS; o++) packets = packets && aligned(out[o].at);
    for (long long first = begin / SPAN * SPAN + team.rank * SPAN; first < end; first += team.size * SPAN) {
        auto f = start(first);
        if (packets && first >= begin && first + SPAN <= end) {
#pragma unroll
            for (int k = 0; k < SPAN; k += N)
                compute_packet<T, OUTS, ALL>(f, take, out, first + k, k, neighbours<T>(in + first + k)...);
        } else {
#pragma unroll
            for (int k = 0; k < SPAN; k++) { // unrolled, so that a dropout's words stay in registers
                long long i = first + k;
                if (i < begin || i >= end) continue;
                Acc<T> r[ALL];
                f(r, i, k, widen(in[i])...);
                take(r, k % N);
#pragma unroll
                for (int o = 0; o < OUTS; o++)
                    if (out[o].mask) static_cast<bool*>(out[o].at)[i] = r[o] != 0;
                    else static_cast<T*>(out[o].at)[i] = narrow<T>(r[o]);
            }
        }
    }
}
