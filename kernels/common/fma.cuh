// Tiles multiplied by fused multiply-adds in f32, IEEE: no rounding to TF32.
#pragma once
#include "product.cuh"

/// Threads have 8 x 8 or 4 x 4 sums. Of smaller tiles, four groups of threads take two of k each in turn, and their sums
/// are added; each sum is in the order of k.
template <bool A_TRANSPOSED, bool B_TRANSPOSED, u32 TILE_>
struct Fma {
    using Type = float;
    static constexpr bool A_ALONG = !A_TRANSPOSED, B_ALONG = B_TRANSPOSED;
    static constexpr u32 TILE = TILE_, DEPTH = DEPTH_OF<TILE, 4>, PER_THREAD = TILE == 32 ? 4 : 8, SIDE = TILE / PER_THREAD;
    static constexpr u32 THREADS = 256, GROUPS = THREADS / (SIDE * SIDE);
    // Two of k of eight neighbouring rows lie in different banks.
    static constexpr u32 PAD = 4;
    using A = Operand<float, A_ALONG, TILE, DEPTH, THREADS, PAD>;
    using B = Operand<float, B_ALONG, TILE, DEPTH, THREADS, PAD>;
    u32 group, row, column;
    float sums[PER_THREAD][PER_THREAD];

    FUNCTOR Fma() : sums{} {
        // A warp is 4 threads by 8.
        u32 warp = threadIdx.x / 32 % (SIDE * SIDE / 32), lane = lane_id();
        group = threadIdx.x / (SIDE * SIDE);
        row = warp / (SIDE / 8) * 4 + lane / 8;
        column = warp % (SIDE / 8) * 8 + lane % 8;
    }
    /// Place `i` of the thread at `at`: in fours where those are neighbours in shared memory.
    template <bool ALONG>
    static FUNCTOR u32 place(u32 at, u32 i) {
        return ALONG ? at + i * SIDE : i / 4 * 4 * SIDE + at * 4 + i % 4;
    }
    /// Two of k of every place. More than that in registers would spill.
    template <bool ALONG, u32 STRIDE>
    static FUNCTOR void read(float (&x)[PER_THREAD][2], const float* part, u32 at, u32 k) {
        UNROLL
        for (u32 i = 0; i < PER_THREAD; i++) {
            if (ALONG) {
                float2 two = load((const float2*)(part + place<ALONG>(at, i) * STRIDE + k));
                x[i][0] = two.x;
                x[i][1] = two.y;
            } else if (i % 4 < 2) {
                Four four = load_four(part + (k + i % 4) * STRIDE + place<ALONG>(at, i / 4 * 4));
                UNROLL
                for (u32 j = 0; j < 4; j++) x[i / 4 * 4 + j][i % 4] = four.x[j];
            }
        }
    }
    FUNCTOR void multiply(const float* at, const float* bt) {
        ROLLED
        for (u32 k = group * 2; k < DEPTH; k += GROUPS * 2) {
            float a[PER_THREAD][2], b[PER_THREAD][2];
            read<A_ALONG, A::STRIDE>(a, at, row, k);
            read<B_ALONG, B::STRIDE>(b, bt, column, k);
            UNROLL
            for (u32 d = 0; d < 2; d++) {
                UNROLL
                for (u32 i = 0; i < PER_THREAD; i++) {
                    UNROLL
                    for (u32 j = 0; j < PER_THREAD; j++) sums[i][j] = fmaf(a[i][d], b[j][d], sums[i][j]);
                }
            }
        }
    }
    /// The sums of rows `first` to `first + PASS`, each group's after those of the one before.
    template <u32 PASS, u32 STRIDE>
    FUNCTOR void put(float* to, u32 first) {
        UNROLL
        for (u32 i = 0; i < PER_THREAD; i++) {
            u32 r = place<A_ALONG>(row, i) - first;
            if (r >= PASS) continue;
            float* line = to + (group * PASS + r) * STRIDE;
            UNROLL
            for (u32 j = 0; j < PER_THREAD; j += B_ALONG ? 1 : 4) {
                float* at = line + place<B_ALONG>(column, j);
                if (B_ALONG) {
                    *at = sums[i][j];
                } else {
                    store_four(at, {{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
                }
            }
        }
    }
};
