// The mask of a TQ cache, where one comparison decides about a cell. Upstream's loop asks every cell for its set of
// sequences, which at 131072 cells takes as long as reading them takes a GPU.
#pragma once

#include "ggml.h"

class llama_kv_cache;
struct llama_ubatch;

// Fills `mask` (F16 or F32, [cells, tokens, 1, streams]) for a causal batch without ALiBi and sliding windows, and
// answers true. False, and nothing done, for caches whose K is of no TQ type, positions of several numbers, many tokens
// (whose masks upstream copies from one another), and cells of other sequences among a token's.
bool llama_tq_set_mask(ggml_tensor * mask, const llama_ubatch & batch, const llama_kv_cache & cache);
