// Sum, mean and maximum over one axis of x [outer][extent][inner], f32, row-major. Contract: src/ops/reduce; a mean is a
// sum with scale 1 / extent, and the caller merges axes. NaN anywhere gives NaN; the sum of nothing is 0.
//
// reduce_<kind>_short_f32: inner = 1, a warp a row. Launch: blocks of 256, grid = (ceil(rows / 8), 1, 1).
// reduce_<kind>_rows_f32: inner = 1. y[part][row] over elements part * per_part .. of the row.
//   Launch: blocks of 256, grid = (rows, parts, 1).
// reduce_<kind>_columns_f32: y[part][outer][inner] over rows part * per_part .. of the axis; `lanes` threads side by side
//   have a column each, 256 / lanes rows at a time. Launch: blocks of 256, grid = (ceil(inner / lanes) outer, parts, 1).
// reduce_<kind>_wide_f32: the same with four columns a thread, for inner a multiple of four;
//   grid = (ceil(inner / (4 lanes)) outer, parts, 1).
// All multiply by `scale`. With more than one part, y is scratch [parts][..], and a second launch reduces it: the
// columns of [1][parts][outer * inner]. All orders are fixed by the shapes.
//
// Target: compute_75
// Registers: 48
#include "common/reduce.cuh"
#include "common/vector.cuh"

template <class F>
DEVICE void short_rows(const float* x, float* y, u32 rows, u32 extent, float scale, float none, F f) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    float sum = none;
    if (row < rows) {
        for (u32 i = lane_id(); i < extent; i += 32) sum = f(sum, x[u64(row) * extent + i]);
    }
    sum = warp_all(sum, f);
    if (row < rows && lane_id() == 0) y[row] = sum * scale;
}

template <class F>
DEVICE void rows(const float* x, float* y, u32 extent, u32 per_part, float scale, float none, F f) {
    SHARED(float, partials, [32]);
    u64 row = blockIdx.x;
    u32 begin = blockIdx.y * per_part, end = extent - begin < per_part ? extent : begin + per_part;
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

/// COLUMNS neighbouring ones a thread.
template <int COLUMNS, class F>
DEVICE void columns(const float* x, float* y, u32 extent, u32 inner, u32 per_part, u32 lanes, float scale, float none, F f) {
    SHARED(float, partials, [256 * COLUMNS]);
    // With 10 columns, 250 threads have 25 rows; the others wait.
    u32 at_once = 256 / lanes, first = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    u32 across = (inner + lanes * COLUMNS - 1) / (lanes * COLUMNS), outer = blockIdx.x / across;
    u32 column = (blockIdx.x % across * lanes + lane) * COLUMNS;
    u32 begin = blockIdx.y * per_part, end = extent - begin < per_part ? extent : begin + per_part;
    const float* from = x + u64(outer) * extent * inner + column;
    bool there = column < inner && first < at_once, fours = COLUMNS == 4 && aligned_for_four(from);
    // Four rows at a time, so that loads do not wait for each other.
    float sums[4][COLUMNS];
    UNROLL
    for (int i = 0; i < 4; i++) {
        UNROLL
        for (int j = 0; j < COLUMNS; j++) sums[i][j] = none;
    }
    for (u32 row = begin + first; there && row < end; row += 4 * at_once) {
        UNROLL
        for (u32 i = 0; i < 4; i++) {
            u32 its = row + i * at_once;
            if (its >= end) break;
            const float* at = from + u64(its) * inner;
            if (fours) {
                Four v = load_four(at);
                UNROLL
                for (int j = 0; j < COLUMNS; j++) sums[i][j] = f(sums[i][j], v.x[j]);
            } else {
                UNROLL
                for (int j = 0; j < COLUMNS; j++) sums[i][j] = f(sums[i][j], at[j]);
            }
        }
    }
    UNROLL
    for (int j = 0; j < COLUMNS; j++) {
        sums[0][j] = f(f(sums[0][j], sums[1][j]), f(sums[2][j], sums[3][j]));
        partials[u32(j) * 256 + threadIdx.x] = sums[0][j];
    }
    // Halves are added to halves; all threads reach the barriers, as often as `lanes` says.
    for (u32 left = at_once; left > 1;) {
        u32 half = (left + 1) / 2;
        __syncthreads();
        if (first + half < left) {
            UNROLL
            for (int j = 0; j < COLUMNS; j++) {
                sums[0][j] = f(sums[0][j], partials[u32(j) * 256 + threadIdx.x + half * lanes]);
                partials[u32(j) * 256 + threadIdx.x] = sums[0][j];
            }
        }
        left = half;
    }
    if (first > 0 || column >= inner) return;
    float* to = y + (u64(blockIdx.y) * (gridDim.x / across) + outer) * inner + column;
    UNROLL
    for (int j = 0; j < COLUMNS; j++) to[j] = sums[0][j] * scale;
}

#define REDUCE(kind, none, F) \
    KERNEL(reduce_##kind##_short_f32, 256, (const float* x, float* y, u32 count, u32 extent, float scale)) { \
        short_rows(x, y, count, extent, scale, none, F()); \
    } \
    KERNEL(reduce_##kind##_rows_f32, 256, (const float* x, float* y, u32 extent, u32 per_part, float scale)) { \
        rows(x, y, extent, per_part, scale, none, F()); \
    } \
    KERNEL(reduce_##kind##_columns_f32, 256, \
           (const float* x, float* y, u32 extent, u32 inner, u32 per_part, u32 lanes, float scale)) { \
        columns<1>(x, y, extent, inner, per_part, lanes, scale, none, F()); \
    } \
    KERNEL(reduce_##kind##_wide_f32, 256, \
           (const float* x, float* y, u32 extent, u32 inner, u32 per_part, u32 lanes, float scale)) { \
        columns<4>(x, y, extent, inner, per_part, lanes, scale, none, F()); \
    }

REDUCE(sum, 0, Add)
REDUCE(max, -infinity(), Max)
