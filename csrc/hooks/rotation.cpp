#include "rotation.h"

#include "llama-kv-cache.h"

llama_tq_rotation::llama_tq_rotation(const llama_kv_cache & cache,
                                     const std::unordered_map<int64_t, std::vector<float>> & matrices, bool no_alloc)
    : buffers(no_alloc) {
    ggml_context_ptr ctx(ggml_init({2 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true}));
    rotates_k = cache.build_input_k_rot(ctx.get());
    rotates_v = cache.build_input_v_rot(ctx.get());
    const ggml_tensor * last = cache.get_k_storage((int32_t) cache.get_layer_ids().back());
    buffers.add(std::move(ctx), ggml_backend_buffer_get_type(last->buffer));
    for (ggml_tensor * t : {rotates_k, rotates_v}) {
        if (t) {
            t->flags &= ~GGML_TENSOR_FLAG_INPUT;
            if (!no_alloc) {
                ggml_backend_tensor_set(t, matrices.at(t->ne[0]).data(), 0, ggml_nbytes(t));
            }
        }
    }
}
