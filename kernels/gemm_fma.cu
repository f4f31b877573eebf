// Products in f32: y [m][n] = epilogue(A B) by fused multiply-adds, in the order of k; and the sum of the parts of a split product.
// A is [m][k] or, transposed, [k][m]; B is [k][n] or [n][k]; all row-major with strides lda and ldb. Any m, n, k.
//
// gemm_fma_f32_<nn|nt|tn>_<tile>: tiles of 64 x 64 or 128 x 128, blocks of 256 with 4 x 4 or 8 x 8 sums a thread.
//   grid = (ceil(n / tile), ceil(m / tile), splits).
// Splits: part z of k, k_per_split long, goes to partials[z] [m][n]; with partials = null the epilogue is done here.
// gemm_sum: y = epilogue(sum over the parts in order); blocks of 256, grid = ceil(m n / 256).
//
// Target: compute_75
// Registers: 128
#include "common/epilogue.cuh"

struct Gemm {
    const float *a, *b;
    float* partials;
    u32 m, n, k, lda, ldb, k_per_split;
    Epilogue epilogue;
};

constexpr u32 DEPTH = 16;

/// Puts DEPTH of k by TILE of m or n into shared memory, k first. What is outside is zero.
template <u32 TILE, bool K_ALONG_ROWS>
DEVICE void fetch(float (&to)[DEPTH][TILE + 4], const float* from, u32 stride, u32 first, u32 end, u32 k, u32 k_end) {
    UNROLL
    for (u32 i = 0; i < DEPTH * TILE / 256; i++) {
        u32 at = threadIdx.x + i * 256;
        // Neighbouring threads read neighbouring elements.
        u32 depth = K_ALONG_ROWS ? at % DEPTH : at / TILE, place = K_ALONG_ROWS ? at / DEPTH : at % TILE;
        u32 row = K_ALONG_ROWS ? first + place : k + depth, column = K_ALONG_ROWS ? k + depth : first + place;
        bool inside = first + place < end && k + depth < k_end;
        to[depth][place] = inside ? from[u64(row) * stride + column] : 0;
    }
}

template <bool A_TRANSPOSED, bool B_TRANSPOSED, u32 TILE>
DEVICE void gemm(const Gemm& g) {
    constexpr u32 PER_THREAD = TILE / 16;
    SHARED(float, left, [DEPTH][TILE + 4]);
    SHARED(float, right, [DEPTH][TILE + 4]);
    u32 first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    u32 k_begin = blockIdx.z * g.k_per_split;
    u32 k_end = g.k - k_begin < g.k_per_split ? g.k : k_begin + g.k_per_split;
    // A thread's rows and columns lie 16 apart: the threads of a warp then read neighbours.
    u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
    float sums[PER_THREAD][PER_THREAD] = {};
    for (u32 k = k_begin; k < k_end; k += DEPTH) {
        fetch<TILE, !A_TRANSPOSED>(left, g.a, g.lda, first_row, g.m, k, k_end);
        fetch<TILE, B_TRANSPOSED>(right, g.b, g.ldb, first_column, g.n, k, k_end);
        __syncthreads();
        UNROLL
        for (u32 d = 0; d < DEPTH; d++) {
            float a[PER_THREAD], b[PER_THREAD];
            UNROLL
            for (u32 i = 0; i < PER_THREAD; i++) a[i] = left[d][row + i * 16], b[i] = right[d][column + i * 16];
            UNROLL
            for (u32 i = 0; i < PER_THREAD; i++) {
                UNROLL
                for (u32 j = 0; j < PER_THREAD; j++) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
            }
        }
        __syncthreads();
    }
    // By way of shared memory, 16 rows at a time: whole rows are written, and the code of the epilogue stays small.
    UNROLL
    for (u32 i = 0; i < PER_THREAD; i++) {
        UNROLL
        for (u32 j = 0; j < PER_THREAD; j++) left[row][column + j * 16] = sums[i][j];
        __syncthreads();
        ROLLED
        for (u32 e = threadIdx.x; e < 16 * TILE; e += 256) {
            u32 r = first_row + i * 16 + e / TILE, c = first_column + e % TILE;
            if (r >= g.m || c >= g.n) continue;
            float sum = left[e / TILE][e % TILE];
            u64 at = u64(r) * g.n + c;
            if (g.partials) {
                g.partials[u64(blockIdx.z) * g.m * g.n + at] = sum;
            } else {
                finish(g.epilogue, sum, at, c);
            }
        }
        __syncthreads();
    }
}

#define GEMM(layout, A_TRANSPOSED, B_TRANSPOSED) \
    KERNEL_RESIDENT(gemm_fma_f32_##layout##_64, 256, 2, (Gemm g)) { gemm<A_TRANSPOSED, B_TRANSPOSED, 64>(g); } \
    KERNEL_RESIDENT(gemm_fma_f32_##layout##_128, 256, 2, (Gemm g)) { gemm<A_TRANSPOSED, B_TRANSPOSED, 128>(g); }

GEMM(nn, false, false)
GEMM(nt, false, true)
GEMM(tn, true, false)

KERNEL(gemm_sum, 256, (const float* partials, u32 parts, u32 m, u32 n, Epilogue epilogue)) {
    u64 i = u64(blockIdx.x) * 256 + threadIdx.x, size = u64(m) * n;
    if (i >= size) return;
    float sum = partials[i];
    for (u32 part = 1; part < parts; part++) sum += partials[part * size + i];
    finish(epilogue, sum, i, u32(i % n));
}
