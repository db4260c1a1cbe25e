// Attention over a cache of which at least one half is of a TQ type. Knows no ggml.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rows.h"
#include "tq.h"

// Types of K and V: enum tq_type, or one of these.
enum { TQ_CUDA_Q8_0 = TQ_TYPE_COUNT, TQ_CUDA_F16 };

// [kv_streams, kv_heads, kv_rows] rows of `dim` values; strides in bytes.
struct tq_cuda_cache {
    int type;
    int dim;
    const char * data;
    int64_t row_stride, head_stride, stream_stride;
};

struct tq_cuda_attn {
    int streams, tokens, heads;
    int kv_streams, kv_heads, kv_rows;
    tq_cuda_cache k, v;
    const char * q; // f32
    int64_t q_token_stride, q_head_stride, q_stream_stride;
    const char * mask; // f16 [mask_streams, mask_heads, tokens, kv_rows], or null
    int mask_heads, mask_streams;
    int64_t mask_token_stride, mask_head_stride, mask_stream_stride;
    const float * sinks; // [heads], or null
    float scale, max_bias, softcap;
    float * out; // [streams, tokens, heads, v.dim]
    // Queries are rotated first, and results rotated back, in runs of so many values: a power of two from 32 to 256 (of
    // values: 64) that divides the head, or 0 where the caller does it.
    int k_rotation, v_rotation;
    // Before that queries are turned, those of a stream's token as the same token of the streams in order; where
    // tq_cuda_attn_turns says so.
    tq_cuda_rope rope;
    // Rows of K and V that are encoded before they are read, at most most_stores, on the host.
    const tq_rows_store * stores;
    int store_count;
    bool stores_are_apart; // nothing that they read lies where `out` does

    // Centred keys; q_plain is null where there are none. A score gains G . turns[ids[row]], where G pairs the query
    // before the Hadamard rotation with the mean of its KV head as RoPE pairs them.
    const char * q_plain; // f32, as q; not read where q is turned on the way
    int64_t qp_token_stride, qp_head_stride, qp_stream_stride;
    const float * mean;  // [kv_heads, k.dim]
    const float * turns; // [chunks, k.dim], row 0 is zero
    int chunks;
    const int * ids; // [kv_streams, kv_rows]
    int n_rot;
    bool neox; // RoPE pairs (i, i + n_rot / 2), otherwise (2i, 2i + 1)
};

struct tq_cuda_device {
    int capability; // 75 for 7.5
    int multiprocessors;
    int shared; // bytes of shared memory that a block may have
};

// Whether any kernel runs there.
bool tq_cuda_supports(const tq_cuda_device & device);
// Whether attention takes these types and sizes there; the data is not looked at.
bool tq_cuda_attn_supports(const tq_cuda_attn & a, const tq_cuda_device & device);
// Whether a.rope may be asked for, and for rows that are stored the same.
bool tq_cuda_attn_turns(const tq_cuda_attn & a, const tq_cuda_device & device);

// Bytes of memory that the caller provides as `scratch`: partial results, if anything.
size_t tq_cuda_attn_scratch(const tq_cuda_attn & a, const tq_cuda_device & device);
void tq_cuda_attn_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream);
