// CUDA C++ as the kernels use it, for a host compiler. The same names stand in
// kernels/common/cuda.cuh for the device; what is in neither file is not in the subset.
#pragma once

#include "machine.hpp"

#include <cmath>
#include <cstring>

#define KERNEL(name, threads, ...) \
    extern "C" void name __VA_ARGS__; \
    static const standin::Register register_##name(#name, threads, &name); \
    extern "C" void name __VA_ARGS__
#define KERNEL_RESIDENT(name, threads, blocks, ...) KERNEL(name, threads, __VA_ARGS__)
#define DEVICE static inline
#define FUNCTOR inline
#define SHARED(type, name, extents) \
    using name##_type = type extents; \
    static standin::Site name##_site; \
    auto& name = *(name##_type*)standin::static_shared(name##_site, sizeof(name##_type), 16)
#define DYNAMIC_SHARED(type, name) type* name = (type*)standin::dynamic_shared()
#define UNROLL
#define ROLLED

#define threadIdx (standin::self->index)
#define blockIdx (standin::self->home->index)
#define blockDim (standin::block_extent)
#define gridDim (standin::grid_extent)

// Vectors -----------------------------------------------------------------------------------------

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

/// A device faults on a vector access that is not aligned; so does this.
template <class T>
inline void check_aligned(const T* address, std::source_location place = std::source_location::current()) {
    if (uintptr_t(address) % alignof(T)) standin::trap("a misaligned address", place);
}
template <class T>
inline T load(const T* address, std::source_location place = std::source_location::current()) {
    check_aligned(address, place);
    return *address;
}
template <class T>
inline T load_once(const T* address, std::source_location place = std::source_location::current()) {
    return load(address, place);
}
template <class T>
inline void store(T* address, T value, std::source_location place = std::source_location::current()) {
    check_aligned(address, place);
    *address = value;
}
template <class T>
inline T __ldg(const T* address, std::source_location place = std::source_location::current()) {
    return load(address, place);
}

// Bits and functions ------------------------------------------------------------------------------

template <class To, class From>
inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &value, sizeof to);
    return to;
}
inline u32 __float_as_uint(float x) { return bits_as<u32>(x); }
inline float __uint_as_float(u32 x) { return bits_as<float>(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float normcdff(float x) { return float(0.5 * std::erfc(double(x) * -0.70710678118654752440)); }
inline float __frcp_rn(float x) { return 1 / x; }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __clz(u32 x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(u32 x) { return __builtin_ffs(int(x)); }
inline u32 __umulhi(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
/// f16 to f32 and back, to nearest, ties to even.
inline float half_to_float(u16 bits) { return float(bits_as<_Float16>(bits)); }
inline u16 float_to_half(float x) { return bits_as<u16>(_Float16(x)); }
template <class T>
inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
inline T max(T a, T b) { return a < b ? b : a; }

// Barriers and warps ------------------------------------------------------------------------------

using standin_place = std::source_location;

inline void __syncthreads(standin_place place = standin_place::current()) {
    standin::barrier(0, 0, "__syncthreads", place);
}
inline void barrier_sync(u32 id, u32 threads, standin_place place = standin_place::current()) {
    standin::barrier(id, threads, "barrier_sync", place);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

enum : u32 { ALL_LANES = 0xffffffff };

/// Lanes of `mask` meet; the last to come calls `combine(lane, posts)` for each of them.
template <class Post, class Combine>
inline void meet(u32 mask, Post& post, const char* what, standin_place place, Combine combine) {
    if (!standin::meet(mask, &post, what, place)) return;
    combine((Post**)standin::posts());
    standin::part(mask);
}

template <class T>
struct Exchange {
    T value;
    u32 from;
    T result;
};

/// What `value` is in lane `from`. A lane outside of the mask gives nothing anyone may use.
template <class T>
inline T shuffle(u32 mask, T value, u32 from, const char* what, standin_place place) {
    Exchange<T> post{value, from, value};
    meet(mask, post, what, place, [mask](Exchange<T>** posts) {
        for (u32 lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            u32 from = posts[lane]->from;
            if (mask >> from & 1) {
                posts[lane]->result = posts[from]->value;
            } else {
                memset(&posts[lane]->result, 0xff, sizeof(T));
            }
        }
    });
    return post.result;
}
inline u32 standin_lane() { return standin::self->linear % 32; }

template <class T>
inline T __shfl_sync(u32 mask, T value, int from, int width = 32, standin_place place = standin_place::current()) {
    u32 first = standin_lane() & ~u32(width - 1);
    return shuffle(mask, value, first + (u32(from) & u32(width - 1)), "__shfl_sync", place);
}
template <class T>
inline T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32, standin_place place = standin_place::current()) {
    u32 lane = standin_lane(), from = lane ^ u32(bits);
    if (from >= (lane & ~u32(width - 1)) + u32(width)) from = lane;
    return shuffle(mask, value, from, "__shfl_xor_sync", place);
}
template <class T>
inline T __shfl_down_sync(u32 mask, T value, u32 by, int width = 32, standin_place place = standin_place::current()) {
    u32 lane = standin_lane(), end = (lane & ~u32(width - 1)) + u32(width);
    return shuffle(mask, value, lane + by < end ? lane + by : lane, "__shfl_down_sync", place);
}
template <class T>
inline T __shfl_up_sync(u32 mask, T value, u32 by, int width = 32, standin_place place = standin_place::current()) {
    u32 lane = standin_lane(), first = lane & ~u32(width - 1);
    return shuffle(mask, value, lane >= first + by ? lane - by : lane, "__shfl_up_sync", place);
}
inline u32 __ballot_sync(u32 mask, int predicate, standin_place place = standin_place::current()) {
    Exchange<u32> post{predicate != 0, 0, 0};
    meet(mask, post, "__ballot_sync", place, [mask](Exchange<u32>** posts) {
        u32 votes = 0;
        for (u32 lane = 0; lane < 32; lane++) {
            if (mask >> lane & 1) votes |= posts[lane]->value << lane;
        }
        for (u32 lane = 0; lane < 32; lane++) {
            if (mask >> lane & 1) posts[lane]->result = votes;
        }
    });
    return post.result;
}
inline int __any_sync(u32 mask, int predicate, standin_place place = standin_place::current()) {
    return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(u32 mask, int predicate, standin_place place = standin_place::current()) {
    return __ballot_sync(mask, predicate, place) == mask;
}
inline void __syncwarp(u32 mask = ALL_LANES, standin_place place = standin_place::current()) {
    u32 post = 0;
    meet(mask, post, "__syncwarp", place, [](u32**) {});
}
template <class F>
inline u32 standin_reduce(u32 mask, u32 value, const char* what, standin_place place, F f) {
    Exchange<u32> post{value, 0, 0};
    meet(mask, post, what, place, [mask, f](Exchange<u32>** posts) {
        bool first = true;
        u32 all = 0;
        for (u32 lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            all = first ? posts[lane]->value : f(all, posts[lane]->value);
            first = false;
        }
        for (u32 lane = 0; lane < 32; lane++) {
            if (mask >> lane & 1) posts[lane]->result = all;
        }
    });
    return post.result;
}
inline u32 __reduce_add_sync(u32 mask, u32 value, standin_place place = standin_place::current()) {
    return standin_reduce(mask, value, "__reduce_add_sync", place, [](u32 a, u32 b) { return a + b; });
}
inline u32 __reduce_max_sync(u32 mask, u32 value, standin_place place = standin_place::current()) {
    return standin_reduce(mask, value, "__reduce_max_sync", place, [](u32 a, u32 b) { return a < b ? b : a; });
}

// Atomics: of integers only. A sum of floats by atomics depends on timing. ---------------------------

inline u32 atomicAdd(u32* address, u32 value) { u32 old = *address; *address += value; return old; }
inline int atomicAdd(int* address, int value) { int old = *address; *address += value; return old; }
inline u64 atomicAdd(u64* address, u64 value) { u64 old = *address; *address += value; return old; }
inline u32 atomicMax(u32* address, u32 value) { u32 old = *address; if (old < value) *address = value; return old; }
inline u32 atomicMin(u32* address, u32 value) { u32 old = *address; if (value < old) *address = value; return old; }
inline u32 atomicOr(u32* address, u32 value) { u32 old = *address; *address |= value; return old; }
inline u32 atomicExch(u32* address, u32 value) { u32 old = *address; *address = value; return old; }
inline u32 atomicCAS(u32* address, u32 expected, u32 value) {
    u32 old = *address;
    if (old == expected) *address = value;
    return old;
}
