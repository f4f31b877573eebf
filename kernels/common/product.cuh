// What all products of `gemm*.cu` have in common: which tile a block computes, the ring of operands in shared memory, and
// the way of the sums to global memory. How tiles are multiplied is the part of an engine: `mma.cuh`, `fma.cuh`.
#pragma once
#include "epilogue.cuh"
#include "tile.cuh"
#include "update.cuh"

/// Stages of the ring. Before Ampere there are no asynchronous copies, and less shared memory.
#ifdef BEFORE_AMPERE
constexpr u32 STAGES = 2;
#else
constexpr u32 STAGES = 3;
#endif

struct Gemm {
    const void *a, *b;
    float* partials;
    u32 m, n, k, lda, ldb, k_per_split, splits, batches;
    Epilogue epilogue;
};

/// The side of k that is in shared memory at once, by the tile and the size of an element.
template <u32 TILE, u32 SIZE>
constexpr u32 DEPTH_OF = TILE == 32 ? 64 : TILE == 128 && SIZE == 4 ? 16 : 32;
/// Elements of one operand in a stage, padding included. `src/ops/matmul/cuda.rs` counts the same for f32.
template <u32 TILE, u32 DEPTH, u32 SIZE>
constexpr u32 PART_OF = TILE > DEPTH || SIZE == 4 ? TILE * (DEPTH + 8) : DEPTH * (TILE + 8);

/// An operand's part of the ring: TILE places of m or n by DEPTH of k, in shared memory as it lies in global memory, with
/// PAD elements between its rows. Copies are asynchronous, of 16 bytes where all rows begin at multiples of 16.
template <class T, bool K_ALONG, u32 TILE, u32 DEPTH, u32 THREADS, u32 PAD>
struct Operand {
    static constexpr u32 ROWS = K_ALONG ? TILE : DEPTH, COLUMNS = K_ALONG ? DEPTH : TILE, STRIDE = COLUMNS + PAD;
    static constexpr u32 WIDTH = 16 / sizeof(T);
    static_assert(ROWS * COLUMNS % (THREADS * WIDTH) == 0, "each thread copies as much");
    static_assert(ROWS * STRIDE <= PART_OF<TILE, DEPTH, sizeof(T)>, "there is room");
    const T* data;
    u32 stride, first, end, k_end;
    bool aligned;

    /// Begins to fetch the part from `k` on; what is outside becomes zero.
    FUNCTOR void fetch(T* stage, u32 k) const {
        u32 row = K_ALONG ? first : k, rows = K_ALONG ? end : k_end;
        u32 column = K_ALONG ? k : first, columns = K_ALONG ? k_end : end;
        if (aligned) {
            UNROLL
            for (u32 i = threadIdx.x; i < ROWS * COLUMNS / WIDTH; i += THREADS) {
                u32 r = i / (COLUMNS / WIDTH), c = i % (COLUMNS / WIDTH) * WIDTH;
                bool inside = row + r < rows && column + c < columns;
                u32 left = columns - (column + c), count = !inside ? 0 : left < WIDTH ? left : WIDTH;
                const T* from = inside ? data + u64(row + r) * stride + (column + c) : data;
                copy_async(stage + r * STRIDE + c, from, count * u32(sizeof(T)));
            }
        } else {
            ROLLED
            for (u32 i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
                u32 r = i / COLUMNS, c = i % COLUMNS;
                bool inside = row + r < rows && column + c < columns;
                copy_one(stage + r * STRIDE + c, inside ? data + u64(row + r) * stride + (column + c) : data, inside);
            }
        }
    }
};

/// The tile of a block. Blocks that run at the same time share rows and columns: 8 tiles of a column, then the next one.
struct Tile {
    u32 batch, split, row, column;
};
template <u32 TILE>
DEVICE Tile tile_of(const Gemm& g) {
    constexpr u32 GROUP = 8;
    u32 rows = (g.m + TILE - 1) / TILE, columns = (g.n + TILE - 1) / TILE, tiles = rows * columns;
    u32 product = blockIdx.x / tiles, i = blockIdx.x % tiles;
    u32 first = i / (GROUP * columns) * GROUP, here = rows - first < GROUP ? rows - first : GROUP;
    i %= GROUP * columns;
    return {product / g.splits, product % g.splits, (first + i % here) * TILE, i / here * TILE};
}

/// Sums to where they belong: one, or four neighbours of a row, the first one element `i` of the result.
struct Finish {
    /// Whether there may be several matrices, and parts of a sum.
    static constexpr bool SEVERAL = true;
    const Gemm& g;
    FUNCTOR Finish(const Gemm& g) : g(g) {}
    FUNCTOR void prepare(const Tile&, u32) {}
    /// Before the first ones; whether they come in fours.
    FUNCTOR bool begin() { return in_fours(g.epilogue, g.n); }
    FUNCTOR void operator()(Four sums, u64 i, u32 column, bool four) {
        if (four) {
            finish_four(g.epilogue, sums, i, column);
        } else {
            finish(g.epilogue, sums.x[0], i, column);
        }
    }
    FUNCTOR void end() {}
};

