// The mean key of every head of a model: before RoPE, and only where taking it out pays. See ../../CENTRING.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"

struct gguf_context;
struct llama_model;

constexpr int LLAMA_TQ_CHUNK = 64; // positions that share a centre

struct llama_tq_means {
    struct layer {
        std::vector<float> mean;     // [kv heads][head]; zeros for a head that is left as it is
        int kv_heads = 0;            // of the layer; 0 where it has no ordinary cache
        int heads = 0;               // that are centred
        bool turned = true;          // by RoPE, as the graph shows: hyperparameters do not tell of all models
        float before = 0, after = 0; // energy of the keys of tokens that the mean was not taken from
    };

    std::vector<layer> layers;      // of the model; those without an ordinary cache have no mean
    bool first_is_plain = false;    // position 0 is left as it is: it draws attention with a small key
    std::vector<llama_token> plain; // and so are these tokens, wherever they stand; ascending
    std::string source;             // "the model file", "measured", or the side file that they came from

    bool empty() const;
};

// Why no context of that model can centre its keys, or nothing.
LLAMA_API std::string llama_tq_not_centred(const llama_model & model);

// From the model, its file, the side file, or else by a short prefill, which also writes the side file. Thread safe.
// Throws std::runtime_error where the model cannot read the prompt.
LLAMA_API std::shared_ptr<const llama_tq_means> llama_tq_means_of(const llama_model & model, int n_threads);

// --- storage (store.cpp) ---

// Keys and arrays of GGUF metadata, in a model file or alone in a side file.
void llama_tq_write_means(gguf_context * gguf, const llama_tq_means & means);
// Nothing where there are none, or where they do not fit the model.
std::shared_ptr<llama_tq_means> llama_tq_read_means(const gguf_context * gguf, const llama_model & model);

// The side file of a model: in llama.cpp's or the user's cache folder, named after what the tensors hold.
LLAMA_API std::string llama_tq_side_file(const llama_model & model);
std::shared_ptr<llama_tq_means> llama_tq_load_side_file(const std::string & path, const llama_model & model);
// Returns why it could not be written, or nothing. Another process never sees half a file.
std::string llama_tq_save_side_file(const std::string & path, const llama_tq_means & means);
