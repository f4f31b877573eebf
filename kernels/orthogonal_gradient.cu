// The part of each gradient that is orthogonal to its weights, as long as the whole was:
// h = g - (g.w / w.w) w, g = h sqrt(g.g / h.h). Contract: src/ops/orthogonal_gradient. w, g: f32 [P].
//
// The flat region is cut into pieces of one segment each as for the update, at most 4096 elements. All launch blocks of 256.
// orthogonal_gradient_sums: block i leaves g.g, w.w, g.w of piece i in sums[i]; grid = pieces.
// orthogonal_gradient_finish: a warp adds the pieces first_piece[s] .. first_piece[s + 1] of segment s, in f64 and a fixed
//   order, and leaves in projections[s] by what h is scaled and how much of w is taken away; grid = ceil(segments / 8).
// orthogonal_gradient_project: block i projects piece i; grid = pieces.
//
// Target: compute_75
// Registers: 64
#include "common/update.cuh"

/// Does `f` for each group of up to four elements of a piece: its first element, how many, and whether in one access.
template <class F>
DEVICE void each_four(const Piece& piece, F& f) {
    bool aligned = aligned_for_four(f.w) && aligned_for_four(f.g);
    u64 end = piece.start + piece.count;
    // Groups of four lie at multiples of four, whatever the piece begins with.
    for (u64 i = piece.start / 4 * 4 + threadIdx.x * 4; i < end; i += 1024) {
        u64 first = i < piece.start ? piece.start : i, last = i + 4 < end ? i + 4 : end;
        f(first, u32(last - first), aligned && last - first == 4);
    }
}

struct AddProducts {
    const float *w, *g;
    UpdateSums sums;
    FUNCTOR void operator()(u64 i, u32 count, bool wide) {
        Four a = load_part(g + i, count, wide), b = load_part(w + i, count, wide);
        UNROLL
        for (int j = 0; j < 4; j++) {
            sums.gg = fmaf(a.x[j], a.x[j], sums.gg);
            sums.ww = fmaf(b.x[j], b.x[j], sums.ww);
            sums.gw = fmaf(a.x[j], b.x[j], sums.gw);
        }
    }
};

struct Project {
    const float* w;
    float* g;
    float scale, along;
    FUNCTOR void operator()(u64 i, u32 count, bool wide) {
        Four a = load_part((const float*)g + i, count, wide), b = load_part(w + i, count, wide);
        UNROLL
        for (int j = 0; j < 4; j++) a.x[j] = scale * fmaf(-along, b.x[j], a.x[j]);
        store_part(g + i, a, count, wide);
    }
};

KERNEL(orthogonal_gradient_sums, 256, (const float* w, const float* g, const Piece* pieces, float* sums)) {
    SHARED(float, shared, [32]);
    AddProducts add{w, g, {0, 0, 0}};
    each_four(pieces[blockIdx.x], add);
    float gg = block_all(add.sums.gg, shared, 0, Add());
    float ww = block_all(add.sums.ww, shared, 0, Add());
    float gw = block_all(add.sums.gw, shared, 0, Add());
    if (threadIdx.x == 0) {
        float* to = sums + u64(blockIdx.x) * 3;
        to[0] = gg;
        to[1] = ww;
        to[2] = gw;
    }
}

KERNEL(orthogonal_gradient_finish, 256, (const float* sums, const u32* first_piece, float* projections, u32 segments)) {
    u32 segment = blockIdx.x * 8 + threadIdx.x / 32;
    bool there = segment < segments;
    u32 begin = there ? first_piece[segment] : 0, end = there ? first_piece[segment + 1] : 0;
    double total[3];
    UNROLL
    for (int which = 0; which < 3; which++) {
        double sum = 0;
        for (u32 piece = begin + lane_id(); piece < end; piece += 32) sum += double(sums[u64(piece) * 3 + which]);
        UNROLL
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        total[which] = sum;
    }
    if (!there || lane_id() != 0) return;
    double gg = total[0], ww = total[1], gw = total[2];
    double left = ww == 0 ? 0 : gg - gw * gw / ww;
    projections[segment * 2] = left > 1e-4 * gg ? float(sqrt(gg / left)) : 1.0f;
    projections[segment * 2 + 1] = ww == 0 ? 0.0f : float(gw / ww);
}

KERNEL(orthogonal_gradient_project, 256, (const float* w, float* g, const Piece* pieces, const float* projections)) {
    Piece piece = pieces[blockIdx.x];
    Project project{w, g, projections[u64(piece.segment) * 2], projections[u64(piece.segment) * 2 + 1]};
    each_four(piece, project);
}