/// The same into the update of a weight.
struct Step {
    static constexpr bool SEVERAL = false;
    const Gemm& g;
    const Update& u;
    Coefficients c;
    UpdateSums sums;
    FUNCTOR Step(const Gemm& g, const Update& u) : g(g), u(u) {}
    /// While the product is computed, what the update reads comes from memory: a line at a time.
    FUNCTOR void prepare(const Tile& at, u32 tile) {
        u32 lines = tile / 32;
        for (u32 i = threadIdx.x; i < tile * lines; i += blockDim.x) {
            u32 row = at.row + i / lines, column = at.column + i % lines * 32;
            if (row >= g.m || column >= g.n) continue;
            u64 element = u64(row) * g.n + column;
            prefetch(u.weights + element);
            if (u.first) prefetch(u.first + element);
            if (u.second) prefetch(u.second + element);
        }
    }
    /// After the product: what it sets would lack registers there.
    FUNCTOR bool begin() {
        c = coefficients(u, u.segments[0], u.rule == RULE_ADAMW);
        sums = {0, 0, 0};
        return in_fours(u, g.n);
    }
    FUNCTOR void operator()(Four gradient, u64 i, u32, bool four) {
        update_by_rule(u, c, sums, gradient, i, four ? 4 : 1, four);
    }
    FUNCTOR void end() { leave_sums(u, sums); }
};

/// A block's tile, or part `split` of its sum, by an engine.
template <class Engine, class Output>
DEVICE void gemm(const Gemm& g, Output output) {
    using T = typename Engine::Type;
    constexpr u32 TILE = Engine::TILE, DEPTH = Engine::DEPTH, PART = PART_OF<TILE, DEPTH, sizeof(T)>;
    DYNAMIC_SHARED(T, ring);
    Tile tile = tile_of<TILE>(g);
    if (!Output::SEVERAL) tile.batch = tile.split = 0;
    bool is_part = Output::SEVERAL && g.partials;
    u32 k_begin = tile.split * g.k_per_split;
    u32 k_end = is_part && g.k - k_begin > g.k_per_split ? k_begin + g.k_per_split : g.k;
    const T *a_data = (const T*)g.a + u64(tile.batch) * (Engine::A_ALONG ? g.m : g.k) * g.lda,
            *b_data = (const T*)g.b + u64(tile.batch) * (Engine::B_ALONG ? g.n : g.k) * g.ldb;
    typename Engine::A a{a_data, g.lda, tile.row, g.m, k_end, u64(a_data) % 16 == 0 && g.lda % Engine::A::WIDTH == 0};
    typename Engine::B b{b_data, g.ldb, tile.column, g.n, k_end, u64(b_data) % 16 == 0 && g.ldb % Engine::B::WIDTH == 0};
    auto stage_of = [&](u32 step) { return ring + step % STAGES * (2 * PART); };

    if (!is_part) output.prepare(tile, TILE);
    Engine engine;
    u32 steps = (k_end - k_begin + DEPTH - 1) / DEPTH;
    for (u32 step = 0; step < STAGES - 1; step++) {
        if (step < steps) {
            T* stage = stage_of(step);
            a.fetch(stage, k_begin + step * DEPTH);
            b.fetch(stage + PART, k_begin + step * DEPTH);
        }
        commit_copies();
    }
    ROLLED
    for (u32 step = 0; step < steps; step++) {
        // This step's part has landed for all threads, and all are done with the stage that is filled next.
        wait_copies<int(STAGES) - 2>();
        __syncthreads();
        u32 ahead = step + STAGES - 1;
        if (ahead < steps) {
            T* next = stage_of(ahead);
            a.fetch(next, k_begin + ahead * DEPTH);
            b.fetch(next + PART, k_begin + ahead * DEPTH);
        }
        commit_copies();
        const T* stage = stage_of(step);
        engine.multiply(stage, stage + PART);
    }
    // By way of shared memory: whole rows are written, and the sums of groups are added in order. All of a tile at once,
    // which frees its registers for the epilogue, where there is room for it.
    constexpr u32 PASS = STAGES == 2 && TILE > 32 ? TILE / 2 : TILE, STRIDE = TILE + 8;
    float* sums = (float*)ring;
    u64 batch = u64(tile.batch) * g.m * g.n, size = u64(g.batches) * g.m * g.n;
    bool four = output.begin();
    if (is_part) four = g.n % 4 == 0;
    u32 width = four ? 4 : 1;
    ROLLED
    for (u32 first = 0; first < TILE; first += PASS) {
        // All are done with what lies there, and no copy is under way.
        wait_copies<0>();
        __syncthreads();
        engine.template put<PASS, STRIDE>(sums, first);
        __syncthreads();
        ROLLED
        for (u32 i = threadIdx.x * width; i < PASS * TILE; i += Engine::THREADS * width) {
            u32 r = i / TILE, c = i % TILE, row = tile.row + first + r, column = tile.column + c;
            if (row >= g.m || column >= g.n) continue;
            Four sum = load_part(sums + r * STRIDE + c, width, four);
            UNROLL
            for (u32 group = 1; group < Engine::GROUPS; group++) {
                Four more = load_part(sums + (group * PASS + r) * STRIDE + c, width, four);
                UNROLL
                for (u32 j = 0; j < 4; j++) sum.x[j] += more.x[j];
            }
            u64 at = batch + u64(row) * g.n + column;
            if (is_part) {
                store_part(g.partials + tile.split * size + at, sum, width, four);
            } else {
                output(sum, at, column, four);
            }
        }
    }
    if (!is_part) output.end();
}
