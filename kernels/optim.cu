// One optimiser step of many parameters in one launch. Launched by gpugrad/ops/optim.py.
//
//   update: (p, states) = F(p, g, states) for every element of every tensor of the table; F and its formula: functors.cuh.
//
// p, g: of type T; states: of the type computed in, Acc<T>. All contiguous, of any size and alignment. Coefficients that depend
// on the learning rate and on a tensor's step count (both double, in device memory) are formed once a block, in double.
// The block that finishes last counts the steps: step[number] += 1, and moves on Nadam's product of momenta. A skip that
// is not 0 leaves everything as it is. Average has no p and reads the parameter as g; Clamp has nothing but p.
// Moves p and every state twice, g once: for AdamW in float 28 bytes an element.
//
// Versions: a launch a tensor (a model of small tensors waits for launches); counts in a launch of their own (one more
// launch a step). The table is passed by value because a copy of it could not be captured. Chunks make
// the blocks' work even whatever the sizes are. Elements go in runs of as many as 16 bytes of T hold.
#include "functors.cuh"
#include "optim.cuh"

// F: Sgd, Momentum, Adagrad, Adadelta, RmsProp, RmsPropMomentum, RmsPropCentered, RmsPropBoth, Adam, AmsGrad, Adamax, Nadam, Average, Clamp

struct Settings { double v[6]; };
static_assert(sizeof(Table) + sizeof(Settings) + 4 * sizeof(void*) + sizeof(int) <= 4096, "more than a launch's parameters hold");

// N neighbours; several are read and written 16 bytes at a time.
template <class T, int N> struct __align__(N == 1 ? sizeof(T) : 16) Run { T v[N]; };

template <int N, class T> __device__ __forceinline__ Run<T, N> load(const T* p) { return *reinterpret_cast<const Run<T, N>*>(p); }
template <int N, class T> __device__ __forceinline__ void store(T* p, Run<T, N> r) { *reinterpret_cast<Run<T, N>*>(p) = r; }

// The arrays of one tensor.
template <class T, class F> struct Arrays {
    static constexpr int S = F::states, K = F::param + F::grad + S;
    T* p = nullptr;
    const T* g = nullptr;
    Acc<T>* s[S + 1] = {};

    __device__ __forceinline__ Arrays(const Table& table, int i) {
        if (F::param) p = own_array<T>(table, 0, i);
        if (F::grad) g = own_array<T>(table, F::param, i);
#pragma unroll
        for (int r = 0; r < S; r++) s[r] = own_array<Acc<T>>(table, F::param + F::grad + r, i);
    }

    __device__ __forceinline__ bool in_line() const {
        bool all = aligned(p, g);
#pragma unroll
        for (int r = 0; r < S; r++) all = all && aligned(s[r]);
        return all;
    }

    template <int N> __device__ __forceinline__ void step(long long k, const Acc<T>* c) const {
        Run<T, N> x, y;
        Run<Acc<T>, N> z[S + 1];
        if (F::param) x = load<N>(p + k);
        if (F::grad) y = load<N>(g + k);
#pragma unroll
        for (int r = 0; r < S; r++) z[r] = load<N>(s[r] + k);
#pragma unroll
        for (int j = 0; j < N; j++) {
            Acc<T> w = F::param ? widen(x.v[j]) : Acc<T>(0), d = F::grad ? widen(y.v[j]) : Acc<T>(0), m[S + 1];
#pragma unroll
            for (int r = 0; r < S; r++) m[r] = z[r].v[j];
            F::step(w, d, m, c);
            if (F::param) x.v[j] = narrow<T>(w);
#pragma unroll
            for (int r = 0; r < S; r++) z[r].v[j] = m[r];
        }
        if (F::param) store<N>(p + k, x);
#pragma unroll
        for (int r = 0; r < S; r++) store<N>(s[r] + k, z[r]);
    }
};

__device__ unsigned tickets[1024]; // blocks of a running launch that are done, 0 between launches

// Whether this is the last block of its launch to come here: none reads the counts any more.
__device__ __forceinline__ bool last_block(int slot) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(&tickets[slot], gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

template <class T, class F>
__global__ void update(Table table, Settings o, double* step, double* product, const double* lr, const int* skip, int slot) {
    constexpr int N = Packet<T>::N, K = Arrays<T, F>::K;
    if (skip && *skip) return;
    __shared__ Acc<T> c[8];
    Chunk at = own_chunk<K>(table);
    int number = own_number<K>(table, at.i);
    if (threadIdx.x == 0) F::prepare(c, o.v, Clock{lr ? *lr : 0, step ? step[number] + 1 : 0, product ? product[number] : 0});
    __syncthreads();
    Arrays<T, F> arrays(table, at.i);
    long long size = at.end - at.begin, runs = arrays.in_line() ? at.begin + size / N * N : at.begin;
    for (long long k = at.begin + threadIdx.x * N; k < runs; k += blockDim.x * N) arrays.template step<N>(k, c);
    for (long long k = runs + threadIdx.x; k < at.end; k += blockDim.x) arrays.template step<1>(k, c);
    if (!step || !last_block(slot)) return;
    for (int i = threadIdx.x; i < table.count; i += blockDim.x) {
        int n = own_number<K>(table, i);
        step[n] += 1;
        if (product) product[n] *= F::momentum(o.v, step[n]);
    }
}
