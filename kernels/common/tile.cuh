// Functions of a warp on small tiles: products on tensor cores, loads of fragments, asynchronous copies. On the host
// they have a plain body, in which the lanes of a warp meet.
#pragma once
#include "cuda.cuh"

// d += a b for a 16 x 16 tile a, 16 x 8 tile b (bf16) and 16 x 8 tile d (f32), as mma.sync.m16n8k16 has it. With g = lane / 4
// and t = lane % 4, a lane holds, two bf16 to a register, lower index in the lower half:
//   a: rows g, g + 8, g, g + 8; columns 2t, 2t + 1 in the first two registers, 2t + 8, 2t + 9 in the others
//   b: column g; rows 2t, 2t + 1 and 2t + 8, 2t + 9
//   d: row g, columns 2t, 2t + 1; row g + 8, the same columns
// The device adds 16 products with its own rounding (at least f32 with truncation); the host rounds once.

// load_fragments: four 8 x 8 matrices of bf16 from shared memory. Lane l names row l % 8 of matrix l / 8, 16 bytes at an
// aligned address; register i gets, in lane l, elements 2 (l % 4) and the next of row l / 4 of matrix i; with TRANSPOSED
// those of column l / 4.

// copy_async: 16 bytes from global to shared memory, both aligned to 16; only the first `bytes` are read, the rest is zero.
// copy_one: one element, or zero where there is none; of f32 asynchronous, at any address of an f32.
// commit_copies closes a group; wait_copies<N> waits until at most the N newest groups are under way, for this thread's own.
// Before Ampere all of them copy at once.

// prefetch: brings the line of an address into L2.

#ifdef __CUDACC__

DEVICE void multiply_tile(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <bool TRANSPOSED>
DEVICE void load_fragments(u32 (&r)[4], const bf16* row) {
    u32 address = u32(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800

DEVICE void copy_async(void* shared, const void* global, u32 bytes) {
    uint4 all = make_uint4(0, 0, 0, 0);
    if (bytes == 16) {
        all = *(const uint4*)global;
    } else {
        const u32* from = (const u32*)global;
        if (bytes > 0) all.x = from[0];
        if (bytes > 4) all.y = from[1];
        if (bytes > 8) all.z = from[2];
    }
    *(uint4*)shared = all;
}
DEVICE void copy_one(float* shared, const float* global, bool there) {
    *shared = there ? *global : 0.0f;
}
DEVICE void commit_copies() {}
template <int LEFT>
DEVICE void wait_copies() {}

#else

DEVICE void copy_async(void* shared, const void* global, u32 bytes) {
    u32 address = u32(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
DEVICE void copy_one(float* shared, const float* global, bool there) {
    u32 address = u32(__cvta_generic_to_shared(shared)), bytes = there ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
DEVICE void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT>
DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif

DEVICE void prefetch(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

#else

struct TilePost {
    const u32 *a, *b;
    float* d;
};

inline void multiply_tile(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                          standin_place place = standin_place::current()) {
    TilePost post{a, b, d};
    meet(ALL_LANES, post, "multiply_tile", place, [](TilePost** posts) {
        float a[16][16], b[16][8];
        for (u32 lane = 0; lane < 32; lane++) {
            u32 g = lane / 4, t = lane % 4;
            for (u32 i = 0; i < 4; i++) {
                u32 row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
                a[row][column] = low_bf16(posts[lane]->a[i]);
                a[row][column + 1] = high_bf16(posts[lane]->a[i]);
            }
            for (u32 i = 0; i < 2; i++) {
                b[2 * t + i * 8][g] = low_bf16(posts[lane]->b[i]);
                b[2 * t + 1 + i * 8][g] = high_bf16(posts[lane]->b[i]);
            }
        }
        for (u32 lane = 0; lane < 32; lane++) {
            for (u32 i = 0; i < 4; i++) {
                u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                double sum = posts[lane]->d[i];
                for (u32 k = 0; k < 16; k++) sum += double(a[row][k]) * double(b[k][column]);
                posts[lane]->d[i] = float(sum);
            }
        }
    });
}

struct FragmentPost {
    const bf16* row;
    u32* r;
};

template <bool TRANSPOSED>
inline void load_fragments(u32 (&r)[4], const bf16* row, standin_place place = standin_place::current()) {
    if (u64(row) % 16) standin::trap("a misaligned row of a fragment", place);
    FragmentPost post{row, r};
    meet(ALL_LANES, post, "load_fragments", place, [](FragmentPost** posts) {
        for (u32 lane = 0; lane < 32; lane++) {
            for (u32 i = 0; i < 4; i++) {
                u32 two[2];
                for (u32 j = 0; j < 2; j++) {
                    u32 row = TRANSPOSED ? lane % 4 * 2 + j : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + j;
                    two[j] = posts[i * 8 + row]->row[column].bits;
                }
                posts[lane]->r[i] = two[0] | two[1] << 16;
            }
        }
    });
}

inline void copy_async(void* shared, const void* global, u32 bytes, standin_place place = standin_place::current()) {
    if (u64(shared) % 16 || u64(global) % 16) standin::trap("a misaligned asynchronous copy", place);
    standin::copy_async(shared, global, bytes, 16 - bytes);
}
inline void copy_one(float* shared, const float* global, bool there) {
    standin::copy_async(shared, global, there ? 4 : 0, there ? 0 : 4);
}
inline void commit_copies() {
    standin::copy_commit();
}
template <int LEFT>
inline void wait_copies() {
    standin::copy_wait(LEFT);
}

inline void prefetch(const void*) {}

#endif

DEVICE void copy_one(bf16* shared, const bf16* global, bool there) {
    *shared = there ? *global : bf16{0};
}
