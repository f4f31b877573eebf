// Softmax and cross-entropy: loss, gradient of the logits and statistics of the margin from one read of the logits.
// Contract, equations, stable forms and edges: src/ops/softmax_cross_entropy. logits, dlogits: [rows][classes], f32 or
// bf16; labels: u32 [rows]; distributions: f32 [rows][classes]. dlogits may be logits; dlogits and per_row may be null.
//
// softmax_cross_entropy_<type>_<targets>_16     classes <= 16: half a warp a row, grid = ceil(rows / 8)
// softmax_cross_entropy_<type>_<targets>_256    classes <= 256: a warp a row, grid = ceil(rows / 4)
// softmax_cross_entropy_<type>_<targets>_block  any: a block a row, grid = rows; the row is read again, from L2, for
//                                               the gradient
//   with blocks of 128, 128 and 256. Each leaves (loss, margin, right, sum of squares) of a row in results[row].
// softmax_cross_entropy_finish: one block of 1024 sums the results in a fixed order: loss [1], statistics [4].
//
// Target: compute_75
// Registers: 64
#include "common/reduce.cuh"
#include "common/vector.cuh"

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
    /// Of all classes, and of all but the label.
    float weight, weight_of_others;
    /// Weight of a class, for labels: of others, and of the label.
    float other, own;
};

DEVICE Target target_of_label(Labels labels, u32 row, u32 classes) {
    float other = labels.smoothing / float(classes);
    return {labels.labels[row], 1, other * float(classes - 1), other, other + (1 - labels.smoothing)};
}

/// What is left once the sums over a row are known.
struct Row {
    float loss, weight, scale, weight_of_others, rest, total;
};

/// `z` of the label, the row's maximum, the sum of exp(z_j - max) of the others, and sum t_j (max - z_j).
DEVICE Row finish_row(float z, float max, float rest, float below, const Target& target, u32 rows) {
    Row row;
    // A maximum that is not finite has no differences to it.
    if (!is_finite(max)) rest = nan_value();
    row.rest = rest;
    row.total = expf(z - max) + rest;
    row.loss = fmaf(target.weight, z == max ? log1pf(rest) : logf(row.total), below);
    row.weight = target.weight;
    row.weight_of_others = target.weight_of_others;
    row.scale = 1 / float(rows);
    return row;
}
/// T p - t, or for the label minus the sum of the others' gradients where that has the smaller terms.
DEVICE float gradient(const Row& row, bool is_label, float e, float t) {
    bool from_others = is_label && t >= row.weight_of_others;
    float dz = from_others ? row.weight_of_others - row.weight * row.rest / row.total : row.weight * e / row.total - t;
    return dz * row.scale;
}
DEVICE float4 result_of(float loss, float z, float other, float wrong, float squares, u32 classes) {
    bool bad = loss != loss;
    float margin = bad ? nan_value() : classes == 1 ? 0 : z - other;
    return make_float4(loss, margin, bad || wrong > 0 ? 0.0f : 1.0f, squares);
}
DEVICE float4 bad_result(float squares) {
    return make_float4(nan_value(), nan_value(), 0, squares);
}

/// Whether a logit at `c` says that the label is not the first largest one.
DEVICE float beats(float z, u32 c, float of_label, u32 label) {
    bool below = c < label ? z < of_label : z <= of_label;
    return c == label || below ? 0.0f : 1.0f;
}

/// The larger weight, of equal ones the first.
template <int LANES>
DEVICE void first_largest(float& value, u32& place) {
    UNROLL
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, value, distance);
        u32 other_place = __shfl_xor_sync(ALL_LANES, place, distance);
        if (other > value || (other == value && other_place < place)) value = other, place = other_place;
    }
}

