// Kernels with a fault each, that the stand-in must catch, and some that time it. Never shipped.
#include "common/hopper.cuh"

/// y[i] = x[of the neighbour's lane in another warp], by shared memory, with or without the barrier it needs.
template <bool WITH_BARRIER>
DEVICE void neighbour(const float* x, float* y) {
    SHARED(float, tile, [256]);
    u32 i = threadIdx.x;
    tile[i] = x[i];
    if (WITH_BARRIER) __syncthreads();
    y[i] = tile[255 - i];
}
KERNEL(planted_barrier, 256, (const float* x, float* y)) { neighbour<true>(x, y); }
KERNEL(planted_missing_barrier, 256, (const float* x, float* y)) { neighbour<false>(x, y); }

KERNEL(planted_write_past_end, 64, (float* y, u32 n)) {
    u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i <= n) y[i] = 1;
}
KERNEL(planted_read_past_end, 64, (const float* x, float* y, u32 distance)) {
    y[threadIdx.x] = x[threadIdx.x + (blockIdx.x == 3 ? distance : 0)];
}
KERNEL(planted_shared_past_end, 64, (float* y, u32 distance)) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + (threadIdx.x == 63 ? distance : 0)] = 1;
    y[threadIdx.x] = tile[threadIdx.x];
}
KERNEL(planted_static_past_end, 64, (float* y, u32 distance)) {
    SHARED(float, first, [64]);
    SHARED(float, second, [64]);
    first[threadIdx.x] = 1;
    second[threadIdx.x + (threadIdx.x == 63 ? distance : 0)] = 2;
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}
KERNEL(planted_unset_shared, 64, (float* y)) {
    SHARED(float, tile, [64]);
    if (threadIdx.x != 17) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
KERNEL(planted_early_return, 64, (float* y)) {
    if (threadIdx.x == 40) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}
KERNEL(planted_other_barrier, 64, (float* y)) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        y[threadIdx.x] = 1;
        __syncthreads();
    }
}
KERNEL(planted_lane_missing, 32, (float* y)) {
    float value = float(threadIdx.x);
    if (threadIdx.x != 5) value += __shfl_xor_sync(ALL_LANES, value, 1);
    y[threadIdx.x] = value;
}
KERNEL(planted_misaligned, 32, (const float* x, float* y)) {
    float4 v = load((const float4*)(x + 1));
    y[threadIdx.x] = v.x;
}
KERNEL(planted_endless_stack, 32, (float* y, u32 depth)) {
    volatile float large[64 << 10];
    for (u32 i = 0; i < depth; i++) large[i] = y[0];
    y[threadIdx.x] = large[depth - 1];
}

/// What the stand-in offers, used once: shuffles, votes, named barriers, integer atomics, grid and block indices.
KERNEL(tool_warp, 64, (const u32* x, u32* y)) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, lane = lane_id();
    u32* out = y + i * 8;
    out[0] = __shfl_sync(ALL_LANES, x[i], 3);
    out[1] = __shfl_xor_sync(ALL_LANES, x[i], 16);
    out[2] = __shfl_down_sync(ALL_LANES, x[i], 4);
    out[3] = __shfl_up_sync(ALL_LANES, x[i], 1, 8);
    out[4] = __ballot_sync(ALL_LANES, x[i] & 1);
    out[5] = u32(__all_sync(ALL_LANES, 1)) + 2 * u32(__any_sync(ALL_LANES, lane == 9));
    out[6] = lane < 16 ? __shfl_sync(0xffffu, x[i], 15) : __shfl_sync(0xffff0000u, x[i], 16);
    SHARED(u32, counter, [2]);
    if (threadIdx.x == 0) counter[0] = 0;
    __syncthreads();
    atomicAdd(&counter[0], x[i]);
    __syncthreads();
    out[7] = counter[0];
}
/// One warp makes values, the other takes them, with a barrier of their own for each direction.
KERNEL(tool_named_barriers, 64, (u32* y, u32 rounds)) {
    SHARED(u32, box, [32]);
    u32 lane = lane_id(), sum = 0;
    for (u32 round = 0; round < rounds; round++) {
        if (threadIdx.x < 32) {
            box[lane] = round * lane;
            barrier_sync(1, 64);
            barrier_sync(2, 64);
        } else {
            barrier_sync(1, 64);
            sum += box[31 - lane];
            barrier_sync(2, 64);
        }
    }
    if (threadIdx.x >= 32) y[lane] = sum;
}
KERNEL(tool_switches, 1024, (float* y, u32 rounds)) {
    for (u32 i = 0; i < rounds; i++) __syncthreads();
    y[threadIdx.x] = 1;
}
KERNEL(tool_shuffles, 1024, (float* y, u32 rounds)) {
    float v = float(threadIdx.x);
    for (u32 i = 0; i < rounds; i++) v += __shfl_xor_sync(ALL_LANES, v, 1 << i % 5);
    y[threadIdx.x] = v;
}
/// f32 to bf16 and f16, and these back.
KERNEL(tool_short_types, 256, (const float* x, u16* as_bf16, u16* as_half, float* from_bf16, float* from_half, u32 n)) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    as_bf16[i] = from_float<bf16>(x[i]).bits;
    as_half[i] = float_to_half(x[i]);
    from_bf16[i] = to_float(bf16{u16(i)});
    from_half[i] = half_to_float(u16(i));
}

