// Softmax and cross-entropy of rows: loss, gradient of the logits and statistics of the margin from one read of the logits.
// Contract, equations, stable forms and edges: src/ops/softmax_cross_entropy. logits, dlogits: [rows][classes], f32 or
// bf16, any alignment; labels: u32 [rows]; distributions: f32 [rows][classes]. dlogits may be logits; dlogits and per_row may
// be null. `total_rows` is what the mean is over: `rows` may be a part of them.
//
// Kernels softmax_cross_entropy_<type>_<targets>_<classes>, for at most so many classes; grid = ceil(rows / rows of a block):
//   16      4 lanes a row, 32 rows in a block of 128       256    a warp a row, 4 rows in a block of 128
//   1024    a block of 128 a row                           4096   a block of 256 a row
//   6144    a block of 512 a row                           long   any number, a block of 1024 a row
// Each leaves (loss, margin, rank, sum of squares) of a row in results[row]: rank 1 if the argmax is the label, 3 if the row is saturated
// too, else 0. Logits are read once and written once: 8 bytes
// a class in f32, 4 in bf16. Of `long`, 12288 logits stay in registers; the others are read twice more, from L1 or L2.
// On GPUs with clusters and their shared memory (softmax_cross_entropy_cluster.cu), for more than 12288 classes with labels:
// cluster_1, _2, _4 and _8, that many blocks of 512 a row, which lies in their shared memory: 8192 bytes for every 2048 classes of a
// block or less; grid = blocks of all rows.
// Distributions have 16, 256 and `long` (a block of 512) alone, and are read three times: for their largest, for the loss, for
// the gradient.
#pragma once
#include "rows.cuh"

/// Labels with smoothing, or a distribution a row.
struct Labels {
    const u32* labels;
    float smoothing;
};
struct Distributions {
    const float* weights;
};

/// What a row's target is, once its label is known.
struct Target {
    u32 label;
    /// Of the label, of all classes, and of all but the label.
    float own, weight, weight_of_others;
};

/// Whether a logit at `c` says that the label is not the first largest one.
DEVICE float beats(float z, u32 c, float of_label, u32 label) {
    bool below = c < label ? z < of_label : z <= of_label;
    return c == label || below ? 0.0f : 1.0f;
}

/// The first of two places, which are bits of floats.
struct First {
    FUNCTOR float operator()(float a, float b) const { return bits_as<u32>(b) < bits_as<u32>(a) ? b : a; }
};

template <class Team>
DEVICE Target find_target(Labels labels, const Team&, const Places<Team::SIZE>&, u32 row, u32 classes) {
    float other = labels.smoothing / float(classes);
    return {labels.labels[row], other + (1 - labels.smoothing), 1, other * float(classes - 1)};
}
template <class Team>
DEVICE Target find_target(Distributions distributions, const Team& team, const Places<Team::SIZE>& places, u32 row,
                          u32 classes) {
    const float* from = distributions.weights + u64(row) * classes;
    bool fours = places.by_four(from);
    float largest = -infinity(), weight = 0;
    u32 label = 0xffffffff;
    for (u32 g = 0; g < places.groups(); g++) {
        Four t = places.read(from, fours, g, 0);
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            weight += t.x[j];
            // Elements come in rising order.
            if (t.x[j] > largest && places.at(g, j) < classes) largest = t.x[j], label = places.at(g, j);
        }
    }
    float all = team_all(team, largest, -infinity(), Max());
    float nowhere = bits_as<float>(0xffffffffu);
    label = bits_as<u32>(team_all(team, largest == all ? bits_as<float>(label) : nowhere, nowhere, First()));
    // Weights that are all NaN have no largest one; the loss will say so.
    if (label >= classes) label = 0;
    // The sum of the others is taken by itself: a difference would cancel.
    float others = 0;
    for (u32 g = 0; g < places.groups(); g++) {
        Four t = places.read(from, fours, g, 0);
        UNROLL
        for (u32 j = 0; j < 4; j++) others += places.at(g, j) == label ? 0 : t.x[j];
    }
    float sums[2] = {weight, others};
    team.all(sums, 0, Add());
    return {label, from[label], sums[0], sums[1]};
}

