// Rows added up at row numbers: out[r] = sum of t[order[j]] over the j with ids[j] = r. Launched by gpugrad/ops/index.py.
//
// t: n rows of `width` elements; ids: n row numbers, equal ones side by side; order: the row of t at each place, or null
// for 0, 1, 2 ...; out: rows of `width`, zero where no id points. Moves 2 n width elements at most.
// One thread an element of a segment's first row; it adds the segment up in order, so the bits never vary and are those
// of the loop over t. Tried: atomics (bits vary from run to run); a binary search for each output row (reads ids more).
// A single id repeated n times is one long segment, summed by `width` threads.
#include "common.cuh"

template <class T>
__global__ void scatter_rows(T* out, const T* t, const long long* ids, const long long* order, long long n, long long width) {
    Team team = whole_grid();
    for (long long i = team.rank; i < n * width; i += team.size) {
        long long first = i / width, column = i % width, id = ids[first];
        if (first > 0 && ids[first - 1] == id) continue;
        Acc<T> sum = 0;
        for (long long j = first; j < n && ids[j] == id; j++) sum += widen(t[(order ? order[j] : j) * width + column]);
        out[id * width + column] = narrow<T>(sum);
    }
}
