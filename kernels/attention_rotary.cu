// Rotary position embedding: the pair (a, b) of features becomes (a cos - b sin, a sin + b cos), and nothing else changes.
// Launched by gpugrad/ops/attention.py, by its own backward too, with -sin.
//
// x, out: rows of `depth` features, row r at position r % positions; cosine, sine: (positions, depth / 2). Feature i is
// paired with i + depth / 2, or 2 i with 2 i + 1 where interleaved. `pairs` in all. Reads x once, and the angles, which a
// cache holds, once for every head; writes out. Where a packet of pairs lies in two packets of x, a thread moves both;
// interleaved pairs are neighbours, and one thread a pair already fills whole sectors.
#include "common.cuh"

template <class T>
__global__ void rotary(T* out, const T* x, const T* cosine, const T* sine, long long pairs, int positions, int depth, bool interleaved) {
    using A = Acc<T>;
    constexpr int N = Packet<T>::N;
    int half = depth / 2;
    Team team = whole_grid();
    if (!interleaved && half % N == 0 && aligned(out, x, cosine, sine)) {
        for (long long i = team.rank * N; i < pairs; i += team.size * N) {
            long long row = i / half, at = row * depth + i % half, angle = row % positions * half + i % half;
            Packet<T> a = packet(x + at), b = packet(x + at + half), c = packet(cosine + angle), s = packet(sine + angle);
            Packet<T> first = apply<T>([](long long, A a, A b, A c, A s) { return a * c - b * s; }, 0, a, b, c, s);
            Packet<T> second = apply<T>([](long long, A a, A b, A c, A s) { return a * s + b * c; }, 0, a, b, c, s);
            store(out + at, first);
            store(out + at + half, second);
        }
        return;
    }
    for (long long i = team.rank; i < pairs; i += team.size) {
        long long row = i / half, pair = i % half, angle = row % positions * half + pair;
        long long one = row * depth + (interleaved ? 2 * pair : pair), other = one + (interleaved ? 1 : half);
        A a = widen(x[one]), b = widen(x[other]), c = widen(cosine[angle]), s = widen(sine[angle]);
        out[one] = narrow<T>(a * c - b * s);
        out[other] = narrow<T>(a * s + b * c);
    }
}
