#include "gpu.h"

#include <algorithm>
#include <vector>

#include "cuda/attention.h"
#include "cuda/rows.h"
#include "device-ops.h"
#include "ggml-cuda/fwht.cuh"

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

static bool can_set_rows(const ggml_tensor * op) {
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
    if (!ggml_tq_is_view(op) && !tq_cuda_supports(describe(device))) {
        return false;
    }
    tq_cuda_attn a;
    switch (op->op) {
        case GGML_OP_SET_ROWS:
            return can_set_rows(op);
        case GGML_OP_GET_ROWS:
            return can_get_rows(op);
        case GGML_OP_CPY:
            return can_copy(op);
        case GGML_OP_FLASH_ATTN_EXT:
            return describe(op, a) && tq_cuda_attn_supports(a, describe(device));
        default:
            return ggml_tq_is_view(op);
    }
}

static tq_rows_store store(const ggml_tensor * src, const ggml_tensor * ids, const ggml_tensor * dst) {
    return {tq_type_from_id(dst->type),          0,        src->type == GGML_TYPE_F16, view(src),
            ids ? row_ids(ids) : tq_rows_ids {}, view(dst)};
}

static void run(ggml_backend_cuda_context & ctx, const tq_cuda_attn & a) {
    const tq_cuda_device device = describe(ctx.device);
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
            const tq_rows_store rows = store(src, dst->src[1], dst);
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
                const tq_rows_store rows = store(src, nullptr, to);
                tq_cuda_encode(&rows, 1, stream);
            }
            break;
        }
        case GGML_OP_FLASH_ATTN_EXT: {
            tq_cuda_attn a;
            const bool is_covered = describe(dst, a);
            GGML_ASSERT(is_covered);
            run(ctx, a);
            break;
        }
        default:
            return false;
    }
    CUDA_CHECK(cudaGetLastError());
    return true;
}

// --- rotations that the kernels do on the way ---
// A graph rotates Q, K and V by products of their own, writes K and V to the cache, attends, and rotates the result
// back. Where these follow one another, two kernels do all of it.

namespace {

struct attention_block {
    std::vector<const ggml_tensor *> rotations; // whose products need not be computed
    std::vector<tq_rows_store> stores;
    const ggml_tensor * attention = nullptr;
    tq_cuda_attn a;
    int end = 0; // the node after the last; 0 without attention
};

} // namespace

static bool has_one_use(const ggml_cgraph * graph, const ggml_tensor * t) {
    const size_t at = ggml_hash_find(&graph->visited_hash_set, t);
    return ggml_bitset_get(graph->visited_hash_set.used, at) && graph->use_counts[at] == 1 &&
           !(t->flags & GGML_TENSOR_FLAG_OUTPUT);
}

// What a tensor is a view of, if nobody else sees it.
static const ggml_tensor * origin(const ggml_cgraph * graph, const ggml_tensor * t) {
    while (has_one_use(graph, t)) {
        if (!ggml_tq_is_view(t) || !t->src[0]) {
            return t;
        }
        t = t->src[0];
    }
    return nullptr;
}

// The rotation whose result a tensor is, among those of the block.
static const ggml_tensor * rotation_of(const attention_block & block, const ggml_cgraph * graph,
                                       const ggml_tensor * t) {
    const ggml_tensor * from = origin(graph, t);
    const bool is_known = std::find(block.rotations.begin(), block.rotations.end(), from) != block.rotations.end();
    return is_known ? from : nullptr;
}

// Where `t` would be if it were not rotated.
static char * before_rotation(const ggml_tensor * rotation, const ggml_tensor * t) {
    return static_cast<char *>(rotation->src[1]->data) +
           (static_cast<char *>(t->data) - static_cast<char *>(rotation->data));
}

static bool overlaps(const void * data, size_t size, const ggml_tensor * t) {
    const char *begin = static_cast<const char *>(data), *other = t ? static_cast<const char *>(t->data) : nullptr;
    return other && begin < other + ggml_nbytes(t) && other < begin + size;
}

