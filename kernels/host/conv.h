// Convolution, pooling and batch norm on the CPU, for gpugrad/jit_conv.py: what ops/conv.py and ops/normalize.py say in NumPy.
//
// Images lie with the batch last, (C, H, W, N): a pixel is a run of N neighbours, along which all loops go. There are no
// columns: sums stay in registers, a vector of the batch by a block of channels, while the taps are gone through. A batch
// has at least a vector of images; the last vector of one that does not divide overlaps the one before. Pieces of work
// follow from the sizes alone, and every sum is made by one thread, so the bits are the same for any number of threads.
#pragma once
#include "rows.h"
#include "../windows.cuh"

#if defined(__AVX512F__) // BLOCK x 2 or 4 x SHIFTS sums, with what they are made of, fit the registers
constexpr int WIDE = 64, BLOCK = 8, SHIFTS = 5;
#elif defined(__AVX__)
constexpr int WIDE = 32, BLOCK = 4, SHIFTS = 2;
#else
constexpr int WIDE = 16, BLOCK = 4, SHIFTS = 2;
#endif
#if defined(__clang__)
#define GG_FUSED __attribute__((noinline))
#define GG_FUSE _Pragma("clang fp contract(fast)")
#else
#define GG_FUSED __attribute__((noinline, optimize("fp-contract=fast")))
#define GG_FUSE
#endif

#if defined(__x86_64__) // a value that stays in its register, where the compiler would load it for every use
#define GG_KEEP(v) asm("" : "+v"(v))
#else
#define GG_KEEP(v)
#endif

template <class A> struct Lane {
    static constexpr int size = WIDE / sizeof(A);
    typedef A V __attribute__((vector_size(WIDE)));
    typedef A Anywhere __attribute__((vector_size(WIDE), aligned(sizeof(A)), may_alias));
};
template <class A> static __forceinline__ typename Lane<A>::V load(const A* p) {
    return *reinterpret_cast<const typename Lane<A>::Anywhere*>(p);
}

template <class A> static __forceinline__ void store(A* p, typename Lane<A>::V v) {
    *reinterpret_cast<typename Lane<A>::Anywhere*>(p) = v;
}

// Images (N, C, H, W) by strides in elements; `room` is for a copy with the batch last, null where they lie so.
struct Images { const void* data; void* room; long long strides[4]; };

// x: images; t and y: what belongs to the windows over them. ins and outs: channels of x and of t in a group. room: for the
// kernel (O, C / groups, kh, kw) in blocks, or a row of zeros.
struct Conv { void* out; const void* kernel; void* room; Images x, t, y; long long n, groups, ins, outs; Windows windows; };

template <class A> static const A* batch_last(const Images& a, long long n, long long channels, int height, int width) {
    const A* from = static_cast<const A*>(a.data);
    if (!a.room) return from;
    A* to = static_cast<A*>(a.room);
    constexpr int side = 16;
    parallel(channels * height, [=](long long row) {
        const A* line = from + row / height * a.strides[1] + row % height * a.strides[2];
        for (long long first = 0; first < n; first += side)
            for (int left = 0; left < width; left += side)
                for (int x = left; x < left + side && x < width; x++)
                    for (long long i = first; i < first + side && i < n; i++)
                        to[(row * width + x) * n + i] = line[i * a.strides[0] + x * a.strides[3]];
    });
    return to;
}

// --- convolution ------------------------------------------------------------------------------------------------------
//
// Forward a result is a window, with the pixels under its taps. Backward it is a pixel, with the windows that have a tap on
// it. Else they are the same sum over channels and taps: out[b] = sum k[b][channel][tap] x[channel][offset of the tap].

struct Tap { long long offset; int number; };
constexpr int MOST_TAPS = 256; // of gpugrad/jit_conv.py

// Channels of results and of what they are made of; steps lead from one to the next. k: B weights side by side for a tap.
template <class A> struct Planes { A* out; const A *x, *k; long long out_step, x_step, k_step, channels; };

