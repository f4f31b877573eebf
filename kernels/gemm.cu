// Products on tensor cores: y [m][n] = epilogue(A B), bf16 operands, f32 sums. A is [m][k] or, transposed, [k][m]; B is [k][n]
// or [n][k]; all row-major with strides lda and ldb. f32 operands are rounded to bf16 on the way into shared memory. Any m, n,
// k; where rows begin at multiples of 16 bytes they are copied 16 bytes at a time.
//
// gemm_mma_<type>_<nn|nt|tn>_<tile>: tiles of 64 x 64 (128 threads) or 128 x 128 (256 threads), 32 of k at a time in a ring of
//   three stages. Dynamic shared memory: 480 x tile bytes (30720, 61440; the latter needs the attribute).
//   grid = (ceil(n / tile), ceil(m / tile), splits).
// Splits: part z of k, k_per_split (a multiple of 32) long, goes to partials[z] [m][n], and gemm_sum (gemm_fma.cu) adds them in
// order; with partials = null the epilogue is done here.
//
// Sums: products are added in the order of k, 16 at a time as the tensor core does it; no order depends on timing.
//
// Target: compute_80
// Registers: 128
#include "common/epilogue.cuh"
#include "common/tile.cuh"

struct Gemm {
    const void *a, *b;
    float* partials;
    u32 m, n, k, lda, ldb, k_per_split;
    Epilogue epilogue;
};

constexpr u32 DEPTH = 32, STAGES = 3;

/// Eight elements of a row that begin at `from`, of which `count` are there, as bf16; zeros after them.
DEVICE uint4 eight(const float* from, u32 count) {
    float x[8];
    if (count == 8 && u64(from) % 16 == 0) {
        float4 low = load((const float4*)from), high = load((const float4*)(from + 4));
        return make_uint4(pack_bf16(low.x, low.y), pack_bf16(low.z, low.w), pack_bf16(high.x, high.y),
                          pack_bf16(high.z, high.w));
    }
    UNROLL
    for (u32 i = 0; i < 8; i++) x[i] = i < count ? from[i] : 0.0f;
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}
DEVICE uint4 eight(const bf16* from, u32 count) {
    u32 x[8];
    UNROLL
    for (u32 i = 0; i < 8; i++) x[i] = i < count ? u32(from[i].bits) : 0;
    return make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
}

/// An operand's part of the ring: TILE of m or n by DEPTH of k, in shared memory as it lies in global memory, its rows with
/// 16 bytes between them so that the eight rows of a fragment lie in different banks.
template <class T, bool K_ALONG_ROWS, u32 TILE>
struct Operand {
    static constexpr u32 ROWS = K_ALONG_ROWS ? TILE : DEPTH, COLUMNS = K_ALONG_ROWS ? DEPTH : TILE, STRIDE = COLUMNS + 8;
    static constexpr u32 THREADS = TILE * 2, PER_THREAD = ROWS * COLUMNS / 8 / THREADS;
    const T* data;
    u32 stride, first, end, k_end;
    bool asynchronous;
    uint4 held[PER_THREAD];

    /// Begins to fetch the part from `k` on: straight into `stage`, or into registers.
    FUNCTOR void fetch(bf16* stage, u32 k) {
        UNROLL
        for (u32 i = 0; i < PER_THREAD; i++) {
            u32 chunk = threadIdx.x + i * THREADS;
            u32 r = chunk / (COLUMNS / 8), c = chunk % (COLUMNS / 8) * 8;
            u32 row = (K_ALONG_ROWS ? first : k) + r, column = (K_ALONG_ROWS ? k : first) + c;
            u32 rows = K_ALONG_ROWS ? end : k_end, columns = K_ALONG_ROWS ? k_end : end;
            u32 count = row >= rows || column >= columns ? 0 : columns - column < 8 ? columns - column : 8;
            const T* from = count ? data + u64(row) * stride + column : data;
            if (sizeof(T) == 2 && asynchronous) {
                copy_async(stage + r * STRIDE + c, from, count * 2);
            } else {
                held[i] = eight(from, count);
            }
        }
    }
    /// Puts what is held in registers where it belongs.
    FUNCTOR void put(bf16* stage) {
        if (sizeof(T) == 2 && asynchronous) return;
        UNROLL
        for (u32 i = 0; i < PER_THREAD; i++) {
            u32 chunk = threadIdx.x + i * THREADS;
            store((uint4*)(stage + chunk / (COLUMNS / 8) * STRIDE + chunk % (COLUMNS / 8) * 8), held[i]);
        }
    }
};

