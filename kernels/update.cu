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
#include "common/reduce.cuh"
#include "common/vector.cuh"

struct Segment {
    float rate_factor, decay_factor;
};
struct Piece {
    u32 segment, count;
    u64 start;
};
enum Decay { DECAY_DECOUPLED, DECAY_COUPLED, DECAY_NONE };

struct Update {
    float* weights;
    const float* gradients;
    /// Null where the rule has none.
    float *first, *second;
    bf16* copy;
    /// Null where there is none.
    const float *guard, *factor;
    const Piece* pieces;
    const Segment* segments;
    /// Three a piece, or null.
    float* partials;
    Control control;
    /// Slots of the control block.
    u32 rate, decay, first_correction, second_correction, gradient_scale;
    u32 decay_kind;
    /// Hyperparameters: 1 - beta1, 1 - beta2, epsilon, momentum.
    float first_share, second_share, epsilon, momentum;
    u32 nesterov;
};

/// The same for all elements of a piece.
struct Coefficients {
    float scale, coupled, shrink, rate, first_correction, second_correction;
};

struct Sgd {
    static constexpr int MOMENTS = 0;
    FUNCTOR float operator()(const Update&, const Coefficients&, float g, float&, float&) const { return g; }
};
struct Momentum {
    static constexpr int MOMENTS = 1;
    FUNCTOR float operator()(const Update& u, const Coefficients&, float g, float& b, float&) const {
        b = fmaf(u.momentum, b, g);
        return u.nesterov ? fmaf(u.momentum, b, g) : b;
    }
};
struct AdamW {
    static constexpr int MOMENTS = 2;
    FUNCTOR float operator()(const Update& u, const Coefficients& c, float g, float& m, float& v) const {
        m = fmaf(u.first_share, g - m, m);
        v = fmaf(u.second_share, fmaf(g, g, -v), v);
        return c.first_correction * m / fmaf(sqrtf(v), c.second_correction, u.epsilon);
    }
};
struct Lion {
    static constexpr int MOMENTS = 1;
    FUNCTOR float operator()(const Update& u, const Coefficients&, float g, float& m, float&) const {
        float c = fmaf(u.first_share, g - m, m);
        m = fmaf(u.second_share, g - m, m);
        return c > 0 ? 1.0f : c < 0 ? -1.0f : 0.0f;
    }
};

template <class Rule>
DEVICE void update(const Update& u) {
    SHARED(float, sums, [32]);
    constexpr int MOMENTS = Rule::MOMENTS;
    Piece piece = u.pieces[blockIdx.x];
    Segment segment = u.segments[piece.segment];
    bool good = (!u.guard || is_finite(*u.guard)) && (!u.factor || is_finite(*u.factor));
    float gradient_scale = control_f32(u.control, u.gradient_scale);
    Coefficients c;
    c.scale = u.factor ? gradient_scale * *u.factor : gradient_scale;
    c.rate = control_f32(u.control, u.rate) * segment.rate_factor;
    float decay = control_f32(u.control, u.decay) * segment.decay_factor;
    c.coupled = u.decay_kind == DECAY_COUPLED ? decay : 0;
    c.shrink = u.decay_kind == DECAY_DECOUPLED ? c.rate * decay : 0;
    c.first_correction = MOMENTS == 2 ? control_f32(u.control, u.first_correction) : 1;
    c.second_correction = MOMENTS == 2 ? control_f32(u.control, u.second_correction) : 1;

    float gg = 0, ww = 0, gw = 0;
    Rule rule;
    auto element = [&](float gradient, float& w, float& first, float& second) {
        float g = gradient * gradient_scale;
        gg = fmaf(g, g, gg);
        ww = fmaf(w, w, ww);
        gw = fmaf(g, w, gw);
        float direction = rule(u, c, fmaf(c.scale, gradient, c.coupled * w), first, second);
        w -= fmaf(c.shrink, w, c.rate * direction);
    };
    u64 end = piece.start + piece.count;
    // Groups of four lie at multiples of four, whatever the piece begins with.
    for (u64 i = piece.start / 4 * 4 + threadIdx.x * 4; i < end; i += 1024) {
        Four w, g, m = {{0, 0, 0, 0}}, v = {{0, 0, 0, 0}};
        bool whole = i >= piece.start && i + 4 <= end;
        if (whole) {
            w = load_four(u.weights + i), g = load_four(u.gradients + i);
            if (MOMENTS > 0) m = load_four(u.first + i);
            if (MOMENTS > 1) v = load_four(u.second + i);
            UNROLL
            for (int j = 0; j < 4; j++) element(g.x[j], w.x[j], m.x[j], v.x[j]);
            if (good) {
                store_four(u.weights + i, w);
                if (MOMENTS > 0) store_four(u.first + i, m);
                if (MOMENTS > 1) store_four(u.second + i, v);
                if (u.copy) store_four(u.copy + i, w);
            }
        } else {
            for (u64 k = i < piece.start ? piece.start : i; k < i + 4 && k < end; k++) {
                float one = u.weights[k], first = MOMENTS > 0 ? u.first[k] : 0, second = MOMENTS > 1 ? u.second[k] : 0;
                element(u.gradients[k], one, first, second);
                if (!good) continue;
                u.weights[k] = one;
                if (MOMENTS > 0) u.first[k] = first;
                if (MOMENTS > 1) u.second[k] = second;
                if (u.copy) u.copy[k] = from_float<bf16>(one);
            }
        }
    }
    if (!u.partials) return;
    gg = block_all(gg, sums, 0, Add());
    ww = block_all(ww, sums, 0, Add());
    gw = block_all(gw, sums, 0, Add());
    if (threadIdx.x == 0) {
        float* to = u.partials + u64(blockIdx.x) * 3;
        to[0] = gg;
        to[1] = ww;
        to[2] = gw;
    }
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
