// y = (x - mean) rstd gamma + beta along rows, rstd = 1 / sqrt(variance + eps), as layer_norm_<form>_f32. Contract:
// src/ops/layer_norm; kernels: common/norm.cuh.
//
// Target: compute_75
// Registers: 80
#include "common/norm.cuh"

#define LAYER_NORM(length, threads, resident, TEAM, GROUPS, REST) \
    KERNEL_RESIDENT(layer_norm_##length##_f32, threads, resident, \
                    (const float* x, const float* gamma, const float* beta, float* y, float* means, float* rstds, float eps, \
                     u32 rows, u32 count)) { \
        normalise<TEAM, GROUPS, REST, true>(x, gamma, beta, y, means, rstds, eps, rows, count); \
    }
NORM_FORMS(LAYER_NORM)
