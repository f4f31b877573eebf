// inputs[r][c] = values[n][c] * scale[c] + shift[c] and labels_out[r] = labels[n], with n = order[offset + r].
// Contract: src/ops/batch. values: u8 or f32 [rows][features]; order: u32 [order_len]; inputs: f32 or bf16
// [size][features]. The offset is read from the control block. A place or an entry out of range gives NaN and the label
// u32::MAX. Either output may be null.
//
// Launch: blocks of 256, a thread for four features of a row, or for a row without features; groups = max(ceil(features /
// 4), 1), grid = ceil(size * groups / 256).
//
// Target: compute_75
// Registers: 40
#include "common/index.cuh"
#include "common/vector.cuh"

DEVICE Four four_values(const u8* from, bool aligned) {
    Four v;
    if (aligned) {
        u32 bytes = load((const u32*)from);
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = float(bytes >> 8 * j & 0xff);
    } else {
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = float(from[j]);
    }
    return v;
}
DEVICE Four four_values(const float* from, bool aligned) {
    if (aligned) return load_four(from);
    return {{from[0], from[1], from[2], from[3]}};
}

template <class V, class T>
DEVICE void batch(const V* values, const u32* labels, const u32* order, const float* scale, const float* shift, T* inputs,
                  u32* labels_out, u32 size, u32 rows, u32 features, u32 order_len, Control control, u32 offset_slot) {
    u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    u32 groups = features > 4 ? (features - 1) / 4 + 1 : 1;
    u64 r = divide(i, groups);
    if (r >= size) return;
    u32 c = u32(i - r * groups) * 4;
    u64 place = control_u64(control, offset_slot) + r;
    u32 n = place < order_len ? order[place] : rows;
    bool good = n < rows;
    if (labels_out && c == 0) labels_out[r] = good ? labels[n] : 0xffffffff;
    if (!inputs || c >= features) return;
    T* to = inputs + r * features + c;
    const V* from = values + u64(n) * features + c;
    u32 count = features - c < 4 ? features - c : 4;
    if (!good) {
        for (u32 j = 0; j < count; j++) to[j] = from_float<T>(nan_value());
    } else if (count == 4) {
        Four v = four_values(from, aligned_for_four(from));
        UNROLL
        for (int j = 0; j < 4; j++) v.x[j] = fmaf(v.x[j], scale[c + u32(j)], shift[c + u32(j)]);
        if (aligned_for_four(to)) {
            store_four(to, v);
        } else {
            UNROLL
            for (int j = 0; j < 4; j++) to[j] = from_float<T>(v.x[j]);
        }
    } else {
        for (u32 j = 0; j < count; j++) to[j] = from_float<T>(fmaf(float(from[j]), scale[c + j], shift[c + j]));
    }
}

#define BATCH(name, V, T) \
    KERNEL(batch_##name, 256, \
           (const V* values, const u32* labels, const u32* order, const float* scale, const float* shift, T* inputs, \
            u32* labels_out, u32 size, u32 rows, u32 features, u32 order_len, Control control, u32 offset_slot)) { \
        batch(values, labels, order, scale, shift, inputs, labels_out, size, rows, features, order_len, control, \
              offset_slot); \
    }

BATCH(u8_f32, u8, float)
BATCH(u8_bf16, u8, bf16)
BATCH(f32_f32, float, float)
BATCH(f32_bf16, float, bf16)
