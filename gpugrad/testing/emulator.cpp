// The machine under emulator.h: fibers, barriers, warp collectives, the scheduler, and the watch over memory accesses.
//
// Built once, without instrumentation, into a library that all emulated kernels share. A checked kernel is compiled with
// -fsanitize=thread and friends, which makes the compiler announce every memory access and every undefined operation to
// the __tsan_ and __ubsan_ functions at the end of this file. They are not those of the sanitizers' own libraries, which
// know nothing of CUDA and must be in a process from its start, but a detector made for this machine.
#include "emulator.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <execinfo.h>
#include <link.h>
#include <map>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unordered_map>
#include <vector>

namespace emu {

Here here;

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
static const char* const NAMES[] = {"__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync",
                                    "__ballot_sync", "__any_sync", "__all_sync", "__match_any_sync", "__reduce_sync"};

// What one party knows of the others' accesses: those up to a time, by thread for its own block, by block for others.
struct Knowledge {
    uint32_t block = 0;
    std::vector<uint32_t> own;
    std::map<uint32_t, uint32_t> others;
    void learn(const Knowledge& k);
};

struct Fiber {
    Context context;
    uint3 index{};
    unsigned number = 0, lane = 0, warp = 0;
    Status status = READY;
    const char* file = "";
    int line = 0;
    Op op = SYNCWARP;
    int vote = 0;
    unsigned mask = 0;
    bool spins = false; // gave way since it was last entered
    unsigned from = 0;
    uint64_t value = 0, result = 0;
    Knowledge released, pending; // at its last fence; from atomics since
};

static constexpr size_t PAGE = 4096, STACK = 128 * 1024, SLOT = STACK + PAGE, MOST = 1024; // a guard page below each stack
static char* stacks;
static size_t stacks_made;
static std::vector<Fiber> fibers;
static Fiber* running;
static Context home;
static void (*entry)(void**);
static void** entry_args;
static std::string failure, unwritten_read;
static int votes[3]; // of the last barrier: how many, all, any
static uint64_t random_state;
static const Launch* how;
static std::vector<Range> memory; // all that the kernel may touch, beside the stacks
enum { DYNAMIC = -1, STATIC = -2, IMAGE = -3 };

static void leave(Fiber* f) {
#if defined(__x86_64__)
    emu_switch(&f->context.sp, home.sp);
#else
    swapcontext(&f->context.uc, &home.uc);
#endif
    here.thread = f->index;
}

static void enter(Fiber* f) {
    running = f;
    here.thread = f->index;
#if defined(__x86_64__)
    emu_switch(&home.sp, f->context.sp);
#else
    swapcontext(&home.uc, &f->context.uc);
#endif
    running = nullptr;
}

static std::string who(uint3 t, uint3 b) {
    char text[160];
    std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y, b.z);
    return text;
}
static std::string who(const Fiber& f) { return who(f.index, here.block); }

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

static void prepare(Fiber& f) {
    if (!stacks) {
        void* made = mmap(nullptr, SLOT * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (made == MAP_FAILED) std::perror("emulator: stacks"), std::abort();
        stacks = static_cast<char*>(made);
    }
    for (; stacks_made <= f.number; stacks_made++) mprotect(stacks + stacks_made * SLOT, PAGE, PROT_NONE);
    char* stack = stacks + f.number * SLOT + PAGE;
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

// --- time: what is ordered before what ------------------------------------------------------------------------------
//
// `now` counts synchronisations. An access is ordered before the running thread if it happened up to the last barrier
// of the block, or up to the time that known(thread, its thread) says. Entries of earlier blocks are smaller than any
// time of this one, so that nothing is ever reset.
static uint32_t now = 1, barrier_time, first_block, this_block; // blocks are numbered through, over all launches
static std::vector<uint32_t> known_times;
static std::map<uint32_t, uint32_t> known_blocks;
static bool fences; // whether knowledge crosses warps in this block
static std::unordered_map<uintptr_t, Knowledge> letters; // what atomics on an address pass on

static uint32_t& known(unsigned thread, unsigned other) { return known_times[thread * fibers.size() + other]; }

static void raise(uint32_t& time, uint32_t to) { time = time < to ? to : time; }

void Knowledge::learn(const Knowledge& k) {
    if (block < k.block) { // of a later block: keep a date of the earlier one
        for (uint32_t time : own) raise(others[block], time);
        block = k.block, own.assign(k.own.size(), 0);
    }
    for (auto [b, time] : k.others)
        if (b != block) raise(others[b], time);
    for (size_t i = 0; i < k.own.size(); i++) raise(k.block == block ? own[i] : others[k.block], k.own[i]);
}

static void order_lanes(Fiber* lanes, unsigned mask) { // __syncwarp: each knows what all did and knew
    uint32_t time = now++;
    unsigned first = fences ? 0 : lanes->number, last = fences ? fibers.size() : std::min<size_t>(first + 32, fibers.size());
    for (unsigned other = first; other < last; other++) {
        uint32_t latest = 0;
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1) raise(latest, lanes[i].number == other ? time : known(lanes[i].number, other));
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1) known(lanes[i].number, other) = latest;
    }
}

