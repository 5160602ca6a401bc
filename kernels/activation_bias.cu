// Bias and activation in one pass, y = f(x + b), and its backward pass with the bias gradient. Launched by
// gpugrad/ops/activation.py.
//
//   dx = t f'      db_c = sum over rows of dx_rc
//
// Shapes: x, y, t, v, dx (rows, cols); b, db (cols). v is y, and b null, where f' is computed from y (see functors.cuh); else
// v is x. Moves two elements an element forward (read x, write y), three backward (read t and v, write dx).
// A block takes 32 packets of columns of `span` rows, so that a thread keeps its columns' b, and their sums, in registers.
// Sums go over the block in a tree, and from there, where several slices of rows share a column, through memory (at most a
// 32nd of dx) to sum_slices: no atomics, and an order that follows from the sizes alone. Columns that do not lie on 16 bytes
// are read one by one, by neighbouring threads. Considered: a team of threads a row forward (reads b again for every row, and
// a few long rows leave the device idle), the column sums in a pass of their own (reads dx again).
// F: Relu, Gelu, GeluTanh, Silu, Sigmoid, Tanh
#include "functors.cuh"
#include "reduce.cuh"

// The columns of a thread: N of them, first, first + step, ...
template <class T> struct Columns {
    static constexpr int N = Packet<T>::N;
    long long cols, first, step;
    bool packets;

    template <class... P>
    __device__ __forceinline__ Columns(long long cols, P... p) : cols(cols), packets(aligned(p...) && cols % N == 0) {
        first = (long long)blockIdx.x * blockDim.x * N + threadIdx.x * (packets ? N : 1), step = packets ? 1 : blockDim.x;
    }
    __device__ __forceinline__ bool has(int k) const { return first + k * step < cols; }

    // out = f(k, in...) in the k-th column, of this thread's rows among `span` of the block's slice.
    template <class F, class... In>
    __device__ __forceinline__ void fill(T* out, long long rows, long long span, F f, const In*... in) const {
        long long begin = blockIdx.y * span, end = span < rows - begin ? begin + span : rows;
        for (long long row = begin + threadIdx.y; row < end; row += blockDim.y) {
            long long i = row * cols + first;
            if (packets && has(0)) store(out + i, apply<T>(f, 0, packet(in + i)...));
            if (packets) continue;
#pragma unroll
            for (int k = 0; k < N; k++)
                if (has(k)) out[i + k * step] = narrow<T>(f(k, widen(in[i + k * step])...));
        }
    }
    // The k-th columns of b, or zeros if it is null.
    __device__ __forceinline__ void load(Acc<T> (&bias)[N], const T* b) const {
#pragma unroll
        for (int k = 0; k < N; k++) bias[k] = b && has(k) ? widen(b[first + k * step]) : Acc<T>(0);
    }
};

template <class T, class F>
__global__ void __launch_bounds__(256, 1) bias_act(T* y, const T* x, const T* b, long long rows, long long cols, long long span) {
    using A = Acc<T>;
    Columns<T> columns(cols, y, x);
    A bias[Columns<T>::N];
    columns.load(bias, b);
    columns.fill(y, rows, span, [&](int k, A x) { return F::value(x + bias[k], Options<A>{}); }, x);
}

// sums: db as T if form is STORED, else one row of Acc<T> a slice.
template <class T, class F>
__global__ void __launch_bounds__(256, 1) bias_act_bwd(T* dx, void* sums, const T* t, const T* v, const T* b, long long rows,
                                                      long long cols, long long span, int form) {
    using A = Acc<T>;
    Columns<T> columns(cols, dx, t, v);
    A bias[Columns<T>::N], sum[Columns<T>::N] = {};
    columns.load(bias, b);
    auto step = [&](int k, A t, A v) {
        A d = F::back(t, v + bias[k], Options<A>{});
        sum[k] += d;
        return d;
    };
    columns.fill(dx, rows, span, step, t, v);
    Reduction<T, Sum> total{A(1), A(1), form};
    total.merge_over_y(sum);
    if (threadIdx.y) return;
#pragma unroll
    for (int k = 0; k < Columns<T>::N; k++)
        if (columns.has(k)) total.put(sums, blockIdx.y * cols + columns.first + k * columns.step, sum[k]);
}

// db from the rows of the slices: a thread of each y adds every blockDim.y-th.
template <class T>
__global__ void __launch_bounds__(256, 1) sum_slices(T* db, const Acc<T>* sums, long long slices, long long cols) {
    long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    Acc<T> sum[1] = {Acc<T>(0)};
    if (column < cols)
        for (long long i = threadIdx.y; i < slices; i += blockDim.y) sum[0] += sums[i * cols + column];
    Reduction<T, Sum> total{Acc<T>(1), Acc<T>(1), STORED};
    total.merge_over_y(sum);
    if (threadIdx.y == 0 && column < cols) total.put(db, column, sum[0]);
}
