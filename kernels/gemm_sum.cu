// The sum of the parts of a split product, in order: y = epilogue(sum), or the step of a weight with it (gemm_sum_update, as
// in gemm.cu). partials [parts][size], 16-byte aligned; `size` elements in rows of n.
//
// Blocks of 256, four elements a thread; grid = ceil(size / 1024).
//
// Target: compute_75
// Registers: 64
#include "common/epilogue.cuh"
#include "common/update.cuh"

/// `count` elements from `i` on.
DEVICE Four sum_of(const float* partials, u32 parts, u64 size, u64 i, u32 count, bool wide) {
    Four sum = load_part(partials + i, count, wide);
    _Pragma("unroll 4")
    for (u32 part = 1; part < parts; part++) {
        Four more = load_part(partials + part * size + i, count, wide);
        UNROLL
        for (u32 j = 0; j < 4; j++) sum.x[j] += more.x[j];
    }
    return sum;
}

KERNEL_RESIDENT(gemm_sum, 256, 4, (const float* partials, u32 parts, u32 n, u64 size, Epilogue epilogue)) {
    u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i >= size) return;
    if (in_fours(epilogue, n)) {
        finish_four(epilogue, sum_of(partials, parts, size, i, 4, true), i, u32(i % n));
        return;
    }
    // Four neighbours may lie in two rows.
    ROLLED
    for (u64 end = i + 4 < size ? i + 4 : size; i < end; i++) {
        finish(epilogue, sum_of(partials, parts, size, i, 1, false).x[0], i, u32(i % n));
    }
}

KERNEL(gemm_sum_update, 256, (const float* partials, u32 parts, u64 size, Update update)) {
    Coefficients c = coefficients(update, update.segments[0], update.rule == RULE_ADAMW);
    UpdateSums sums{0, 0, 0};
    u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i < size) {
        u32 count = size - i < 4 ? u32(size - i) : 4;
        Four gradient = sum_of(partials, parts, size, i, count, size % 4 == 0);
        update_by_rule(update, c, sums, gradient, i, count, in_fours(update, 4));
    }
    leave_sums(update, sums);
}
