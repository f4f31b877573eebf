// What kernels call: meetings of warps, barriers, shared memory, copies, clusters.
#include "state.hpp"

#include "memory.hpp"

#include <bit>
#include <cstdio>
#include <cstring>

namespace standin {

bool meet(u32 mask, void* post, const char* what, const Place& place) {
    Block& block = home();
    u32 lane = self->linear % WARP, warp_number = self->linear / WARP;
    Warp& warp = block.warps[warp_number];
    if (!(mask >> lane & 1)) fail(thread_name(*self) + " is not in the mask of its " + what);
    warp.posts[lane] = post;
    self->waits_for = what;
    self->place = place;
    self->mask = mask;
    warp.meeting |= 1u << lane;
    if ((warp.meeting & mask) != mask) {
        stop_running(*self);
        leave();
        return false;
    }
    for (u32 other = 0; other < WARP; other++) {
        if (!(mask >> other & 1)) continue;
        const Thread& thread = block.threads[warp_number * WARP + other];
        bool same = thread.mask == mask && thread.place.line() == place.line() && !strcmp(thread.waits_for, what);
        if (!same) fail("divergence in a warp: " + where(*self) + ", but " + where(thread));
    }
    return true;
}

void** posts() {
    return home().warps[self->linear / WARP].posts;
}

void part(u32 mask) {
    u32 warp = self->linear / WARP;
    Block& block = home();
    block.warps[warp].meeting &= ~mask;
    make_runnable(block, warp, mask);
    // Who came last goes on first only if it is its turn.
    if (machine->order.kind != Order::Forward) leave();
}

void barrier(u32 id, u32 threads, const char* what, const Place& place) {
    Block& block = home();
    if (id >= BARRIERS) fail("there is no barrier " + std::to_string(id));
    Barrier& barrier = block.barriers[id];
    u32 expected = threads ? threads : machine->count;
    self->waits_for = what;
    self->place = place;
    if (barrier.arrived == 0) {
        barrier.expected = expected;
    } else if (barrier.expected != expected) {
        fail(where(*self) + " with another number of threads than those before it");
    }
    barrier.waiting[self->linear / WARP] |= 1u << self->linear % WARP;
    if (++barrier.arrived < expected) {
        stop_running(*self);
        leave();
        return;
    }
    // In the whole block all must wait at the same line: else some are elsewhere.
    for (u32 w = 0; w < MAX_WARPS; w++) {
        for (u32 lanes = barrier.waiting[w]; lanes && !threads; lanes &= lanes - 1) {
            const Thread& thread = block.threads[w * WARP + std::countr_zero(lanes)];
            if (thread.place.line() != place.line()) fail("divergence: " + where(*self) + ", but " + where(thread));
        }
        make_runnable(block, w, barrier.waiting[w]);
        barrier.waiting[w] = 0;
    }
    barrier.arrived = 0;
    block.warp = choose(block.runnable_warps);
    leave();
}

void trap(const char* what, const Place& place) {
    char line[16];
    snprintf(line, sizeof line, ":%u", place.line());
    fail(thread_name(*self) + ": " + what + " at " + place.file_name() + line);
}

void* static_shared(Site& site, size_t bytes, size_t alignment) {
    Machine& k = *machine;
    if (site.launch != k.launches) {
        // From the end of the memory down, so that the first array ends at the guard page.
        size_t top = k.static_used + (k.static_used ? RED : 0);
        size_t used = (top + bytes + 127) / 128 * 128;
        if (k.static_used == 0) used = (bytes + alignment - 1) / alignment * alignment;
        if (used > STATIC_SHARED) fail("more than 48 KiB of static shared memory");
        // Blocks that begin later set all that is known by then.
        for (u32 rank = 0; rank < k.together; rank++) {
            Block& block = *k.blocks[rank];
            if (block.there) memset(block.static_end - used, UNSET, used - k.static_used);
        }
        if (used - bytes >= k.static_used + RED) k.reds.push_back(used - bytes);
        k.static_used = used;
        site = {k.launches, used};
    }
    return home().static_end - site.before_end;
}

void* dynamic_shared() {
    return home().dynamic_end - (machine->launch->dynamic_shared + 15) / 16 * 16;
}

void* of_block(const void* shared, u32 rank, const Place& place) {
    if (rank >= machine->together) trap("a rank that the cluster does not have", place);
    unsigned char* there = of_rank(shared, rank);
    if (!there) trap("an address that is not in the block's shared memory", place);
    return there;
}

unsigned char* of_rank(const void* shared, u32 rank) {
    Block &own = home(), &other = *machine->blocks[rank];
    auto at = (unsigned char*)shared;
    if (at >= own.static_end - STATIC_SHARED && at <= own.static_end) return other.static_end - (own.static_end - at);
    if (at >= own.dynamic_end - DYNAMIC_SHARED && at <= own.dynamic_end) return other.dynamic_end - (own.dynamic_end - at);
    return nullptr;
}

void cluster_arrive(const Place& place) {
    Machine& k = *machine;
    if (self->arrived) trap("a second arrival at the cluster's barrier without a wait between them", place);
    self->arrived = true;
    self->phase = k.cluster_phase;
    if (++k.cluster_arrived < k.count * k.together) return;
    k.cluster_arrived = 0;
    k.cluster_phase++;
    wake(&k.cluster_phase);
}

void cluster_wait(const Place& place) {
    Machine& k = *machine;
    if (!self->arrived) trap("a wait at the cluster's barrier without an arrival", place);
    self->arrived = false;
    if (self->phase == k.cluster_phase) sleep_on(&k.cluster_phase, "the cluster's barrier", place);
    // Who came last goes on first only if it is its turn.
    else if (k.order.kind != Order::Forward) leave();
}

void copy_async(void* to, const void* from, u32 bytes, u32 zeros) {
    // It lands only when it is waited for. What it reads must be readable now.
    if (self->copies.empty()) self->copies.emplace_back();
    if (bytes) (void)*(volatile const unsigned char*)from;
    self->copies.back().push_back({to, from, bytes, zeros});
}

void copy_commit() {
    if (self->copies.empty()) self->copies.emplace_back();
    self->copies.emplace_back();
}

void copy_wait(u32 groups_left) {
    auto& copies = self->copies;
    if (copies.empty()) return;
    // The last group is open and is not waited for.
    size_t closed = copies.size() - 1;
    size_t land = closed > groups_left ? closed - groups_left : 0;
    for (size_t g = 0; g < land; g++) {
        for (auto& copy : copies[g]) {
            if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
            if (copy.zeros) memset((unsigned char*)copy.to + copy.bytes, 0, copy.zeros);
        }
    }
    copies.erase(copies.begin(), copies.begin() + ptrdiff_t(land));
}

}  // namespace standin
