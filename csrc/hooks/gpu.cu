#include "gpu.h"

#include "cuda/attention.h"
#include "cuda/rows.h"

static bool is_tq(const ggml_tensor * t) {
    return tq_type_from_id(t->type) >= 0;
}

static bool is_float(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 || t->type == GGML_TYPE_F16;
}

// Blocks of a row must follow one another.
static bool has_whole_rows(const ggml_tensor * t) {
    return t->nb[0] == ggml_type_size(t->type) && t->ne[0] % ggml_blck_size(t->type) == 0;
}

static tq_rows_view view(const ggml_tensor * t) {
    tq_rows_view v = {static_cast<char *>(t->data), {}, {}};
    for (int i = 0; i < 4; i++) {
        v.ne[i] = t->ne[i];
        v.nb[i] = (int64_t) t->nb[i];
    }
    return v;
}

static tq_rows_ids row_ids(const ggml_tensor * t) {
    tq_rows_ids ids = {static_cast<const char *>(t->data), {}, {}, t->type == GGML_TYPE_I64 ? 8 : 4};
    for (int i = 0; i < 3; i++) {
        ids.ne[i] = t->ne[i];
        ids.nb[i] = (int64_t) t->nb[i];
    }
    return ids;
}

static bool can_set_rows(const ggml_tensor * op) {
    const ggml_tensor *src = op->src[0], *ids = op->src[1];
    return is_tq(op) && is_float(src) && (ids->type == GGML_TYPE_I64 || ids->type == GGML_TYPE_I32) &&
           has_whole_rows(op);
}

static bool can_get_rows(const ggml_tensor * op) {
    return is_tq(op->src[0]) && is_float(op) && op->src[1]->type == GGML_TYPE_I32 && has_whole_rows(op->src[0]);
}

static bool can_copy(const ggml_tensor * op) {
    const ggml_tensor *from = op->src[0], *to = op->src[1];
    if (is_tq(from) && is_tq(to)) {
        return from->type == to->type && has_whole_rows(from) && has_whole_rows(to);
    }
    return is_tq(from) ? is_float(to) && has_whole_rows(from) : is_float(from) && has_whole_rows(to);
}

static int attention_type(ggml_type type) {
    return type == GGML_TYPE_F16    ? (int) TQ_CUDA_F16
           : type == GGML_TYPE_Q8_0 ? (int) TQ_CUDA_Q8_0
                                    : tq_type_from_id(type);
}

static tq_cuda_cache cache(const ggml_tensor * t) {
    return {attention_type(t->type), (int) t->ne[0],     static_cast<const char *>(t->data),
            (int64_t) t->nb[1],      (int64_t) t->nb[2], (int64_t) t->nb[3]};
}

static tq_cuda_device describe(int device) {
    const auto & info = ggml_cuda_info().devices[device];
    // other vendors have numbers of their own, and no kernels
    return {GGML_CUDA_CC_IS_NVIDIA(info.cc) ? info.cc / 10 : 0, info.nsm, (int) info.smpbo};
}

