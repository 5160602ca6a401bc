// Softmax cross-entropy of N rows of C logits x, fused. Launched by gpugrad/ops/loss.py.
//
//   lse = log sum_c exp(x_c)        q_c = w_c ((1 - s) y_c + s / C)        Q = sum_c q_c
//   loss = sum_c q_c (lse - x_c)    dx_c = t (Q exp(x_c - lse) - q_c)
//
// y: soft labels (N, C) of type T, or class numbers (N,), which mean 1 at the class. w: weights (C,) or null for 1.
// s: label smoothing. A row whose class is ignore_index has loss 0 and dx 0; any other class outside 0 <= y < C gives NaN
// and a letter in the mailbox.
// A class with q_c = 0 costs nothing, whatever its logit. lse is kept in double, so that exp(x - lse) loses no digit.
// Moves, in elements of T: forward N C read (2 N C with soft labels), backward N C read and N C written (twice the reads
// with soft labels, whose Q is summed first). One team a row: a warp up to 1024 columns, a block beyond. The maximum
// and the sum are found in one pass over the row, each thread rescaling its sum when it meets a larger logit.
#include "common.cuh"
#include "functors.cuh"

// The targets q of one row, from a class number of type L.
template <class T, class L> struct Target {
    using A = Acc<T>;
    const T* weights;
    long long y, cols, ignore;
    A smoothing;
    __device__ Target(const L* labels, const T* weights, long long row, long long cols, long long ignore, A smoothing)
        : weights(weights), y(labels[row]), cols(cols), ignore(ignore), smoothing(smoothing) {}
    __device__ bool ignored() const { return y == ignore; }
    __device__ bool valid() const { return y >= 0 && y < cols; }
    __device__ bool dense() const { return smoothing != 0; } // else q is 0 at every class but y
    __device__ A operator()(long long c) const {
        return (weights ? widen(weights[c]) : A(1)) * ((c == y ? 1 - smoothing : A(0)) + smoothing / cols);
    }
};

// The same from a row of soft labels.
template <class T> struct Target<T, T> {
    using A = Acc<T>;
    static constexpr long long y = 0; // never asked for: soft labels are dense
    const T *weights, *row;
    long long cols;
    A smoothing;
    __device__ Target(const T* labels, const T* weights, long long row, long long cols, long long, A smoothing)
        : weights(weights), row(labels + row * cols), cols(cols), smoothing(smoothing) {}
    __device__ bool ignored() const { return false; }
    __device__ bool valid() const { return true; }
    __device__ bool dense() const { return true; }
    __device__ A operator()(long long c) const {
        return (weights ? widen(weights[c]) : A(1)) * ((1 - smoothing) * widen(row[c]) + smoothing / cols);
    }
};

template <class T, class L>
__global__ void softmax_xent(T* loss, double* lse, const T* logits, const L* labels, const T* weight, long long rows,
                             long long cols, long long ignore_index, Acc<T> smoothing, Mailbox* box, int site) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    const T* x = logits + row * cols;
    Target<T, L> q(labels, weight, row, cols, ignore_index, smoothing);
    A top = -GG_INFINITY, sum = 0;
    each(row_team(), cols, [&](long long, A v) {
        if (v > top) {
            sum = sum * exponential(top - v) + 1;
            top = v;
        } else {
            sum += v == top ? A(1) : exponential(v - top); // equal apart: -inf after -inf is no NaN
        }
    }, x);
    A all_top = reduce_row(top, Larger(), A(-GG_INFINITY));
    A all_sum = reduce_row(top == all_top ? sum : sum * exponential(top - all_top), Plus(), A(0));
    bool infinite = all_top == GG_INFINITY || all_top == -GG_INFINITY, number = all_sum == all_sum;
    A base = infinite ? A(0) : all_top, log_sum = infinite && number ? all_top : logarithm(all_sum);

    auto cost = [&](A share, A v) { return share == 0 ? A(0) : share * (base - v + log_sum); }; // nothing cancels
    A total = 0;
    if (q.dense()) {
        A part = 0;
        each(row_team(), cols, [&](long long c, A v) { part += cost(q(c), v); }, x);
        total = reduce_row(part, Plus(), A(0));
    } else if (q.valid()) {
        total = cost(q(q.y), widen(x[q.y]));
    }
    if (threadIdx.x == 0) {
        if (!q.valid() && !q.ignored()) report(box, site, row, q.y);
        loss[row] = narrow<T>(q.ignored() ? A(0) : q.valid() ? total : A(GG_NAN));
        lse[row] = infinite ? double(log_sum) : double(base) + logarithm(double(all_sum));
    }
}

template <class T, class L>
__global__ void softmax_xent_bwd(T* dlogits, const T* t, const T* logits, const L* labels, const T* weight, const double* lse,
                                 long long rows, long long cols, long long ignore_index, Acc<T> smoothing) {
    using A = Acc<T>;
    long long row = row_number();
    if (row >= rows) return;
    Target<T, L> q(labels, weight, row, cols, ignore_index, smoothing);
    A total = 0;
    if (q.dense()) {
        A part = 0;
        for (long long c = threadIdx.x; c < cols; c += blockDim.x) part += q(c);
        total = reduce_row(part, Plus(), A(0));
    } else if (q.valid()) {
        total = q(q.y);
    }
    A near = lse[row], slope = q.valid() ? widen(t[row]) : A(GG_NAN);
    total *= exponential(A(near - lse[row])); // what rounding took from lse, as a factor
    fill(row_team(), dlogits + row * cols, cols, [&](long long c, A v) {
        return q.ignored() ? A(0) : slope * (total * exponential(v - near) - q(c));
    }, logits + row * cols);
}
