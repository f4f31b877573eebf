// Normalisation along rows: kernels/layer_norm.cu, and without mean and beta (CENTRED = false) kernels/rms_norm.cu.
// x, y: f32 [rows][count], row-major, any alignment; gamma, beta: f32 [count]; means, rstds: f32 [rows]. y, means and rstds may be
// null; y may be x. Moves 8 bytes an element. Sums are over a thread's elements in their order, then over threads as a
// tree; the variance is that of differences to the mean, corrected by what the mean is off, as the mean is.
#pragma once
#include "rows.cuh"

/// One row a team.
template <class Team, int GROUPS, bool REST, bool CENTRED>
DEVICE void normalise(const float* x, const float* gamma, const float* beta, float* y, float* means, float* rstds,
                      float eps, u32 rows, u32 count) {
    SHARED(float, partials, [TEAM_PARTIALS]);
    Team team{partials};
    TeamRow mine = row_of(team, rows);
    auto places = places_of(team, count);
    const float* from = x + u64(mine.row) * count;
    float share = 1 / float(count), mean = 0;
    Four v[GROUPS];
    places.read_all(v, from, 0);
    bool fours = places.by_four(from);
    if (CENTRED) {
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            UNROLL
            for (int j = 0; j < 4; j++) mean += v[g].x[j];
        }
        if (REST) {
            for (u32 g = GROUPS; g < places.groups(); g++) {
                Four v = places.read(from, fours, g, 0);
                mean += (v.x[0] + v.x[1]) + (v.x[2] + v.x[3]);
            }
        }
        mean = team_all(team, mean, 0, Add()) * share;
    }
    // Of squares, and of what the mean is off.
    float sums[2] = {0, 0};
    UNROLL
    for (int g = 0; g < GROUPS; g++) {
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            float d = places.at(u32(g), j) < count ? v[g].x[j] - mean : 0;
            sums[0] = fmaf(d, d, sums[0]);
            if (CENTRED) sums[1] += d;
        }
    }
    if (REST) {
        for (u32 g = GROUPS; g < places.groups(); g++) {
            Four v = places.read(from, fours, g, mean);
            UNROLL
            for (int j = 0; j < 4; j++) {
                float d = v.x[j] - mean;
                sums[0] = fmaf(d, d, sums[0]);
                if (CENTRED) sums[1] += d;
            }
        }
    }
    team.all(sums, 0, Add());
    if (!mine.there) return;
    if (CENTRED) mean += sums[1] * share;
    float variance = CENTRED ? (sums[0] - sums[1] * sums[1] * share) * share : sums[0] * share;
    float rstd = 1 / sqrtf(variance + eps);
    if (team.thread() == 0) {
        if (CENTRED && means) means[mine.row] = mean;
        if (rstds) rstds[mine.row] = rstd;
    }
    if (!y) return;
    float* to = y + u64(mine.row) * count;
    bool to_fours = places.by_four(to), gamma_fours = places.by_four(gamma), beta_fours = CENTRED && places.by_four(beta);
    auto finish = [&](u32 group, Four v) {
        Four scale = places.read(gamma, gamma_fours, group, 0), shift = {{0, 0, 0, 0}};
        if (CENTRED) shift = places.read(beta, beta_fours, group, 0);
        UNROLL
        for (int j = 0; j < 4; j++) {
            float normal = (v.x[j] - mean) * rstd;
            v.x[j] = CENTRED ? fmaf(normal, scale.x[j], shift.x[j]) : normal * scale.x[j];
        }
        places.write(to, to_fours, group, v);
    };
    UNROLL
    for (int g = 0; g < GROUPS; g++) finish(u32(g), v[g]);
    if (REST) {
        for (u32 g = GROUPS; g < places.groups(); g++) finish(g, places.read(from, fours, g, 0));
    }
}

// Forms, for rows of at most that length; grid = ceil(rows / rows of a block):
//   1024   a warp a row, 4 rows in a block of 128
//   4096   a block of 256 a row
//   8192   a block of 512 a row
//   long   any length, a block of 1024 a row; 16384 elements stay in registers, the rest is read three times
#define NORM_FORMS(NORM) \
    NORM(1024, 128, 6, Lanes<32>, 8, false) \
    NORM(4096, 256, 4, Block<256>, 4, false) \
    NORM(8192, 512, 2, Block<512>, 4, false) \
    NORM(long, 1024, 1, Block<1024>, 4, true)
