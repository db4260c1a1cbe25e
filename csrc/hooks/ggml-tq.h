// The TQ types with the signatures of ggml's tables of types.
#pragma once

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

#ifdef __cplusplus
}
#endif
