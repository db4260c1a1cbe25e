#include "rotation.h"

#include "llama-kv-cache.h"

llama_tq_rotation::llama_tq_rotation(const llama_kv_cache & cache,
                                     const std::unordered_map<int64_t, std::vector<float>> & matrices, bool no_alloc)
    : buffers(no_alloc) {
    for (const uint32_t il : cache.get_layer_ids()) {
        const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(cache.get_k_storage((int32_t) il)->buffer);
        if (pairs.count(type)) {
            last = pairs.at(type);
            continue;
        }
        ggml_context_ptr ctx(ggml_init({2 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true}));
        last = {cache.build_input_k_rot(ctx.get()), cache.build_input_v_rot(ctx.get())};
        pairs.emplace(type, last);
        buffers.add(std::move(ctx), type);
        for (ggml_tensor * t : {last.k, last.v}) {
            if (t) {
                t->flags &= ~GGML_TENSOR_FLAG_INPUT;
                if (!no_alloc) {
                    ggml_backend_tensor_set(t, matrices.at(t->ne[0]).data(), 0, ggml_nbytes(t));
                }
            }
        }
    }
}

void llama_tq_rotation::beside(const ggml_tensor * storage, ggml_tensor *& k, ggml_tensor *& v) const {
    const pair & found = pairs.at(ggml_backend_buffer_get_type(storage->buffer));
    k = found.k;
    v = found.v;
}

void llama_tq_rotate_beside(const llama_kv_cache_context * cache, int il, ggml_tensor *& k, ggml_tensor *& v) {
    const llama_kv_cache & kv = cache->get_kv();
    if (kv.tq_rotation) {
        kv.tq_rotation->beside(kv.get_k_storage(il), k, v);
    }
}
