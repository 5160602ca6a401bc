// Softmax y and log-softmax z of N rows of C elements x, the backward passes, and that of log-sum-exp l (whose forward is
// in reduce.cu). Launched by gpugrad/ops/softmax.py.
//
//   m = max_c x_c, s = sum_c exp(x_c - m):    y_c = exp(x_c - m) / s              z_c = x_c - m - log s    l = m + log s
//                                             dx_c = y_c (t_c - sum_k t_k y_k)    dx_c = t_c - exp(z_c) sum_k t_k
//                                             dx_c = t exp(x_c - l), 0 in a row of -inf alone
// A row of y or z that is all -inf or holds +inf is NaN.
// Moves, in elements of T: N C read and written forward; 2 N C read, N C written backward (for l: N C and N C).
// One team a row: a warp if two packets a lane hold it, else a block of up to 1024 threads. Aligned rows stay in registers
// between the passes, up to 4 packets a thread (backward 2 of each array; more would spill). Others take one online pass
// for m and s and are read again, mostly from a cache. Considered: the row in shared memory (fewer rows in flight).
// Along another axis an array (outer, C, inner) holds outer * inner rows: a thread a row, neighbours reading neighbours,
// N C more reads, mostly of a cache. Considered: transposing and back (6 N C), several threads a row (pays for few rows).
#include "softmax.cuh"

template <class T> constexpr int MOST = sizeof(T) < 8 ? 1024 : 512; // threads of a block; doubles need the registers

template <class T>
__global__ void __launch_bounds__(MOST<T>, 1) softmax(T* y, const T* x, long long rows, long long cols, bool log) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    y += row * cols, x += row * cols;
    A top = -GG_INFINITY, sum = 0, log_sum, scale;
    auto share = [&](long long, A v) { return log ? v - top - log_sum : exponential(v - top) * scale; };
    if (aligned(y, x) && Kept<T, 4>::fits(cols)) {
        Kept<T, 4> kept(cols, x);
        kept.each(cols, [&](long long, A v) { top = Larger()(v, top); });
        top = reduce_row(top, Larger(), A(-GG_INFINITY));
        kept.each(cols, [&](long long, A v) { sum += exponential(v - top); }); // inf - inf makes the sum NaN
        sum = reduce_row(sum, Plus(), A(0));
        log_sum = logarithm(sum), scale = 1 / sum;
        kept.fill(y, cols, share);
    } else {
        ExpSum<A> e = ExpSum<A>::none();
        each(row_team(), cols, [&](long long, A v) { e.add(v); }, x);
        e = reduce_row(e);
        top = e.top, sum = e.infinite() ? A(GG_NAN) : e.sum, log_sum = logarithm(sum), scale = 1 / sum;
        fill(row_team(), y, cols, share, x);
    }
}

// y: the result of softmax, or with `log` of log-softmax.
template <class T>
__global__ void __launch_bounds__(MOST<T>, 1) softmax_bwd(T* dx, const T* t, const T* y, long long rows, long long cols, bool log) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    Team team = row_team();
    dx += row * cols, t += row * cols, y += row * cols;
    A sum = 0;
    auto add = [&](long long, A t, A y) { sum += log ? t : t * y; };
    auto slope = [&](long long, A t, A y) { return log ? t - exponential(y) * sum : y * (t - sum); };
    if (aligned(dx, t, y) && Kept<T, 2>::fits(cols)) {
        Kept<T, 2> ts(cols, t), ys(cols, y);
        ts.each(cols, add, ys);
        sum = reduce_row(sum, Plus(), A(0));
        ts.fill(dx, cols, slope, ys);
    } else {
        each(team, cols, add, t, y);
        sum = reduce_row(sum, Plus(), A(0));
        fill(team, dx, cols, slope, t, y);
    }
}

// Teams share a row in `parts` pieces: nothing is summed.
template <class T>
__global__ void __launch_bounds__(MOST<T>, 1) logsumexp_bwd(T* dx, const T* t, const T* out, const T* x, long long rows,
                                                      long long cols, long long parts) {
    using A = Acc<T>;
    long long number = row_number(), row = number / parts, size = (cols + parts - 1) / parts, first = number % parts * size;
    if (row >= rows) return;
    A slope = widen(t[row]), lse = widen(out[row]), base = lse == -GG_INFINITY ? A(0) : lse;
    long long n = size < cols - first ? size : cols - first; // negative past the end
    fill(row_team(), dx + row * cols + first, n, [&](long long, A v) { return slope * exponential(v - base); },
         x + row * cols + first);
}

// --- along an axis that is not the last: rows of C elements, `inner` apart --------------------------------------------

// f(first element, row) for each row of this thread.
template <class F> __device__ __forceinline__ void each_row(long long outer, long long cols, long long inner, F f) {
    Team team = whole_grid();
    for (long long row = team.rank; row < outer * inner; row += team.size) f(row / inner * cols * inner + row % inner, row);
}

template <class T>
__global__ void softmax_strided(T* y, const T* x, long long outer, long long cols, long long inner, bool log) {
    using A = Acc<T>;
    each_row(outer, cols, inner, [&](long long first, long long) {
        ExpSum<A> e = ExpSum<A>::none();
        for (long long c = 0, i = first; c < cols; c++, i += inner) e.add(widen(x[i]));
        A sum = e.infinite() ? A(GG_NAN) : e.sum, log_sum = logarithm(sum), scale = 1 / sum;
        for (long long c = 0, i = first; c < cols; c++, i += inner)
            y[i] = narrow<T>(log ? widen(x[i]) - e.top - log_sum : exponential(widen(x[i]) - e.top) * scale);
    });
}

template <class T>
__global__ void softmax_strided_bwd(T* dx, const T* t, const T* y, long long outer, long long cols, long long inner, bool log) {
    using A = Acc<T>;
    each_row(outer, cols, inner, [&](long long first, long long) {
        A sum = 0;
        for (long long c = 0, i = first; c < cols; c++, i += inner) sum += log ? widen(t[i]) : widen(t[i]) * widen(y[i]);
        for (long long c = 0, i = first; c < cols; c++, i += inner) {
            A u = widen(t[i]), v = widen(y[i]);
            dx[i] = narrow<T>(log ? u - exponential(v) * sum : v * (u - sum));
        }
    });
}

template <class T>
__global__ void logsumexp_strided_bwd(T* dx, const T* t, const T* out, const T* x, long long outer, long long cols, long long inner) {
    using A = Acc<T>;
    each_row(outer, cols, inner, [&](long long first, long long row) {
        A slope = widen(t[row]), lse = widen(out[row]), base = lse == -GG_INFINITY ? A(0) : lse;
        for (long long c = 0, i = first; c < cols; c++, i += inner)
            dx[i] = narrow<T>(slope * exponential(widen(x[i]) - base));
    });
}
