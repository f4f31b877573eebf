// Initialisation, device, context, memory, and how work runs.
#include "driver.hpp"

#include "memory.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {

constexpr int DRIVER_VERSION = 12000;

Driver& driver() {
    // Never destroyed: other threads may call while the process ends.
    static auto* driver = new Driver;
    return *driver;
}

Context*& current_context() {
    static thread_local Context* context = nullptr;
    return context;
}

CUresult ready() {
    if (!driver().initialized) return NOT_INITIALIZED;
    if (!current_context()) return INVALID_CONTEXT;
    return driver().broken;
}

void invalidate(Capture* capture) {
    capture->invalid = true;
}

void forget(Capture* capture) {
    capture->origin->capture = nullptr;
    for (auto& [stream, _] : capture->forks) stream->capture = nullptr;
    std::erase(driver().captures, capture);
    // Events may still name it, so it stays: a few bytes in a process that tests.
}

CUresult safe_for_capture() {
    for (Capture* capture : driver().captures) {
        bool own = capture->thread == std::this_thread::get_id();
        if (capture->mode == Capture::Global || (capture->mode == Capture::ThreadLocal && own)) {
            invalidate(capture);
            return STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

Stream* find_stream(void* handle) {
    // Null, the legacy stream and the thread's own: one stream here.
    if (uintptr_t(handle) <= 2) return &driver().null_stream;
    return knows(driver().streams, handle) ? (Stream*)handle : nullptr;
}

CUresult enqueue(Stream* stream, Work work) {
    Driver& d = driver();
    if (Capture* capture = stream->capture) {
        if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        auto& nodes = capture->graph->nodes;
        auto& last = capture->last[stream];
        nodes.push_back({std::move(work), last});
        last = {nodes.size() - 1};
        if (stream != capture->origin) capture->forks[stream].nodes++;
        return SUCCESS;
    }
    if (stream == &d.null_stream) {
        // It would wait for blocking streams, and a captured one never runs.
        for (Capture* capture : d.captures) {
            if (!capture->origin->blocking) continue;
            invalidate(capture);
            return STREAM_CAPTURE_IMPLICIT;
        }
    }
    d.queue.push_back(std::move(work));
    if (!d.late) {
        // A launch itself succeeds; what it did wrong is told by the next call.
        drain();
    }
    return SUCCESS;
}

CUresult drain() {
    Driver& d = driver();
    std::vector<Work> work;
    std::swap(work, d.queue);
    for (auto& one : work) {
        if (d.broken) break;
        if (CUresult result = one()) d.broken = result;
    }
    return d.broken;
}

}  // namespace standin

using namespace standin;

// Initialisation, device, context -----------------------------------------------------------------

API cuInit(u32 flags) {
    std::lock_guard lock(driver().mutex);
    if (flags) return INVALID_VALUE;
    if (driver().initialized) return SUCCESS;
    Driver& d = driver();
    if (const char* text = getenv("TWOCLOCKS_STANDIN_ORDER"); text && !Order::parse(text, d.order)) {
        fprintf(stderr, "stand-in: TWOCLOCKS_STANDIN_ORDER is forward, reverse or shuffle:SEED, not %s\n", text);
        return INVALID_VALUE;
    }
    if (const char* text = getenv("TWOCLOCKS_STANDIN_QUEUE")) {
        if (strcmp(text, "late") && strcmp(text, "eager")) {
            fprintf(stderr, "stand-in: TWOCLOCKS_STANDIN_QUEUE is eager or late, not %s\n", text);
            return INVALID_VALUE;
        }
        d.late = !strcmp(text, "late");
    }
    if (const char* text = getenv("TWOCLOCKS_STANDIN_CAPABILITY")) d.capability = atoi(text);
    d.initialized = true;
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    *version = DRIVER_VERSION;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    if (!driver().initialized) return NOT_INITIALIZED;
    *count = 1;
    return SUCCESS;
}

API cuDeviceGet(CUdevice* device, int ordinal) {
    if (!driver().initialized) return NOT_INITIALIZED;
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}

API cuDeviceGetName(char* name, int length, CUdevice device) {
    if (device != 0) return INVALID_DEVICE;
    snprintf(name, size_t(length), "twoclocks stand-in (no GPU)");
    return SUCCESS;
}

API cuDeviceGetUuid_v2(char* uuid, CUdevice device) {
    if (device != 0) return INVALID_DEVICE;
    memcpy(uuid, "twoclocks-no-gpu", 16);
    return SUCCESS;
}

API cuDeviceGetUuid(char* uuid, CUdevice device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    if (device != 0) return INVALID_DEVICE;
    *bytes = memory_total();
    return SUCCESS;
}

static int shared_opt_in() {
    switch (driver().capability / 10) {
        case 7: return 64 << 10;
        case 8: return 163 << 10;
        default: return 227 << 10;
    }
}

API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    if (device != 0) return INVALID_DEVICE;
    switch (attribute) {
        case 1: *value = 1024; break;                          // threads of a block
        case 2: case 3: *value = 1024; break;                  // block x, y
        case 4: *value = 64; break;                            // block z
        case 5: *value = 0x7fffffff; break;                    // grid x
        case 6: case 7: *value = 65535; break;                 // grid y, z
        case 8: *value = 48 << 10; break;                      // shared memory of a block
        case 9: *value = 64 << 10; break;                      // constant memory
        case 10: *value = 32; break;                           // warp
        case 12: case 82: *value = 65536; break;               // registers
        case 13: case 36: *value = 1000000; break;             // clocks, kHz
        case 16: *value = 4; break;                            // multiprocessors
        case 31: case 41: case 78: case 19: *value = 1; break; // concurrent kernels, one address space, priorities, mapped memory
        case 37: *value = 64; break;                           // memory bus
        case 38: *value = 4 << 20; break;                      // L2
        case 39: *value = 2048; break;                         // threads of a multiprocessor
        case 40: *value = 1; break;                            // copy engines
        case 75: *value = driver().capability / 10; break;
        case 76: *value = driver().capability % 10; break;
        case 81: *value = shared_opt_in() + 1024; break;
        case 97: *value = shared_opt_in(); break;
        case 106: *value = 16; break;                          // blocks of a multiprocessor
        case 111: *value = 1024; break;                        // shared memory the system takes
        case 120: *value = driver().capability >= 90; break;   // clusters
        case 115: *value = 1; break;                           // memory pools: stream-ordered allocation
        default:
            if (attribute < 1 || attribute > 150) return INVALID_VALUE;
            *value = 0;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, CUdevice device) {
    std::lock_guard lock(driver().mutex);
    if (!driver().initialized) return NOT_INITIALIZED;
    if (device != 0) return INVALID_DEVICE;
    driver().retained++;
    *context = &driver().context;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    std::lock_guard lock(driver().mutex);
    if (device != 0) return INVALID_DEVICE;
    if (driver().retained == 0) return INVALID_CONTEXT;
    driver().retained--;
    return SUCCESS;
}

API cuDevicePrimaryCtxReset_v2(CUdevice device) {
    std::lock_guard lock(driver().mutex);
    if (device != 0) return INVALID_DEVICE;
    driver().queue.clear();
    driver().broken = SUCCESS;
    return SUCCESS;
}

API cuCtxSetCurrent(void* context) {
    if (!driver().initialized) return NOT_INITIALIZED;
    if (context && context != &driver().context) return INVALID_CONTEXT;
    current_context() = (Context*)context;
    return SUCCESS;
}

API cuCtxGetCurrent(void** context) {
    if (!driver().initialized) return NOT_INITIALIZED;
    *context = current_context();
    return SUCCESS;
}

API cuCtxGetDevice(CUdevice* device) {
    ENTER();
    *device = 0;
    return SUCCESS;
}

API cuCtxSynchronize() {
    ENTER();
    TRY(safe_for_capture());
    return drain();
}

API cuCtxSetFlags(u32) {
    ENTER();
    return SUCCESS;
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

API cuCtxSetLimit(int, size_t) {
    ENTER();
    return SUCCESS;
}

// Memory ------------------------------------------------------------------------------------------

API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    ENTER();
    TRY(safe_for_capture());
    if (bytes == 0) return INVALID_VALUE;
    void* memory = memory_allocate(bytes);
    if (!memory) return OUT_OF_MEMORY;
    *address = CUdeviceptr(memory);
    return SUCCESS;
}

API cuMemFree_v2(CUdeviceptr address) {
    ENTER();
    TRY(safe_for_capture());
    TRY(drain());
    if (!address) return SUCCESS;
    return memory_release((void*)address) ? SUCCESS : INVALID_VALUE;
}

API cuMemAllocAsync(CUdeviceptr* address, size_t bytes, void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        fprintf(stderr, "stand-in: memory nodes of graphs are not supported\n");
        return NOT_SUPPORTED;
    }
    if (bytes == 0) return INVALID_VALUE;
    void* memory = memory_allocate(bytes);
    if (!memory) return OUT_OF_MEMORY;
    *address = CUdeviceptr(memory);
    return SUCCESS;
}

API cuMemFreeAsync(CUdeviceptr address, void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        fprintf(stderr, "stand-in: memory nodes of graphs are not supported\n");
        return NOT_SUPPORTED;
    }
    if (!address) return SUCCESS;
    if (!memory_holds((void*)address, 1)) return INVALID_VALUE;
    return enqueue(stream, [=] { return memory_release((void*)address) ? SUCCESS : INVALID_VALUE; });
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER();
    *free = memory_free();
    *total = memory_total();
    return SUCCESS;
}

