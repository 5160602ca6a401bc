// What every kernel stands on: storage and accumulation types, shared-out loops in 16-byte packets, reductions.
//
// A kernel is one template over the storage type T; it computes in Acc<T>: double for double, float for the others.
// NVRTC has no standard headers: only int, unsigned, long long and size_t are used, and infinity has a name here.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define GG_INFINITY __int_as_float(0x7f800000)
#define GG_NAN __int_as_float(0x7fc00000)

template <class T> struct Accumulate { using type = float; };
template <> struct Accumulate<double> { using type = double; };
template <class T> using Acc = typename Accumulate<T>::type;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T narrow(Acc<T> x) { return x; }
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

// --- shared-out loops ---------------------------------------------------------------------------------------------

// This thread's number among those that share a piece of work, and how many they are.
struct Team { long long rank, size; };

__device__ __forceinline__ Team whole_grid() {
    return {(long long)blockIdx.x * blockDim.x + threadIdx.x, (long long)gridDim.x * blockDim.x};
}

// The threads of one row: a block is (32, rows) with a warp a row, or (threads, 1) with all its threads on one row.
__device__ __forceinline__ Team row_team() { return {threadIdx.x, blockDim.x}; }
__device__ __forceinline__ long long row_number() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }

// 16 bytes of neighbours, moved by one instruction.
template <class T> struct __align__(16) Packet {
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};

template <class T> __device__ __forceinline__ Packet<T> packet(const T* p) { return *reinterpret_cast<const Packet<T>*>(p); }

// To global memory, by one instruction: an assignment is split up where the compiler cannot rule out a load in between.
template <class T> __device__ __forceinline__ void store(T* p, const Packet<T>& packet) {
    const uint4& w = reinterpret_cast<const uint4&>(packet);
#ifdef __CUDA_EMULATOR__
    *reinterpret_cast<uint4*>(p) = w;
#else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
#endif
}

template <class... P> __device__ __forceinline__ bool aligned(P... p) {
    return ((reinterpret_cast<size_t>(p) | ...) & 15) == 0;
}

// How many of n elements come before packets: those up to the first 16-byte boundary, if all pointers meet it together.
template <class T, class... P> __device__ __forceinline__ long long lead(long long n, const T* first, P... rest) {
    size_t start = reinterpret_cast<size_t>(first);
    if ((0 | ... | (start ^ reinterpret_cast<size_t>(rest))) & 15) return n;
    long long before = (16 - start % 16) % 16 / sizeof(T);
    return before < n ? before : n;
}

template <class F, class P, class... Ps> __device__ __forceinline__ void visit(F f, long long i, P p, Ps... ps) {
#pragma unroll
    for (int k = 0; k < P::N; k++) f(i + k, widen(p.v[k]), widen(ps.v[k])...);
}

template <class T, class F, class... Ps> __device__ __forceinline__ Packet<T> apply(F f, long long i, Ps... ps) {
    Packet<T> r;
#pragma unroll
    for (int k = 0; k < Packet<T>::N; k++) r.v[k] = narrow<T>(f(i + k, widen(ps.v[k])...));
    return r;
}

// f(i, in[i]...) for every i < n, widened; packets between a scalar head and a scalar tail.
template <class T, class F, class... In>
__device__ __forceinline__ void each(Team team, long long n, F f, const T* first, const In*... in) {
    constexpr int N = Packet<T>::N;
    long long head = lead(n, first, in...), body = head + (n - head) / N * N;
    for (long long i = team.rank; i < head; i += team.size) f(i, widen(first[i]), widen(in[i])...);
    for (long long i = head + team.rank * N; i < body; i += team.size * N) visit(f, i, packet(first + i), packet(in + i)...);
    for (long long i = body + team.rank; i < n; i += team.size) f(i, widen(first[i]), widen(in[i])...);
}

// out[i] = f(i, in[i]...) for every i < n: the loop of every elementwise kernel, and of a row's results.
template <class T, class F, class... In>
__device__ __forceinline__ void fill(Team team, T* out, long long n, F f, const In*... in) {
    constexpr int N = Packet<T>::N;
    long long head = lead(n, out, in...), body = head + (n - head) / N * N;
    for (long long i = team.rank; i < head; i += team.size) out[i] = narrow<T>(f(i, widen(in[i])...));
    for (long long i = head + team.rank * N; i < body; i += team.size * N)
        store(out + i, apply<T>(f, i, packet(in + i)...));
    for (long long i = body + team.rank; i < n; i += team.size) out[i] = narrow<T>(f(i, widen(in[i])...));
}

// --- reductions over the threads of a row ---------------------------------------------------------------------------

struct Plus { template <class A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; } };
struct Larger { template <class A> __device__ __forceinline__ A operator()(A a, A b) const { return a > b ? a : b; } };

// The value of the lane at this distance; a struct that is reduced overloads it for its members.
template <class A> __device__ __forceinline__ A exchange(A x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }

template <class A, class Op> __device__ __forceinline__ A reduce_warp(A x, Op op) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) x = op(x, exchange(x, distance));
    return x;
}

// Every thread of the row gets op over all of them, always in the same order. All threads of the block must call it.
template <class A, class Op> __device__ __forceinline__ A reduce_row(A x, Op op, A identity) {
    x = reduce_warp(x, op);
    if (blockDim.x == 32) return x;
    __shared__ A part[32];
    __syncthreads(); // an earlier reduction may still be read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return reduce_warp(threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : identity, op);
}

// --- errors -----------------------------------------------------------------------------------------------------------

// Pinned host memory, see gpugrad/backends/mailbox.py: the offender of the lowest row, from the first launch with one.
struct Mailbox { int lock, site; long long row, value; };

__device__ __forceinline__ void report(Mailbox* box, int site, long long row, long long value) {
    for (bool done = false; !done;) {
        if (atomicCAS(&box->lock, 0, 1) != 0) continue;
        volatile Mailbox* letter = box; // another block may have written it
        if (letter->site == 0 || (letter->site == site && row < letter->row)) {
            letter->row = row, letter->value = value;
            letter->site = site;
        }
        __threadfence();
        atomicExch(&box->lock, 0);
        done = true;
    }
}

// --- positions --------------------------------------------------------------------------------------------------------

// a / b of numbers that are not negative: a division of 64 bits costs several of 32.
__device__ __forceinline__ long long quotient(long long a, long long b) {
    return (a | b) >> 32 ? a / b : (long long)(unsigned(a) / unsigned(b));
}
