// Products on Hopper's tensor cores: y [m][n] = epilogue(A B), bf16 operands, f32 sums. A is [m][k] or, transposed, [k][m]; B is
// [k][n] or [n][k]; row-major, their rows multiples of 16 bytes apart. Any m, n, k from 1 on.
//
// gemm_sm90_<nn|nt|tn>_<tile>: tiles of 128 x 256 or 128 x 128, 64 of k at a time in a ring of 4 or 6 stages (192 KiB).
//   384 threads: a warpgroup of which one thread loads, and two that multiply, 64 rows of the tile each.
//   grid = blocks that share the tiles, at most as many as fit on the device at once, a multiple of the cluster; clusters of one
//   block or two. The two compute tiles one below the other: each loads one half of their common B for both.
//   Dynamic shared memory: 230656 bytes.
//   Maps, with boxes of 64 x 64: a of A, b of B; c, boxes of 32 x 64 x 1, of y as [1][m][n] or of partials as [splits][m][n].
// Splits: part z of k, k_per_split (a multiple of 64) long, goes to partials[z] [m][n], and gemm_sum (gemm_fma.cu) adds them in
//   order; with partials = null the epilogue is done here. What needs no epilogue is stored by map c, where `store_tiles` says
//   so, for n a multiple of 4, and the result lies at a multiple of 16 bytes.
// gemm_sm90_convert: two matrices of f32 to bf16, rows padded with zeros to a multiple of 8; a thread for each 8 elements.
//
// Sums: products are added in the order of k, 16 at a time as the tensor core does it. The number of blocks and the size of the
// cluster change who computes a tile, and no bits.
//
// Target: compute_90a
// Registers: 168
// Cubin: 90a
#include "common/epilogue.cuh"
#include "common/hopper.cuh"
#include "common/vector.cuh"

struct Gemm {
    float* partials;
    u32 m, n, k, k_per_split, splits, store_tiles;
    Epilogue epilogue;
};

constexpr u32 ROWS = 128, DEPTH = 64, WARPGROUP = 128;
/// A box of an operand: 64 x 64. A and B of a stage are columns of boxes.
constexpr u32 BOX = 8192, RING = 192 << 10;
/// Of a warpgroup, to store by: two times 64 rows of 32 columns.
constexpr u32 STORE_BOX = 8192, STORE = 2 * STORE_BOX;

/// Whose turn it is in the ring: phase after phase.
template <u32 STAGES>
struct Turn {
    u32 stage = 0, parity = 0;
    FUNCTOR void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

struct Tile {
    u32 row, column, split, k_begin, steps;
};

/// Tile `rank` of a cluster's tiles. Clusters go down 2048 rows of tiles before they go on to the next column, so that those at
/// work at one time read few rows of A and columns of B, which stay in L2.
template <u32 COLUMNS>
DEVICE Tile tile_of(const Gemm& g, u32 item, u32 blocks, u32 rank) {
    u32 rows = (g.m + ROWS * blocks - 1) / (ROWS * blocks), columns = (g.n + COLUMNS - 1) / COLUMNS, per_split = rows * columns;
    u32 group_rows = 16 / blocks, split = item / per_split;
    item -= split * per_split;
    u32 first = item / (group_rows * columns) * group_rows, left = rows - first;
    item -= first * columns;
    u32 here = left < group_rows ? left : group_rows;
    u32 k_begin = split * g.k_per_split, k = g.k - k_begin < g.k_per_split ? g.k - k_begin : g.k_per_split;
    return {((first + item % here) * blocks + rank) * ROWS, item / here * COLUMNS, split, k_begin, (k + DEPTH - 1) / DEPTH};
}

template <u32 COLUMNS>
DEVICE u32 items_of(const Gemm& g, u32 blocks) {
    return (g.m + ROWS * blocks - 1) / (ROWS * blocks) * ((g.n + COLUMNS - 1) / COLUMNS) * g.splits;
}

/// Part `part` of the columns of a warpgroup's sums, 32 of them, as rows of 128 bytes with the swizzle. A thread of an odd row
/// writes its pairs in another order, so that half a warp meets all banks.
template <u32 COUNT>
DEVICE void put_sums(float* box, const float (&sums)[COUNT], u32 part) {
    u32 lane = threadIdx.x % 32, row = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4, odd = lane / 4 & 1;
    UNROLL
    for (u32 p = 0; p < COUNT / 16; p++) {
        if (p != part) continue;
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            const float *even_sums = sums + p * 16 + j * 4, *odd_sums = sums + p * 16 + (j ^ 2) * 4;
            u32 chunk = (odd ? j ^ 2 : j) * 2 + lane % 4 / 2;
            float* to = box + row * 32 + ((chunk ^ row % 8) * 4 + lane % 2 * 2);
            // Eight rows further the pattern is the same.
            store((float2*)to, make_float2(odd ? odd_sums[0] : even_sums[0], odd ? odd_sums[1] : even_sums[1]));
            store((float2*)(to + 256), make_float2(odd ? odd_sums[2] : even_sums[2], odd ? odd_sums[3] : even_sums[3]));
        }
    }
}

