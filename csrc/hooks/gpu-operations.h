// ggml's operations on TQ types as csrc/cuda takes them. Part of ggml-cuda.
#pragma once

#include "cuda/attention.h"
#include "cuda/rows.h"
#include "device-ops.h"
#include "gpu.h"

bool ggml_cuda_tq_can_set_rows(const ggml_tensor * op);
tq_cuda_device ggml_cuda_tq_device(int device);
// False where csrc/cuda/attention.h does not cover the operation.
bool ggml_cuda_tq_describe(const ggml_tensor * op, tq_cuda_attn & a);
// Rows of `src` to where `ids` says, if they are given.
tq_rows_store ggml_cuda_tq_store(const ggml_tensor * src, const ggml_tensor * ids, const ggml_tensor * dst);
void ggml_cuda_tq_attend(ggml_backend_cuda_context & ctx, const tq_cuda_attn & a);
