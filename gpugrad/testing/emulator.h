// CUDA C++ on a CPU, for tests: included in front of an unchanged .cu file, compiled by g++ and linked with emulator.cpp.
//
// One fiber is one CUDA thread; one block runs at a time on one OS thread, so a run is deterministic for a given
// schedule. Barriers and warp collectives have CUDA's semantics: a thread that waits gives way, a barrier opens when
// every thread of the block is at it, a collective when every lane of its mask is. What real hardware leaves
// undefined is an error that names the thread and the line, or poison (0xFF bytes: NaN, -1).
//
// What stands here is the device library as kernels see it. What it needs of the machine is in namespace emu, made by
// emulator.cpp: that file is compiled without instrumentation, so a checked kernel is watched and its tester is not.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// --- qualifiers and built-in types ---------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __constant__ static
#define __shared__ thread_local // at block scope: static storage; the library's TLS image is the block's shared memory
#define __CUDA_EMULATOR__ 1

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
#define EMU_VECTOR(T, N) \
    struct alignas(2 * sizeof(T)) N##2 { T x, y; }; \
    struct N##3 { T x, y, z; }; \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; }; \
    static inline N##2 make_##N##2(T x, T y) { return {x, y}; } \
    static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; } \
    static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 emu_uint3 // the vector macro would define them again
