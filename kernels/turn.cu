// Between two steps of a graph: keeps what the host wants of the step that is over, and gives the next one its control
// block. Contract: src/device/cuda/feed.rs, which lays out `feed`: a header, the row of a halted step, a row for each step.
//
//   save: results[FIRST + CURSOR - 1][i] = *kept.from[i], eight floats a step, zeros beyond kept.count. Where one whose
//         bit of kept.stops is set is not finite, *halted = 1; the results of steps that begin halted are NaN.
//   load: block = the next row, or that of a halted step; CURSOR goes on by one. A fresh feed is not halted.
//
// Launch: one block of 256, grid = 1. The kernel runs alone: all of a step comes before it, or after it.
//
// Target: compute_75
// Registers: 40
#include "common/cuda.cuh"

enum Header { SLOTS, ROWS, FIRST, FRESH, CURSOR, ROW_0 = 8 };
enum : u32 { KEPT = 8 };

struct Kept {
    const float* from[KEPT];
    u32 count, stops;
};

KERNEL(turn, 256, (u64* feed, u32* halted, u64* block, float* results, Kept kept, u32 save, u32 load)) {
    SHARED(u32, stop, [1]);
    u64 slots = feed[SLOTS], rows = feed[ROWS], cursor = feed[CURSOR];
    if (threadIdx.x == 0) {
        bool before = !(feed[FRESH] && cursor == 0) && *halted, after = before;
        if (save) {
            float* to = results + (feed[FIRST] + cursor - 1) * KEPT;
            UNROLL
            for (u32 i = 0; i < KEPT; i++) {
                float x = i < kept.count ? *kept.from[i] : 0.0f;
                if (kept.stops >> i & 1 && !is_finite(x)) after = true;
                to[i] = before ? nan_value() : x;
            }
        }
        stop[0] = after;
        *halted = after;
    }
    // Nobody moves the cursor before all have read it.
    __syncthreads();
    if (!load) return;
    const u64* row = feed + ROW_0 + (stop[0] || cursor >= rows ? 0 : cursor + 1) * slots;
    for (u64 i = threadIdx.x; i < slots; i += 256) block[i] = row[i];
    if (threadIdx.x == 0) feed[CURSOR] = cursor + 1;
}
