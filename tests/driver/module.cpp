// Modules, functions and launches.
#include "driver.hpp"

#include "memory.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

using namespace standin;

namespace {

/// The newest PTX that a driver of CUDA 12.0 compiles.
constexpr int NEWEST_PTX = 80;

/// Buffers of cuModuleLoadDataEx for what the compiler says.
struct Logs {
    char* text[2] = {};
    size_t room[2] = {};
    void** used[2] = {};
    Logs(u32 count, const int* options, void** values) {
        for (u32 i = 0; i < count; i++) {
            switch (options[i]) {
                case 3: text[0] = (char*)values[i]; break;
                case 4: room[0] = (size_t)values[i], used[0] = &values[i]; break;
                case 5: text[1] = (char*)values[i]; break;
                case 6: room[1] = (size_t)values[i], used[1] = &values[i]; break;
            }
        }
    }
    void say(int which, const std::string& line) {
        size_t length = room[which] ? std::min(line.size(), room[which] - 1) : 0;
        if (text[which] && room[which]) {
            memcpy(text[which], line.data(), length);
            text[which][length] = 0;
        }
        if (used[which]) *used[which] = (void*)length;
    }
};

CUresult load(void** handle, const void* data, Logs logs) {
    if (!data) return INVALID_VALUE;
    Driver& d = driver();
    Image image = read_image(data);
    auto refuse = [&](CUresult result, const std::string& line) {
        logs.say(0, "");
        logs.say(1, line);
        return result;
    };
    if (!image.problem.empty()) {
        if (!image.is_ptx) return refuse(INVALID_IMAGE, image.problem);
        return refuse(INVALID_PTX, "ptxas application ptx input, line 1; fatal   : " + image.problem);
    }
    if (image.is_ptx && image.version > NEWEST_PTX) {
        return refuse(UNSUPPORTED_PTX_VERSION,
                      "ptxas application ptx input, line 1; fatal   : Unsupported .version; current version is '8.0'");
    }
    bool fits = image.is_ptx ? image.target <= d.capability
                             : image.target / 10 == d.capability / 10 && image.target <= d.capability;
    if (image.exact) fits = image.target == d.capability;
    const char* cubins = getenv("TWOCLOCKS_STANDIN_CUBIN");
    if (!image.is_ptx && cubins && !strcmp(cubins, "refuse")) fits = false;
    if (!fits) return refuse(NO_BINARY_FOR_GPU, "the image is for sm_" + std::to_string(image.target));
    for (auto& entry : image.entries) {
        const Kernel* kernel = find_kernel(entry.name);
        if (!kernel || !entry.knows_parameters) continue;
        if (kernel->parameters != entry.parameters) {
            std::string line = "stand-in: the parameters of " + entry.name
                + " in the image are not those of its source; the PTX is older than the source";
            fprintf(stderr, "%s\n", line.c_str());
            return refuse(INVALID_IMAGE, line);
        }
        if (kernel->max_threads != entry.max_threads) {
            std::string line = "stand-in: " + entry.name + " has other launch bounds in the image than in its source";
            fprintf(stderr, "%s\n", line.c_str());
            return refuse(INVALID_IMAGE, line);
        }
    }
    logs.say(0, "ptxas info    : 0 bytes gmem");
    logs.say(1, "");
    *handle = d.modules.emplace_back(new Module{.image = std::move(image), .functions = {}});
    return SUCCESS;
}

Function* find_function(void* handle) {
    for (Module* module : driver().modules) {
        if (knows(module->functions, handle)) return (Function*)handle;
    }
    return nullptr;
}

}  // namespace

extern "C" CUresult cuDeviceGetAttribute(int*, int, CUdevice);

namespace {
CUresult shared_limit(int* value) {
    return cuDeviceGetAttribute(value, 97, 0);
}
}  // namespace

API cuModuleLoadDataEx(void** module, const void* image, u32 count, int* options, void** values) {
    ENTER();
    TRY(safe_for_capture());
    return load(module, image, Logs(count, options, values));
}

API cuModuleLoadData(void** module, const void* image) {
    return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}

API cuModuleLoad(void** module, const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) return FILE_NOT_FOUND;
    std::string text;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file));) text.append(part, n);
    fclose(file);
    return cuModuleLoadData(module, text.c_str());
}

API cuModuleUnload(void* handle) {
    ENTER();
    TRY(safe_for_capture());
    TRY(drain());
    if (!knows(driver().modules, handle)) return INVALID_HANDLE;
    auto* module = (Module*)handle;
    for (Function* function : module->functions) delete function;
    std::erase(driver().modules, module);
    delete module;
    return SUCCESS;
}

API cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    ENTER();
    if (!knows(driver().modules, module_handle)) return INVALID_HANDLE;
    auto* module = (Module*)module_handle;
    for (Function* known : module->functions) {
        if (known->entry.name == name) return *handle = known, SUCCESS;
    }
    for (auto& entry : module->image.entries) {
        if (entry.name != name) continue;
        const Kernel* kernel = find_kernel(name);
        if (!kernel) {
            fprintf(stderr, "stand-in: %s is in the image, but was not compiled for the host\n", name);
            return NOT_FOUND;
        }
        size_t limit = entry.static_shared < (48u << 10) ? (48u << 10) - entry.static_shared : 0;
        auto* function = new Function{module, entry, kernel, limit};
        if (!entry.knows_parameters) function->entry.max_threads = kernel->max_threads;
        *handle = module->functions.emplace_back(function);
        return SUCCESS;
    }
    return NOT_FOUND;
}

API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void* module, const char*) {
    ENTER();
    return knows(driver().modules, module) ? NOT_FOUND : INVALID_HANDLE;
}

API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    switch (attribute) {
        case 0: *value = int(function->entry.max_threads); break;
        case 1: *value = int(function->entry.static_shared); break;
        case 2: case 3: *value = 0; break;
        case 4: *value = 32; break;
        case 5: *value = function->module->image.version; break;
        case 6: *value = driver().capability; break;
        case 7: *value = 0; break;
        case 8: *value = int(function->dynamic_limit); break;
        case 9: *value = -1; break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}

API cuFuncSetAttribute(void* handle, int attribute, int value) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    switch (attribute) {
        case 8: {
            int limit;
            TRY(shared_limit(&limit));
            if (value < 0 || size_t(value) + function->entry.static_shared > size_t(limit)) return INVALID_VALUE;
            function->dynamic_limit = size_t(value);
            return SUCCESS;
        }
        case 9: return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
        default: return INVALID_VALUE;
    }
}

API cuFuncSetCacheConfig(void* handle, int) {
    ENTER();
    return find_function(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t dynamic) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    if (threads <= 0) return INVALID_VALUE;
    int limit;
    TRY(shared_limit(&limit));
    size_t shared = function->entry.static_shared + dynamic + 1024;
    *blocks = std::min({2048 / ((threads + 31) / 32 * 32), int(size_t(limit + 1024) / shared), 16});
    return SUCCESS;
}

// Launches ------------------------------------------------------------------------------------------

static CUresult launch(void* handle, dim3 grid, dim3 block, u32 shared, void* stream_handle, void** parameters, void** extra,
                       dim3 cluster = {}) {
    ENTER_AS("cuLaunchKernel");
    Function* function = find_function(handle);
    Stream* stream = find_stream(stream_handle);
    if (!function || !stream) return INVALID_HANDLE;
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return INVALID_VALUE;
    if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return INVALID_VALUE;
    if (block.x * block.y * block.z > function->entry.max_threads) return INVALID_VALUE;
    if (shared > function->dynamic_limit) return INVALID_VALUE;
    u64 together = u64(cluster.x) * cluster.y * cluster.z;
    if (together != 1) {
        if (driver().capability < 90) {
            fprintf(stderr, "stand-in: clusters need compute capability 9.0\n");
            return NOT_SUPPORTED;
        }
        bool divides = together && !(grid.x % cluster.x) && !(grid.y % cluster.y) && !(grid.z % cluster.z);
        if (!divides || together > MAX_CLUSTER) return INVALID_CLUSTER_SIZE;
    }

    Launch launch{function->kernel, grid, block, shared, {}, {}, cluster};
    size_t end = 0;
    for (size_t bytes : function->kernel->parameters) {
        size_t alignment = std::min<size_t>(bytes & -bytes, 16);
        end = (end + alignment - 1) / alignment * alignment;
        launch.offsets.push_back(end);
        end += bytes;
    }
    launch.arguments.resize(end);
    if (parameters && extra) return INVALID_VALUE;
    if (extra) {
        const void* buffer = nullptr;
        size_t bytes = 0;
        for (; *extra; extra += 2) {
            if ((uintptr_t)extra[0] == 1) buffer = extra[1];
            else if ((uintptr_t)extra[0] == 2) bytes = *(size_t*)extra[1];
            else return INVALID_VALUE;
        }
        if (bytes < end) return INVALID_VALUE;
        memcpy(launch.arguments.data(), buffer, end);
    } else if (end) {
        if (!parameters) return INVALID_VALUE;
        for (size_t i = 0; i < launch.offsets.size(); i++) {
            if (!parameters[i]) return INVALID_VALUE;
            memcpy(launch.arguments.data() + launch.offsets[i], parameters[i], function->kernel->parameters[i]);
        }
    }
    return enqueue(stream, [launch = std::move(launch)] {
        switch (run(launch, driver().order)) {
            case Fault::None: return SUCCESS;
            case Fault::Memory: return ILLEGAL_ADDRESS;
            case Fault::Other: break;
        }
        return LAUNCH_FAILED;
    });
}

