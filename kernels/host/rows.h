// Kernels of rows and of lists of arrays on the CPU, for gpugrad/jit.py: what ops/loss.py, softmax.py, normalize.py, reduce.py,
// activation.py and optim.py say in NumPy. All arrays are contiguous. Sums are taken over tiles in the arrays' type, and over
// tiles in double; pieces of work follow from the sizes alone, so the bits are the same for any number of threads.
#pragma once
#include "loops.h"

#if defined(__clang__) || __GNUC__ >= 12
#define GG_PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define GG_PICK(x, y, ...) __builtin_shuffle(x, y, typename Integers<sizeof(x[0])>::Four{__VA_ARGS__})
template <int SIZE> struct Integers { typedef int Four __attribute__((vector_size(16))); };
template <> struct Integers<8> { typedef long long Four __attribute__((vector_size(32))); };
#endif

// f(begin, end) for pieces of `rows` rows of `cols` elements.
template <class F> static inline void each_rows(long long rows, long long cols, F f, long long chunk = CHUNK) {
    long long step = cols < chunk ? chunk / (cols ? cols : 1) : 1;
    parallel((rows + step - 1) / step, step * cols, [=](long long i) { f(i * step, (i + 1) * step < rows ? (i + 1) * step : rows); });
}

// The sum of f(i) over i < n.
template <class A, class F> static __forceinline__ double sum_of(long long n, F f) {
    double total = 0;
    for (long long first = 0; first < n; first += TILE) {
        long long stop = first + TILE < n ? first + TILE : n;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long long i = first; i < stop; i++) sum += f(i);
        total += sum;
    }
    return total;
}

