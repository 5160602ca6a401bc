// Reductions of x (outer, reduced, inner) over its middle extent: sum and mean, max and min, argmax and argmin, variance,
// log-sum-exp. Launched by gpugrad/ops/reduce.py and softmax.py; the arithmetic is in reduce.cuh.
//
// F: Sum, Largest, First, Moments, LogSumExp
//
// Two stages, no atomics: slices of `span` elements become states, and reduce_finish merges those of a result; a slice that
// is alone gives its result at once. inner = 1: a team a slice, a warp up to 1024 elements, a block beyond. inner > 1: a
// block a tile of columns in a slice of rows, whose threads side by side in y merge through shared memory.
// A thread keeps a state for each place of a packet, so that no sum runs over more than a few dozen terms before the trees.
// The geometry follows from the sizes alone: the same bits on every GPU and in every run, for arrays that lie alike relative
// to 16 bytes. Moves each element once; the states are a 256th of that.
// Considered: a long row in one block (idle multiprocessors), a second pass for the variance (reads twice), a counter of
// finished blocks instead of the second launch (needs memory that is zero).
#include "reduce.cuh"

template <class T, class F>
__global__ void __launch_bounds__(512, 1) reduce_rows(void* out, const T* x, long long rows, long long cols, long long slices,
                                                       long long span, Acc<T> divisor, Acc<T> sign, int form) {
    Reduction<T, F> r{divisor, sign, form};
    long long number = row_number(), row = number / slices, first = number % slices * span;
    if (row >= rows) return;
    constexpr int N = Packet<T>::N;
    Team team = row_team();
    long long n = span < cols - first ? span : cols - first;
    const T* v = x + row * cols + first;
    Acc<T> origin = F::origin(widen(x[row * cols]));
    long long head = lead(n, v), body = head + (n - head) / N * N;
    typename Reduction<T, F>::State s[N];
#pragma unroll
    for (int k = 0; k < N; k++) s[k] = r.none();
    Acc<T> count = 0;
    for (long long i = head + team.rank * N; i < body; i += team.size * N) {
        Packet<T> p = packet(v + i);
        Acc<T> nth = 1 / (count += 1);
#pragma unroll
        for (int k = 0; k < N; k++) F::add(s[k], (widen(p.v[k]) - origin) * sign, first + i + k, nth);
    }
#pragma unroll
    for (int k = 1; k < N; k++) s[0] = F::merge(s[0], s[k]);
    auto take = [&](long long i) {
        auto alone = r.none();
        F::add(alone, (widen(v[i]) - origin) * sign, first + i, Acc<T>(1));
        s[0] = F::merge(s[0], alone);
    };
    for (long long i = team.rank; i < head; i += team.size) take(i);
    for (long long i = body + team.rank; i < n; i += team.size) take(i);
    s[0] = reduce_row(s[0], r, r.none());
    if (threadIdx.x == 0) r.put(out, number, s[0]);
}

template <class T, class F>
__global__ void __launch_bounds__(256, 1) reduce_columns(void* out, const T* x, long long rows, long long cols, long long slices,
                                                      long long span, Acc<T> divisor, Acc<T> sign, int form) {
    Reduction<T, F> r{divisor, sign, form};
    constexpr int N = Packet<T>::N;
    long long width = blockDim.x * N, tiles = (cols + width - 1) / width, part = blockIdx.x / tiles; // outer, slice
    long long first = part % slices * span, end = min(first + span, rows), left = blockIdx.x % tiles * width;
    bool packets = aligned(x) && cols % N == 0;
    long long from = left + threadIdx.x * (packets ? N : 1), step = packets ? 1 : blockDim.x; // columns from + k step
    const T* v = x + part / slices * rows * cols + from;
    typename Reduction<T, F>::State s[N];
    Acc<T> origins[N], count = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        s[k] = r.none();
        if (from + k * step < cols) origins[k] = F::origin(widen(v[k * step]));
    }
    for (long long i = first + threadIdx.y; i < end; i += blockDim.y) {
        Acc<T> nth = 1 / (count += 1);
        if (packets) {
            if (from >= cols) break;
            Packet<T> p = packet(v + i * cols);
#pragma unroll
            for (int k = 0; k < N; k++) F::add(s[k], (widen(p.v[k]) - origins[k]) * sign, i, nth);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++)
                if (from + k * step < cols) F::add(s[k], (widen(v[i * cols + k * step]) - origins[k]) * sign, i, nth);
        }
    }
    r.merge_over_y(s);
    if (threadIdx.y) return;
#pragma unroll
    for (int k = 0; k < N; k++)
        if (from + k * step < cols) r.put(out, part * cols + from + k * step, s[k]);
}

// states: (outer, slices, cols), of which those of a column are merged by the threads of one x.
template <class T, class F>
__global__ void __launch_bounds__(256, 1) reduce_finish(void* out, const void* states, long long slices, long long cols,
                                                     Acc<T> divisor, Acc<T> sign, int form) {
    Reduction<T, F> r{divisor, sign, form};
    using State = typename Reduction<T, F>::State;
    long long tiles = (cols + blockDim.x - 1) / blockDim.x, outer = blockIdx.x / tiles;
    long long column = blockIdx.x % tiles * blockDim.x + threadIdx.x;
    const State* v = static_cast<const State*>(states) + outer * slices * cols + column;
    State s[1] = {r.none()};
    if (column < cols)
        for (long long i = threadIdx.y; i < slices; i += blockDim.y) s[0] = F::merge(s[0], v[i * cols]);
    r.merge_over_y(s);
    if (threadIdx.y == 0 && column < cols) r.put(out, outer * cols + column, s[0]);
}
