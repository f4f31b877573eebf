// Sum, mean and maximum over one axis of x [outer][extent][inner], f32, row-major. Contract: src/ops/reduce; a mean is a
// sum with scale 1 / extent, and the caller merges axes. NaN anywhere gives NaN; the sum of nothing is 0.
//
// reduce_<kind>_rows_f32: inner = 1. y[part][row] over elements part * per_part .. of the row.
//   Launch: blocks of 256, grid = (rows, parts, 1).
// reduce_<kind>_columns_f32: y[part][outer][inner] over rows part * per_part .. of the axis.
//   Launch: blocks of 256 (32 columns by 8 rows), grid = (ceil(inner / 32), parts, outer).
// Both multiply by `scale`. With more than one part, y is scratch [parts][..], and a second launch reduces it: the
// columns of [1][parts][outer * inner]. All orders are fixed by the shapes.
//
// Target: compute_75
// Registers: 48
#include "common/reduce.cuh"
#include "common/vector.cuh"

template <class F>
DEVICE void rows(const float* x, float* y, u32 extent, u32 per_part, float scale, float none, F f) {
    SHARED(float, partials, [32]);
    u64 row = blockIdx.x;
    u32 begin = blockIdx.y * per_part, end = begin + per_part < extent ? begin + per_part : extent;
    const float* from = x + row * extent;
    // Four sums a thread, so that additions do not wait for each other.
    float sums[4] = {none, none, none, none};
    u32 i = begin + threadIdx.x * 4;
    for (; i + 4 <= end; i += 1024) {
        if (aligned_for_four(from + i)) {
            Four v = load_four(from + i);
            UNROLL
            for (int j = 0; j < 4; j++) sums[j] = f(sums[j], v.x[j]);
        } else {
            UNROLL
            for (int j = 0; j < 4; j++) sums[j] = f(sums[j], from[i + u32(j)]);
        }
    }
    for (; i < end; i++) sums[0] = f(sums[0], from[i]);
    float all = block_all(f(f(sums[0], sums[1]), f(sums[2], sums[3])), partials, none, f);
    if (threadIdx.x == 0) y[u64(blockIdx.y) * gridDim.x + row] = all * scale;
}

template <class F>
DEVICE void columns(const float* x, float* y, u32 extent, u32 inner, u32 per_part, float scale, float none, F f) {
    SHARED(float, partials, [8][33]);
    u32 column = blockIdx.x * 32 + threadIdx.x % 32, first = threadIdx.x / 32;
    u32 begin = blockIdx.y * per_part, end = begin + per_part < extent ? begin + per_part : extent;
    const float* from = x + u64(blockIdx.z) * extent * inner;
    float sum = none;
    if (column < inner) {
        for (u32 row = begin + first; row < end; row += 8) sum = f(sum, from[u64(row) * inner + column]);
    }
    partials[first][threadIdx.x % 32] = sum;
    __syncthreads();
    if (first == 0 && column < inner) {
        for (u32 i = 1; i < 8; i++) sum = f(sum, partials[i][threadIdx.x]);
        y[(u64(blockIdx.y) * gridDim.z + blockIdx.z) * inner + column] = sum * scale;
    }
}

KERNEL(reduce_sum_rows_f32, 256, (const float* x, float* y, u32 extent, u32 per_part, float scale)) {
    rows(x, y, extent, per_part, scale, 0, Add());
}
KERNEL(reduce_max_rows_f32, 256, (const float* x, float* y, u32 extent, u32 per_part, float scale)) {
    rows(x, y, extent, per_part, scale, -infinity(), Max());
}
KERNEL(reduce_sum_columns_f32, 256, (const float* x, float* y, u32 extent, u32 inner, u32 per_part, float scale)) {
    columns(x, y, extent, inner, per_part, scale, 0, Add());
}
KERNEL(reduce_max_columns_f32, 256, (const float* x, float* y, u32 extent, u32 inner, u32 per_part, float scale)) {
    columns(x, y, extent, inner, per_part, scale, -infinity(), Max());
}
