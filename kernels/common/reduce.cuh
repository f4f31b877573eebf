// Sums and maxima over a warp and a block. The order of the additions depends on nothing but the
// number of threads, so the bits are the same whenever and wherever a block runs.
#pragma once
#include "cuda.cuh"

struct Add {
    FUNCTOR float operator()(float a, float b) const { return a + b; }
};

/// The larger one; NaN if there is one.
struct Max {
    FUNCTOR float operator()(float a, float b) const { return a != a || a > b ? a : b; }
};

/// The smaller one; NaN if there is one.
struct Min {
    FUNCTOR float operator()(float a, float b) const { return a != a || a < b ? a : b; }
};

/// Over groups of `LANES` neighbouring lanes; every lane gets the result.
template <int LANES = 32, class F>
DEVICE float warp_all(float x, F f) {
    UNROLL
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, x, distance);
        // The lower lane's value first: both lanes compute the same bits, NaN payloads too.
        x = lane_id() & u32(distance) ? f(other, x) : f(x, other);
    }
    return x;
}

/// Over all threads of a block of full warps; every thread gets the result. `partials` is shared memory for 32.
/// The barriers at both ends make it safe to call in a row with the same memory.
template <class F>
DEVICE float block_all(float x, float* partials, float none, F f) {
    x = warp_all(x, f);
    u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane_id() == 0) partials[warp] = x;
    __syncthreads();
    x = lane_id() < warps ? partials[lane_id()] : none;
    return warp_all(x, f);
}
