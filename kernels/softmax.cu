// y = softmax(x) along rows, as softmax_<form>_f32. Contract and edges: src/ops/softmax; kernels: common/softmax.cuh.
//
// Target: compute_75
// Registers: 64
#include "common/softmax.cuh"

SOFTMAX_FORMS(softmax, false)
