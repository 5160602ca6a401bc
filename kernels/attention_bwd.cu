// Gradients of attention.cu, from the gradient t of out. Launched by gpugrad/ops/attention.py.
//
//   P = exp(scale q k' + mask - lse)      delta = rowsum(t out)      dS = P (t v' - delta)
//   dq = scale dS k      dk = scale dS' q      dv = P' t
// Shapes as there; dk and dv sum over the query heads that share a key head. P is computed again from lse. attention_dq
// holds ROWS queries of a head and passes over the keys, and leaves delta for attention_dkv, which holds ROWS keys and
// passes over the queries of all heads of its group: each reads what it holds once, the rest once for every ROWS rows.
// Causal: tiles beyond the diagonal are left out. One kernel with atomic sums for dq (Dao, 2023) takes five products of
// tiles instead of seven, but its bits vary from run to run.
// attention_slopes: P over scores q k' and scale dS over t v', both from matrix products, in place; for heads wider than 128.
// A: float, double
// D: 32, 64, 128
#include "attention.cuh"

template <class T, int D>
__global__ void __launch_bounds__(128, 1) attention_dq(
    T* dq, Acc<T>* delta, const T* t, const T* q, const T* k, const T* v, const T* out, const Acc<T>* lse, const bool* seen,
    const T* bias, Sizes z) {
    using A = Acc<T>;
    constexpr int ROWS = held_rows<A>, KEYS = passing_rows<A, D>, R = ROWS / 16, C = KEYS / 8, STEP = D + padding<A>;
    extern __shared__ __align__(16) char memory[];
    A *qs = reinterpret_cast<A*>(memory), *ts = qs + ROWS * STEP, *ks = ts + ROWS * STEP;
    A *vs = ks + KEYS * STEP, *ps = vs + KEYS * STEP;
    int tiles = (z.queries + ROWS - 1) / ROWS, first = (tiles - 1 - int(blockIdx.x % tiles)) * ROWS;
    long long head = blockIdx.x / tiles, group = head / (z.heads / z.groups);
    k += group * z.keys * z.depth, v += group * z.keys * z.width;
    t += head * z.queries * z.width, out += head * z.queries * z.width;
    Mask<T> mask(seen, bias, z, head);
    load<ROWS, D>(qs, q + head * z.queries * z.depth, first, z.queries, z.depth, A(z.scale));
    load<ROWS, D>(ts, t, first, z.queries, z.width, A(1));

    A o[R][D / 8] = {}, near[R], mean[R];
#pragma unroll
    for (int i = 0; i < R; i++) {
        long long row = first + my_row(i);
        A sum = 0;
        for (int c = my_column(0); c < z.width && row < z.queries; c += 8)
            sum += widen(t[row * z.width + c]) * widen(out[row * z.width + c]);
        mean[i] = reduce_eight(sum, Plus());
        near[i] = row < z.queries ? base_of(lse[head * z.queries + row]) : A(0);
        if (threadIdx.x % 8 == 0 && row < z.queries) delta[head * z.queries + row] = mean[i];
    }
    int end = z.causal && first + ROWS < z.keys ? first + ROWS : z.keys;
    for (int start = 0; start < end; start += KEYS) {
        __syncthreads(); // the keys before are done with
        load<KEYS, D>(ks, k, start, z.keys, z.depth, A(1));
        load<KEYS, D>(vs, v, start, z.keys, z.width, A(1));
        __syncthreads();
        A s[R][C] = {}, dp[R][C] = {};
        multiply<D>(s, qs, ks);
        multiply<D>(dp, ts, vs);
        for_each(s, [&](int i, int j, A& x) {
            x = exponential(mask(x, first + my_row(i), start + my_column(j)) - near[i]) * (dp[i][j] - mean[i]);
        });
        put<KEYS>(ps, s);
        __syncwarp();
        combine<KEYS, D>(o, ps, ks);
    }
    store<D>(dq + head * z.queries * z.depth, o, first, z.queries, z.depth, A(z.scale));
}

template <class T, int D>
__global__ void __launch_bounds__(128, 1) attention_dkv(
    T* dk, T* dv, const T* t, const T* q, const T* k, const T* v, const Acc<T>* delta, const Acc<T>* lse, const bool* seen,
    const T* bias, Sizes z) {
    using A = Acc<T>;
    constexpr int ROWS = held_rows<A>, QUERIES = passing_rows<A, D>, R = ROWS / 16, C = QUERIES / 8, STEP = D + padding<A>;
    extern __shared__ __align__(16) char memory[];
    A *ks = reinterpret_cast<A*>(memory), *vs = ks + ROWS * STEP, *qs = vs + ROWS * STEP;
    A *ts = qs + QUERIES * STEP, *ps = ts + QUERIES * STEP;
    int tiles = (z.keys + ROWS - 1) / ROWS, first = int(blockIdx.x % tiles) * ROWS, shared_by = z.heads / z.groups;
    long long group = blockIdx.x / tiles;
    load<ROWS, D>(ks, k + group * z.keys * z.depth, first, z.keys, z.depth, A(1));
    load<ROWS, D>(vs, v + group * z.keys * z.width, first, z.keys, z.width, A(1));
    A to_k[R][D / 8] = {}, to_v[R][D / 8] = {};
    for (long long head = group * shared_by; head < (group + 1) * shared_by; head++) {
        Mask<T> mask(seen, bias, z, head);
        for (int start = z.causal ? first / QUERIES * QUERIES : 0; start < z.queries; start += QUERIES) {
            __syncthreads(); // the queries before are done with
            load<QUERIES, D>(qs, q + head * z.queries * z.depth, start, z.queries, z.depth, A(z.scale));
            load<QUERIES, D>(ts, t + head * z.queries * z.width, start, z.queries, z.width, A(1));
            __syncthreads();
            A s[R][C] = {}, dp[R][C] = {};
            multiply<D>(s, ks, qs);
            multiply<D>(dp, vs, ts);
            for_each(s, [&](int i, int j, A& x) {
                int query = start + my_column(j);
                long long at = head * z.queries + query;
                bool exists = query < z.queries;
                x = exponential(mask(x, query, first + my_row(i)) - (exists ? base_of(lse[at]) : A(0)));
                dp[i][j] = x * (dp[i][j] - (exists ? delta[at] : A(0)));
            });
            put<QUERIES>(ps, s);
            __syncwarp();
            combine<QUERIES, D>(to_v, ps, ts);
            __syncwarp();
            put<QUERIES>(ps, dp);
            __syncwarp();
            combine<QUERIES, D>(to_k, ps, qs);
        }
    }
    store<D>(dk + group * z.keys * z.depth, to_k, first, z.keys, z.depth, A(1));
    store<D>(dv + group * z.keys * z.width, to_v, first, z.keys, z.width, A(1));
}

template <class A>
__global__ void attention_slopes(A* scores, A* dp, const A* delta, const A* lse, const bool* seen, const A* bias,
                                 long long n, Sizes z) {
    Team team = whole_grid();
    for (long long i = team.rank; i < n; i += team.size) {
        long long row = i / z.keys;
        A s = Mask<A>(seen, bias, z, row / z.queries)(scores[i] * A(z.scale), row % z.queries, i % z.keys);
        scores[i] = exponential(s - base_of(lse[row]));
        dp[i] = scores[i] * (dp[i] - delta[row]) * A(z.scale);
    }
}
