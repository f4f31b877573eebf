// Softmax and cross-entropy of rows that the registers of one block do not hold, with labels: a cluster a row. See
// common/cross_entropy.cuh. Blocks of 512, so that a thread may have 128 registers.
//
// Target: compute_90
// Registers: 128
#include "common/cluster_rows.cuh"
#include "common/cross_entropy.cuh"

// A comma would be read as the macro's.
using ClusterOf4 = Cluster<512, 4>;
using ClusterOf8 = Cluster<512, 8>;

#define FORMS(type, T) \
    CROSS_ENTROPY_LABELS(type, T, cluster_4, 512, 1, ClusterOf4, 7, false) \
    CROSS_ENTROPY_LABELS(type, T, cluster_8, 512, 1, ClusterOf8, 7, true)
FORMS(f32, float)
FORMS(bf16, bf16)