API cuMemGetAddressRange_v2(CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
    ENTER();
    void* from;
    size_t size;
    if (!memory_range((void*)address, from, size)) return NOT_FOUND;
    if (start) *start = CUdeviceptr(from);
    if (bytes) *bytes = size;
    return SUCCESS;
}

API cuMemHostAlloc(void** address, size_t bytes, u32) {
    ENTER();
    TRY(safe_for_capture());
    if (bytes == 0) return INVALID_VALUE;
    *address = host_allocate(bytes);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

API cuMemAllocHost_v2(void** address, size_t bytes) {
    return cuMemHostAlloc(address, bytes, 0);
}

API cuMemFreeHost(void* address) {
    ENTER();
    TRY(safe_for_capture());
    TRY(drain());
    return host_release(address) ? SUCCESS : INVALID_VALUE;
}

API cuMemHostRegister_v2(void* address, size_t bytes, u32) {
    ENTER();
    if (!address || !bytes) return INVALID_VALUE;
    return host_register(address, bytes) ? SUCCESS : HOST_MEMORY_ALREADY_REGISTERED;
}

API cuMemHostUnregister(void* address) {
    ENTER();
    TRY(drain());
    return host_unregister(address) ? SUCCESS : HOST_MEMORY_NOT_REGISTERED;
}

API cuDeviceGetDefaultMemPool(void** pool, CUdevice device) {
    if (device != 0) return INVALID_DEVICE;
    *pool = &driver();
    return SUCCESS;
}

API cuDeviceGetMemPool(void** pool, CUdevice device) {
    return cuDeviceGetDefaultMemPool(pool, device);
}

API cuMemPoolSetAttribute(void*, int, void*) {
    return SUCCESS;
}

API cuMemPoolTrimTo(void*, size_t) {
    return SUCCESS;
}

/// The sources of copies to the device that are not page-locked are read before the call returns.
static CUresult to_device(Stream* stream, CUdeviceptr to, const void* from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!memory_holds((void*)to, bytes)) return INVALID_VALUE;
    if (host_is_pinned(from, bytes)) {
        return enqueue(stream, [=] { return memcpy((void*)to, from, bytes), SUCCESS; });
    }
    if (stream->capture) {
        invalidate(stream->capture);
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    std::vector<u8> staged((const u8*)from, (const u8*)from + bytes);
    return enqueue(stream, [to, staged = std::move(staged)] {
        return memcpy((void*)to, staged.data(), staged.size()), SUCCESS;
    });
}

/// Copies to memory that is not page-locked are done when the call returns.
static CUresult to_host(Stream* stream, void* to, CUdeviceptr from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!memory_holds((void*)from, bytes)) return INVALID_VALUE;
    bool pinned = host_is_pinned(to, bytes);
    if (!pinned && stream->capture) {
        invalidate(stream->capture);
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    TRY(enqueue(stream, [=] { return memcpy(to, (void*)from, bytes), SUCCESS; }));
    return pinned ? SUCCESS : drain();
}

static CUresult on_device(Stream* stream, CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!memory_holds((void*)to, bytes) || !memory_holds((void*)from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return memmove((void*)to, (void*)from, bytes), SUCCESS; });
}