void fence() { // publish what this thread did and knows, and take what atomics brought
    if (!how->checked) return;
    Fiber& f = *running;
    fences = true;
    for (auto [b, time] : f.pending.others) raise(known_blocks[b], time);
    for (unsigned i = 0; i < f.pending.own.size(); i++) raise(known(f.number, i), f.pending.own[i]);
    f.released = {this_block, std::vector<uint32_t>(fibers.size()), known_blocks};
    for (unsigned i = 0; i < fibers.size(); i++) f.released.own[i] = std::max(known(f.number, i), barrier_time);
    f.released.own[f.number] = now++;
}

// --- barrier and warp collectives -------------------------------------------------------------------------------
int barrier(int predicate, Vote vote, const char* file, int line) {
    Fiber* f = running;
    f->status = AT_BARRIER, f->file = file, f->line = line, f->vote = predicate;
    leave(f);
    return votes[vote];
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
    votes[COUNT] = count, votes[AND] = count == int(fibers.size()), votes[OR] = count != 0;
    barrier_time = now++;
    for (Fiber& f : fibers) f.status = READY;
}

unsigned lane() { return running->lane; }

static unsigned present(unsigned warp) { // lanes of this warp that the block has at all
    size_t first = size_t(warp) * 32, n = fibers.size() - first;
    return n >= 32 ? 0xffffffffu : (1u << n) - 1;
}

static int64_t fold(Reduction with, int64_t a, int64_t b) {
    switch (with) {
    case ADD: return a + b;
    case MIN: return std::min(a, b);
    case MAX: return std::max(a, b);
    case BIT_AND: return a & b;
    case BIT_OR: return a | b;
    default: return a ^ b;
    }
}

static uint64_t answer(const Fiber* lanes, const Fiber& me, unsigned mask) { // what a lane gets of the values of all
    bool first = true;
    uint64_t bits = 0;
    switch (me.op) {
    case SYNCWARP: return 0;
    case BALLOT:
    case ANY:
    case ALL:
    case MATCH_ANY:
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1) bits |= uint64_t(lanes[i].value == (me.op == MATCH_ANY ? me.value : 1)) << i;
        return bits;
    case REDUCE:
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1) bits = std::exchange(first, false) ? lanes[i].value : fold(Reduction(me.from), bits, lanes[i].value);
        return bits;
    default: return mask >> me.from & 1 ? lanes[me.from].value : ~0ull; // a shuffle; poison from outside of the mask
    }
}