API cuLaunchKernel(void* function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, void* stream,
                   void** parameters, void** extra) {
    return launch(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters, extra);
}

/// All blocks of a cooperative launch run at the same time, which blocks that run in turn cannot.
API cuLaunchCooperativeKernel(void* function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared,
                              void* stream, void** parameters) {
    if (u64(gx) * gy * gz != 1) {
        fprintf(stderr, "stand-in: cooperative launches of more than one block are not supported\n");
        return NOT_SUPPORTED;
    }
    return launch(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters, nullptr);
}

struct LaunchAttribute {
    u32 id, pad;
    union {
        u32 extents[3];
        int flag;
        char bytes[64];
    } value;
};

struct LaunchConfiguration {
    u32 grid[3], block[3], shared;
    void* stream;
    LaunchAttribute* attributes;
    u32 count;
};

API cuLaunchKernelEx(const LaunchConfiguration* c, void* function, void** parameters, void** extra) {
    if (!c) return INVALID_VALUE;
    dim3 cluster;
    for (u32 i = 0; i < c->count; i++) {
        auto& attribute = c->attributes[i];
        constexpr u32 COOPERATIVE = 2, CLUSTER = 4, PROGRAMMATIC = 6, PRIORITY = 8;
        auto& extents = attribute.value.extents;
        bool no_cooperation = attribute.id == COOPERATIVE && !attribute.value.flag;
        if (attribute.id == CLUSTER) cluster = {extents[0], extents[1], extents[2]};
        bool known = attribute.id == 0 || attribute.id == CLUSTER || attribute.id == PROGRAMMATIC || attribute.id == PRIORITY;
        if (known || no_cooperation) continue;
        fprintf(stderr, "stand-in: launch attribute %u is not supported\n", attribute.id);
        return NOT_SUPPORTED;
    }
    return launch(function, {c->grid[0], c->grid[1], c->grid[2]}, {c->block[0], c->block[1], c->block[2]}, c->shared,
                  c->stream, parameters, extra, cluster);
}

// Tensor maps ---------------------------------------------------------------------------------------

/// Tiled, with the swizzle of 128 bytes and zeros outside: what kernels/common/hopper.cuh has.
API cuTensorMapEncodeTiled(void* to, int type, u32 rank, void* address, const u64* extents, const u64* strides,
                           const u32* box, const u32* element_strides, int interleave, int swizzle, int promotion, int fill) {
    if (!to || u64(to) % 64 || !address || u64(address) % 16) return INVALID_VALUE;
    constexpr int SHORT = 9, FLOAT = 7, SWIZZLE_128 = 3;
    if (rank < 2 || rank > 3 || (type != SHORT && type != FLOAT) || swizzle != SWIZZLE_128 || interleave || fill) {
        fprintf(stderr, "stand-in: a tensor map of a kind that is not supported\n");
        return NOT_SUPPORTED;
    }
    if (promotion < 0 || promotion > 3) return INVALID_VALUE;
    TensorMap map = {};
    map.magic = TensorMap::MAGIC;
    map.address = (unsigned char*)address;
    map.rank = rank;
    map.element_bytes = type == SHORT ? 2 : 4;
    map.strides[0] = map.element_bytes;
    for (u32 i = 0; i < 3; i++) {
        bool there = i < rank;
        if (there && (!extents[i] || extents[i] > 1ull << 32 || !box[i] || box[i] > 256 || element_strides[i] != 1)) return INVALID_VALUE;
        map.extents[i] = there ? u32(extents[i]) : 1;
        map.box[i] = there ? box[i] : 1;
        if (there && i && (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40)) return INVALID_VALUE;
        if (there && i) map.strides[i] = strides[i - 1];
    }
    // The box's rows: as long as the pattern.
    if (map.box[0] * map.element_bytes > 128 || map.box[0] * map.element_bytes % 16) return INVALID_VALUE;
    memcpy(to, &map, sizeof map);
    return SUCCESS;
}
