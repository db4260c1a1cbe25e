// Block structs of FORMAT.md. Shared by C, C++, CUDA and Metal.
#pragma once

// Types by number, dense.
enum tq_type {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) TQ_TYPE_##NAME,
#include "types.def"
#undef TQ_TYPE
    TQ_TYPE_COUNT,
};

#define TQ_BLOCK 32     // values in a block
#define TQ_SUB_BLOCK 16 // values under one scale

#define TQ_CODE_MIN 8
#define TQ_CODE_MAX 263
#define TQ_CODE_BIAS 832 // (bits of a positive scale) >> 20 == code + TQ_CODE_BIAS
#define TQ_MAGNITUDE_MAX 121920.0f
#define TQ_MAGNITUDE_MIN (1.0f / 2097152) // 2^-21: Metal has no hexadecimal floats
#define TQ_FINE 8                         // steps per codebook unit when indices are assigned

typedef struct {
    unsigned char scale[2]; // the scale word, little endian
    unsigned char low[16];  // values j and j + 16 in the nibbles of byte j
} tq_block_tq4_0;

typedef struct {
    unsigned char scale[2];
    unsigned char low[8];  // low two index bits of values j, j + 8, j + 16, j + 24
    unsigned char high[4]; // high index bit of values j, j + 4, ..., j + 28
} tq_block_tq3_0;

typedef struct {
    unsigned char scale[2];
    unsigned char low[8]; // values j, j + 8, j + 16, j + 24
} tq_block_tq2_1;

// ggml's q8_0, the activations of the dot products.
typedef struct {
    unsigned char d[2]; // IEEE half, little endian
    signed char qs[TQ_BLOCK];
} tq_block_q8_0;