/// y[block][i] = what the next block of the cluster has in static and dynamic shared memory; with a barrier before (1), after (2).
DEVICE void cluster_neighbour(u32* y, u32 barriers) {
    SHARED(u32, box, [64]);
    DYNAMIC_SHARED(u32, other_box);
    u32 i = threadIdx.x, block = blockIdx.x + gridDim.x * blockIdx.y;
    box[i] = 1000 * block + i;
    other_box[63 - i] = 7 * block + i;
    if (barriers & 1) cluster_sync();
    u32 next = (cluster_rank() + 1) % cluster_blocks();
    u32 sum = *of_block(box + 63 - i, next) + *of_block(other_box + i, next);
    if (barriers & 2) cluster_sync();
    y[block * 64 + i] = sum;
}
KERNEL(tool_cluster, 64, (u32* y)) { cluster_neighbour(y, 3); }
KERNEL(planted_cluster_begins, 64, (u32* y)) { cluster_neighbour(y, 2); }
KERNEL(planted_cluster_returns, 64, (u32* y)) { cluster_neighbour(y, 1); }
KERNEL(planted_cluster_absent, 64, (u32* y)) {
    if (cluster_rank() == 1 && threadIdx.x == 9) return;
    cluster_sync();
    y[threadIdx.x] = 1;
}
KERNEL(planted_cluster_rank, 64, (u32* y)) {
    SHARED(u32, box, [64]);
    box[threadIdx.x] = 1;
    cluster_sync();
    y[threadIdx.x] = *of_block(box, cluster_blocks());
    cluster_sync();
}

/// y [64][64] = a box of the tensor, by way of shared memory, and back into `to`; `fault` says what is wrong.
KERNEL(planted_tile, 64, (u16* y, u32 fault, TENSOR_MAP(map), TENSOR_MAP(to))) {
    DYNAMIC_SHARED(u8, given);
    u8* tile = given + (0u - u32(u64(given))) % 1024;
    u32 i = threadIdx.x;
    Mbarrier* barrier = (Mbarrier*)(tile + 8192);
    if (i == 0 && fault != 1) {
        mbarrier_init(barrier, 1);
        mbarrier_ready();
    }
    __syncthreads();
    if (i == 0) {
        if (fault != 2) mbarrier_expect(barrier, fault == 3 ? 8192 + 128 : fault == 4 ? 4096 : 8192);
        tile_load(tile, map, 8, 3, barrier);
    }
    if (fault != 5) mbarrier_wait(barrier, 0);
    for (u32 r = 0; r < 64; r++) y[r * 64 + i] = ((u16*)tile)[r * 64 + ((i / 8 ^ r % 8) * 8 + i % 8)];
    // The rows that came first are stored once more, as 32-bit numbers.
    if (i == 0) {
        tile_store(to, tile, 0, 0, 0);
        commit_stores();
        if (fault != 6) wait_stores<0>();
    }
}
/// A product of a warpgroup on memory that is set here; wrong in one way.
KERNEL(planted_product, 128, (float* y, u32 fault)) {
    DYNAMIC_SHARED(u8, given);
    u8* tile = given + (0u - u32(u64(given))) % 1024;
    for (u32 i = threadIdx.x; i < 64 * 64 + 128 * 64; i += 128) ((u16*)tile)[i] = 0x3f80;
    fence_shared();
    __syncthreads();
    u64 a = matrix_descriptor(shared_address(tile), 16, 1024), b = matrix_descriptor(shared_address(tile) + 8192, 16, 1024);
    if (fault == 1) a &= ~SWIZZLE_128;
    if (fault == 2) a = advance(a, threadIdx.x % 2 * 32);
    float sums[64];
    for (u32 i = 0; i < 64; i++) sums[i] = -1;
    products_begin();
    multiply<128, false, false>(sums, a, b, 0);
    products_commit();
    if (fault != 3) products_wait<0>();
    settle(sums);
    y[threadIdx.x] = sums[threadIdx.x % 64];
}
