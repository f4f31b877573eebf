// Rows that are spread over teams of threads: some lanes of a warp, a block, or the blocks of a cluster. A thread holds GROUPS times four elements of
// its row in registers, so that the row is read once; what is beyond those (REST) is read again, from L1 or L2.
//
// Which elements are whose follows from the row's length alone, so the bits of sums do not depend on addresses: in rows of
// whole groups of four a thread has four neighbours, which are one access where the address allows; in others its elements
// lie beside those of the next thread, and are accessed one by one.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

/// Values that are summed at once, at most, and the floats of shared memory that a team asks for.
constexpr u32 TEAM_VALUES = 4;
constexpr u32 TEAM_PARTIALS = 32 * TEAM_VALUES + 2 * TEAM_VALUES;

/// `LANES` neighbouring lanes of a warp; a block has several teams.
template <u32 LANES>
struct Lanes {
    static constexpr u32 SIZE = LANES;
    float* partials;

    FUNCTOR u32 thread() const { return threadIdx.x % LANES; }
    /// Number of the team in the grid.
    FUNCTOR u32 number() const { return blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES; }

    /// Each value over the team; every thread gets the results.
    template <int N, class F>
    FUNCTOR void all(float (&x)[N], float, F f) const {
        UNROLL
        for (int i = 0; i < N; i++) x[i] = warp_all<int(LANES)>(x[i], f);
    }
    /// After the last `all`, and before a thread returns: of clusters.
    FUNCTOR void leave() const {}
    FUNCTOR void left() const {}
};

/// The threads of a block of full warps.
template <u32 THREADS>
struct Block {
    static constexpr u32 SIZE = THREADS;
    /// Shared memory: TEAM_PARTIALS.
    float* partials;

    FUNCTOR u32 thread() const { return threadIdx.x; }
    FUNCTOR u32 number() const { return blockIdx.x; }

    template <int N, class F>
    FUNCTOR void all(float (&x)[N], float none, F f) const {
        static_assert(N <= TEAM_VALUES, "they fit");
        UNROLL
        for (int i = 0; i < N; i++) x[i] = warp_all(x[i], f);
        // Whoever still reads what was there before.
        __syncthreads();
        if (lane_id() == 0) {
            UNROLL
            for (int i = 0; i < N; i++) partials[i * 32 + threadIdx.x / 32] = x[i];
        }
        __syncthreads();
        UNROLL
        for (int i = 0; i < N; i++) {
            x[i] = warp_all(lane_id() < THREADS / 32 ? partials[i * 32 + lane_id()] : none, f);
        }
    }
    FUNCTOR void leave() const {}
    FUNCTOR void left() const {}
};

/// One value over the team.
template <class Team, class F>
DEVICE float team_all(const Team& team, float x, float none, F f) {
    float one[1] = {x};
    team.all(one, none, f);
    return one[0];
}

/// The elements of a row that a thread of a team of `SIZE` has: element j of group g is element at(g, j) of the row.
template <u32 SIZE>
struct Places {
    u32 count, first, step;

    FUNCTOR u32 at(u32 group, u32 j) const { return first + group * SIZE * 4 + j * step; }
    FUNCTOR bool whole() const { return step == 1; }
    /// The thread that has element `c`.
    FUNCTOR u32 owner(u32 c) const { return (whole() ? c / 4 : c) % SIZE; }
    /// Groups of the longest thread.
    FUNCTOR u32 groups() const { return (count + SIZE * 4 - 1) / (SIZE * 4); }

    template <class T>
    FUNCTOR bool by_four(const T* row) const {
        return whole() && aligned_for_four(row);
    }

    /// A group, with `none` where the row has ended; `fours` as by_four says.
    template <class T>
    FUNCTOR Four read(const T* row, bool fours, u32 group, float none) const {
        Four v = {{none, none, none, none}};
        if (fours) {
            if (at(group, 0) < count) v = load_four(row + at(group, 0));
        } else {
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                if (at(group, j) < count) v.x[j] = to_float(row[at(group, j)]);
            }
        }
        return v;
    }
    template <class T>
    FUNCTOR void write(T* row, bool fours, u32 group, const Four& v) const {
        if (fours) {
            if (at(group, 0) < count) store_four(row + at(group, 0), v);
        } else {
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                if (at(group, j) < count) row[at(group, j)] = from_float<T>(v.x[j]);
            }
        }
    }

    /// The first groups, all loads before anything waits for one.
    template <int GROUPS, class T>
    FUNCTOR void read_all(Four (&v)[GROUPS], const T* row, float none) const {
        if (by_four(row)) {
            UNROLL
            for (int g = 0; g < GROUPS; g++) v[g] = read(row, true, u32(g), none);
        } else {
            UNROLL
            for (int g = 0; g < GROUPS; g++) v[g] = read(row, false, u32(g), none);
        }
    }
};

template <u32 SIZE>
DEVICE Places<SIZE> places_of_thread(u32 thread, u32 count) {
    bool whole = count % 4 == 0;
    return {count, whole ? thread * 4 : thread, whole ? 1 : SIZE};
}
template <class Team>
DEVICE Places<Team::SIZE> places_of(const Team& team, u32 count) {
    return places_of_thread<Team::SIZE>(team.thread(), count);
}

/// The row of a team. All lanes take part in sums, so teams past the end do the last row again and keep it to themselves.
struct TeamRow {
    u32 row;
    bool there;
};
template <class Team>
DEVICE TeamRow row_of(const Team& team, u32 rows) {
    u32 number = team.number();
    return {number < rows ? number : rows - 1, number < rows};
}
