// y = x * mask / (1 - p). Contract, and which bits decide an element: src/ops/dropout. f32 [n]; y may be x. The number of
// the mask is read from the control block.
//
// Launch: blocks of 256, grid = ceil(n / 1024). A thread makes one counter of Philox, whose four words are for elements 16
// apart; the lanes vote, and each then takes four neighbouring elements in one access, where x and y are aligned to 16
// bytes. Else the same elements one by one.
//
// Target: compute_75
// Registers: 48
#include "common/vector.cuh"

/// Philox4x32 with 10 rounds, as src/device/cpu/simd/philox.rs.
DEVICE void philox(u32 k0, u32 k1, u32 (&c)[4]) {
    UNROLL
    for (int round = 0; round < 10; round++) {
        u64 a = u64(0xd2511f53u) * c[0], b = u64(0xcd9e8d57u) * c[2];
        u32 c0 = u32(b >> 32) ^ c[1] ^ k0, c2 = u32(a >> 32) ^ c[3] ^ k1;
        c[0] = c0, c[1] = u32(b), c[2] = c2, c[3] = u32(a);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

KERNEL(dropout_f32, 256,
       (const float* x, float* y, u64 n, u32 key_low, u32 key_high, float p, float scale, Control control, u32 slot)) {
    u64 mask = control_u64(control, slot);
    // 16 counters for 64 elements: the number of the counter is that of the thread.
    u64 counter = u64(blockIdx.x) * 256 + threadIdx.x;
    u32 words[4] = {u32(counter), u32(counter >> 32), u32(mask), u32(mask >> 32)};
    philox(key_low, key_high, words);
    // Of the 16 lanes of a group, lane t gets elements 4 t ..: word t / 4 of counters 4 (t % 4) ...
    u32 group = lane_id() % 16, kept = 0;
    UNROLL
    for (u32 word = 0; word < 4; word++) {
        u32 votes = __ballot_sync(ALL_LANES, float(words[word] >> 8) * (1.0f / 16777216) >= p);
        if (group / 4 == word) kept = votes;
    }
    kept >>= lane_id() / 16 * 16 + group % 4 * 4;
    u64 i = counter * 4;
    // A product, not a choice: NaN in x stays seen.
    if (i + 4 <= n && aligned_for_four(x) && aligned_for_four(y)) {
        Four v = load_four(x + i);
        UNROLL
        for (u32 j = 0; j < 4; j++) v.x[j] *= kept >> j & 1 ? scale : 0.0f;
        store_four(y + i, v);
    } else {
        for (u32 j = 0; j < 4; j++) {
            if (i + j < n) y[i + j] = x[i + j] * (kept >> j & 1 ? scale : 0.0f);
        }
    }
}
