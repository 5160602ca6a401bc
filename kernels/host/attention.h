// Attention on the CPU, forward and backward, for gpugrad/jit.py: what ops/attention.py says in NumPy, in which its formulas
// stand. One task has one head of keys and values, which it packs so that products run over whole vectors; queries come
// in tiles of ROWS, and scores exist for one tile at a time. Sums go over keys in order: the bits are the same for any number
// of threads.
#pragma once
#include "product.h"
#include "rows.h"

template <int N> struct Constant { static constexpr int value = N; };

// c (m, n) = a (m, k) b (k, n), added to c if `more`. a(i, p) is a[i * down + p * along]; n is whole vectors.
template <class A> static void product(long long m, long long n, long long k, const A* a, long long down, long long along,
                                       const A* b, long long wide, A* c, long long ldc, bool more) {
    constexpr int W = VECTOR / sizeof(A);
    auto strip = [&](long long j, auto width) {
        constexpr int N = decltype(width)::value;
        long long i = 0;
        for (; i + TALL <= m; i += TALL) block<A, TALL, N>(k, a + i * down, down, along, b + j, wide, c + i * ldc + j, ldc, more);
        for (; i < m; i++) block<A, 1, N>(k, a + i * down, down, along, b + j, wide, c + i * ldc + j, ldc, more);
    };
    long long j = 0;
    for (; j + 2 * W <= n; j += 2 * W) strip(j, Constant<2>{});
    for (; j < n; j += W) strip(j, Constant<1>{});
}

// Four axes, strides in elements.
struct View { const void* data; long long strides[4]; };

// mask: of bool if `masked` is 1, of A to be added if 2, none if 0. The results are contiguous. Forward: out and lse are
// written; backward: they are read, and the gradients written.
struct Attention {
    View q, k, v, mask, t;
    void *out, *lse, *dq, *dk, *dv;
    long long batch, heads, groups, queries, keys, depth, width, masked, causal;
    double scale;
};

