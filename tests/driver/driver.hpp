// Types of the driver interface as far as the stand-in has it, and what its files share.
// Source: CUDA Driver API reference, version 12.0.
#pragma once

#include "image.hpp"
#include "machine.hpp"

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

enum CUresult : u32 {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_MERGE = 902,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_UNJOINED = 904,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
    INVALID_CLUSTER_SIZE = 912,
    UNKNOWN = 999,
};

using CUdevice = int;
using CUdeviceptr = u64;

namespace standin {

using Work = std::function<CUresult()>;
struct Stream;

/// A node's place in its graph.
using NodeIndex = size_t;

struct Node {
    Work work;
    /// What has to be done before it.
    std::vector<NodeIndex> after;
};

struct Graph {
    /// In the order of their capture. A node's handle is its address, so none of them moves.
    std::deque<Node> nodes;
};

struct Capture {
    enum Mode { Global, ThreadLocal, Relaxed } mode;
    std::thread::id thread;
    Stream* origin;
    Graph* graph = new Graph;
    /// For each other stream that takes part: its nodes so far, and how many of them have been waited for.
    struct Fork {
        size_t nodes = 0, joined = 0;
    };
    std::map<Stream*, Fork> forks;
    /// What the next node of each stream that takes part comes after.
    std::map<Stream*, std::vector<NodeIndex>> last;
    /// Handles of these, for who asks.
    std::vector<void*> handles;
    /// The error that the end of the capture gives.
    bool invalid = false;
};

struct Stream {
    bool blocking;
    int priority = 0;
    Capture* capture = nullptr;
};

struct Event {
    bool timing;
    bool recorded = false, done = false;
    std::chrono::steady_clock::time_point time;
    /// Where it was recorded during a capture, and how many nodes that stream had then.
    Capture* capture = nullptr;
    Stream* stream = nullptr;
    size_t nodes = 0;
    /// What had to be done before it, in that capture.
    std::vector<NodeIndex> after;
};

struct Module;

struct Function {
    Module* module;
    Entry entry;
    const Kernel* kernel;
    size_t dynamic_limit;
};

struct Module {
    Image image;
    std::vector<Function*> functions;
};

struct Context {};

struct Driver {
    std::recursive_mutex mutex;
    bool initialized = false;
    Order order;
    /// Work runs only when something waits for it. Else at once.
    bool late = false;
    int capability = 80;
    int retained = 0;
    /// What every call gives after a kernel failed, as on a device.
    CUresult broken = SUCCESS;
    Context context;
    Stream null_stream{.blocking = true};
    std::vector<Stream*> streams;
    std::vector<Event*> events;
    std::vector<Graph*> graphs, executables;
    std::vector<Module*> modules;
    std::vector<Capture*> captures;
    std::vector<Work> queue;
    /// How often each function was called.
    std::map<std::string, u64> calls;
    /// Launches of graphs so far.
    u64 graph_launches = 0;
};

Driver& driver();
Context*& current_context();
/// Whether the call may be made: initialised, a context is bound, no kernel has failed.
CUresult ready();
/// Whether a call that is unsafe during a capture may be made; it ends the capture if not.
CUresult safe_for_capture();
/// The stream behind a handle, or null for one that is not there.
Stream* find_stream(void* handle);
/// Puts work on a stream, or into the graph that captures it.
CUresult enqueue(Stream* stream, Work work);
/// Runs what waits.
CUresult drain();
/// Ends a capture without a graph; its streams go on as others do.
void invalidate(Capture* capture);
void forget(Capture* capture);

template <class T>
bool knows(const std::vector<T*>& all, const void* one) {
    for (T* other : all) {
        if (other == one) return true;
    }
    return false;
}

#define TRY(call) \
    if (CUresult result_ = (call)) return result_
#define ENTER() ENTER_AS(__func__)
#define ENTER_AS(name) \
    std::lock_guard lock_(driver().mutex); \
    driver().calls[name]++; \
    TRY(ready())

}  // namespace standin
