// Layer and root-mean-square normalisation y of N rows of C elements x, and the backward pass. Launched by
// gpugrad/ops/normalize.py.
//
//   m = mean_c x_c (0 unless centred), r = 1 / sqrt(mean_c (x_c - m)^2 + eps), h_c = (x_c - m) r:    y_c = w_c h_c + b_c
//   u_c = w_c t_c:    dx_c = r (u_c - mean_k u_k - h_c mean_k u_k h_k) + more_c (the first mean if centred)
//   dw_c = sum over rows of t h, db_c = sum over rows of t
//
// With a residual, sum = x + residual is rounded, stored, and normalised in place of x: one pass for both. w, b, residual and
// more may be null, b without w not. m and r are kept for the backward pass in Acc<T>.
// Moves, in elements of T: forward 2 N C (with a residual 4 N C); backward 3 N C (with more 4 N C), and a row of dw and db in
// Acc<T> for each of at most a few hundred blocks. Rows stay in registers up to 4 packets a thread, 2 of each array backward;
// longer ones are read once more a pass, mostly from a cache. The variance is taken about the mean, in a pass of its own.
// Backward a block takes `span` rows, whose dw and db its threads add up in registers, column by column; layer_norm_sums adds
// the blocks up in order: no atomics, and the geometry follows from the sizes alone. Considered: a kernel of its own for dw
// and db (reads t and x again, as long rows do here), Welford's update (a division an element).
#include "normalize.cuh"

template <class T>
__global__ void __launch_bounds__(512, 1)
layer_norm(T* y, T* sum, Acc<T>* mean, Acc<T>* rstd, const T* x, const T* residual, const T* weight, const T* bias,
           long long rows, long long cols, Acc<T> eps, bool centred) {
    using A = Acc<T>;
    using Part = Share<T, 4>;
    long long row = row_number(), first = row * cols;
    if (row >= rows) return;
    bool packets = cols % Part::N == 0 && aligned(y, sum, x, residual, weight, bias), once = cols <= Part::size(packets);
    A v[Part::M], m = 0, squares = 0;
    auto add = [&](int e, A a, A b) {
        m += v[e] = widen(narrow<T>(a + b));
        return v[e];
    };
    Part::pass(cols, packets, [&](Part part, long long c) {
        if (residual)
            part.fill(sum + first + c, add, x + first + c, residual + first + c);
        else
            part.each([&](int e, A a) { m += v[e] = a; }, x + first + c);
    });
    auto again = [&](Part part, long long c) {
        if (!once) part.each([&](int e, A a) { v[e] = a; }, (residual ? sum : x) + first + c);
    };
    m = centred ? reduce_row(m, Plus(), A(0)) / cols : A(0);
    Part::pass(cols, packets, [&](Part part, long long c) {
        again(part, c);
        part.each([&](int e) { squares += (v[e] - m) * (v[e] - m); });
    });
    A scale = 1 / square_root(reduce_row(squares, Plus(), A(0)) / cols + eps);
    Part::pass(cols, packets, [&](Part part, long long c) {
        again(part, c);
        T* out = y + first + c;
        if (bias) part.fill(out, [&](int e, A w, A b) { return (v[e] - m) * scale * w + b; }, weight + c, bias + c);
        else if (weight) part.fill(out, [&](int e, A w) { return (v[e] - m) * scale * w; }, weight + c);
        else part.fill(out, [&](int e) { return (v[e] - m) * scale; });
    });
    if (threadIdx.x) return;
    rstd[row] = scale;
    if (centred) mean[row] = m;
}

// sums: for each block a row of dw and one of db, or null.
template <class T>
__global__ void __launch_bounds__(512, 1)
layer_norm_bwd(T* dx, Acc<T>* sums, const T* t, const T* x, const T* weight, const Acc<T>* mean, const Acc<T>* rstd,
               const T* more, long long rows, long long cols, long long span) {
    using A = Acc<T>;
    using Part = Share<T, 2>;
    long long begin = blockIdx.x * span, end = span < rows - begin ? begin + span : rows;
    bool packets = cols % Part::N == 0 && aligned(dx, t, x, weight, more), once = cols <= Part::size(packets);
    A u[Part::M], h[Part::M], dw[Part::M] = {}, db[Part::M] = {};
    auto read = [&](Part part, long long row, long long c) { // u is t until it is multiplied by w
        A m = mean ? mean[row] : A(0), scale = rstd[row];
        Part::all([&](int e) { u[e] = h[e] = 0; }); // beyond the row's end they count nothing
        part.each([&](int e, A a, A b) { u[e] = a, h[e] = (b - m) * scale; }, t + row * cols + c, x + row * cols + c);
    };
    auto sum = [&] { Part::all([&](int e) { dw[e] += u[e] * h[e], db[e] += u[e]; }); };
    auto weigh = [&](Part part, long long c) {
        if (weight) part.each([&](int e, A w) { u[e] *= w; }, weight + c);
    };
    for (long long row = begin + threadIdx.y; row < end; row += blockDim.y) {
        Pair<A> total = {A(0), A(0)};
        Part::pass(cols, packets, [&](Part part, long long c) {
            read(part, row, c);
            if (once) sum();
            weigh(part, c);
            Part::all([&](int e) { total.first += u[e], total.second += u[e] * h[e]; });
        });
        total = reduce_row(total, PlusBoth(), Pair<A>{A(0), A(0)});
        A scale = rstd[row], level = mean ? total.first / cols : A(0), slope = total.second / cols;
        auto back = [&](int e) { return scale * (u[e] - level - h[e] * slope); };
        Part::pass(cols, packets, [&](Part part, long long c) {
            if (!once) read(part, row, c), weigh(part, c);
            T* out = dx + row * cols + c;
            if (more) part.fill(out, [&](int e, A g) { return back(e) + g; }, more + row * cols + c);
            else part.fill(out, back);
        });
    }
    if (!sums) return;
    Part::pass(cols, packets, [&](Part part, long long c) {
        if (!once) Part::all([&](int e) { dw[e] = db[e] = 0; });
        for (long long row = begin + threadIdx.y; !once && row < end; row += blockDim.y) read(part, row, c), sum();
        Reduction<T, Sum> over_rows{A(1), A(1), STATE};
        if (blockDim.y > 1) over_rows.merge_over_y(dw), __syncthreads(), over_rows.merge_over_y(db), __syncthreads();
        A* out = sums + 2 * blockIdx.x * cols + c;
        if (threadIdx.y == 0) part.each([&](int e) { out[part.at(e)] = dw[e], out[cols + part.at(e)] = db[e]; });
    });
}

// dw and db from the blocks' rows of 2 C: a thread of each y adds every blockDim.y-th.
template <class T>
__global__ void __launch_bounds__(256, 1) layer_norm_sums(T* dw, T* db, const Acc<T>* sums, long long blocks, long long cols) {
    long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    Acc<T> sum[1] = {Acc<T>(0)};
    for (long long i = threadIdx.y; column < 2 * cols && i < blocks; i += blockDim.y) sum[0] += sums[i * 2 * cols + column];
    Reduction<T, Sum>{Acc<T>(1), Acc<T>(1), STORED}.merge_over_y(sum);
    if (threadIdx.y == 0 && column < 2 * cols) (column < cols ? dw[column] : db[column - cols]) = narrow<T>(sum[0]);
}
