// The gradient of layer_norm, as layer_norm_backward_<form>_f32. Contract: src/ops/layer_norm_backward; kernels: common/norm_backward.cuh.
//
// Target: compute_75
// Registers: 128
#include "common/norm_backward.cuh"

NORM_BACKWARD(layer_norm_backward, true)