// Publish a value to the lanes of `mask` and wait for all of them; the last to come answers them all.
uint64_t exchange(unsigned mask, uint64_t value, int from, Op op, const char* file, int line) {
    Fiber* f = running;
    unsigned needed = mask & present(f->warp);
    auto wrong = [&](const std::string& what) { stop(std::string(NAMES[op]) + " at " + spot(file, line) + ": " + who(*f) + what); };
    if (!(mask >> f->lane & 1)) wrong(" is lane " + std::to_string(f->lane) + ", which its own mask leaves out");
    f->status = AT_WARP, f->file = file, f->line = line, f->op = op, f->mask = mask, f->value = value, f->from = from & 31;
    Fiber* lanes = &fibers[size_t(f->warp) * 32];
    bool complete = true;
    for (unsigned i = 0; i < 32; i++) {
        if (!(needed >> i & 1)) continue;
        const Fiber& g = lanes[i];
        if (g.status == DONE) wrong(" waits for lane " + std::to_string(i) + ", which has exited");
        if (g.status != AT_WARP) complete = false;
        else if (g.mask != mask || g.op != op || g.line != line)
            wrong(" waits for lane " + std::to_string(i) + ", which is at a different collective or mask at " + spot(g.file, g.line));
    }
    if (!complete) {
        leave(f);
        return f->result;
    }
    if (op == SYNCWARP && how->checked) order_lanes(lanes, needed); // the only collective that orders memory
    for (unsigned i = 0; i < 32; i++)
        if (needed >> i & 1) lanes[i].result = answer(lanes, lanes[i], needed), lanes[i].status = READY;
    return f->result;
}

unsigned ballot(unsigned mask, bool predicate, Op op, const char* file, int line) {
    return unsigned(exchange(mask, predicate, 0, op, file, line));
}
unsigned match(unsigned mask, uint64_t value, const char* file, int line) {
    return unsigned(exchange(mask, value, 0, MATCH_ANY, file, line));
}
int64_t reduce(unsigned mask, int64_t value, Reduction with, const char* file, int line) {
    return int64_t(exchange(mask, uint64_t(value), with, REDUCE, file, line));
}

void give_way(const char* file, int line) {
    running->spins = true, running->file = file, running->line = line;
    leave(running);
}

// --- the scheduler ----------------------------------------------------------------------------------------------
enum Schedule { NATURAL, REVERSED, RANDOM };
static constexpr int PATIENCE = 20000; // rounds in which every thread that ran gave way, before it is called a livelock

static uint64_t next_random() { // xorshift64*
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return random_state * 2685821657736338717ull;
}

static sigjmp_buf escape; // out of a fiber that made a fault

static void run_block() {
    size_t n = fibers.size();
    static std::vector<size_t> order;
    order.resize(n);
    if (sigsetjmp(escape, 1)) {
        running = nullptr;
        return;
    }
    for (int patience = PATIENCE;;) {
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
        bool progress = false;
        for (size_t k = 0; k < ready; k++) {
            size_t pick = k;
            if (how->schedule == RANDOM) std::swap(order[k], order[k + next_random() % (ready - k)]);
            if (how->schedule == REVERSED) pick = ready - 1 - k;
            Fiber& f = fibers[order[pick]];
            if (f.status != READY) continue;
            f.spins = false;
            enter(&f);
            if (!failure.empty()) return;
            progress |= !f.spins;
        }
        patience = progress ? PATIENCE : patience - 1;
        if (patience == 0) {
            const Fiber& f = fibers[order[0]];
            failure = "livelock: " + who(f) + " spins at " + spot(f.file, f.line) + " for what no other thread of its block does";
            return;
        }
    }
}

// --- faults -----------------------------------------------------------------------------------------------------------
struct Module { // the library of the running kernel
    uintptr_t inside = 0;
    pthread_t thread = 0; // whose shared memory this is
    uintptr_t base = 0, begin = ~uintptr_t(0), end = 0;
    char* tls = nullptr;
    size_t tls_size = 0;
};
static Module module;

static int find_module(dl_phdr_info* info, size_t, void* out) {
    Module found = *static_cast<Module*>(out);
    found.base = info->dlpi_addr;
    bool mine = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& h = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + h.p_vaddr, end = start + h.p_memsz;
        if (h.p_type == PT_LOAD) {
            mine |= found.inside >= start && found.inside < end;
            found.begin = std::min(found.begin, start), found.end = std::max(found.end, end);
        }
        if (h.p_type == PT_TLS) found.tls = static_cast<char*>(info->dlpi_tls_data), found.tls_size = h.p_memsz;
    }
    if (mine) *static_cast<Module*>(out) = found;
    return mine;
}

