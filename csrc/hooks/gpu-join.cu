// A layer's attention by few kernels. A graph turns Q and K (RoPE), takes the centres from K, rotates Q, K and V by
// products of their own, writes K and V to the cache, attends, and rotates the result back. Where these follow one
// another, two or three kernels do all of it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ggml-cuda/fwht.cuh"
#include "gpu-operations.h"

namespace {

using tensors = std::vector<const ggml_tensor *>;

struct attention_block {
    tensors turns;     // RoPE and what centres keys, and
    tensors rotations; // products: none needs to be computed
    std::vector<tq_rows_store> stores;
    tensors stored; // the rotations of what they store
    const ggml_tensor * attention = nullptr;
    const ggml_tensor * queries = nullptr; // where they are read
    tensors others;                        // what else is read on the way
    tq_cuda_attn a;
    int end = 0; // the node after the last; 0 without attention
};

} // namespace

static bool contains(const tensors & all, const ggml_tensor * t) {
    return std::find(all.begin(), all.end(), t) != all.end();
}

static bool has_uses(const ggml_cgraph * graph, const ggml_tensor * t, int uses) {
    const size_t at = ggml_hash_find(&graph->visited_hash_set, t);
    return ggml_bitset_get(graph->visited_hash_set.used, at) && graph->use_counts[at] == uses &&
           !(t->flags & GGML_TENSOR_FLAG_OUTPUT);
}

// What a tensor is a view of, if only so many see it, each through one view after the other.
static const ggml_tensor * origin(const ggml_cgraph * graph, const ggml_tensor * t, int uses = 1) {
    while (t && ggml_tq_is_view(t) && t->src[0]) {
        t = has_uses(graph, t, 1) ? t->src[0] : nullptr;
    }
    return t && has_uses(graph, t, uses) ? t : nullptr;
}

// The rotation whose result a tensor is, among those of the block.
static const ggml_tensor * rotation_of(const attention_block & block, const ggml_cgraph * graph,
                                       const ggml_tensor * t) {
    const ggml_tensor * from = origin(graph, t);
    return contains(block.rotations, from) ? from : nullptr;
}

// Where `t` would be if it were not rotated.
static char * before_rotation(const ggml_tensor * rotation, const ggml_tensor * t) {
    return static_cast<char *>(rotation->src[1]->data) +
           (static_cast<char *>(t->data) - static_cast<char *>(rotation->data));
}

// --- what comes before the rotations ---

