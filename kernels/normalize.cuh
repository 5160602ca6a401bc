// A thread's part of a row, kept in registers between the passes of a normalisation.
#pragma once
#include "reduce.cuh"

// Two sums that are reduced together.
template <class A> struct Pair { A first, second; };
template <class A> __device__ __forceinline__ Pair<A> exchange(Pair<A> p, int d) {
    return {exchange(p.first, d), exchange(p.second, d)};
}
struct PlusBoth {
    template <class A> __device__ __forceinline__ Pair<A> operator()(Pair<A> a, Pair<A> b) const {
        return {a.first + b.first, a.second + b.second};
    }
};

// Up to M elements of a row, numbered e, of the first n: K packets, or where rows do not lie on 16 bytes S elements,
// blockDim.x apart.
template <class T, int K> struct Share {
    static constexpr int N = Packet<T>::N, M = K * N, S = M < 8 ? M : 8;
    int n;
    bool packets;

    PURE long long size(bool packets) { return (packets ? M : S) * blockDim.x; } // of all threads of the row
    __device__ __forceinline__ Share(long long left, bool packets)
        : n(left < size(packets) ? left : size(packets)), packets(packets) {}

    // f(part, first element) for each part of a row.
    template <class F> PURE void pass(long long cols, bool packets, F f) {
        for (long long c = 0; c < cols; c += size(packets)) f(Share(cols - c, packets), c);
    }

    __device__ __forceinline__ int at(int e) const {
        return packets ? (e / N * blockDim.x + threadIdx.x) * N + e % N : e * blockDim.x + threadIdx.x;
    }
    template <class F> PURE void all(F f) {
#pragma unroll
        for (int e = 0; e < M; e++) f(e);
    }
    // f(e, in[at(e)]...), widened.
    template <class F, class... In> __device__ __forceinline__ void each(F f, const In*... in) const {
#pragma unroll
        for (int j = 0; j < K; j++)
            if (packets && at(j * N) < n) unpack(f, j * N, packet(in + at(j * N))...);
#pragma unroll
        for (int e = 0; e < S; e++)
            if (!packets && at(e) < n) f(e, widen(in[at(e)])...);
    }
    template <class F, class... Ps> PURE void unpack(F f, int e, Ps... ps) {
#pragma unroll
        for (int k = 0; k < N; k++) f(e + k, widen(ps.v[k])...);
    }
    // out[at(e)] = f(e, in[at(e)]...).
    template <class F, class... In> __device__ __forceinline__ void fill(T* out, F f, const In*... in) const {
#pragma unroll
        for (int j = 0; j < K; j++)
            if (packets && at(j * N) < n)
                *reinterpret_cast<Packet<T>*>(out + at(j * N)) = apply<T>(f, j * N, packet(in + at(j * N))...);
#pragma unroll
        for (int e = 0; e < S; e++)
            if (!packets && at(e) < n) out[at(e)] = narrow<T>(f(e, widen(in[at(e)])...));
    }
};
