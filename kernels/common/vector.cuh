// Four elements at once.
#pragma once
#include "cuda.cuh"

struct Four {
    float x[4];
};

/// Whether four elements at this address can be read in one access.
template <class T>
DEVICE bool aligned_for_four(const T* address) {
    return u64(address) % (4 * sizeof(T)) == 0;
}

DEVICE Four load_four(const float* address) {
    float4 v = load((const float4*)address);
    return {{v.x, v.y, v.z, v.w}};
}
DEVICE Four load_four(const bf16* address) {
    uint2 v = load((const uint2*)address);
    return {{low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)}};
}
DEVICE void store_four(float* address, Four v) {
    store((float4*)address, make_float4(v.x[0], v.x[1], v.x[2], v.x[3]));
}
DEVICE void store_four(bf16* address, Four v) {
    store((uint2*)address, make_uint2(pack_bf16(v.x[0], v.x[1]), pack_bf16(v.x[2], v.x[3])));
}

/// The first `count` of four elements, zeros after them; all at once where the address is `wide` and they are all there.
DEVICE Four load_part(const float* address, u32 count, bool wide) {
    if (wide && count == 4) return load_four(address);
    Four v;
    UNROLL
    for (u32 j = 0; j < 4; j++) v.x[j] = j < count ? address[j] : 0.0f;
    return v;
}
template <class T>
DEVICE void store_part(T* address, Four v, u32 count, bool wide) {
    if (wide && count == 4) return store_four(address, v);
    UNROLL
    for (u32 j = 0; j < 4; j++) {
        if (j < count) address[j] = from_float<T>(v.x[j]);
    }
}