/// Adds t (max - z) of a group: for labels, t = 1 where there is smoothing.
template <u32 SIZE>
DEVICE float below_four(Labels labels, const Places<SIZE>& places, u32, u32 group, const Four& z, float max, float sum) {
    if (labels.smoothing == 0) return sum;
    UNROLL
    for (u32 j = 0; j < 4; j++) sum += places.at(group, j) < places.count ? max - z.x[j] : 0;
    return sum;
}
template <u32 SIZE>
DEVICE float below_four(Distributions distributions, const Places<SIZE>& places, u32 row, u32 group, const Four& z, float max,
                        float sum) {
    const float* from = distributions.weights + u64(row) * places.count;
    Four t = places.read(from, places.by_four(from), group, 0);
    UNROLL
    for (int j = 0; j < 4; j++) {
        if (t.x[j] != 0) sum = fmaf(t.x[j], max - z.x[j], sum);
    }
    return sum;
}
/// The sum of t (max - z) over the row, from what below_four made.
DEVICE float below_row(Labels labels, u32 classes, float sum, float of_label) {
    float others = labels.smoothing == 0 ? 0 : labels.smoothing / float(classes) * sum;
    return labels.smoothing == 1 ? others : fmaf(1 - labels.smoothing, of_label, others);
}
DEVICE float below_row(Distributions, u32, float sum, float) {
    return sum;
}

/// The targets of a group times `scale`.
template <u32 SIZE>
DEVICE Four targets_of(Labels labels, const Places<SIZE>& places, u32, u32, float scale) {
    float other = labels.smoothing / float(places.count) * scale;
    return {{other, other, other, other}};
}
template <u32 SIZE>
DEVICE Four targets_of(Distributions distributions, const Places<SIZE>& places, u32 row, u32 group, float scale) {
    const float* from = distributions.weights + u64(row) * places.count;
    Four t = places.read(from, places.by_four(from), group, 0);
    UNROLL
    for (int j = 0; j < 4; j++) t.x[j] *= scale;
    return t;
}

/// Where a thread's elements of a row stay: the first in registers, the rest (REST) in memory, to be read again.
template <class Team, int GROUPS, bool REST>
struct InRegisters {
    Four z[GROUPS];

    /// Reads the row: f(four, group) for each group.
    template <class P, class T, class F>
    FUNCTOR void fill(const P& places, const T* from, F f) {
        places.read_all(z, from, -infinity());
        UNROLL
        for (int g = 0; g < GROUPS; g++) f(z[g], u32(g));
        if (REST) {
            bool fours = places.by_four(from);
            for (u32 g = GROUPS; g < places.groups(); g++) f(places.read(from, fours, g, -infinity()), g);
        }
    }
    /// The same for what is there, which f may change; of the rest the changes are lost, and `again` makes them anew.
    template <class P, class T, class Again, class F>
    FUNCTOR void each(const P& places, const T* from, Again again, F f) {
        UNROLL
        for (int g = 0; g < GROUPS; g++) f(z[g], u32(g));
        if (REST) {
            bool fours = places.by_four(from);
            for (u32 g = GROUPS; g < places.groups(); g++) {
                Four v = places.read(from, fours, g, -infinity());
                again(v);
                f(v, g);
            }
        }
    }
};

