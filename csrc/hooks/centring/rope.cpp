#include "rope.h"

#include <stdexcept>
#include <tuple>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "llama-cparams.h"
#include "llama-model.h"

llama_tq_rope::llama_tq_rope(const llama_model & model, const llama_cparams & cparams, int il, bool turned) {
    const llama_hparams & hparams = model.hparams;
    if (!turned || hparams.rope_type == LLAMA_ROPE_TYPE_NONE || !hparams.has_rope(il)) {
        return;
    }
    n_dims = (int) hparams.n_rot(il);
    mode = hparams.rope_type == LLAMA_ROPE_TYPE_NEOX ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    n_ctx_orig = (int) cparams.n_ctx_orig_yarn;
    freq_base = model.get_rope_freq_base(cparams, il);
    freq_scale = model.get_rope_freq_scale(cparams, il);
    ext_factor = cparams.yarn_ext_factor;
    attn_factor = cparams.yarn_attn_factor;
    beta_fast = cparams.yarn_beta_fast;
    beta_slow = cparams.yarn_beta_slow;
    factors = model.get_rope_factors(cparams, il);
}

bool llama_tq_rope::operator==(const llama_tq_rope & other) const {
    const auto all = [](const llama_tq_rope & r) {
        return std::tie(r.n_dims, r.mode, r.n_ctx_orig, r.freq_base, r.freq_scale, r.ext_factor, r.attn_factor,
                        r.beta_fast, r.beta_slow, r.factors);
    };
    return all(*this) == all(other);
}

ggml_tensor * llama_tq_rope::apply(ggml_context * ctx, ggml_tensor * x, ggml_tensor * pos) const {
    return n_dims == 0 ? x
                       : ggml_rope_ext(ctx, x, pos, factors, n_dims, mode, n_ctx_orig, freq_base, freq_scale,
                                       ext_factor, attn_factor, beta_fast, beta_slow);
}

std::vector<float> llama_tq_rope::turns(int head, const std::vector<int32_t> & positions) const {
    const int64_t n = (int64_t) positions.size();
    std::vector<float> result((size_t) (head * n), 1.0f);
    if (n_dims == 0 || n == 0) {
        return result;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int f = 0; f < n_dims / 2; f++) {
            result[(size_t) (i * head + second(f))] = 0.0f;
        }
    }
    const ggml_backend_ptr backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    const ggml_context_ptr ctx(
        ggml_init({8 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/true}));
    if (!backend || !ctx) {
        throw std::runtime_error("no CPU backend for the tables of centred keys");
    }
    ggml_tensor * unit = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, head, 1, n);
    ggml_tensor * pos = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n);
    llama_tq_rope here = *this;
    if (factors) {
        here.factors = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, factors->ne[0]);
    }
    ggml_tensor * turned = here.apply(ctx.get(), unit, pos);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, turned);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    if (!buffer) {
        throw std::runtime_error("no memory for the tables of centred keys");
    }
    ggml_backend_tensor_set(unit, result.data(), 0, ggml_nbytes(unit));
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    if (factors) {
        std::vector<char> bytes(ggml_nbytes(factors));
        ggml_backend_tensor_get(factors, bytes.data(), 0, bytes.size());
        ggml_backend_tensor_set(here.factors, bytes.data(), 0, bytes.size());
    }
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the tables of centred keys could not be computed");
    }
    ggml_backend_tensor_get(turned, result.data(), 0, ggml_nbytes(turned));
    return result;
}