// B channels of S vectors of the batch, which begin at image `at`.
template <class A, int B, int S> GG_FUSED static void sums(const Planes<A>& a, long long at, const Tap* taps, int count) {
    GG_FUSE
    constexpr int L = Lane<A>::size;
    typename Lane<A>::V sum[B][S] = {}, v[S];
    const A *x = a.x + at, *k = a.k;
    for (long long c = 0; c < a.channels; c++, x += a.x_step, k += a.k_step)
        for (int t = 0; t < count; t++) {
            for (int s = 0; s < S; s++) v[s] = load(x + taps[t].offset + s * L);
            const A* w = k + taps[t].number * B;
            for (int b = 0; b < B; b++)
                for (int s = 0; s < S; s++) sum[b][s] += v[s] * w[b];
        }
    for (int b = 0; b < B; b++)
        for (int s = 0; s < S; s++) store(a.out + b * a.out_step + at + s * L, sum[b][s]);
}

// The blocks into which channels are cut: as wide as they fit, at most BLOCK, a power of 2.
struct Block { long long first; int width; };
static long long blocks(long long channels) { return channels / BLOCK + __builtin_popcountll(channels % BLOCK); }
static Block block_of(long long channels, long long number) {
    Block b{0, BLOCK};
    for (;; b.first += b.width, number--) {
        while (b.width > channels - b.first) b.width /= 2;
        if (!number) return b;
    }
}

template <class A, int B> static void row_of_sums(Planes<A> a, const Windows& w, bool back, int row, long long n) {
    constexpr int L = Lane<A>::size, MANY = B < BLOCK ? 4 : 2;
    const int width = back ? w.x.pixels : w.x.windows;
    for (int column = 0; column < width; column++, a.out += n) {
        Tap taps[MOST_TAPS];
        int count = 0;
        auto add = [&](long long at, int tap) { return taps[count++] = {at * n, tap}, true; };
        if (back) over(w, row, column, add);
        else under(w, row, column, add);
        long long i = 0;
        for (; i + MANY * L <= n; i += MANY * L) sums<A, B, MANY>(a, i, taps, count);
        for (; i + 2 * L <= n; i += 2 * L) sums<A, B, 2>(a, i, taps, count);
        for (; i < n; i += L) sums<A, B, 1>(a, i + L <= n ? i : n - L, taps, count);
    }
}

template <class A, bool BACK> static long long conv2d(const Conv& a) {
    const Windows& w = a.windows;
    const long long outs = BACK ? a.ins : a.outs, ins = BACK ? a.outs : a.ins, taps = w.taps(), k_step = ins * taps;
    const long long target = BACK ? w.plane() : w.count(), origin = BACK ? w.count() : w.plane();
    const A* from = BACK ? batch_last<A>(a.t, a.n, a.groups * a.outs, w.y.windows, w.x.windows)
                         : batch_last<A>(a.x, a.n, a.groups * a.ins, w.y.pixels, w.x.pixels);
    const A* weights = static_cast<const A*>(a.kernel);
    A *k = static_cast<A*>(a.room), *out = static_cast<A*>(a.out);
    const long long parts = blocks(outs), rows = BACK ? w.y.pixels : w.y.windows;
    parallel(a.groups * parts, [&](long long i) {
        const long long group = i / parts, base = group * outs * k_step;
        const Block b = block_of(outs, i % parts);
        A* to = k + base + b.first * k_step;
        for (long long r = 0; r < k_step; r++)
            for (int o = 0; o < b.width; o++) {
                const long long result = b.first + o, source = r / taps;
                *to++ = weights[base + (BACK ? source * a.ins + result : result * a.ins + source) * taps + r % taps];
            }
    });
    parallel(a.groups * parts * rows, [&](long long i) {
        const long long row = i % rows, group = i / rows / parts, width = BACK ? w.x.pixels : w.x.windows;
        const Block b = block_of(outs, i / rows % parts);
        const Planes<A> planes{
            out + ((group * outs + b.first) * target + row * width) * a.n, from + group * ins * origin * a.n,
            k + (group * outs + b.first) * k_step, target * a.n, origin * a.n, b.width * taps, ins,
        };
        auto run = b.width == BLOCK ? row_of_sums<A, BLOCK> : b.width == 4 ? row_of_sums<A, 4>
                                    : b.width == 2 ? row_of_sums<A, 2> : row_of_sums<A, 1>;
        run(planes, w, BACK, int(row), a.n);
    });
    return -1;
}