// A place in the kernel's code, which the Python side turns into file and line.
static std::string place(uintptr_t pc) {
    char text[32];
    std::snprintf(text, sizeof text, "@%zx@", size_t(pc - module.base));
    return text;
}
static std::string place(void* pc) { return place(reinterpret_cast<uintptr_t>(pc) - 1); } // of a return address

static std::string name_of(const Range& r) {
    return r.argument >= 0         ? "argument " + std::to_string(r.argument)
           : r.argument == DYNAMIC ? "dynamic shared memory"
           : r.argument == STATIC  ? "static shared memory"
                                   : "a global variable";
}

static std::string whereabouts(uintptr_t a, size_t size) { // where an address is, or what it is near to
    const Range* nearest = nullptr;
    size_t least = ~size_t(0);
    for (const Range& r : memory) {
        size_t far = a < r.begin ? r.begin - a : a + size <= r.end ? 0 : a + size - r.end;
        if (far < least && (far == 0 || r.argument >= DYNAMIC)) nearest = &r, least = far;
    }
    if (!nearest || least > (1u << 20)) return "memory that belongs to no argument";
    const Range& r = *nearest;
    size_t unit = r.element ? r.element : 1, n = (r.end - r.begin) / unit;
    std::string what = (unit > 1 ? "element " : "byte "), of = " of " + name_of(r);
    if (a < r.begin) return what + "-" + std::to_string((r.begin - a + unit - 1) / unit) + of;
    return what + std::to_string((a - r.begin) / unit) + of + (least ? ", which has " + std::to_string(n) + "," : "");
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
static constexpr int N_SIGNALS = 4, LONGEST = 20; // seconds of processor time that a block may take
static struct sigaction before[N_SIGNALS];

static void set_timer(int seconds) {
    itimerval timer{{0, 0}, {seconds, 0}};
    setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    if (!running) { // not the kernel's: as if this handler had never been
        for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &before[i], nullptr);
        return;
    }
    auto* machine = static_cast<ucontext_t*>(context);
    uintptr_t pc = 0;
    const char* does = " accesses ";
#if defined(__x86_64__)
    pc = machine->uc_mcontext.gregs[REG_RIP];
    does = machine->uc_mcontext.gregs[REG_ERR] & 2 ? " writes " : " reads ";
#elif defined(__aarch64__)
    pc = machine->uc_mcontext.pc;
#endif
    if (pc < module.begin || pc >= module.end) { // in a function of the C library: its caller in the kernel
        void* frames[64];
        int n = backtrace(frames, 64);
        for (int i = 0; i < n; i++) {
            auto at = reinterpret_cast<uintptr_t>(frames[i]);
            if (at >= module.begin && at < module.end) {
                pc = at - 1;
                break;
            }
        }
    }
    auto a = reinterpret_cast<uintptr_t>(info->si_addr);
    bool stack = a - reinterpret_cast<uintptr_t>(stacks) < SLOT * MOST;
    failure = signal == SIGVTALRM          ? "endless: " + who(*running) + " at " + place(pc) + "; its block has taken " +
                                        std::to_string(LONGEST) + " seconds"
              : signal == SIGFPE           ? "division by zero: " + who(*running) + " at " + place(pc)
              : info->si_code == SI_KERNEL ? "misaligned or impossible address: " + who(*running) + " at " + place(pc)
              : stack                      ? "stack overflow: " + who(*running) + " at " + place(pc) + " has more than " +
                            std::to_string(STACK / 1024) + " KiB of local variables"
                                           : "out of bounds: " + who(*running) + does + whereabouts(a, 1) + " at " + place(pc);
    siglongjmp(escape, 1);
}

// --- the watch over accesses ------------------------------------------------------------------------------------------
struct Access { uint32_t time, block, site; uint16_t thread, atomic; };
struct Cell { Access write, read[2], elsewhere; }; // the last write, two readers of this block, one of another
struct Shadow { unsigned shift; std::vector<Cell> cells; }; // of a page: a cell for 1 << shift bytes
static std::unordered_map<uintptr_t, Shadow> shadows;

