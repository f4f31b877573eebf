// Barriers in shared memory, copies of tiles, products of warpgroups: the bodies of kernels/common/hopper.cuh.
#include "state.hpp"

#include <cstdio>
#include <cstring>

namespace standin {

const char* const MBARRIER = "an mbarrier";

// Barriers ----------------------------------------------------------------------------------------

namespace {

/// An mbarrier, in its eight bytes.
struct Counter {
    u16 count, missing;
    /// Bytes that are expected less those that came; negative where they came first.
    int bytes : 31;
    u32 phase : 1;
};
static_assert(sizeof(Counter) == 8);

Counter& counter(u64* at) {
    return *reinterpret_cast<Counter*>(at);
}

bool usable(const Counter& c) {
    // Memory that nobody set is all ones.
    return c.count != 0 && c.count != 0xffff && c.missing <= c.count;
}

constexpr int MOST_BYTES = (1 << 20) - 1;

/// Ends the phase if all came.
void settle(u64* at) {
    Counter& c = counter(at);
    if (c.missing || c.bytes) return;
    c.missing = c.count;
    c.phase ^= 1;
    wake(at);
}

Block* block_of(const void* shared) {
    auto at = (const unsigned char*)shared;
    for (u32 rank = 0; rank < machine->together; rank++) {
        Block& block = *machine->blocks[rank];
        if (at >= block.dynamic_end - DYNAMIC_SHARED && at < block.dynamic_end) return &block;
        if (at >= block.static_end - STATIC_SHARED && at < block.static_end) return &block;
    }
    return nullptr;
}

}  // namespace

void mbarrier_init(u64* at, u32 count, const Place& place) {
    if (u64(at) % 8 || block_of(at) != &home()) trap("an mbarrier that is not in the block's shared memory", place);
    if (count == 0 || count >= 0xffff) trap("an mbarrier of no arrivals, or of more than there can be", place);
    counter(at) = {u16(count), u16(count), 0, 0};
    machine->mbarriers.push_back(at);
}

void mbarrier_arrive(u64* at, u32 bytes, const Place& place) {
    Counter& c = counter(at);
    if (!usable(c)) trap("an arrival at an mbarrier that was not initialised", place);
    if (!c.missing) trap("one arrival too many at an mbarrier", place);
    if (c.bytes + int(bytes) > MOST_BYTES) trap("more bytes than an mbarrier counts", place);
    c.bytes += int(bytes);
    c.missing--;
    settle(at);
}

void mbarrier_wait(u64* at, u32 parity, const Place& place) {
    if (!usable(counter(at))) trap("a wait at an mbarrier that was not initialised", place);
    while (counter(at).phase == parity) sleep_on(at, MBARRIER, place);
    // Others may go on first where the phase is complete already.
    if (machine->order.kind == Order::Shuffle) leave();
}

std::string mbarrier_state(const void* at) {
    const Counter& c = counter((u64*)at);
    Block* block = block_of(at);
    char text[128];
    ptrdiff_t byte = block ? (const unsigned char*)at - (block->dynamic_end - (machine->launch->dynamic_shared + 15) / 16 * 16) : -1;
    snprintf(text, sizeof text, " at byte %td of dynamic shared memory (%u of %u arrivals and %d bytes are missing)", byte,
             unsigned(c.missing), unsigned(c.count), c.bytes);
    return text;
}

std::string mbarrier_problem(const Block& block) {
    for (u64* at : machine->mbarriers) {
        if (block_of(at) == &block && usable(counter(at)) && counter(at).bytes) {
            return "the block returns with an mbarrier" + mbarrier_state(at);
        }
    }
    return "";
}

// Copies of tiles ---------------------------------------------------------------------------------

u32 shared_address(const void* shared, const Place& place) {
    auto at = (const unsigned char*)shared;
    const unsigned char* start = home().dynamic_end - DYNAMIC_SHARED;
    if (at < start || at > home().dynamic_end) trap("an address that is not in the block's dynamic shared memory", place);
    return u32(at - start);
}

namespace {

constexpr u32 ROW = 128;

/// Where the 16 bytes lie that the pattern of the 128-byte swizzle puts at this address.
u32 swizzled(u32 address) {
    return address ^ (address >> 7 & 7) << 4;
}

size_t box_bytes(const TensorMap& map) {
    size_t bytes = map.element_bytes;
    for (u32 i = 0; i < map.rank; i++) bytes *= map.box[i];
    return bytes;
}

/// Copies between the tensor and the shared memory of one block.
void copy_box(const Transfer& t, Block& block, unsigned char* shared, bool load) {
    if (!block.alive) fail("a copy of a tile lands after its block has returned: nobody waited for it");
    const TensorMap& map = t.map;
    unsigned char* start = block.dynamic_end - DYNAMIC_SHARED;
    u32 address = u32(shared - start), rows = map.rank > 1 ? map.box[1] : 1;
    for (u32 row = 0; row < rows; row++) {
        u32 y = t.at.y + row;
        bool row_there = y < map.extents[1] && t.at.z < map.extents[2];
        unsigned char* line = map.address + y * map.strides[1] + t.at.z * map.strides[2];
        // No element lies in two groups of 16 bytes.
        u32 step = load ? 16 : map.element_bytes;
        for (u32 byte = 0; byte < map.box[0] * map.element_bytes; byte += step) {
            u32 from = address + row * ROW + byte;
            unsigned char* at = start + swizzled(from & ~15u) + (from & 15);
            for (u32 inner = 0; inner < step; inner += map.element_bytes) {
                u32 x = t.at.x + (byte + inner) / map.element_bytes;
                bool there = row_there && x < map.extents[0];
                unsigned char* element = line + x * u64(map.element_bytes);
                if (load && there) memcpy(at + inner, element, map.element_bytes);
                if (load && !there) memset(at + inner, 0, map.element_bytes);
                if (!load && there) memcpy(element, at + inner, map.element_bytes);
            }
        }
    }
}

void perform(const Transfer& t) {
    Thread* me = self;
    // Faults are reported as its own; no fiber is left.
    self = t.thread;
    Block& own = *static_cast<Block*>(t.thread->home);
    if (!t.barrier) {
        copy_box(t, own, t.shared, false);
    } else {
        for (u32 rank = 0; rank < machine->together; rank++) {
            if (!(t.blocks >> rank & 1)) continue;
            copy_box(t, *machine->blocks[rank], of_rank(t.shared, rank), true);
            u64* barrier = (u64*)of_rank(t.barrier, rank);
            Counter& c = counter(barrier);
            if (!usable(c)) fail("a copy of a tile counts at an mbarrier that was not initialised");
            c.bytes -= int(box_bytes(t.map));
            if (c.bytes < -MOST_BYTES) fail("more bytes came than an mbarrier counts");
            settle(barrier);
        }
    }
    self = me;
}

/// It lands at once, or later, by the order: what is not waited for shows in one of them.
void begin(const Transfer& transfer) {
    bool now = machine->order.kind == Order::Reverse || (machine->order.kind == Order::Shuffle && random_bits() >> 63);
    if (now) perform(transfer);
    else machine->transfers.push_back(transfer);
}

void check(const TensorMap& map, u32 rank, const void* shared, const Place& place) {
    if (map.magic != TensorMap::MAGIC) trap("a tensor map that was not encoded", place);
    if (map.rank != rank) trap("a tensor map of another rank", place);
    if (shared_address(shared, place) % ROW) trap("a tile that does not begin at a multiple of 128 bytes", place);
}

}  // namespace

void tile_load(void* to, const TensorMap& map, uint3 at, u64* barrier, u32 blocks, const Place& place) {
    check(map, 2, to, place);
    if (!blocks || blocks >> machine->together) trap("blocks that the cluster does not have", place);
    begin({map, at, (unsigned char*)to, self, barrier, blocks, 0});
}

void tile_store(const TensorMap& map, const void* from, uint3 at, const Place& place) {
    check(map, 3, from, place);
    begin({map, at, (unsigned char*)from, self, nullptr, 0, self->store_groups});
}

void commit_stores() {
    self->store_groups++;
}

void wait_stores(u32 groups_left) {
    auto& transfers = machine->transfers;
    for (size_t i = 0; i < transfers.size();) {
        const Transfer& t = transfers[i];
        if (t.thread != self || t.barrier || t.group + groups_left >= self->store_groups) {
            i++;
            continue;
        }
        Transfer one = t;
        transfers.erase(transfers.begin() + ptrdiff_t(i));
        perform(one);
    }
}

bool land() {
    auto& transfers = machine->transfers;
    if (transfers.empty()) return false;
    size_t which = machine->order.kind == Order::Shuffle ? random_bits() % transfers.size() : 0;
    Transfer one = transfers[which];
    transfers.erase(transfers.begin() + ptrdiff_t(which));
    perform(one);
    return true;
}

// Products of a warpgroup -------------------------------------------------------------------------

namespace {

float from_bf16(u16 bits) {
    u32 wide = u32(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/// An operand in shared memory, as its descriptor says.
struct Operand {
    const unsigned char* start;
    u32 address, leading, stride;
    bool mn;
    Operand(u64 descriptor, bool mn)
        : start(home().dynamic_end - DYNAMIC_SHARED), address(u32(descriptor & 0x3fff) << 4),
          leading(u32(descriptor >> 16 & 0x3fff) << 4), stride(u32(descriptor >> 32 & 0x3fff) << 4), mn(mn) {}
    /// 16 of k of a row of m or n.
    void row(u32 row, float (&to)[16]) const {
        u32 from = address + (mn ? row / 64 * leading + row % 64 * 2 : row / 8 * stride + row % 8 * ROW);
        for (u32 k = 0; k < 16; k++) {
            u32 at = from + (mn ? k / 8 * stride + k % 8 * ROW : k * 2);
            u16 bits;
            memcpy(&bits, start + swizzled(at & ~15u) + (at & 15), 2);
            to[k] = from_bf16(bits);
        }
    }
};

void run(const Product& p) {
    Operand a(p.a, p.a_mn), b(p.b, p.b_mn);
    u32 warp = self->linear / WARP % 4, lane = self->linear % WARP;
    float rows[2][16], columns[2][16];
    for (u32 i = 0; i < 2; i++) a.row(warp * 16 + lane / 4 + i * 8, rows[i]);
    for (u32 j = 0; j < p.n / 8; j++) {
        for (u32 i = 0; i < 2; i++) b.row(j * 8 + lane % 4 * 2 + i, columns[i]);
        float* d = p.d + j * 4;
        double sums[4];
        for (u32 i = 0; i < 4; i++) sums[i] = p.add ? d[i] : 0;
        // Four sums side by side, each in the order of k.
        for (u32 k = 0; k < 16; k++) {
            for (u32 i = 0; i < 4; i++) sums[i] += double(rows[i / 2][k]) * double(columns[i % 2][k]);
        }
        for (u32 i = 0; i < 4; i++) d[i] = float(sums[i]);
    }
}

}  // namespace

void multiply(const Product& product, const Place& place) {
    for (u64 descriptor : {product.a, product.b}) {
        if (descriptor >> 62 != 1) trap("a matrix descriptor without the swizzle of 128 bytes", place);
        if (descriptor >> 49 & 7) trap("a matrix descriptor with a base offset", place);
    }
    if (self->products.empty()) self->products.emplace_back();
    self->products.back().push_back(product);
}

void commit_products() {
    if (self->products.empty()) self->products.emplace_back();
    self->products.emplace_back();
}

void wait_products(u32 groups_left) {
    auto& products = self->products;
    while (products.size() > groups_left + 1) {
        for (auto& product : products.front()) run(product);
        products.erase(products.begin());
    }
}

}  // namespace standin
