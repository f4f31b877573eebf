// The products of `gemm_fma.cu` for GPUs before Ampere, which have no asynchronous copies, and 64 KiB of shared memory a
// block: gemm_fma_turing_f32_<nn|nt|tn|tt>_<tile>, with a ring of two stages. Their bits are those of `gemm_fma.cu`.
//
// Target: compute_75
// Registers: 128
#define BEFORE_AMPERE
#include "common/fma.cuh"

#define GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, tile) \
    KERNEL_RESIDENT(gemm_fma_turing_f32_##layout##_##tile, 256, 2, (Gemm g)) { \
        gemm<Fma<A_TRANSPOSED, B_TRANSPOSED, tile>>(g, Finish(g)); \
    }
#define TILES(layout, A_TRANSPOSED, B_TRANSPOSED) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 32) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 64) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 128)

TILES(nn, false, false)
TILES(nt, false, true)
TILES(tn, true, false)
TILES(tt, true, true)

#define UPDATE(tile) \
    KERNEL_RESIDENT(gemm_fma_turing_f32_tn_##tile##_update, 256, 2, (Gemm g, Update update)) { \
        gemm<Fma<true, false, tile>>(g, Step(g, update)); \
    }
UPDATE(32)
UPDATE(64)
UPDATE(128)
