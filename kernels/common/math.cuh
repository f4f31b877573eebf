// Elementary functions of kernels, by the formulas of device/cpu/simd/math.rs where those of the
// device cancel.
#pragma once
#include "cuda.cuh"

enum Activation { ACTIVATION_NONE, ACTIVATION_RELU, ACTIVATION_GELU, ACTIVATION_TANH, ACTIVATION_SILU };

/// `max(x, 0)`; NaN stays NaN.
DEVICE float relu(float x) {
    return x <= 0 ? 0 : x;
}

/// `1 / (1 + e^-x)`, in the lower tail too.
DEVICE float sigmoid(float x) {
    float e = expf(-fabsf(x));
    return (x >= 0 ? 1.0f : e) / (e + 1);
}

/// `x Phi(x)`, with the distribution function of the normal distribution. NaN at negative infinity, as 0 times infinity is.
DEVICE float gelu(float x) {
    return x * normcdff(x);
}

DEVICE float silu(float x) {
    return x * sigmoid(x);
}

/// Derivative of gelu: `Phi(x) + x phi(x)`.
DEVICE float gelu_gradient(float x) {
    return fmaf(x * 0.39894228f, expf(-0.5f * x * x), normcdff(x));
}

/// Derivative of silu: `y + x y (1 - y)`, `1 - y` without cancellation.
DEVICE float silu_gradient(float x) {
    float y = sigmoid(x);
    return fmaf(x * y, sigmoid(-x), y);
}

DEVICE float activate(int activation, float z) {
    switch (activation) {
        case ACTIVATION_RELU: return relu(z);
        case ACTIVATION_GELU: return gelu(z);
        case ACTIVATION_TANH: return tanhf(z);
        case ACTIVATION_SILU: return silu(z);
        default: return z;
    }
}

/// `dy act'`, from what the forward pass saved: the argument for GELU and SiLU, the value for ReLU and
/// tanh. NaN of `dy` is dropped where ReLU is off.
DEVICE float activation_gradient(int activation, float dy, float saved) {
    switch (activation) {
        case ACTIVATION_RELU: return saved > 0 ? dy : 0;
        case ACTIVATION_GELU: return dy * gelu_gradient(saved);
        case ACTIVATION_TANH: return dy * fmaf(-saved, saved, 1.0f);
        case ACTIVATION_SILU: return dy * silu_gradient(saved);
        default: return dy;
    }
}