static Cell* cell(uintptr_t a, unsigned size, unsigned* width) {
    static uintptr_t last = 0;
    static Shadow* shadow = nullptr;
    if (shadows.empty()) last = 0;
    if (uintptr_t page = a / PAGE; page != last) {
        Shadow& s = shadows[page];
        if (s.cells.empty()) s = {2, std::vector<Cell>(PAGE / 4)};
        last = page, shadow = &s;
    }
    unsigned fit = (a | size) & 1 ? 0 : (a | size) & 2 ? 1 : 2;
    if (fit < shadow->shift) { // something smaller lives here
        std::vector<Cell> finer;
        for (const Cell& c : shadow->cells) finer.insert(finer.end(), size_t(1) << (shadow->shift - fit), c);
        *shadow = {fit, std::move(finer)};
    }
    *width = 1u << shadow->shift;
    return &shadow->cells[a % PAGE >> shadow->shift];
}

static uint3 block_index(uint32_t number) {
    unsigned k = number - first_block, blocks = here.grid_dim.x * here.grid_dim.y * here.grid_dim.z;
    if (how->reverse_blocks) k = blocks - 1 - k;
    return {k % here.grid_dim.x, k / here.grid_dim.x % here.grid_dim.y, k / here.grid_dim.x / here.grid_dim.y};
}

static bool ordered(const Access& old, bool atomic, bool shared) {
    if (old.block < (shared ? this_block : first_block) || (old.atomic && atomic)) return true;
    if (old.block == this_block)
        return old.thread == running->number || old.time <= barrier_time || old.time <= known(running->number, old.thread);
    auto found = known_blocks.find(old.block);
    return found != known_blocks.end() && old.time <= found->second;
}

[[noreturn]] static void race(const Access& old, bool wrote, bool writes, uintptr_t a, unsigned size, void* pc) {
    uint3 t = fibers[old.thread].index;
    stop("race: " + who(*running) + (writes ? " writes " : " reads ") + whereabouts(a, size) + " at " + place(pc) + ", and " +
         who(t, block_index(old.block)) + (wrote ? " writes it at " : " reads it at ") + place(module.base + old.site) +
         "; nothing orders the two");
}

static void remember_read(Cell& c, const Access& a, bool shared) {
    for (Access& r : c.read)
        if (r.block >= first_block && r.block < this_block && !shared) c.elsewhere = std::exchange(r, Access{});
    for (Access& r : c.read)
        if (ordered(r, false, shared)) { // whoever races with it races with this one too
            r = a;
            return;
        }
    if (c.read[0].thread / 32 == c.read[1].thread / 32) c.read[1] = a; // rather two warps than two lanes
}

static void access(uintptr_t a, unsigned size, bool writes, bool atomic, void* pc) {
    if (!running || !how->checked) return;
    if (a - reinterpret_cast<uintptr_t>(stacks) < SLOT * MOST || a - reinterpret_cast<uintptr_t>(&here) < sizeof here) return;
    static size_t hint = 0;
    const Range* range = nullptr;
    if (hint < memory.size() && a >= memory[hint].begin && a + size <= memory[hint].end) range = &memory[hint];
    for (size_t i = 0; !range && i < memory.size(); i++)
        if (a >= memory[i].begin && a + size <= memory[i].end) range = &memory[hint = i];
    if (!range && how->strict)
        stop("out of bounds: " + who(*running) + (writes ? " writes " : " reads ") + whereabouts(a, size) + " at " + place(pc));
    if (range && range->use == CONSTANT && !writes) return;
    bool shared = range && (range->argument == DYNAMIC || range->argument == STATIC);
    bool must_be_written = shared || (range && range->use == OUTPUT), written = false;
    Access mine{now, this_block, uint32_t(reinterpret_cast<uintptr_t>(pc) - 1 - module.base), uint16_t(running->number), atomic};
    for (uintptr_t at = a; at < a + size;) {
        unsigned width;
        Cell& c = *cell(at, unsigned(a + size - at), &width);
        if (!ordered(c.write, atomic, shared)) race(c.write, true, writes, a, size, pc);
        if (writes) {
            for (const Access* r : {&c.read[0], &c.read[1], &c.elsewhere})
                if (!ordered(*r, atomic, shared)) race(*r, false, true, a, size, pc);
            c.write = mine;
        } else {
            written |= c.write.block >= (shared ? this_block : first_block);
            remember_read(c, mine, shared);
        }
        at += width;
    }
    if (!writes && must_be_written && !written && unwritten_read.empty()) // a race, if it is written later
        unwritten_read = ("uninitialised: " + who(*running) + " reads " + whereabouts(a, size) + " at " + place(pc) + ", which nothing has written");
}

