// Products of matrices, for gpugrad/jit.py and attention.h. They run on the threads of all compiled code, so that no second
// set of threads, of a BLAS, competes with it for the processors. A sum goes over k in order, whatever the tiles and threads.
#pragma once
#include "loops.h"

#if defined(__AVX512F__)
constexpr int VECTOR = 64, TALL = 8; // bytes; rows of a block, two vectors wide, whose sums stay in registers
#elif defined(__AVX__)
constexpr int VECTOR = 32, TALL = 4;
#else
constexpr int VECTOR = 16, TALL = 4;
#endif

// c (M, n) = a (M, k) b (k, n), added to c if `more`; n is N vectors, a(i, p) is a[i * down + p * along].
template <class A, int M, int N> static __forceinline__ void block(long long k, const A* a, long long down, long long along,
                                                                   const A* b, long long wide, A* c, long long ldc, bool more) {
    constexpr int W = VECTOR / sizeof(A);
    A sum[M][N * W];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N * W; j++) sum[i][j] = more ? c[i * ldc + j] : A(0);
    for (long long p = 0; p < k; p++) {
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
#pragma GCC unroll 2
            for (int v = 0; v < N; v++) {
#pragma omp simd
                for (int j = 0; j < W; j++) sum[i][v * W + j] = fused(a[i * down + p * along], b[p * wide + v * W + j], sum[i][v * W + j]);
            }
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N * W; j++) c[i * ldc + j] = sum[i][j];
}

// c (m, n) = a (m, k) b (k, n): c is contiguous, of the strides of a and of b, in elements, one is 1.
struct Product { void* c; const void *a, *b; long long m, n, k, a_down, a_along, b_down, b_along; };

constexpr long long MOST_ROWS = 256, MOST_COLUMNS = 128;

// Rows [top, top + rows) and columns [left, left + cols) of a product, DEEP of its k at a time. Panels of b, and of a where
// its rows are not contiguous, are copied, so that a block reads both from front to back.
template <class A> static void part_of(const Product g, long long top, long long rows, long long left, long long cols) {
    constexpr long long W = VECTOR / sizeof(A), WIDE = 2 * W, DEEP = 256;
    const bool direct = g.a_along == 1;
    alignas(VECTOR) static thread_local A pa[MOST_ROWS * DEEP], pb[MOST_COLUMNS * DEEP];
    A* c = static_cast<A*>(g.c) + top * g.n + left;
    for (long long from = 0; from < g.k; from += DEEP) {
        const long long deep = g.k - from < DEEP ? g.k - from : DEEP;
        const A *a = static_cast<const A*>(g.a) + top * g.a_down + from * g.a_along, *b = static_cast<const A*>(g.b) + from * g.b_down + left * g.b_along;
        for (long long i = 0; i < rows; i += TALL) {
            const A* x = a + i * g.a_down;
            A* to = pa + i * DEEP;
            if (rows - i < TALL) {
                for (long long p = 0; p < deep; p++)
                    for (long long r = 0; r < TALL; r++) to[p * TALL + r] = r < rows - i ? x[p * g.a_along + r * g.a_down] : A(0);
            } else if (!direct) {
                for (long long p = 0; p < deep; p++) __builtin_memcpy(to + p * TALL, x + p * g.a_along, TALL * sizeof(A));
            }
        }
        for (long long j = 0; j < cols; j += WIDE) {
            const A* x = b + j * g.b_along;
            A* to = pb + j * DEEP;
            const long long n = cols - j < WIDE ? cols - j : WIDE;
            if (n < WIDE) __builtin_memset(to, 0, deep * WIDE * sizeof(A));
            if (g.b_along == 1 && n == WIDE) {
                for (long long p = 0; p < deep; p++) __builtin_memcpy(to + p * WIDE, x + p * g.b_down, WIDE * sizeof(A));
            } else if (g.b_along == 1) {
                for (long long p = 0; p < deep; p++)
                    for (long long i = 0; i < n; i++) to[p * WIDE + i] = x[p * g.b_down + i];
            } else {
                for (long long start = 0; start < deep; start += 16) {
                    const long long stop = start + 16 < deep ? start + 16 : deep;
                    for (long long i = 0; i < n; i++)
                        for (long long p = start; p < stop; p++) to[p * WIDE + i] = x[p + i * g.b_along];
                }
            }
        }
        for (long long j = 0; j < cols; j += WIDE) {
            const A* y = pb + j * DEEP;
            for (long long i = 0; i < rows; i += TALL) {
                const long long m = rows - i < TALL ? rows - i : TALL, n = cols - j < WIDE ? cols - j : WIDE;
                A* out = c + i * g.n + j;
                if (m == TALL && n == WIDE) {
                    if (direct) block<A, TALL, 2>(deep, a + i * g.a_down, g.a_down, 1, y, WIDE, out, g.n, from > 0);
                    else block<A, TALL, 2>(deep, pa + i * DEEP, 1, TALL, y, WIDE, out, g.n, from > 0);
                    continue;
                }
                A edge[TALL * WIDE];
                const bool there = direct && m == TALL;
                const A* x = there ? a + i * g.a_down : pa + i * DEEP;
                const long long down = there ? g.a_down : 1, along = there ? 1 : TALL;
                if (n > W) block<A, TALL, 2>(deep, x, down, along, y, WIDE, edge, WIDE, false);
                else block<A, TALL, 1>(deep, x, down, along, y, WIDE, edge, WIDE, false);
                for (long long r = 0; r < m; r++)
                    for (long long q = 0; q < n; q++) out[r * g.n + q] = edge[r * WIDE + q] + (from ? out[r * g.n + q] : A(0));
            }
        }
    }
}

template <class A> static long long matrix_product(const Product& g) {
    const bool small = g.m * g.n * g.k < 1 << 20; // some ten microseconds: to wake a thread takes as long
    long long tall = MOST_ROWS, wide = MOST_COLUMNS, across, count;
    for (;;) { // smaller parts where there are few, so that there is something to share
        across = (g.n + wide - 1) / wide, count = (g.m + tall - 1) / tall * across;
        if (small || count >= 4 || (tall <= TALL && wide <= 32)) break;
        (tall <= TALL || (wide > 32 && wide >= tall && g.n > wide / 2) ? wide : tall) /= 2;
    }
    parallel(count, [&](long long i) {
        const long long top = i / across * tall, left = i % across * wide;
        part_of<A>(g, top, g.m - top < tall ? g.m - top : tall, left, g.n - left < wide ? g.n - left : wide);
    });
    return -1;
}
