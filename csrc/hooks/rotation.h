// The matrices that rotate a TQ cache, beside its layers, on each of their devices. Upstream has them among the inputs
// of a graph and copies them to the devices for every batch, which takes longer there than the rotation.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "buffers.h"

class llama_kv_cache;
class llama_kv_cache_context;

class llama_tq_rotation {
public:
    // `matrices` has the values of an n x n matrix by n.
    llama_tq_rotation(const llama_kv_cache & cache, const std::unordered_map<int64_t, std::vector<float>> & matrices,
                      bool no_alloc);

    // F32 [n, n], shaped as the cache shapes its inputs; null where that half is not rotated. Those beside the last
    // layer.
    ggml_tensor * k() const { return last.k; }
    ggml_tensor * v() const { return last.v; }

    // Those beside a layer's storage.
    void beside(const ggml_tensor * storage, ggml_tensor *& k, ggml_tensor *& v) const;

    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & breakdown) const { buffers.add_memory(breakdown); }

private:
    struct pair {
        ggml_tensor *k, *v;
    };

    std::map<ggml_backend_buffer_type_t, pair> pairs;
    pair last;
    llama_tq_buffers buffers;
};

// In a graph, for a layer: the matrices on its device, where the cache keeps them; otherwise they stay what they are.
void llama_tq_rotate_beside(const llama_kv_cache_context * cache, int il, ggml_tensor *& k, ggml_tensor *& v);