void atomic(const volatile void* address, size_t size, void* pc) {
    if (!how->checked) return;
    auto a = reinterpret_cast<uintptr_t>(address);
    access(a, unsigned(size), false, true, pc);
    access(a, unsigned(size), true, true, pc);
    auto found = letters.find(a);
    if (found != letters.end()) {
        if (running->pending.block == 0) running->pending = {this_block, std::vector<uint32_t>(fibers.size()), {}};
        running->pending.learn(found->second);
    }
    if (running->released.block) letters[a].learn(running->released);
}

static void volatile_access(void* p, unsigned size, bool writes, void* pc) { // relaxed, as PTX has it
    auto a = reinterpret_cast<uintptr_t>(p);
    access(a, size, writes, true, pc);
    if (!running || !how->checked) return;
    auto found = letters.find(a);
    if (!writes && found != letters.end()) {
        if (running->pending.block == 0) running->pending = {this_block, std::vector<uint32_t>(fibers.size()), {}};
        running->pending.learn(found->second);
    }
    if (writes && running->released.block) letters[a].learn(running->released);
}

static void find_unwritten() {
    for (const Range& r : memory) {
        if (r.argument < 0 || r.use != OUTPUT) continue;
        size_t count = 0;
        uintptr_t first = 0;
        for (uintptr_t element = r.begin; element < r.end; element += r.element) {
            bool written = true;
            for (uintptr_t a = element; a < element + r.element;) {
                unsigned width;
                written &= cell(a, unsigned(element + r.element - a), &width)->write.block >= first_block;
                a += width;
            }
            if (!written && count++ == 0) first = element;
        }
        if (count) {
            failure = "unwritten: " + std::to_string(count) + " of the " + std::to_string((r.end - r.begin) / r.element) +
                      " elements of argument " + std::to_string(r.argument) + ", an output; the first is element " +
                      std::to_string((first - r.begin) / r.element) + ", by the kernel at @kernel@";
            return;
        }
    }
}

// --- a launch ---------------------------------------------------------------------------------------------------------
struct Dynamic { // shared memory that ends at a page that cannot be touched, as close as its alignment of 16 allows
    char *pages = nullptr, *begin = nullptr;
    size_t length = 0;
    explicit Dynamic(size_t size) {
        if (size == 0) return;
        length = (size + PAGE - 1) / PAGE * PAGE + PAGE;
        void* made = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) std::perror("emulator: shared memory"), std::abort();
        pages = static_cast<char*>(made);
        mprotect(pages + length - PAGE, PAGE, PROT_NONE);
        begin = pages + length - PAGE - (size + 15) / 16 * 16;
    }
    ~Dynamic() {
        if (pages) munmap(pages, length);
    }
};

