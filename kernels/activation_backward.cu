// dz = dy act'(z), and db = the sum of dz over its rows. Contract: src/ops/activation_backward. f32; dy, saved, dz:
// rows x columns, row-major. dz may be dy; dz or partials may be null, and are then not written.
//
// activation_backward_<kind>_f32: blocks of 256, 32 columns by 8 rows; block (x, y) takes columns 32 x .. and rows
//   y * rows_per_block .. of them; grid = (ceil(columns / 32), parts, 1). It writes the sum of its rows to
//   partials[y][..]; column_sum then adds the parts in order.
// column_sum_f32: y[i] = sum over p in order of partials[p][i], times scale; blocks of 256, grid = ceil(columns / 256).
//
// Target: compute_75
// Registers: 48
#include "common/math.cuh"

template <int ACTIVATION>
DEVICE void activation_backward(const float* dy, const float* saved, float* dz, float* partials, u32 rows, u32 columns,
                                u32 rows_per_block) {
    SHARED(float, sums, [8][33]);
    u32 column = blockIdx.x * 32 + threadIdx.x % 32, first = threadIdx.x / 32;
    u32 begin = blockIdx.y * rows_per_block;
    u32 end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
    float sum = 0;
    if (column < columns) {
        // Four rows at a time: all are loaded before one is stored, as dz may be dy and the compiler cannot know.
        for (u32 row = begin + first; row < end; row += 32) {
            float values[4];
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                u64 i = u64(row + 8 * j) * columns + column;
                values[j] = row + 8 * j < end ? activation_gradient(ACTIVATION, dy[i], saved[i]) : 0;
            }
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                if (row + 8 * j >= end) break;
                if (dz) dz[u64(row + 8 * j) * columns + column] = values[j];
                sum += values[j];
            }
        }
    }
    if (!partials) return;
    sums[first][threadIdx.x % 32] = sum;
    __syncthreads();
    if (first == 0 && column < columns) {
        for (u32 i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
        partials[u64(blockIdx.y) * columns + column] = sum;
    }
}

#define ACTIVATION_BACKWARD(kind, number) \
    KERNEL(activation_backward_##kind##_f32, 256, \
           (const float* dy, const float* saved, float* dz, float* partials, u32 rows, u32 columns, \
            u32 rows_per_block)) { \
        activation_backward<number>(dy, saved, dz, partials, rows, columns, rows_per_block); \
    }

ACTIVATION_BACKWARD(relu, ACTIVATION_RELU)
ACTIVATION_BACKWARD(gelu, ACTIVATION_GELU)
ACTIVATION_BACKWARD(tanh, ACTIVATION_TANH)
ACTIVATION_BACKWARD(silu, ACTIVATION_SILU)

KERNEL(column_sum_f32, 256, (const float* partials, float* y, u32 parts, u32 columns, float scale)) {
    u32 column = blockIdx.x * 256 + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
    for (u32 part = 0; part < parts; part++) sum += partials[u64(part) * columns + column];
    y[column] = sum * scale;
}
