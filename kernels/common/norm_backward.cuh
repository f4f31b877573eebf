// The gradient of normalisation: kernels/layer_norm_backward.cu, and without mean and dbeta (CENTRED = false)
// kernels/rms_norm_backward.cu. With n = (x - mean) rstd and g = dy gamma, along each row
// dx = rstd (g - mean(g) - n mean(g n)), and over all rows dgamma = sum(dy n), dbeta = sum(dy).
// dy, x, dx: f32 [rows][count], row-major, any alignment; gamma, dgamma, dbeta: f32 [count]; means, rstds: f32 [rows].
// dx may be null, dy or x.
//
// A block takes `per_block` rows and leaves its column sums in partials [sums][blocks][count], null where nobody reads them;
// norm_columns adds the blocks in order. So the order of all sums follows from the shapes. Moves 12 bytes an element, and
// 8 bytes a column sum and block, twice.
#pragma once
#include "rows.cuh"

struct NormBackward {
    const float *dy, *x, *gamma;
    /// Null where not CENTRED.
    const float* means;
    const float* rstds;
    float *dx, *partials;
    u32 rows, count, per_block, unused;
};

/// Rows of a block, one after another a team, with the column sums in registers: rows of at most SIZE * GROUPS * 4.
template <class Team, int GROUPS, u32 THREADS, bool CENTRED>
DEVICE void norm_backward(const NormBackward& of) {
    constexpr u32 TEAMS = THREADS / Team::SIZE;
    SHARED(float, shared, [TEAM_PARTIALS]);
    Team team{shared};
    auto places = places_of(team, of.count);
    u32 begin = blockIdx.x * of.per_block;
    u32 end = of.rows - begin < of.per_block ? of.rows : begin + of.per_block;
    float share = 1 / float(of.count);
    bool gamma_fours = places.by_four(of.gamma);
    bool fours = places.by_four(of.dy) && places.by_four(of.x);
    bool dx_fours = places.by_four(of.dx);
    Four dgamma[GROUPS] = {}, dbeta[CENTRED ? GROUPS : 1] = {};
    // The lanes of a warp have the same row.
    for (u32 row = begin + threadIdx.x / Team::SIZE; row < end; row += TEAMS) {
        u64 at = u64(row) * of.count;
        Four dy[GROUPS], n[GROUPS];
        UNROLL
        for (int g = 0; g < GROUPS; g++) dy[g] = places.read(of.dy + at, fours, u32(g), 0);
        UNROLL
        for (int g = 0; g < GROUPS; g++) n[g] = places.read(of.x + at, fours, u32(g), 0);
        float mean = CENTRED ? of.means[row] : 0, rstd = of.rstds[row];
        // Of g and g n, before their division.
        float sums[2] = {0, 0};
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            Four gamma = places.read(of.gamma, gamma_fours, u32(g), 0);
            UNROLL
            for (int j = 0; j < 4; j++) {
                n[g].x[j] = (n[g].x[j] - mean) * rstd;
                dgamma[g].x[j] = fmaf(dy[g].x[j], n[g].x[j], dgamma[g].x[j]);
                if (CENTRED) dbeta[g].x[j] += dy[g].x[j];
                dy[g].x[j] *= gamma.x[j];
                if (CENTRED) sums[0] += dy[g].x[j];
                sums[1] = fmaf(dy[g].x[j], n[g].x[j], sums[1]);
            }
        }
        if (!of.dx) continue;
        team.all(sums, 0, Add());
        float first = sums[0] * share, second = sums[1] * share;
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            UNROLL
            for (int j = 0; j < 4; j++) {
                float d = CENTRED ? dy[g].x[j] - first : dy[g].x[j];
                n[g].x[j] = fmaf(-n[g].x[j], second, d) * rstd;
            }
            places.write(of.dx + at, dx_fours, u32(g), n[g]);
        }
    }
    if (!of.partials) return;
    if (TEAMS == 1) {
        float* to = of.partials + u64(blockIdx.x) * of.count;
        bool to_fours = places.by_four(to);
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            places.write(to, to_fours, u32(g), dgamma[g]);
            if (CENTRED) places.write(to + u64(gridDim.x) * of.count, to_fours, u32(g), dbeta[CENTRED ? g : 0]);
        }
        return;
    }
    // The warps' sums, in their order.
    SHARED(float, columns, [TEAMS == 1 ? 4 : THREADS * GROUPS * 4]);
    constexpr u32 WIDTH = Team::SIZE * GROUPS * 4;
    UNROLL
    for (u32 sum = 0; sum < (CENTRED ? 2 : 1); sum++) {
        if (sum == 1) __syncthreads();
        UNROLL
        for (int g = 0; g < GROUPS; g++) {
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                // One row of each warp, in the order of its threads: no bank is asked twice.
                u32 place = (u32(g) * 4 + j) * Team::SIZE + team.thread();
                columns[threadIdx.x / Team::SIZE * WIDTH + place] = sum == 0 ? dgamma[g].x[j] : dbeta[CENTRED ? g : 0].x[j];
            }
        }
        __syncthreads();
        float* to = of.partials + (u64(sum) * gridDim.x + blockIdx.x) * of.count;
        for (u32 place = threadIdx.x; place < WIDTH; place += THREADS) {
            Places<Team::SIZE> its = places_of_thread<Team::SIZE>(place % Team::SIZE, of.count);
            u32 column = its.at(place / Team::SIZE / 4, place / Team::SIZE % 4);
            float all = columns[place];
            for (u32 warp = 1; warp < TEAMS; warp++) all += columns[warp * WIDTH + place];
            if (column < of.count) to[column] = all;
        }
    }
}

