#include "metal.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device-ops.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "metal/arguments.h"

extern const char tq_metal_source[]; // csrc/metal with all that it includes: metal/embed.py

namespace {

struct buffer {
    const ggml_tensor * tensor;
    size_t offset;
};

// A kernel and what it is started with.
struct dispatch {
    std::string kernel;
    std::vector<std::pair<int, int>> constants;
    const void * arguments;
    size_t arguments_size;
    std::vector<buffer> buffers; // from 1 on
    size_t shared;               // bytes of threadgroup memory
    int groups[3];
    int simds; // of a threadgroup
};

struct attention {
    tq_metal_attn a;
    int k_type, v_type;
};

} // namespace

constexpr int64_t blocks = (int64_t) 1 << 31; // fewer have numbers that the kernels can count with

// --- SET_ROWS, GET_ROWS and copies ---

static tq_metal_tensor view(const ggml_tensor * t) {
    tq_metal_tensor v = {};
    for (int i = 0; i < 4; i++) {
        v.ne[i] = t->ne[i];
        v.nb[i] = (int64_t) t->nb[i];
    }
    return v;
}

// From `src` to `dst`, of which one is of a TQ type, or both are of the same. Empty where there is no kernel for it.
static std::vector<dispatch> plan_rows(const ggml_tensor * src, const ggml_tensor * ids, const ggml_tensor * dst,
                                       tq_metal_rows & a) {
    const bool encodes = ggml_tq_is_float(src), decodes = ggml_tq_is_float(dst);
    if (!(encodes ? ggml_tq_is_whole(src, blocks) : ggml_tq_is(src) && ggml_tq_has_whole_rows(src, blocks)) ||
        !(decodes ? ggml_tq_is_whole(dst, blocks) : ggml_tq_is(dst) && ggml_tq_has_whole_rows(dst, blocks)) ||
        (encodes && decodes) || (!encodes && !decodes && src->type != dst->type) ||
        (ids && ids->type != GGML_TYPE_I32 && (ids->type != GGML_TYPE_I64 || decodes))) {
        return {};
    }
    a = {};
    a.src = view(src);
    a.dst = view(dst);
    for (int i = 0; ids && i < 3; i++) {
        a.ids_ne[i] = ids->ne[i];
        a.ids_nb[i] = (int64_t) ids->nb[i];
    }
    a.blocks = (uint32_t) (ggml_nelements(decodes ? dst : src) / TQ_BLOCK);
    const uint32_t per_group = TQ_METAL_ROWS_SIMDS * (encodes ? TQ_METAL_ENCODE_BLOCKS : 1);
    a.groups = (a.blocks + per_group - 1) / per_group;
    if (encodes) {
        a.groups = std::min<uint32_t>(a.groups, TQ_METAL_ENCODE_GROUPS);
    }
    dispatch d = {};
    d.kernel = encodes ? "kernel_tq_encode" : decodes ? "kernel_tq_decode" : "kernel_tq_copy";
    d.constants = {{TQ_METAL_TYPE, tq_type_from_id(encodes ? dst->type : src->type)},
                   {TQ_METAL_HALF, (encodes ? src : dst)->type == GGML_TYPE_F16},
                   {TQ_METAL_IDS, !ids                         ? 0
                                  : ids->type == GGML_TYPE_I64 ? 8
                                                               : 4}};
    d.arguments = &a;
    d.arguments_size = sizeof(a);
    d.buffers = {{src, 0}, {ids ? ids : src, 0}, {dst, 0}};
    d.shared = encodes ? TQ_METAL_ENCODE_SHARED : 0;
    d.groups[0] = (int) a.groups;
    d.groups[1] = d.groups[2] = 1;
    d.simds = TQ_METAL_ROWS_SIMDS;
    return {d};
}

// --- attention ---

static int attention_type(ggml_type type) {
    return type == GGML_TYPE_F16    ? (int) TQ_METAL_F16
           : type == GGML_TYPE_Q8_0 ? (int) TQ_METAL_Q8_0
                                    : tq_type_from_id(type);
}

