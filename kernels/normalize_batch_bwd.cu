// The backward pass of batch and group normalisation; cells, sets and their numbers as in normalize_batch.cu. Launched by
// gpugrad/ops/normalize.py.
//
//   dx = r_s (w_c t - mean_s(w t) - h mean_s(w t h))    dw_c = sum t h    db_c = sum t    h = (x - m_s) r_s
//
// x, t, dx: (outer, channels, inner). One team a cell finds the sums of t and t h; one team a channel merges them to dw and db,
// one team a set, weighted by w, to the two means (the same sums, were it not for w and groups); one team a cell writes dx.
// No atomics: one order of summing. Moves, in elements of T, 5 an element, and a few Acc<T> a cell. w may be null.
// Considered: sums of t x in place of t h, which need no m and r at first (cancel where the mean is far from 0).
#include "normalize.cuh"

// out: sums of t and of t h.
template <class T>
__global__ void __launch_bounds__(1024, 1)
cell_sums(void* out, const T* t, const T* x, const Acc<T>* mean, const Acc<T>* rstd, long long cells, long long inner,
          long long per, long long sets) {
    using A = Acc<T>;
    long long cell = row_number(), set = cell / per % sets;
    if (cell >= cells) return;
    A m = mean ? mean[set] : A(0), r = rstd[set];
    Pair<A> s = {A(0), A(0)};
    auto add = [&](long long, A a, A v) { s.first += a, s.second += a * ((v - m) * r); };
    each(row_team(), inner, add, t + cell * inner, x + cell * inner);
    s = reduce_row(s, PlusBoth(), Pair<A>{A(0), A(0)});
    if (threadIdx.x == 0) static_cast<Pair<A>*>(out)[cell] = s;
}

// Sums over a set's cells, to dw and db, or if they are null weighted by w and divided by `size` to means.
template <class T>
__global__ void __launch_bounds__(1024, 1)
merge_sums(void* means, T* dw, T* db, const void* parts, const T* weight, long long sets, long long count, long long first,
           long long step, long long channels, Acc<T> size) {
    using A = Acc<T>;
    long long set = row_number();
    if (set >= sets) return;
    Pair<A> s = {A(0), A(0)};
    for (long long i = threadIdx.x; i < count; i += blockDim.x) {
        long long cell = set * first + i * step;
        A w = weight && !dw ? widen(weight[cell % channels]) : A(1);
        Pair<A> part = static_cast<const Pair<A>*>(parts)[cell];
        s.first += w * part.first, s.second += w * part.second;
    }
    s = reduce_row(s, PlusBoth(), Pair<A>{A(0), A(0)});
    if (threadIdx.x) return;
    if (dw) dw[set] = narrow<T>(s.second), db[set] = narrow<T>(s.first);
    else static_cast<Pair<A>*>(means)[set] = {s.first / size, s.second / size};
}

template <class T>
__global__ void __launch_bounds__(1024, 1)
normalize_cells_bwd(T* dx, const T* t, const T* x, const T* weight, const Acc<T>* mean, const Acc<T>* rstd, const void* means,
                    long long cells, long long inner, long long channels, long long per, long long sets) {
    using A = Acc<T>;
    long long cell = row_number(), c = cell % channels, set = cell / per % sets;
    if (cell >= cells) return;
    A m = mean ? mean[set] : A(0), r = rstd[set], w = weight ? widen(weight[c]) : A(1);
    Pair<A> of_set = static_cast<const Pair<A>*>(means)[set];
    A level = mean ? of_set.first : A(0), slope = of_set.second;
    auto back = [&](long long, A a, A v) { return r * (w * a - level - (v - m) * r * slope); };
    fill(row_team(), dx + cell * inner, inner, back, t + cell * inner, x + cell * inner);
}
