// What is done to all gradients together: norm, clipping, loss scaling. Launched by gpugrad/ops/optim.py.
//
//   norm_parts: parts[first + b] = sum of |x|^ord over block b's chunk (F Squares: ord 2; Powers), or its largest |x| (Peak);
//   norm_total: out = (sum of parts)^(1 / ord), or their largest;
//   scale_into: x *= by, or with a limit above 0, by being a norm: x *= limit / max(by, limit), nan for a norm that is;
//   unscale_into: x *= 1 / scale; flag = 1 if an element that comes out is not finite;
//   next_scale: one thread. If a flag is set: scale *= backoff, good = 0. Else good += 1, and after `interval` of them
//     scale *= growth, if that is finite, and good = 0. The flags are cleared.
//
// x: one contiguous array of type T a tensor of the table, of any size and alignment. parts: double, one a chunk; a norm is
// of type N. norm_parts moves one element an element, scale_into and unscale_into two, the others next to nothing.
// Norms are summed in double: neither the number of elements nor their size costs digits, and the order is that of the
// sizes alone. Versions: sums in float by halves (overflow at 1e19); the total in the last block of norm_parts (saves a
// launch, costs a ticket; parts of several types would need it anyway).
#include "optim.cuh"

// F: Squares, Powers, Peak
// N: float, double

struct Squares {
    static __device__ __forceinline__ double of(double x, double) { return x * x; }
    static __device__ __forceinline__ double merge(double a, double b) { return a + b; }
};
struct Powers {
    static __device__ __forceinline__ double of(double x, double ord) { return pow(fabs(x), ord); }
    static __device__ __forceinline__ double merge(double a, double b) { return a + b; }
};
struct Peak { // a nan wins
    static __device__ __forceinline__ double of(double x, double) { return fabs(x); }
    static __device__ __forceinline__ double merge(double a, double b) { return a > b || a != a ? a : b; }
};

template <class T, class F> __global__ void norm_parts(double* parts, Table table, double ord) {
    Chunk at = own_chunk<1>(table);
    double sum = 0;
    each(own_block(), at.end - at.begin, [&](long long, Acc<T> v) { sum = F::merge(sum, F::of(v, ord)); },
         (const T*)own_array<T>(table, 0, at.i) + at.begin);
    sum = reduce_row(sum, [](double a, double b) { return F::merge(a, b); }, 0.0);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <class N, class F> __global__ void norm_total(N* out, const double* parts, double root, long long n) {
    double sum = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) sum = F::merge(sum, parts[i]);
    sum = reduce_row(sum, [](double a, double b) { return F::merge(a, b); }, 0.0);
    if (threadIdx.x == 0) *out = N(root == 1 ? sum : root == 0.5 ? sqrt(sum) : pow(sum, root));
}

template <class T, class N> __global__ void scale_into(Table table, const N* by, double limit) {
    Acc<T> factor = limit > 0 ? N(limit) / (*by <= N(limit) ? N(limit) : *by) : *by;
    change<T>(table, [=](Acc<T> v) { return v * factor; });
}

template <class T> __global__ void unscale_into(Table table, int* flag, const float* scale) {
    Acc<T> inverse = 1 / Acc<T>(*scale);
    bool bad = false;
    change<T>(table, [=, &bad](Acc<T> v) {
        v *= inverse;
        bad = bad || !(v - v == 0);
        return v;
    });
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicExch(flag, 1);
}

__global__ void next_scale(float* scale, int* good, Table flags, float growth, float backoff, int interval) {
    bool overflow = false;
    for (int i = 0; i < flags.count; i++) {
        int* flag = own_array<int>(flags, 0, i);
        overflow = overflow || *flag;
        *flag = 0;
    }
    int count = overflow ? 0 : *good + 1;
    float next = *scale * (overflow ? backoff : count == interval ? growth : 1);
    if (next - next == 0) *scale = next;
    *good = count == interval ? 0 : count;
}