// RoPE of heads as csrc/cuda turns them: whole, of tokens in one dimension.
static bool is_rope(const ggml_tensor * t) {
    if (!t || t->op != GGML_OP_ROPE) {
        return false;
    }
    const ggml_tensor *x = t->src[0], *positions = t->src[1];
    const int mode = ggml_get_op_params_i32(t, 2), offset = ggml_get_op_params_i32(t, 15);
    return (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && offset == 0 && x->type == GGML_TYPE_F32 &&
           x->nb[0] == sizeof(float) && x->nb[1] == x->ne[0] * sizeof(float) && x->ne[3] == 1 &&
           ggml_is_contiguous(positions);
}

static bool are_same_ropes(const ggml_tensor * a, const ggml_tensor * b) {
    return std::memcmp(a->op_params, b->op_params, sizeof(a->op_params)) == 0 && a->src[2] == b->src[2];
}

static tq_cuda_rope describe(const ggml_tensor * rope) {
    tq_cuda_rope r = {};
    r.positions = static_cast<const int *>(rope->src[1]->data);
    r.factors = rope->src[2] ? static_cast<const float *>(rope->src[2]->data) : nullptr;
    r.dims = ggml_get_op_params_i32(rope, 1);
    r.neox = ggml_get_op_params_i32(rope, 2) == GGML_ROPE_TYPE_NEOX;
    const float freq_base = ggml_get_op_params_f32(rope, 5), beta_fast = ggml_get_op_params_f32(rope, 9),
                beta_slow = ggml_get_op_params_f32(rope, 10);
    r.base = std::pow(freq_base, -2.0f / (float) r.dims);
    r.scale = ggml_get_op_params_f32(rope, 6);
    r.mix = ggml_get_op_params_f32(rope, 7);
    r.stretch = ggml_get_op_params_f32(rope, 8);
    float corrected[2];
    ggml_rope_yarn_corr_dims(r.dims, ggml_get_op_params_i32(rope, 4), freq_base, beta_fast, beta_slow, corrected);
    r.low = corrected[0];
    r.high = corrected[1];
    if (r.mix != 0.0f) {
        r.stretch *= 1.0f + 0.1f * std::log(1.0f / r.scale);
    }
    return r;
}

// What is taken from turned keys, `key`, the difference, says; null where it is something else. Every node of it joins
// `found`.
static tq_cuda_centre centre_of(const ggml_cgraph * graph, const ggml_tensor * key, const ggml_tensor * rope,
                                tensors & found, tensors & read) {
    const ggml_tensor * turned = origin(graph, key->src[1]);
    if (!is_rope(turned) || !are_same_ropes(turned, rope) || !ggml_are_same_shape(turned, rope)) {
        return {};
    }
    const ggml_tensor * rows = origin(graph, turned->src[0]);
    if (!rows || rows->op != GGML_OP_GET_ROWS) {
        return {};
    }
    const ggml_tensor *both = rows->src[0], *ids = rows->src[1];
    if (both->type != GGML_TYPE_F32 || both->ne[0] != rope->ne[0] * rope->ne[1] || both->ne[1] != 2 ||
        !ggml_is_contiguous(both) || ids->type != GGML_TYPE_I32 || !ggml_is_contiguous(ids)) {
        return {};
    }
    found.insert(found.end(), {key, turned, rows});
    read.insert(read.end(), {both, ids, turned->src[1]});
    return {static_cast<const float *>(both->data), static_cast<const int *>(ids->data),
            static_cast<const int *>(turned->src[1]->data)};
}

// Lets queries and keys be turned on the way. False where the graph does something else before the rotations, or more.
static bool join_turns(attention_block & block, const ggml_cgraph * graph, const ggml_tensor * rotation) {
    if (block.turns.empty()) {
        return true;
    }
    tq_cuda_attn & a = block.a;
    const ggml_tensor * attention = block.attention;
    const ggml_tensor *q = attention->src[0], *plain = attention->src[GGML_TQ_SRC_QUERY];
    // attention keeps the queries as they were before the rotation
    const ggml_tensor * of_queries = origin(graph, rotation->src[1], 2);
    const size_t row = q->ne[0] * sizeof(float), token = row * q->ne[2];
    if (!is_rope(of_queries) || !plain || origin(graph, plain, 2) != of_queries || plain->data != of_queries->data ||
        q->data != rotation->data || q->nb[1] != token || q->nb[2] != row || q->nb[3] != token * q->ne[1] ||
        of_queries->ne[1] != q->ne[2]) {
        return false;
    }
    tensors found = {of_queries};
    for (size_t i = 0; i < block.stores.size(); i++) {
        tq_rows_store & rows = block.stores[i];
        const ggml_tensor * key = origin(graph, block.stored[i]->src[1]);
        const bool is_centred = key && key->op == GGML_OP_SUB;
        const ggml_tensor * rope = is_centred ? origin(graph, key->src[0]) : key;
        if (!is_rope(rope)) {
            continue;
        }
        const ggml_tensor * x = rope->src[0];
        const int64_t width = rope->ne[0] * rope->ne[1];
        if (!are_same_ropes(rope, of_queries) || rope->src[1] != of_queries->src[1] || rope->ne[0] != rows.rotation ||
            !ggml_are_same_shape(key, rope) || rows.src.data != before_rotation(block.stored[i], block.stored[i]) ||
            rows.src.ne[0] != width || rows.src.ne[1] != rope->ne[2] || rows.src.nb[1] != width * 4) {
            return false;
        }
        if (is_centred) {
            rows.centre = centre_of(graph, key, rope, found, block.others);
            if (!rows.centre.rows) {
                return false;
            }
        }
        found.push_back(rope);
        rows.rope = describe(rope);
        rows.src.data = static_cast<char *>(x->data);
        rows.src.nb[1] = (int64_t) x->nb[2];
    }
    const auto is_found = [&](const ggml_tensor * t) { return contains(found, t); };
    if (found.size() != block.turns.size() || !std::all_of(block.turns.begin(), block.turns.end(), is_found)) {
        return false;
    }
    const ggml_tensor * x = of_queries->src[0];
    a.rope = describe(of_queries);
    a.q = static_cast<const char *>(x->data);
    a.q_head_stride = (int64_t) x->nb[1];
    a.q_token_stride = (int64_t) x->nb[2];
    a.q_stream_stride = (int64_t) x->nb[2] * a.tokens;
    block.queries = x;
    block.others.push_back(of_queries->src[1]);
    if (of_queries->src[2]) {
        block.others.push_back(of_queries->src[2]);
    }
    return true;
}

// --- what is overwritten ---

static bool overlaps(const void * data, size_t size, const ggml_tensor * t) {
    const char *begin = static_cast<const char *>(data), *other = t ? static_cast<const char *>(t->data) : nullptr;
    return other && begin < other + ggml_nbytes(t) && other < begin + size;
}

// Whether results may be written to `out` while other blocks of threads still read what attention reads. Queries in the
// very same places are read before they are overwritten.
static bool may_write(const attention_block & block, const void * out, size_t size) {
    const tq_cuda_attn & a = block.a;
    for (int i = 3; i < GGML_MAX_SRC; i++) {
        const ggml_tensor * src = block.attention->src[i];
        if (i != GGML_TQ_SRC_QUERY && overlaps(out, size, src)) {
            return false;
        }
    }
    const auto is_apart = [&](const ggml_tensor * t) { return !overlaps(out, size, t); };
    const bool same = out == a.q && a.k.dim == a.v.dim && a.q_head_stride == a.k.dim * 4 &&
                      a.q_token_stride == a.q_head_stride * a.heads;
    return std::all_of(block.others.begin(), block.others.end(), is_apart) && (same || is_apart(block.queries));
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

// --- the block ---

// The nodes from i on, as far as they belong together; `end` stays 0 where they cannot be joined.
static attention_block find_block(const ggml_cgraph * graph, int i, int device) {
    attention_block block;
    tq_cuda_attn & a = block.a;
    const tq_cuda_device about = ggml_cuda_tq_device(device);
    for (; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (ggml_tq_is_view(node) || ggml_is_empty(node)) {
            continue;
        }
        if (ggml_cuda_op_mul_mat_use_fwht(node) && block.attention) {
            a.v_rotation = (int) node->ne[0];
            if (origin(graph, node->src[1]) == block.attention && tq_cuda_attn_supports(a, about) &&
                may_write(block, node->data, ggml_nbytes(node))) {
                a.out = static_cast<float *>(node->data);
                block.end = i + 1;
            } else {
                a.v_rotation = 0;
            }
            return block;
        }
        if (ggml_cuda_op_mul_mat_use_fwht(node) && node->src[1]->type == GGML_TYPE_F32 && block.rotations.size() < 3) {
            block.rotations.push_back(node);
            continue;
        }
        if (block.rotations.empty() &&
            (node->op == GGML_OP_ROPE || node->op == GGML_OP_GET_ROWS || node->op == GGML_OP_SUB)) {
            block.turns.push_back(node);
            continue;
        }
        const ggml_tensor * rotation = block.attention ? nullptr : rotation_of(block, graph, node->src[0]);
        if (!rotation) {
            return block;
        }
        if (node->op == GGML_OP_SET_ROWS && ggml_cuda_tq_can_set_rows(node) && block.stores.size() < most_stores &&
            rotation->ne[0] <= most_rotated && node->src[0]->ne[0] % rotation->ne[0] == 0) {
            tq_rows_store rows = ggml_cuda_tq_store(node->src[0], node->src[1], node);
            rows.src.data = before_rotation(rotation, node->src[0]);
            rows.rotation = (int) rotation->ne[0];
            block.stores.push_back(rows);
            block.stored.push_back(rotation);
        } else if (node->op == GGML_OP_FLASH_ATTN_EXT && block.stores.size() + 1 == block.rotations.size() &&
                   ggml_cuda_tq_describe(node, a)) {
            block.attention = node;
            block.queries = rotation->src[1];
            a.q = before_rotation(rotation, node->src[0]);
            a.k_rotation = (int) rotation->ne[0];
            if (!join_turns(block, graph, rotation) || !tq_cuda_attn_supports(a, about) ||
                (a.rope.positions && !tq_cuda_attn_turns(a, about)) ||
                !may_write(block, node->data, ggml_nbytes(node))) {
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
    const ggml_tensor * node = graph->nodes[i];
    if (node->op != GGML_OP_ROPE && !ggml_cuda_op_mul_mat_use_fwht(node)) {
        return 0;
    }
    attention_block block = find_block(graph, i, ctx.device);
    if (block.end == 0) {
        return 0;
    }
    block.a.stores = block.stores.data();
    block.a.store_count = (int) block.stores.size();
    block.a.stores_are_apart = are_apart(block.stores, block.a);
    ggml_cuda_tq_attend(ctx, block.a);
    CUDA_CHECK(cudaGetLastError());
    return block.end - i - 1;
}
