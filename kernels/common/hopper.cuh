// What sm_90a has beyond sm_80: copies of tiles by the tensor memory accelerator (TMA), barriers in shared memory that count
// bytes (mbarrier), products of a warpgroup (wgmma). On the host they have plain bodies. Sections are those of the PTX ISA, 8.0.
//
// TensorMap: a tensor in global memory and the box that is copied at a time, as cuTensorMapEncodeTiled made it; a parameter of
//   the kernel, TENSOR_MAP(name). All maps here have swizzle 128B: a box has rows of 128 bytes; of the address within shared
//   memory, bits 4 to 6 are XORed with bits 7 to 9 (5.5.4). So a box begins at a multiple of 1024 bytes.
//
// mbarrier_init      a barrier that `count` arrivals complete, phase after phase; then mbarrier_ready and a barrier of all threads
// mbarrier_arrive    an arrival in block `rank` of the cluster. Ordered for what tensor cores and tile_load read and write (the ring); it does
//                    not publish ordinary stores to other blocks: a wider scope costs a fence of the whole GPU at each arrival
// mbarrier_expect    an arrival that makes the phase wait for so many bytes as well
// mbarrier_wait      until the phase of that parity is complete, acquire; the first phase has parity 0
//
// tile_load          the box at (x, y) of the tensor to shared memory, by one thread; outside of the tensor are zeros, and they
//                    count: the barrier gets the bytes of the whole box. With `blocks`, a bit a block of the cluster: into all of
//                    those, at the same place, each with its own barrier
// tile_store         the box at (x, y, z) from shared memory to the tensor; what is outside of it is not written. Before it
//                    every thread that wrote there calls fence_shared, then they meet. commit_stores closes a group;
//                    wait_stores<N> waits until at most the N newest groups of this thread have still to be read
//
// products_begin, multiply, products_commit, products_wait<N>, settle: by all 128 threads of a warpgroup, together. See below.
//
// take_registers, give_registers: of the warpgroup's threads, a multiple of 8. Needs __launch_bounds__ with both numbers.
#pragma once
#include "cluster.cuh"

// d (+)= a b: a 64 x 16, b 16 x N, bf16, d f32; `add` says whether to add to d. a and b lie in shared memory, as descriptors say:
//
// Matrix descriptor (9.7.14.5.1, "Matrix Descriptor Format"): bits 0-13 start address, 16-29 leading dimension byte offset, 32-45
// stride dimension byte offset, each divided by 16; 49-51 base offset, 0 where the pattern begins at a multiple of 1024; 62-63
// swizzle, 1 for 128 bytes. With that swizzle ("Strides"):
//   K-major (rows of 64 along k):   stride: from 8 rows of m or n to the next 8; leading: not used. 16 of k further: 32 bytes.
//   MN-major (rows of 64 along m or n): stride: from 8 of k to the next 8; leading: from 64 of m or n to the next 64. 16 of k
//   further: 16 rows of 128 bytes.
// The immediates imm-trans-a and -b are 1 for MN-major.
//
// Accumulators ("Register Fragment, D"): with warp w of the warpgroup, g = lane / 4, t = lane % 4, d[4 j + i] is row 16 w + g,
// 8 more for i >= 2, column 8 j + 2 t + i % 2.
//
// The product reads shared memory and writes d later: both belong to it until products_wait; settle keeps the compiler from
// reading d before.
constexpr u64 SWIZZLE_128 = 1ull << 62;
DEVICE u64 matrix_descriptor(u32 address, u32 leading_bytes, u32 stride_bytes) {
    return SWIZZLE_128 | u64((address & 0x3ffff) >> 4) | u64(leading_bytes >> 4) << 16 | u64(stride_bytes >> 4) << 32;
}
/// The same, so many bytes further.
DEVICE u64 advance(u64 descriptor, u32 bytes) {
    return descriptor + (bytes >> 4);
}

typedef u64 Mbarrier;

#ifdef __CUDACC__
#include "wgmma.cuh"

struct __align__(64) TensorMap {
    u64 opaque[16];
};
#define TENSOR_MAP(name) const __grid_constant__ TensorMap name

DEVICE u32 shared_address(const void* shared) {
    return u32(__cvta_generic_to_shared(shared));
}

DEVICE void mbarrier_init(Mbarrier* barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
DEVICE void mbarrier_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void mbarrier_arrive(Mbarrier* barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}
DEVICE void mbarrier_expect(Mbarrier* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
DEVICE void mbarrier_wait(Mbarrier* barrier, u32 parity) {
    u32 address = shared_address(barrier), done;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
    } while (!done);
}

DEVICE void tile_load(void* to, const TensorMap& map, u32 x, u32 y, Mbarrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}
DEVICE void tile_load(void* to, const TensorMap& map, u32 x, u32 y, Mbarrier* barrier, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}
DEVICE void tile_store(const TensorMap& map, const void* from, u32 x, u32 y, u32 z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
DEVICE void fence_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void commit_stores() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int LEFT>
DEVICE void wait_stores() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
}

DEVICE void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
template <u32 N, bool A_MN, bool B_MN>
DEVICE void multiply(float (&d)[N / 2], u64 a, u64 b, u32 add) {
    MultiplyAdd<N>::template run<A_MN, B_MN>(d, a, b, add);
}
DEVICE void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
template <u32 COUNT>
DEVICE void settle(float (&d)[COUNT]) {
    UNROLL
    for (u32 i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

template <int COUNT>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#else
#include "hopper_host.hpp"
#endif