/// One row a team, whose elements `Storage` holds.
template <class Team, class Storage, class T, class Targets>
DEVICE void cross_entropy(const T* logits, Targets targets, T* dlogits, float* per_row, float4* results, u32 rows,
                          u32 total_rows, u32 classes) {
    SHARED(float, partials, [TEAM_PARTIALS]);
    Team team{partials};
    TeamRow mine = row_of(team, rows);
    auto places = places_of(team, classes);
    const T* from = logits + u64(mine.row) * classes;
    Storage storage;
    Target target = find_target(targets, team, places, mine.row, classes);
    // The same for all of a team, but not of the warp, whose lanes take part in the sums below.
    bool bad = target.label >= classes;
    float of_label = to_float(from[bad ? 0 : target.label]);
    // Of the others, without NaN, which goes into the sums.
    float other = -infinity();
    auto compare = [&](const Four& v, u32 group) {
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            if (places.at(group, j) != target.label) other = fmaxf(other, v.x[j]);
        }
    };
    storage.fill(places, from, compare);
    other = team_all(team, other, -infinity(), Max());
    float max = fmaxf(other, of_label);
    // Of exp(z - max) of the others; of squares; of logits that beat the label; of t (max - z).
    float sums[4] = {0, 0, 0, 0};
    // Leaves exponentials in the place of logits.
    auto add = [&](Four& v, u32 group) {
        sums[3] = below_four(targets, places, mine.row, group, v, max, sums[3]);
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            u32 c = places.at(group, j);
            float z = v.x[j];
            v.x[j] = expf(z - max);
            if (c != target.label) sums[0] += v.x[j];
            if (c < classes) sums[1] = fmaf(z, z, sums[1]);
            sums[2] += beats(z, c, of_label, target.label);
        }
    };
    storage.each(places, from, [](Four&) {}, add);
    // After this nobody reads the label's logit, which may be overwritten.
    team.all(sums, 0, Add());
    team.leave();
    if (!mine.there) return;
    // A maximum that is not finite has no differences to it.
    float rest = is_finite(max) ? sums[0] : nan_value();
    float e = expf(of_label - max), total = e + rest;
    if (team.thread() == 0) {
        float below = below_row(targets, classes, sums[3], max - of_label);
        float loss = fmaf(target.weight, of_label == max ? log1pf(rest) : logf(total), below);
        if (bad) loss = nan_value();
        bool nan = loss != loss;
        float margin = nan ? nan_value() : classes == 1 ? 0 : of_label - other;
        // 2^-24: beside 1 that is nothing. A saturated row's label is the only largest one.
        float right = nan || sums[2] > 0 ? 0.0f : of_label == max && rest <= 0x1p-24f ? 3.0f : 1.0f;
        results[mine.row] = make_float4(loss, margin, right, sums[1]);
        if (per_row) per_row[mine.row] = loss;
    }
    if (!dlogits) {
        team.left();
        return;
    }
    T* to = dlogits + u64(mine.row) * classes;
    bool to_fours = places.by_four(to);
    float scale = 1 / float(total_rows), factor = bad ? nan_value() : target.weight / total * scale;
    // (T p - t) / rows.
    auto differentiate = [&](Four& e, u32 group) {
        Four t = targets_of(targets, places, mine.row, group, scale);
        UNROLL
        for (int j = 0; j < 4; j++) e.x[j] = fmaf(e.x[j], factor, -t.x[j]);
        places.write(to, to_fours, group, e);
    };
    auto exponentials = [&](Four& v) {
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = expf(v.x[j] - max);
    };
    storage.each(places, from, exponentials, differentiate);
    // The label's own, from the gradients of the others where these are the smaller terms. The thread wrote there before.
    if (team.thread() == places.owner(target.label) && !bad) {
        bool from_others = target.own >= target.weight_of_others;
        float dz = from_others ? target.weight_of_others - target.weight * rest / total : target.weight * e / total - target.own;
        to[target.label] = from_float<T>(dz * scale);
    }
    team.left();
}

#define CROSS_ENTROPY_LABELS(type, T, classes, threads, resident, TEAM, GROUPS, REST) \
    KERNEL_RESIDENT(softmax_cross_entropy_##type##_labels_##classes, threads, resident, \
                    (const T* logits, const u32* labels, float smoothing, T* dlogits, float* per_row, float4* results, \
                     u32 rows, u32 total_rows, u32 count)) { \
        cross_entropy<TEAM, InRegisters<TEAM, GROUPS, REST>>(logits, Labels{labels, smoothing}, dlogits, per_row, results, rows, total_rows, \
                                          count); \
    }
#define CROSS_ENTROPY_DISTRIBUTIONS(type, T, classes, threads, resident, TEAM, GROUPS, REST) \
    KERNEL_RESIDENT(softmax_cross_entropy_##type##_distributions_##classes, threads, resident, \
                    (const T* logits, const float* weights, float, T* dlogits, float* per_row, float4* results, \
                     u32 rows, u32 total_rows, u32 count)) { \
        cross_entropy<TEAM, InRegisters<TEAM, GROUPS, REST>>(logits, Distributions{weights}, dlogits, per_row, results, rows, total_rows, \
                                          count); \
    }