template <class T, bool A_TRANSPOSED, bool B_TRANSPOSED, u32 TILE>
DEVICE void gemm(const Gemm& g) {
    // Warps: 2 x 2 of 32 x 32, or 2 x 4 of 64 x 32.
    constexpr u32 WARP_ROWS = TILE / 2, WARP_COLUMNS = 32, ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;
    constexpr u32 STAGE = TILE * (DEPTH + 8);
    DYNAMIC_SHARED(bf16, ring);
    using A = Operand<T, !A_TRANSPOSED, TILE>;
    using B = Operand<T, B_TRANSPOSED, TILE>;
    u32 first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    u32 k_begin = blockIdx.z * g.k_per_split;
    u32 k_end = g.k - k_begin < g.k_per_split ? g.k : k_begin + g.k_per_split;
    A a{(const T*)g.a, g.lda, first_row, g.m, k_end, u64(g.a) % 16 == 0 && g.lda % 8 == 0, {}};
    B b{(const T*)g.b, g.ldb, first_column, g.n, k_end, u64(g.b) % 16 == 0 && g.ldb % 8 == 0, {}};
    auto stage_of = [&](u32 step) { return ring + step % STAGES * (2 * STAGE); };

    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 row = warp / (TILE / WARP_COLUMNS) * WARP_ROWS, column = warp % (TILE / WARP_COLUMNS) * WARP_COLUMNS;
    float sums[ROW_TILES][COLUMN_TILES][4] = {};

    u32 steps = (k_end - k_begin + DEPTH - 1) / DEPTH;
    for (u32 step = 0; step < STAGES - 1; step++) {
        if (step < steps) {
            bf16* stage = stage_of(step);
            a.fetch(stage, k_begin + step * DEPTH);
            b.fetch(stage + STAGE, k_begin + step * DEPTH);
            a.put(stage);
            b.put(stage + STAGE);
        }
        commit_copies();
    }
    for (u32 step = 0; step < steps; step++) {
        // This step's part has landed for all threads, and all are done with the stage that is filled next.
        wait_copies<STAGES - 2>();
        __syncthreads();
        u32 ahead = step + STAGES - 1;
        bf16* next = stage_of(ahead);
        if (ahead < steps) {
            a.fetch(next, k_begin + ahead * DEPTH);
            b.fetch(next + STAGE, k_begin + ahead * DEPTH);
        }
        const bf16 *at = stage_of(step), *bt = at + STAGE;
        UNROLL
        for (u32 k = 0; k < DEPTH; k += 16) {
            u32 left[ROW_TILES][4], right[COLUMN_TILES / 2][4];
            UNROLL
            for (u32 i = 0; i < ROW_TILES; i++) {
                u32 r = row + i * 16;
                load_fragments<A_TRANSPOSED>(
                    left[i], A_TRANSPOSED ? at + (k + lane % 8 + lane / 16 * 8) * A::STRIDE + r + lane / 8 % 2 * 8
                                          : at + (r + lane % 16) * A::STRIDE + k + lane / 16 * 8);
            }
            UNROLL
            for (u32 j = 0; j < COLUMN_TILES / 2; j++) {
                u32 c = column + j * 16;
                load_fragments<!B_TRANSPOSED>(
                    right[j], B_TRANSPOSED ? bt + (c + lane % 8 + lane / 16 * 8) * B::STRIDE + k + lane / 8 % 2 * 8
                                           : bt + (k + lane % 16) * B::STRIDE + c + lane / 16 * 8);
            }
            UNROLL
            for (u32 i = 0; i < ROW_TILES; i++) {
                UNROLL
                for (u32 j = 0; j < COLUMN_TILES; j++) {
                    const u32 pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
                    multiply_tile(sums[i][j], left[i], pair);
                }
            }
        }
        if (ahead < steps) {
            a.put(next);
            b.put(next + STAGE);
        }
        commit_copies();
    }
    // By way of shared memory, 64 rows at a time: whole rows are written, and the epilogue is there once.
    constexpr u32 STRIDE = TILE + 4;
    float* tile = (float*)ring;
    UNROLL
    for (u32 half = 0; half < TILE; half += 64) {
        // All are done with what lies there, and no copy is under way.
        wait_copies<0>();
        __syncthreads();
        if (row / 64 * 64 == half) {
            UNROLL
            for (u32 i = 0; i < ROW_TILES; i++) {
                UNROLL
                for (u32 j = 0; j < COLUMN_TILES; j++) {
                    float* to = tile + (row % 64 + i * 16 + lane / 4) * STRIDE + column + j * 8 + lane % 4 * 2;
                    store((float2*)to, make_float2(sums[i][j][0], sums[i][j][1]));
                    store((float2*)(to + 8 * STRIDE), make_float2(sums[i][j][2], sums[i][j][3]));
                }
            }
        }
        __syncthreads();
        ROLLED
        for (u32 i = threadIdx.x; i < 64 * TILE; i += TILE * 2) {
            u32 r = first_row + half + i / TILE, c = first_column + i % TILE;
            if (r >= g.m || c >= g.n) continue;
            float sum = tile[i / TILE * STRIDE + i % TILE];
            u64 at = u64(r) * g.n + c;
            if (g.partials) {
                g.partials[u64(blockIdx.z) * g.m * g.n + at] = sum;
            } else {
                finish(g.epilogue, sum, at, c);
            }
        }
    }
}

#define GEMM(name, T, layout, A_TRANSPOSED, B_TRANSPOSED) \
    KERNEL(gemm_mma_##name##_##layout##_64, 128, (Gemm g)) { gemm<T, A_TRANSPOSED, B_TRANSPOSED, 64>(g); } \
    KERNEL(gemm_mma_##name##_##layout##_128, 256, (Gemm g)) { gemm<T, A_TRANSPOSED, B_TRANSPOSED, 128>(g); }

GEMM(bf16, bf16, nn, false, false)
GEMM(bf16, bf16, nt, false, true)
GEMM(bf16, bf16, tn, true, false)
GEMM(f32, float, nn, false, false)
GEMM(f32, float, nt, false, true)
GEMM(f32, float, tn, true, false)
