// Products in f32: y [m][n] = epilogue(A B) by fused multiply-adds. A is [m][k] or, transposed, [k][m]; B is [k][n] or
// [n][k]; all row-major with strides lda and ldb, and `batches` of them, dense, one after another. Any m, n, k below 2^31.
// Where rows begin at multiples of 16 bytes they are copied 16 bytes at a time, else one element.
//
// gemm_fma_f32_<nn|nt|tn|tt>_<tile>: tiles of 32 x 32, 64 x 64 or 128 x 128, blocks of 256; 64, 32 and 16 of k at a time in a
//   ring of three stages, in dynamic shared memory. grid = tiles x splits x batches, along x.
// gemm_fma_f32_tn_<tile>_update: as in gemm.cu.
// Splits: as in gemm.cu. Sums: in the order of k; tiles of 32 and 64 have four sums, each of two of k in turn, and add them.
//
// Target: compute_80
// Registers: 128
#include "common/fma.cuh"

#define GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, tile, blocks) \
    KERNEL_RESIDENT(gemm_fma_f32_##layout##_##tile, 256, blocks, (Gemm g)) { \
        gemm<Fma<A_TRANSPOSED, B_TRANSPOSED, tile>>(g, Finish(g)); \
    }
#define TILES(layout, A_TRANSPOSED, B_TRANSPOSED) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 32, 2) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 64, 2) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 128, 2)

TILES(nn, false, false)
TILES(nt, false, true)
TILES(tn, true, false)
TILES(tt, true, true)

#define UPDATE(tile, blocks) \
    KERNEL_RESIDENT(gemm_fma_f32_tn_##tile##_update, 256, blocks, (Gemm g, Update update)) { \
        gemm<Fma<true, false, tile>>(g, Step(g, update)); \
    }
UPDATE(32, 2)
UPDATE(64, 2)
UPDATE(128, 2)
