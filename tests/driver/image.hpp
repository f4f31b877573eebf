// What a module image says about its kernels: PTX text, or a cubin (ELF).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace standin {

struct Entry {
    std::string name;
    /// Bytes of each parameter; a cubin does not say (`knows_parameters` is false).
    std::vector<size_t> parameters;
    bool knows_parameters = false;
    size_t static_shared = 0;
    unsigned max_threads = 1024;
};

struct Image {
    bool is_ptx = false;
    /// ISA version times 10, and the number of its target: 80 and 75 for `.version 8.0`, `.target sm_75`.
    int version = 0, target = 0;
    /// The target ends in `a`: it runs on that architecture only.
    bool exact = false;
    std::vector<Entry> entries;
    /// What is wrong with it; empty for a good one.
    std::string problem;
};

Image read_image(const void* data);

}  // namespace standin
