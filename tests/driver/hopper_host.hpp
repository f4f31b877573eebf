// The host's bodies of kernels/common/hopper.cuh.
#pragma once

#include "cuda_host.hpp"

using TensorMap = standin::TensorMap;
#define TENSOR_MAP(name) const TensorMap name

inline u32 shared_address(const void* shared, standin_place place = standin_place::current()) {
    return standin::shared_address(shared, place);
}

inline void mbarrier_init(Mbarrier* barrier, u32 count, standin_place place = standin_place::current()) {
    standin::mbarrier_init(barrier, count, place);
}
inline void mbarrier_ready() {}
inline void mbarrier_arrive(Mbarrier* barrier, u32 rank, standin_place place = standin_place::current()) {
    standin::mbarrier_arrive(of_block(barrier, rank, place), 0, place);
}
inline void mbarrier_expect(Mbarrier* barrier, u32 bytes, standin_place place = standin_place::current()) {
    standin::mbarrier_arrive(barrier, bytes, place);
}
inline void mbarrier_wait(Mbarrier* barrier, u32 parity, standin_place place = standin_place::current()) {
    standin::mbarrier_wait(barrier, parity, place);
}

inline void tile_load(void* to, const TensorMap& map, u32 x, u32 y, Mbarrier* barrier,
                      standin_place place = standin_place::current()) {
    standin::tile_load(to, map, {x, y, 0}, barrier, 1u << cluster_rank(), place);
}
inline void tile_load(void* to, const TensorMap& map, u32 x, u32 y, Mbarrier* barrier, u16 blocks,
                      standin_place place = standin_place::current()) {
    standin::tile_load(to, map, {x, y, 0}, barrier, blocks, place);
}
inline void tile_store(const TensorMap& map, const void* from, u32 x, u32 y, u32 z,
                       standin_place place = standin_place::current()) {
    standin::tile_store(map, from, {x, y, z}, place);
}
inline void fence_shared() {}
inline void commit_stores() {
    standin::commit_stores();
}
template <int LEFT>
inline void wait_stores() {
    standin::wait_stores(LEFT);
}

inline void products_begin(standin_place place = standin_place::current()) {
    __syncwarp(ALL_LANES, place);
}

struct ProductPost {
    u64 a, b;
    u32 add;
};

template <u32 N, bool A_MN, bool B_MN>
inline void multiply(float (&d)[N / 2], u64 a, u64 b, u32 add, standin_place place = standin_place::current()) {
    ProductPost post{a, b, add};
    meet(ALL_LANES, post, "multiply", place, [place](ProductPost** posts) {
        for (u32 lane = 1; lane < 32; lane++) {
            bool same = posts[lane]->a == posts[0]->a && posts[lane]->b == posts[0]->b && posts[lane]->add == posts[0]->add;
            if (!same) standin::trap("a product whose operands differ within a warp", place);
        }
    });
    standin::multiply({a, b, d, N, A_MN, B_MN, add != 0}, place);
}
inline void products_commit() {
    standin::commit_products();
}
template <int LEFT>
inline void products_wait(standin_place place = standin_place::current()) {
    standin::wait_products(LEFT);
    // The lanes of a warp multiply together: all are done, or none.
    __syncwarp(ALL_LANES, place);
}
template <u32 COUNT>
inline void settle(float (&)[COUNT]) {}

template <int COUNT>
inline void take_registers() {}
template <int COUNT>
inline void give_registers() {}