// False where csrc/cuda/attention.h does not cover the operation.
static bool describe(const ggml_tensor * op, tq_cuda_attn & a) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    a = {};
    a.k = cache(k);
    a.v = cache(v);
    if (q->type != GGML_TYPE_F32 || op->type != GGML_TYPE_F32 || a.k.type < 0 || a.v.type < 0 || k->ne[2] != v->ne[2] ||
        k->ne[3] != v->ne[3] || q->ne[2] % k->ne[2] != 0 || q->ne[3] % k->ne[3] != 0 || q->nb[0] != sizeof(float) ||
        !has_whole_rows(k) || !has_whole_rows(v) ||
        (mask && (mask->type != GGML_TYPE_F16 || mask->nb[0] != sizeof(ggml_fp16_t)))) {
        return false;
    }
    a.streams = (int) q->ne[3];
    a.tokens = (int) q->ne[1];
    a.heads = (int) q->ne[2];
    a.kv_streams = (int) k->ne[3];
    a.kv_heads = (int) k->ne[2];
    a.kv_rows = (int) k->ne[1];
    a.q = static_cast<const char *>(q->data);
    a.q_token_stride = (int64_t) q->nb[1];
    a.q_head_stride = (int64_t) q->nb[2];
    a.q_stream_stride = (int64_t) q->nb[3];
    if (mask) {
        a.mask = static_cast<const char *>(mask->data);
        a.mask_heads = (int) mask->ne[2];
        a.mask_streams = (int) mask->ne[3];
        a.mask_token_stride = (int64_t) mask->nb[1];
        a.mask_head_stride = (int64_t) mask->nb[2];
        a.mask_stream_stride = (int64_t) mask->nb[3];
    }
    a.sinks = sinks ? static_cast<const float *>(sinks->data) : nullptr;
    a.scale = ggml_get_op_params_f32(op, 0);
    a.max_bias = ggml_get_op_params_f32(op, 1);
    a.softcap = ggml_get_op_params_f32(op, 2);
    a.out = static_cast<float *>(op->data);

    const ggml_tensor *plain = op->src[GGML_TQ_SRC_QUERY], *mean = op->src[GGML_TQ_SRC_MEAN],
                      *turns = op->src[GGML_TQ_SRC_TURNS], *ids = op->src[GGML_TQ_SRC_CHUNK];
    if (plain) {
        if (plain->type != GGML_TYPE_F32 || plain->nb[0] != sizeof(float) || !ggml_are_same_shape(plain, q) || !mean ||
            mean->type != GGML_TYPE_F32 || !turns || turns->type != GGML_TYPE_F32 || !ids ||
            ids->type != GGML_TYPE_I32) {
            return false;
        }
        a.q_plain = static_cast<const char *>(plain->data);
        a.qp_token_stride = (int64_t) plain->nb[1];
        a.qp_head_stride = (int64_t) plain->nb[2];
        a.qp_stream_stride = (int64_t) plain->nb[3];
        a.mean = static_cast<const float *>(mean->data);
        a.turns = static_cast<const float *>(turns->data);
        a.ids = static_cast<const int *>(ids->data);
        a.n_rot = ggml_get_op_params_i32(op, GGML_TQ_PARAM_ROPE_DIMS);
        a.neox = ggml_get_op_params_i32(op, GGML_TQ_PARAM_NEOX) != 0;
    }
    return true;
}

bool ggml_cuda_tq_supports(int device, const ggml_tensor * op) {
    tq_cuda_attn a;
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        case GGML_OP_SET_ROWS:
            return can_set_rows(op);
        case GGML_OP_GET_ROWS:
            return can_get_rows(op);
        case GGML_OP_CPY:
            return can_copy(op);
        case GGML_OP_FLASH_ATTN_EXT:
            return describe(op, a) && tq_cuda_attn_supports(a, describe(device));
        default:
            return false;
    }
}

bool ggml_cuda_tq_compute(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggml_tq_in(dst)) {
        return false;
    }
    const ggml_tensor * src = dst->src[0];
    cudaStream_t stream = ctx.stream();
    switch (dst->op) {
        case GGML_OP_SET_ROWS:
            tq_cuda_encode(tq_type_from_id(dst->type), view(src), src->type == GGML_TYPE_F16, row_ids(dst->src[1]),
                           view(dst), stream);
            break;
        case GGML_OP_GET_ROWS:
            tq_cuda_decode(tq_type_from_id(src->type), view(src), row_ids(dst->src[1]), view(dst),
                           dst->type == GGML_TYPE_F16, stream);
            break;
        case GGML_OP_CPY: {
            const ggml_tensor * to = dst->src[1];
            if (is_tq(src) && is_tq(to)) {
                tq_cuda_copy(tq_type_from_id(src->type), view(src), view(to), stream);
            } else if (is_tq(src)) {
                tq_cuda_decode(tq_type_from_id(src->type), view(src), {}, view(to), to->type == GGML_TYPE_F16, stream);
            } else {
                tq_cuda_encode(tq_type_from_id(to->type), view(src), src->type == GGML_TYPE_F16, {}, view(to), stream);
            }
            break;
        }
        case GGML_OP_FLASH_ATTN_EXT: {
            tq_cuda_attn a;
            const bool is_covered = describe(dst, a);
            GGML_ASSERT(is_covered);
            const tq_cuda_device device = describe(ctx.device);
            ggml_cuda_pool_alloc<char> scratch(ctx.pool());
            const size_t size = tq_cuda_attn_scratch(a, device);
            tq_cuda_attn_run(a, device, size ? scratch.alloc(size) : nullptr, stream);
            break;
        }
        default:
            return false;
    }
    CUDA_CHECK(cudaGetLastError());
    return true;
}