static void run_blocks() {
    size_t n = size_t(how->block[0]) * how->block[1] * how->block[2], blocks = size_t(how->grid[0]) * how->grid[1] * how->grid[2];
    Dynamic dynamic(how->shared);
    here.dynamic_memory = dynamic.begin;
    auto add = [](char* p, size_t size, int what) {
        if (size) memory.push_back({reinterpret_cast<uintptr_t>(p), reinterpret_cast<uintptr_t>(p) + size, 1, what, 0});
    };
    memory.assign(how->range, how->range + how->ranges);
    add(dynamic.begin, how->shared, DYNAMIC);
    add(module.tls, module.tls_size, STATIC);
    memory.push_back({module.begin, module.end, 1, IMAGE, 0});
    if (how->checked) {
        if (shadows.size() > 1024 || now > 1u << 31 || this_block > 1u << 31) {
            shadows.clear(), known_times.clear();
            now = 1, this_block = 0;
        }
        if (known_times.size() < n * n) known_times.resize(n * n);
        letters.clear();
    }
    first_block = this_block + 1;
    for (size_t k = 0; k < blocks && failure.empty() && unwritten_read.empty(); k++) {
        size_t b = how->reverse_blocks ? blocks - 1 - k : k;
        here.block = {unsigned(b % how->grid[0]), unsigned(b / how->grid[0] % how->grid[1]), unsigned(b / how->grid[0] / how->grid[1])};
        this_block++, barrier_time = now++, fences = false;
        if (module.tls) std::memset(module.tls, 0xff, module.tls_size);
        if (dynamic.begin) std::memset(dynamic.begin, 0xff, (how->shared + 15) / 16 * 16);
        fibers.assign(n, Fiber());
        for (size_t i = 0; i < n; i++) {
            Fiber& f = fibers[i];
            f.index = {unsigned(i % how->block[0]), unsigned(i / how->block[0] % how->block[1]), unsigned(i / how->block[0] / how->block[1])};
            f.number = i, f.lane = i % 32, f.warp = i / 32;
            prepare(f);
        }
        set_timer(LONGEST);
        run_block();
        known_blocks.clear();
    }
    if (!unwritten_read.empty() && failure.compare(0, 5, "race:") != 0) failure = unwritten_read + (failure.empty() ? "" : "; then " + failure);
    if (how->checked && failure.empty()) find_unwritten();
}

const char* launch(void (*run)(void**), void** args, const Launch* launch) {
    failure.clear(), unwritten_read.clear();
    how = launch, entry = run, entry_args = args, random_state = how->seed * 2 + 1;
    here.grid_dim = {how->grid[0], how->grid[1], how->grid[2]}, here.block_dim = {how->block[0], how->block[1], how->block[2]};
    const unsigned *g = how->grid, *b = how->block;
    size_t n = size_t(b[0]) * b[1] * b[2], blocks = size_t(g[0]) * g[1] * g[2];
    if (n == 0 || n > MOST || b[2] > 64 || blocks == 0 || g[1] > 65535 || g[2] > 65535 || how->shared > 227 * 1024) {
        failure = "launch: grid (" + std::to_string(g[0]) + "," + std::to_string(g[1]) + "," + std::to_string(g[2]) + "), " +
                  std::to_string(n) + " threads a block, " + std::to_string(how->shared) + " bytes of shared memory is outside CUDA's limits";
        return failure.c_str();
    }
    if (auto inside = reinterpret_cast<uintptr_t>(run); module.inside != inside || module.thread != pthread_self()) {
        module = Module{inside, pthread_self()};
        dl_iterate_phdr(find_module, &module);
    }
    static char signal_stack[64 * 1024];
    void* warm[1];
    backtrace(warm, 1); // loads what it needs now, and not in a handler
    stack_t mine{signal_stack, 0, sizeof signal_stack}, theirs{};
    sigaltstack(&mine, &theirs);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &action, &before[i]);
    run_blocks();
    set_timer(0);
    for (int i = 0; i < N_SIGNALS; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    sigaltstack(&theirs, nullptr);
    return failure.c_str();
}

void describe(char* text, char kind, size_t size) { std::sprintf(text + std::strlen(text), "%c%zu ", kind, size); }

} // namespace emu

// --- what an instrumented kernel calls ----------------------------------------------------------------------------------
#define EMU_CALLED extern "C" __attribute__((visibility("default")))
#define EMU_WATCH(name, size, writes) \
    EMU_CALLED void __tsan_##name(void* p) { emu::access(uintptr_t(p), size, writes, false, __builtin_return_address(0)); } \
    EMU_CALLED void __tsan_unaligned_##name(void* p) { emu::access(uintptr_t(p), size, writes, false, __builtin_return_address(0)); } \
    EMU_CALLED void __tsan_volatile_##name(void* p) { emu::volatile_access(p, size, writes, __builtin_return_address(0)); } \
    EMU_CALLED void __tsan_unaligned_volatile_##name(void* p) { emu::volatile_access(p, size, writes, __builtin_return_address(0)); }