static bool is_size(int64_t dim) {
    return dim == 64 || dim == 96 || dim == 128 || dim == 192 || dim == 256;
}

// Columns that a threadgroup of the decode kernel takes.
static int decode_columns(const tq_metal_attn & a) {
    return a.columns > 4 ? 8 : a.columns > 2 ? 4 : a.columns;
}

// With more columns, unpacking them for each threadgroup anew costs more than matrices of 8 x 8 gain; with one token
// there is nothing but the cache to split.
static bool is_decode(const tq_metal_attn & a) {
    return a.tokens == 1 || a.columns <= 32;
}

static void set_strides(const ggml_tensor * t, int64_t & first, int64_t & second, int64_t & third) {
    first = (int64_t) t->nb[1];
    second = (int64_t) t->nb[2];
    third = (int64_t) t->nb[3];
}

// False where csrc/metal does not cover the operation.
static bool describe(const ggml_tensor * op, attention & r) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    r = {};
    tq_metal_attn & a = r.a;
    r.k_type = attention_type(k->type);
    r.v_type = attention_type(v->type);
    if (r.k_type < 0 || r.v_type < 0 || !is_size(k->ne[0]) || !is_size(v->ne[0]) || k->ne[1] < 1 ||
        k->ne[1] != v->ne[1] || !ggml_tq_fits(op, blocks) || (mask && mask->ne[1] < q->ne[1]) ||
        (sinks && sinks->type != GGML_TYPE_F32)) {
        return false;
    }
    a.streams = (int) q->ne[3];
    a.tokens = (int) q->ne[1];
    a.heads = (int) q->ne[2];
    a.k_dim = (int) k->ne[0];
    a.v_dim = (int) v->ne[0];
    a.kv_streams = (int) k->ne[3];
    a.kv_heads = (int) k->ne[2];
    a.kv_rows = (int) k->ne[1];
    a.group = a.heads / a.kv_heads;
    a.columns = a.group * a.tokens;
    set_strides(q, a.q_token, a.q_head, a.q_stream);
    set_strides(k, a.k_row, a.k_head, a.k_stream);
    set_strides(v, a.v_row, a.v_head, a.v_stream);
    if (mask) {
        a.mask_heads = (int) mask->ne[2];
        a.mask_streams = (int) mask->ne[3];
        set_strides(mask, a.mask_token, a.mask_head, a.mask_stream);
    }
    a.has_sinks = sinks != nullptr;
    a.scale = ggml_get_op_params_f32(op, 0);
    a.max_bias = ggml_get_op_params_f32(op, 1);
    a.softcap = ggml_get_op_params_f32(op, 2);

    const ggml_tensor *plain = op->src[GGML_TQ_SRC_QUERY], *mean = op->src[GGML_TQ_SRC_MEAN],
                      *turns = op->src[GGML_TQ_SRC_TURNS], *ids = op->src[GGML_TQ_SRC_CHUNK];
    if (ids) {
        a.is_centred = 1;
        set_strides(plain, a.plain_token, a.plain_head, a.plain_stream);
        a.chunks = (int) turns->ne[1];
        a.n_rot = ggml_get_op_params_i32(op, GGML_TQ_PARAM_ROPE_DIMS);
        a.neox = ggml_get_op_params_i32(op, GGML_TQ_PARAM_NEOX);
    }

    const int columns = is_decode(a) ? decode_columns(a)
                                     : TQ_METAL_PREFILL_COLUMNS * TQ_METAL_PREFILL_SIMDS(std::max(a.k_dim, a.v_dim));
    a.column_tiles = (a.columns + columns - 1) / columns;
    a.splits = 1;
    if (is_decode(a)) { // a tile for each SIMD group, and no more threadgroups than keep a large GPU busy
        const int tiles = (a.kv_rows + TQ_METAL_TILE - 1) / TQ_METAL_TILE;
        const int most = std::max(512 / (a.column_tiles * a.kv_heads * a.streams), 1);
        a.splits = std::min({(tiles + TQ_METAL_DECODE_SIMDS - 1) / TQ_METAL_DECODE_SIMDS, most, TQ_METAL_MOST_SPLITS});
    }
    return true;
}

