// Where an element of a row-major result lies in its operands. Counts are 64 bits wide; an axis has fewer than 2^32.
#pragma once
#include "cuda.cuh"

/// Axes that a kernel walks at most, once the caller has merged neighbours.
enum : u32 { AXES = 8 };

/// Axes of the result, the last one first, and the stride of each of N operands in elements, 0 where it repeats.
template <int N>
struct Axes {
    u32 extents[AXES];
    u64 strides[N][AXES];
    u32 count;
    /// Whether each 16 bytes of the result, from a multiple of 16 on, lie in one row, and are as many of each operand, from
    /// a multiple on too, or one that repeats.
    u32 wide;
};

/// Divides by an extent; most numbers fit into 32 bits, whose division takes a fifth of the time.
DEVICE u64 divide(u64 number, u32 by) {
    return number >> 32 ? number / by : u32(number) / by;
}

/// Element `i` of the result in each operand.
template <int N>
DEVICE void locate(const Axes<N>& axes, u64 i, u64 (&at)[N]) {
    UNROLL
    for (int n = 0; n < N; n++) at[n] = 0;
    UNROLL
    for (u32 axis = 0; axis < AXES; axis++) {
        if (axis >= axes.count) break;
        u64 outer = divide(i, axes.extents[axis]);
        u32 place = u32(i - outer * axes.extents[axis]);
        UNROLL
        for (int n = 0; n < N; n++) at[n] += place * axes.strides[n][axis];
        i = outer;
    }
}
