// Softmax cross-entropy of N rows of C logits x, fused. Launched by gpugrad/ops/loss.py.
//
//   lse = log sum_c exp(x_c)        q_c = w_c ((1 - s) y_c + s / C)        Q = sum_c q_c
//   loss = sum_c q_c (lse - x_c)    dx_c = t (Q exp(x_c - lse) - q_c)
//
// y: soft labels (N, C) of type T, or class numbers (N,), which mean 1 at the class. w: weights (C,) or null for 1.
// s: label smoothing. A row whose class is ignore_index has loss 0 and dx 0; any other class outside 0 <= y < C gives NaN
// and a letter in the mailbox. A class with q_c = 0 costs nothing, whatever its logit. lse is kept in double, so that
// exp(x - lse) loses no digit. dx may be written over x: a thread reads just what it then overwrites.
// Moves, in elements of T: forward N C read (2 N C with soft labels), backward N C read and N C written (with soft labels
// 3 N C read: Q is summed first). One team a row: a warp up to 1024 columns, a block beyond, of up to 512 threads. One pass
// finds the maximum, the sum and the cost; each thread moves its sums when it meets a larger logit. Considered: a second
// pass for the cost (reads rows again that are too long for the caches); the row on chip (too long for it as well).
#include "softmax.cuh"

// The targets q of one row, from a class number of type L. y is never asked for: each and fill give 0.
template <class T, class L> struct Target {
    using A = Acc<T>;
    const T* weights;
    long long y, cols, ignore;
    A keep, even;
    __device__ Target(const L* labels, const T* weights, long long row, long long cols, long long ignore, A smoothing)
        : weights(weights), y(labels[row]), cols(cols), ignore(ignore), keep(1 - smoothing), even(smoothing / cols) {}
    __device__ bool ignored() const { return y == ignore; }
    __device__ bool valid() const { return y >= 0 && y < cols; }
    __device__ bool dense() const { return even != 0; } // else q is 0 at every class but y
    __device__ A operator()(long long c, A = 0) const { return (weights ? widen(weights[c]) : A(1)) * ((c == y ? keep : A(0)) + even); }
    template <class F> __device__ void each(const T* x, F f) const {
        ::each(row_team(), cols, [&](long long c, A v) { f(c, v, A(0)); }, x);
    }
    template <class F> __device__ void fill(T* out, const T* x, F f) const {
        ::fill(row_team(), out, cols, [&](long long c, A v) { return f(c, v, A(0)); }, x);
    }
    __device__ A total() const {
        A own = valid() ? keep * (weights ? widen(weights[y]) : A(1)) : A(0), part = 0;
        if (!dense()) return own;
        if (!weights) return own + even * cols;
        ::each(row_team(), cols, [&](long long, A w) { part += w; }, weights);
        return own + even * reduce_row(part, Plus(), A(0));
    }
};

// The same from a row of soft labels.
template <class T> struct Target<T, T> {
    using A = Acc<T>;
    static constexpr long long y = 0; // never asked for: soft labels are dense
    const T *weights, *row;
    long long cols;
    A keep, even;
    __device__ Target(const T* labels, const T* weights, long long row, long long cols, long long, A smoothing)
        : weights(weights), row(labels + row * cols), cols(cols), keep(1 - smoothing), even(smoothing / cols) {}
    __device__ bool ignored() const { return false; }
    __device__ bool valid() const { return true; }
    __device__ bool dense() const { return true; }
    __device__ A operator()(long long c, A y) const { return (weights ? widen(weights[c]) : A(1)) * (keep * y + even); }
    template <class F> __device__ void each(const T* x, F f) const { ::each(row_team(), cols, f, x, row); }
    template <class F> __device__ void fill(T* out, const T* x, F f) const { ::fill(row_team(), out, cols, f, x, row); }
    __device__ A total() const {
        A part = 0;
        ::each(row_team(), cols, [&](long long c, A y) { part += (*this)(c, y); }, row);
        return reduce_row(part, Plus(), A(0));
    }
};

template <class T, class L>
__global__ void __launch_bounds__(512, 1)
softmax_xent(T* loss, double* lse, const T* logits, const L* labels, const T* weight, long long rows, long long cols,
             long long ignore_index, Acc<T> smoothing, Mailbox* box, int site) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    const T* x = logits + row * cols;
    Target<T, L> q(labels, weight, row, cols, ignore_index, smoothing);
    ExpSum<A> e = ExpSum<A>::none();
    A total = 0, cost = 0; // of q, and of q (top - x)
    auto lift = [&](A from, A to) { return total == 0 || from == to ? A(0) : total * (to - from); };
    if (q.dense()) {
        q.each(x, [&](long long c, A v, A y) {
            A before = e.top, share = q(c, y);
            e.add(v);
            cost += lift(before, e.top) + (share == 0 || v == e.top ? A(0) : share * (e.top - v));
            total += share;
        });
    } else {
        q.each(x, [&](long long, A v, A) { e.add(v); });
    }
    A top = e.top;
    e = reduce_row(e);
    A base = e.base(), log_sum = e.log();
    auto exact = [&](A share, A v) { return share == 0 ? A(0) : share * (base - v + log_sum); }; // nothing cancels
    if (!q.dense()) {
        if (q.valid()) cost = exact(q(q.y, 1), widen(x[q.y]));
    } else if (e.infinite()) {
        cost = 0;
        q.each(x, [&](long long c, A v, A y) { cost += exact(q(c, y), v); });
        cost = reduce_row(cost, Plus(), A(0));
    } else {
        cost = reduce_row(cost + lift(top, e.top), Plus(), A(0)) + reduce_row(total, Plus(), A(0)) * log_sum;
    }
    if (threadIdx.x == 0) {
        if (!q.valid() && !q.ignored()) report(box, site, row, q.y);
        loss[row] = narrow<T>(q.ignored() ? A(0) : q.valid() ? cost : A(GG_NAN));
        lse[row] = e.infinite() ? double(log_sum) : double(base) + logarithm(double(e.sum));
    }
}

template <class T, class L>
__global__ void __launch_bounds__(512, 1)
softmax_xent_bwd(T* dlogits, const T* t, const T* logits, const L* labels, const T* weight, const double* lse, long long rows,
                 long long cols, long long ignore_index, Acc<T> smoothing) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    Target<T, L> q(labels, weight, row, cols, ignore_index, smoothing);
    A near = lse[row], slope = q.valid() ? widen(t[row]) : A(GG_NAN);
    A total = q.total() * exponential(A(near - lse[row])); // what rounding took from lse, as a factor
    q.fill(dlogits + row * cols, logits + row * cols, [&](long long c, A v, A y) {
        return q.ignored() ? A(0) : slope * (total * exponential(v - near) - q(c, y));
    });
}
