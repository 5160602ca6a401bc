// Batch and group normalisation y of x (outer, channels, inner). Launched by gpugrad/ops/normalize.py.
//
//   h = (x - m_s) r_s,    y = w_c h + b_c
//
// m_s, r_s: mean and 1 / sqrt(variance + eps) of a set s of cells; a cell is the run of `inner` elements of one channel in one
// sample. Batch normalisation: the cells of a channel (per = 1; set and channel are the same number). Group normalisation:
// `per` neighbouring channels of a sample. The set of a cell is cell / per % sets; its cells are `count` numbers from
// set * first on, `step` apart. w and b may be null.
// One team a cell finds its moments, one team a set merges those of its cells, one team a cell writes y. No atomics: one order
// of summing. Moves, in elements of T, 3 an element, 2 by running statistics, and a few Acc<T> a cell. inner = 1 comes
// transposed, so that a channel is one cell. Considered: a block a channel for all of it (few channels leave multiprocessors
// idle), the variance as mean of squares minus square of mean (cancels).
#include "normalize.cuh"

struct MergeMoments {
    template <class A> __device__ __forceinline__ Spread<A> operator()(Spread<A> a, Spread<A> b) const {
        return Moments::merge(a, b);
    }
};

// Of x - origin, the first element of the set, so that a mean far from 0 costs no digits.
template <class T>
__global__ void __launch_bounds__(1024, 1) cell_moments(void* out, const T* x, long long cells, long long inner, long long per,
                                                       long long sets, long long first) {
    using A = Acc<T>;
    constexpr int N = Packet<T>::N;
    long long cell = row_number();
    if (cell >= cells) return;
    A origin = widen(x[cell / per % sets * first * inner]);
    Team team = row_team();
    const T* v = x + cell * inner;
    long long head = lead(inner, v), body = head + (inner - head) / N * N;
    Spread<A> s = Moments::none<A>();
    auto take = [&](long long i) { s = Moments::merge(s, Spread<A>{A(1), widen(v[i]) - origin, A(0)}); };
    for (long long i = team.rank; i < head; i += team.size) take(i);
    for (long long i = head + team.rank * N; i < body; i += team.size * N) {
        Packet<T> p = packet(v + i);
        A mean = 0, squares = 0;
#pragma unroll
        for (int k = 0; k < N; k++) mean += widen(p.v[k]) - origin;
        mean /= N;
#pragma unroll
        for (int k = 0; k < N; k++) squares += (widen(p.v[k]) - origin - mean) * (widen(p.v[k]) - origin - mean);
        s = Moments::merge(s, Spread<A>{A(N), mean, squares});
    }
    for (long long i = body + team.rank; i < inner; i += team.size) take(i);
    s = reduce_row(s, MergeMoments(), Moments::none<A>());
    if (threadIdx.x == 0) static_cast<Spread<A>*>(out)[cell] = s;
}

// mean_out, var_out: the statistics as T too, or null.
template <class T>
__global__ void __launch_bounds__(1024, 1)
merge_moments(Acc<T>* mean, Acc<T>* rstd, T* mean_out, T* var_out, const void* parts, const T* x, long long inner, long long sets,
              long long count, long long first, long long step, Acc<T> eps) {
    using A = Acc<T>;
    long long set = row_number();
    if (set >= sets) return;
    Spread<A> s = Moments::none<A>();
    for (long long i = threadIdx.x; i < count; i += blockDim.x)
        s = Moments::merge(s, static_cast<const Spread<A>*>(parts)[set * first + i * step]);
    s = reduce_row(s, MergeMoments(), Moments::none<A>());
    if (threadIdx.x) return;
    A variance = s.squares / s.n, m = s.mean + widen(x[set * first * inner]);
    mean[set] = m, rstd[set] = 1 / square_root(variance + eps);
    if (mean_out) mean_out[set] = narrow<T>(m), var_out[set] = narrow<T>(variance);
}

// mean, rstd: as merged, or null for running statistics of type T.
template <class T>
__global__ void __launch_bounds__(1024, 1)
normalize_cells(T* y, const T* x, const T* weight, const T* bias, const Acc<T>* mean, const Acc<T>* rstd, const T* running_mean,
                const T* running_var, long long cells, long long inner, long long channels, long long per, long long sets,
                Acc<T> eps) {
    using A = Acc<T>;
    long long cell = row_number(), c = cell % channels, set = cell / per % sets;
    if (cell >= cells) return;
    A m = mean ? mean[set] : widen(running_mean[c]);
    A r = mean ? rstd[set] : 1 / square_root(widen(running_var[c]) + eps);
    A slope = r * (weight ? widen(weight[c]) : A(1)), shift = bias ? widen(bias[c]) : A(0);
    fill(row_team(), y + cell * inner, inner, [&](long long, A v) { return (v - m) * slope + shift; }, x + cell * inner);
}
