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

/// `Phi(x)`, the distribution function of the normal distribution, and its density without the factor `1 / sqrt(2 pi)`: the
/// lower tail too to some 4 units in the last place. `normcdff` loses more there.
struct Normal {
    float cdf, density;
};
DEVICE Normal normal(float x) {
    // From 14.5 on both are zero in f32. NaN stays.
    float t = fabsf(x);
    t = t > 14.5f ? 14.5f : t;
    // An error in t^2 / 2 is a relative one of the result, so the square is split in two: the first factor has 12 bits, and
    // its square is exact.
    float brief = bits_as<float>(bits_as<u32>(t) & ~0xfffu);
    float high = brief * brief * -0.5f, low = (t - brief) * (t + brief) * -0.5f;
    // exp(high + low) = p 2^n
    float n = rintf((high + low) * 1.44269504f);
    float r = fmaf(-n, 1.42860677e-6f, fmaf(-n, 0.693145752f, high)) + low;
    float p = fmaf(fmaf(fmaf(fmaf(0.0013937847f, r, 0.008368968f), r, 0.041666433f), r, 0.16666518f), r, 0.5f);
    p = fmaf(r * r, p, r) + 1;
    // Phi(-t) exp(t^2 / 2) = P(t / (t + 2)) / (t + 2), with P(0) = 1 so that Phi(0) is exact.
    float inverse = 1 / (t + 2), u = t * inverse;
    float q = fmaf(-0.0753556f, u, 0.3933138f);
    q = fmaf(fmaf(fmaf(q, u, -0.73794055f), u, 0.65520257f), u, -0.38920087f);
    q = fmaf(fmaf(fmaf(q, u, 0.1734267f), u, 0.07876001f), u, 0.08824918f);
    q = fmaf(fmaf(fmaf(q, u, -0.1917286f), u, -0.59576523f), u, 1.0f) * inverse;
    // 2^n in two factors: by itself it may be too small for a normal number.
    int half = int(n) / 2;
    float first = bits_as<float>(u32(127 + half) << 23), second = bits_as<float>(u32(127 + int(n) - half) << 23);
    float tail = p * q * first * second;
    return {x > 0 ? 1 - tail : tail, p * first * second};
}

/// `x Phi(x)`. NaN at negative infinity, as 0 times infinity is.
DEVICE float gelu(float x) {
    return x * normal(x).cdf;
}

DEVICE float silu(float x) {
    return x * sigmoid(x);
}

/// Derivative of gelu: `Phi(x) + x phi(x)`.
DEVICE float gelu_gradient(float x) {
    Normal both = normal(x);
    return fmaf(x, both.density * 0.39894228f, both.cdf);
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
