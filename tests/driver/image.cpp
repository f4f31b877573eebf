#include "image.hpp"

#include <elf.h>

#include <cctype>
#include <cstdio>
#include <cstring>
#include <map>

namespace standin {

namespace {

/// PTX without its comments.
std::string strip(const char* text) {
    std::string out;
    for (const char* p = text; *p; p++) {
        if (p[0] == '/' && p[1] == '/') {
            while (*p && *p != '\n') p++;
        } else if (p[0] == '/' && p[1] == '*') {
            const char* end = strstr(p + 2, "*/");
            if (!end) break;
            p = end + 1;
            continue;
        }
        if (!*p) break;
        out += *p;
    }
    return out;
}

struct Words {
    const std::string& text;
    size_t at = 0;
    /// A name, a number, or one other character; empty at the end.
    std::string next() {
        while (at < text.size() && isspace((unsigned char)text[at])) at++;
        size_t from = at;
        auto part = [&](char c) { return isalnum((unsigned char)c) || c == '_' || c == '.' || c == '$' || c == '%'; };
        if (at < text.size() && part(text[at])) {
            while (at < text.size() && part(text[at])) at++;
        } else if (at < text.size()) {
            at++;
        }
        return text.substr(from, at - from);
    }
};

size_t type_bytes(const std::string& type) {
    size_t digits = type.find_first_of("0123456789");
    return digits == std::string::npos ? 0 : std::stoul(type.substr(digits)) / 8;
}

bool is_type(const std::string& word) {
    return word.size() >= 3 && word[0] == '.' && strchr("busf", word[1]) && isdigit((unsigned char)word[2]);
}

/// After `.param` or `.shared`: type, name, extent. The size in bytes.
size_t declared(Words& words, std::string& name) {
    size_t bytes = 0;
    std::string word = words.next();
    for (; !word.empty() && !is_type(word); word = words.next()) {
        // .align N, .ptr .global and their like
    }
    bytes = type_bytes(word);
    name = words.next();
    size_t at = words.at;
    if (words.next() == "[") {
        std::string extent = words.next();
        bytes *= isdigit((unsigned char)extent[0]) ? std::stoul(extent) : 0;
        words.next();
    } else {
        words.at = at;
    }
    return bytes;
}

void read_ptx(const char* data, Image& image) {
    image.is_ptx = true;
    std::string text = strip(data);
    Words words{text};
    std::map<std::string, size_t> shared;
    std::string word;
    while (!(word = words.next()).empty()) {
        if (word == ".version") {
            std::string version = words.next();
            int major = 0, minor = 0;
            sscanf(version.c_str(), "%d.%d", &major, &minor);
            image.version = major * 10 + minor;
        } else if (word == ".target") {
            std::string target = words.next();
            sscanf(target.c_str(), "sm_%d", &image.target);
            image.exact = target.back() == 'a';
        } else if (word == ".shared") {
            std::string name;
            size_t bytes = declared(words, name);
            shared[name] = bytes;
        } else if (word == ".entry") {
            Entry entry;
            entry.name = words.next();
            entry.knows_parameters = true;
            word = words.next();
            if (word == "(") {
                while ((word = words.next()) != ")" && !word.empty()) {
                    std::string name;
                    if (word == ".param") entry.parameters.push_back(declared(words, name));
                }
                word = words.next();
            }
            for (; word != "{" && !word.empty(); word = words.next()) {
                if (word == ".maxntid") {
                    // One to three extents, with commas between them.
                    size_t threads = std::stoul(words.next()), at = words.at;
                    while (words.next() == ",") {
                        threads *= std::stoul(words.next());
                        at = words.at;
                    }
                    words.at = at;
                    entry.max_threads = unsigned(threads);
                }
            }
            int depth = 1;
            std::map<std::string, size_t> used;
            while (depth > 0 && !(word = words.next()).empty()) {
                if (word == "{") depth++;
                if (word == "}") depth--;
                if (word == ".shared" ) {
                    std::string name;
                    size_t bytes = declared(words, name);
                    used[name] = bytes;
                } else if (auto it = shared.find(word); it != shared.end()) {
                    used.insert(*it);
                }
            }
            if (depth) image.problem = "syntax error: the body of " + entry.name + " does not end";
            for (auto& [name, bytes] : used) entry.static_shared += bytes;
            image.entries.push_back(entry);
        }
    }
    if (!image.version) image.problem = "Missing .version directive at start of file";
    else if (!image.target) image.problem = "Missing .target directive";
}

void read_elf(const unsigned char* data, Image& image) {
    auto* header = (const Elf64_Ehdr*)data;
    constexpr unsigned short CUDA = 190;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != CUDA) {
        image.problem = "the ELF image is not for a GPU";
        return;
    }
    // 0xff of the flags is the architecture up to CUDA 12, the byte above it from CUDA 13 on.
    int low = header->e_flags & 0xff, high = header->e_flags >> 8 & 0xff;
    image.target = header->e_ident[EI_ABIVERSION] >= 8 ? high : low;
    auto* sections = (const Elf64_Shdr*)(data + header->e_shoff);
    auto* names = (const char*)data + sections[header->e_shstrndx].sh_offset;
    std::map<std::string, size_t> shared;
    for (int i = 0; i < header->e_shnum; i++) {
        const char* name = names + sections[i].sh_name;
        if (!strncmp(name, ".nv.shared.", 11)) shared[name + 11] = sections[i].sh_size;
    }
    for (int i = 0; i < header->e_shnum; i++) {
        const char* name = names + sections[i].sh_name;
        if (strncmp(name, ".text.", 6)) continue;
        Entry entry;
        entry.name = name + 6;
        entry.static_shared = shared[entry.name];
        image.entries.push_back(entry);
    }
    if (image.entries.empty()) image.problem = "the cubin has no kernels";
}

}  // namespace

Image read_image(const void* data) {
    Image image;
    auto* bytes = (const unsigned char*)data;
    if (!memcmp(bytes, ELFMAG, SELFMAG)) {
        read_elf(bytes, image);
        return image;
    }
    read_ptx((const char*)data, image);
    return image;
}

}  // namespace standin
