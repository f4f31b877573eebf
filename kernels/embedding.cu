// y[r][:] = table[indices[r]][:], NaN where the index is `rows` or more. Contract: src/ops/embedding. f32; table: rows x
// columns, y: n elements in rows of `columns`.
//
// Launch: blocks of 256, grid = ceil(n / 1024): a thread takes four elements at once where the columns are a multiple of
// four and addresses are aligned, else four that lie 256 apart.
//
// Target: compute_75
// Registers: 40
#include "common/index.cuh"
#include "common/vector.cuh"

KERNEL(embedding_f32, 256, (const float* table, const u32* indices, float* y, u64 n, u32 rows, u32 columns)) {
    u64 first = u64(blockIdx.x) * 1024;
    if (columns % 4 == 0 && aligned_for_four(table) && aligned_for_four(y)) {
        u64 i = first + threadIdx.x * 4;
        if (i >= n) return;
        u64 r = divide(i, columns);
        u32 index = indices[r];
        float none = nan_value();
        Four v = {{none, none, none, none}};
        if (index < rows) v = load_four(table + u64(index) * columns + (i - r * columns));
        store_four(y + i, v);
    } else {
        for (u32 j = 0; j < 4; j++) {
            u64 i = first + j * 256 + threadIdx.x;
            if (i >= n) return;
            u64 r = divide(i, columns);
            u32 index = indices[r];
            y[i] = index < rows ? table[u64(index) * columns + (i - r * columns)] : nan_value();
        }
    }
}
