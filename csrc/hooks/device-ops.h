// What operations on TQ types have in common on all GPUs, whatever computes them.
#pragma once

#include "ggml-tq.h"

inline bool ggml_tq_is(const ggml_tensor * t) {
    return tq_type_from_id(t->type) >= 0;
}

inline bool ggml_tq_is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_VIEW || t->op == GGML_OP_PERMUTE ||
           t->op == GGML_OP_TRANSPOSE;
}

inline bool ggml_tq_is_float(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16;
}

// A multiple of a block in each row, and fewer than `blocks` in all.
inline bool ggml_tq_is_whole(const ggml_tensor * t, int64_t blocks) {
    return t->ne[0] % TQ_BLOCK == 0 && ggml_nelements(t) / TQ_BLOCK < blocks;
}

// Blocks of a row follow one another, too.
inline bool ggml_tq_has_whole_rows(const ggml_tensor * t, int64_t blocks) {
    return t->nb[0] == ggml_type_size(t->type) && ggml_tq_is_whole(t, blocks);
}

// Whether queries, K, V, mask, result and what centred keys lack fit one another as the kernels take them; which types
// of K and V there are kernels for, is theirs to say.
inline bool ggml_tq_fits(const ggml_tensor * attention, int64_t blocks) {
    const ggml_tensor * const * src = attention->src;
    const ggml_tensor *q = src[0], *k = src[1], *v = src[2], *mask = src[3];
    if (q->type != GGML_TYPE_F32 || attention->type != GGML_TYPE_F32 || k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3] ||
        q->ne[2] % k->ne[2] != 0 || q->ne[3] % k->ne[3] != 0 || q->nb[0] != sizeof(float) ||
        !ggml_tq_has_whole_rows(k, blocks) || !ggml_tq_has_whole_rows(v, blocks) ||
        (mask && (mask->type != GGML_TYPE_F16 || mask->nb[0] != sizeof(ggml_fp16_t)))) {
        return false;
    }
    const ggml_tensor *plain = src[GGML_TQ_SRC_QUERY], *mean = src[GGML_TQ_SRC_MEAN], *turns = src[GGML_TQ_SRC_TURNS],
                      *ids = src[GGML_TQ_SRC_CHUNK];
    return !ids ||
           (plain && plain->type == GGML_TYPE_F32 && plain->nb[0] == sizeof(float) && ggml_are_same_shape(plain, q) &&
            mean && mean->type == GGML_TYPE_F32 && turns && turns->type == GGML_TYPE_F32 && ids->type == GGML_TYPE_I32);
}
