// The machine of the stand-in: runs one launch on the host, block after block, with the threads of
// a block as fibers that change over where CUDA threads would wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct uint3 {
    u32 x, y, z;
};

struct dim3 {
    u32 x = 1, y = 1, z = 1;
};

namespace standin {

using Place = std::source_location;

constexpr u32 WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP, BARRIERS = 16;
/// Blocks of a cluster that every device since sm_90 can run.
constexpr u32 MAX_CLUSTER = 8;

/// In what order blocks start, and which of several runnable threads goes on.
struct Order {
    enum Kind { Forward, Reverse, Shuffle } kind = Forward;
    u64 seed = 0;
    /// From the text forward, reverse or shuffle:SEED. False where it is none of these.
    static bool parse(const char* text, Order& order);
};

/// A kernel compiled for the host.
struct Kernel {
    const char* name;
    /// Most threads of a block: its `__launch_bounds__`.
    u32 max_threads;
    /// Size of each parameter in bytes.
    std::vector<size_t> parameters;
    /// Calls the body with pointers to the arguments.
    void (*call)(void* const* body_and_arguments);
    void* body;
};

/// All kernels of the library.
std::vector<Kernel>& kernels();
const Kernel* find_kernel(const std::string& name);

template <class... A>
struct Caller {
    template <size_t... I>
    static void unpack(void* const* values, std::integer_sequence<size_t, I...>) {
        reinterpret_cast<void (*)(A...)>(values[0])(*static_cast<A*>(values[I + 1])...);
    }
    static void call(void* const* values) {
        unpack(values, std::make_integer_sequence<size_t, sizeof...(A)>());
    }
};

struct Register {
    template <class... A>
    Register(const char* name, u32 max_threads, void (*body)(A...)) {
        kernels().push_back({name, max_threads, {sizeof(A)...}, Caller<A...>::call, (void*)body});
    }
};

/// What a launch is given.
struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    size_t dynamic_shared = 0;
    std::vector<u8> arguments;
    std::vector<size_t> offsets;
    /// Blocks of a cluster; divides the grid.
    dim3 cluster;
};

enum class Fault { None, Memory, Other };

/// Runs it to its end. A fault is described on standard error and in `last_report()`.
Fault run(const Launch& launch, const Order& order);
const std::string& last_report();

// What follows is called by kernels.

/// What cuTensorMapEncodeTiled writes here: a tensor in device memory, and the box that is copied at a time.
struct TensorMap {
    static constexpr u64 MAGIC = 0x70616d20726f7364;
    u64 magic;
    unsigned char* address;
    /// Bytes from one to the next along each axis, extents, and those of the box; innermost first.
    u64 strides[3];
    u32 extents[3], box[3];
    u32 element_bytes, rank;
    u64 unused[7];
};
static_assert(sizeof(TensorMap) == 128);

/// d (+)= a b by a warpgroup, one thread's part; see kernels/common/hopper.cuh.
struct Product {
    u64 a, b;
    float* d;
    u32 n;
    bool a_mn, b_mn, add;
};

/// A block, as its threads see it.
struct Home {
    uint3 index;
    /// Among the blocks of its cluster.
    u32 rank;
};

struct Thread {
    void* stack_pointer;
    Home* home;
    uint3 index;
    u32 linear;
    bool exited;
    /// It came to the cluster's barrier and has not waited there yet; the barrier's phase then.
    bool arrived;
    u64 phase;
    /// What it sleeps on until somebody wakes it.
    const void* asleep;
    /// Where it waits, for reports and to see whether all wait at the same call.
    const char* waits_for;
    Place place;
    u32 mask;
    /// What it brings to a meeting of its warp.
    void* post;
    struct Copy {
        void* to;
        const void* from;
        u32 bytes, zeros;
    };
    /// Asynchronous copies into shared memory, by group; the last one is still open.
    std::vector<std::vector<Copy>> copies;
    /// Products of its warpgroup, the same.
    std::vector<std::vector<Product>> products;
    /// Groups of stores of tiles that it has closed.
    u32 store_groups;
};

extern Thread* self;
extern dim3 block_extent, grid_extent, cluster_extent;

/// Meets the lanes in `mask` at this call. True for the one that comes last: it combines what lies in
/// `posts()` and calls `part()`; the others go on only then.
bool meet(u32 mask, void* post, const char* what, const Place& place);
void** posts();
void part(u32 mask);
/// Waits until `threads` threads have come to the barrier; 0 stands for all of the block.
void barrier(u32 id, u32 threads, const char* what, const Place& place);
/// The two halves of the barrier of a cluster's threads.
void cluster_arrive(const Place& place);
void cluster_wait(const Place& place);
/// The same place of shared memory in another block of the cluster.
void* of_block(const void* shared, u32 rank, const Place& place);
/// Barriers in shared memory. An arrival may come with bytes to wait for.
u32 shared_address(const void* shared, const Place& place);
void mbarrier_init(u64* at, u32 count, const Place& place);
void mbarrier_arrive(u64* at, u32 bytes, const Place& place);
void mbarrier_wait(u64* at, u32 parity, const Place& place);
/// Copies of tiles, which land some time later.
void tile_load(void* to, const TensorMap& map, uint3 at, u64* barrier, u32 blocks, const Place& place);
void tile_store(const TensorMap& map, const void* from, uint3 at, const Place& place);
void commit_stores();
void wait_stores(u32 groups_left);
void multiply(const Product& product, const Place& place);
void commit_products();
void wait_products(u32 groups_left);
/// What a device does at an instruction that it refuses.
[[noreturn]] void trap(const char* what, const Place& place);

/// Memory of a static shared array: one address for all threads of a block. `site` is the array's own.
struct Site {
    u64 launch = 0;
    /// How far before the end of a block's static shared memory it begins.
    size_t before_end = 0;
};
void* static_shared(Site& site, size_t bytes, size_t alignment);
void* dynamic_shared();

void copy_async(void* to, const void* from, u32 bytes, u32 zeros);
void copy_commit();
void copy_wait(u32 groups_left);

}  // namespace standin
