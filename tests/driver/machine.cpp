#include "state.hpp"

#include "memory.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

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
static ucontext_t contexts[MAX_CLUSTER * MAX_THREADS + 1];
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
dim3 block_extent, grid_extent, cluster_extent;
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
static Thread* next() {
    Machine& k = *machine;
    bool shuffled = k.order.kind == Order::Shuffle;
    if (!k.transfers.empty()) {
        if (shuffled && random_bits() >> 61 == 0) land();
        while (!k.runnable_blocks && land()) {
        }
    }
    if (!k.runnable_blocks) return nullptr;
    if (!(k.runnable_blocks >> k.block & 1) || (shuffled && k.together > 1)) k.block = choose(k.runnable_blocks);
    Block& block = *k.blocks[k.block];
    if (!(block.runnable_warps >> block.warp & 1) || shuffled) block.warp = choose(block.runnable_warps);
    return &block.threads[block.warp * WARP + choose(block.warps[block.warp].runnable)];
}

void leave() {
    Thread* me = self;
    Thread* other = next();
    if (other == me) return;
    self = other;
    standin_switch(&me->stack_pointer, other ? other->stack_pointer : machine->main_stack_pointer);
}

void sleep_on(const void* what, const char* waits_for, const Place& place) {
    self->asleep = what;
    self->waits_for = waits_for;
    self->place = place;
    machine->sleepers.push_back(self);
    stop_running(*self);
    leave();
}

void wake(const void* what) {
    std::erase_if(machine->sleepers, [what](Thread* thread) {
        if (thread->asleep != what) return false;
        thread->asleep = nullptr;
        make_runnable(*static_cast<Block*>(thread->home), thread->linear / WARP, 1u << thread->linear % WARP);
        return true;
    });
}

