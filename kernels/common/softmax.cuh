// Softmax and its logarithm along rows: kernels/softmax.cu, kernels/log_softmax.cu. x, y: f32 [rows][count], row-major, any
// alignment; y may be x. Moves 8 bytes an element. Sums are over a thread's elements in their order, then over threads as
// a tree. The logarithm is that of 1 + the sum without one largest element, so that it does not round to zero beside it.
#pragma once
#include "rows.cuh"

/// The largest element so far, how many there are of it, and the sum of exp(z - max) of the others.
struct Summary {
    float max, ties, below;
};

/// Four more; those of negative infinity add nothing.
DEVICE void add_four(Summary& s, const Four& v) {
    // Without NaN, which goes into the sum.
    float max = fmaxf(fmaxf(v.x[0], v.x[1]), fmaxf(v.x[2], v.x[3]));
    if (max > s.max) {
        if (s.ties != 0) s.below = (s.below + s.ties) * expf(s.max - max);
        s.max = max;
        s.ties = 0;
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        if (v.x[j] == -infinity()) continue;
        if (v.x[j] == s.max) {
            s.ties += 1;
        } else {
            s.below += expf(v.x[j] - s.max);
        }
    }
}

/// One row a team. LOG: y = log softmax(x), else softmax(x).
template <class Team, int GROUPS, bool REST, bool LOG>
DEVICE void softmax_rows(const float* x, float* y, u32 rows, u32 count) {
    SHARED(float, partials, [TEAM_PARTIALS]);
    Team team{partials};
    TeamRow mine = row_of(team, rows);
    auto places = places_of(team, count);
    const float* from = x + u64(mine.row) * count;
    float* to = y + u64(mine.row) * count;
    Four z[GROUPS];
    places.read_all(z, from, -infinity());
    Summary rest = {-infinity(), 0, 0};
    if (REST) {
        bool fours = places.by_four(from);
        for (u32 g = GROUPS; g < places.groups(); g++) add_four(rest, places.read(from, fours, g, -infinity()));
    }
    float max = rest.max;
    UNROLL
    for (int g = 0; g < GROUPS; g++) {
        UNROLL
        for (int j = 0; j < 4; j++) max = Max()(max, z[g].x[j]);
    }
    max = team_all(team, max, -infinity(), Max());
    // The sum below the largest, and how many there are of that.
    float sums[2] = {0, 0};
    UNROLL
    for (int g = 0; g < GROUPS; g++) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            float e = expf(z[g].x[j] - max);
            bool tie = z[g].x[j] == max;
            sums[0] += tie ? 0 : e;
            sums[1] += tie ? 1 : 0;
            if (!LOG) z[g].x[j] = e;
        }
    }
    if (REST) {
        if (rest.max == max) {
            sums[0] += rest.below;
            sums[1] += rest.ties;
        } else if (rest.ties != 0) {
            sums[0] += (rest.below + rest.ties) * expf(rest.max - max);
        } else {
            // Nothing, or NaN.
            sums[0] += rest.below;
        }
    }
    team.all(sums, 0, Add());
    if (!mine.there) return;
    float of_all = LOG ? log1pf(sums[0] + (sums[1] - 1)) : 1 / (sums[0] + sums[1]);
    // A maximum that is not finite has no differences to it.
    if (!LOG && !is_finite(max)) of_all = nan_value();
    bool fours = places.by_four(to);
    UNROLL
    for (int g = 0; g < GROUPS; g++) {
        UNROLL
        for (int j = 0; j < 4; j++) z[g].x[j] = LOG ? (z[g].x[j] - max) - of_all : z[g].x[j] * of_all;
        places.write(to, fours, u32(g), z[g]);
    }
    if (REST) {
        bool from_fours = places.by_four(from);
        for (u32 g = GROUPS; g < places.groups(); g++) {
            Four v = places.read(from, from_fours, g, -infinity());
            UNROLL
            for (int j = 0; j < 4; j++) v.x[j] = LOG ? (v.x[j] - max) - of_all : expf(v.x[j] - max) * of_all;
            places.write(to, fours, g, v);
        }
    }
}

// Forms, for rows of at most that length; grid = ceil(rows / rows of a block):
//   32     8 lanes a row, 32 rows in a block of 256
//   1024   a warp a row, 4 rows in a block of 128
//   4096   a block of 256 a row
//   8192   a block of 512 a row
//   long   any length, a block of 1024 a row; 24576 elements stay in registers, the rest is read twice
#define SOFTMAX(name, length, threads, resident, TEAM, GROUPS, REST, LOG) \
    KERNEL_RESIDENT(name##_##length##_f32, threads, resident, (const float* x, float* y, u32 rows, u32 count)) { \
        softmax_rows<TEAM, GROUPS, REST, LOG>(x, y, rows, count); \
    }
#define SOFTMAX_FORMS(name, LOG) \
    SOFTMAX(name, 32, 256, 4, Lanes<8>, 1, false, LOG) \
    SOFTMAX(name, 1024, 128, 8, Lanes<32>, 8, false, LOG) \
    SOFTMAX(name, 4096, 256, 4, Block<256>, 4, false, LOG) \
    SOFTMAX(name, 8192, 512, 2, Block<512>, 4, false, LOG) \
    SOFTMAX(name, long, 1024, 1, Block<1024>, 6, true, LOG)
