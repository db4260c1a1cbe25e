// Refusals: what would fail, abort or lose its accuracy later is said when a context is made; and lost devices.
#include "llama-tq.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "aborts.h"
#include "centring/centre.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-tq.h"
#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

namespace {

const char * const plain_types = "f16 or bf16";

// One half of the cache, for one layer.
struct half {
    const char * name;
    ggml_type type;
    int head_size;
};

std::string head_size_reason(const half & h, uint32_t il) {
    const int block = (int) ggml_blck_size(h.type);
    if (h.head_size % block == 0) {
        return "";
    }
    return format("%s cache type %s needs head sizes that are multiples of %d, and layer %u has %d; use %s for %s",
                  h.name, ggml_type_name(h.type), block, il, h.head_size, plain_types, h.name);
}

// Written and read as numbers: not integers, not what only holds activations, not what cannot be encoded on its own.
bool can_be_cached(ggml_type type) {
    const ggml_type_traits * traits = ggml_get_type_traits(type);
    return type == GGML_TYPE_F32 || (traits->to_float && traits->from_float_ref);
}

// Asks as the scheduler will; there, an operation on the cache that its device lacks ends the process.
std::string device_reason(ggml_backend_dev_t dev, const half & k, const half & v, bool flash_attn) {
    const char * const advice = "keep the cache in main memory (--no-kv-offload, offload_kqv=False) or use f16";
    for (const half & h : {k, v}) {
        if (!ggml_tq_can_store(dev, h.type, h.head_size)) {
            return format("%s cannot hold a %s cache of type %s; %s", ggml_backend_dev_name(dev), h.name,
                          ggml_type_name(h.type), advice);
        }
    }
    const int n_rows = 256;
    const ggml_context_ptr ctx(ggml_init({8 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true}));
    ggml_tensor * query = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, k.head_size, 1);
    ggml_tensor * keys = ggml_new_tensor_2d(ctx.get(), k.type, k.head_size, n_rows);
    if (!flash_attn) {
        if (!ggml_backend_dev_supports_op(dev, ggml_mul_mat(ctx.get(), keys, query))) {
            return format("%s needs flash attention for a K cache of type %s, and it is off; turn it on (--flash-attn "
                          "on, flash_attn=True) or use f16 for K",
                          ggml_backend_dev_name(dev), ggml_type_name(k.type));
        }
        return "";
    }
    ggml_tensor * op =
        ggml_flash_attn_ext(ctx.get(), query, keys, ggml_new_tensor_2d(ctx.get(), v.type, v.head_size, n_rows),
                            ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, n_rows, 1), 1.0f, 0.0f, 0.0f);
    if (!ggml_backend_dev_supports_op(dev, op)) {
        return format("%s has no flash attention for a K cache of type %s with a V cache of type %s; %s",
                      ggml_backend_dev_name(dev), ggml_type_name(k.type), ggml_type_name(v.type), advice);
    }
    return "";
}