static std::vector<dispatch> plan_attention(const ggml_tensor * op, attention & r) {
    if (!describe(op, r)) {
        return {};
    }
    const tq_metal_attn & a = r.a;
    dispatch d = {};
    d.constants = {{TQ_METAL_K, r.k_type}, {TQ_METAL_V, r.v_type}};
    d.arguments = &r.a;
    d.arguments_size = sizeof(r.a);
    for (const int i : {0, 1, 2, 3, 4, (int) GGML_TQ_SRC_QUERY, (int) GGML_TQ_SRC_MEAN, (int) GGML_TQ_SRC_TURNS,
                        (int) GGML_TQ_SRC_CHUNK}) {
        d.buffers.push_back({op->src[i] ? op->src[i] : op->src[0], 0});
    }
    d.buffers.push_back({op, 0});
    d.buffers.push_back({op, a.splits > 1 ? ggml_nbytes(op) : 0});
    if (!is_decode(a)) {
        const int most = std::max(a.k_dim, a.v_dim), D = most <= 64 ? 64 : most <= 128 ? 128 : 256;
        d.kernel = "kernel_tq_prefill_attention_" + std::to_string(D);
        d.shared = (size_t) TQ_METAL_PREFILL_SHARED(D, a.k_dim, most);
        d.simds = TQ_METAL_PREFILL_SIMDS(D);
        d.groups[0] = a.column_tiles;
        d.groups[1] = a.kv_heads;
        d.groups[2] = a.streams;
        return {d};
    }
    const int columns = decode_columns(a);
    d.kernel = "kernel_tq_decode_attention_" + std::to_string(columns) + "_" + (a.v_dim <= 128 ? "4" : "8");
    d.shared = (size_t) TQ_METAL_DECODE_SHARED(columns, a.k_dim);
    d.simds = TQ_METAL_DECODE_SIMDS;
    d.groups[0] = a.splits;
    d.groups[1] = a.kv_heads * a.column_tiles;
    d.groups[2] = a.streams;
    if (a.splits == 1) {
        return {d};
    }
    dispatch merge = d;
    merge.kernel = "kernel_tq_merge_attention";
    merge.shared = 0;
    merge.simds = 1;
    merge.groups[0] = a.streams * a.tokens * a.heads;
    merge.groups[1] = merge.groups[2] = 1;
    return {d, merge};
}

size_t ggml_metal_tq_scratch(const ggml_tensor * op) {
    attention r;
    if (op->op != GGML_OP_FLASH_ATTN_EXT || !describe(op, r) || r.a.splits == 1) {
        return 0;
    }
    // what the splits sum, and a maximum and a total of each
    return (size_t) r.a.streams * r.a.tokens * r.a.heads * r.a.splits * (r.a.v_dim + 2) * sizeof(float);
}

// --- what ggml-metal asks ---

namespace {

// Where `dispatch.arguments` lie.
struct arguments {
    tq_metal_rows rows;
    attention attn;
};

} // namespace

static std::vector<dispatch> plan(const ggml_tensor * op, arguments & a) {
    switch (op->op) {
        case GGML_OP_SET_ROWS:
        case GGML_OP_GET_ROWS:
            return plan_rows(op->src[0], op->src[1], op, a.rows);
        case GGML_OP_CPY:
            return plan_rows(op->src[0], nullptr, op->src[1], a.rows);
        case GGML_OP_FLASH_ATTN_EXT:
            return plan_attention(op, a.attn);
        default:
            return {};
    }
}

