// GGML_OP_FLASH_ATTN_EXT with K or V of a TQ type, by cpu/attention/attention.h. Part of ggml-cpu.
#pragma once

#include "ggml-cpu-impl.h"

// Computes the operation, all threads together, and returns true; or returns false, for upstream's path: for anything
// else, and under `use_ref` (ggml_backend_cpu_set_use_ref), by which tests compare the two.
bool ggml_tq_attention(ggml_compute_params * params, ggml_tensor * op);

// The work buffer for it, or 0.
size_t ggml_tq_attention_work_size(int n_threads, const ggml_tensor * op);