API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER();
    TRY(safe_for_capture());
    TRY(to_device(&driver().null_stream, to, from, bytes));
    return drain();
}

API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER();
    TRY(safe_for_capture());
    TRY(to_host(&driver().null_stream, to, from, bytes));
    return drain();
}

API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER();
    TRY(safe_for_capture());
    TRY(on_device(&driver().null_stream, to, from, bytes));
    return drain();
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    return stream ? to_device(stream, to, from, bytes) : INVALID_HANDLE;
}

API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    return stream ? to_host(stream, to, from, bytes) : INVALID_HANDLE;
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    return stream ? on_device(stream, to, from, bytes) : INVALID_HANDLE;
}

template <class T>
static CUresult set(void* handle, CUdeviceptr to, T value, size_t count) {
    ENTER_AS("cuMemsetAsync");
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!count) return SUCCESS;
    if (to % sizeof(T) || !memory_holds((void*)to, count * sizeof(T))) return INVALID_VALUE;
    return enqueue(stream, [=] { return std::fill_n((T*)to, count, value), SUCCESS; });
}

template <class T>
static CUresult set_now(CUdeviceptr to, T value, size_t count) {
    ENTER_AS("cuMemset");
    TRY(safe_for_capture());
    TRY(set(nullptr, to, value, count));
    return drain();
}

