// Elements brought to other places, without arithmetic: for slice, pad and concat (rows of parts), broadcast and transpose
// (axes). Elements of 1, 2 or 4 bytes, by their bits. Contracts: src/ops/{slice,pad,concat,broadcast,transpose}.
// All address arithmetic is 64 bits wide.
//
// copy_parts_<bits>: y[r][first + c] from row r of the part whose columns c are, or zero; see `Parts`.
// copy_axes_<bits>: y[i] = x at the place of i; y dense.
//   Launch of both: blocks of 256; a block takes 4096 bytes of the result, a thread 16 of them in one access where `wide`
//   says so and addresses are aligned, else elements 256 apart, so that neighbours stay with neighbouring lanes.
//   grid = ceil(n / (4096 / size of an element)).
// copy_planes_<bits>: y[.., r, .., c] = x[.., c, .., r], with stride 1 of x along r and of y along c: planes turned in tiles
//   of 32 x 32 by way of shared memory, so that both sides move whole lines.
//   Launch: blocks of 256, grid = planes * ceil(rows / 32) * ceil(columns / 32).
//
// Target: compute_75
// Registers: 48
#include "common/index.cuh"

/// As many elements as 16 bytes hold.
template <class T>
struct Sixteen {
    static constexpr u32 COUNT = 16 / sizeof(T);
    static constexpr u32 BLOCK = 256 * COUNT;
};

enum : u32 { PARTS = 8 };

struct Part {
    /// Null for zeros; so are columns of no part.
    const void* x;
    /// Element of x in row 0, and how far rows are apart.
    u64 start, stride;
    /// Its first column, and the one after its last, among those of the launch.
    u64 begin, end;
};

struct Parts {
    Part parts[PARTS];
    /// Columns of the launch, of all of y, and the first one in y.
    u64 columns, y_stride, first;
    u32 count;
    /// Whether all parts and rows begin and end at multiples of 16 bytes from the bases.
    u32 wide;
};

DEVICE bool aligned_16(const void* address) {
    return u64(address) % 16 == 0;
}

/// Where element `i` of the launch goes, and where it comes from; null for zero.
template <class T>
DEVICE T* place_of(const Parts& parts, T* y, u64 i, const T*& from) {
    u64 row = (i | parts.columns) >> 32 ? i / parts.columns : u32(i) / u32(parts.columns);
    u64 column = i - row * parts.columns;
    from = nullptr;
    UNROLL
    for (u32 p = 0; p < PARTS; p++) {
        const Part& part = parts.parts[p];
        if (p < parts.count && part.x && column >= part.begin && column < part.end) {
            from = (const T*)part.x + part.start + row * part.stride + (column - part.begin);
        }
    }
    return y + row * parts.y_stride + parts.first + column;
}

template <class T>
DEVICE void copy_parts(const Parts& parts, T* y, u64 n) {
    constexpr u32 COUNT = Sixteen<T>::COUNT;
    bool wide = parts.wide && aligned_16(y);
    UNROLL
    for (u32 p = 0; p < PARTS; p++) wide = wide && (p >= parts.count || aligned_16(parts.parts[p].x));
    u64 first = u64(blockIdx.x) * Sixteen<T>::BLOCK;
    const T* from;
    if (wide) {
        u64 i = first + u64(threadIdx.x) * COUNT;
        if (i >= n) return;
        T* to = place_of(parts, y, i, from);
        store((uint4*)to, from ? load((const uint4*)from) : make_uint4(0, 0, 0, 0));
    } else {
        for (u32 j = 0; j < COUNT; j++) {
            u64 i = first + j * 256 + threadIdx.x;
            if (i >= n) return;
            T* to = place_of(parts, y, i, from);
            *to = from ? *from : T(0);
        }
    }
}

template <class T>
DEVICE void copy_axes(const T* x, T* y, u64 n, const Axes<1>& axes) {
    constexpr u32 COUNT = Sixteen<T>::COUNT;
    u64 first = u64(blockIdx.x) * Sixteen<T>::BLOCK, at[1];
    bool repeats = axes.strides[0][0] == 0;
    if (axes.wide && aligned_16(y) && (repeats || aligned_16(x))) {
        u64 i = first + u64(threadIdx.x) * COUNT;
        if (i >= n) return;
        locate(axes, i, at);
        if (repeats) {
            u32 word = x[at[0]];
            if (sizeof(T) == 1) word |= word << 8;
            if (sizeof(T) <= 2) word |= word << 16;
            store((uint4*)(y + i), make_uint4(word, word, word, word));
        } else {
            store((uint4*)(y + i), load((const uint4*)(x + at[0])));
        }
    } else {
        for (u32 j = 0; j < COUNT; j++) {
            u64 i = first + j * 256 + threadIdx.x;
            if (i >= n) return;
            locate(axes, i, at);
            y[i] = x[at[0]];
        }
    }
}

struct Planes {
    /// The other axes: strides of x and of y.
    Axes<2> others;
    u64 x_stride, y_stride;
    u32 rows, columns;
};

template <class T>
DEVICE void copy_planes(const T* x, T* y, const Planes& planes) {
    // A column more, so that a column of the tile lies in 32 banks.
    SHARED(T, tile, [32][33]);
    u32 across = (planes.columns + 31) / 32, down = (planes.rows + 31) / 32;
    u32 column = blockIdx.x % across * 32, row = blockIdx.x / across % down * 32;
    u64 at[2];
    locate(planes.others, blockIdx.x / across / down, at);
    x += at[0];
    y += at[1];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    UNROLL
    for (u32 j = 0; j < 32; j += 8) {
        u32 c = column + warp + j, r = row + lane;
        if (c < planes.columns && r < planes.rows) tile[warp + j][lane] = x[c * planes.x_stride + r];
    }
    __syncthreads();
    UNROLL
    for (u32 j = 0; j < 32; j += 8) {
        u32 r = row + warp + j, c = column + lane;
        if (c < planes.columns && r < planes.rows) y[r * planes.y_stride + c] = tile[lane][warp + j];
    }
}

#define COPY(bits, T) \
    KERNEL(copy_parts_##bits, 256, (Parts parts, T* y, u64 n)) { copy_parts(parts, y, n); } \
    KERNEL(copy_axes_##bits, 256, (const T* x, T* y, u64 n, Axes<1> axes)) { copy_axes(x, y, n, axes); } \
    KERNEL(copy_planes_##bits, 256, (const T* x, T* y, Planes planes)) { copy_planes(x, y, planes); }

COPY(8, u8)
COPY(16, u16)
COPY(32, u32)
