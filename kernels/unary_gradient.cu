// dx = dy f', from the value y of the function (sqrt, tanh, sigmoid, relu) or its argument x (gelu, silu). Contract:
// src/ops/unary_gradient. f32 [n]; dx may be v or dy.
//
// Launch: blocks of 256, one thread for four elements: grid = ceil(n / 1024).
// Addresses that are not those of four elements are served element by element.
//
// Target: compute_75
// Registers: 48
#include "common/math.cuh"
#include "common/vector.cuh"

template <class F>
DEVICE void unary_gradient(const float* v, const float* dy, float* dx, u64 n, F f) {
    u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= n && aligned_for_four(v) && aligned_for_four(dy) && aligned_for_four(dx)) {
        Four a = load_four(v + i), b = load_four(dy + i);
        UNROLL
        for (int j = 0; j < 4; j++) a.x[j] = f(a.x[j], b.x[j]);
        store_four(dx + i, a);
    } else {
        for (u64 end = i + 4 < n ? i + 4 : n; i < end; i++) dx[i] = f(v[i], dy[i]);
    }
}

#define UNARY_GRADIENT(kind, value) \
    struct kind##_of { \
        FUNCTOR float operator()(float v, float dy) const { return value; } \
    }; \
    KERNEL(unary_gradient_##kind##_f32, 256, (const float* v, const float* dy, float* dx, u64 n)) { \
        unary_gradient(v, dy, dx, n, kind##_of()); \
    }

UNARY_GRADIENT(sqrt, dy * 0.5f / v)
// (1 - y)(1 + y), not 1 - y^2: 1 - y is exact where y is near 1.
UNARY_GRADIENT(tanh, dy * ((1 - v) * (1 + v)))
UNARY_GRADIENT(sigmoid, dy * (v * (1 - v)))
// v <= 0 is false for NaN, so that it lets dy pass, as PyTorch's does.
UNARY_GRADIENT(relu, v <= 0 ? 0 : dy)
UNARY_GRADIENT(gelu, dy * gelu_gradient(v))
UNARY_GRADIENT(silu, dy * silu_gradient(v))
