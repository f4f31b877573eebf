// Streams, events and graphs.
#include "driver.hpp"

#include <algorithm>

using namespace standin;
using std::chrono::steady_clock;

API cuStreamCreateWithPriority(void** stream, u32 flags, int priority) {
    ENTER();
    if (flags > 1) return INVALID_VALUE;
    *stream = driver().streams.emplace_back(new Stream{.blocking = flags == 0, .priority = std::clamp(priority, -5, 0)});
    return SUCCESS;
}

API cuStreamCreate(void** stream, u32 flags) {
    return cuStreamCreateWithPriority(stream, flags, 0);
}

API cuStreamDestroy_v2(void* handle) {
    ENTER();
    if (!knows(driver().streams, handle)) return INVALID_HANDLE;
    auto* stream = (Stream*)handle;
    // Its work goes on to its end; a capture does not.
    if (stream->capture) {
        invalidate(stream->capture);
        if (stream->capture->origin == stream) forget(stream->capture);
        else stream->capture->forks.erase(stream);
    }
    std::erase(driver().streams, stream);
    return drain();
}

API cuStreamSynchronize(void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        invalidate(stream->capture);
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    return drain();
}

API cuStreamQuery(void* handle) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        invalidate(stream->capture);
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    // Asking again and again must come to an end, so asking counts as time that passes.
    return drain();
}

API cuStreamGetFlags(void* handle, u32* flags) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *flags = stream->blocking ? 0 : 1;
    return SUCCESS;
}

API cuStreamGetPriority(void* handle, int* priority) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *priority = stream->priority;
    return SUCCESS;
}

API cuStreamGetCtx(void* handle, void** context) {
    ENTER();
    if (!find_stream(handle)) return INVALID_HANDLE;
    *context = &driver().context;
    return SUCCESS;
}

API cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    return enqueue(stream, [=] { return function(data), SUCCESS; });
}

/// Adds what is not there yet.
static void add(std::vector<NodeIndex>& to, const std::vector<NodeIndex>& more) {
    for (NodeIndex one : more) {
        if (std::find(to.begin(), to.end(), one) == to.end()) to.push_back(one);
    }
}

// Events ------------------------------------------------------------------------------------------

static Event* find_event(void* handle) {
    return knows(driver().events, handle) ? (Event*)handle : nullptr;
}

API cuEventCreate(void** event, u32 flags) {
    ENTER();
    constexpr u32 DISABLE_TIMING = 2;
    if (flags > 7) return INVALID_VALUE;
    *event = driver().events.emplace_back(new Event(!(flags & DISABLE_TIMING)));
    return SUCCESS;
}

API cuEventDestroy_v2(void* handle) {
    ENTER();
    Event* event = find_event(handle);
    if (!event) return INVALID_HANDLE;
    TRY(drain());
    std::erase(driver().events, event);
    delete event;
    return SUCCESS;
}

API cuEventRecord(void* handle, void* stream_handle) {
    ENTER();
    Event* event = find_event(handle);
    Stream* stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    if (Capture* capture = stream->capture) {
        if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        event->capture = capture;
        event->stream = stream;
        event->nodes = stream == capture->origin ? 0 : capture->forks[stream].nodes;
        event->after = capture->last[stream];
        return SUCCESS;
    }
    event->capture = nullptr;
    event->recorded = true;
    event->done = false;
    return enqueue(stream, [event] {
        event->time = steady_clock::now();
        event->done = true;
        return SUCCESS;
    });
}

