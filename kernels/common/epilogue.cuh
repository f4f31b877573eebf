// What is done to an element of a product once its sum is there.
#pragma once
#include "math.cuh"
#include "vector.cuh"

struct Epilogue {
    /// f32 [n], added to every row; null for none.
    const float* bias;
    /// f32 [m][n]: what the forward pass saved of an activation, for the gradient mask; null for none.
    const float* saved;
    /// f32 [m][n], written: the argument of the activation; null where nobody reads it.
    float* argument;
    /// f32 and bf16 [m][n], written; either may be null.
    float* y;
    bf16* y_bf16;
    /// Of the result (forward), and that whose gradient multiplies it (backward, with `saved`).
    u32 activation, mask;
    /// y += instead of y =.
    u32 accumulate;
    u32 unused;
};

/// y[i] from the sum of products, `i` = row * n + column.
DEVICE void finish(const Epilogue& e, float value, u64 i, u32 column) {
    if (e.bias) value += e.bias[column];
    if (e.argument) e.argument[i] = value;
    value = e.saved ? activation_gradient(int(e.mask), value, e.saved[i]) : activate(int(e.activation), value);
    if (e.accumulate) value += e.y[i];
    if (e.y) e.y[i] = value;
    if (e.y_bf16) e.y_bf16[i] = from_float<bf16>(value);
}

/// Whether four neighbours of a row are finished at once, for results of `n` columns: not with functions whose code is long.
DEVICE bool in_fours(const Epilogue& e, u32 n) {
    return n % 4 == 0 && (u64(e.bias) | u64(e.saved) | u64(e.argument) | u64(e.y) | u64(e.y_bf16)) % 16 == 0 &&
           e.activation <= ACTIVATION_RELU && (!e.saved || e.mask <= ACTIVATION_RELU);
}

/// The same for four neighbours of a row, where `in_fours` says so.
DEVICE void finish_four(const Epilogue& e, Four v, u64 i, u32 column) {
    if (e.bias) {
        Four bias = load_four(e.bias + column);
        UNROLL
        for (u32 j = 0; j < 4; j++) v.x[j] += bias.x[j];
    }
    if (e.argument) store_four(e.argument + i, v);
    if (e.saved) {
        Four saved = load_four(e.saved + i);
        UNROLL
        for (u32 j = 0; j < 4; j++) v.x[j] = e.mask != ACTIVATION_RELU || saved.x[j] > 0 ? v.x[j] : 0;
    } else {
        UNROLL
        for (u32 j = 0; j < 4; j++) v.x[j] = e.activation == ACTIVATION_RELU ? relu(v.x[j]) : v.x[j];
    }
    if (e.accumulate) {
        Four old = load_four(e.y + i);
        UNROLL
        for (u32 j = 0; j < 4; j++) v.x[j] += old.x[j];
    }
    if (e.y) store_four(e.y + i, v);
    if (e.y_bf16) store_four(e.y_bf16 + i, v);
}
