// y = mean (prediction - target)^2. Contract: src/ops/mse. f32 [n], y: f32 [1].
//
// mse_squares: blocks of 256, grid = ceil(n / per_part); block p sums the squares of elements p * per_part .. into
//   partials[p]. per_part is a multiple of 4.
// mse_mean: one block of 256 adds the parts, in f64 and a fixed order, and divides by n.
//
// Target: compute_75
// Registers: 64
#include "common/reduce.cuh"
#include "common/vector.cuh"

KERNEL(mse_squares, 256, (const float* prediction, const float* target, float* partials, u64 n, u32 per_part)) {
    SHARED(float, sums, [32]);
    u64 begin = u64(blockIdx.x) * per_part, end = begin + per_part < n ? begin + per_part : n;
    // Four sums a thread, so that additions do not wait for each other.
    Four sum = {{0, 0, 0, 0}};
    auto add = [&](int j, float a, float b) { sum.x[j] = fmaf(a - b, a - b, sum.x[j]); };
    u64 i = begin + threadIdx.x * 4;
    bool aligned = aligned_for_four(prediction) && aligned_for_four(target);
    for (; i + 4 <= end; i += 1024) {
        if (aligned) {
            Four a = load_four(prediction + i), b = load_four(target + i);
            UNROLL
            for (int j = 0; j < 4; j++) add(j, a.x[j], b.x[j]);
        } else {
            UNROLL
            for (int j = 0; j < 4; j++) add(j, prediction[i + u32(j)], target[i + u32(j)]);
        }
    }
    for (; i < end; i++) add(0, prediction[i], target[i]);
    float all = block_all((sum.x[0] + sum.x[1]) + (sum.x[2] + sum.x[3]), sums, 0, Add());
    if (threadIdx.x == 0) partials[blockIdx.x] = all;
}

KERNEL(mse_mean, 256, (const float* partials, float* y, u64 parts, u64 n)) {
    SHARED(double, sums, [256]);
    double sum = 0;
    for (u64 part = threadIdx.x; part < parts; part += 256) sum += double(partials[part]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (u32 distance = 128; distance > 0; distance /= 2) {
        if (threadIdx.x < distance) sums[threadIdx.x] += sums[threadIdx.x + distance];
        __syncthreads();
    }
    if (threadIdx.x == 0) y[0] = float(sums[0] / double(n));
}
