#include "buffers.h"

#include <stdexcept>

#include "ggml-alloc.h"
#include "llama-impl.h"

void llama_tq_buffers::add(ggml_context_ptr ctx, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_ptr buffer(no_alloc ? ggml_backend_buft_alloc_buffer(type, 0)
                                            : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), type));
    if (!buffer) {
        throw std::runtime_error(format("no memory on %s for the tables of a TQ cache", ggml_backend_buft_name(type)));
    }
    for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t && no_alloc; t = ggml_get_next_tensor(ctx.get(), t)) {
        t->buffer = buffer.get();
    }
    LLAMA_LOG_INFO("%s: %10s TQ buffer size = %8.2f MiB\n", __func__, ggml_backend_buft_name(type),
                   (double) size(ctx.get(), buffer.get()) / 1024.0 / 1024.0);
    buffers.emplace_back(std::move(ctx), std::move(buffer));
}

void llama_tq_buffers::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & breakdown) const {
    for (const auto & [ctx, buffer] : buffers) {
        breakdown[ggml_backend_buffer_get_type(buffer.get())] += size(ctx.get(), buffer.get());
    }
}

size_t llama_tq_buffers::size(ggml_context * ctx, ggml_backend_buffer_t buffer) const {
    return no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, ggml_backend_buffer_get_type(buffer))
                    : ggml_backend_buffer_get_size(buffer);
}
