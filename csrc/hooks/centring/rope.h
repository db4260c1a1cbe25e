// A layer's RoPE, with the parameters that llama.cpp's graphs use, and as numbers on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

struct llama_model;
struct llama_cparams;

struct llama_tq_rope {
    int n_dims = 0; // values that turn, the first of a head; 0: none do
    int mode = 0;   // GGML_ROPE_TYPE_NORMAL or GGML_ROPE_TYPE_NEOX
    int n_ctx_orig = 0;
    float freq_base = 0, freq_scale = 0, ext_factor = 0, attn_factor = 0, beta_fast = 0, beta_slow = 0;
    ggml_tensor * factors = nullptr;

    llama_tq_rope() = default;
    // `turned`: whether the graph of the model applies RoPE to the keys of that layer at all
    llama_tq_rope(const llama_model & model, const llama_cparams & cparams, int il, bool turned);

    bool operator==(const llama_tq_rope & other) const;

    bool is_neox() const { return mode == GGML_ROPE_TYPE_NEOX; }
    // The values of pair f, 0 <= f < n_dims / 2
    int first(int f) const { return is_neox() ? f : 2 * f; }
    int second(int f) const { return is_neox() ? f + n_dims / 2 : 2 * f + 1; }

    // x [head, heads, n] turned to the positions pos, I32 [n]
    ggml_tensor * apply(ggml_context * ctx, ggml_tensor * x, ggml_tensor * pos) const;

    // For each position and pair the turn of (1, 0), which YaRN may also stretch, and 1 for values that do not turn:
    // [positions][head]. Computed by ggml's CPU backend, so that it is what the graphs compute.
    std::vector<float> turns(int head, const std::vector<int32_t> & positions) const;
};