template <class A> struct Head {
    static constexpr long long W = VECTOR / sizeof(A), ROWS = 16;
    const Attention& a;
    long long batch, group, depth, width, keys; // the lengths rounded up to whole vectors
    A *memory, *free, *k, *kt, *v, *vt, *q, *t, *s, *ds, *o, *dk, *dv;

    static long long whole(long long n) { return (n + W - 1) / W * W; }

    A* take(long long n) {
        A* at = free;
        free += n;
        return at;
    }

    Head(const Attention& a, long long number, bool back) : a(a), batch(number / a.groups), group(number % a.groups) {
        depth = whole(a.depth), width = whole(a.width), keys = whole(a.keys);
        const long long lines = depth + width;
        const long long n = keys * lines * (back ? 3 : 2) + ROWS * (2 * lines + 2 * keys) + W;
        memory = static_cast<A*>(__builtin_calloc(n, sizeof(A)));
        free = memory + (VECTOR - (unsigned long long)memory % VECTOR) % VECTOR / sizeof(A);
        k = take(keys * depth), kt = take(keys * depth), v = take(keys * width), q = take(ROWS * depth), s = take(ROWS * keys);
        o = take(ROWS * lines);
        pack(a.k, group, 0, a.keys, a.depth, k, depth, 1, A(1));
        pack(a.k, group, 0, a.keys, a.depth, kt, 1, keys, A(1));
        pack(a.v, group, 0, a.keys, a.width, v, width, 1, A(1));
        if (!back) return;
        vt = take(keys * width), t = take(ROWS * width), ds = take(ROWS * keys), dk = take(keys * depth), dv = take(keys * width);
        pack(a.v, group, 0, a.keys, a.width, vt, 1, keys, A(1));
    }
    ~Head() { __builtin_free(memory); }

    // Lines [first, first + n) of a head, times `scale`.
    void pack(const View& from, long long head, long long first, long long n, long long cols, A* to, long long down, long long along, A scale) {
        const A* x = static_cast<const A*>(from.data) + batch * from.strides[0] + head * from.strides[1] + first * from.strides[2];
        const long long step = from.strides[3];
        for (long long i = 0; i < n; i++, x += from.strides[2]) {
            if (step == 1 && along == 1) fill_row(to + i * down, cols, [=](long long j) { return x[j] * scale; });
            else for (long long j = 0; j < cols; j++) to[i * down + j * along] = x[j * step] * scale;
        }
    }

    // The scores of queries [first, first + n) of a head into s, up to a whole vector, those that do not count at -inf; how
    // many keys a query of these sees at most.
    long long scores(long long head, long long first, long long n) {
        const long long seen = a.causal && first + n < a.keys ? first + n : a.keys;
        pack(a.q, head, first, n, a.depth, q, depth, 1, A(a.scale));
        product(n, whole(seen), a.depth, q, depth, 1, kt, keys, s, keys, false);
        for (long long i = 0; i < n; i++) {
            A* row = s + i * keys;
            for (long long j = a.causal && first + i + 1 < seen ? first + i + 1 : seen; j < whole(seen); j++) row[j] = -A(GG_INFINITY);
            if (!a.masked) continue;
            const long long at = batch * a.mask.strides[0] + head * a.mask.strides[1] + (first + i) * a.mask.strides[2], step = a.mask.strides[3];
            const bool* sees = static_cast<const bool*>(a.mask.data) + at;
            const A* more = static_cast<const A*>(a.mask.data) + at;
            if (a.masked == 1) fill_row(row, seen, [=](long long j) { return sees[j * step] ? row[j] : -A(GG_INFINITY); });
            else fill_row(row, seen, [=](long long j) { return row[j] + more[j * step]; });
        }
        return seen;
    }

    void forward(long long head, long long first, long long n) {
        const long long seen = scores(head, first, n), line = (batch * a.heads + head) * a.queries + first;
        A total[ROWS];
        for (long long i = 0; i < n; i++) {
            A* row = s + i * keys;
            const A top = anchored(largest(row, whole(seen)));
            total[i] = A(sum_of<A>(whole(seen), [=](long long j) { return row[j] = exponential(row[j] - top); }));
            static_cast<A*>(a.lse)[line + i] = top + logarithm(total[i]);
        }
        product(n, width, seen, s, keys, 1, v, width, o, width, false);
        for (long long i = 0; i < n; i++) {
            const A* from = o + i * width;
            const A by = total[i] == 0 ? A(1) : total[i];
            fill_row(static_cast<A*>(a.out) + (line + i) * a.width, a.width, [=](long long j) { return from[j] / by; });
        }
    }

    void backward(long long head, long long first, long long n) {
        const long long seen = scores(head, first, n), line = (batch * a.heads + head) * a.queries + first;
        pack(a.t, head, first, n, a.width, t, width, 1, A(1));
        product(n, whole(seen), a.width, t, width, 1, vt, keys, ds, keys, false);
        for (long long i = 0; i < n; i++) {
            A *p = s + i * keys, *d = ds + i * keys;
            const A *slope = t + i * width, *out = static_cast<const A*>(a.out) + (line + i) * a.width;
            const A lse = static_cast<const A*>(a.lse)[line + i], near = lse == -A(GG_INFINITY) ? A(0) : lse;
            const A along = A(sum_of<A>(a.width, [=](long long j) { return slope[j] * out[j]; }));
            fill_row(p, whole(seen), [=](long long j) { return exponential(p[j] - near); });
            fill_row(d, whole(seen), [=](long long j) { return (d[j] - along) * p[j]; });
        }
        product(n, depth, seen, ds, keys, 1, k, depth, o, depth, false);
        for (long long i = 0; i < n; i++) {
            const A *from = o + i * depth, scale = A(a.scale);
            fill_row(static_cast<A*>(a.dq) + (line + i) * a.depth, a.depth, [=](long long j) { return from[j] * scale; });
        }
        product(seen, width, n, s, 1, keys, t, width, dv, width, true);
        product(seen, depth, n, ds, 1, keys, q, depth, dk, depth, true);
    }

    void unpack(const A* from, long long cols, long long wide, void* to) {
        for (long long i = 0; i < a.keys; i++)
            __builtin_memcpy(static_cast<A*>(to) + ((batch * a.groups + group) * a.keys + i) * cols, from + i * wide, cols * sizeof(A));
    }
};

template <class A, bool BACK> static long long attend(const Attention& a) {
    parallel(a.batch * a.groups, [&](long long number) {
        Head<A> work(a, number, BACK);
        const long long shared = a.heads / a.groups, begin = work.group * shared;
        for (long long head = begin; head < begin + shared; head++) {
            for (long long first = 0; first < a.queries; first += Head<A>::ROWS) {
                const long long n = first + Head<A>::ROWS < a.queries ? Head<A>::ROWS : a.queries - first;
                if (BACK) work.backward(head, first, n);
                else work.forward(head, first, n);
            }
        }
        if (BACK) work.unpack(work.dk, a.depth, work.depth, a.dk), work.unpack(work.dv, a.width, work.width, a.dv);
    });
    return -1;
}
template <class A> static long long attention(const Attention& a) { return attend<A, false>(a); }
template <class A> static long long attention_bwd(const Attention& a) { return attend<A, true>(a); }
