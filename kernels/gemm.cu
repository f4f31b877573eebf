// Products on tensor cores: y [m][n] = epilogue(A B), operands rounded to bf16, f32 sums. A is [m][k] or, transposed, [k][m];
// B is [k][n] or [n][k]; all row-major with strides lda and ldb, and `batches` of them, dense, one after another. Any m, n, k
// below 2^31. f32 operands here; `gemm_bf16.cu` has those for bf16. Where rows begin at multiples of 16 bytes they are
// copied 16 bytes at a time, else one element.
//
// gemm_mma_<type>_<nn|nt|tn|tt>_<tile>: tiles of 32 x 32 (128 threads), 64 x 64 or 128 x 128 (256 threads); 64, 32 and 16
//   (bf16: 32) of k at a time in a ring of three stages, in dynamic shared memory.
//   grid = tiles x splits x batches, along x.
// gemm_mma_f32_tn_<tile>_update: the same, and the result, a weight's gradient, goes into the weight's step (src/ops/update)
//   instead of memory. One matrix; `update` has one segment; block i leaves its sums for the statistics in partials[i].
// Splits: part z of k, k_per_split long, goes to partials[z] [batches][m][n], and gemm_sum.cu adds them in order; with
// partials = null the epilogue is done here.
//
// Sums: products are added in the order of k, 16 at a time as the tensor core does it; tiles of 32 and 64 add the sums of
// four and two groups of warps in order. No order depends on timing.
//
// Target: compute_80
// Registers: 128
#include "common/mma.cuh"

#define GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, tile, threads, blocks) \
    KERNEL_RESIDENT(gemm_mma_f32_##layout##_##tile, threads, blocks, (Gemm g)) { \
        gemm<Mma<float, A_TRANSPOSED, B_TRANSPOSED, tile>>(g, Finish(g)); \
    }
#define TILES(layout, A_TRANSPOSED, B_TRANSPOSED) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 32, 128, 4) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 64, 256, 2) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 128, 256, 2)

TILES(nn, false, false)
TILES(nt, false, true)
TILES(tn, true, false)
TILES(tt, true, true)

#define UPDATE(tile, threads, blocks) \
    KERNEL_RESIDENT(gemm_mma_f32_tn_##tile##_update, threads, blocks, (Gemm g, Update update)) { \
        gemm<Mma<float, true, false, tile>>(g, Step(g, update)); \
    }
UPDATE(32, 128, 4)
UPDATE(64, 256, 2)
UPDATE(128, 256, 2)
