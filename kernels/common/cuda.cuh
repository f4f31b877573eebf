// The subset of CUDA C++ that kernels are written in. nvcc and NVRTC take it as it stands here, the
// host compiler through tests/driver/cuda_host.hpp, which defines the same names.
//
//   KERNEL(name, threads, (parameters)) { ... }   a kernel for blocks of at most `threads`
//   KERNEL_RESIDENT(name, threads, blocks, ...)   the same, with so many blocks on a multiprocessor at once: bounds registers,
//                                                 and keeps ptxas from spilling for more blocks than that
//   SHARED(type, name, [extents]);                static shared memory
//   DYNAMIC_SHARED(type, name);                   what the launch gives, aligned to 16 bytes
//   load, store, load_once                        vector accesses; load_once asks not to stay in L1
//
// Kernels are compiled without contraction: where a fused multiply-add is meant, `fmaf` is written.
// So both sides round at the same places; only `expf`, `logf` and their like differ in last bits.
#pragma once

#ifdef __CUDACC__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads) name __VA_ARGS__
#define KERNEL_RESIDENT(name, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name __VA_ARGS__
#define DEVICE static __device__ __forceinline__
#define FUNCTOR __device__ __forceinline__
#define SHARED(type, name, extents) __shared__ __align__(16) type name extents
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(16) u8 dynamic_shared_memory[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_memory)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

template <class T>
DEVICE T load(const T* address) {
    return *address;
}
template <class T>
DEVICE T load_once(const T* address) {
    return __ldcs(address);
}
template <class T>
DEVICE void store(T* address, T value) {
    *address = value;
}

template <class To, class From>
DEVICE To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    return *reinterpret_cast<To*>(&value);
}

DEVICE float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

/// Waits for `threads` threads (a multiple of 32) at barrier `id`, 1 to 15.
DEVICE void barrier_sync(u32 id, u32 threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

enum : u32 { ALL_LANES = 0xffffffff };

#else
#include "cuda_host.hpp"
#endif

// What both have in common --------------------------------------------------------------------------

DEVICE u32 lane_id() {
    return threadIdx.x & 31;
}

/// bf16: the upper half of an f32.
struct bf16 {
    u16 bits;
};

DEVICE float to_float(float x) {
    return x;
}
DEVICE float to_float(bf16 x) {
    return bits_as<float>(u32(x.bits) << 16);
}

/// To nearest, ties to even; NaN stays a quiet NaN.
DEVICE u32 bf16_bits(float x) {
    u32 bits = bits_as<u32>(x);
    u32 rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (x == x ? rounded : bits | 0x400000) >> 16;
}

/// Two bf16 in a register, the first in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return bf16_bits(low) | bf16_bits(high) << 16;
#endif
}
DEVICE float low_bf16(u32 packed) {
    return bits_as<float>(packed << 16);
}
DEVICE float high_bf16(u32 packed) {
    return bits_as<float>(packed & 0xffff0000);
}

DEVICE void convert(float x, float& y) {
    y = x;
}
DEVICE void convert(float x, bf16& y) {
    y.bits = u16(bf16_bits(x));
}
template <class T>
DEVICE T from_float(float x) {
    T y;
    convert(x, y);
    return y;
}

/// Not a number, infinity.
DEVICE float nan_value() {
    return bits_as<float>(0x7fc00000u);
}
DEVICE float infinity() {
    return bits_as<float>(0x7f800000u);
}
DEVICE bool is_finite(float x) {
    return (bits_as<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

/// The control block: 64-bit slots. What changes from step to step is read from it, never given by value.
typedef const u64* Control;
DEVICE float control_f32(Control control, u32 slot) {
    return bits_as<float>(u32(control[slot]));
}
DEVICE u64 control_u64(Control control, u32 slot) {
    return control[slot];
}
