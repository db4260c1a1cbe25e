// What hooks/metal.cpp and the kernels agree on; both include it.
#pragma once

#include "tq_blocks.h"

#ifndef __METAL_VERSION__
#    include <stdint.h>
#endif

// Types of K and V: enum tq_type, or one of these.
enum { TQ_METAL_Q8_0 = TQ_TYPE_COUNT, TQ_METAL_F16 };

// Function constants.
#define TQ_METAL_TYPE 0 // of the blocks that are encoded or decoded
#define TQ_METAL_HALF 1 // whether the numbers are f16, otherwise f32
#define TQ_METAL_IDS 2  // bytes of a row number, 0 where row r goes to row r
#define TQ_METAL_K 3    // types of K and V
#define TQ_METAL_V 4

// A tensor: sizes in values, strides in bytes. A row is a whole number of blocks, also where it holds numbers.
struct tq_metal_tensor {
    int64_t ne[4];
    int64_t nb[4];
};

// SET_ROWS, GET_ROWS and copies, of `blocks` blocks in all. Buffers: these, source, ids, destination.
struct tq_metal_rows {
    struct tq_metal_tensor src, dst;
    int64_t ids_ne[3], ids_nb[3];
    uint32_t blocks;
    uint32_t groups; // of threads
};

// Strides in bytes. Buffers: this, Q, K, V, mask, sinks, then of centred keys plain queries, means, turns and chunks
// (as hooks/ggml-tq.h has them), the result, and scratch.
struct tq_metal_attn {
    int64_t q_token, q_head, q_stream; // f32
    int64_t k_row, k_head, k_stream;
    int64_t v_row, v_head, v_stream;
    int64_t mask_token, mask_head, mask_stream; // f16
    int64_t plain_token, plain_head, plain_stream;
    int32_t streams, tokens, heads, k_dim, v_dim;
    int32_t kv_streams, kv_heads, kv_rows;
    int32_t group;                    // query heads of a KV head
    int32_t columns;                  // group * tokens: token * group + head
    int32_t column_tiles;             // that threadgroups share
    int32_t splits;                   // of the cache
    int32_t mask_heads, mask_streams; // 0: no mask
    int32_t has_sinks;
    int32_t is_centred, chunks, n_rot, neox;
    float scale, max_bias, softcap;
    int32_t padding[2];
};

#if defined(__cplusplus)
static_assert(sizeof(tq_metal_tensor) == 64 && sizeof(tq_metal_rows) == 184 && sizeof(tq_metal_attn) == 216,
              "both compilers lay the structs out alike");
#endif

// --- threads, and threadgroup memory in bytes ---

#define TQ_METAL_SIMD 32
#define TQ_METAL_TILE 32 // cache rows that a SIMD group or a threadgroup unpacks at a time

#define TQ_METAL_ROWS_SIMDS 4
#define TQ_METAL_ENCODE_BLOCKS 2   // of a SIMD group at a time
#define TQ_METAL_ENCODE_GROUPS 256 // at most: each makes its table of distances first
#define TQ_METAL_ENCODE_TABLE (512 * 8)
#define TQ_METAL_ENCODE_SHARED \
    (TQ_METAL_ENCODE_TABLE + TQ_METAL_ROWS_SIMDS * TQ_METAL_ENCODE_BLOCKS * TQ_BLOCK * (4 + 1))

#define TQ_METAL_BOOKS (2 * 2 * 16 * 4) // the levels of K and V as floats

#define TQ_METAL_DECODE_SIMDS 4
#define TQ_METAL_MOST_SPLITS 32
#define TQ_METAL_STAGE_STRIDE (TQ_BLOCK + 2) // halves: rows start in different banks
#define TQ_METAL_DECODE_STAGE (TQ_METAL_TILE * TQ_METAL_STAGE_STRIDE * 2)
#define TQ_METAL_DECODE_OWN(columns) (TQ_METAL_DECODE_STAGE + (columns) * TQ_METAL_TILE * 4) // of a SIMD group
#define TQ_METAL_DECODE_SHARED(columns, k_dim) \
    (TQ_METAL_BOOKS + (columns) * (k_dim) * 4 + TQ_METAL_DECODE_SIMDS * TQ_METAL_DECODE_OWN(columns))

#define TQ_METAL_PREFILL_COLUMNS 8 // of a SIMD group: the rows of a matrix
#define TQ_METAL_PREFILL_SIMDS(D) ((D) > 128 ? 2 : 4)
#define TQ_METAL_PREFILL_STRIDE(dim) ((dim) + 8) // halves of a row
#define TQ_METAL_PREFILL_FLAGS (2 * 4 * 4)
#define TQ_METAL_PREFILL_OWN (TQ_METAL_PREFILL_COLUMNS * (TQ_METAL_TILE + TQ_METAL_PREFILL_COLUMNS) * 4)
#define TQ_METAL_PREFILL_SHARED(D, k_dim, most_dim)                                               \
    (TQ_METAL_BOOKS + TQ_METAL_PREFILL_FLAGS + TQ_METAL_PREFILL_SIMDS(D) * TQ_METAL_PREFILL_OWN + \
     TQ_METAL_PREFILL_SIMDS(D) * TQ_METAL_PREFILL_COLUMNS * TQ_METAL_PREFILL_STRIDE(k_dim) * 2 +  \
     TQ_METAL_TILE * TQ_METAL_PREFILL_STRIDE(most_dim) * 2)
