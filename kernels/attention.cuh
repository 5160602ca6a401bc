// Tiles of attention on chip, shared by attention.cu and attention_bwd.cu.
//
// A block has 128 threads in 16 rows of 8. Of a product of two tiles, thread (r, c) makes the elements of rows r, r + 16,
// ... and columns c, c + 8, ...: the 8 threads of a row lie in one warp, which alone reads and writes the tile rows it
// makes. Tiles lie in shared memory as Acc<T>, D columns (zero beyond the head's own) and 16 bytes of padding a row, so
// that the 8 threads of a row read 16-byte packets of 8 rows without a bank conflict.
#pragma once
#include "common.cuh"
#include "functors.cuh"

constexpr int THREADS = 128;

// Sizes of a launch, as gpugrad/launch/attention.py packs them: q (B, heads, queries, depth), k (B, groups, keys, depth),
// v (B, groups, keys, width); steps of the mask along its axes, 0 where it has length 1.
struct Sizes {
    long long mask_batch, mask_head, mask_query, mask_key;
    double scale;
    int heads, groups, queries, keys, depth, width, causal;
};

// The mask of one head: bool (true: may be seen), or T (added to the score), or neither.
template <class T> struct Mask {
    const bool* seen;
    const T* bias;
    Sizes z;
    __device__ __forceinline__ Mask(const bool* seen, const T* bias, const Sizes& z, long long head)
        : seen(seen), bias(bias), z(z) {
        long long start = head / z.heads * z.mask_batch + head % z.heads * z.mask_head;
        if (seen) this->seen += start;
        if (bias) this->bias += start;
    }
    // The score s of query i and key j after the mask, -inf where the query may not see the key or one does not exist.
    __device__ __forceinline__ Acc<T> operator()(Acc<T> s, int i, int j) const {
        if (i >= z.queries || j >= z.keys || (z.causal && j > i)) return -GG_INFINITY;
        long long at = i * z.mask_query + j * z.mask_key;
        if (seen && !seen[at]) return -GG_INFINITY;
        return bias ? s + widen(bias[at]) : s;
    }
};

template <class A> constexpr int padding = Packet<A>::N;

__device__ __forceinline__ int my_row(int i) { return threadIdx.x / 8 + 16 * i; }
__device__ __forceinline__ int my_column(int j) { return threadIdx.x % 8 + 8 * j; }

template <class A, class Op> __device__ __forceinline__ A reduce_eight(A x, Op op) {
#pragma unroll
    for (int distance = 4; distance; distance /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Rows first to first + N of x (rows, depth), times a factor, to shared memory; zero beyond its rows and columns.
template <int N, int D, class T>
__device__ __forceinline__ void load(Acc<T>* tile, const T* x, int first, int rows, int depth, Acc<T> factor) {
    using A = Acc<T>;
    constexpr int P = Packet<T>::N, W = Packet<A>::N, ROW = D / P;
    bool packets = depth % P == 0 && aligned(x);
    for (int c = threadIdx.x; c < N * ROW; c += THREADS) {
        int r = c / ROW, d = c % ROW * P;
        const T* from = x + (long long)(first + r) * depth + d;
        Packet<T> in;
        if (packets && first + r < rows && d < depth) {
            in = packet(from);
        } else {
#pragma unroll
            for (int k = 0; k < P; k++) in.v[k] = first + r < rows && d + k < depth ? from[k] : narrow<T>(A(0));
        }
#pragma unroll
        for (int k = 0; k < P; k += W) {
            Packet<A> part;
#pragma unroll
            for (int e = 0; e < W; e++) part.v[e] = widen(in.v[k + e]) * factor;
            *reinterpret_cast<Packet<A>*>(tile + r * (D + padding<A>) + d + k) = part;
        }
    }
}

// s += a b' for tiles a and b of D columns.
template <int D, int R, int C, class A> __device__ __forceinline__ void multiply(A (&s)[R][C], const A* a, const A* b) {
    constexpr int W = Packet<A>::N, ROW = D + padding<A>;
#pragma unroll 2
    for (int d = 0; d < D; d += W) {
        Packet<A> x[R], y[C];
#pragma unroll
        for (int i = 0; i < R; i++) x[i] = packet(a + my_row(i) * ROW + d);
#pragma unroll
        for (int j = 0; j < C; j++) y[j] = packet(b + my_column(j) * ROW + d);
#pragma unroll
        for (int k = 0; k < W; k++)
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int j = 0; j < C; j++) s[i][j] += x[i].v[k] * y[j].v[k];
    }
}

// The 8 threads of a row hold D columns of it: column c W + 8 W n + e at place n W + e, for packets of W.
template <int D, class A> __device__ __forceinline__ int held_column(int place) {
    constexpr int W = Packet<A>::N;
    return place / W * 8 * W + threadIdx.x % 8 * W + place % W;
}

// o += p b for a tile p of N columns and a tile b of N rows and D columns.
template <int N, int D, int R, class A> __device__ __forceinline__ void combine(A (&o)[R][D / 8], const A* p, const A* b) {
    constexpr int W = Packet<A>::N, ROW = D + padding<A>;
#pragma unroll 2
    for (int j = 0; j < N; j += W) {
        Packet<A> x[R];
#pragma unroll
        for (int i = 0; i < R; i++) x[i] = packet(p + my_row(i) * (N + padding<A>) + j);
#pragma unroll
        for (int k = 0; k < W; k++)
#pragma unroll
            for (int c = 0; c < D / 8; c += W) {
                Packet<A> y = packet(b + (j + k) * ROW + held_column<D, A>(c));
#pragma unroll
                for (int i = 0; i < R; i++)
#pragma unroll
                    for (int e = 0; e < W; e++) o[i][c + e] += x[i].v[k] * y.v[e];
            }
    }
}

// f(i, j, s) for the element s of the thread's row i and column j, every one.
template <int R, int C, class A, class F> __device__ __forceinline__ void for_each(A (&s)[R][C], F f) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) f(i, j, s[i][j]);
}

// A tile of N columns from the elements that the threads made.
template <int N, int R, int C, class A> __device__ __forceinline__ void put(A* tile, const A (&s)[R][C]) {
    for_each(s, [&](int i, int j, A x) { tile[my_row(i) * (N + padding<A>) + my_column(j)] = x; });
}

// Rows first to first + 16 R of x (rows, width) from what the threads hold, times a factor.
template <int D, int R, class T>
__device__ __forceinline__ void store(T* x, const Acc<T> (&o)[R][D / 8], int first, int rows, int width, Acc<T> factor) {
#pragma unroll
    for (int i = 0; i < R; i++) {
        long long row = first + my_row(i);
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            int column = held_column<D, Acc<T>>(c);
            if (column < width) x[row * width + column] = narrow<T>(o[i][c] * factor);
        }
    }
}

// Rows that a block of the backward kernels holds, and rows of the tiles that it passes over.
template <class A> constexpr int held_rows = sizeof(A) == 8 ? 16 : 32;
template <class A, int D> constexpr int passing_rows = D > 64 ? held_rows<A> / 2 : held_rows<A>;

// lse as it is subtracted: a row that sees nothing has scores of -inf, and must give P = 0.
template <class A> __device__ __forceinline__ A base_of(A lse) { return lse == -GG_INFINITY ? A(0) : lse; }
