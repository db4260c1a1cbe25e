#include "mask.h"

#include <cmath>

#include "llama-kv-cache.h"
#include "llama-tq.h"

constexpr int64_t few_tokens = 16; // of a stream

// Empty cells have position -1, and the greatest of all as an unsigned number.
template <class T> static void fill(T * row, const llama_pos * cells, int64_t n, llama_pos last, T seen, T hidden) {
    for (int64_t i = 0; i < n; i++) {
        row[i] = (uint32_t) cells[i] <= (uint32_t) last ? seen : hidden;
    }
}

bool llama_tq_set_mask(ggml_tensor * mask, const llama_ubatch & batch, const llama_kv_cache & cache) {
    const int64_t n = mask->ne[0];
    if (!llama_tq_is(cache) || batch.is_pos_2d() || batch.n_tokens / mask->ne[3] > few_tokens) {
        return false;
    }
    for (uint32_t i = 0; i < batch.n_tokens; i++) {
        const llama_kv_cells & cells = cache.get_cells(batch.seq_id[i][0]);
        if (cells.seq_pos_get(batch.seq_id[i][0]).size() != cells.get_used()) {
            return false;
        }
    }
    for (uint32_t i = 0; i < batch.n_tokens; i++) {
        const llama_pos * cells = cache.get_cells(batch.seq_id[i][0]).pos_data();
        if (mask->type == GGML_TYPE_F16) {
            fill(static_cast<ggml_fp16_t *>(mask->data) + i * n, cells, n, batch.pos[i], ggml_fp32_to_fp16(0.0f),
                 ggml_fp32_to_fp16(-INFINITY));
        } else {
            fill(static_cast<float *>(mask->data) + i * n, cells, n, batch.pos[i], 0.0f, -INFINITY);
        }
    }
    return true;
}
