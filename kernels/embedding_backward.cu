// dtable[v][:] = sum of dy[r][:] over the r with indices[r] = v, in the order of r. Contract: src/ops/embedding_backward.
// dy: f32 count x columns; indices: u32 [count]; dtable: f32 rows x columns.
//
// A block has a tile of 64 rows and 128 columns of the table in shared memory, and looks at a part of the indices, 1024 at a
// time: those of its rows are listed in order, and each warp adds the rows of dy that belong to its 8 rows of the tile. So no
// two threads write one element, and the order of every sum follows from the indices and the shapes. Each element of dy is
// read once, each of the table written once; the indices are read by every block, 4 bytes for 512 bytes of dy.
//
// Launch: blocks of 256, grid = (ceil(rows / 64) * ceil(columns / 128), parts, 1). Block y takes indices y * per_part .. and
// writes to dtable[y]; with several parts that is scratch, which column_sum_f32 of activation_backward adds in order.
// per_part is a multiple of 4.
//
// Target: compute_75
// Registers: 80
#include "common/vector.cuh"

enum : u32 { TILE_ROWS = 64, TILE_COLUMNS = 128, LOOK = 1024, AHEAD = 8 };

KERNEL(embedding_backward_f32, 256,
       (const float* dy, const u32* indices, float* dtable, u32 rows, u32 columns, u32 count, u32 per_part)) {
    SHARED(float, tile, [TILE_ROWS][TILE_COLUMNS]);
    // Place among those looked at, and row of the tile.
    SHARED(u32, list, [LOOK]);
    SHARED(u32, hits, [8]);
    u32 across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    u32 column = blockIdx.x % across * TILE_COLUMNS, row = blockIdx.x / across * TILE_ROWS;
    u32 warp = threadIdx.x / 32, lane = lane_id();
    u64 begin = u64(blockIdx.y) * per_part, end = begin + per_part < count ? begin + per_part : count;
    // A lane's four columns: neighbours where they can be read at once, else 32 apart.
    bool wide = columns % 4 == 0 && aligned_for_four(dy) && aligned_for_four(dtable);
    u32 mine = wide ? lane * 4 : lane, step = wide ? 1 : 32;
    u32 left = columns - column < TILE_COLUMNS ? columns - column : TILE_COLUMNS;
    auto fetch = [&](u64 r) {
        Four v = {{0, 0, 0, 0}};
        const float* from = dy + r * columns + column + mine;
        if (wide) {
            if (mine < left) v = load_four(from);
        } else {
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                if (mine + j * 32 < left) v.x[j] = from[j * 32];
            }
        }
        return v;
    };
    for (u32 r = warp; r < TILE_ROWS; r += 8) {
        UNROLL
        for (u32 j = 0; j < 4; j++) tile[r][mine + j * step] = 0;
    }
    for (u64 start = begin; start < end; start += LOOK) {
        // Four indices a thread, in order; which of them are in the tile.
        u64 i = start + threadIdx.x * 4;
        u32 within[4], found = 0;
        uint4 four = make_uint4(~0u, ~0u, ~0u, ~0u);
        if (i + 4 <= end && aligned_for_four(indices)) {
            four = load((const uint4*)(indices + i));
        } else {
            if (i < end) four.x = indices[i];
            if (i + 1 < end) four.y = indices[i + 1];
            if (i + 2 < end) four.z = indices[i + 2];
            if (i + 3 < end) four.w = indices[i + 3];
        }
        u32 looked[4] = {four.x, four.y, four.z, four.w};
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            u32 index = looked[j];
            within[j] = index < rows ? index - row : TILE_ROWS;
            found += within[j] < TILE_ROWS;
        }
        u32 before = found;
        UNROLL
        for (u32 distance = 1; distance < 32; distance *= 2) {
            u32 other = __shfl_up_sync(ALL_LANES, before, distance);
            if (lane >= distance) before += other;
        }
        // All are done with the list of the last look, and the warps' counts.
        __syncthreads();
        if (lane == 31) hits[warp] = before;
        __syncthreads();
        u32 at = before - found, total = 0;
        UNROLL
        for (u32 w = 0; w < 8; w++) {
            if (w < warp) at += hits[w];
            total += hits[w];
        }
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            if (within[j] < TILE_ROWS) list[at++] = (threadIdx.x * 4 + j) * TILE_ROWS + within[j];
        }
        __syncthreads();
        // Each warp takes those of its own rows, some ahead so that loads do not wait for each other.
        for (u32 first = 0; first < total; first += 32) {
            u32 entry = first + lane < total ? list[first + lane] : warp + 1;
            u32 own = __ballot_sync(ALL_LANES, entry % 8 == warp);
            while (own) {
                Four v[AHEAD];
                u32 to[AHEAD];
                UNROLL
                for (u32 k = 0; k < AHEAD; k++) {
                    if (!own) {
                        to[k] = TILE_ROWS;
                        continue;
                    }
                    u32 hit = list[first + u32(__ffs(int(own))) - 1];
                    own &= own - 1;
                    to[k] = hit % TILE_ROWS;
                    v[k] = fetch(start + hit / TILE_ROWS);
                }
                UNROLL
                for (u32 k = 0; k < AHEAD; k++) {
                    if (to[k] == TILE_ROWS) continue;
                    UNROLL
                    for (u32 j = 0; j < 4; j++) tile[to[k]][mine + j * step] += v[k].x[j];
                }
            }
        }
    }
    // Each warp writes its own rows, which no other one touched.
    float* out = dtable + (u64(blockIdx.y) * rows + row) * columns + column;
    for (u32 r = warp; r < TILE_ROWS && row + r < rows; r += 8) {
        float* line = out + u64(r) * columns;
        if (wide) {
            if (mine < left) store_four(line + mine, {{tile[r][mine], tile[r][mine + 1], tile[r][mine + 2], tile[r][mine + 3]}});
        } else {
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                if (mine + j * 32 < left) line[mine + j * 32] = tile[r][mine + j * 32];
            }
        }
    }
}