EMU_WATCH(read1, 1, false) EMU_WATCH(read2, 2, false) EMU_WATCH(read4, 4, false) EMU_WATCH(read8, 8, false) EMU_WATCH(read16, 16, false)
EMU_WATCH(write1, 1, true) EMU_WATCH(write2, 2, true) EMU_WATCH(write4, 4, true) EMU_WATCH(write8, 8, true) EMU_WATCH(write16, 16, true)
EMU_CALLED void __tsan_read_range(void* p, size_t n) { emu::access(uintptr_t(p), unsigned(n), false, false, __builtin_return_address(0)); }
EMU_CALLED void __tsan_write_range(void* p, size_t n) { emu::access(uintptr_t(p), unsigned(n), true, false, __builtin_return_address(0)); }
EMU_CALLED void __tsan_init() {}
EMU_CALLED void __tsan_func_entry(void*) {}
EMU_CALLED void __tsan_func_exit() {}

namespace emu { // the compiler's descriptions of undefined operations: GCC's libubsan has the same layout
struct Source { const char* file; uint32_t line, column; };
struct Type { uint16_t kind, info; char name[1]; };
struct Overflow { Source source; const Type* type; };
struct Bounds { Source source; const Type *array, *index; };
struct Shift { Source source; const Type *left, *right; };
struct Mismatch { Source source; const Type* type; unsigned char log_alignment, kind; };

static std::string number(const Type* type, uintptr_t value) {
    if (type->kind != 0 || (1u << (type->info >> 1)) > 64) return "?";
    unsigned unused = 64 - (1u << (type->info >> 1));
    if (type->info & 1) return std::to_string(int64_t(uint64_t(value) << unused) >> unused);
    return std::to_string(uint64_t(value) << unused >> unused);
}
static void undefined(const std::string& what, void* pc) {
    if (running) stop(what + ": " + who(*running) + " at " + place(pc));
}
} // namespace emu

#define EMU_UNDEFINED(NAME, Data, parameters, text) \
    EMU_CALLED void __ubsan_handle_##NAME parameters { emu::undefined(text, __builtin_return_address(0)); } \
    EMU_CALLED void __ubsan_handle_##NAME##_abort parameters { emu::undefined(text, __builtin_return_address(0)); }
#define EMU_ARITHMETIC(NAME, sign) \
    EMU_UNDEFINED(NAME##_overflow, Overflow, (emu::Overflow* d, uintptr_t a, uintptr_t b), \
                  "signed integer overflow, " + emu::number(d->type, a) + sign + emu::number(d->type, b) + " in type " + d->type->name)
EMU_ARITHMETIC(add, " + ") EMU_ARITHMETIC(sub, " - ") EMU_ARITHMETIC(mul, " * ")
EMU_UNDEFINED(negate_overflow, Overflow, (emu::Overflow* d, uintptr_t a), "signed integer overflow, -(" + emu::number(d->type, a) + ")")
EMU_UNDEFINED(divrem_overflow, Overflow, (emu::Overflow* d, uintptr_t a, uintptr_t b),
              "division by zero or overflow, " + emu::number(d->type, a) + " / " + emu::number(d->type, b))
EMU_UNDEFINED(shift_out_of_bounds, Shift, (emu::Shift* d, uintptr_t a, uintptr_t b),
              "shift, " + emu::number(d->left, a) + " by " + emu::number(d->right, b) + " bits in type " + d->left->name)
EMU_UNDEFINED(out_of_bounds, Bounds, (emu::Bounds* d, uintptr_t i),
              "index out of bounds, " + emu::number(d->index, i) + " in type " + d->array->name)
EMU_UNDEFINED(type_mismatch_v1, Mismatch, (emu::Mismatch* d, uintptr_t p),
              p == 0 ? std::string("null pointer used as ") + d->type->name
                     : "misaligned address, " + std::to_string(p % (1u << d->log_alignment)) + " bytes past a multiple of " +
                           std::to_string(1u << d->log_alignment) + " for type " + d->type->name)
