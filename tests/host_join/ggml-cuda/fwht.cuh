// In place of ggml-cuda's: which products are rotations.
#pragma once

#include "common.cuh"

inline bool ggml_cuda_op_mul_mat_use_fwht(const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT && ggml_get_op_params_i32(op, 1) == GGML_HINT_SRC0_IS_HADAMARD &&
           ggml_is_contiguous(op->src[1]) && ggml_are_same_shape(op, op->src[1]);
}
