// The order of an epoch's rows: a permutation of 0..rows that is a function of (seed, epoch), both read from the control
// block. Contract and source: src/random/permutation.rs, with the same bits. order: u32 [rows].
//
// A row is x * columns + y; twenty rounds add in turn a mixed y to x and a mixed x to y, each a bijection of the
// lines * columns places; what falls past the rows is sent through again until it does not.
//
// Launch: blocks of 256, grid = ceil(rows / 256). A thread finds the rounds' keys itself: forty multiplications.
//
// Target: compute_75
// Registers: 64
#include "common/cuda.cuh"

enum : u32 { ROUNDS = 20 };

DEVICE u64 mix_word(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
/// Below `bound`.
DEVICE u32 mix_below(u32 v, u32 bound) {
    v = (v ^ (v >> 16)) * 0x85ebca6bu;
    v = (v ^ (v >> 13)) * 0xc2b2ae35u;
    v ^= v >> 16;
    return u32(u64(v) * bound >> 32);
}

KERNEL(permutation, 256, (u32* order, u32 rows, u32 lines, u32 columns, Control control, u32 seed_slot, u32 epoch_slot)) {
    constexpr u64 STEP = 0x9e3779b97f4a7c15ull, ORDERS = 0x6f7264657273ull;
    u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= rows) return;
    u64 state = mix_word(control_u64(control, seed_slot) ^ ORDERS) + STEP;
    state = mix_word(state ^ control_u64(control, epoch_slot));
    u32 keys[ROUNDS];
    UNROLL
    for (u32 pair = 0; pair < ROUNDS / 2; pair++) {
        u64 word = mix_word(state + STEP * (pair + 1));
        keys[2 * pair] = u32(word);
        keys[2 * pair + 1] = u32(word >> 32);
    }
    do {
        u64 x = i / columns, y = i % columns;
        UNROLL
        for (u32 pair = 0; pair < ROUNDS / 2; pair++) {
            x += mix_below(u32(y) ^ keys[2 * pair], lines);
            if (x >= lines) x -= lines;
            y += mix_below(u32(x) ^ keys[2 * pair + 1], columns);
            if (y >= columns) y -= columns;
        }
        i = x * columns + y;
    } while (i >= rows);
    order[u64(blockIdx.x) * 256 + threadIdx.x] = u32(i);
}
