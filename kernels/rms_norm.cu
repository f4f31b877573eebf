// y = x rstd gamma along rows, rstd = 1 / sqrt(mean of x^2 + eps), as rms_norm_<form>_f32. Contract: src/ops/rms_norm;
// kernels: common/norm.cuh.
//
// Target: compute_75
// Registers: 80
#include "common/norm.cuh"

#define RMS_NORM(length, threads, resident, TEAM, GROUPS, REST) \
    KERNEL_RESIDENT(rms_norm_##length##_f32, threads, resident, \
                    (const float* x, const float* gamma, float* y, float* rstds, float eps, u32 rows, u32 count)) { \
        normalise<TEAM, GROUPS, REST, false>(x, gamma, nullptr, y, nullptr, rstds, eps, rows, count); \
    }
NORM_FORMS(RMS_NORM)
