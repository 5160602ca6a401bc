// Scaled dot-product attention of every head, out = softmax(scale q k' + mask) v, and lse, the log-sum-exp of each row of
// scores. Launched by gpugrad/ops/attention.py.
//
// q: (B, heads, queries, depth); k: (B, groups, keys, depth); v: (B, groups, keys, width); query head h reads group
// h groups / heads. seen (bool) or bias (T): a mask, broadcast by its steps; null for none. causal: query i sees keys 0 to
// i. A query that sees no key gives 0 and lse -inf.
//
// attention: a block makes ROWS queries of one head; it holds them on chip and passes over the keys in tiles, rescaling
// what it has summed whenever a larger score comes (Milakov and Gimelshein, 2018; Dao, 2023). Keys and values take turns
// in one buffer. Reads q once, and k and v once for every ROWS queries; writes out and lse; scores never leave the chip.
// Causal blocks stop at the diagonal, the longest ones start first. Tiles lie widened: in the storage type, half types
// would need as many conversions as products. The inner loops are unrolled twice: four times spilled registers.
//
// masked_softmax: the same for rows of scores that a matrix product wrote, in place; for heads wider than 128. A team
// a row, each score read twice and written once.
// A: float, double
// D: 32, 64, 128
#include "attention.cuh"

template <class T, int D>
__global__ void __launch_bounds__(128, 1) attention(T* out, Acc<T>* lse, const T* q, const T* k, const T* v, const bool* seen,
                                                 const T* bias, Sizes z) {
    using A = Acc<T>;
    constexpr int ROWS = sizeof(A) == 8 ? 32 : 64, KEYS = D > 64 ? ROWS / 2 : ROWS, R = ROWS / 16, C = KEYS / 8;
    constexpr int STEP = D + padding<A>;
    extern __shared__ __align__(16) char memory[];
    A *qs = reinterpret_cast<A*>(memory), *ks = qs + ROWS * STEP, *ps = ks + KEYS * STEP;

    int tiles = (z.queries + ROWS - 1) / ROWS, first = (tiles - 1 - int(blockIdx.x % tiles)) * ROWS;
    long long head = blockIdx.x / tiles, group = head / (z.heads / z.groups);
    k += group * z.keys * z.depth, v += group * z.keys * z.width;
    Mask<T> mask(seen, bias, z, head);
    load<ROWS, D>(qs, q + head * z.queries * z.depth, first, z.queries, z.depth, A(z.scale));

    A o[R][D / 8] = {}, top[R], sum[R];
#pragma unroll
    for (int i = 0; i < R; i++) top[i] = -GG_INFINITY, sum[i] = 0;
    int end = z.causal && first + ROWS < z.keys ? first + ROWS : z.keys;
    for (int start = 0; start < end; start += KEYS) {
        __syncthreads(); // the values before are done with
        load<KEYS, D>(ks, k, start, z.keys, z.depth, A(1));
        __syncthreads();
        A s[R][C] = {};
        multiply<D>(s, qs, ks);
#pragma unroll
        for (int i = 0; i < R; i++) {
            A high = top[i], part = 0;
#pragma unroll
            for (int j = 0; j < C; j++) {
                s[i][j] = mask(s[i][j], first + my_row(i), start + my_column(j));
                high = Larger()(high, s[i][j]);
            }
            high = reduce_eight(high, Larger());
            A base = high == -GG_INFINITY ? A(0) : high, shrink = exponential(top[i] - base);
#pragma unroll
            for (int j = 0; j < C; j++) {
                s[i][j] = exponential(s[i][j] - base);
                part += s[i][j];
            }
            sum[i] = sum[i] * shrink + part;
            top[i] = high;
#pragma unroll
            for (int c = 0; c < D / 8; c++) o[i][c] *= shrink;
        }
        put<KEYS>(ps, s);
        __syncthreads(); // the keys are done with
        load<KEYS, D>(ks, v, start, z.keys, z.width, A(1));
        __syncthreads();
        combine<KEYS, D>(o, ps, ks);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        A total = reduce_eight(sum[i], Plus()), factor = total == 0 ? A(0) : 1 / total;
        int row = first + my_row(i);
        if (threadIdx.x % 8 == 0 && row < z.queries) lse[head * z.queries + row] = top[i] + logarithm(total);
#pragma unroll
        for (int c = 0; c < D / 8; c++) o[i][c] *= factor;
    }
    store<D>(out + head * z.queries * z.width, o, first, z.queries, z.width, A(1));
}

template <class A>
__global__ void masked_softmax(A* scores, A* lse, const bool* seen, const A* bias, long long rows, Sizes z) {
    long long row = row_number();
    if (row >= rows) return;
    int query = row % z.queries;
    Mask<A> mask(seen, bias, z, row / z.queries);
    A* s = scores + row * z.keys;
    A top = -GG_INFINITY, sum = 0;
    each(row_team(), z.keys, [&](long long j, A x) {
        x = mask(x * A(z.scale), query, j);
        A high = Larger()(top, x), base = high == -GG_INFINITY ? A(0) : high;
        sum = sum * exponential(top - base) + exponential(x - base);
        top = high;
    }, s);
    A high = reduce_row(top, Larger(), A(-GG_INFINITY)), base = high == -GG_INFINITY ? A(0) : high;
    sum = reduce_row(sum * exponential(top - base), Plus(), A(0));
    A factor = sum == 0 ? A(0) : 1 / sum;
    fill(row_team(), s, z.keys, [&](long long j, A x) { return exponential(mask(x * A(z.scale), query, j) - base) * factor; }, s);
    if (threadIdx.x == 0) lse[row] = high + logarithm(sum);
}