// The gradient in the kernel. A piece of work is SHIFTS taps, of one channel or of neighbouring ones. Runs are stretches of
// windows of a row under which each of these taps lies in the image, or from end to end outside it, where it finds zeros.
template <class A> struct Run { long long t, length; const A* x[SHIFTS]; };
// Runs of a list; elements of runs that stay in the first cache; elements of a sum before it is added up in double.
constexpr long long RUNS = 96, NEAR = 4096, EXACT = 1 << 18;

// sum[slope][shift] += t[slope] . x[shift] over all runs, a vector each.
template <class A, int O> GG_FUSED static void slopes(A* sums, const A* t, long long t_step, const Run<A>* runs, int count) {
    GG_FUSE
    using V = typename Lane<A>::V;
    constexpr int L = Lane<A>::size;
    V sum[O][SHIFTS];
    for (int o = 0; o < O; o++)
        for (int k = 0; k < SHIFTS; k++) sum[o][k] = load(sums + (o * SHIFTS + k) * L);
    for (const Run<A>* run = runs; run < runs + count; run++) {
        const A *from = t + run->t, *const *x = run->x;
        for (long long i = 0; i + L <= run->length; i += L) {
            V v[SHIFTS];
            for (int k = 0; k < SHIFTS; k++) {
                v[k] = load(x[k] + i);
                GG_KEEP(v[k]);
            }
            for (int o = 0; o < O; o++) {
                V u = load(from + o * t_step + i);
                for (int k = 0; k < SHIFTS; k++) sum[o][k] += u * v[k];
            }
        }
    }
    for (int o = 0; o < O; o++)
        for (int k = 0; k < SHIFTS; k++) store(sums + (o * SHIFTS + k) * L, sum[o][k]);
    for (const Run<A>* run = runs; run < runs + count; run++)
        for (long long i = run->length / L * L; i < run->length; i++)
            for (int o = 0; o < O; o++)
                for (int k = 0; k < SHIFTS; k++) sums[(o * SHIFTS + k) * L] += t[run->t + o * t_step + i] * run->x[k][i];
}

