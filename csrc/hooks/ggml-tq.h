// The TQ types with the signatures of ggml's tables of types.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"
#include "tq.h"
#include "tq_blocks.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                      \
    TQ_API void ggml_tq_to_float_##name(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n);      \
    TQ_API void ggml_tq_from_float_##name(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n);    \
    TQ_API void ggml_tq_vec_dot_##name(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT x, \
                                       size_t bx, const void * GGML_RESTRICT y, size_t by, int nrc);
#include "types.def"
#undef TQ_TYPE

// The type of that name, or GGML_TYPE_COUNT.
TQ_API enum ggml_type ggml_tq_type_from_name(const char * name);

// Whether an operation reads or writes one of the types.
TQ_API bool ggml_tq_in(const struct ggml_tensor * op);
// Whether a device can write rows of n values of that type into a cache.
TQ_API bool ggml_tq_can_store(ggml_backend_dev_t dev, enum ggml_type type, int64_t n);

// Centred keys: flash attention adds to the score of a cell what tq_attn_centre (cpu/attention/attention.h) says.
// query F32 [head, tokens, heads, streams], before the rotation; mean F32 [head, kv heads]; turns F32 [head, chunks];
// chunk I32 [cells, streams], rows of turns. A query alone changes nothing: it is there for kernels that rotate.
enum { GGML_TQ_SRC_QUERY = 5, GGML_TQ_SRC_MEAN, GGML_TQ_SRC_TURNS, GGML_TQ_SRC_CHUNK };
enum { GGML_TQ_PARAM_ROPE_DIMS = 14, GGML_TQ_PARAM_NEOX };
TQ_API void ggml_tq_set_centre(struct ggml_tensor * flash_attn, struct ggml_tensor * query, struct ggml_tensor * mean,
                               struct ggml_tensor * turns, struct ggml_tensor * chunk, int rope_dims, bool neox);

// An RPC server tells in a byte of its handshake, which is 0 in other servers, that all its devices have the types, and
// attention that adds the offsets of centred keys.
#define GGML_TQ_FORMAT ((GGML_TYPE_TQ4_0 - 1024) / 16 * 16 + 1) // FORMAT.md's version, and CENTRING.md's
TQ_API uint8_t ggml_tq_format_of(const ggml_backend_t * backends, size_t count);

#ifdef __cplusplus
}
#endif
