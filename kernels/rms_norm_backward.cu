// The gradient of rms_norm, as rms_norm_backward_<form>_f32. Contract: src/ops/rms_norm_backward; kernels: common/norm_backward.cuh.
//
// Target: compute_75
// Registers: 128
#include "common/norm_backward.cuh"

NORM_BACKWARD(rms_norm_backward, false)
