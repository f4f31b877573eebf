// Blocks of a cluster (sm_90 and later): their barrier, and each other's shared memory. A launch says how many make a cluster
// (`Kernel::cluster`); without that a block is a cluster of its own.
//
//   cluster_rank, cluster_blocks    which block of the cluster this is, and of how many
//   cluster_arrive, cluster_wait    the halves of the barrier of all threads of the cluster: what was written before the arrival
//                                   is seen after the wait, shared memory of the others too
//   cluster_sync                    both
//   of_block(p, rank)               where block `rank` has what this block has at `p` in shared memory
//
// Before the first access to another block's memory that block must have begun, and until the last one it may not return: so a
// kernel has a cluster_sync before the first and after the last.
#pragma once
#include "cuda.cuh"

#ifdef __CUDACC__

DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE u32 cluster_blocks() {
    u32 blocks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}
DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
DEVICE void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
template <class T>
DEVICE T* of_block(T* shared, u32 rank) {
    u64 address;
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(u64(shared)), "r"(rank));
    return (T*)address;
}
DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

#else

inline u32 cluster_rank() {
    return standin::self->home->rank;
}
inline u32 cluster_blocks() {
    return standin::cluster_extent.x * standin::cluster_extent.y * standin::cluster_extent.z;
}
inline void cluster_arrive(standin_place place = standin_place::current()) {
    standin::cluster_arrive(place);
}
inline void cluster_wait(standin_place place = standin_place::current()) {
    standin::cluster_wait(place);
}
inline void cluster_sync(standin_place place = standin_place::current()) {
    standin::cluster_arrive(place);
    standin::cluster_wait(place);
}
template <class T>
inline T* of_block(T* shared, u32 rank, standin_place place = standin_place::current()) {
    return (T*)standin::of_block(shared, rank, place);
}

#endif
