// Reductions of x (outer, reduced, inner) over its middle extent: sum and mean, max and min, argmax and argmin, variance,
// log-sum-exp. Launched by gpugrad/ops/reduce.py and softmax.py.
//
// F: Sum, Largest, First, Moments, LogSumExp
//
// In two stages, without atomics: slices of `span` elements become states, and reduce_finish merges a result's states. One
// slice alone gives its result at once. inner = 1: a team a slice, a warp up to 1024 elements, a block beyond. inner > 1: a
// block a tile of columns and a slice of rows, its threads side by side in y merged through shared memory.
// Each thread keeps a state for every place in a packet, so no sum is longer than a few dozen terms before the trees begin.
// The geometry follows from the sizes alone: the same bits on every GPU and in every run, for arrays that start alike
// relative to 16 bytes. Moves each element once. Variance merges (n, mean, sum of squared deviations) by the formulas of
// Chan, Golub and LeVeque (1979): nothing cancels, and one pass is enough. NaN wins a maximum; ties go to the first.
// Considered: the whole of a long row in one block (leaves multiprocessors idle), a second pass for the variance (reads
// twice), atomics on a counter to finish in the same launch (saves a launch, needs memory that is zero).
#include "softmax.cuh"

#define GG_STATIC static __device__ __forceinline__

struct Sum {
    template <class A> using State = A;
    template <class A> GG_STATIC A none() { return 0; }
    template <class A> GG_STATIC void add(A& s, A v, long long, A) { s += v; }
    template <class A> GG_STATIC A merge(A a, A b) { return a + b; }
    template <class A> GG_STATIC A result(A s, A divisor, A) { return s / divisor; }
};

struct Largest {
    template <class A> using State = A;
    template <class A> GG_STATIC A none() { return -GG_INFINITY; }
    template <class A> GG_STATIC void add(A& s, A v, long long, A) { s = merge(s, v); }
    template <class A> GG_STATIC A merge(A a, A b) { return a >= b || a != a ? a : b; }
    template <class A> GG_STATIC A result(A s, A, A sign) { return s * sign; }
};

template <class A> struct Place { A value; long long index; };
template <class A> __device__ __forceinline__ Place<A> exchange(Place<A> s, int d) { return {exchange(s.value, d), exchange(s.index, d)}; }

struct First {
    template <class A> using State = Place<A>;
    template <class A> GG_STATIC Place<A> none() { return {A(-GG_INFINITY), 0x7fffffffffffffff}; }
    template <class A> GG_STATIC void add(Place<A>& s, A v, long long i, A) { s = merge(s, Place<A>{v, i}); }
    template <class A> GG_STATIC Place<A> merge(Place<A> a, Place<A> b) {
        bool tie = a.value == b.value || (a.value != a.value && b.value != b.value);
        return (tie ? a.index < b.index : a.value > b.value || a.value != a.value) ? a : b;
    }
    template <class A> GG_STATIC long long result(Place<A> s, A, A) { return s.index; }
};

template <class A> struct Spread { A n, mean, squares; };
template <class A> __device__ __forceinline__ Spread<A> exchange(Spread<A> s, int d) { return {exchange(s.n, d), exchange(s.mean, d), exchange(s.squares, d)}; }

struct Moments {
    template <class A> using State = Spread<A>;
    template <class A> GG_STATIC Spread<A> none() { return {A(0), A(0), A(0)}; }
    template <class A> GG_STATIC void add(Spread<A>& s, A v, long long, A nth) { // nth: 1 / (how many, with this one)
        A d = v - s.mean;
        s.n += 1, s.mean += d * nth, s.squares += d * (v - s.mean);
    }
    template <class A> GG_STATIC Spread<A> merge(Spread<A> a, Spread<A> b) {
        if (b.n == 0) return a;
        A n = a.n + b.n, share = b.n / n, d = b.mean - a.mean;
        return {n, a.mean + d * share, a.squares + b.squares + d * d * a.n * share};
    }
    template <class A> GG_STATIC A result(Spread<A> s, A divisor, A) { return s.squares / divisor; }
};

struct LogSumExp {
    template <class A> using State = ExpSum<A>;
    template <class A> GG_STATIC ExpSum<A> none() { return ExpSum<A>::none(); }
    template <class A> GG_STATIC void add(ExpSum<A>& s, A v, long long, A) { s.add(v); }
    template <class A> GG_STATIC ExpSum<A> merge(ExpSum<A> a, ExpSum<A> b) { return a.merged(b); }
    template <class A> GG_STATIC A result(ExpSum<A> s, A, A) { return s.base() + s.log(); }
};
