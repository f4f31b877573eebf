// The blocks of a cluster as a team: see rows.cuh.
#pragma once
#include "cluster.cuh"
#include "rows.cuh"

/// `BLOCKS` blocks of `THREADS`, as many as the launch has in a cluster; one row a cluster.
template <u32 THREADS, u32 BLOCKS>
struct Cluster {
    static constexpr u32 SIZE = THREADS * BLOCKS;
    /// Shared memory: TEAM_PARTIALS.
    float* partials;
    /// Which of two places the next results take: others may still read those before.
    mutable u32 turn = 0;

    FUNCTOR u32 thread() const { return cluster_rank() * THREADS + threadIdx.x; }
    FUNCTOR u32 number() const { return blockIdx.x / BLOCKS; }

    /// Over each block, then over the blocks in order of their ranks, which every warp does for itself.
    template <int N, class F>
    FUNCTOR void all(float (&x)[N], float none, F f) const {
        Block<THREADS>{partials}.all(x, none, f);
        float* own = partials + 32 * TEAM_VALUES + turn * TEAM_VALUES;
        turn ^= 1;
        if (threadIdx.x == 0) {
            UNROLL
            for (int i = 0; i < N; i++) own[i] = x[i];
        }
        // Also: all blocks have begun, and have read what was there the time before the last.
        cluster_sync();
        const float* its = of_block(own, lane_id() % BLOCKS);
        UNROLL
        for (int i = 0; i < N; i++) x[i] = warp_all(lane_id() < BLOCKS ? its[i] : none, f);
    }
    /// No block returns while others read its memory.
    FUNCTOR void leave() const { cluster_arrive(); }
    FUNCTOR void left() const { cluster_wait(); }
};
