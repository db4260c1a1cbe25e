// Centred keys in a KV cache: what is stored lacks the centre of its head and chunk of positions, and the scores get it
// back. ../../CENTRING.md has the arithmetic, means.h where the centres come from. What the patches call.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "buffers.h"
#include "ggml-backend.h"
#include "llama.h"
#include "means.h"
#include "rope.h"

class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;
class llama_kv_cache_context;
class llm_graph_result;
struct llama_cparams;
struct llama_memory_i;

// --- the switch ---

// On unless LLAMA_TQ_CENTRE=off; the value of llama_tq_set_centring comes first: 1 on, 0 off, -1 the variable's.
LLAMA_API bool llama_tq_centring_on();
LLAMA_API void llama_tq_set_centring(int on);
// Why LLAMA_TQ_CENTRE cannot be followed, or nothing.
std::string llama_tq_centring_error();

// --- arithmetic on the host ---

// The mean of the turns of a chunk's positions from its first, without YaRN's stretch, [head]; from the `turns` of rope
// at the positions from 0 on, a chunk of them at least.
std::vector<float> llama_tq_mean_turn(const llama_tq_rope & rope, int head, const std::vector<float> & turns);
// out = x turned by `turn`, as rope.turns gives it; values that do not turn are multiplied
void llama_tq_turn(const llama_tq_rope & rope, int head, const float * x, const float * turn, float * out);

// --- of a cache ---

// The caches of a memory whose keys can be centred: the ordinary ones, alone or beside recurrent layers, and both of
// models with sliding windows.
std::vector<llama_kv_cache *> llama_tq_caches(llama_memory_i * memory);

class llama_tq_centring {
public:
    llama_tq_centring(const llama_model & model, const llama_cparams & cparams, const llama_kv_cache & cache,
                      const llama_tq_means & means);

    struct layer {
        ggml_tensor * rows = nullptr;  // F32 [heads * head, 2]: zeros, and the mean of a chunk
        ggml_tensor * turns = nullptr; // F32 [head, chunks]: zeros, then the turns of the chunks' first positions
        llama_tq_rope rope;
        int head = 0, heads = 0;
        bool active = false; // some head has a mean. Tables are laid out for every layer: plans know no means
    };

    // Of the layer with that storage; null where its keys are not centred.
    const layer * find(const ggml_tensor * storage) const;

    // The row of `turns` for a cell: 0 where its key is as it was.
    int32_t chunk(llama_pos pos, llama_token token) const;

    // Where keys are centred, if no token decides. Small, so that a loop over the cells keeps it in registers.
    struct positions {
        uint32_t first, end;

        // 0 outside; -1 is the position of an empty cell
        int32_t chunk(llama_pos pos) const {
            const uint32_t p = (uint32_t) pos;
            return p >= first && p < end ? 1 + (int32_t) (p / LLAMA_TQ_CHUNK) : 0;
        }
    };
    positions centred() const { return {first_is_plain ? 1u : 0u, (uint32_t) (chunks - 1) * LLAMA_TQ_CHUNK}; }

    // Centres of n keys, [head, heads, n], for I32 [n] `row` of `rows` and `pos`, the chunk's first.
    static ggml_tensor * centres(ggml_context * ctx, const layer & l, ggml_tensor * row, ggml_tensor * pos);

    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & breakdown) const { buffers.add_memory(breakdown); }

    // --- saved states ---

    void write_state(llama_io_write_i & io, const llama_kv_cache & cache) const;
    void read_state(llama_io_read_i & io, const llama_kv_cache & cache, llama_seq_id seq_id);
    // Whether a cell's token decides how its key is stored
    bool needs_tokens() const { return !plain.empty(); }

private:
    llama_tq_buffers buffers;
    const int32_t chunks; // rows of `turns`
    bool first_is_plain;
    std::vector<llama_token> plain;
    std::map<const ggml_tensor *, layer> layers;            // by storage
    std::vector<const ggml_tensor *> order;                 // of the layers, as the cache has them
    std::map<const ggml_tensor *, std::vector<float>> host; // what `rows` holds

    void set_rows(const ggml_tensor * storage, const std::vector<float> & mean);
};

// Centres the keys of the context's caches from now on, where the type of K and the model allow it. Throws.
void llama_tq_centre_caches(const llama_model & model, const llama_cparams & cparams, ggml_type type_k,
                            llama_memory_i * memory);

// --- saved states: what precedes the cells of a TQ cache ---

void llama_tq_write_state(llama_io_write_i & io, const llama_kv_cache & cache);
// Where the state's means are others, the cache takes them over, if it is empty but for `seq_id` (-1: all of it).
// Throws std::runtime_error with the reason where the state cannot be read.
void llama_tq_read_state(llama_io_read_i & io, const llama_kv_cache & cache, llama_seq_id seq_id);
// Tells a number of cells from what precedes the cells of a TQ cache, in a cache of another type. Throws likewise.
void llama_tq_check_cells(uint32_t cell_count, const llama_kv_cache & cache);

// --- in a graph ---

// What attention over centred keys needs; `layer` is null where they are not.
struct llama_tq_offsets {
    const llama_tq_centring::layer * layer = nullptr;
    ggml_tensor * query = nullptr; // before the rotation; null in a cache without a TQ type
    ggml_tensor * chunk = nullptr; // I32 [cells, streams]
    ggml_tensor * row = nullptr;   // I32 [cells * streams], without flash attention
    ggml_tensor * pos = nullptr;   // likewise
};

// Before the rotation: centres new keys, if there are any, and prepares the offsets of the scores. What will be rotated
// is computed first, RoPE last of that, so that nothing lies between it and the rotations: a backend may do all that on
// the way.
llama_tq_offsets llama_tq_centre(ggml_context * ctx, ggml_cgraph * graph, llm_graph_result * res,
                                 const llama_kv_cache_context * cache, const ggml_tensor * mask, ggml_tensor * query,
                                 ggml_tensor ** keys, ggml_tensor * values, const llama_cparams & cparams, int il);
// Lets flash attention add them, and keeps the query until then; `offsets` may be null.
void llama_tq_attach(ggml_context * ctx, ggml_tensor * flash_attn, const llama_tq_offsets * offsets);
// Adds them to scores, [cells, tokens, heads, streams].
ggml_tensor * llama_tq_add(ggml_context * ctx, ggml_tensor * scores, const llama_tq_offsets * offsets);

// For a graph that moves cells to new positions: keys get their old centre back, and lose the new one.
struct llama_tq_shift {
    const llama_tq_centring * centring = nullptr;
    ggml_tensor *old_row = nullptr, *old_pos = nullptr, *new_row = nullptr, *new_pos = nullptr;

    // Whether RoPE turns the keys, as far as is known
    bool turns(const ggml_tensor * storage) const;
    ggml_tensor * restore(ggml_context * ctx, ggml_tensor * keys, const ggml_tensor * storage) const;
    ggml_tensor * centre(ggml_context * ctx, ggml_tensor * keys, const ggml_tensor * storage) const;
};
llama_tq_shift llama_tq_build_shift(ggml_context * ctx, llm_graph_result * res, const llama_kv_cache & cache);
