// What the TQ types ask of llama.cpp's KV cache.
#pragma once

#include <numeric>

#include "ggml.h"
#include "llama.h"
#include "tq.h"
#include "tq_blocks.h"

struct llama_model;
struct llama_context_params;

// Whether a context cannot be made; then the reason, and what to do instead, is in the log.
bool llama_tq_refuses(const llama_model & model, const llama_context_params & params);

// The status of a graph: failed, with the reason in the log, where a device of the model does not answer any more. Only
// RPC servers can be lost: upstream learns that with the next answer, here it is asked for one.
ggml_status llama_tq_answered(const llama_model & model, ggml_status status);

// From now on, or no more: what ggml would end the process for in this thread is thrown (std::runtime_error). For calls
// that catch and report, such as loading a model; whoever calls another one ends as before.
extern "C" LLAMA_API void llama_tq_catch_aborts(bool on);

// --- rotation ---
// A TQ cache is always rotated. The Hadamard matrices are powers of two, and a head is rotated in parts of that size.

inline bool llama_tq_is(ggml_type type) {
    return tq_type_from_id(type) >= 0;
}

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
