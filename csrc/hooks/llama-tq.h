// What the TQ types ask of llama.cpp's KV cache.
#pragma once

#include <cstdio>
#include <numeric>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"
#include "tq.h"
#include "tq_blocks.h"

class llama_kv_cache;
struct llama_model;
struct llama_context_params;

// Whether a context cannot be made; then the reason, and what to do instead, is in the log.
bool llama_tq_refuses(const llama_model & model, const llama_context_params & params);

// Whether every device of the model still answers; the reason is in the log. Only RPC servers can be lost: upstream
// learns that with the next answer, here they are asked for one.
bool llama_tq_answers(const llama_model & model);

// Computes a graph of the model; failed, with the reason in the log, where a device does not answer any more or a
// position is asked for that the model has not learned.
ggml_status llama_tq_compute(const llama_model & model, ggml_backend_sched_t sched, ggml_cgraph * graph);

// The size of a state that was saved, or whether it was; nothing, and no file, where a device did not answer.
template <typename T> T llama_tq_saved(const llama_context & context, T saved, const char * file = nullptr) {
    if (!llama_tq_answers(*llama_get_model(&context))) {
        if (file) {
            std::remove(file);
        }
        return T();
    }
    return saved;
}

// --- rotation ---
// A TQ cache is always rotated. The Hadamard matrices are powers of two, and a head is rotated in parts of that size.

inline bool llama_tq_is(ggml_type type) {
    return tq_type_from_id(type) >= 0;
}

// Whether the keys of a cache are; without layers, as the second cache of models whose attention never slides, it has
// no type.
bool llama_tq_is(const llama_kv_cache & cache);

// A head is rotated if this divides its size; upstream's own types keep upstream's limit.
inline int llama_tq_rotation_unit(ggml_type type) {
    return llama_tq_is(type) ? TQ_BLOCK : 64;
}

// The smallest matrix for heads of that size.
inline int llama_tq_smallest_rotation(int head_size) {
    return head_size % 64 == 0 ? 64 : TQ_BLOCK;
}

// The head size to choose a matrix for, in a cache with two: -1, no rotation, for upstream's own types.
inline int llama_tq_common_head_size(ggml_type type, int a, int b) {
    return llama_tq_is(type) ? std::gcd(a, b) : -1;
}
