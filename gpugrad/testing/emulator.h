// CUDA C++ on a CPU, for tests: included in front of an unchanged .cu file, compiled by g++.
//
// One fiber is one CUDA thread; one block runs at a time on one OS thread, so a run is deterministic for a given
// schedule. Barriers and warp collectives have CUDA's semantics: a thread that waits gives way, a barrier opens when
// every thread of the block is at it, a collective when every lane of its mask is. What real hardware leaves
// undefined is an error here that names the thread and the line, or poison (0xFF bytes: NaN, -1).
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// --- qualifiers and built-in types ---------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
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
    static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 emu_uint3 // the vector macro would define it again
EMU_VECTOR(char, char) EMU_VECTOR(unsigned char, uchar) EMU_VECTOR(short, short) EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(int, int) EMU_VECTOR(unsigned, uint) EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong) EMU_VECTOR(float, float) EMU_VECTOR(double, double)
#undef uint3

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

namespace emu {

#define EMU_AT const char* file = __builtin_FILE(), int line = __builtin_LINE()

// --- fibers: a stack switch, by hand on x86-64, ucontext elsewhere ----------------------------------------------
struct Context {
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t uc;
#endif
};
#if defined(__x86_64__)
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.local emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

enum Status { READY, AT_BARRIER, AT_WARP, DONE };
static const char* const STATUS[] = {"ready", "at __syncthreads", "at a warp collective", "exited"};

struct Fiber {
    Context context;
    char* stack = nullptr;
    uint3 index{};
    unsigned lane = 0, warp = 0;
    Status status = READY;
    const char* file = "";
    int line = 0;
    int op = 0, vote = 0;
    unsigned mask = 0;
    uint64_t value = 0, result[32] = {};
};

static constexpr size_t STACK = 128 * 1024;
static std::vector<Fiber> fibers;
static std::vector<char*> stacks;
static Fiber* running;
static Context home;
static void (*entry)(void**);
static void** entry_args;
static char* dynamic_memory;
static std::string failure;
static int votes[3];  // of the last barrier: how many, all, any
static uint64_t random_state;

static inline void leave(Fiber* f) {
#if defined(__x86_64__)
    emu_switch(&f->context.sp, home.sp);
#else
    swapcontext(&f->context.uc, &home.uc);
#endif
    threadIdx = f->index;
}

static inline void enter(Fiber* f) {
    running = f;
    threadIdx = f->index;
#if defined(__x86_64__)
    emu_switch(&home.sp, f->context.sp);
#else
    swapcontext(&home.uc, &f->context.uc);
#endif
}

static std::string who(const Fiber& f) {
    char text[160];
    std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", f.index.x, f.index.y, f.index.z, blockIdx.x,
                  blockIdx.y, blockIdx.z);
    return text;
}

static std::string spot(const char* file, int line) { return std::string(file) + ":" + std::to_string(line); }

[[noreturn]] static void stop(const std::string& message) { // from inside a fiber: report and never come back
    if (failure.empty()) failure = message;
    running->status = DONE;
    for (;;) leave(running);
}

static void fiber_main() {
    Fiber* f = running;
    entry(entry_args);
    f->status = DONE;
    for (;;) leave(f);
}

static void prepare(Fiber& f, char* stack) {
    f.stack = stack;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;                                // a return address: at entry rsp is 8 modulo 16, as after a call
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;    // the six saved registers
    f.context.sp = top;
#else
    getcontext(&f.context.uc);
    f.context.uc.uc_stack.ss_sp = stack;
    f.context.uc.uc_stack.ss_size = STACK;
    makecontext(&f.context.uc, fiber_main, 0);
#endif
}

// --- barrier and warp collectives -------------------------------------------------------------------------------
static void barrier(int vote, const char* file, int line) {
    Fiber* f = running;
    f->status = AT_BARRIER, f->file = file, f->line = line, f->vote = vote;
    leave(f);
}

