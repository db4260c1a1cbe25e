#include "gpu.h"

#include "gpu-operations.h"

constexpr int64_t blocks = (int64_t) 1 << 32; // fewer have numbers that the kernels can count with

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

bool ggml_cuda_tq_can_set_rows(const ggml_tensor * op) {
    const ggml_tensor *src = op->src[0], *ids = op->src[1];
    return ggml_tq_is(op) && ggml_tq_is_float(src) && ggml_tq_is_whole(src, blocks) &&
           (ids->type == GGML_TYPE_I64 || ids->type == GGML_TYPE_I32) && ggml_tq_has_whole_rows(op, blocks);
}

static bool can_get_rows(const ggml_tensor * op) {
    return ggml_tq_is(op->src[0]) && ggml_tq_is_float(op) && ggml_tq_is_whole(op, blocks) &&
           op->src[1]->type == GGML_TYPE_I32 && ggml_tq_has_whole_rows(op->src[0], blocks);
}

static bool can_copy(const ggml_tensor * op) {
    const ggml_tensor *from = op->src[0], *to = op->src[1];
    if (ggml_tq_is(from) && ggml_tq_is(to)) {
        return from->type == to->type && ggml_tq_has_whole_rows(from, blocks) && ggml_tq_has_whole_rows(to, blocks);
    }
    return ggml_tq_is(from)
               ? ggml_tq_is_float(to) && ggml_tq_is_whole(to, blocks) && ggml_tq_has_whole_rows(from, blocks)
               : ggml_tq_is_float(from) && ggml_tq_is_whole(from, blocks) && ggml_tq_has_whole_rows(to, blocks);
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

tq_cuda_device ggml_cuda_tq_device(int device) {
    const auto & info = ggml_cuda_info().devices[device];
    // other vendors have numbers of their own, and no kernels
    return {GGML_CUDA_CC_IS_NVIDIA(info.cc) ? info.cc / 10 : 0, info.nsm, (int) info.smpbo};
}

bool ggml_cuda_tq_describe(const ggml_tensor * op, tq_cuda_attn & a) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    a = {};
    a.k = cache(k);
    a.v = cache(v);
    if (a.k.type < 0 || a.v.type < 0 || !ggml_tq_fits(op, blocks)) {
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
    if (ids) {
        a.q_plain = static_cast<const char *>(plain->data);
        a.qp_token_stride = (int64_t) plain->nb[1];
        a.qp_head_stride = (int64_t) plain->nb[2];
        a.qp_stream_stride = (int64_t) plain->nb[3];
        a.mean = static_cast<const float *>(mean->data);
        a.turns = static_cast<const float *>(turns->data);
        a.chunks = (int) turns->ne[1];
        a.ids = static_cast<const int *>(ids->data);
        a.n_rot = ggml_get_op_params_i32(op, GGML_TQ_PARAM_ROPE_DIMS);
        a.neox = ggml_get_op_params_i32(op, GGML_TQ_PARAM_NEOX) != 0;
    }
    return true;
}

bool ggml_cuda_tq_supports(int device, const ggml_tensor * op) {
    if (!ggml_tq_is_view(op) && !tq_cuda_supports(ggml_cuda_tq_device(device))) {
        return false;
    }
    tq_cuda_attn a;
    switch (op->op) {
        case GGML_OP_SET_ROWS:
            return ggml_cuda_tq_can_set_rows(op);
        case GGML_OP_GET_ROWS:
            return can_get_rows(op);
        case GGML_OP_CPY:
            return can_copy(op);
        case GGML_OP_FLASH_ATTN_EXT:
            return ggml_cuda_tq_describe(op, a) && tq_cuda_attn_supports(a, ggml_cuda_tq_device(device));
        default:
            return ggml_tq_is_view(op);
    }
}

tq_rows_store ggml_cuda_tq_store(const ggml_tensor * src, const ggml_tensor * ids, const ggml_tensor * dst) {
    return {tq_type_from_id(dst->type),          0,        src->type == GGML_TYPE_F16, view(src),
            ids ? row_ids(ids) : tq_rows_ids {}, view(dst)};
}

void ggml_cuda_tq_attend(ggml_backend_cuda_context & ctx, const tq_cuda_attn & a) {
    const tq_cuda_device device = ggml_cuda_tq_device(ctx.device);
    ggml_cuda_pool_alloc<char> scratch(ctx.pool());
    const size_t size = tq_cuda_attn_scratch(a, device);
    tq_cuda_attn_run(a, device, size ? scratch.alloc(size) : nullptr, ctx.stream());
}

bool ggml_cuda_tq_compute(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    if (!ggml_tq_in(dst)) {
        return false;
    }
    const ggml_tensor * src = dst->src[0];
    cudaStream_t stream = ctx.stream();
    switch (dst->op) {
        case GGML_OP_SET_ROWS: {
            const tq_rows_store rows = ggml_cuda_tq_store(src, dst->src[1], dst);
            tq_cuda_encode(&rows, 1, stream);
            break;
        }
        case GGML_OP_GET_ROWS:
            tq_cuda_decode(tq_type_from_id(src->type), view(src), row_ids(dst->src[1]), view(dst),
                           dst->type == GGML_TYPE_F16, stream);
            break;
        case GGML_OP_CPY: {
            const ggml_tensor * to = dst->src[1];
            if (ggml_tq_is(src) && ggml_tq_is(to)) {
                tq_cuda_copy(tq_type_from_id(src->type), view(src), view(to), stream);
            } else if (ggml_tq_is(src)) {
                tq_cuda_decode(tq_type_from_id(src->type), view(src), {}, view(to), to->type == GGML_TYPE_F16, stream);
            } else {
                const tq_rows_store rows = ggml_cuda_tq_store(src, nullptr, to);
                tq_cuda_encode(&rows, 1, stream);
            }
            break;
        }
        case GGML_OP_FLASH_ATTN_EXT: {
            tq_cuda_attn a;
            const bool is_covered = ggml_cuda_tq_describe(dst, a);
            GGML_ASSERT(is_covered);
            ggml_cuda_tq_attend(ctx, a);
            break;
        }
        default:
            return false;
    }
    CUDA_CHECK(cudaGetLastError());
    return true;
}
