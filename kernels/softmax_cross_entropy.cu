// Softmax and cross-entropy of at most 256 classes with labels, and the sum over the rows: see common/cross_entropy.cuh. More
// classes and distributions are modules of their own (softmax_cross_entropy_many.cu, _soft.cu): small nets need neither.
//
// softmax_cross_entropy_finish: one block of 1024 sums the rows' results in a fixed order: loss [1], statistics [5].
//
// Target: compute_75
// Registers: 64
#include "common/cross_entropy.cuh"

#define FORMS(type, T) \
    CROSS_ENTROPY_LABELS(type, T, 16, 128, 8, Lanes<4>, 1, false) \
    CROSS_ENTROPY_LABELS(type, T, 256, 128, 8, Lanes<32>, 2, false)
FORMS(f32, float)
FORMS(bf16, bf16)

/// loss [1], statistics [5]: mean margin, smallest margin, rows whose argmax is the label, root mean square of the logits, saturated rows.
KERNEL(softmax_cross_entropy_finish, 1024, (const float4* results, float* loss, float* statistics, u32 rows, u32 classes)) {
    SHARED(float, partials, [32]);
    float losses = 0, margins = 0, smallest = infinity(), right = 0, squares = 0, saturated = 0;
    for (u32 row = threadIdx.x; row < rows; row += blockDim.x) {
        float4 result = load(results + row);
        losses += result.x;
        margins += result.y;
        smallest = Min()(smallest, result.y);
        right += result.z > 0 ? 1.0f : 0.0f;
        saturated += result.z > 1 ? 1.0f : 0.0f;
        squares += result.w;
    }
    losses = block_all(losses, partials, 0, Add());
    margins = block_all(margins, partials, 0, Add());
    smallest = block_all(smallest, partials, infinity(), Min());
    right = block_all(right, partials, 0, Add());
    squares = block_all(squares, partials, 0, Add());
    saturated = block_all(saturated, partials, 0, Add());
    if (threadIdx.x == 0) {
        loss[0] = losses / float(rows);
        statistics[0] = margins / float(rows);
        statistics[1] = smallest;
        statistics[2] = right;
        statistics[3] = sqrtf(squares / (float(rows) * float(classes)));
        statistics[4] = saturated;
    }
}
