// y = x as a row number, u32::MAX where x is none. Contract: src/ops/indices. x: f32 [n], y: u32 [n].
// Launch: blocks of 256, one thread an element, grid = ceil(n / 256).
//
// Target: compute_75
// Registers: 24
#include "common/cuda.cuh"

KERNEL(indices_u32, 256, (const float* x, u32* y, u64 n)) {
    u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= n) return;
    float value = x[i];
    // Comparisons first: a conversion of what does not fit is not defined. All are false for NaN.
    bool fits = value >= 0 && value < 4294967296.0f;
    u32 number = fits ? u32(value) : 0xffffffffu;
    y[i] = fits && float(number) == value ? number : 0xffffffffu;
}
