// y = a + b, a - b, a b, a / b, and a == b as 1 or 0, element by element. Contract: src/ops/binary. All f32.
//
// binary_<kind>_f32: a, b and y have n elements each; y may be a or b.
//   Launch: blocks of 256, one thread for four elements: grid = ceil(n / 1024).
// binary_<kind>_broadcast_f32: y is row-major with the extents of `shape`; a and b are read with its strides, 0
//   where they repeat. Axes are merged and filled up with extents of 1 by the caller.
//   Launch: blocks of 256, one thread an element: grid = ceil(n / 256). n < 2^32.
//
// Target: compute_75
// Registers: 48
#include "common/vector.cuh"

struct Broadcast {
    /// Extents of y, and strides of a and b in elements, first axis first.
    u32 extents[4], a[4], b[4];
};

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
DEVICE void broadcast(const float* a, const float* b, float* y, u32 n, const Broadcast& shape, F f) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    u32 rest = i, at_a = 0, at_b = 0;
    UNROLL
    for (int axis = 3; axis >= 0; axis--) {
        u32 outer = rest / shape.extents[axis], place = rest - outer * shape.extents[axis];
        at_a += place * shape.a[axis];
        at_b += place * shape.b[axis];
        rest = outer;
    }
    y[i] = f(a[at_a], b[at_b]);
}

#define BINARY(kind, value) \
    struct kind##_of { \
        FUNCTOR float operator()(float a, float b) const { return value; } \
    }; \
    KERNEL(binary_##kind##_f32, 256, (const float* a, const float* b, float* y, u64 n)) { \
        binary(a, b, y, n, kind##_of()); \
    } \
    KERNEL(binary_##kind##_broadcast_f32, 256, \
           (const float* a, const float* b, float* y, u32 n, Broadcast shape)) { \
        broadcast(a, b, y, n, shape, kind##_of()); \
    }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(equal, a == b ? 1.0f : 0.0f)