// Whether results may be written to `out` while other blocks of threads still read what attention reads. Queries in the
// very same places are read before they are overwritten.
static bool may_write(const attention_block & block, const void * out, size_t size, const ggml_tensor * queries) {
    const tq_cuda_attn & a = block.a;
    for (int i = 3; i < GGML_MAX_SRC; i++) {
        const ggml_tensor * src = block.attention->src[i];
        if (i != GGML_TQ_SRC_QUERY && overlaps(out, size, src)) {
            return false;
        }
    }
    const bool same = out == queries->data && a.k.dim == a.v.dim && a.q_head_stride == a.k.dim * 4 &&
                      a.q_token_stride == a.q_head_stride * a.heads;
    return same || !overlaps(out, size, queries);
}

// Whether results may be written while other blocks of threads still read values to encode, and the numbers of rows.
static bool are_apart(const std::vector<tq_rows_store> & stores, const tq_cuda_attn & a) {
    const char * out = reinterpret_cast<const char *>(a.out);
    const int64_t size = (int64_t) a.streams * a.tokens * a.heads * a.v.dim * (int64_t) sizeof(float);
    const auto is_apart = [&](const char * data, int64_t bytes) { return out >= data + bytes || data >= out + size; };
    return std::all_of(stores.begin(), stores.end(), [&](const tq_rows_store & rows) {
        return is_apart(rows.src.data, rows.src.nb[1] * rows.src.ne[1]) &&
               is_apart(rows.ids.data, rows.ids.nb[0] * rows.ids.ne[0]);
    });
}

// The nodes from i on, as far as they belong together; `end` stays 0 where they cannot be joined.
static attention_block find_block(const ggml_cgraph * graph, int i, int device) {
    attention_block block;
    const ggml_tensor * queries = nullptr;
    for (; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (ggml_tq_is_view(node) || ggml_is_empty(node)) {
            continue;
        }
        if (ggml_cuda_op_mul_mat_use_fwht(node) && block.attention) {
            block.a.v_rotation = (int) node->ne[0];
            if (origin(graph, node->src[1]) == block.attention && tq_cuda_attn_supports(block.a, describe(device)) &&
                may_write(block, node->data, ggml_nbytes(node), queries)) {
                block.a.out = static_cast<float *>(node->data);
                block.end = i + 1;
            } else {
                block.a.v_rotation = 0;
            }
            return block;
        }
        if (ggml_cuda_op_mul_mat_use_fwht(node) && node->src[1]->type == GGML_TYPE_F32 && block.rotations.size() < 3) {
            block.rotations.push_back(node);
            continue;
        }
        const ggml_tensor * rotation = block.attention ? nullptr : rotation_of(block, graph, node->src[0]);
        if (!rotation) {
            return block;
        }
        if (node->op == GGML_OP_SET_ROWS && can_set_rows(node) && block.stores.size() < most_stores &&
            rotation->ne[0] <= most_rotated && node->src[0]->ne[0] % rotation->ne[0] == 0) {
            tq_rows_store rows = store(node->src[0], node->src[1], node);
            rows.src.data = before_rotation(rotation, node->src[0]);
            rows.rotation = (int) rotation->ne[0];
            block.stores.push_back(rows);
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT && block.stores.size() + 1 == block.rotations.size() &&
                   describe(node, block.a)) {
            block.attention = node;
            queries = rotation->src[1];
            block.a.q = before_rotation(rotation, node->src[0]);
            block.a.k_rotation = (int) rotation->ne[0];
            if (!tq_cuda_attn_supports(block.a, describe(device)) ||
                !may_write(block, node->data, ggml_nbytes(node), queries)) {
                return block;
            }
            block.end = i + 1;
        } else {
            return block;
        }
    }
    return block;
}

int ggml_cuda_tq_fuse(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i) {
    if (!ggml_cuda_op_mul_mat_use_fwht(graph->nodes[i])) {
        return 0;
    }
    attention_block block = find_block(graph, i, ctx.device);
    if (block.end == 0) {
        return 0;
    }
    block.a.stores = block.stores.data();
    block.a.store_count = (int) block.stores.size();
    block.a.stores_are_apart = are_apart(block.stores, block.a);
    run(ctx, block.a);
    CUDA_CHECK(cudaGetLastError());
    return block.end - i - 1;
}
