// Device memory of the stand-in: an address range of its own, every allocation between pages that
// cannot be touched, filled with NaN. An address is never given out twice, so that use after free shows too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace standin {

/// What new memory and shared memory hold: NaN as f32, bf16, f16 and f64, and the largest index.
constexpr unsigned char UNSET = 0xff;

/// Bytes of device memory, as `TWOCLOCKS_STANDIN_MEMORY` says (MiB), else 4 GiB.
size_t memory_total();
size_t memory_free();
/// Null where there is not that much left.
void* memory_allocate(size_t bytes);
/// False where nothing begins there.
bool memory_release(void* address);
/// Whether the bytes lie within one allocation.
bool memory_holds(const void* address, size_t bytes);
/// Start and size of the allocation around an address; false where there is none.
bool memory_range(const void* address, void*& start, size_t& bytes);
/// Says what lies at an address that a kernel must not touch; empty where it is not device memory.
std::string memory_describe(const void* address);
/// Empty while nobody wrote into the slack beside an allocation; else says where.
std::string memory_check();

/// Page-locked host memory.
void* host_allocate(size_t bytes);
bool host_release(void* address);
bool host_register(void* address, size_t bytes);
bool host_unregister(void* address);
bool host_is_pinned(const void* address, size_t bytes);

}  // namespace standin