/// The sums of a warpgroup, 64 rows from `row` on, to where they belong, 32 columns at a time by way of shared memory: of its
/// two boxes in turn, from tile to tile.
template <u32 COLUMNS>
DEVICE void finish_tile(const Gemm& g, const TensorMap& map, const float (&sums)[COLUMNS / 2], u8* memory, const Tile& tile,
                        u32 row, u32& turn) {
    u32 thread = threadIdx.x % WARPGROUP, barrier = threadIdx.x / WARPGROUP;
    if (row >= g.m) return;
    bool tiles = g.store_tiles && u64(g.partials ? g.partials : g.epilogue.y) % 16 == 0;
    bool vectors = g.partials ? g.n % 4 == 0 : in_fours(g.epilogue, g.n);
    // Rolled: the epilogue is there once, and only the parts' registers are named one by one.
    ROLLED
    for (u32 part = 0; part < COLUMNS / 32; part++) {
        u32 column = tile.column + part * 32;
        if (column >= g.n) break;
        float* box = (float*)(memory + turn % 2 * STORE_BOX);
        turn++;
        if (tiles) {
            // The store before the last one has read the box.
            if (thread == 0) wait_stores<1>();
            barrier_sync(barrier, WARPGROUP);
            put_sums(box, sums, part);
            fence_shared();
            barrier_sync(barrier, WARPGROUP);
            if (thread == 0) {
                tile_store(map, box, column, row, tile.split);
                commit_stores();
            }
            continue;
        }
        put_sums(box, sums, part);
        barrier_sync(barrier, WARPGROUP);
        // Four elements at a time, or one.
        u32 width = vectors ? 4 : 1;
        ROLLED
        for (u32 i = thread * width; i < 64 * 32; i += WARPGROUP * width) {
            u32 r = i / 32, c = i % 32;
            if (row + r >= g.m || column + c >= g.n) continue;
            const float* from = box + r * 32 + ((c / 4 ^ r % 8) * 4 + c % 4);
            u64 at = u64(row + r) * g.n + column + c;
            float* partial = g.partials + (u64(tile.split) * g.m * g.n + at);
            if (vectors) {
                float4 v = load((const float4*)from);
                if (g.partials) store((float4*)partial, v);
                else finish_four(g.epilogue, {{v.x, v.y, v.z, v.w}}, at, column + c);
            } else {
                if (g.partials) *partial = *from;
                else finish(g.epilogue, *from, at, column + c);
            }
        }
    }
}

