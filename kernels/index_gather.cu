// Slices of x (outer, rows, width) at row numbers: out[o, j, :] = x[o, ids[j], :]. Launched by gpugrad/ops/index.py.
//
// ids: `picks` numbers from -rows (with `wrap`, else from 0) to rows - 1, a negative one counting from the end. Any other
// leaves ones in every bit of its slices, which is NaN, and with a box its place and value there. width: elements.
// Nothing is computed with T: it stands for every type of its size. Moves each slice once, in packets where rows lie on 16
// bytes, a thread a packet or element, so that neighbours read neighbours. Considered: a team a slice (idle for short ones),
// checking the ids in a pass of their own (reads them again).
// T: float, double, __half, unsigned char
#include "common.cuh"

template <class T> __device__ __forceinline__ T all_ones() {
    T r;
    auto& bytes = reinterpret_cast<unsigned char (&)[sizeof(T)]>(r);
    for (int k = 0; k < int(sizeof(T)); k++) bytes[k] = 255;
    return r;
}

template <class T, class I>
__global__ void gather(T* out, const T* x, const I* ids, long long outer, long long picks, long long rows, long long width,
                       bool wrap, Mailbox* box, int site) {
    using Wide = Packet<T>;
    bool packets = aligned(out, x) && width % Wide::N == 0;
    long long step = packets ? Wide::N : 1, units = width / step;
    Team team = whole_grid();
    for (long long i = team.rank; i < outer * picks * units; i += team.size) {
        long long slice = quotient(i, units), unit = i - slice * units, o = quotient(slice, picks), pick = slice - o * picks;
        long long id = ids[pick], row = wrap && id < 0 ? id + rows : id;
        bool valid = row >= 0 && row < rows;
        if (!valid && box && unit == 0 && o == 0) report(box, site, pick, id);
        long long from = (o * rows + row) * width + unit * step;
        if (packets) reinterpret_cast<Wide*>(out)[i] = valid ? packet(x + from) : all_ones<Wide>();
        else out[i] = valid ? x[from] : all_ones<T>();
    }
}

// Row numbers times `weight`, those from the end counted from the start: what an index array adds to flat positions. A number
// out of range becomes one so negative that no sum with others is a position, and its place and value go to the box.
template <class I>
__global__ void place(long long* out, const I* ids, long long n, long long rows, long long weight, Mailbox* box, int site) {
    Team team = whole_grid();
    for (long long i = team.rank; i < n; i += team.size) {
        long long id = ids[i], row = id < 0 ? id + rows : id;
        bool valid = row >= 0 && row < rows;
        if (!valid) report(box, site, i, id);
        out[i] = valid ? row * weight : -(1ll << 56);
    }
}
