// What a reduction keeps of the elements it has met: a state, how it takes one more, and how two become one.
//
// In each struct: none() is the state of no elements; add(s, v, i, nth) takes the element v at place i, with nth = 1 / (how
// many s then has); merge(a, b) is the state of both; result(s, divisor, sign) is what is wanted of it. Before that, every
// element of a result loses origin(v), v being the first of them.
#pragma once
#include "softmax.cuh"

#define PURE static __device__ __forceinline__

struct Sum {
    template <class A> using State = A;
    template <class A> PURE A origin(A) { return 0; }
    template <class A> PURE A none() { return 0; }
    template <class A> PURE void add(A& s, A v, long long, A) { s += v; }
    template <class A> PURE A merge(A a, A b) { return a + b; }
    template <class A> PURE A result(A s, A divisor, A) { return s / divisor; }
};

struct Largest {
    template <class A> using State = A;
    template <class A> PURE A origin(A) { return 0; }
    template <class A> PURE A none() { return -GG_INFINITY; }
    template <class A> PURE void add(A& s, A v, long long, A) { s = merge(s, v); }
    template <class A> PURE A merge(A a, A b) { return a >= b || a != a ? a : b; }
    template <class A> PURE A result(A s, A, A sign) { return s * sign; }
};

template <class A> struct Place { A value; long long index; };
template <class A> __device__ __forceinline__ Place<A> exchange(Place<A> s, int distance) {
    return {exchange(s.value, distance), exchange(s.index, distance)};
}

struct First {
    template <class A> using State = Place<A>;
    template <class A> PURE A origin(A) { return 0; }
    template <class A> PURE Place<A> none() { return {A(-GG_INFINITY), 0x7fffffffffffffff}; }
    template <class A> PURE void add(Place<A>& s, A v, long long i, A) { s = merge(s, Place<A>{v, i}); }
    template <class A> PURE Place<A> merge(Place<A> a, Place<A> b) {
        bool tie = a.value == b.value || (a.value != a.value && b.value != b.value);
        return (tie ? a.index < b.index : a.value > b.value || a.value != a.value) ? a : b;
    }
    template <class A> PURE long long result(Place<A> s, A, A) { return s.index; }
};

template <class A> struct Spread { A n, mean, squares; };
template <class A> __device__ __forceinline__ Spread<A> exchange(Spread<A> s, int distance) {
    return {exchange(s.n, distance), exchange(s.mean, distance), exchange(s.squares, distance)};
}

struct Moments {
    template <class A> using State = Spread<A>;
    template <class A> PURE A origin(A v) { return v; } // a mean far from 0 costs no digits
    template <class A> PURE Spread<A> none() { return {A(0), A(0), A(0)}; }
    template <class A> PURE void add(Spread<A>& s, A v, long long, A nth) {
        A d = v - s.mean;
        s.n += 1, s.mean += d * nth, s.squares += d * (v - s.mean);
    }
    template <class A> PURE Spread<A> merge(Spread<A> a, Spread<A> b) {
        if (b.n == 0) return a;
        A n = a.n + b.n, share = b.n / n, d = b.mean - a.mean;
        return {n, a.mean + d * share, a.squares + b.squares + d * d * a.n * share};
    }
    template <class A> PURE A result(Spread<A> s, A divisor, A) { return s.squares / divisor; }
};

struct LogSumExp {
    template <class A> using State = ExpSum<A>;
    template <class A> PURE A origin(A) { return 0; }
    template <class A> PURE ExpSum<A> none() { return ExpSum<A>::none(); }
    template <class A> PURE void add(ExpSum<A>& s, A v, long long, A) { s.add(v); }
    template <class A> PURE ExpSum<A> merge(ExpSum<A> a, ExpSum<A> b) { return a.merged(b); }
    template <class A> PURE A result(ExpSum<A> s, A, A) { return s.base() + s.log(); }
};

// --- a reduction as a kernel sees it ------------------------------------------------------------------------------------

enum Form { STATE, STORED, WIDE }; // what goes out: a state to be merged, the result as T, the result as Acc<T>

template <class T, class F> struct Reduction {
    using A = Acc<T>;
    using State = typename F::template State<A>;
    static constexpr int N = Packet<T>::N;
    A divisor, sign;
    int form;

    PURE State none() { return F::template none<A>(); }
    __device__ __forceinline__ State operator()(State a, State b) const { return F::merge(a, b); }

    __device__ __forceinline__ void put(void* out, long long i, State s) const {
        if (form == STATE) static_cast<State*>(out)[i] = s;
        else store(out, i, F::result(s, divisor, sign));
    }
    __device__ __forceinline__ void store(void* out, long long i, long long v) const { static_cast<long long*>(out)[i] = v; }
    __device__ __forceinline__ void store(void* out, long long i, A v) const {
        if (form == WIDE) static_cast<A*>(out)[i] = v;
        else static_cast<T*>(out)[i] = narrow<T>(v);
    }

    // What the threads of one x have in s is merged over y, in a tree, and left with the first of them.
    template <int M> __device__ __forceinline__ void merge_over_y(State (&s)[M]) const {
        __shared__ State part[M][256];
        int me = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
        for (int k = 0; k < M; k++) part[k][me] = s[k];
        for (int half = blockDim.y / 2; half; half /= 2) {
            __syncthreads();
            if (threadIdx.y >= half) continue;
#pragma unroll
            for (int k = 0; k < M; k++) part[k][me] = s[k] = F::merge(s[k], part[k][me + half * blockDim.x]);
        }
    }
};
