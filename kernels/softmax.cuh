// Sums of exponentials without overflow, in one pass: what softmax, log-sum-exp and cross-entropy share.
#pragma once
#include "common.cuh"
#include "functors.cuh"

// sum * exp(top) is the sum of exp(v) over the values added so far; top is the largest of them, -inf before the first.
template <class A> struct ExpSum {
    A top, sum;

    static __device__ __forceinline__ ExpSum none() { return {A(-GG_INFINITY), A(0)}; }

    __device__ __forceinline__ void add(A v) {
        bool larger = v > top;
        A ratio = v == top ? A(1) : exponential(larger ? top - v : v - top); // equal apart: -inf after -inf is no NaN
        sum = larger ? sum * ratio + 1 : sum + ratio;
        top = larger ? v : top;
    }
    // The sum of both.
    __device__ __forceinline__ ExpSum merged(ExpSum b) const {
        A high = Larger()(top, b.top);
        A mine = top == high ? sum : sum * exponential(top - high);
        return {high, mine + (b.top == high ? b.sum : b.sum * exponential(b.top - high))};
    }
    __device__ __forceinline__ bool infinite() const { return top == GG_INFINITY || top == -GG_INFINITY; }
    __device__ __forceinline__ A base() const { return infinite() ? A(0) : top; }
    // log-sum-exp is base() + log(): +-inf where the largest value is, NaN where any is.
    __device__ __forceinline__ A log() const { return infinite() && sum == sum ? top : logarithm(sum); }
};

template <class A> __device__ __forceinline__ ExpSum<A> exchange(ExpSum<A> e, int distance) {
    return {exchange(e.top, distance), exchange(e.sum, distance)};
}

// The whole row's from each thread's part. All threads of the block must call it.
template <class A> __device__ __forceinline__ ExpSum<A> reduce_row(ExpSum<A> own) {
    A top = reduce_row(own.top, Larger(), A(-GG_INFINITY));
    return {top, reduce_row(own.top == top ? own.sum : own.sum * exponential(own.top - top), Plus(), A(0))};
}

// Up to K packets of an aligned row for each thread, in registers.
template <class T, int K> struct Kept {
    static constexpr int N = Packet<T>::N;
    Packet<T> p[K];

    static __device__ __forceinline__ bool fits(long long n) { return n % N == 0 && n <= K * N * blockDim.x; }

    // f(packet number, first element) for each packet of this thread.
    template <class F> static __device__ __forceinline__ void packets(int n, F f) {
#pragma unroll
        for (int j = 0; j < K; j++) {
            int i = (j * blockDim.x + threadIdx.x) * N;
            if (i < n) f(j, i);
        }
    }
    __device__ __forceinline__ Kept(int n, const T* x) {
        packets(n, [&](int j, int i) { p[j] = packet(x + i); });
    }
    template <class F, class... In> __device__ __forceinline__ void each(int n, F f, const In&... in) const {
        packets(n, [&](int j, int i) { visit(f, i, p[j], in.p[j]...); });
    }
    template <class F, class... In> __device__ __forceinline__ void fill(T* out, int n, F f, const In&... in) const {
        packets(n, [&](int j, int i) { store(out + i, apply<T>(f, i, p[j], in.p[j]...)); });
    }
};