// The largest element; what is not finite counts as 0, so that it can be subtracted.
template <class A> static __forceinline__ A largest(const A* x, long long n) {
    A top = -A(GG_INFINITY);
#pragma omp simd reduction(max : top)
    for (long long i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}
template <class A> static __forceinline__ A anchored(A top) { return top - top == 0 ? top : A(0); }

template <class A, class F> static __forceinline__ void fill_row(A* out, long long n, F f) {
#pragma omp simd
    for (long long i = 0; i < n; i++) out[i] = f(i);
}

// to[c, r] = from[r, c], by squares of four.
template <class A> static void turn(A* to, long long to_step, const A* from, long long from_step, int rows, int cols) {
    typedef A Four __attribute__((vector_size(4 * sizeof(A))));
    for (int row = 0; row < rows; row += 4)
        for (int col = 0; col < cols; col += 4) {
            if (rows < 4 || cols < 4) {
                for (int r = row; r < rows && r < row + 4; r++)
                    for (int c = col; c < cols && c < col + 4; c++) to[c * to_step + r] = from[r * from_step + c];
                continue;
            }
            const int r = row < rows - 4 ? row : rows - 4, c = col < cols - 4 ? col : cols - 4; // the last ones overlap
            Four x[4];
            for (int k = 0; k < 4; k++) __builtin_memcpy(&x[k], from + (r + k) * from_step + c, sizeof(Four));
            const Four y[] = {GG_PICK(x[0], x[1], 0, 4, 1, 5), GG_PICK(x[2], x[3], 0, 4, 1, 5),
                              GG_PICK(x[0], x[1], 2, 6, 3, 7), GG_PICK(x[2], x[3], 2, 6, 3, 7)};
            const Four z[] = {GG_PICK(y[0], y[1], 0, 1, 4, 5), GG_PICK(y[0], y[1], 2, 3, 6, 7),
                              GG_PICK(y[2], y[3], 0, 1, 4, 5), GG_PICK(y[2], y[3], 2, 3, 6, 7)};
            for (int k = 0; k < 4; k++) __builtin_memcpy(to + (c + k) * to_step + r, &z[k], sizeof(Four));
        }
}

// --- softmax cross-entropy --------------------------------------------------------------------------------------------
//
// loss = lse - x_label, lse = log sum exp x; grad = t (exp(x - lse) - [the label]). loss and lse are null in a backward
// pass of its own, which is given them; grad is null in a forward one. `step` is the stride of t. Rows with the label
// `ignored` have loss and gradient 0. Returns the lowest row whose label is no class, or -1. Both passes in one read the
// logits from memory once. grad may be the logits' memory.

struct Xent { void *loss; double* lse; void* grad; const void* logits; const long long* labels; const void* t; long long step, rows, cols, ignored, forward; };

// Of up to 64 classes: rows side by side, so that loops run over them.
template <class A> static void xent_narrow(const Xent& a, long long begin, long long end) {
    constexpr int R = 64;
    const int cols = a.cols;
    alignas(64) A z[64][R] = {}, top[R] = {}, sum[R], factor[R] = {}, t[R] = {};
    alignas(64) double lse[R];
    bool counts[R];
    for (long long first = begin; first < end; first += R) {
        const int m = end - first < R ? end - first : R;
        const A* from = static_cast<const A*>(a.logits) + first * cols;
        const long long* labels = a.labels + first;
        turn(z[0], R, from, cols, m, cols);
        for (int r = 0; r < R; r++) sum[r] = 0;
        if (a.forward) __builtin_memcpy(top, z[0], sizeof top);
        else for (int r = 0; r < m; r++) top[r] = A(a.lse[first + r]);
        for (int c = 1; c < cols && a.forward; c++) {
#pragma omp simd
            for (int r = 0; r < R; r++) top[r] = z[c][r] > top[r] ? z[c][r] : top[r];
        }
        if (a.forward) fill_row(top, R, [&](long long r) { return anchored(top[r]); });
        for (int c = 0; c < cols; c++) {
#pragma omp simd
            for (int r = 0; r < R; r++) {
                z[c][r] = exponential(z[c][r] - top[r]);
                sum[r] += z[c][r];
            }
        }
        for (int r = 0; r < m; r++) counts[r] = labels[r] >= 0 && labels[r] < cols && labels[r] != a.ignored;
        if (a.forward) {
            fill_row(lse, R, [&](long long r) { return logarithm(double(sum[r])); });
            for (int r = 0; r < m; r++) {
                const double own = counts[r] ? from[r * cols + labels[r]] : 0;
                static_cast<A*>(a.loss)[first + r] = counts[r] ? A(lse[r] + (double(top[r]) - own)) : A(0);
                a.lse[first + r] = lse[r] + top[r];
            }
        }
        if (!a.grad) continue;
        const A* ts = static_cast<const A*>(a.t) + first * a.step;
        for (int r = 0; r < m; r++) t[r] = ts[r * a.step];
        if (a.forward) fill_row(factor, R, [&](long long r) { return t[r] / sum[r]; });
        else for (int r = 0; r < m; r++) factor[r] = t[r] * A(exponential(double(top[r]) - a.lse[first + r]));
        for (int c = 0; c < cols; c++) fill_row(z[c], R, [&](long long r) { return z[c][r] * factor[r]; });
        for (int r = 0; r < m; r++) {
            if (counts[r]) z[labels[r]][r] -= t[r];
            else for (int c = 0; c < cols; c++) z[c][r] = 0;
        }
        turn(static_cast<A*>(a.grad) + first * cols, cols, z[0], R, cols, m);
    }
}

template <class A> static void xent_row(const Xent& a, long long row) {
    const long long n = a.cols, label = a.labels[row];
    const A* x = static_cast<const A*>(a.logits) + row * n;
    A* grad = a.grad ? static_cast<A*>(a.grad) + row * n : nullptr;
    const bool counts = label >= 0 && label < n && label != a.ignored;
    const A t = a.grad ? static_cast<const A*>(a.t)[row * a.step] : A(0);
    A shift, factor;
    if (a.forward) {
        const A top = largest(x, n);
        shift = anchored(top);
        const double own = counts ? double(x[label]) : 0;
        double sum = 0;
        if (shift != top) // all -inf, or inf among them
            for (long long i = 0; i < n; i++) {
                A e = exponential(x[i] - shift);
                if (grad) grad[i] = e;
                sum += e;
            }
        else if (grad) sum = sum_of<A>(n, [=](long long i) { return grad[i] = exp_below(x[i] - shift); });
        else sum = sum_of<A>(n, [=](long long i) { return exp_below(x[i] - shift); });
        double log = logarithm(sum);
        static_cast<A*>(a.loss)[row] = counts ? A(log + (double(shift) - own)) : A(0);
        a.lse[row] = log + shift;
        factor = A(t / sum);
        if (grad && counts) fill_row(grad, n, [=](long long i) { return grad[i] * factor; });
    } else {
        shift = A(a.lse[row]);
        factor = t * A(exponential(double(shift) - a.lse[row]));
        if (counts) fill_row(grad, n, [=](long long i) { return exp_below(x[i] - shift) * factor; });
    }
    if (!grad) return;
    if (counts) grad[label] -= t;
    else fill_row(grad, n, [](long long) { return A(0); });
}

template <class A> static long long xent(const Xent& a) {
    for (long long row = 0; row < a.rows; row++)
        if ((a.labels[row] < 0 || a.labels[row] >= a.cols) && a.labels[row] != a.ignored) return row;
    if (a.cols <= 64) each_rows(a.rows, a.cols, [&](long long begin, long long end) { xent_narrow<A>(a, begin, end); }, 4 * CHUNK);
    else each_rows(a.rows, a.cols, [&](long long begin, long long end) {
        for (long long row = begin; row < end; row++) xent_row<A>(a, row);
    });
    return -1;
}

// --- softmax ----------------------------------------------------------------------------------------------------------

struct Rows { void* out; const void *x, *y; long long rows, cols; };

template <class A, class F> static long long rows_of(const Rows& a, F f) {
    const long long n = a.cols;
    each_rows(a.rows, n, [&](long long begin, long long end) {
        for (long long row = begin; row < end; row++)
            f(static_cast<A*>(a.out) + row * n, static_cast<const A*>(a.x) + row * n, static_cast<const A*>(a.y) + (a.y ? row * n : 0), n);
    });
    return -1;
}

template <class A> static long long softmax(const Rows& a) {
    return rows_of<A>(a, [](A* out, const A* x, const A*, long long n) {
        A top = largest(x, n);
        A sum = A(sum_of<A>(n, [=](long long i) { return out[i] = exp_below(x[i] - top); }));
        fill_row(out, n, [=](long long i) { return out[i] / sum; });
    });
}
template <class A> static long long log_softmax(const Rows& a) {
    return rows_of<A>(a, [](A* out, const A* x, const A*, long long n) {
        A top = largest(x, n);
        A log = A(logarithm(sum_of<A>(n, [=](long long i) { return exp_below(x[i] - top); })));
        fill_row(out, n, [=](long long i) { return x[i] - top - log; });
    });
}
// x is the cotangent t, y the output: y (t - sum t y), and t - exp(y) sum t.
template <class A> static long long softmax_bwd(const Rows& a) {
    return rows_of<A>(a, [](A* out, const A* t, const A* y, long long n) {
        A sum = A(sum_of<A>(n, [=](long long i) { return t[i] * y[i]; }));
        fill_row(out, n, [=](long long i) { return t[i] * y[i] - y[i] * sum; });
    });
}
template <class A> static long long log_softmax_bwd(const Rows& a) {
    return rows_of<A>(a, [](A* out, const A* t, const A* y, long long n) {
        A sum = A(sum_of<A>(n, [=](long long i) { return t[i]; }));
        fill_row(out, n, [=](long long i) { return t[i] - exponential(y[i]) * sum; });
    });
}

// --- sums over rows -----------------------------------------------------------------------------------------------------

// f(row, sums) adds a row's share to `width` sums; out gets their totals.
template <class A, class F> static void column_totals(A* const* outs, int count, long long rows, long long cols, F f) {
    constexpr long long GROUP = 64; // rows that are added up in the arrays' type
    const long long width = count * cols, least = CHUNK / (cols ? cols : 1) / GROUP + 1, most = (rows + 32 * GROUP - 1) / (32 * GROUP);
    const long long step = (least > most ? least : most) * GROUP, pieces = (rows + step - 1) / step;
    double* totals = static_cast<double*>(__builtin_calloc(pieces * width + 1, sizeof(double)));
    parallel(pieces, step * cols, [&](long long piece) {
        A* sums = static_cast<A*>(__builtin_malloc(width * sizeof(A) + 1));
        double* total = totals + piece * width;
        const long long end = (piece + 1) * step < rows ? (piece + 1) * step : rows;
        for (long long first = piece * step; first < end; first += GROUP) {
            for (long long j = 0; j < width; j++) sums[j] = 0;
            for (long long row = first; row < first + GROUP && row < end; row++) f(row, sums);
            for (long long j = 0; j < width; j++) total[j] += sums[j];
        }
        __builtin_free(sums);
    });
    for (long long piece = 1; piece < pieces; piece++)
        for (long long j = 0; j < width; j++) totals[j] += totals[piece * width + j];
    for (int k = 0; k < count; k++)
        for (long long j = 0; j < cols; j++) outs[k][j] = A(totals[k * cols + j]);
    __builtin_free(totals);
}

template <class A> static long long column_sums(const Rows& a) {
    A* outs[] = {static_cast<A*>(a.out)};
    column_totals<A>(outs, 1, a.rows, a.cols, [&](long long row, A* sums) {
        const A* x = static_cast<const A*>(a.x) + row * a.cols;
        fill_row(sums, a.cols, [=](long long i) { return sums[i] + x[i]; });
    });
    return -1;
}

// --- bias and activation ------------------------------------------------------------------------------------------------

// out = F(x + b); backwards, x is the cotangent, y what F's derivative is formed from, and sums the gradient of b.
struct BiasAct { void* out; void* sums; const void *x, *y, *b; long long rows, cols; };

template <class A, class F> static long long bias_act(const BiasAct& a) {
    const long long n = a.cols;
    each_rows(a.rows, n, [&](long long begin, long long end) {
        const A* b = static_cast<const A*>(a.b);
        for (long long row = begin; row < end; row++) {
            const A* x = static_cast<const A*>(a.x) + row * n;
            fill_row(static_cast<A*>(a.out) + row * n, n, [=](long long i) { return F::value(x[i] + b[i], Options<A>{}); });
        }
    });
    return -1;
}

template <class A, class F> static long long bias_act_bwd(const BiasAct& a) {
    A* outs[] = {static_cast<A*>(a.sums)};
    const A* b = static_cast<const A*>(a.b);
    column_totals<A>(outs, 1, a.rows, a.cols, [&](long long row, A* sums) {
        const A *t = static_cast<const A*>(a.x) + row * a.cols, *v = static_cast<const A*>(a.y) + row * a.cols;
        A* out = static_cast<A*>(a.out) + row * a.cols;
        auto back = [=](A v, long long i) {
            A d = F::back(t[i], v, Options<A>{});
            sums[i] += d;
            return d;
        };
        if (b) fill_row(out, a.cols, [=](long long i) { return back(v[i] + b[i], i); });
        else fill_row(out, a.cols, [=](long long i) { return back(v[i], i); });
    });
    return -1;
}

// --- layer norm -----------------------------------------------------------------------------------------------------------

// y = (x - mean) rstd w + b over the columns, w and b null where there are none; not centred: mean 0, for RMS norm.
// Backwards, out is the gradient of x, to which `more` is added, dw and db those of w and b.
struct LayerNorm { void *out, *mean, *rstd, *dw, *db; const void *x, *w, *b, *t, *more; long long rows, cols, centred; double eps; };

template <class A> static long long layer_norm(const LayerNorm& a) {
    const long long n = a.cols;
    each_rows(a.rows, n, [&](long long begin, long long end) {
        const A *w = static_cast<const A*>(a.w), *b = static_cast<const A*>(a.b);
        for (long long row = begin; row < end; row++) {
            const A* x = static_cast<const A*>(a.x) + row * n;
            A* out = static_cast<A*>(a.out) + row * n;
            A mean = a.centred ? A(sum_of<A>(n, [=](long long i) { return x[i]; }) / n) : A(0);
            double var = sum_of<A>(n, [=](long long i) { return (x[i] - mean) * (x[i] - mean); }) / n;
            A rstd = A(1 / square_root(var + a.eps));
            if (a.centred) static_cast<A*>(a.mean)[row] = mean;
            static_cast<A*>(a.rstd)[row] = rstd;
            if (w && b) fill_row(out, n, [=](long long i) { return (x[i] - mean) * rstd * w[i] + b[i]; });
            else if (w) fill_row(out, n, [=](long long i) { return (x[i] - mean) * rstd * w[i]; });
            else fill_row(out, n, [=](long long i) { return (x[i] - mean) * rstd; });
        }
    });
    return -1;
}

template <class A, bool WEIGHT> static long long layer_norm_bwd_of(const LayerNorm& a) {
    const long long n = a.cols;
    const A* w = static_cast<const A*>(a.w);
    auto one = [&](long long row, A* sums) {
        const A *x = static_cast<const A*>(a.x) + row * n, *t = static_cast<const A*>(a.t) + row * n;
        const A* more = a.more ? static_cast<const A*>(a.more) + row * n : nullptr;
        A* out = static_cast<A*>(a.out) + row * n;
        const A mean = a.centred ? static_cast<const A*>(a.mean)[row] : A(0), rstd = static_cast<const A*>(a.rstd)[row];
        auto u = [=](long long i) { return WEIGHT ? t[i] * w[i] : t[i]; };
        A along = A(sum_of<A>(n, [=](long long i) { return u(i) * ((x[i] - mean) * rstd); }) / n);
        A level = a.centred ? A(sum_of<A>(n, u) / n) : A(0);
        if (WEIGHT) {
            fill_row(sums, n, [=](long long i) { return sums[i] + t[i] * ((x[i] - mean) * rstd); });
            fill_row(sums + n, n, [=](long long i) { return sums[n + i] + t[i]; });
        }
        auto dx = [=](long long i) { return (u(i) - ((x[i] - mean) * rstd * along + level)) * rstd; };
        if (more) fill_row(out, n, [=](long long i) { return dx(i) + more[i]; });
        else fill_row(out, n, dx);
    };
    A* outs[] = {static_cast<A*>(a.dw), static_cast<A*>(a.db)};
    if (WEIGHT) column_totals<A>(outs, 2, a.rows, n, one);
    else each_rows(a.rows, n, [&](long long begin, long long end) { for (long long row = begin; row < end; row++) one(row, nullptr); });
    return -1;
}
template <class A> static long long layer_norm_bwd(const LayerNorm& a) {
    return a.w ? layer_norm_bwd_of<A, true>(a) : layer_norm_bwd_of<A, false>(a);
}

// --- optimiser steps --------------------------------------------------------------------------------------------------------

// One step of `count` tensors by functor F, as update in optim.cu: addresses[r * count + i] is array r of tensor i, of
// sizes[i] elements, whose counts are number numbers[i] of step and product.
struct Update { void* const* addresses; const long long *sizes, *numbers; double *step, *product; const double *lr; const int* skip; long long count; double settings[6]; };

template <class A, class F> static __forceinline__ void step_run(A* p, const A* g, A* const* s, long long n, const A* given) {
    A c[8];
    for (int k = 0; k < 8; k++) c[k] = given[k];
    A *s0 = F::states > 0 ? s[0] : nullptr, *s1 = F::states > 1 ? s[1] : nullptr, *s2 = F::states > 2 ? s[2] : nullptr;
#pragma GCC ivdep // not omp simd, which would keep m in memory
    for (long long i = 0; i < n; i++) {
        A w = F::param ? p[i] : A(0), d = F::grad ? g[i] : A(0), m[3];
        if (F::states > 0) m[0] = s0[i];
        if (F::states > 1) m[1] = s1[i];
        if (F::states > 2) m[2] = s2[i];
        F::step(w, d, m, c);
        if (F::param) p[i] = w;
        if (F::states > 0) s0[i] = m[0];
        if (F::states > 1) s1[i] = m[1];
        if (F::states > 2) s2[i] = m[2];
    }
}

template <class A, class F> static long long update(const Update& a) {
    constexpr int S = F::states, K = F::param + F::grad + S;
    if (a.skip && *a.skip) return -1;
    A(*c)[8] = static_cast<A(*)[8]>(__builtin_malloc(sizeof(A[8]) * (a.count + 1)));
    long long* first = static_cast<long long*>(__builtin_malloc(sizeof(long long) * (a.count + 1)));
    first[0] = 0;
    for (long long i = 0; i < a.count; i++) {
        long long k = a.numbers[i];
        for (int j = 0; j < 8; j++) c[i][j] = 0;
        F::prepare(c[i], a.settings, Clock{a.lr ? *a.lr : 0, a.step ? a.step[k] + 1 : 0, a.product ? a.product[k] : 0});
        first[i + 1] = first[i] + (a.sizes[i] + CHUNK - 1) / CHUNK;
    }
    parallel(first[a.count], CHUNK, [&](long long piece) {
        long long low = 0, high = a.count;
        while (high - low > 1) (first[(low + high) / 2] <= piece ? low : high) = (low + high) / 2;
        const long long begin = (piece - first[low]) * CHUNK, n = a.sizes[low] - begin < CHUNK ? a.sizes[low] - begin : CHUNK;
        A* own[K + 1];
        for (int r = 0; r < K; r++) own[r] = static_cast<A*>(a.addresses[r * a.count + low]) + begin;
        step_run<A, F>(own[0], own[F::param], own + F::param + F::grad, n, c[low]);
    });
    for (long long i = 0; a.step && i < a.count; i++) {
        long long k = a.numbers[i];
        a.step[k] += 1;
        if (a.product) a.product[k] *= F::momentum(a.settings, a.step[k]);
    }
    __builtin_free(c), __builtin_free(first);
    return -1;
}