template <int LANES, int ITEMS>
DEVICE Target make_target(Labels labels, u32 row, u32 classes, u32 lane, float* t) {
    Target target = target_of_label(labels, row, classes);
    UNROLL
    for (int i = 0; i < ITEMS; i++) t[i] = lane + u32(i) * LANES == target.label ? target.own : target.other;
    return target;
}
template <int LANES, int ITEMS>
DEVICE Target make_target(Distributions distributions, u32 row, u32 classes, u32 lane, float* t) {
    const float* from = distributions.weights + u64(row) * classes;
    float largest = -infinity(), weight = 0, others = 0;
    u32 label = 0xffffffff;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        u32 c = lane + u32(i) * LANES;
        t[i] = c < classes ? from[c] : 0;
        weight += t[i];
        if (c < classes && t[i] > largest) largest = t[i], label = c;
    }
    first_largest<LANES>(largest, label);
    // Weights that are all NaN have no largest one; the loss will say so.
    if (label >= classes) label = 0;
    UNROLL
    for (int i = 0; i < ITEMS; i++) others += lane + u32(i) * LANES == label ? 0 : t[i];
    return {label, warp_all<LANES>(weight, Add()), warp_all<LANES>(others, Add()), 0, 0};
}

/// One row in `LANES` lanes with `ITEMS` classes each.
template <int LANES, int ITEMS, class T, class Targets>
DEVICE void few_classes(const T* logits, Targets targets, T* dlogits, float* per_row, float4* results, u32 rows,
                        u32 classes) {
    u32 lane = threadIdx.x % LANES, row_or_more = blockIdx.x * (128 / LANES) + threadIdx.x / LANES;
    // All lanes take part in the sums, so those past the end do the last row again and keep it to themselves.
    bool there = row_or_more < rows;
    u32 row = there ? row_or_more : rows - 1;
    const T* from = logits + u64(row) * classes;
    float z[ITEMS], t[ITEMS], max = -infinity(), squares = 0;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        u32 c = lane + u32(i) * LANES;
        z[i] = c < classes ? to_float(from[c]) : -infinity();
        max = fmaxf(max, z[i]);
        if (c < classes) squares = fmaf(z[i], z[i], squares);
    }
    max = warp_all<LANES>(max, Max());
    squares = warp_all<LANES>(squares, Add());
    Target target = make_target<LANES, ITEMS>(targets, row, classes, lane, t);
    if (target.label >= classes) {
        // The same for all lanes of the row, but not of the warp: these take part in the sums below.
        target.label = classes;
    }
    bool bad = target.label == classes;
    float of_label = to_float(from[bad ? 0 : target.label]);
    float e[ITEMS], rest = 0, below = 0, other = -infinity(), wrong = 0;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        u32 c = lane + u32(i) * LANES;
        e[i] = expf(z[i] - max);
        if (c >= classes) continue;
        if (t[i] != 0) below = fmaf(t[i], max - z[i], below);
        if (c == target.label) continue;
        rest += e[i];
        other = fmaxf(other, z[i]);
        wrong += beats(z[i], c, of_label, target.label);
    }
    rest = warp_all<LANES>(rest, Add());
    below = warp_all<LANES>(below, Add());
    other = warp_all<LANES>(other, Max());
    wrong = warp_all<LANES>(wrong, Add());
    Row done = finish_row(of_label, max, rest, below, target, rows);
    if (!there) return;
    if (lane == 0) {
        results[row] = bad ? bad_result(squares) : result_of(done.loss, of_label, other, wrong, squares, classes);
        if (per_row) per_row[row] = bad ? nan_value() : done.loss;
    }
    if (!dlogits) return;
    T* to = dlogits + u64(row) * classes;
    UNROLL
    for (int i = 0; i < ITEMS; i++) {
        u32 c = lane + u32(i) * LANES;
        if (c < classes) to[c] = from_float<T>(bad ? nan_value() : gradient(done, c == target.label, e[i], t[i]));
    }
}

