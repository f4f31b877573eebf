// Slow weights that follow the fast ones: slow += share (fast - slow), and for Lookahead fast = slow. Contract: src/ops/average.
// slow, fast: f32 [n], not overlapping; share is read from the control block, and where it is 0 nothing is written.
//
// average_ema, average_lookahead: blocks of 256, a thread four elements: grid = ceil(n / 1024).
//
// Target: compute_75
// Registers: 48
#include "common/vector.cuh"

template <class Store>
DEVICE void average(float* slow, const float* fast, u64 n, float share, Store store) {
    u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (i >= n || share == 0) return;
    u32 count = n - i < 4 ? u32(n - i) : 4;
    bool wide = aligned_for_four(slow) && aligned_for_four(fast);
    Four s = load_part(slow + i, count, wide), f = load_part(fast + i, count, wide);
    UNROLL
    for (int j = 0; j < 4; j++) s.x[j] = fmaf(share, f.x[j] - s.x[j], s.x[j]);
    store_part(slow + i, s, count, wide);
    store(i, s, count, wide);
}

struct Leave {
    FUNCTOR void operator()(u64, Four, u32, bool) const {}
};
struct Return {
    float* fast;
    FUNCTOR void operator()(u64 i, Four s, u32 count, bool wide) const { store_part(fast + i, s, count, wide); }
};

KERNEL(average_ema, 256, (float* slow, const float* fast, u64 n, Control control, u32 share)) {
    average(slow, fast, n, control_f32(control, share), Leave());
}
KERNEL(average_lookahead, 256, (float* slow, float* fast, u64 n, Control control, u32 share)) {
    average(slow, fast, n, control_f32(control, share), Return{fast});
}