#define make_uint3 emu_make_uint3
EMU_VECTOR(char, char) EMU_VECTOR(unsigned char, uchar) EMU_VECTOR(short, short) EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(int, int) EMU_VECTOR(unsigned, uint) EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong) EMU_VECTOR(float, float) EMU_VECTOR(double, double)
#undef uint3
#undef make_uint3
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// --- the machine, see emulator.cpp ----------------------------------------------------------------------------------
namespace emu __attribute__((visibility("default"))) {

struct Here { // of the running thread
    uint3 thread, block;
    dim3 block_dim, grid_dim;
    char* dynamic_memory;
};
extern Here here;

enum Use { FREE, OUTPUT, CONSTANT }; // of an array: nothing is known, all must be written, only read and no other's memory
struct Range { uint64_t begin, end, element; int argument, use; };
struct Launch {
    unsigned grid[3], block[3];
    int schedule, reverse_blocks;
    uint64_t shared, seed;
    int checked, strict; // watch every access; whether the ranges are all the memory that the kernel may touch
    uint64_t ranges;
    const Range* range;
};

enum Op { SYNCWARP, SHFL, SHFL_XOR, SHFL_DOWN, SHFL_UP, BALLOT, ANY, ALL, MATCH_ANY, REDUCE };
enum Vote { COUNT, AND, OR };
enum Reduction { ADD, MIN, MAX, BIT_AND, BIT_OR, BIT_XOR };

int barrier(int predicate, Vote vote, const char* file, int line);
unsigned lane();
// Publish a value to the lanes of `mask`, wait for all of them, and get that of lane `from`, poison if it is not in mask.
uint64_t exchange(unsigned mask, uint64_t value, int from, Op op, const char* file, int line);
unsigned ballot(unsigned mask, bool predicate, Op op, const char* file, int line);
unsigned match(unsigned mask, uint64_t value, const char* file, int line);
int64_t reduce(unsigned mask, int64_t value, Reduction how, const char* file, int line);
void give_way(const char* file, int line); // let the others run: this thread spins
void fence();
void atomic(const volatile void* address, size_t size, void* pc); // an atomic access is about to happen
const char* launch(void (*run)(void**), void** args, const Launch* how);
void describe(char* text, char kind, size_t size);

#define EMU_AT const char* file = __builtin_FILE(), int line = __builtin_LINE()

template <class T> static inline uint64_t pack(T v) {
    static_assert(sizeof(T) <= 8, "a warp collective exchanges at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    return bits;
}
template <class T> static inline T unpack(uint64_t bits) {
    T v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// --- signatures and entry points ----------------------------------------------------------------------------------
template <class A> static void describe_parameter(char* text) {
    using T = std::remove_cv_t<A>;
    if constexpr (std::is_pointer_v<T>) {
        using P = std::remove_pointer_t<T>;
        describe(text, std::is_pointer_v<P> ? 'P' : std::is_const_v<P> ? 'c' : 'p', sizeof(std::conditional_t<std::is_void_v<P>, char, P>));
    } else {
        describe(text, std::is_same_v<T, bool> ? 'b' : std::is_floating_point_v<T> ? 'f' : !std::is_integral_v<T> ? 's' :
                       std::is_signed_v<T> ? 'i' : 'u', sizeof(T));
    }
}
template <class... A> static const char* signature(void (*)(A...)) {
    static char text[64 * (sizeof...(A) + 1)];
    text[0] = 0;
    (describe_parameter<A>(text), ...);
    return text;
}
template <class... A, size_t... I>
__attribute__((no_sanitize("thread"))) static void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
    f(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <class... A> static void invoke(void (*f)(A...), void** args) { call(f, args, std::index_sequence_for<A...>()); }

} // namespace emu

static thread_local volatile char emu_touch; // makes sure that the library has a TLS image, and that it is allocated
#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
#define EMU_ENTRY(id, ...) \
    static void emu_body_##id(void** args) { emu::invoke(&__VA_ARGS__, args); } \
    EMU_EXPORT const char* emu_signature_##id() { return emu::signature(&__VA_ARGS__); } \
    EMU_EXPORT const char* emu_launch_##id(void** args, const emu::Launch* how) { \
        emu_touch = 1; \
        return emu::launch(&emu_body_##id, args, how); \
    }

// --- the device library -----------------------------------------------------------------------------------------
#define threadIdx (emu::here.thread)
#define blockIdx (emu::here.block)
#define blockDim (emu::here.block_dim)
#define gridDim (emu::here.grid_dim)
static constexpr int warpSize = 32;

static inline void __syncthreads(EMU_AT) { emu::barrier(0, emu::COUNT, file, line); }
static inline int __syncthreads_count(int p, EMU_AT) { return emu::barrier(p, emu::COUNT, file, line); }
static inline int __syncthreads_and(int p, EMU_AT) { return emu::barrier(p, emu::AND, file, line); }
static inline int __syncthreads_or(int p, EMU_AT) { return emu::barrier(p, emu::OR, file, line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT) { emu::exchange(mask, 0, 0, emu::SYNCWARP, file, line); }

#define EMU_SHUFFLE(name, op, Amount, from) \
    template <class T> static inline T name(unsigned mask, T v, Amount by, int width = 32, EMU_AT) { \
        int lane = emu::lane(), first = lane / width * width, at = from; \
        return emu::unpack<T>(emu::exchange(mask, emu::pack(v), at, emu::op, file, line)); \
    }
EMU_SHUFFLE(__shfl_sync, SHFL, int, first + ((by % width) + width) % width)
EMU_SHUFFLE(__shfl_xor_sync, SHFL_XOR, int, (lane ^ by) >= first + width ? lane : lane ^ by)
EMU_SHUFFLE(__shfl_down_sync, SHFL_DOWN, unsigned, lane + int(by) >= first + width ? lane : lane + int(by))
EMU_SHUFFLE(__shfl_up_sync, SHFL_UP, unsigned, lane - int(by) < first ? lane : lane - int(by))

static inline unsigned __ballot_sync(unsigned mask, int p, EMU_AT) { return emu::ballot(mask, p != 0, emu::BALLOT, file, line); }
static inline int __any_sync(unsigned mask, int p, EMU_AT) { return emu::ballot(mask, p != 0, emu::ANY, file, line) != 0; }
static inline int __all_sync(unsigned mask, int p, EMU_AT) { return emu::ballot(mask, p == 0, emu::ALL, file, line) == 0; }
template <class T> static inline unsigned __match_any_sync(unsigned mask, T v, EMU_AT) {
    return emu::match(mask, emu::pack(v), file, line);
}
#define EMU_REDUCE(name, T, how) \
    static inline T name(unsigned mask, T v, EMU_AT) { return T(emu::reduce(mask, v, emu::how, file, line)); }
EMU_REDUCE(__reduce_add_sync, int, ADD) EMU_REDUCE(__reduce_add_sync, unsigned, ADD)
EMU_REDUCE(__reduce_min_sync, int, MIN) EMU_REDUCE(__reduce_min_sync, unsigned, MIN)
EMU_REDUCE(__reduce_max_sync, int, MAX) EMU_REDUCE(__reduce_max_sync, unsigned, MAX)
EMU_REDUCE(__reduce_and_sync, unsigned, BIT_AND) EMU_REDUCE(__reduce_or_sync, unsigned, BIT_OR)
EMU_REDUCE(__reduce_xor_sync, unsigned, BIT_XOR)

// One OS thread runs everything and fibers switch at waits alone, so atomics are plain read-modify-writes that are
// announced. A compare-and-swap that fails gives way: in a spin lock, to the thread that holds it.
#define EMU_UNWATCHED __attribute__((noinline, no_sanitize("thread")))
#define EMU_ATOMIC(name, result) \
    template <class T> EMU_UNWATCHED static T name(T* p, std::common_type_t<T> v) { \
        emu::atomic(p, sizeof(T), __builtin_return_address(0)); \
        T old = *p; \
        *p = result; \
        return old; \
    } \
    template <class T> static inline T name##_block(T* p, std::common_type_t<T> v) { return name(p, v); } \
    template <class T> static inline T name##_system(T* p, std::common_type_t<T> v) { return name(p, v); }
template <class T> static inline T emu_sum(std::common_type_t<T> a, std::common_type_t<T> b) { // integers wrap round
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_integral_v<U>) return U(std::make_unsigned_t<U>(a) + std::make_unsigned_t<U>(b));
    else return a + b;
}
EMU_ATOMIC(atomicAdd, emu_sum<T>(old, v)) EMU_ATOMIC(atomicSub, emu_sum<T>(old, T(0) - v)) EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMax, old < v ? v : old) EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicOr, T(old | v)) EMU_ATOMIC(atomicAnd, T(old & v)) EMU_ATOMIC(atomicXor, T(old ^ v))
EMU_ATOMIC(atomicInc, old >= v ? T(0) : T(old + 1)) EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : T(old - 1))
template <class T>
EMU_UNWATCHED static T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v, EMU_AT) {
    emu::atomic(p, sizeof(T), __builtin_return_address(0));
    T old = *p;
    if (old == expected) *p = v;
    else emu::give_way(file, line);
    return old;
}
static inline void __threadfence() { emu::fence(); }
static inline void __threadfence_block() { emu::fence(); }
static inline void __threadfence_system() { emu::fence(); }
static inline void __nanosleep(unsigned, EMU_AT) { emu::give_way(file, line); }

