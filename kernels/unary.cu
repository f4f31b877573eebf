// y = f(x), element by element: -x, e^x, log x, sqrt x, tanh x, sigmoid x, max(x, 0), gelu x, silu x.
// Contract: src/ops/unary. x, y: n elements, f32 or bf16 (then f is taken in f32); y may be x.
//
// Launch: blocks of 256, one thread for four elements: grid = ceil(n / 1024).
// Addresses that are not those of four elements are served element by element.
//
// Target: compute_75
// Registers: 48
#include "common/math.cuh"
#include "common/vector.cuh"

template <class T, class F>
DEVICE void unary(const T* x, T* y, u64 n, F f) {
    u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= n && aligned_for_four(x) && aligned_for_four(y)) {
        Four v = load_four(x + i);
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = f(v.x[j]);
        store_four(y + i, v);
    } else {
        for (u64 end = i + 4 < n ? i + 4 : n; i < end; i++) y[i] = from_float<T>(f(to_float(x[i])));
    }
}

#define UNARY(kind, value) \
    struct kind##_of { \
        FUNCTOR float operator()(float x) const { return value; } \
    }; \
    KERNEL(unary_##kind##_f32, 256, (const float* x, float* y, u64 n)) { unary(x, y, n, kind##_of()); } \
    KERNEL(unary_##kind##_bf16, 256, (const bf16* x, bf16* y, u64 n)) { unary(x, y, n, kind##_of()); }

UNARY(neg, -x)
UNARY(exp, expf(x))
UNARY(log, logf(x))
UNARY(sqrt, sqrtf(x))
UNARY(tanh, tanhf(x))
UNARY(sigmoid, sigmoid(x))
UNARY(relu, relu(x))
UNARY(gelu, gelu(x))
UNARY(silu, silu(x))
