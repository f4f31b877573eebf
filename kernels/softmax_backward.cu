// dx = y (dy - sum y dy) along rows. Contract: src/ops/softmax_backward. y, dy, dx: f32 [rows][count], row-major, any
// alignment; dx may be y or dy.
//
// softmax_backward_<length>_f32, for rows of at most that length:
//   32     8 lanes a row, 32 rows in a block of 256
//   512    a warp a row, 4 rows in a block of 128
//   4096   a block of 256 a row
//   long   any length, a block of 1024 a row; 12288 elements stay in registers, the rest is read twice
//   grid = ceil(rows / rows of a block)
// Moves 12 bytes an element. Sums are over a thread's elements in their order, then over threads as a tree.
//
// Target: compute_75
// Registers: 80
#include "common/rows.cuh"

template <class Team, int GROUPS, bool REST>
DEVICE void softmax_backward(const float* y, const float* dy, float* dx, u32 rows, u32 count) {
    SHARED(float, partials, [TEAM_PARTIALS]);
    Team team{partials};
    TeamRow mine = row_of(team, rows);
    auto places = places_of(team, count);
    const float *p = y + u64(mine.row) * count, *g = dy + u64(mine.row) * count;
    float* to = dx + u64(mine.row) * count;
    Four values[GROUPS], upstream[GROUPS];
    places.read_all(values, p, 0);
    places.read_all(upstream, g, 0);
    float dot = 0;
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        UNROLL
        for (int j = 0; j < 4; j++) dot = fmaf(values[i].x[j], upstream[i].x[j], dot);
    }
    bool fours = places.by_four(p) && places.by_four(g) && places.by_four(to);
    if (REST) {
        for (u32 i = GROUPS; i < places.groups(); i++) {
            Four v = places.read(p, fours, i, 0), u = places.read(g, fours, i, 0);
            UNROLL
            for (int j = 0; j < 4; j++) dot = fmaf(v.x[j], u.x[j], dot);
        }
    }
    dot = team_all(team, dot, 0, Add());
    if (!mine.there) return;
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        UNROLL
        for (int j = 0; j < 4; j++) values[i].x[j] *= upstream[i].x[j] - dot;
        places.write(to, fours, u32(i), values[i]);
    }
    if (REST) {
        for (u32 i = GROUPS; i < places.groups(); i++) {
            Four v = places.read(p, fours, i, 0), u = places.read(g, fours, i, 0);
            UNROLL
            for (int j = 0; j < 4; j++) v.x[j] *= u.x[j] - dot;
            places.write(to, fours, i, v);
        }
    }
}

#define SOFTMAX_BACKWARD(length, threads, resident, TEAM, GROUPS, REST) \
    KERNEL_RESIDENT(softmax_backward_##length##_f32, threads, resident, \
                    (const float* y, const float* dy, float* dx, u32 rows, u32 count)) { \
        softmax_backward<TEAM, GROUPS, REST>(y, dy, dx, rows, count); \
    }

SOFTMAX_BACKWARD(32, 256, 4, Lanes<8>, 1, false)
SOFTMAX_BACKWARD(512, 128, 6, Lanes<32>, 4, false)
SOFTMAX_BACKWARD(4096, 256, 3, Block<256>, 4, false)
SOFTMAX_BACKWARD(long, 1024, 1, Block<1024>, 3, true)
