// The step of an optimizer for single elements: rules, coefficients, and the sums for statistics. Contract and equations:
// src/ops/update.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

struct Segment {
    float rate_factor, decay_factor;
};
struct Piece {
    u32 segment, count;
    u64 start;
};
enum Decay { DECAY_DECOUPLED, DECAY_COUPLED, DECAY_NONE, DECAY_CAUTIOUS };
enum Rule { RULE_SGD, RULE_MOMENTUM, RULE_ADAMW, RULE_LION };

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
    /// Slots of the control block; `momentum` is that of SGD, of the others 1 - beta1.
    u32 rate, decay, first_correction, second_correction, gradient_scale, momentum;
    u32 decay_kind;
    /// Hyperparameters: 1 - beta2, epsilon.
    float second_share, epsilon;
    u32 nesterov;
    /// Of `Rule`; for kernels that are not one rule's alone.
    u32 rule;
};

/// The same for all elements of a piece.
struct Coefficients {
    float gradient_scale, scale, coupled, shrink, rate, first_correction, second_correction, momentum;
    /// Whether a weight shrinks only where its step has not the opposite sign.
    bool cautious;
    /// Neither guard nor clipping factor keeps the weights as they are.
    bool good;
};
DEVICE Coefficients coefficients(const Update& u, Segment segment, bool corrected) {
    Coefficients c;
    c.good = (!u.guard || is_finite(*u.guard)) && (!u.factor || is_finite(*u.factor));
    c.gradient_scale = control_f32(u.control, u.gradient_scale);
    c.scale = u.factor ? c.gradient_scale * *u.factor : c.gradient_scale;
    c.rate = control_f32(u.control, u.rate) * segment.rate_factor;
    float decay = control_f32(u.control, u.decay) * segment.decay_factor;
    c.coupled = u.decay_kind == DECAY_COUPLED ? decay : 0;
    c.cautious = u.decay_kind == DECAY_CAUTIOUS;
    c.shrink = u.decay_kind == DECAY_DECOUPLED || c.cautious ? c.rate * decay : 0;
    c.momentum = control_f32(u.control, u.momentum);
    c.first_correction = corrected ? control_f32(u.control, u.first_correction) : 1;
    c.second_correction = corrected ? control_f32(u.control, u.second_correction) : 1;
    return c;
}

/// g.g, w.w and g.w of what a thread has seen.
struct UpdateSums {
    float gg, ww, gw;
};

struct Sgd {
    static constexpr int MOMENTS = 0;
    FUNCTOR float operator()(const Update&, const Coefficients&, float g, float&, float&) const { return g; }
};
struct Momentum {
    static constexpr int MOMENTS = 1;
    FUNCTOR float operator()(const Update& u, const Coefficients& c, float g, float& b, float&) const {
        b = fmaf(c.momentum, b, g);
        return u.nesterov ? fmaf(c.momentum, b, g) : b;
    }
};
struct AdamW {
    static constexpr int MOMENTS = 2;
    FUNCTOR float operator()(const Update& u, const Coefficients& c, float g, float& m, float& v) const {
        m = fmaf(c.momentum, g - m, m);
        v = fmaf(u.second_share, fmaf(g, g, -v), v);
        return c.first_correction * m / fmaf(sqrtf(v), c.second_correction, u.epsilon);
    }
};
struct Lion {
    static constexpr int MOMENTS = 1;
    FUNCTOR float operator()(const Update& u, const Coefficients& c, float g, float& m, float&) const {
        float between = fmaf(c.momentum, g - m, m);
        m = fmaf(u.second_share, g - m, m);
        return between > 0 ? 1.0f : between < 0 ? -1.0f : 0.0f;
    }
};

/// The step of `count` of four elements from `i` on; `wide` where four are accessed at once.
template <class Rule>
DEVICE void update_four(const Update& u, const Coefficients& c, UpdateSums& sums, Four gradient, u64 i, u32 count, bool wide) {
    constexpr int MOMENTS = Rule::MOMENTS;
    Rule rule;
    Four w = load_part(u.weights + i, count, wide), m = {{0, 0, 0, 0}}, v = {{0, 0, 0, 0}};
    if (MOMENTS > 0) m = load_part(u.first + i, count, wide);
    if (MOMENTS > 1) v = load_part(u.second + i, count, wide);
    UNROLL
    for (u32 j = 0; j < 4; j++) {
        if (j >= count) break;
        float g = gradient.x[j] * c.gradient_scale;
        sums.gg = fmaf(g, g, sums.gg);
        sums.ww = fmaf(w.x[j], w.x[j], sums.ww);
        sums.gw = fmaf(g, w.x[j], sums.gw);
        float direction = rule(u, c, fmaf(c.scale, gradient.x[j], c.coupled * w.x[j]), m.x[j], v.x[j]);
        float shrink = c.cautious && direction * w.x[j] < 0 ? 0.0f : c.shrink;
        w.x[j] -= fmaf(shrink, w.x[j], c.rate * direction);
    }
    if (!c.good) return;
    store_part(u.weights + i, w, count, wide);
    if (MOMENTS > 0) store_part(u.first + i, m, count, wide);
    if (MOMENTS > 1) store_part(u.second + i, v, count, wide);
    if (u.copy) store_part(u.copy + i, w, count, wide);
}
DEVICE void update_by_rule(const Update& u, const Coefficients& c, UpdateSums& sums, Four gradient, u64 i, u32 count,
                           bool wide) {
    switch (u.rule) {
        case RULE_SGD: return update_four<Sgd>(u, c, sums, gradient, i, count, wide);
        case RULE_MOMENTUM: return update_four<Momentum>(u, c, sums, gradient, i, count, wide);
        case RULE_ADAMW: return update_four<AdamW>(u, c, sums, gradient, i, count, wide);
        default: return update_four<Lion>(u, c, sums, gradient, i, count, wide);
    }
}

/// Whether four neighbours of a row are accessed at once, for a weight of `n` columns.
DEVICE bool in_fours(const Update& u, u32 n) {
    return n % 4 == 0 && (u64(u.weights) | u64(u.first) | u64(u.second) | u64(u.copy)) % 16 == 0;
}

/// Leaves a block's sums in its part of `partials`. Called by all threads.
DEVICE void leave_sums(const Update& u, UpdateSums s) {
    SHARED(float, sums, [32]);
    if (!u.partials) return;
    s.gg = block_all(s.gg, sums, 0, Add());
    s.ww = block_all(s.ww, sums, 0, Add());
    s.gw = block_all(s.gw, sums, 0, Add());
    if (threadIdx.x == 0) {
        float* to = u.partials + u64(blockIdx.x) * 3;
        to[0] = s.gg;
        to[1] = s.ww;
        to[2] = s.gw;
    }
}
