// The number of rows whose first largest logit is that of the label; NaN if a label is not below `classes`. Contract:
// src/ops/accuracy. logits: f32 rows x classes, labels: u32 [rows], y: f32 [1].
//
// accuracy_rows_<kind>: found[r] = 1 where row r is right, 0 where not, 2 where the label is none. The row is read once.
//   warp: blocks of 256, a warp a row, grid = ceil(rows / 8).   block: blocks of 256, one a row, grid = rows.
// accuracy_count: one block of 1024 adds them, as integers.
//
// Target: compute_75
// Registers: 64
#include "common/vector.cuh"

/// Whether logits `thread`, `thread + threads`, ... of the row leave the label's the first largest; NaN does not.
DEVICE bool leaves(const float* z, u32 classes, u32 label, u32 thread, u32 threads) {
    float own = z[label];
    bool good = true;
    // Comparisons do not branch, so loads do not wait for each other.
    for (u32 i = thread; i < classes; i += threads) good &= i < label ? z[i] < own : z[i] <= own;
    return good;
}

KERNEL(accuracy_rows_warp, 256, (const float* logits, const u32* labels, u32* found, u32 rows, u32 classes)) {
    u64 row = u64(blockIdx.x) * 8 + threadIdx.x / 32;
    u32 label = row < rows ? labels[row] : classes;
    bool good = label < classes && leaves(logits + row * classes, classes, label, lane_id(), 32);
    good = __all_sync(ALL_LANES, good);
    if (row < rows && lane_id() == 0) found[row] = label < classes ? good : 2;
}

KERNEL(accuracy_rows_block, 256, (const float* logits, const u32* labels, u32* found, u32 rows, u32 classes)) {
    SHARED(u32, votes, [8]);
    u64 row = blockIdx.x;
    if (row >= rows) return;
    u32 label = labels[row];
    bool good = label < classes && leaves(logits + row * classes, classes, label, threadIdx.x, 256);
    good = __all_sync(ALL_LANES, good);
    if (lane_id() == 0) votes[threadIdx.x / 32] = good;
    __syncthreads();
    if (threadIdx.x != 0) return;
    u32 all = 1;
    for (u32 warp = 0; warp < 8; warp++) all &= votes[warp];
    found[row] = label < classes ? all : 2;
}

KERNEL(accuracy_count, 1024, (const u32* found, float* y, u32 rows)) {
    SHARED(u32, counts, [32]);
    SHARED(u32, bad, [32]);
    u32 count = 0, none = 0;
    for (u64 row = threadIdx.x; row < rows; row += 1024) {
        count += found[row] & 1;
        none |= found[row] >> 1;
    }
    UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
        count += __shfl_xor_sync(ALL_LANES, count, distance);
        none |= __shfl_xor_sync(ALL_LANES, none, distance);
    }
    if (lane_id() == 0) {
        counts[threadIdx.x / 32] = count;
        bad[threadIdx.x / 32] = none;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < 32; warp++) {
        count += counts[warp];
        none |= bad[warp];
    }
    y[0] = none ? nan_value() : float(count);
}