/// Calls f(c, value) for the elements of a row that are this thread's, four neighbours at a time where that is possible.
template <class T, class F>
DEVICE void each(const T* row, u32 count, F f) {
    if (aligned_for_four(row)) {
        u32 c = threadIdx.x * 4;
        for (; c + 4 <= count; c += blockDim.x * 4) {
            Four v = load_four(row + c);
            UNROLL
            for (int j = 0; j < 4; j++) f(c + u32(j), v.x[j]);
        }
        for (; c < count; c++) f(c, to_float(row[c]));
    } else {
        for (u32 c = threadIdx.x; c < count; c += blockDim.x) f(c, to_float(row[c]));
    }
}

DEVICE Target block_target(Labels labels, u32 row, u32 classes, float*, u32*) {
    return target_of_label(labels, row, classes);
}
DEVICE Target block_target(Distributions distributions, u32 row, u32 classes, float* partials, u32* places) {
    float largest = -infinity(), weight = 0;
    u32 label = 0xffffffff;
    const float* from = distributions.weights + u64(row) * classes;
    each(from, classes, [&](u32 c, float t) {
        weight += t;
        // Elements come in rising order.
        if (t > largest) largest = t, label = c;
    });
    first_largest<32>(largest, label);
    u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (lane_id() == 0) partials[warp] = largest, places[warp] = label;
    __syncthreads();
    largest = lane_id() < warps ? partials[lane_id()] : -infinity();
    label = lane_id() < warps ? places[lane_id()] : 0xffffffff;
    first_largest<32>(largest, label);
    if (label >= classes) label = 0;
    weight = block_all(weight, partials, 0, Add());
    // The sum of the others is taken anew: a difference would cancel.
    float others = 0;
    each(from, classes, [&](u32 c, float t) { others += c == label ? 0 : t; });
    others = block_all(others, partials, 0, Add());
    return {label, weight, others, 0, 0};
}
DEVICE float weight_of(Labels, const Target& target, u32, u32, u32 c) {
    return c == target.label ? target.own : target.other;
}
DEVICE float weight_of(Distributions distributions, const Target&, u32 row, u32 classes, u32 c) {
    return distributions.weights[u64(row) * classes + c];
}
/// Whether classes beside the label have weight: else its distance from the maximum is all there is.
DEVICE bool is_smooth(Labels labels) {
    return labels.smoothing != 0;
}
DEVICE bool is_smooth(Distributions) {
    return true;
}

template <class T, class Targets>
DEVICE void many_classes(const T* logits, Targets targets, T* dlogits, float* per_row, float4* results, u32 rows,
                         u32 classes) {
    SHARED(float, partials, [32]);
    SHARED(u32, places, [32]);
    u32 row = blockIdx.x;
    const T* from = logits + u64(row) * classes;
    Target target = block_target(targets, row, classes, partials, places);
    bool bad = target.label >= classes;
    float of_label = to_float(from[bad ? 0 : target.label]);
    // The sum of exponentials of the others, below a maximum that rises.
    float max = -infinity(), rest = 0, other = -infinity(), squares = 0, wrong = 0;
    each(from, classes, [&](u32 c, float z) {
        squares = fmaf(z, z, squares);
        if (c == target.label) return;
        if (z > max) {
            if (rest != 0) rest *= expf(max - z);
            max = z;
        }
        // Nothing for negative infinity, also while the maximum is that.
        if (z != -infinity()) rest += expf(z - max);
        wrong += beats(z, c, of_label, target.label);
    });
    other = block_all(max, partials, -infinity(), Max());
    float all = fmaxf(other, of_label);
    if (rest != 0) rest *= expf(max - all);
    rest = block_all(rest, partials, 0, Add());
    squares = block_all(squares, partials, 0, Add());
    wrong = block_all(wrong, partials, 0, Add());
    float below;
    if (is_smooth(targets)) {
        below = 0;
        each(from, classes, [&](u32 c, float z) {
            float t = weight_of(targets, target, row, classes, c);
            if (t != 0) below = fmaf(t, all - z, below);
        });
        below = block_all(below, partials, 0, Add());
    } else {
        below = all - of_label;
    }
    Row done = finish_row(of_label, all, rest, below, target, rows);
    if (threadIdx.x == 0) {
        results[row] = bad ? bad_result(squares) : result_of(done.loss, of_label, other, wrong, squares, classes);
        if (per_row) per_row[row] = bad ? nan_value() : done.loss;
    }
    if (!dlogits) return;
    // All have read the label's logit, which may be overwritten: block_all has barriers.
    T* to = dlogits + u64(row) * classes;
    each(from, classes, [&](u32 c, float z) {
        float dz = gradient(done, c == target.label, expf(z - all), weight_of(targets, target, row, classes, c));
        to[c] = from_float<T>(bad ? nan_value() : dz);
    });
}

