#include "memory.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace standin {

namespace {

constexpr size_t PAGE = 4096, ALIGNMENT = 256, RANGE = size_t(1) << 40;

struct Allocation {
    size_t bytes;
    /// The mapping around it, guard pages not counted.
    uintptr_t pages, pages_end;
    bool released;
};

struct State {
    uintptr_t base = 0, next = 0;
    size_t used = 0;
    std::map<uintptr_t, Allocation> allocations;
    /// Bytes that must stay as they are: beside the allocations, within their pages.
    struct Slack {
        const unsigned char* from;
        size_t bytes;
        uintptr_t owner;
    };
    std::vector<Slack> slacks;
    std::map<uintptr_t, size_t> pinned, registered;
};

State& state() {
    // Never destroyed: other threads may still run when the process ends.
    static State* state = new State;
    return *state;
}

size_t up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/// The allocation that begins at or before an address.
const std::pair<const uintptr_t, Allocation>* before(uintptr_t address) {
    auto& all = state().allocations;
    auto it = all.upper_bound(address);
    return it == all.begin() ? nullptr : &*std::prev(it);
}

bool within(const std::map<uintptr_t, size_t>& ranges, uintptr_t address, size_t bytes) {
    auto it = ranges.upper_bound(address);
    if (it == ranges.begin()) return false;
    --it;
    return address + bytes <= it->first + it->second;
}

}  // namespace

size_t memory_total() {
    static const size_t total = [] {
        const char* text = getenv("TWOCLOCKS_STANDIN_MEMORY");
        return (text ? strtoull(text, nullptr, 10) : 4096) << 20;
    }();
    return total;
}

size_t memory_free() {
    return memory_total() - state().used;
}

void* memory_allocate(size_t bytes) {
    State& s = state();
    if (bytes == 0 || bytes > memory_free()) return nullptr;
    if (!s.base) {
        void* range = mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) return nullptr;
        s.base = s.next = up(uintptr_t(range), PAGE);
    }
    size_t needed = up(bytes, ALIGNMENT);
    uintptr_t pages = s.next + PAGE, end = pages + up(needed, PAGE);
    if (end + PAGE > s.base + RANGE - PAGE) return nullptr;
    if (mprotect((void*)pages, end - pages, PROT_READ | PROT_WRITE)) return nullptr;
    memset((void*)pages, UNSET, end - pages);
    s.next = end;
    s.used += bytes;
    // As near to the page behind it as the alignment allows.
    uintptr_t start = end - needed;
    s.allocations[start] = {bytes, pages, end, false};
    if (start + bytes < end) {
        s.slacks.push_back({(unsigned char*)start + bytes, end - start - bytes, start});
    }
    if (start > pages) {
        size_t left = std::min<size_t>(start - pages, ALIGNMENT);
        s.slacks.push_back({(unsigned char*)start - left, left, start});
    }
    return (void*)start;
}

bool memory_release(void* address) {
    State& s = state();
    auto it = s.allocations.find(uintptr_t(address));
    if (it == s.allocations.end() || it->second.released) return false;
    Allocation& a = it->second;
    std::erase_if(s.slacks, [&](auto& slack) { return slack.owner == it->first; });
    // Fresh, untouchable pages in place of the old ones: the memory goes back, the address does not.
    mmap((void*)a.pages, a.pages_end - a.pages, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    a.released = true;
    s.used -= a.bytes;
    return true;
}

bool memory_range(const void* address, void*& start, size_t& bytes) {
    auto* found = before(uintptr_t(address));
    if (!found || found->second.released) return false;
    if (uintptr_t(address) >= found->first + found->second.bytes) return false;
    start = (void*)found->first;
    bytes = found->second.bytes;
    return true;
}

bool memory_holds(const void* address, size_t bytes) {
    void* start;
    size_t size;
    if (!memory_range(address, start, size)) return false;
    return uintptr_t(address) + bytes <= uintptr_t(start) + size;
}

std::string memory_describe(const void* address) {
    State& s = state();
    uintptr_t at = uintptr_t(address);
    if (!s.base || at < s.base || at >= s.base + RANGE) return "";
    char text[160];
    auto* left = before(at);
    if (left && at < left->first + left->second.bytes && left->second.released) {
        snprintf(text, sizeof text, "byte %zu of freed global memory (%zu bytes)",
                 size_t(at - left->first), left->second.bytes);
        return text;
    }
    auto right = s.allocations.upper_bound(at);
    size_t past = left ? at - left->first - left->second.bytes : SIZE_MAX;
    size_t ahead = right != s.allocations.end() ? right->first - at : SIZE_MAX;
    if (past == SIZE_MAX && ahead == SIZE_MAX) return "unallocated global memory";
    if (past <= ahead) {
        snprintf(text, sizeof text, "global memory %zu bytes past the end of an allocation of %zu bytes",
                 past, left->second.bytes);
    } else {
        snprintf(text, sizeof text, "global memory %zu bytes ahead of an allocation of %zu bytes",
                 ahead, right->second.bytes);
    }
    return text;
}

std::string memory_check() {
    for (auto& slack : state().slacks) {
        for (size_t i = 0; i < slack.bytes; i++) {
            if (slack.from[i] == UNSET) continue;
            std::string text = memory_describe(slack.from + i);
            // Told once.
            memset((void*)slack.from, UNSET, slack.bytes);
            return text;
        }
    }
    return "";
}

void* host_allocate(size_t bytes) {
    void* address = mmap(nullptr, up(bytes, PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    memset(address, UNSET, bytes);
    state().pinned[uintptr_t(address)] = bytes;
    return address;
}

bool host_release(void* address) {
    auto it = state().pinned.find(uintptr_t(address));
    if (it == state().pinned.end()) return false;
    munmap(address, up(it->second, PAGE));
    state().pinned.erase(it);
    return true;
}

bool host_register(void* address, size_t bytes) {
    return state().registered.emplace(uintptr_t(address), bytes).second;
}

bool host_unregister(void* address) {
    return state().registered.erase(uintptr_t(address)) == 1;
}

bool host_is_pinned(const void* address, size_t bytes) {
    return within(state().pinned, uintptr_t(address), bytes)
        || within(state().registered, uintptr_t(address), bytes);
}

}  // namespace standin
