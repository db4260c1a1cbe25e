// Memory of tables beside a cache: allocated, or only counted for a plan.
#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"

class llama_tq_buffers {
public:
    // A plan's tensors have no memory and may not be written.
    explicit llama_tq_buffers(bool no_alloc) : no_alloc(no_alloc) {}

    // Keeps a context, and memory of that type for its tensors. Throws std::runtime_error if there is not enough.
    void add(ggml_context_ptr ctx, ggml_backend_buffer_type_t type);
    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & breakdown) const;

    const bool no_alloc;

private:
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> buffers;

    size_t size(ggml_context * ctx, ggml_backend_buffer_t buffer) const;
};
