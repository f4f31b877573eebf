// The products of `gemm.cu` for operands that are bf16 in memory: gemm_mma_bf16_<nn|nt|tn|tt>_<tile>.
//
// Target: compute_80
// Registers: 128
#include "common/mma.cuh"

#define GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, tile, threads, blocks) \
    KERNEL_RESIDENT(gemm_mma_bf16_##layout##_##tile, threads, blocks, (Gemm g)) { \
        gemm<Mma<bf16, A_TRANSPOSED, B_TRANSPOSED, tile>>(g, Finish(g)); \
    }
#define TILES(layout, A_TRANSPOSED, B_TRANSPOSED) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 32, 128, 4) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 64, 256, 2) \
    GEMM(layout, A_TRANSPOSED, B_TRANSPOSED, 128, 256, 2)

TILES(nn, false, false)
TILES(nt, false, true)
TILES(tn, true, false)
TILES(tt, true, true)
