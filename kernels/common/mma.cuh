// Tiles multiplied on tensor cores. bf16 operands; f32 operands are rounded to bf16 where fragments are read.
#pragma once
#include "product.cuh"

/// 16 places from `place` on by 16 of `k`, two bf16 of k to a register. Registers have halves of eight: of places first, then
/// of k, for the left operand; the other way round for the right one.
template <bool K_ALONG, bool LEFT, u32 STRIDE>
DEVICE void fragments(u32 (&r)[4], const bf16* part, u32 place, u32 k) {
    u32 lane = lane_id(), low = lane % 8, inner = lane / 8 % 2 * 8, outer = lane / 16 * 8;
    place += LEFT ? inner : outer;
    k += LEFT ? outer : inner;
    load_fragments<!K_ALONG>(r, part + (K_ALONG ? (place + low) * STRIDE + k : (k + low) * STRIDE + place));
}
template <bool K_ALONG, bool LEFT, u32 STRIDE>
DEVICE void fragments(u32 (&r)[4], const float* part, u32 place, u32 k) {
    u32 lane = lane_id();
    place += lane / 4;
    k += lane % 4 * 2;
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 p = place + (LEFT ? i % 2 : i / 2) * 8, at = k + (LEFT ? i / 2 : i % 2) * 8;
        if (K_ALONG) {
            float2 two = load((const float2*)(part + p * STRIDE + at));
            r[i] = pack_bf16(two.x, two.y);
        } else {
            r[i] = pack_bf16(part[at * STRIDE + p], part[(at + 1) * STRIDE + p]);
        }
    }
}

/// Warps of 64 x 32 or 32 x 32. Of smaller tiles, groups of warps take 16 of k each in turn, and their sums are added.
template <class T, bool A_TRANSPOSED, bool B_TRANSPOSED, u32 TILE_>
struct Mma {
    using Type = T;
    static constexpr bool A_ALONG = !A_TRANSPOSED, B_ALONG = B_TRANSPOSED;
    static constexpr u32 TILE = TILE_, DEPTH = DEPTH_OF<TILE, sizeof(T)>;
    static constexpr u32 WARP_ROWS = TILE == 128 ? 64 : 32, ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = 4;
    static constexpr u32 WARPS = TILE / WARP_ROWS * (TILE / 32), GROUPS = TILE == 128 ? 1 : TILE == 64 ? 2 : 4;
    static constexpr u32 THREADS = WARPS * GROUPS * 32;
    // Rows of bf16 begin 16 bytes apart in the banks; f32 pairs of k, and neighbouring rows of k, in different ones.
    static constexpr u32 PAD_ALONG = 8, PAD_ACROSS = sizeof(T) == 2 ? 8 : 4;
    using A = Operand<T, A_ALONG, TILE, DEPTH, THREADS, A_ALONG ? PAD_ALONG : PAD_ACROSS>;
    using B = Operand<T, B_ALONG, TILE, DEPTH, THREADS, B_ALONG ? PAD_ALONG : PAD_ACROSS>;
    u32 group, row, column;
    float sums[ROW_TILES][COLUMN_TILES][4];

    FUNCTOR Mma() : sums{} {
        u32 warp = threadIdx.x / 32;
        group = warp / WARPS;
        row = warp % WARPS / (TILE / 32) * WARP_ROWS;
        column = warp % (TILE / 32) * 32;
    }
    FUNCTOR void multiply(const T* at, const T* bt) {
        UNROLL
        for (u32 slice = 0; slice < DEPTH / 16; slice += GROUPS) {
            u32 k = (slice + group) * 16, left[ROW_TILES][4];
            UNROLL
            for (u32 i = 0; i < ROW_TILES; i++) fragments<A_ALONG, true, A::STRIDE>(left[i], at, row + i * 16, k);
            UNROLL
            for (u32 j = 0; j < COLUMN_TILES; j += 2) {
                u32 right[4];
                fragments<B_ALONG, false, B::STRIDE>(right, bt, column + j * 8, k);
                const u32 low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
                UNROLL
                for (u32 i = 0; i < ROW_TILES; i++) {
                    multiply_tile(sums[i][j], left[i], low);
                    multiply_tile(sums[i][j + 1], left[i], high);
                }
            }
        }
    }
    /// The sums of rows `first` to `first + PASS`, each group's after those of the one before.
    template <u32 PASS, u32 STRIDE>
    FUNCTOR void put(float* to, u32 first) {
        if (row / PASS * PASS != first) return;
        u32 lane = lane_id();
        to += (group * PASS + row % PASS + lane / 4) * STRIDE + column + lane % 4 * 2;
        UNROLL
        for (u32 i = 0; i < ROW_TILES; i++) {
            UNROLL
            for (u32 j = 0; j < COLUMN_TILES; j++) {
                float* tile = to + i * 16 * STRIDE + j * 8;
                store((float2*)tile, make_float2(sums[i][j][0], sums[i][j][1]));
                store((float2*)(tile + 8 * STRIDE), make_float2(sums[i][j][2], sums[i][j][3]));
            }
        }
    }
};