// Why the model cannot run with these cache types and what to do instead, or nothing.
std::string refusal(const llama_model & model, const llama_context_params & params) {
    for (const ggml_type * type : {&params.type_k, &params.type_v}) {
        int id; // C++ does not let one look at an enum that has no such value
        std::memcpy(&id, type, sizeof(id));
        if (id < 0 || id >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) id) == 0) {
            return format("there is no cache type with the id %d", id);
        }
        if (!can_be_cached(*type)) {
            return format("a cache cannot have the type %s", ggml_type_name(*type));
        }
    }

    const llama_hparams & hparams = model.hparams;
    const bool flash_attn = params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_DISABLED;

    const ggml_type type = llama_tq_is(params.type_k) ? params.type_k : params.type_v;
    if (llama_tq_is(type)) {
        const char * name = ggml_type_name(type);
        if (tq_isa_error()) {
            return format("cache type %s: %s", name, tq_isa_error());
        }
        if (!llama_tq_centring_error().empty()) {
            return format("cache type %s: %s", name, llama_tq_centring_error().c_str());
        }
        const char * disabled = std::getenv("LLAMA_ATTN_ROT_DISABLE");
        if (disabled && std::atoi(disabled)) {
            return format("cache type %s needs the rotation that LLAMA_ATTN_ROT_DISABLE=%s turns off; unset it, or use "
                          "q8_0 or f16",
                          name, disabled);
        }
        if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR && model.n_devices() > 0) {
            return format("cache type %s does not support devices that share a layer (--split-mode tensor); use "
                          "--split-mode layer, or q8_0",
                          name);
        }
        if (hparams.is_mla() || model.arch == LLM_ARCH_DEEPSEEK4 || hparams.indexer_head_size > 0) {
            return format("cache type %s does not support the attention of %s models (latent or indexed heads, which "
                          "are not rotated); use %s",
                          name, llm_arch_name(model.arch), plain_types);
        }
    }
    if (llama_tq_is(params.type_v)) {
        const char * name = ggml_type_name(params.type_v);
        if (model.arch == LLM_ARCH_GROK || model.arch == LLM_ARCH_T5) {
            return format("V cache type %s needs flash attention, which %s models cannot use; use f16 for V", name,
                          llm_arch_name(model.arch));
        }
        if (!flash_attn) {
            return format("V cache type %s needs flash attention, which is off; turn it on (--flash-attn on, "
                          "flash_attn=True) or use f16 for V",
                          name);
        }
    }

    std::vector<ggml_backend_dev_t> asked;
    for (uint32_t il = 0; il < hparams.n_layer(); il++) {
        if (!hparams.has_kv(il) || hparams.n_head_kv(il) == 0) {
            continue;
        }
        const half k = {"K", params.type_k, (int) hparams.n_embd_head_k(il)};
        const half v = {"V", params.type_v, (int) hparams.n_embd_head_v(il)};
        if (!llama_tq_is(type)) {
            continue;
        }
        for (const half & h : {k, v}) {
            const std::string reason = head_size_reason(h, il);
            if (!reason.empty()) {
                return reason;
            }
        }
        ggml_backend_dev_t dev = params.offload_kqv ? model.dev_layer((int) il) : nullptr;
        if (dev && std::find(asked.begin(), asked.end(), dev) == asked.end()) {
            asked.push_back(dev);
            const std::string reason = device_reason(dev, k, v, flash_attn);
            if (!reason.empty()) {
                return reason;
            }
        }
    }
    return "";
}

} // namespace

bool llama_tq_is(const llama_kv_cache & cache) {
    return !cache.get_layer_ids().empty() && llama_tq_is(cache.type_k());
}

bool llama_tq_refuses(const llama_model & model, const llama_context_params & params) {
    const std::string reason = refusal(model, params);
    if (!reason.empty()) {
        LLAMA_LOG_ERROR("%s\n", reason.c_str());
    }
    return !reason.empty();
}

bool llama_tq_answers(const llama_model & model) {
    for (const llama_device & device : model.devices) {
        if (std::strncmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device.dev)), "RPC", 3) != 0) {
            continue;
        }
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device.dev, &free, &total); // waits for everything that was asked before
        if (total == 0) {
            LLAMA_LOG_ERROR("the RPC server at %s does not answer any more\n",
                            ggml_backend_dev_description(device.dev));
            return false;
        }
    }
    return true;
}

namespace {

// Where positions are learned and not turned: a thread that looks for one that is not there ends the process.
bool has_positions(const llama_model & model, ggml_cgraph * graph) {
    for (int i = 0; model.pos_embd && i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (node->op != GGML_OP_GET_ROWS || node->src[0] != model.pos_embd ||
            !ggml_backend_buffer_is_host(node->src[1]->buffer)) {
            continue;
        }
        const int32_t * positions = static_cast<const int32_t *>(node->src[1]->data);
        for (int64_t j = 0; j < node->src[1]->ne[0]; j++) {
            if (positions[j] < 0 || positions[j] >= model.pos_embd->ne[1]) {
                LLAMA_LOG_ERROR("there is no position %d: the model has learned %d\n", positions[j],
                                (int) model.pos_embd->ne[1]);
                return false;
            }
        }
    }
    return true;
}

} // namespace

ggml_status llama_tq_compute(const llama_model & model, ggml_backend_sched_t sched, ggml_cgraph * graph) {
    if (!has_positions(model, graph)) {
        return GGML_STATUS_FAILED;
    }
    const llama_tq_aborts aborts(false); // the CPU's other threads would wait for a thread that was thrown out
    const ggml_status status = ggml_backend_sched_graph_compute_async(sched, graph);
    return status == GGML_STATUS_SUCCESS && !llama_tq_answers(model) ? GGML_STATUS_FAILED : status;
}
