// The update of all parameters by one optimizer step, in one launch over the flat arena. Contract and equations:
// src/ops/update. weights, gradients, moments: f32 [P], with 16-byte aligned bases; copy: bf16 [P] or null, the rounded
// new weights. What changes from step to step is read from the control block, the guard (the loss) and the clipping factor
// from device memory: if one of these is not finite, weights and moments keep every bit.
//
// The arena is cut into pieces of one segment each by the caller, at most 4096 elements; block i does piece i and leaves
// g.g, w.w and g.w of it in partials[i]; update_statistics adds the pieces of each segment, in f64 and a fixed order.
//
// update_<rule>: blocks of 256, grid = pieces.   update_statistics: blocks of 256, a warp a segment, grid = ceil(segments / 8).
//
// Target: compute_75
// Registers: 64
#include "common/update.cuh"

template <class Rule>
DEVICE void update(const Update& u) {
    Piece piece = u.pieces[blockIdx.x];
    Coefficients c = coefficients(u, u.segments[piece.segment], Rule::MOMENTS == 2);
    UpdateSums sums{0, 0, 0};
    u64 end = piece.start + piece.count;
    // Groups of four lie at multiples of four, whatever the piece begins with.
    for (u64 i = piece.start / 4 * 4 + threadIdx.x * 4; i < end; i += 1024) {
        u64 first = i < piece.start ? piece.start : i, last = i + 4 < end ? i + 4 : end;
        bool wide = last - first == 4;
        u32 count = u32(last - first);
        update_four<Rule>(u, c, sums, load_part(u.gradients + first, count, wide), first, count, wide);
    }
    leave_sums(u, sums);
}

KERNEL(update_sgd, 256, (Update u)) { update<Sgd>(u); }
KERNEL(update_momentum, 256, (Update u)) { update<Momentum>(u); }
KERNEL(update_adamw, 256, (Update u)) { update<AdamW>(u); }
KERNEL(update_lion, 256, (Update u)) { update<Lion>(u); }

/// statistics [segments][3]; pieces first_piece[s] .. first_piece[s + 1] are those of segment s.
KERNEL(update_statistics, 256, (const float* partials, const u32* first_piece, float* statistics, u32 segments)) {
    u32 segment = blockIdx.x * 8 + threadIdx.x / 32;
    bool there = segment < segments;
    u32 begin = there ? first_piece[segment] : 0, end = there ? first_piece[segment + 1] : 0;
    for (u32 which = 0; which < 3; which++) {
        double sum = 0;
        for (u32 piece = begin + lane_id(); piece < end; piece += 32) sum += double(partials[u64(piece) * 3 + which]);
        UNROLL
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        if (there && lane_id() == 0) statistics[segment * 3 + which] = float(sum);
    }
}