static void open_barrier() { // every fiber waits at one: same line, or the barrier diverges
    int count = 0;
    for (Fiber& f : fibers) {
        if (f.line != fibers[0].line || std::strcmp(f.file, fibers[0].file) != 0) {
            failure = "divergent __syncthreads: " + who(fibers[0]) + " waits at " + spot(fibers[0].file, fibers[0].line) + ", " +
                      who(f) + " at " + spot(f.file, f.line);
            return;
        }
        count += f.vote != 0;
    }
    votes[0] = count, votes[1] = count == int(fibers.size()), votes[2] = count != 0;
    for (Fiber& f : fibers) f.status = READY;
}

static unsigned present(unsigned warp) { // lanes of this warp that the block has at all
    size_t first = size_t(warp) * 32, n = fibers.size() - first;
    return n >= 32 ? 0xffffffffu : (1u << n) - 1;
}

// Publish a value to the lanes of `mask`, wait for all of them, and get theirs; lanes outside are poison.
static const uint64_t* meet(unsigned mask, uint64_t value, int op, const char* name, const char* file, int line) {
    Fiber* f = running;
    unsigned needed = mask & present(f->warp);
    if (!(mask >> f->lane & 1))
        stop(std::string(name) + " at " + spot(file, line) + ": " + who(*f) + " is lane " + std::to_string(f->lane) +
             ", which its own mask leaves out");
    f->status = AT_WARP, f->file = file, f->line = line, f->op = op, f->mask = mask, f->value = value;
    Fiber* lanes = &fibers[size_t(f->warp) * 32];
    bool complete = true;
    for (unsigned i = 0; i < 32; i++) {
        if (!(needed >> i & 1)) continue;
        const Fiber& g = lanes[i];
        if (g.status == DONE)
            stop(std::string(name) + " at " + spot(file, line) + ": " + who(*f) + " waits for lane " + std::to_string(i) +
                 ", which has exited");
        if (g.status != AT_WARP) complete = false;
        else if (g.mask != mask || g.op != op || g.line != line) {
            if (g.mask & (1u << f->lane) || mask >> i & 1)
                stop(std::string(name) + " at " + spot(file, line) + ": " + who(*f) + " waits for lane " + std::to_string(i) +
                     ", which is at a different collective or mask at " + spot(g.file, g.line));
        }
    }
    if (!complete) {
        leave(f);
        return f->result;
    }
    for (unsigned i = 0; i < 32; i++) {
        if (!(needed >> i & 1)) continue;
        for (unsigned j = 0; j < 32; j++) lanes[i].result[j] = needed >> j & 1 ? lanes[j].value : ~0ull;
        lanes[i].status = READY;
    }
    return f->result;
}

