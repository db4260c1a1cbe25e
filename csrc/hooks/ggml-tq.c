// Adapters from ggml's tables of types to tq.h, and questions about operations and devices.
#include <string.h>

#include "ggml-impl.h"
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

bool ggml_tq_in(const struct ggml_tensor * op) {
    bool found = tq_type_from_id(op->type) >= 0;
    for (int i = 0; i < GGML_MAX_SRC && op->src[i] && !found; i++) {
        found = tq_type_from_id(op->src[i]->type) >= 0;
    }
    return found;
}

bool ggml_tq_can_store(ggml_backend_dev_t dev, enum ggml_type type, int64_t n) {
    const struct ggml_init_params params = {8 * ggml_tensor_overhead(), NULL, /*.no_alloc =*/true};
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_tensor * cache = ggml_new_tensor_2d(ctx, type, n, 256);
    struct ggml_tensor * row = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, 1);
    struct ggml_tensor * place = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);
    const bool can = ggml_backend_dev_supports_op(dev, ggml_set_rows(ctx, cache, row, place));
    ggml_free(ctx);
    return can;
}

void ggml_tq_set_centre(struct ggml_tensor * flash_attn, struct ggml_tensor * query, struct ggml_tensor * mean,
                        struct ggml_tensor * turns, struct ggml_tensor * chunk, int rope_dims, bool neox) {
    const struct ggml_tensor *q = flash_attn->src[0], *k = flash_attn->src[1];
    GGML_ASSERT(flash_attn->op == GGML_OP_FLASH_ATTN_EXT && ggml_are_same_shape(query, q));
    GGML_ASSERT(mean->ne[0] == k->ne[0] && mean->ne[1] == k->ne[2] && turns->ne[0] == k->ne[0]);
    GGML_ASSERT(chunk->ne[0] == k->ne[1] && chunk->ne[1] == k->ne[3]);
    flash_attn->src[GGML_TQ_SRC_QUERY] = query;
    flash_attn->src[GGML_TQ_SRC_MEAN] = mean;
    flash_attn->src[GGML_TQ_SRC_TURNS] = turns;
    flash_attn->src[GGML_TQ_SRC_CHUNK] = chunk;
    ggml_set_op_params_i32(flash_attn, GGML_TQ_PARAM_ROPE_DIMS, rope_dims);
    ggml_set_op_params_i32(flash_attn, GGML_TQ_PARAM_NEOX, neox);
}

uint8_t ggml_tq_format_of(const ggml_backend_t * backends, size_t count) {
    for (size_t i = 0; i < count; i++) {
        for (int type = 0; type < TQ_TYPE_COUNT; type++) {
            if (!ggml_tq_can_store(ggml_backend_get_device(backends[i]), (enum ggml_type) tq_type_info(type)->id,
                                   256)) {
                return 0;
            }
        }
    }
    return GGML_TQ_FORMAT;
}
