// The norm of all gradients, and the factor that clips it: norm = |scale| sqrt(sum g^2), factor = min(1, max_norm / (norm + 1e-6)).
// Contract: src/ops/global_norm. g: f32 [n], gaps zero; norm, factor: f32 [1]. A norm that is not finite gives the factor NaN,
// at which the update leaves everything as it is. scale and max_norm are read from the control block.
//
// global_norm_squares: blocks of 256, grid = parts; block p sums the squares of elements p * per_part .. into partials[p].
// global_norm_finish: one block of 256 adds the parts, in f64 and a fixed order.
//
// Target: compute_75
// Registers: 48
#include "common/reduce.cuh"
#include "common/vector.cuh"

KERNEL(global_norm_squares, 256, (const float* g, float* partials, u64 n, u32 per_part)) {
    SHARED(float, sums, [32]);
    u64 begin = u64(blockIdx.x) * per_part, end = begin + per_part < n ? begin + per_part : n;
    // Four sums a thread, so that additions do not wait for each other.
    Four sum = {{0, 0, 0, 0}};
    u64 i = begin + threadIdx.x * 4;
    bool aligned = aligned_for_four(g + begin);
    for (; i + 4 <= end; i += 1024) {
        Four v = aligned ? load_four(g + i) : Four{{g[i], g[i + 1], g[i + 2], g[i + 3]}};
        UNROLL
        for (int j = 0; j < 4; j++) sum.x[j] = fmaf(v.x[j], v.x[j], sum.x[j]);
    }
    for (; i < end; i++) sum.x[0] = fmaf(g[i], g[i], sum.x[0]);
    float all = block_all((sum.x[0] + sum.x[1]) + (sum.x[2] + sum.x[3]), sums, 0, Add());
    if (threadIdx.x == 0) partials[blockIdx.x] = all;
}

KERNEL(global_norm_finish, 256,
       (const float* partials, float* norm, float* factor, u32 parts, Control control, u32 max_norm, u32 gradient_scale)) {
    SHARED(double, sums, [256]);
    double sum = 0;
    for (u32 part = threadIdx.x; part < parts; part += 256) sum += double(partials[part]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (u32 distance = 128; distance > 0; distance /= 2) {
        if (threadIdx.x < distance) sums[threadIdx.x] += sums[threadIdx.x + distance];
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    float value = float(sqrt(sums[0]) * fabs(double(control_f32(control, gradient_scale))));
    norm[0] = value;
    float ratio = control_f32(control, max_norm) / (value + 1e-6f);
    factor[0] = is_finite(value) ? fminf(ratio, 1.0f) : nan_value();
}