#define SOFTMAX_CROSS_ENTROPY(name, T) \
    KERNEL(softmax_cross_entropy_##name##_labels_16, 128, \
           (const T* logits, const u32* labels, float smoothing, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        few_classes<16, 1>(logits, Labels{labels, smoothing}, dlogits, per_row, results, rows, classes); \
    } \
    KERNEL(softmax_cross_entropy_##name##_labels_256, 128, \
           (const T* logits, const u32* labels, float smoothing, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        few_classes<32, 8>(logits, Labels{labels, smoothing}, dlogits, per_row, results, rows, classes); \
    } \
    KERNEL_RESIDENT(softmax_cross_entropy_##name##_labels_block, 256, 4, \
           (const T* logits, const u32* labels, float smoothing, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        many_classes(logits, Labels{labels, smoothing}, dlogits, per_row, results, rows, classes); \
    } \
    KERNEL(softmax_cross_entropy_##name##_distributions_16, 128, \
           (const T* logits, const float* weights, float, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        few_classes<16, 1>(logits, Distributions{weights}, dlogits, per_row, results, rows, classes); \
    } \
    KERNEL(softmax_cross_entropy_##name##_distributions_256, 128, \
           (const T* logits, const float* weights, float, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        few_classes<32, 8>(logits, Distributions{weights}, dlogits, per_row, results, rows, classes); \
    } \
    KERNEL_RESIDENT(softmax_cross_entropy_##name##_distributions_block, 256, 4, \
           (const T* logits, const float* weights, float, T* dlogits, float* per_row, float4* results, u32 rows, \
            u32 classes)) { \
        many_classes(logits, Distributions{weights}, dlogits, per_row, results, rows, classes); \
    }

SOFTMAX_CROSS_ENTROPY(f32, float)
SOFTMAX_CROSS_ENTROPY(bf16, bf16)

/// loss [1], statistics [4]: mean margin, smallest margin, rows whose argmax is the label, root mean square of the logits.
KERNEL(softmax_cross_entropy_finish, 1024, (const float4* results, float* loss, float* statistics, u32 rows, u32 classes)) {
    SHARED(float, partials, [32]);
    float losses = 0, margins = 0, smallest = infinity(), right = 0, squares = 0;
    for (u32 row = threadIdx.x; row < rows; row += blockDim.x) {
        float4 result = load(results + row);
        losses += result.x;
        margins += result.y;
        smallest = Min()(smallest, result.y);
        right += result.z;
        squares += result.w;
    }
    losses = block_all(losses, partials, 0, Add());
    margins = block_all(margins, partials, 0, Add());
    smallest = block_all(smallest, partials, infinity(), Min());
    right = block_all(right, partials, 0, Add());
    squares = block_all(squares, partials, 0, Add());
    if (threadIdx.x == 0) {
        loss[0] = losses / float(rows);
        statistics[0] = margins / float(rows);
        statistics[1] = smallest;
        statistics[2] = right;
        statistics[3] = sqrtf(squares / (float(rows) * float(classes)));
    }
}