template <class A> static long long conv2d_weight(const Conv& a) {
    constexpr int L = Lane<A>::size;
    const Windows& w = a.windows;
    const long long taps = w.taps(), shifts = a.ins * taps, pieces = (shifts + SHIFTS - 1) / SHIFTS, n = a.n;
    const A* x = batch_last<A>(a.x, n, a.groups * a.ins, w.y.pixels, w.x.pixels);
    const A* t = batch_last<A>(a.t, n, a.groups * a.outs, w.y.windows, w.x.windows);
    const A* zeros = static_cast<const A*>(a.room); // a row of windows
    parallel(a.groups * pieces, [&](long long piece) {
        const long long group = piece / pieces, start = piece % pieces * SHIFTS;
        const long long many = shifts - start < SHIFTS ? shifts - start : SHIFTS;
        const long long results = a.outs * SHIFTS, t_step = w.count() * n;
        const A* slope = t + group * a.outs * t_step;
        double* totals = static_cast<double*>(__builtin_calloc(results, sizeof(double)));
        A* sums = static_cast<A*>(__builtin_calloc(results * L, sizeof(A)));
        Run<A> runs[RUNS];
        int count = 0;
        long long near = 0, all = 0; // elements of the runs that wait, and of those in sums
        auto work = [&] {
            for (long long o = 0; o < a.outs;) {
                A* s = sums + o * SHIFTS * L;
                const A* from = slope + o * t_step;
                if (o + 4 <= a.outs) slopes<A, 4>(s, from, t_step, runs, count), o += 4;
                else if (o + 2 <= a.outs) slopes<A, 2>(s, from, t_step, runs, count), o += 2;
                else slopes<A, 1>(s, from, t_step, runs, count), o++;
            }
            all += near, near = count = 0;
        };
        auto settle = [&] {
            work();
            for (long long r = 0; r < results; r++)
                for (int l = 0; l < L; l++) totals[r] += sums[r * L + l], sums[r * L + l] = 0;
            all = 0;
        };
        for (int row = 0; row < w.y.windows; row++) {
            const A* line[SHIFTS]; // of pixels under each tap, null outside
            int tap[SHIFTS], first = 0, last = w.x.windows; // windows between them have all these taps in the image
            for (int k = 0; k < many; k++) {
                const long long channel = (start + k) / taps;
                tap[k] = int((start + k) % taps % w.x.taps);
                const int y = pixel(w.y, row, int((start + k) % taps / w.x.taps));
                line[k] = within(w.y, y) ? x + ((group * a.ins + channel) * w.plane() + (long long)y * w.x.pixels) * n : nullptr;
                while (line[k] && first < last && pixel(w.x, first, tap[k]) < 0) first++;
                while (line[k] && first < last && pixel(w.x, last - 1, tap[k]) >= w.x.pixels) last--;
            }
            for (int column = 0, next; column < w.x.windows; column = next) {
                next = column == first && first < last && w.x.stride == 1 ? last : column + 1;
                Run<A>& run = runs[count++];
                run.t = ((long long)row * w.x.windows + column) * n, run.length = (next - column) * n;
                for (int k = 0; k < SHIFTS; k++) {
                    const int at = k < many ? pixel(w.x, column, tap[k]) : -1;
                    run.x[k] = within(w.x, at) && line[k] ? line[k] + at * n : zeros;
                }
                if ((near += run.length) >= NEAR || count == RUNS) work();
                if (all >= EXACT) settle();
            }
        }
        settle();
        A* out = static_cast<A*>(a.out) + group * a.outs * shifts + start;
        for (long long o = 0; o < a.outs; o++)
            for (long long k = 0; k < many; k++) out[o * shifts + k] = A(totals[o * SHIFTS + k]);
        __builtin_free(totals), __builtin_free(sums);
    });
    return -1;
}

// --- pooling ----------------------------------------------------------------------------------------------------------

template <class A> static long long max_pool2d(const Conv& a) {
    const Windows& w = a.windows;
    const long long n = a.n, rows = w.y.windows;
    const A* x = batch_last<A>(a.x, n, a.ins, w.y.pixels, w.x.pixels);
    A* out = static_cast<A*>(a.out);
    parallel(a.ins * rows, [&](long long i) {
        const A* plane = x + i / rows * w.plane() * n;
        for (int column = 0; column < w.x.windows; column++) {
            A* y = out + (i * w.x.windows + column) * n;
            fill_row(y, n, [](long long) { return -A(GG_INFINITY); });
            under(w, int(i % rows), column, [&](long long p, int) {
                const A* v = plane + p * n;
                fill_row(y, n, [=](long long k) { return v[k] > y[k] || v[k] != v[k] ? v[k] : y[k]; });
                return true;
            });
        }
    });
    return -1;
}

