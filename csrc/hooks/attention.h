// GGML_OP_FLASH_ATTN_EXT with K or V of a TQ type, by cpu/attention/attention.h. Part of ggml-cpu.
#pragma once

#include <vector>

#include "ggml-cpu-impl.h"

// Computes the operation, all threads together, and returns true; or returns false, for upstream's path: for anything
// else, and under `use_ref` (ggml_backend_cpu_set_use_ref), by which tests compare the two.
bool ggml_tq_attention(ggml_compute_params * params, ggml_tensor * op);

// The work buffer for it, or 0.
size_t ggml_tq_attention_work_size(int n_threads, const ggml_tensor * op);

// For upstream's path: what the scores of a query row lack of centred keys.
class ggml_tq_offsets {
public:
    ggml_tq_offsets(const ggml_tensor * op, int64_t token, int64_t head, int64_t stream);
    // 0, without a call, where the keys are not centred
    float operator()(int64_t cell) { return chunk ? at(cell) : 0.0f; }

private:
    float at(int64_t cell);

    std::vector<float> g;
    const float * turns = nullptr;
    const int32_t * chunk = nullptr;
    int32_t last = 0; // chunk, whose offset is
    float offset = 0;
};
