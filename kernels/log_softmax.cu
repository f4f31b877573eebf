// y = log softmax(x) along rows, as log_softmax_<form>_f32. Contract and edges: src/ops/log_softmax; kernels: common/softmax.cuh.
//
// Target: compute_75
// Registers: 64
#include "common/softmax.cuh"

SOFTMAX_FORMS(log_softmax, true)
