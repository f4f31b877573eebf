// The state of the machine, for the files that run it: `machine.cpp` runs blocks, `calls.cpp` has what kernels call.
#pragma once

#include "machine.hpp"

#include <setjmp.h>

#include <bit>

namespace standin {

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

/// One of the blocks that are alive together: those of a cluster.
struct Block : Home {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_WARPS];
    Barrier barriers[BARRIERS];
    u32 runnable_warps, warp, alive;
    unsigned char* stacks;
    /// End at a page that cannot be touched.
    unsigned char *static_end, *dynamic_end;
    /// Its shared memory is there: from its first thread's first turn to its last one's return.
    bool there;
};

/// A copy of a tile that is under way.
struct Transfer {
    TensorMap map;
    uint3 at;
    /// In the shared memory of the block that asked for it.
    unsigned char* shared;
    Thread* thread;
    /// Of a load: where bytes are counted, and a bit for each block that gets the tile.
    u64* barrier;
    u32 blocks;
    /// Of a store: the thread's group.
    u32 group;
};

struct Machine {
    Block* blocks[MAX_CLUSTER];
    /// Of the launch: blocks of a cluster, threads of a block.
    u32 together, count;
    u32 runnable_blocks, block;
    void* main_stack_pointer;
    Order order;
    u64 random;
    const Launch* launch;
    u64 launches;
    size_t static_used;
    /// Where red bytes begin, before the end of static shared memory.
    std::vector<size_t> reds;
    void* values[64];
    /// Threads that sleep, and the barrier of the cluster.
    std::vector<Thread*> sleepers;
    std::vector<Transfer> transfers;
    std::vector<u64*> mbarriers;
    u64 cluster_phase;
    u32 cluster_arrived;

    bool running;
    sigjmp_buf fault;
    const void* fault_address;
    int fault_signal;
    bool fault_writes;
    std::string problem;
    std::string report;
};

// The one machine, without the guard of a local static: it is on the path of every switch.
extern Machine* machine;

inline Block& home() {
    return *static_cast<Block*>(self->home);
}

u64 random_bits();
/// One of the bits, by the order of the launch.
u32 choose(u32 bits);
/// Leaves this thread for another one, or for the machine where none can go on.
void leave();
[[noreturn]] void fail(std::string problem);
std::string thread_name(const Thread& thread);
std::string where(const Thread& thread);

inline void stop_running(const Thread& thread) {
    Block& block = *static_cast<Block*>(thread.home);
    u32 warp = thread.linear / WARP;
    u32& runnable = block.warps[warp].runnable;
    runnable &= ~(1u << thread.linear % WARP);
    if (runnable) return;
    block.runnable_warps &= ~(1u << warp);
    if (!block.runnable_warps) machine->runnable_blocks &= ~(1u << block.rank);
}

inline void make_runnable(Block& block, u32 warp, u32 lanes) {
    if (!lanes) return;
    block.warps[warp].runnable |= lanes;
    block.runnable_warps |= 1u << warp;
    machine->runnable_blocks |= 1u << block.rank;
}

/// Waits until somebody wakes who sleeps on `what`.
void sleep_on(const void* what, const char* waits_for, const Place& place);
void wake(const void* what);
/// The same place of shared memory in another block; null if it is none of this thread's block.
unsigned char* of_rank(const void* shared, u32 rank);
/// Lets a copy of a tile land, if one is under way.
bool land();
/// What a barrier in shared memory still waits for.
std::string mbarrier_state(const void* at);
/// What is wrong with the barriers of a block that returns.
std::string mbarrier_problem(const Block& block);
extern const char* const MBARRIER;

}  // namespace standin
