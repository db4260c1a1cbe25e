// Adapters from ggml's tables of types to tq.h.
#include <string.h>

#include "ggml-tq.h"

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                          \
    _Static_assert(id < GGML_TYPE_COUNT, "ggml's tables hold " #name);                                              \
    void ggml_tq_to_float_##name(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n) {                \
        tq_dequantize_row(TQ_TYPE_##NAME, x, y, n);                                                                 \
    }                                                                                                               \
    void ggml_tq_from_float_##name(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n) {              \
        tq_quantize_row(TQ_TYPE_##NAME, x, y, n);                                                                   \
    }                                                                                                               \
    void ggml_tq_vec_dot_##name(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT x, size_t bx, \
                                const void * GGML_RESTRICT y, size_t by, int nrc) {                                 \
        (void) bs, (void) bx, (void) by, (void) nrc; /* one row at a time: .nrows is 1 */                           \
        *s = tq_vec_dot(TQ_TYPE_##NAME, x, y, n);                                                                   \
    }
#include "types.def"
#undef TQ_TYPE

enum ggml_type ggml_tq_type_from_name(const char * name) {
    for (int type = 0; type < TQ_TYPE_COUNT; type++) {
        const struct tq_type_info * info = tq_type_info(type);
        if (strcmp(info->name, name) == 0) {
            return (enum ggml_type) info->id;
        }
    }
    return GGML_TYPE_COUNT;
}
