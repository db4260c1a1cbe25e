#include "attention.h"

#include "cpu/attention/attention.h"
#include "ggml-impl.h"
#include "ggml-tq.h"

namespace {

int attention_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
            return TQ_ATTN_F16;
        case GGML_TYPE_Q8_0:
            return TQ_ATTN_Q8_0;
        default:
            return tq_type_from_id(type);
    }
}

bool is_tq(const ggml_tensor * t) {
    return tq_type_from_id(t->type) >= 0;
}

tq_attn_cache describe(const ggml_tensor * t) {
    return {attention_type(t->type), static_cast<const char *>(t->data), t->ne[0], t->nb[1], t->nb[2], t->nb[3]};
}

tq_attn_centre describe_centre(const ggml_tensor * op) {
    const ggml_tensor *query = op->src[GGML_TQ_SRC_QUERY], *chunk = op->src[GGML_TQ_SRC_CHUNK];
    if (!chunk) {
        return {};
    }
    return {
        static_cast<const char *>(query->data),
        query->nb[1],
        query->nb[2],
        query->nb[3],
        static_cast<const float *>(op->src[GGML_TQ_SRC_MEAN]->data),
        static_cast<const float *>(op->src[GGML_TQ_SRC_TURNS]->data),
        static_cast<const int32_t *>(chunk->data),
        ggml_get_op_params_i32(op, GGML_TQ_PARAM_ROPE_DIMS),
        ggml_get_op_params_i32(op, GGML_TQ_PARAM_NEOX) != 0,
    };
}

// False where attention/attention.h does not cover the operation.
bool describe(const ggml_tensor * op, tq_attn & a) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT || !(is_tq(op->src[1]) || is_tq(op->src[2]))) {
        return false;
    }
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    a = {};
    a.k = describe(k);
    a.v = describe(v);
    if (q->type != GGML_TYPE_F32 || a.k.type < 0 || a.v.type < 0 || k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3] ||
        a.k.dim < TQ_ATTN_HEAD_MIN || a.v.dim < TQ_ATTN_HEAD_MIN || a.v.dim > TQ_ATTN_HEAD_MAX) {
        return false;
    }
    GGML_ASSERT(q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) &&
                v->nb[0] == ggml_type_size(v->type) && ggml_is_contiguous(op));

    a.streams = q->ne[3];
    a.tokens = q->ne[1];
    a.heads = q->ne[2];
    a.kv_streams = k->ne[3];
    a.kv_heads = k->ne[2];
    a.kv_rows = k->ne[1];
    a.scale = ggml_get_op_params_f32(op, 0);
    a.max_bias = ggml_get_op_params_f32(op, 1);
    a.softcap = ggml_get_op_params_f32(op, 2);
    a.q = static_cast<const char *>(q->data);
    a.q_token_stride = q->nb[1];
    a.q_head_stride = q->nb[2];
    a.q_stream_stride = q->nb[3];
    if (mask) {
        a.mask = static_cast<const char *>(mask->data);
        a.mask_heads = mask->ne[2];
        a.mask_streams = mask->ne[3];
        a.mask_token_stride = mask->nb[1];
        a.mask_head_stride = mask->nb[2];
        a.mask_stream_stride = mask->nb[3];
    }
    a.sinks = sinks ? static_cast<const float *>(sinks->data) : nullptr;
    a.out = static_cast<float *>(op->data);
    a.centre = describe_centre(op);
    return true;
}

} // namespace

bool ggml_tq_attention(ggml_compute_params * params, ggml_tensor * op) {
    tq_attn a;
    if (params->use_ref || !describe(op, a)) {
        return false;
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    const int64_t tasks = tq_attn_tasks(&a);
    for (int64_t i = params->ith; i < tasks; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        tq_attn_run_task(&a, i, params->wdata, params->ith, params->nth);
    }
    ggml_barrier(params->threadpool);
    tq_attn_merge(&a, params->wdata, params->ith, params->nth);
    return true;
}

size_t ggml_tq_attention_work_size(int n_threads, const ggml_tensor * op) {
    tq_attn a;
    return describe(op, a) ? tq_attn_work_size(&a, n_threads) : 0;
}

ggml_tq_offsets::ggml_tq_offsets(const ggml_tensor * op, int64_t token, int64_t head, int64_t stream) {
    const tq_attn_centre c = describe_centre(op);
    if (c.plain) {
        const ggml_tensor *q = op->src[0], *k = op->src[1];
        const char * plain =
            c.plain + token * c.plain_token_stride + head * c.plain_head_stride + stream * c.plain_stream_stride;
        g.resize(k->ne[0]);
        tq_attn_centre_query(&c, reinterpret_cast<const float *>(plain),
                             c.mean + head / (q->ne[2] / k->ne[2]) * k->ne[0], (int) k->ne[0], g.data());
        turns = c.turns;
        chunk = c.chunk + stream / (q->ne[3] / k->ne[3]) * k->ne[1];
    }
}

float ggml_tq_offsets::at(int64_t cell) {
    if (chunk[cell] != last) {
        last = chunk[cell];
        offset = tq_attn_centre_offset(g.data(), turns + last * g.size(), (int) g.size());
    }
    return offset;
}
