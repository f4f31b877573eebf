// y = a + b, a - b, a b, a / b, and a == b as 1 or 0, element by element. Contract: src/ops/binary. All f32.
//
// binary_<kind>_f32: a, b and y have n elements each; y may be a or b.
//   Launch: blocks of 256, one thread for four elements: grid = ceil(n / 1024).
// binary_<kind>_broadcast_f32: y is row-major with n elements; a and b are read with the strides of `axes`.
//   Launch: blocks of 256, grid = ceil(n / 1024): a thread takes four elements at once where `wide` says so and addresses
//   are aligned, else four that lie 256 apart.
//
// Target: compute_75
// Registers: 48
#include "common/index.cuh"
#include "common/vector.cuh"

template <class F>
DEVICE void binary(const float* a, const float* b, float* y, u64 n, F f) {
    u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    bool aligned = aligned_for_four(a) && aligned_for_four(b) && aligned_for_four(y);
    if (i + 4 <= n && aligned) {
        Four v = load_four(a + i), w = load_four(b + i);
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = f(v.x[j], w.x[j]);
        store_four(y + i, v);
    } else {
        for (u64 end = i + 4 < n ? i + 4 : n; i < end; i++) y[i] = f(a[i], b[i]);
    }
}

template <class F>
DEVICE void broadcast(const float* a, const float* b, float* y, u64 n, const Axes<2>& axes, F f) {
    u64 first = u64(blockIdx.x) * 1024, at[2];
    bool a_repeats = axes.strides[0][0] == 0, b_repeats = axes.strides[1][0] == 0;
    bool aligned = aligned_for_four(y) && (a_repeats || aligned_for_four(a)) && (b_repeats || aligned_for_four(b));
    if (axes.wide && aligned) {
        u64 i = first + threadIdx.x * 4;
        if (i >= n) return;
        locate(axes, i, at);
        float one = a[at[0]], other = b[at[1]];
        Four v = a_repeats ? Four{{one, one, one, one}} : load_four(a + at[0]);
        Four w = b_repeats ? Four{{other, other, other, other}} : load_four(b + at[1]);
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = f(v.x[j], w.x[j]);
        store_four(y + i, v);
    } else {
        for (u32 j = 0; j < 4; j++) {
            u64 i = first + j * 256 + threadIdx.x;
            if (i >= n) return;
            locate(axes, i, at);
            y[i] = f(a[at[0]], b[at[1]]);
        }
    }
}

#define BINARY(kind, value) \
    struct kind##_of { \
        FUNCTOR float operator()(float a, float b) const { return value; } \
    }; \
    KERNEL(binary_##kind##_f32, 256, (const float* a, const float* b, float* y, u64 n)) { \
        binary(a, b, y, n, kind##_of()); \
    } \
    KERNEL(binary_##kind##_broadcast_f32, 256, \
           (const float* a, const float* b, float* y, u64 n, Axes<2> axes)) { \
        broadcast(a, b, y, n, axes, kind##_of()); \
    }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(equal, a == b ? 1.0f : 0.0f)
