// Softmax and cross-entropy of rows that the registers of one block do not hold, with labels: the blocks of a cluster have a row in
// their shared memory. See common/cross_entropy.cuh. Logits are read once, however many there are. With 13 times 8192 bytes of
// shared memory at most, two blocks share a multiprocessor of an H100: one computes while the other waits for memory.
//
// Target: compute_90
// Registers: 64
#include "common/cluster_rows.cuh"
#include "common/cross_entropy.cuh"

/// A thread's groups in shared memory, those of neighbours side by side.
template <class Team>
struct InShared {
    static constexpr u32 STRIDE = Team::THREADS * 4;

    FUNCTOR float* mine() const {
        DYNAMIC_SHARED(float, slice);
        return slice + threadIdx.x * 4;
    }
    template <class P, class T, class F>
    FUNCTOR void fill(const P& places, const T* from, F f) {
        float* to = mine();
        bool fours = places.by_four(from);
        // Four loads before anything waits for one.
        for (u32 first = 0; first < places.groups(); first += 4) {
            Four v[4];
            UNROLL
            for (u32 i = 0; i < 4; i++) v[i] = places.read(from, fours, first + i, -infinity());
            UNROLL
            for (u32 i = 0; i < 4; i++) {
                if (first + i >= places.groups()) break;
                store_four(to + (first + i) * STRIDE, v[i]);
                f(v[i], first + i);
            }
        }
    }
    template <class P, class T, class Again, class F>
    FUNCTOR void each(const P& places, const T*, Again, F f) {
        float* at = mine();
        for (u32 g = 0; g < places.groups(); g++) {
            Four v = load_four(at + g * STRIDE);
            f(v, g);
            store_four(at + g * STRIDE, v);
        }
    }
};

#define CLUSTER(type, T, blocks) \
    KERNEL_RESIDENT(softmax_cross_entropy_##type##_labels_cluster_##blocks, 512, 2, \
                    (const T* logits, const u32* labels, float smoothing, T* dlogits, float* per_row, float4* results, \
                     u32 rows, u32 total_rows, u32 count)) { \
        typedef Cluster<512, blocks> Team; \
        cross_entropy<Team, InShared<Team>>(logits, Labels{labels, smoothing}, dlogits, per_row, results, rows, total_rows, \
                                            count); \
    }
#define FORMS(type, T) CLUSTER(type, T, 1) CLUSTER(type, T, 2) CLUSTER(type, T, 4) CLUSTER(type, T, 8)
FORMS(f32, float)
FORMS(bf16, bf16)
