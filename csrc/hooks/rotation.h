// The matrices that rotate a TQ cache, beside it. Upstream has them among the inputs of a graph and copies them to the
// device for every batch, which takes longer there than the rotation.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "buffers.h"

class llama_kv_cache;

class llama_tq_rotation {
public:
    // `matrices` has the values of an n x n matrix by n. They lie beside the cache's last layer; a graph copies them to
    // other devices.
    llama_tq_rotation(const llama_kv_cache & cache, const std::unordered_map<int64_t, std::vector<float>> & matrices,
                      bool no_alloc);

    // F32 [n, n], shaped as the cache shapes its inputs; null where that half is not rotated.
    ggml_tensor * k() const { return rotates_k; }
    ggml_tensor * v() const { return rotates_v; }

    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & breakdown) const { buffers.add_memory(breakdown); }

private:
    ggml_tensor *rotates_k, *rotates_v;
    llama_tq_buffers buffers;
};
