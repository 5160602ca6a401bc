// Rows added up at row numbers: out[r] = sum of t[order[j]] over the j with ids[j] = r. Launched by gpugrad/ops/index.py.
//
// t: n rows of `width` elements; ids: n row numbers, equal ones side by side, those outside 0 <= id < rows dropped; order: the
// row of t at each place, or null for 0, 1, 2 ...; out: `rows` rows, zero where no id points. Moves 2 n width elements at most.
// A run of equal ids is cut into pieces of `piece` places, from its first one on. A thread adds up a packet, or an element, of
// a piece in order; the sum goes to out, or, of a run of several pieces, to `parts`, and scatter_long adds those up in order.
// So no bit depends on the schedule, and a run of one piece is the loop over t. starts: the first place of each place's run,
// needed (else null) where n is larger than `piece`.
// Tried: atomics (bits vary from run to run); one thread for a whole run (a single id repeated n times is n steps).
// A piece has its own row of parts: of two that start between the same multiples of `piece` the first one is short.
#include "common.cuh"

// Packets where rows lie on 16 bytes, else elements.
template <class T> struct Units {
    long long number, step; // of a row; elements in one
    template <class... P> __device__ __forceinline__ Units(long long width, P... p) {
        step = aligned(p...) && width % Packet<T>::N == 0 ? Packet<T>::N : 1, number = width / step;
    }
};

template <class T, class A> __device__ __forceinline__ void put(T* out, const A* sum, long long step) {
    if (step == 1) { out[0] = narrow<T>(sum[0]); return; }
    Packet<T> p;
#pragma unroll
    for (int k = 0; k < Packet<T>::N; k++) p.v[k] = narrow<T>(sum[k]);
    *reinterpret_cast<Packet<T>*>(out) = p;
}

template <class T>
__global__ void scatter_rows(T* out, Acc<T>* parts, const T* t, const long long* ids, const long long* order,
                             const long long* starts, long long n, long long rows, long long width, long long piece) {
    constexpr int N = Packet<T>::N;
    Units<T> units(width, out, t);
    Team team = whole_grid();
    for (long long i = team.rank; i < n * units.number; i += team.size) {
        long long first = quotient(i, units.number), column = (i - first * units.number) * units.step, id = ids[first];
        bool run = first == 0 || ids[first - 1] != id;
        if (id < 0 || id >= rows || (!run && !starts)) continue;
        if (!run && (first - starts[first]) % piece) continue;
        Acc<T> sum[N] = {};
        long long end = first;
        for (; end < n && end < first + piece && ids[end] == id; end++) {
            const T* v = t + (order ? order[end] : end) * width + column;
            if (units.step == 1) {
                sum[0] += widen(*v);
                continue;
            }
            Packet<T> p = packet(v);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += widen(p.v[k]);
        }
        if (run && (end == n || ids[end] != id)) {
            put(out + id * width + column, sum, units.step);
            continue;
        }
        Acc<T>* part = parts + (2 * quotient(first, piece) + (end < first + piece)) * width + column;
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < units.step) part[k] = sum[k];
    }
}

// A run of several pieces starts at most once between two multiples of `piece`, and is the one that holds the second.
template <class T>
__global__ void scatter_long(T* out, const Acc<T>* parts, const long long* ids, const long long* starts, long long n,
                             long long rows, long long width, long long piece) {
    Team team = whole_grid();
    for (long long i = team.rank; i < (n - 1) / piece * width; i += team.size) {
        long long multiple = quotient(i, width), column = i - multiple * width, last = (multiple + 1) * piece;
        long long first = starts[last], id = ids[last];
        if (first < multiple * piece || first == last || id < 0 || id >= rows) continue;
        if (first + piece >= n || ids[first + piece] != id) continue;
        Acc<T> sum = 0;
        for (long long j = first; j < n && ids[j] == id; j += piece) {
            bool cut = j + piece > n || ids[j + piece - 1] != id;
            sum += parts[(2 * quotient(j, piece) + cut) * width + column];
        }
        out[id * width + column] = narrow<T>(sum);
    }
}