template <u32 COLUMNS, bool A_MN, bool B_MN>
DEVICE void gemm(const Gemm& g, const TensorMap& map_a, const TensorMap& map_b, const TensorMap& map_c) {
    constexpr u32 A_BOXES = ROWS / 64, B_BOXES = COLUMNS / 64, STAGE = (A_BOXES + B_BOXES) * BOX, STAGES = RING / STAGE;
    DYNAMIC_SHARED(u8, given);
    // The pattern of the swizzle begins at multiples of 1024; in both blocks of a cluster at the same place.
    u8* ring = given + (0u - u32(u64(given))) % 1024;
    u8* store_memory = ring + RING;
    Mbarrier* full = (Mbarrier*)(store_memory + 2 * STORE);
    Mbarrier* empty = full + STAGES;
    u32 blocks = cluster_blocks(), rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            mbarrier_init(full + s, 1);
            // Each warp that multiplies, in each block that gets a part of its B from here.
            mbarrier_init(empty + s, 8 * blocks);
        }
        mbarrier_ready();
    }
    cluster_sync();
    u32 items = items_of<COLUMNS>(g, blocks), first = blockIdx.x / blocks, clusters = gridDim.x / blocks;
    u32 warpgroup = threadIdx.x / WARPGROUP;
    Turn<STAGES> turn;
    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) {
            for (u32 item = first; item < items; item += clusters) {
                Tile tile = tile_of<COLUMNS>(g, item, blocks, rank);
                for (u32 step = 0; step < tile.steps; step++) {
                    u8* stage = ring + turn.stage * STAGE;
                    u32 k = tile.k_begin + step * DEPTH;
                    mbarrier_wait(empty + turn.stage, turn.parity ^ 1);
                    mbarrier_expect(full + turn.stage, STAGE);
                    UNROLL
                    for (u32 i = 0; i < A_BOXES; i++) {
                        u32 at = tile.row + i * 64;
                        tile_load(stage + i * BOX, map_a, A_MN ? at : k, A_MN ? k : at, full + turn.stage);
                    }
                    u8* stage_b = stage + A_BOXES * BOX;
                    UNROLL
                    for (u32 i = 0; i < B_BOXES; i++) {
                        u32 at = tile.column + i * 64;
                        if (blocks == 1) {
                            tile_load(stage_b + i * BOX, map_b, B_MN ? at : k, B_MN ? k : at, full + turn.stage);
                        } else if (i / (B_BOXES / 2) == rank) {
                            tile_load(stage_b + i * BOX, map_b, B_MN ? at : k, B_MN ? k : at, full + turn.stage, 3);
                        }
                    }
                    turn.next();
                }
            }
        }
    } else {
        take_registers<232>();
        u32 half = warpgroup - 1, lane = threadIdx.x % 32;
        float sums[COLUMNS / 2];
        u32 store_turn = 0;
        for (u32 item = first; item < items; item += clusters) {
            Tile tile = tile_of<COLUMNS>(g, item, blocks, rank);
            u32 before = 0;
            ROLLED
            for (u32 step = 0; step < tile.steps; step++) {
                u32 stage = shared_address(ring) + turn.stage * STAGE;
                // MN-major: 64 of m or n, then the next 64 a box further. K-major: 8 rows, then the next 8.
                u64 a = matrix_descriptor(stage + half * BOX, A_MN ? BOX : 16, 1024);
                u64 b = matrix_descriptor(stage + A_BOXES * BOX, B_MN ? BOX : 16, 1024);
                mbarrier_wait(full + turn.stage, turn.parity);
                products_begin();
                UNROLL
                for (u32 i = 0; i < DEPTH / 16; i++) {
                    // The first product of a tile does not add.
                    multiply<COLUMNS, A_MN, B_MN>(sums, advance(a, i * (A_MN ? 2048 : 32)), advance(b, i * (B_MN ? 2048 : 32)),
                                                  step + i);
                }
                products_commit();
                // The products before these are done with their stage: both blocks may fill it.
                products_wait<1>();
                if (step > 0 && lane < blocks) mbarrier_arrive(empty + before, lane);
                before = turn.stage;
                turn.next();
            }
            products_wait<0>();
            settle(sums);
            if (lane < blocks) mbarrier_arrive(empty + before, lane);
            finish_tile<COLUMNS>(g, map_c, sums, store_memory + half * STORE, tile, tile.row + half * 64,
                                 store_turn);
        }
        if (threadIdx.x % WARPGROUP == 0) wait_stores<0>();
    }
    // Until all arrivals and parts of B from the other block are there.
    cluster_sync();
}

#define GEMM(layout, A_MN, B_MN) \
    KERNEL_RESIDENT(gemm_sm90_##layout##_256, 384, 1, (Gemm g, TENSOR_MAP(a), TENSOR_MAP(b), TENSOR_MAP(c))) { \
        gemm<256, A_MN, B_MN>(g, a, b, c); \
    } \
    KERNEL_RESIDENT(gemm_sm90_##layout##_128, 384, 1, (Gemm g, TENSOR_MAP(a), TENSOR_MAP(b), TENSOR_MAP(c))) { \
        gemm<128, A_MN, B_MN>(g, a, b, c); \
    }

GEMM(nn, false, true)
GEMM(nt, false, false)
GEMM(tn, true, true)

/// A matrix [rows][columns] to [rows][stride], by so many blocks.
struct Convert {
    const float* x;
    bf16* y;
    u32 rows, columns, stride, blocks;
};

KERNEL(gemm_sm90_convert, 256, (Convert a, Convert b)) {
    bool second = blockIdx.x >= a.blocks;
    Convert c = second ? b : a;
    u64 chunk = u64(blockIdx.x - (second ? a.blocks : 0)) * 256 + threadIdx.x;
    u32 per_row = c.stride / 8, row = u32(chunk / per_row), column = u32(chunk % per_row) * 8;
    if (row >= c.rows) return;
    const float* from = c.x + u64(row) * c.columns + column;
    u32 count = c.columns - column < 8 ? c.columns - column : 8;
    float x[8];
    if (count == 8 && u64(from) % 16 == 0) {
        float4 low = load_once((const float4*)from), high = load_once((const float4*)(from + 4));
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
        UNROLL
        for (u32 i = 0; i < 8; i++) x[i] = i < count ? from[i] : 0.0f;
    }
    store((uint4*)(c.y + u64(row) * c.stride + column),
          make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])));
}
