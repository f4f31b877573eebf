// What is done to an element of a product once its sum is there.
#pragma once
#include "math.cuh"

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