template <class T> static uint64_t pack(T v) {
    static_assert(sizeof(T) <= 8, "a warp collective exchanges at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    return bits;
}
template <class T> static T unpack(uint64_t bits) {
    T v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
template <class T> static T shuffle(unsigned mask, T v, int from, int op, const char* name, const char* file, int line) {
    const uint64_t* all = meet(mask, pack(v), op, name, file, line);
    return from < 0 || from > 31 ? v : unpack<T>(all[from]);
}

// --- the scheduler ----------------------------------------------------------------------------------------------
enum Schedule { NATURAL, REVERSED, RANDOM };

static uint64_t next_random() { // xorshift64*
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return random_state * 2685821657736338717ull;
}

static void run_block(int schedule) {
    size_t n = fibers.size();
    std::vector<size_t> order(n);
    for (;;) {
        size_t ready = 0, waiting = 0;
        for (size_t i = 0; i < n; i++) {
            Fiber& f = fibers[i];
            if (f.status == READY) order[ready++] = i;
            waiting += f.status == AT_BARRIER;
        }
        if (ready == 0) {
            size_t exited = 0;
            const Fiber *at_barrier = nullptr, *at_warp = nullptr;
            for (const Fiber& f : fibers) {
                exited += f.status == DONE;
                if (f.status == AT_BARRIER) at_barrier = &f;
                if (f.status == AT_WARP) at_warp = &f;
            }
            if (exited == n) return;
            if (waiting == n) {
                open_barrier();
                if (!failure.empty()) return;
                continue;
            }
            const Fiber& f = at_barrier ? *at_barrier : *at_warp;
            failure = "deadlock: " + who(f) + " waits " + STATUS[f.status] + " at " + spot(f.file, f.line) + "; of " +
                      std::to_string(n) + " threads " + std::to_string(exited) + " have exited and " + std::to_string(waiting) +
                      " wait at a barrier" +
                      (at_barrier && at_warp ? ", " + who(*at_warp) + " waits " + STATUS[AT_WARP] + " at " + spot(at_warp->file, at_warp->line) : "");
            return;
        }
        for (size_t k = 0; k < ready; k++) {
            size_t pick = k;
            if (schedule == RANDOM) std::swap(order[k], order[k + next_random() % (ready - k)]);
            if (schedule == REVERSED) pick = ready - 1 - k;
            Fiber& f = fibers[order[pick]];
            if (f.status != READY) continue;
            enter(&f);
            if (!failure.empty()) return;
        }
    }
}

static int find_tls(dl_phdr_info* info, size_t, void* out) {
    auto* range = static_cast<std::pair<char*, size_t>*>(out);
    auto here = reinterpret_cast<uintptr_t>(&find_tls);
    bool mine = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& h = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + h.p_vaddr;
        mine |= h.p_type == PT_LOAD && here >= start && here < start + h.p_memsz;
    }
    for (int i = 0; mine && i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            *range = {static_cast<char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
    return mine;
}

static thread_local char touch; // makes sure the module has a TLS image, and that it is allocated

static const char* launch(void (*run)(void**), void** args, const unsigned* grid, const unsigned* block, size_t shared, int schedule,
                          uint64_t seed, int reverse_blocks) {
    touch = 1;
    failure.clear();
    entry = run, entry_args = args, random_state = seed * 2 + 1;
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    size_t n = size_t(block[0]) * block[1] * block[2];
    size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    if (n == 0 || n > 1024 || block[2] > 64 || blocks == 0 || grid[1] > 65535 || grid[2] > 65535 || shared > 227 * 1024) {
        failure = "launch: grid (" + std::to_string(grid[0]) + "," + std::to_string(grid[1]) + "," + std::to_string(grid[2]) +
                  "), " + std::to_string(n) + " threads a block, " + std::to_string(shared) + " bytes of shared memory is outside CUDA's limits";
        return failure.c_str();
    }
    std::pair<char*, size_t> tls{nullptr, 0};
    dl_iterate_phdr(find_tls, &tls);
    while (stacks.size() < n) stacks.push_back(static_cast<char*>(std::aligned_alloc(64, STACK)));
    dynamic_memory = shared ? static_cast<char*>(std::malloc(shared)) : nullptr;
    for (size_t k = 0; k < blocks && failure.empty(); k++) {
        size_t b = reverse_blocks ? blocks - 1 - k : k;
        blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        if (tls.first) std::memset(tls.first, 0xff, tls.second);
        if (dynamic_memory) std::memset(dynamic_memory, 0xff, shared);
        fibers.assign(n, Fiber());
        for (size_t i = 0; i < n; i++) {
            Fiber& f = fibers[i];
            f.index = {unsigned(i % block[0]), unsigned(i / block[0] % block[1]), unsigned(i / block[0] / block[1])};
            f.lane = i % 32, f.warp = i / 32;
            prepare(f, stacks[i]);
        }
        run_block(schedule);
    }
    std::free(dynamic_memory);
    return failure.c_str();
}

// --- signatures and entry points ----------------------------------------------------------------------------------
template <class A> static std::string kind_of() {
    using T = std::remove_cv_t<A>;
    if constexpr (std::is_pointer_v<T>) return "p" + std::to_string(sizeof(std::conditional_t<std::is_void_v<std::remove_pointer_t<T>>, char, std::remove_pointer_t<T>>));
    else if constexpr (std::is_same_v<T, bool>) return "b1";
    else if constexpr (std::is_floating_point_v<T>) return "f" + std::to_string(sizeof(T));
    else if constexpr (std::is_integral_v<T>) return (std::is_signed_v<T> ? "i" : "u") + std::to_string(sizeof(T));
    else return "s" + std::to_string(sizeof(T));
}
template <class... A> static std::string signature(void (*)(A...)) {
    std::string text;
    ((text += kind_of<A>() + " "), ...);
    return text;
}
template <class... A, size_t... I> static void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
    f(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <class... A> static void invoke(void (*f)(A...), void** args) { call(f, args, std::index_sequence_for<A...>()); }

} // namespace emu

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
#define EMU_ENTRY(id, ...) \
    static void emu_body_##id(void** args) { emu::invoke(&__VA_ARGS__, args); } \
    EMU_EXPORT const char* emu_signature_##id() { static std::string s = emu::signature(&__VA_ARGS__); return s.c_str(); } \
    EMU_EXPORT const char* emu_launch_##id(void** args, const unsigned* grid, const unsigned* block, size_t shared, int schedule, \
                                           uint64_t seed, int reverse_blocks) { \
        return emu::launch(&emu_body_##id, args, grid, block, shared, schedule, seed, reverse_blocks); \
    }

// --- the device library -----------------------------------------------------------------------------------------
static inline void __syncthreads(EMU_AT) { emu::barrier(0, file, line); }
static inline int __syncthreads_count(int p, EMU_AT) { emu::barrier(p, file, line); return emu::votes[0]; }
static inline int __syncthreads_and(int p, EMU_AT) { emu::barrier(p, file, line); return emu::votes[1]; }
static inline int __syncthreads_or(int p, EMU_AT) { emu::barrier(p, file, line); return emu::votes[2]; }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT) { emu::meet(mask, 0, 1, "__syncwarp", file, line); }

template <class T> static inline T __shfl_sync(unsigned mask, T v, int src, int width = 32, EMU_AT) {
    int base = emu::running->lane / width * width;
    return emu::shuffle(mask, v, base + ((src % width) + width) % width, 2, "__shfl_sync", file, line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_AT) {
    int lane = emu::running->lane, from = lane ^ bits;
    return emu::shuffle(mask, v, from / width > lane / width ? lane : from, 3, "__shfl_xor_sync", file, line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_AT) {
    int lane = emu::running->lane, from = lane + int(delta);
    return emu::shuffle(mask, v, from / width != lane / width ? lane : from, 4, "__shfl_down_sync", file, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_AT) {
    int lane = emu::running->lane, from = lane - int(delta);
    return emu::shuffle(mask, v, from < lane / width * width ? lane : from, 5, "__shfl_up_sync", file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_AT) {
    const uint64_t* all = emu::meet(mask, p != 0, 6, "__ballot_sync", file, line);
    unsigned bits = 0, lanes = mask & emu::present(emu::running->warp);
    for (int i = 0; i < 32; i++) bits |= (lanes >> i & 1 && all[i]) ? 1u << i : 0;
    return bits;
}
static inline int __any_sync(unsigned mask, int p, EMU_AT) { return __ballot_sync(mask, p, file, line) != 0; }
static inline int __all_sync(unsigned mask, int p, EMU_AT) {
    return __ballot_sync(mask, p, file, line) == (mask & emu::present(emu::running->warp));
}

// One OS thread runs everything and fibers switch at waits alone, so atomics are plain read-modify-writes.
#define EMU_ATOMIC(name, result) \
    template <class T> static inline T name(T* p, std::common_type_t<T> v) { T old = *p; *p = result; return old; }
EMU_ATOMIC(atomicAdd, old + v) EMU_ATOMIC(atomicSub, old - v) EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMax, old < v ? v : old) EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicOr, T(old | v)) EMU_ATOMIC(atomicAnd, T(old & v)) EMU_ATOMIC(atomicXor, T(old ^ v))
template <class T> static inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }

// Bit casts, integer intrinsics; the fast float intrinsics are the exact functions here.
#define EMU_CAST(name, To, From) static inline To name(From v) { return emu::unpack<To>(emu::pack(v)); }
EMU_CAST(__int_as_float, float, int) EMU_CAST(__float_as_int, int, float) EMU_CAST(__uint_as_float, float, unsigned)
EMU_CAST(__float_as_uint, unsigned, float) EMU_CAST(__longlong_as_double, double, long long)
EMU_CAST(__double_as_longlong, long long, double)
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
#define __expf(x) std::exp(float(x)) // macros: glibc declares functions of these names
#define __logf(x) std::log(float(x))
#define __powf(x, y) std::pow(float(x), float(y))
#define __sinf(x) std::sin(float(x))
#define __cosf(x) std::cos(float(x))
static inline float __fdividef(float a, float b) { return a / b; }
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