#define EMU_WITHIN static inline __attribute__((always_inline)) // an error names the line of the kernel
#define EMU_LOAD(name) template <class T> EMU_WITHIN T name(const T* p) { return *p; }
EMU_LOAD(__ldg) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
#define EMU_STORE(name) template <class T> EMU_WITHIN void name(T* p, std::common_type_t<T> v) { *p = v; }
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)

// Bit casts, integer intrinsics; the fast float intrinsics are the exact functions here.
#define EMU_CAST(name, To, From) static inline To name(From v) { return emu::unpack<To>(emu::pack(v)); }
EMU_CAST(__int_as_float, float, int) EMU_CAST(__float_as_int, int, float) EMU_CAST(__uint_as_float, float, unsigned)
EMU_CAST(__float_as_uint, unsigned, float) EMU_CAST(__longlong_as_double, double, long long)
EMU_CAST(__double_as_longlong, long long, double)
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
static inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __ffsll(long long v) { return __builtin_ffsll(v); }
static inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
    return r;
}
#define __expf(x) std::exp(float(x)) // macros: glibc declares functions of these names
#define __exp10f(x) std::pow(10.0f, float(x))
#define __logf(x) std::log(float(x))
#define __log2f(x) std::log2(float(x))
#define __log10f(x) std::log10(float(x))
#define __powf(x, y) std::pow(float(x), float(y))
#define __sinf(x) std::sin(float(x))
#define __cosf(x) std::cos(float(x))
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
using std::isfinite;
using std::isinf;
using std::isnan;
#define EMU_MINMAX(T) \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MINMAX(int) EMU_MINMAX(unsigned) EMU_MINMAX(long long) EMU_MINMAX(unsigned long long) EMU_MINMAX(long) EMU_MINMAX(unsigned long)
static inline float max(float a, float b) { return std::fmax(a, b); }
static inline float min(float a, float b) { return std::fmin(a, b); }
static inline double max(double a, double b) { return std::fmax(a, b); }
static inline double min(double a, double b) { return std::fmin(a, b); }

// 16-bit floats: storage and conversions (round to nearest, ties to even), as cuda_fp16.h and cuda_bf16.h name them.
struct __half { unsigned short bits; };
struct __nv_bfloat16 { unsigned short bits; };
typedef __half half;
static inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(unsigned(h.bits) << 16); }
static inline __nv_bfloat16 __float2bfloat16(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __float2bfloat16(x); }
static inline float __half2float(__half h) {
    unsigned sign = unsigned(h.bits & 0x8000) << 16, e = h.bits >> 10 & 31, m = h.bits & 1023;
    float value = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp(float(m + 1024), int(e) - 25) : std::ldexp(float(m), -24);
    return sign ? -value : value;
}
static inline __half __float2half(float x) {
    unsigned short sign = __float_as_uint(x) >> 16 & 0x8000;
    float a = std::fabs(x);
    if (x != x) return {0x7fff};
    if (a >= 65520.0f) return {(unsigned short)(sign | 0x7c00)};
    if (a < 0x1p-14f) return {(unsigned short)(sign | (unsigned short)std::nearbyint(std::ldexp(a, 24)))};
    unsigned u = __float_as_uint(a);
    return {(unsigned short)(sign | ((u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13))};
}
static inline __half __float2half_rn(float x) { return __float2half(x); }
