// What a tier provides: one table of functions, indexed by type.
#pragma once

#include "../tq.h"
#include "../tq_blocks.h"

typedef void (*tq_quantize_fn)(const float * x, void * y, int64_t n);
typedef void (*tq_dequantize_fn)(const void * x, float * y, int64_t n);
typedef float (*tq_vec_dot_fn)(const void * x, const void * y_q8_0, int64_t n);

struct tq_kernels {
    tq_quantize_fn quantize[TQ_TYPE_COUNT];
    tq_dequantize_fn dequantize[TQ_TYPE_COUNT];
    tq_vec_dot_fn vec_dot[TQ_TYPE_COUNT];
};

#define TQ_ISA(NAME, name) extern const struct tq_kernels tq_kernels_##name;
#include "isa.def"
#undef TQ_ISA