/// dx of rows of any length, a block a row; they are read twice.
template <u32 THREADS, bool CENTRED>
DEVICE void norm_backward_row(const NormBackward& of) {
    SHARED(float, shared, [TEAM_PARTIALS]);
    Block<THREADS> team{shared};
    auto places = places_of(team, of.count);
    u64 at = u64(blockIdx.x) * of.count;
    const float *dy = of.dy + at, *x = of.x + at;
    bool fours = places.by_four(dy) && places.by_four(x) && places.by_four(of.gamma) && places.by_four(of.dx);
    float mean = CENTRED ? of.means[blockIdx.x] : 0, rstd = of.rstds[blockIdx.x], share = 1 / float(of.count);
    float sums[2] = {0, 0};
    for (u32 g = 0; g < places.groups(); g++) {
        Four a = places.read(dy, fours, g, 0), b = places.read(x, fours, g, 0), gamma = places.read(of.gamma, fours, g, 0);
        UNROLL
        for (int j = 0; j < 4; j++) {
            float d = a.x[j] * gamma.x[j];
            sums[0] += d;
            sums[1] = fmaf(d, (b.x[j] - mean) * rstd, sums[1]);
        }
    }
    team.all(sums, 0, Add());
    float first = CENTRED ? sums[0] * share : 0, second = sums[1] * share;
    for (u32 g = 0; g < places.groups(); g++) {
        Four a = places.read(dy, fours, g, 0), b = places.read(x, fours, g, 0), gamma = places.read(of.gamma, fours, g, 0);
        UNROLL
        for (int j = 0; j < 4; j++) {
            float d = fmaf(a.x[j], gamma.x[j], -first);
            b.x[j] = fmaf(-(b.x[j] - mean) * rstd, second, d) * rstd;
        }
        places.write(of.dx + at, fours, g, b);
    }
}

/// Column sums of `per_block` rows for rows of any length: blocks of 256 (32 columns by 8 rows), grid =
/// (blocks of rows, ceil(count / 32)).
template <bool CENTRED>
DEVICE void norm_backward_columns(const NormBackward& of) {
    SHARED(float, sums, [2][8][33]);
    u32 lane = threadIdx.x % 32, first = threadIdx.x / 32, column = blockIdx.y * 32 + lane;
    u32 begin = blockIdx.x * of.per_block;
    u32 end = of.rows - begin < of.per_block ? of.rows : begin + of.per_block;
    float dgamma = 0, dbeta = 0;
    if (column < of.count) {
        for (u32 row = begin + first; row < end; row += 8) {
            u64 at = u64(row) * of.count + column;
            float dy = of.dy[at], mean = CENTRED ? of.means[row] : 0;
            dgamma = fmaf(dy, (of.x[at] - mean) * of.rstds[row], dgamma);
            dbeta += dy;
        }
    }
    sums[0][first][lane] = dgamma;
    sums[1][first][lane] = dbeta;
    __syncthreads();
    if (first > (CENTRED ? 1 : 0) || column >= of.count) return;
    float all = sums[first][0][lane];
    for (u32 i = 1; i < 8; i++) all += sums[first][i][lane];
    of.partials[(u64(first) * gridDim.x + blockIdx.x) * of.count + column] = all;
}

/// Adds partials [sums][blocks][count] over the blocks: blocks of 256 (32 columns by 8 partials), grid = (ceil(count / 32), sums).
/// Either output may be null.
DEVICE void norm_columns(const float* partials, float* dgamma, float* dbeta, u32 blocks, u32 count) {
    SHARED(float, sums, [8][33]);
    u32 lane = threadIdx.x % 32, first = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    const float* from = partials + u64(blockIdx.y) * blocks * count;
    float* to = blockIdx.y == 0 ? dgamma : dbeta;
    float sum = 0;
    if (to && column < count) {
        for (u32 block = first; block < blocks; block += 8) sum += from[u64(block) * count + column];
    }
    sums[first][lane] = sum;
    __syncthreads();
    if (first > 0 || !to || column >= count) return;
    for (u32 i = 1; i < 8; i++) sum += sums[i][lane];
    to[column] = sum;
}

// Forms, for rows of at most that length; grid = ceil(rows / per_block):
//   256, 512    a warp a row, blocks of 128
//   1024        a block of 128 a row
//   2048        a block of 256 a row
//   4096, 8192  a block of 512 a row
// For longer ones _row (blocks of 512, grid = rows) and _columns.
#define NORM_BACKWARD(name, CENTRED) \
    KERNEL_RESIDENT(name##_256_f32, 128, 6, (NormBackward of)) { norm_backward<Lanes<32>, 2, 128, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_512_f32, 128, 4, (NormBackward of)) { norm_backward<Lanes<32>, 4, 128, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_1024_f32, 128, 6, (NormBackward of)) { norm_backward<Block<128>, 2, 128, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_2048_f32, 256, 3, (NormBackward of)) { norm_backward<Block<256>, 2, 256, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_4096_f32, 512, 2, (NormBackward of)) { norm_backward<Block<512>, 2, 512, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_8192_f32, 512, 1, (NormBackward of)) { norm_backward<Block<512>, 4, 512, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_row_f32, 512, 2, (NormBackward of)) { norm_backward_row<512, CENTRED>(of); } \
    KERNEL_RESIDENT(name##_columns_f32, 256, 4, (NormBackward of)) { norm_backward_columns<CENTRED>(of); } \
    KERNEL(name##_sum_f32, 256, (const float* partials, float* dgamma, float* dbeta, u32 blocks, u32 count)) { \
        norm_columns(partials, dgamma, dbeta, blocks, count); \
    }