API cuEventSynchronize(void* handle) {
    ENTER();
    Event* event = find_event(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    return drain();
}

API cuEventQuery(void* handle) {
    return cuEventSynchronize(handle);
}

API cuEventElapsedTime(float* milliseconds, void* start_handle, void* end_handle) {
    ENTER();
    Event *start = find_event(start_handle), *end = find_event(end_handle);
    if (!start || !end || !start->timing || !end->timing) return INVALID_HANDLE;
    if (start->capture || end->capture) return CAPTURED_EVENT;
    if (!start->recorded || !end->recorded) return INVALID_HANDLE;
    if (!start->done || !end->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return SUCCESS;
}

API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

API cuStreamWaitEvent(void* stream_handle, void* handle, u32) {
    ENTER();
    Event* event = find_event(handle);
    Stream* stream = find_stream(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    Capture* from = event->capture && knows(driver().captures, event->capture) ? event->capture : nullptr;
    if (stream->capture) {
        if (stream->capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        if (event->capture && from != stream->capture) {
            invalidate(stream->capture);
            return from ? STREAM_CAPTURE_MERGE : STREAM_CAPTURE_ISOLATION;
        }
        if (!event->capture) {
            // An event that was never recorded is no dependency.
            if (!event->recorded) return SUCCESS;
            invalidate(stream->capture);
            return STREAM_CAPTURE_ISOLATION;
        }
        if (event->stream != from->origin) {
            auto& fork = from->forks[event->stream];
            fork.joined = std::max(fork.joined, event->nodes);
        }
        add(from->last[stream], event->after);
        return SUCCESS;
    }
    if (from) {
        if (stream == &driver().null_stream) return STREAM_CAPTURE_IMPLICIT;
        // The stream takes part in the capture from here on.
        stream->capture = from;
        from->forks[stream] = {};
        from->last[stream] = event->after;
    }
    // Else nothing: all work runs in the order of its calls.
    return SUCCESS;
}

// Capture and graphs --------------------------------------------------------------------------------

API cuStreamBeginCapture_v2(void* handle, u32 mode) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (mode > 2) return INVALID_VALUE;
    if (stream == &driver().null_stream) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = new Capture(Capture::Mode(mode), std::this_thread::get_id(), stream);
    driver().captures.push_back(stream->capture);
    return SUCCESS;
}

API cuStreamEndCapture(void* handle, void** graph) {
    ENTER();
    *graph = nullptr;
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    Capture* capture = stream->capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->origin != stream) {
        invalidate(capture);
        return STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != Capture::Relaxed && capture->thread != std::this_thread::get_id()) {
        return STREAM_CAPTURE_WRONG_THREAD;
    }
    bool joined = true;
    for (auto& [_, fork] : capture->forks) joined &= fork.joined == fork.nodes;
    forget(capture);
    if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (!joined) return STREAM_CAPTURE_UNJOINED;
    driver().graphs.push_back(capture->graph);
    *graph = capture->graph;
    return SUCCESS;
}

API cuStreamIsCapturing(void* handle, u32* status) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

API cuStreamGetCaptureInfo_v2(void* handle, u32* status, u64* id, void** graph, void*** dependencies, size_t* count) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    Capture* capture = stream->capture;
    *status = !capture ? 0 : capture->invalid ? 2 : 1;
    if (*status != 1) return SUCCESS;
    if (id) *id = u64(uintptr_t(capture));
    if (graph) *graph = capture->graph;
    capture->handles.clear();
    for (NodeIndex one : capture->last[stream]) capture->handles.push_back(&capture->graph->nodes[one]);
    if (dependencies) *dependencies = capture->handles.data();
    if (count) *count = capture->handles.size();
    return SUCCESS;
}

API cuStreamUpdateCaptureDependencies(void* handle, void** dependencies, size_t count, u32 flags) {
    ENTER();
    Stream* stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    constexpr u32 SET = 1;
    if (flags > SET || (count && !dependencies)) return INVALID_VALUE;
    if (!stream->capture) return ILLEGAL_STATE;
    if (stream->capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    auto& nodes = stream->capture->graph->nodes;
    std::vector<NodeIndex> after;
    for (size_t i = 0; i < count; i++) {
        auto node = std::find_if(nodes.begin(), nodes.end(), [=](Node& node) { return &node == dependencies[i]; });
        if (node == nodes.end()) return INVALID_VALUE;
        after.push_back(NodeIndex(node - nodes.begin()));
    }
    auto& last = stream->capture->last[stream];
    if (flags == SET) last.clear();
    add(last, after);
    return SUCCESS;
}

API cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    ENTER();
    if (!knows(driver().graphs, handle)) return INVALID_HANDLE;
    if (nodes) return NOT_SUPPORTED;
    *count = ((Graph*)handle)->nodes.size();
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void** executable, void* handle, u64 flags) {
    ENTER();
    *executable = nullptr;
    if (!knows(driver().graphs, handle)) return INVALID_HANDLE;
    // Freed memory, upload and priorities change nothing here; launches from the device are not for these nodes.
    constexpr u64 DEVICE_LAUNCH = 4;
    if (flags > 15 || flags & DEVICE_LAUNCH) return INVALID_VALUE;
    *executable = driver().executables.emplace_back(new Graph(*(Graph*)handle));
    return SUCCESS;
}

API cuGraphUpload(void* executable, void* stream) {
    ENTER();
    if (!knows(driver().executables, executable) || !find_stream(stream)) return INVALID_HANDLE;
    return SUCCESS;
}

/// Nodes in an order that their dependencies allow: that of their capture, or the last captured first, or shuffled. So
/// what depends on a node and does not say so finds it not done yet.
static CUresult run(const Graph& graph, u64 random) {
    size_t count = graph.nodes.size();
    std::vector<size_t> missing(count);
    std::vector<std::vector<NodeIndex>> before(count);
    std::vector<NodeIndex> ready;
    for (NodeIndex i = 0; i < count; i++) {
        missing[i] = graph.nodes[i].after.size();
        for (NodeIndex one : graph.nodes[i].after) before[one].push_back(i);
        if (!missing[i]) ready.push_back(i);
    }
    while (!ready.empty()) {
        auto next = std::min_element(ready.begin(), ready.end());
        switch (driver().order.kind) {
            case Order::Forward: break;
            case Order::Reverse: next = std::max_element(ready.begin(), ready.end()); break;
            case Order::Shuffle:
                random ^= random << 13, random ^= random >> 7, random ^= random << 17;
                next = ready.begin() + ptrdiff_t(random % ready.size());
        }
        NodeIndex node = *next;
        ready.erase(next);
        if (CUresult result = graph.nodes[node].work()) return result;
        for (NodeIndex one : before[node]) {
            if (!--missing[one]) ready.push_back(one);
        }
    }
    return SUCCESS;
}

API cuGraphLaunch(void* handle, void* stream_handle) {
    ENTER();
    Stream* stream = find_stream(stream_handle);
    if (!stream || !knows(driver().executables, handle)) return INVALID_HANDLE;
    auto* graph = (Graph*)handle;
    u64 random = (driver().order.seed + 1) * 0x9e3779b97f4a7c15ull ^ ++driver().graph_launches << 32;
    return enqueue(stream, [graph = *graph, random] { return run(graph, random); });
}

API cuGraphExecDestroy(void* handle) {
    ENTER();
    if (!knows(driver().executables, handle)) return INVALID_HANDLE;
    std::erase(driver().executables, handle);
    delete (Graph*)handle;
    return SUCCESS;
}

API cuGraphDestroy(void* handle) {
    ENTER();
    if (!knows(driver().graphs, handle)) return INVALID_HANDLE;
    std::erase(driver().graphs, handle);
    delete (Graph*)handle;
    return SUCCESS;
}