API cuMemsetD8_v2(CUdeviceptr to, u8 value, size_t count) { return set_now(to, value, count); }
API cuMemsetD16_v2(CUdeviceptr to, u16 value, size_t count) { return set_now(to, value, count); }
API cuMemsetD32_v2(CUdeviceptr to, u32 value, size_t count) { return set_now(to, value, count); }
API cuMemsetD8Async(CUdeviceptr to, u8 value, size_t count, void* stream) { return set(stream, to, value, count); }
API cuMemsetD16Async(CUdeviceptr to, u16 value, size_t count, void* stream) { return set(stream, to, value, count); }
API cuMemsetD32Async(CUdeviceptr to, u32 value, size_t count, void* stream) { return set(stream, to, value, count); }

// Errors and entry points --------------------------------------------------------------------------

static const struct {
    CUresult result;
    const char *name, *text;
} ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

API cuGetErrorName(CUresult error, const char** name) {
    for (auto& known : ERRORS) {
        if (known.result == error) return *name = known.name, SUCCESS;
    }
    *name = nullptr;
    return INVALID_VALUE;
}

API cuGetErrorString(CUresult error, const char** text) {
    for (auto& known : ERRORS) {
        if (known.result == error) return *text = known.text, SUCCESS;
    }
    *text = nullptr;
    return INVALID_VALUE;
}

API cuGetProcAddress_v2(const char* symbol, void** function, int, u64, int* status) {
    Dl_info self;
    dladdr((void*)cuInit, &self);
    void* library = dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_LAZY);
    *function = nullptr;
    for (const char* suffix : {"_v2", ""}) {
        if (!*function) *function = dlsym(library, (std::string(symbol) + suffix).c_str());
    }
    if (library) dlclose(library);
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

API cuGetProcAddress(const char* symbol, void** function, int version, u64 flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

/// How often a function was called so far: for tests.
extern "C" __attribute__((visibility("default"))) u64 standin_calls(const char* name) {
    std::lock_guard lock(driver().mutex);
    auto found = driver().calls.find(name);
    return found == driver().calls.end() ? 0 : found->second;
}

/// What the last kernel that failed did, in words: for tests.
extern "C" __attribute__((visibility("default"))) const char* standin_last_report() {
    return last_report().c_str();
}
