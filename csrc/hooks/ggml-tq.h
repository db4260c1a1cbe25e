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

// An RPC server tells in a byte of its handshake, which is 0 in other servers, that all its devices have the types.
#define GGML_TQ_FORMAT ((GGML_TYPE_TQ4_0 - 1024) / 16) // FORMAT.md's version
TQ_API uint8_t ggml_tq_format_of(const ggml_backend_t * backends, size_t count);

#ifdef __cplusplus
}
#endif
