// Operations on TQ types in ggml-cuda, by csrc/cuda. Part of ggml-cuda.
#pragma once

#include "ggml-cuda/common.cuh"
#include "ggml-tq.h"

// Whether the device computes an operation that reads or writes one of the types (ggml_tq_in).
bool ggml_cuda_tq_supports(int device, const ggml_tensor * op);
// Computes the operation and returns true, or false if none of the types is in it.
bool ggml_cuda_tq_compute(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
// Computes the attention of a layer that begins with node i, from RoPE or the rotation of Q, K and V to that of the
// result, and returns how many nodes after i are done, or 0 if nothing was.
int ggml_cuda_tq_fuse(ggml_backend_cuda_context & ctx, const ggml_cgraph * graph, int i);

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
// These backends are compiled from ggml-cuda's sources, and csrc/cuda is not for them: they refuse.
inline bool ggml_cuda_tq_supports(int, const ggml_tensor * op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_VIEW || op->op == GGML_OP_PERMUTE ||
           op->op == GGML_OP_TRANSPOSE;
}

inline bool ggml_cuda_tq_compute(ggml_backend_cuda_context &, ggml_tensor *) {
    return false;
}

inline int ggml_cuda_tq_fuse(ggml_backend_cuda_context &, const ggml_cgraph *, int) {
    return 0;
}
#endif