// The kernels compiled for a device, once; null where the compiler refuses them, which it says in the log.
static ggml_metal_library_t library_of(ggml_metal_device_t dev) {
    static std::mutex mutex;
    static std::map<ggml_metal_device_t, ggml_metal_library_t> libraries; // as long as the process lives
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = libraries.find(dev);
    if (found != libraries.end()) {
        return found->second;
    }
    return libraries[dev] = ggml_metal_library_init_from_source(dev, tq_metal_source, /*verbose =*/true);
}

static ggml_metal_pipeline_with_params pipeline_of(ggml_metal_library_t library, const dispatch & d) {
    std::string name = d.kernel;
    for (const auto & constant : d.constants) {
        name += "_" + std::to_string(constant.second);
    }
    ggml_metal_pipeline_with_params pipeline = ggml_metal_library_get_pipeline(library, name.c_str());
    if (!pipeline.pipeline) {
        ggml_metal_cv_t cv = ggml_metal_cv_init();
        for (const auto & constant : d.constants) {
            if (constant.first == TQ_METAL_HALF) {
                ggml_metal_cv_set_bool(cv, constant.second != 0, constant.first);
            } else {
                ggml_metal_cv_set_int32(cv, constant.second, constant.first);
            }
        }
        pipeline = ggml_metal_library_compile_pipeline(library, d.kernel.c_str(), name.c_str(), cv);
        ggml_metal_cv_free(cv);
    }
    return pipeline;
}

bool ggml_metal_tq_supports(ggml_metal_device_t dev, const ggml_tensor * op) {
    if (ggml_tq_is_view(op)) {
        return true;
    }
    const ggml_metal_device_props * props = ggml_metal_device_get_props(dev);
    arguments a;
    const std::vector<dispatch> dispatches = plan(op, a);
    if (dispatches.empty() || !props->has_simdgroup_reduction || !props->has_simdgroup_mm) {
        return false;
    }
    ggml_metal_library_t library = library_of(dev);
    for (const dispatch & d : dispatches) {
        if (!library || d.shared > props->max_theadgroup_memory_size) {
            return false;
        }
        const ggml_metal_pipeline_with_params pipeline = pipeline_of(library, d);
        if (!pipeline.pipeline || ggml_metal_pipeline_max_theads_per_threadgroup(pipeline) < d.simds * TQ_METAL_SIMD) {
            return false;
        }
    }
    return true;
}

static ggml_metal_buffer_id buffer_id(const buffer & b) {
    const ggml_tensor * t = b.tensor;
    ggml_backend_buffer_t owner = t->view_src ? t->view_src->buffer : t->buffer;
    ggml_metal_buffer_id id = ggml_metal_buffer_get_id(static_cast<ggml_metal_buffer_t>(owner->context), t);
    id.offs += b.offset;
    return id;
}

bool ggml_metal_tq_encode(ggml_metal_device_t dev, ggml_metal_encoder_t enc, const ggml_tensor * op) {
    if (!ggml_tq_in(op)) {
        return false;
    }
    arguments a;
    const std::vector<dispatch> dispatches = plan(op, a);
    GGML_ASSERT(!dispatches.empty());
    for (size_t i = 0; i < dispatches.size(); i++) {
        const dispatch & d = dispatches[i];
        if (i > 0) { // it reads what the one before has written
            ggml_metal_encoder_memory_barrier(enc);
        }
        ggml_metal_encoder_set_pipeline(enc, pipeline_of(library_of(dev), d));
        ggml_metal_encoder_set_bytes(enc, const_cast<void *>(d.arguments), d.arguments_size, 0);
        for (size_t b = 0; b < d.buffers.size(); b++) {
            ggml_metal_encoder_set_buffer(enc, buffer_id(d.buffers[b]), (int) b + 1);
        }
        if (d.shared > 0) {
            ggml_metal_encoder_set_threadgroup_memory_size(enc, (d.shared + 15) / 16 * 16, 0);
        }
        ggml_metal_encoder_dispatch_threadgroups(enc, d.groups[0], d.groups[1], d.groups[2], d.simds * TQ_METAL_SIMD, 1,
                                                 1);
    }
    return true;
}
