#include "machine.hpp"

#include "memory.hpp"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace standin {

std::vector<Kernel>& kernels() {
    static auto* all = new std::vector<Kernel>;
    return *all;
}

const Kernel* find_kernel(const std::string& name) {
    for (auto& kernel : kernels()) {
        if (name == kernel.name) return &kernel;
    }
    return nullptr;
}

bool Order::parse(const char* text, Order& order) {
    if (!strcmp(text, "forward")) {
        order = {Forward, 0};
    } else if (!strcmp(text, "reverse")) {
        order = {Reverse, 0};
    } else if (!strncmp(text, "shuffle:", 8)) {
        char* end;
        order = {Shuffle, strtoull(text + 8, &end, 10)};
        return end != text + 8 && !*end;
    } else {
        return false;
    }
    return true;
}

// Changing over between fibers --------------------------------------------------------------------

#if defined(__x86_64__) && !defined(STANDIN_UCONTEXT)
// Saves the registers that a callee keeps on the fiber's stack, stores its stack pointer in *from,
// and goes on where the other fiber saved its own.
extern "C" void standin_switch(void** from, void* to);
asm(R"(
.text
.globl standin_switch
.type standin_switch, @function
standin_switch:
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
.size standin_switch, .-standin_switch
)");

static void* new_fiber(unsigned char* stack_end, u32, void (*entry)()) {
    // As if `entry` had been called: its return address, which is never used, lies at 8 below 16.
    void** top = (void**)(uintptr_t(stack_end) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = (void*)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}
#else
// Elsewhere: slower, by the C library. One context a fiber, and one for the machine.
static ucontext_t contexts[MAX_THREADS + 1];
static void standin_switch(void** from, void* to) {
    // The first word of a saved stack pointer is the context itself.
    swapcontext((ucontext_t*)*from, (ucontext_t*)to);
}
constexpr size_t UCONTEXT_STACK = 64 << 10;
static void* new_fiber(unsigned char* stack_end, u32 number, void (*entry)()) {
    ucontext_t* context = &contexts[number];
    getcontext(context);
    context->uc_stack.ss_sp = stack_end - UCONTEXT_STACK;
    context->uc_stack.ss_size = UCONTEXT_STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

// The machine -------------------------------------------------------------------------------------

Thread* self;
uint3 block_index;
dim3 block_extent, grid_extent;

namespace {

constexpr size_t PAGE = 4096, STACK = 64 << 10, STATIC_SHARED = 48 << 10, DYNAMIC_SHARED = 228 << 10;
/// Bytes between static shared arrays that nobody may write.
constexpr size_t RED = 32;

struct Warp {
    /// Lanes that can go on, and lanes that wait for others of their warp.
    u32 runnable, meeting;
    void* posts[WARP];
};

struct Barrier {
    u32 arrived, expected;
    u32 waiting[MAX_WARPS];
};

struct Machine {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    Barrier barriers[BARRIERS];
    u32 runnable_warps, warp, alive, count;
    void* main_stack_pointer;
    Order order;
    u64 random;
    const Launch* launch;
    u64 launches;

    unsigned char* stacks;
    /// End at a page that cannot be touched.
    unsigned char *static_end, *dynamic_end;
    size_t static_used;
    struct Red {
        unsigned char* from;
    };
    std::vector<Red> reds;
    void* values[64];

    bool running;
    sigjmp_buf fault;
    const void* fault_address;
    int fault_signal;
    bool fault_writes;
    std::string problem;
    std::string report;
};

Machine& m() {
    // All zeros: barriers that nobody waits at.
    static Machine* machine = new Machine();
    return *machine;
}

// The one machine, without the guard of a local static: it is on the path of every switch.
Machine* machine;

u64 random_bits() {
    // xorshift64*
    u64& x = machine->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return x * 0x2545f4914f6cdd1dull;
}

u32 choose(u32 bits) {
    switch (machine->order.kind) {
        case Order::Forward: return std::countr_zero(bits);
        case Order::Reverse: return 31 - std::countl_zero(bits);
        case Order::Shuffle: break;
    }
    u32 turn = u32(random_bits() >> 59);
    return (std::countr_zero(std::rotr(bits, int(turn))) + turn) & 31;
}

/// The next thread that can go on, or null. A warp goes on until none of its lanes can, except in shuffled order.
Thread* next() {
    Machine& k = *machine;
    if (!k.runnable_warps) return nullptr;
    if (!(k.runnable_warps >> k.warp & 1) || k.order.kind == Order::Shuffle) {
        k.warp = choose(k.runnable_warps);
    }
    return &k.threads[k.warp * WARP + choose(k.warps[k.warp].runnable)];
}

void stop_running(const Thread& thread) {
    u32 warp = thread.linear / WARP;
    u32& runnable = machine->warps[warp].runnable;
    runnable &= ~(1u << thread.linear % WARP);
    if (!runnable) machine->runnable_warps &= ~(1u << warp);
}

void make_runnable(u32 warp, u32 lanes) {
    if (!lanes) return;
    machine->warps[warp].runnable |= lanes;
    machine->runnable_warps |= 1u << warp;
}

/// Leaves this thread for another one, or for the machine where none can go on.
void leave() {
    Thread* me = self;
    Thread* other = next();
    if (other == me) return;
    self = other;
    standin_switch(&me->stack_pointer, other ? other->stack_pointer : machine->main_stack_pointer);
}

void fiber() {
    Machine& k = *machine;
    k.launch->kernel->call(k.values);
    self->exited = true;
    self->waits_for = "nothing: it has returned";
    k.alive--;
    stop_running(*self);
    leave();
    abort();  // nobody goes back to a thread that has returned
}

std::string thread_name(const Thread& thread) {
    char text[96];
    snprintf(text, sizeof text, "thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
    return text;
}

std::string where(const Thread& thread) {
    std::string text = thread_name(thread) + " waits for " + thread.waits_for;
    if (thread.exited) return thread_name(thread) + " has returned";
    char line[16];
    snprintf(line, sizeof line, ":%u", thread.place.line());
    return text + " at " + thread.place.file_name() + line;
}

[[noreturn]] void fail(std::string problem) {
    machine->problem = std::move(problem);
    siglongjmp(machine->fault, 1);
}

/// Why no thread can go on although some have not returned.
std::string divergence() {
    Machine& k = *machine;
    const Thread* first = nullptr;
    for (u32 i = 0; i < k.count && !first; i++) {
        if (!k.threads[i].exited) first = &k.threads[i];
    }
    std::string text = "divergence: " + where(*first);
    for (u32 i = 0; i < k.count; i++) {
        const Thread& other = k.threads[i];
        bool same = !other.exited && other.place.line() == first->place.line()
            && !strcmp(other.waits_for, first->waits_for);
        if (!same) return text + ", but " + where(other);
    }
    return text + ", and so do all others: it names threads that do not exist";
}

void on_signal(int number, siginfo_t* info, void* context) {
    Machine* k = machine;
    if (!k || !k->running || !self) {
        // Not a kernel's: what was there before handles it.
        signal(number, SIG_DFL);
        return;
    }
    k->fault_address = info->si_addr;
    k->fault_signal = number;
#if defined(__x86_64__)
    k->fault_writes = ((ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
    k->fault_writes = false;
    (void)context;
#endif
    siglongjmp(k->fault, 2);
}

/// While it lives, faults of this thread go to the machine.
struct Signals {
    static constexpr int NUMBERS[3] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction before[3];
    stack_t stack_before;
    unsigned char* stack;
    Signals() {
        stack = (unsigned char*)malloc(64 << 10);
        stack_t own{.ss_sp = stack, .ss_flags = 0, .ss_size = 64 << 10};
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(NUMBERS[i], &action, &before[i]);
    }
    ~Signals() {
        for (int i = 0; i < 3; i++) sigaction(NUMBERS[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
        free(stack);
    }
};

unsigned char* guarded(size_t bytes) {
    auto* pages = (unsigned char*)mmap(nullptr, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + PAGE, bytes, PROT_READ | PROT_WRITE);
    return pages + PAGE;
}

void set_up() {
    if (machine) return;
    machine = &m();
    Machine& k = *machine;
    k.stacks = (unsigned char*)mmap(nullptr, MAX_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (u32 i = 0; i < MAX_THREADS; i++) mprotect(k.stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
    k.static_end = guarded(STATIC_SHARED) + STATIC_SHARED;
    k.dynamic_end = guarded(DYNAMIC_SHARED) + DYNAMIC_SHARED;
}

std::string describe(const void* address) {
    Machine& k = *machine;
    std::string text = memory_describe(address);
    if (!text.empty()) return text;
    auto at = (const unsigned char*)address;
    char line[96];
    if (at >= k.static_end - STATIC_SHARED - PAGE && at < k.static_end + PAGE) {
        snprintf(line, sizeof line, "static shared memory, %td bytes past its end", at - k.static_end);
    } else if (at >= k.dynamic_end - DYNAMIC_SHARED - PAGE && at < k.dynamic_end + PAGE) {
        snprintf(line, sizeof line, "dynamic shared memory, %td bytes past its end (it has %zu)",
                 at - k.dynamic_end, k.launch->dynamic_shared);
    } else if (at >= k.stacks && at < k.stacks + MAX_THREADS * (STACK + PAGE)) {
        snprintf(line, sizeof line, "the end of its stack of %zu bytes", STACK);
    } else {
        snprintf(line, sizeof line, "address %p, which is no device memory", address);
    }
    return line;
}

void report(const std::string& problem, bool of_thread) {
    Machine& k = *machine;
    char block[96];
    snprintf(block, sizeof block, ", block (%u, %u, %u)", block_index.x, block_index.y, block_index.z);
    k.report = std::string("kernel ") + k.launch->kernel->name + block;
    if (of_thread && self) k.report += ", " + thread_name(*self);
    k.report += ": " + problem;
    fprintf(stderr, "stand-in: %s\n", k.report.c_str());
}

/// Empty while nobody wrote where nothing belongs.
std::string check_slack() {
    Machine& k = *machine;
    for (auto& red : k.reds) {
        for (size_t i = 0; i < RED; i++) {
            if (red.from[i] != UNSET) return "a write into shared memory " + std::to_string(i) + " bytes past a static array";
        }
    }
    size_t slack = -k.launch->dynamic_shared % 16;
    for (size_t i = 0; i < slack; i++) {
        if (k.dynamic_end[-1 - ptrdiff_t(i)] != UNSET) return "a write past the end of dynamic shared memory";
    }
    std::string global = memory_check();
    return global.empty() ? "" : "a write into " + global;
}

void run_block(const Launch& launch) {
    Machine& k = *machine;
    size_t dynamic = (launch.dynamic_shared + 15) / 16 * 16;
    memset(k.dynamic_end - dynamic, UNSET, dynamic);
    memset(k.static_end - k.static_used, UNSET, k.static_used);
    k.alive = k.count;
    u32 warps = (k.count + WARP - 1) / WARP;
    k.runnable_warps = warps == 32 ? ~0u : (1u << warps) - 1;
    for (u32 w = 0; w < warps; w++) {
        u32 lanes = std::min(WARP, k.count - w * WARP);
        k.warps[w].runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
        k.warps[w].meeting = 0;
    }
    for (auto& barrier : k.barriers) {
        if (barrier.arrived) memset(&barrier, 0, sizeof barrier);
        barrier.expected = 0;
    }
    uint3 index = {0, 0, 0};
    for (u32 i = 0; i < k.count; i++) {
        Thread& thread = k.threads[i];
        thread.index = index;
        thread.linear = i;
        thread.exited = false;
        thread.waits_for = "its first turn";
        if (!thread.copies.empty()) thread.copies.clear();
        // Not all at the same offset in a page: they would share a few lines of the cache.
        unsigned char* stack_end = k.stacks + (i + 1) * (STACK + PAGE) - i * 192 % PAGE / 64 * 64;
        thread.stack_pointer = new_fiber(stack_end, i, fiber);
        if (++index.x == launch.block.x) {
            index.x = 0;
            if (++index.y == launch.block.y) index.y = 0, index.z++;
        }
    }
    k.warp = choose(k.runnable_warps);
    self = next();
    standin_switch(&k.main_stack_pointer, self->stack_pointer);
    if (k.alive) fail(divergence());
}

}  // namespace

const std::string& last_report() {
    return m().report;
}

Fault run(const Launch& launch, const Order& order) {
    set_up();
    Machine& k = *machine;
    k.launch = &launch;
    k.launches++;
    k.order = order;
    k.random = (order.seed + 1) * 0x9e3779b97f4a7c15ull ^ k.launches << 32;
    if (!k.random) k.random = 1;
    k.count = launch.block.x * launch.block.y * launch.block.z;
    block_extent = launch.block;
    grid_extent = launch.grid;
    k.static_used = 0;
    k.reds.clear();
    k.values[0] = launch.kernel->body;
    for (size_t i = 0; i < launch.offsets.size(); i++) {
        k.values[i + 1] = (void*)(launch.arguments.data() + launch.offsets[i]);
    }
#if !defined(__x86_64__) || defined(STANDIN_UCONTEXT)
    k.main_stack_pointer = &contexts[MAX_THREADS];
#endif
    u64 blocks = u64(launch.grid.x) * launch.grid.y * launch.grid.z;
    std::vector<u64> shuffled;
    if (order.kind == Order::Shuffle) {
        shuffled.resize(blocks);
        std::iota(shuffled.begin(), shuffled.end(), 0);
        for (u64 i = blocks; i > 1; i--) std::swap(shuffled[i - 1], shuffled[random_bits() % i]);
    }
    Signals signals;
    self = nullptr;
    // Changed between setjmp and longjmp.
    volatile Fault fault = Fault::None;
    switch (sigsetjmp(k.fault, 1)) {
        case 0: {
            k.running = true;
            for (u64 i = 0; i < blocks; i++) {
                u64 b = order.kind == Order::Forward ? i : order.kind == Order::Reverse ? blocks - 1 - i : shuffled[i];
                block_index = {u32(b % launch.grid.x), u32(b / launch.grid.x % launch.grid.y),
                               u32(b / launch.grid.x / launch.grid.y)};
                run_block(launch);
                self = nullptr;
                std::string slack = check_slack();
                if (!slack.empty()) {
                    report(slack, false);
                    fault = Fault::Memory;
                    break;
                }
            }
            break;
        }
        case 1:
            report(k.problem, false);
            fault = Fault::Other;
            break;
        default:
            if (k.fault_signal == SIGFPE) {
                report("an integer division by zero", true);
                fault = Fault::Other;
            } else {
                report((k.fault_writes ? "a write to " : "a read of ") + describe(k.fault_address), true);
                fault = Fault::Memory;
            }
    }
    k.running = false;
    self = nullptr;
    return fault;
}

// What kernels call --------------------------------------------------------------------------------

bool meet(u32 mask, void* post, const char* what, const Place& place) {
    Machine& k = *machine;
    u32 lane = self->linear % WARP, warp_number = self->linear / WARP;
    Warp& warp = k.warps[warp_number];
    if (!(mask >> lane & 1)) fail(thread_name(*self) + " is not in the mask of its " + what);
    warp.posts[lane] = post;
    self->waits_for = what;
    self->place = place;
    self->mask = mask;
    warp.meeting |= 1u << lane;
    if ((warp.meeting & mask) != mask) {
        stop_running(*self);
        leave();
        return false;
    }
    for (u32 other = 0; other < WARP; other++) {
        if (!(mask >> other & 1)) continue;
        const Thread& thread = k.threads[warp_number * WARP + other];
        bool same = thread.mask == mask && thread.place.line() == place.line() && !strcmp(thread.waits_for, what);
        if (!same) fail("divergence in a warp: " + where(*self) + ", but " + where(thread));
    }
    return true;
}

void** posts() {
    return machine->warps[self->linear / WARP].posts;
}

void part(u32 mask) {
    u32 warp = self->linear / WARP;
    machine->warps[warp].meeting &= ~mask;
    make_runnable(warp, mask);
    // Who came last goes on first only if it is its turn.
    if (machine->order.kind != Order::Forward) leave();
}

void barrier(u32 id, u32 threads, const char* what, const Place& place) {
    Machine& k = *machine;
    if (id >= BARRIERS) fail("there is no barrier " + std::to_string(id));
    Barrier& barrier = k.barriers[id];
    u32 expected = threads ? threads : k.count;
    self->waits_for = what;
    self->place = place;
    if (barrier.arrived == 0) {
        barrier.expected = expected;
    } else if (barrier.expected != expected) {
        fail(where(*self) + " with another number of threads than those before it");
    }
    barrier.waiting[self->linear / WARP] |= 1u << self->linear % WARP;
    if (++barrier.arrived < expected) {
        stop_running(*self);
        leave();
        return;
    }
    // In the whole block all must wait at the same line: else some are elsewhere.
    for (u32 w = 0; w < MAX_WARPS; w++) {
        for (u32 lanes = barrier.waiting[w]; lanes && !threads; lanes &= lanes - 1) {
            const Thread& thread = k.threads[w * WARP + std::countr_zero(lanes)];
            if (thread.place.line() != place.line()) fail("divergence: " + where(*self) + ", but " + where(thread));
        }
        make_runnable(w, barrier.waiting[w]);
        barrier.waiting[w] = 0;
    }
    barrier.arrived = 0;
    k.warp = choose(k.runnable_warps);
    leave();
}

void trap(const char* what, const Place& place) {
    char line[16];
    snprintf(line, sizeof line, ":%u", place.line());
    fail(thread_name(*self) + ": " + what + " at " + place.file_name() + line);
}

void* static_shared(Site& site, size_t bytes, size_t alignment) {
    Machine& k = *machine;
    if (site.launch != k.launches) {
        // From the end of the memory down, so that the first array ends at the guard page.
        size_t top = k.static_used + (k.static_used ? RED : 0);
        size_t used = (top + bytes + 127) / 128 * 128;
        if (k.static_used == 0) used = (bytes + alignment - 1) / alignment * alignment;
        if (used > STATIC_SHARED) fail("more than 48 KiB of static shared memory");
        unsigned char* from = k.static_end - used;
        memset(from, UNSET, used - k.static_used);
        unsigned char* after = from + bytes;
        if (after + RED <= k.static_end - k.static_used) k.reds.push_back({after});
        k.static_used = used;
        site = {k.launches, from};
    }
    return site.memory;
}

void* dynamic_shared() {
    return machine->dynamic_end - (machine->launch->dynamic_shared + 15) / 16 * 16;
}

void copy_async(void* to, const void* from, u32 bytes, u32 zeros) {
    // It lands only when it is waited for. What it reads must be readable now.
    if (self->copies.empty()) self->copies.emplace_back();
    if (bytes) (void)*(volatile const unsigned char*)from;
    self->copies.back().push_back({to, from, bytes, zeros});
}

void copy_commit() {
    if (self->copies.empty()) self->copies.emplace_back();
    self->copies.emplace_back();
}

void copy_wait(u32 groups_left) {
    auto& copies = self->copies;
    if (copies.empty()) return;
    // The last group is open and is not waited for.
    size_t closed = copies.size() - 1;
    size_t land = closed > groups_left ? closed - groups_left : 0;
    for (size_t g = 0; g < land; g++) {
        for (auto& copy : copies[g]) {
            if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
            if (copy.zeros) memset((unsigned char*)copy.to + copy.bytes, 0, copy.zeros);
        }
    }
    copies.erase(copies.begin(), copies.begin() + ptrdiff_t(land));
}

}  // namespace standin