// To the first pixel of a window that holds its maximum.
template <class A> static long long max_pool2d_bwd(const Conv& a) {
    const Windows& w = a.windows;
    const long long n = a.n;
    const A* x = batch_last<A>(a.x, n, a.ins, w.y.pixels, w.x.pixels);
    const A* t = batch_last<A>(a.t, n, a.ins, w.y.windows, w.x.windows);
    const A* y = batch_last<A>(a.y, n, a.ins, w.y.windows, w.x.windows);
    parallel(a.ins, [&](long long channel) {
        constexpr int SOME = 64;
        const A *pixels = x + channel * w.plane() * n, *u = t + channel * w.count() * n;
        const A* most = y + channel * w.count() * n;
        A* out = static_cast<A*>(a.out) + channel * w.plane() * n;
        fill_row(out, w.plane() * n, [](long long) { return A(0); });
        for (int row = 0; row < w.y.windows; row++)
            for (int column = 0; column < w.x.windows; column++, u += n, most += n)
                for (long long first = 0; first < n; first += SOME) {
                    const int m = n - first < SOME ? n - first : SOME;
                    A left[SOME]; // what has not found its pixel
                    for (int i = 0; i < m; i++) left[i] = 1;
                    under(w, row, column, [&](long long p, int) {
                        const A *v = pixels + p * n + first, *top = most + first, *s = u + first;
                        A* g = out + p * n + first;
#pragma omp simd
                        for (int i = 0; i < m; i++) {
                            const bool hit = (left[i] != 0) & ((v[i] == top[i]) | (v[i] != v[i]));
                            g[i] += hit ? s[i] : A(0);
                            left[i] = hit ? A(0) : left[i];
                        }
                        return true;
                    });
                }
    });
    return -1;
}

// --- batch norm -------------------------------------------------------------------------------------------------------
//
// A channel is one stretch of `cols` elements, in whatever order its other axes lie. w and b may be null. Forward: out, mean,
// var and, for the backward pass, mean (to `again`) and rstd are written; backward: out = dx, dw and db.

struct BatchNorm { void *out, *mean, *var, *again, *rstd, *dw, *db; const void *x, *w, *b, *t; long long rows, cols; double eps; };

template <class A> static long long batch_norm(const BatchNorm& a) {
    const long long n = a.cols;
    parallel(a.rows, [&](long long row) {
        const A *x = static_cast<const A*>(a.x) + row * n, *w = static_cast<const A*>(a.w), *b = static_cast<const A*>(a.b);
        const A mean = A(sum_of<A>(n, [=](long long i) { return x[i]; }) / n);
        const A var = A(sum_of<A>(n, [=](long long i) { return (x[i] - mean) * (x[i] - mean); }) / n);
        const A rstd = 1 / A(sqrt(double(var + A(a.eps)))), scale = w ? w[row] * rstd : rstd, shift = b ? b[row] : A(0);
        fill_row(static_cast<A*>(a.out) + row * n, n, [=](long long i) { return (x[i] - mean) * scale + shift; });
        static_cast<A*>(a.mean)[row] = static_cast<A*>(a.again)[row] = mean;
        static_cast<A*>(a.var)[row] = var, static_cast<A*>(a.rstd)[row] = rstd;
    });
    return -1;
}

template <class A> static long long batch_norm_bwd(const BatchNorm& a) {
    const long long n = a.cols;
    parallel(a.rows, [&](long long row) {
        const A *x = static_cast<const A*>(a.x) + row * n, *t = static_cast<const A*>(a.t) + row * n;
        const A mean = static_cast<const A*>(a.mean)[row], rstd = static_cast<const A*>(a.rstd)[row];
        const A scale = a.w ? static_cast<const A*>(a.w)[row] * rstd : rstd;
        const double along = sum_of<A>(n, [=](long long i) { return t[i] * ((x[i] - mean) * rstd); });
        const double level = sum_of<A>(n, [=](long long i) { return t[i]; });
        const A slope = A(along / n) * rstd, offset = A(level / n);
        fill_row(static_cast<A*>(a.out) + row * n, n, [=](long long i) { return (t[i] - (x[i] - mean) * slope - offset) * scale; });
        if (a.w) static_cast<A*>(a.dw)[row] = A(along), static_cast<A*>(a.db)[row] = A(level);
    });
    return -1;
}
