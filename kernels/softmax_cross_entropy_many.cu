// Softmax and cross-entropy of more than 256 classes with labels: see common/cross_entropy.cuh.
//
// Target: compute_75
// Registers: 80
#include "common/cross_entropy.cuh"

#define FORMS(type, T) \
    CROSS_ENTROPY_LABELS(type, T, 1024, 128, 6, Block<128>, 2, false) \
    CROSS_ENTROPY_LABELS(type, T, 4096, 256, 3, Block<256>, 4, false) \
    CROSS_ENTROPY_LABELS(type, T, 6144, 512, 2, Block<512>, 3, false) \
    CROSS_ENTROPY_LABELS(type, T, long, 1024, 1, Block<1024>, 3, true)
FORMS(f32, float)
FORMS(bf16, bf16)