std::string thread_name(const Thread& thread) {
    char text[128];
    int used = snprintf(text, sizeof text, "thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
    uint3 block = thread.home->index;
    if (machine->together > 1) {
        snprintf(text + used, sizeof text - size_t(used), " of block (%u, %u, %u)", block.x, block.y, block.z);
    }
    return text;
}

std::string where(const Thread& thread) {
    std::string text = thread_name(thread) + " waits for " + thread.waits_for;
    if (thread.waits_for == MBARRIER && thread.asleep) text += mbarrier_state(thread.asleep);
    if (thread.exited) return thread_name(thread) + " has returned";
    char line[16];
    snprintf(line, sizeof line, ":%u", thread.place.line());
    return text + " at " + thread.place.file_name() + line;
}

void fail(std::string problem) {
    machine->problem = std::move(problem);
    siglongjmp(machine->fault, 1);
}

namespace {

/// Makes a block's shared memory readable and writable, or neither. Only in clusters can others reach it.
void show(Block& block, bool there) {
    block.there = there;
    if (machine->together == 1) return;
    int rights = there ? PROT_READ | PROT_WRITE : PROT_NONE;
    mprotect(block.static_end - STATIC_SHARED, STATIC_SHARED, rights);
    mprotect(block.dynamic_end - DYNAMIC_SHARED, DYNAMIC_SHARED, rights);
}

void fiber() {
    Machine& k = *machine;
    Block& block = home();
    if (!block.there) {
        show(block, true);
        size_t dynamic = (k.launch->dynamic_shared + 15) / 16 * 16;
        memset(block.dynamic_end - dynamic, UNSET, dynamic);
        memset(block.static_end - k.static_used, UNSET, k.static_used);
    }
    k.launch->kernel->call(k.values);
    self->exited = true;
    self->waits_for = "nothing: it has returned";
    if (--block.alive == 0) {
        std::string problem = mbarrier_problem(block);
        if (!problem.empty()) fail(problem);
        if (k.together > 1) show(block, false);
    }
    stop_running(*self);
    leave();
    abort();  // nobody goes back to a thread that has returned
}

/// Why no thread can go on although some have not returned.
std::string divergence() {
    Machine& k = *machine;
    const Thread* first = nullptr;
    auto all = [&k](auto each) {
        for (u32 rank = 0; rank < k.together; rank++) {
            for (u32 i = 0; i < k.count; i++) {
                if (each(k.blocks[rank]->threads[i])) return;
            }
        }
    };
    all([&](Thread& thread) { return !thread.exited && (first = &thread); });
    // The report is of its block.
    self = const_cast<Thread*>(first);
    // One thread of each kind; some of those that wait differ in nothing but their number.
    std::vector<const Thread*> kinds;
    all([&](Thread& thread) {
        for (const Thread* known : kinds) {
            bool same = thread.exited == known->exited && thread.asleep == known->asleep
                && (thread.exited || (thread.place.line() == known->place.line() && !strcmp(thread.waits_for, known->waits_for)));
            if (same) return false;
        }
        kinds.push_back(&thread);
        return kinds.size() == 8;
    });
    bool asleep = false;
    for (const Thread* one : kinds) asleep |= one->waits_for == MBARRIER && !one->exited;
    std::string text = (asleep ? "deadlock: " : "divergence: ") + where(*first);
    for (const Thread* one : kinds) {
        if (one != first) text += ", but " + where(*one);
    }
    if (kinds.size() == 1) text += ", and so do all others: it names threads that do not exist";
    return text;
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

/// Blocks that are alive together, as many as the launch needs.
void set_up(u32 together) {
    if (!machine) machine = new Machine();
    for (u32 rank = 0; rank < together; rank++) {
        Block*& block = machine->blocks[rank];
        if (block) continue;
        // All zeros: barriers that nobody waits at.
        block = new Block();
        block->rank = rank;
        block->stacks = (unsigned char*)mmap(nullptr, MAX_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (u32 i = 0; i < MAX_THREADS; i++) mprotect(block->stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
        block->static_end = guarded(STATIC_SHARED) + STATIC_SHARED;
        block->dynamic_end = guarded(DYNAMIC_SHARED) + DYNAMIC_SHARED;
    }
}

std::string describe(const void* address) {
    Machine& k = *machine;
    std::string text = memory_describe(address);
    if (!text.empty()) return text;
    auto at = (const unsigned char*)address;
    char line[160];
    for (u32 rank = 0; rank < k.together; rank++) {
        Block& block = *k.blocks[rank];
        bool is_static = at >= block.static_end - STATIC_SHARED - PAGE && at < block.static_end + PAGE;
        bool is_dynamic = at >= block.dynamic_end - DYNAMIC_SHARED - PAGE && at < block.dynamic_end + PAGE;
        if ((is_static || is_dynamic) && !block.there) {
            snprintf(line, sizeof line, "shared memory of block (%u, %u, %u) of the cluster, which has %s", block.index.x,
                     block.index.y, block.index.z, block.alive ? "not begun" : "returned");
        } else if (is_static) {
            snprintf(line, sizeof line, "static shared memory, %td bytes past its end", at - block.static_end);
        } else if (is_dynamic) {
            snprintf(line, sizeof line, "dynamic shared memory, %td bytes past its end (it has %zu)",
                     at - block.dynamic_end, k.launch->dynamic_shared);
        } else if (at >= block.stacks && at < block.stacks + MAX_THREADS * (STACK + PAGE)) {
            snprintf(line, sizeof line, "the end of its stack of %zu bytes", STACK);
        } else {
            continue;
        }
        return line;
    }
    snprintf(line, sizeof line, "address %p, which is no device memory", address);
    return line;
}

void report(const std::string& problem, bool of_thread, uint3 index) {
    Machine& k = *machine;
    char block[96];
    snprintf(block, sizeof block, ", block (%u, %u, %u)", index.x, index.y, index.z);
    k.report = std::string("kernel ") + k.launch->kernel->name + block;
    if (of_thread && self) k.report += ", " + thread_name(*self);
    k.report += ": " + problem;
    fprintf(stderr, "stand-in: %s\n", k.report.c_str());
}

/// Empty while nobody wrote where nothing belongs.
std::string check_slack(const Block& block) {
    Machine& k = *machine;
    for (size_t red : k.reds) {
        for (size_t i = 0; i < RED; i++) {
            if (*(block.static_end - red + i) != UNSET) {
                return "a write into shared memory " + std::to_string(i) + " bytes past a static array";
            }
        }
    }
    size_t slack = -k.launch->dynamic_shared % 16;
    for (size_t i = 0; i < slack; i++) {
        if (block.dynamic_end[-1 - ptrdiff_t(i)] != UNSET) return "a write past the end of dynamic shared memory";
    }
    std::string global = memory_check();
    return global.empty() ? "" : "a write into " + global;
}

/// Puts all threads of a block at their beginning.
void prepare(Block& block, uint3 index_of_block) {
    Machine& k = *machine;
    block.index = index_of_block;
    block.alive = k.count;
    show(block, false);
    u32 warps = (k.count + WARP - 1) / WARP;
    block.runnable_warps = warps == 32 ? ~0u : (1u << warps) - 1;
    for (u32 w = 0; w < warps; w++) {
        u32 lanes = std::min(WARP, k.count - w * WARP);
        block.warps[w].runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
        block.warps[w].meeting = 0;
    }
    for (auto& barrier : block.barriers) {
        if (barrier.arrived) memset(&barrier, 0, sizeof barrier);
        barrier.expected = 0;
    }
    uint3 index = {0, 0, 0};
    for (u32 i = 0; i < k.count; i++) {
        Thread& thread = block.threads[i];
        thread.home = &block;
        thread.index = index;
        thread.linear = i;
        thread.exited = thread.arrived = false;
        thread.asleep = nullptr;
        thread.store_groups = 0;
        if (!thread.products.empty()) thread.products.clear();
        thread.waits_for = "its first turn";
        if (!thread.copies.empty()) thread.copies.clear();
        // Not all at the same offset in a page: they would share a few lines of the cache.
        unsigned char* stack_end = block.stacks + (i + 1) * (STACK + PAGE) - i * 192 % PAGE / 64 * 64;
        thread.stack_pointer = new_fiber(stack_end, block.rank * MAX_THREADS + i, fiber);
        if (++index.x == block_extent.x) {
            index.x = 0;
            if (++index.y == block_extent.y) index.y = 0, index.z++;
        }
    }
    block.warp = choose(block.runnable_warps);
}

/// Runs the blocks of a cluster together. What is wrong with memory afterwards, and in which block.
std::string run_cluster(uint3 number, uint3& index) {
    Machine& k = *machine;
    dim3 c = cluster_extent;
    k.cluster_arrived = 0;
    k.sleepers.clear();
    k.transfers.clear();
    k.mbarriers.clear();
    for (u32 rank = 0; rank < k.together; rank++) {
        prepare(*k.blocks[rank], {number.x * c.x + rank % c.x, number.y * c.y + rank / c.x % c.y,
                                  number.z * c.z + rank / c.x / c.y});
    }
    k.runnable_blocks = (1u << k.together) - 1;
    k.block = choose(k.runnable_blocks);
    self = next();
    standin_switch(&k.main_stack_pointer, self->stack_pointer);
    for (u32 rank = 0; rank < k.together; rank++) {
        if (k.blocks[rank]->alive) fail(divergence());
    }
    std::string slack;
    for (u32 rank = 0; rank < k.together && slack.empty(); rank++) {
        Block& block = *k.blocks[rank];
        if (!block.there) show(block, true);
        index = block.index;
        slack = check_slack(block);
    }
    return slack;
}

}  // namespace

const std::string& last_report() {
    static const std::string none;
    return machine ? machine->report : none;
}

Fault run(const Launch& launch, const Order& order) {
    dim3 c = launch.cluster;
    set_up(c.x * c.y * c.z);
    Machine& k = *machine;
    k.launch = &launch;
    k.launches++;
    k.order = order;
    k.random = (order.seed + 1) * 0x9e3779b97f4a7c15ull ^ k.launches << 32;
    if (!k.random) k.random = 1;
    k.together = c.x * c.y * c.z;
    k.count = launch.block.x * launch.block.y * launch.block.z;
    block_extent = launch.block;
    grid_extent = launch.grid;
    cluster_extent = launch.cluster;
    k.static_used = 0;
    k.reds.clear();
    k.values[0] = launch.kernel->body;
    for (size_t i = 0; i < launch.offsets.size(); i++) {
        k.values[i + 1] = (void*)(launch.arguments.data() + launch.offsets[i]);
    }
#if !defined(__x86_64__) || defined(STANDIN_UCONTEXT)
    k.main_stack_pointer = &contexts[MAX_CLUSTER * MAX_THREADS];
#endif
    dim3 clusters = {launch.grid.x / c.x, launch.grid.y / c.y, launch.grid.z / c.z};
    u64 count = u64(clusters.x) * clusters.y * clusters.z;
    std::vector<u64> shuffled;
    if (order.kind == Order::Shuffle) {
        shuffled.resize(count);
        std::iota(shuffled.begin(), shuffled.end(), 0);
        for (u64 i = count; i > 1; i--) std::swap(shuffled[i - 1], shuffled[random_bits() % i]);
    }
    Signals signals;
    self = nullptr;
    // Changed between setjmp and longjmp.
    volatile Fault fault = Fault::None;
    switch (sigsetjmp(k.fault, 1)) {
        case 0: {
            k.running = true;
            for (u64 i = 0; i < count; i++) {
                u64 b = order.kind == Order::Forward ? i : order.kind == Order::Reverse ? count - 1 - i : shuffled[i];
                uint3 index, number = {u32(b % clusters.x), u32(b / clusters.x % clusters.y), u32(b / clusters.x / clusters.y)};
                std::string slack = run_cluster(number, index);
                if (!slack.empty()) {
                    report(slack, false, index);
                    fault = Fault::Memory;
                    break;
                }
            }
            break;
        }
        case 1:
            report(k.problem, false, self->home->index);
            fault = Fault::Other;
            break;
        default:
            if (k.fault_signal == SIGFPE) {
                report("an integer division by zero", true, self->home->index);
                fault = Fault::Other;
            } else {
                std::string what = (k.fault_writes ? "a write to " : "a read of ") + describe(k.fault_address);
                report(what, true, self->home->index);
                fault = Fault::Memory;
            }
    }
    if (fault != Fault::None) {
        for (u32 rank = 0; rank < k.together; rank++) show(*k.blocks[rank], true);
    }
    k.running = false;
    self = nullptr;
    return fault;
}

}  // namespace standin
