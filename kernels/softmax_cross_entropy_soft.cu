// Softmax and cross-entropy with a distribution a row: see common/cross_entropy.cuh.
//
// Target: compute_75
// Registers: 80
#include "common/cross_entropy.cuh"

#define FORMS(type, T) \
    CROSS_ENTROPY_DISTRIBUTIONS(type, T, 16, 128, 8, Lanes<4>, 1, false) \
    CROSS_ENTROPY_DISTRIBUTIONS(type, T, 256, 128, 6, Lanes<32>, 2, false) \
    CROSS_ENTROPY_DISTRIBUTIONS(type, T, long, 512, 2, Block<512>, 1, true)
FORMS(f32, float)
FORMS(bf16, bf16)
