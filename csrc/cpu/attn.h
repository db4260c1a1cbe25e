// Softmax attention over a cache of TQ blocks: what a caller describes, and what a tier provides.
//
// The cache goes through in tiles of 64 rows. A tile is unpacked once, to integers, for all query rows that share the
// KV head: the heads of its group times the tokens of a batch. Then, four query rows at a time: scores by integer
// products, exponentials, and a weighted sum of values by integer products again. One path serves decode, small batches
// and prefill.
//
// The numbers of a tile are int16 with a float unit for each block of 32, value = unit * number:
//
//   TQ      unit = 2^(e - 26) of the scale word, number = +-(8 + m) * 2^h * level. Exact: |number| <= 30 * 127.
//   q8_0    unit = d, number = the quant. Exact.
//   f16     unit = (largest magnitude) / 4096, number rounded.
//
// A query row is int16 as well, |number| <= 16383 under one unit, and so are the weights of a tile's rows: a softmax
// weight times the row's unit, in parts of the tile's largest unit, and up to 32767 but for a sum below 2^19. Thus the
// 32 products of a score and the 64 of a sum stay inside an int32:
//
//   32 * 16383 * 4096 < 2^31      (sum of weights) * 4096 < 2^31
//
// Numbers are stored in twos, for instructions that multiply two pairs of int16 and add both (vpdpwssd, vpmaddwd):
//
//   keys     [block][two][row][2]      two p of a block holds values v and v + 2, v = 4 * (p / 2) + p % 2: they share a
//                                      32-bit word of the packed bytes, 16 bits apart. A query row has this order too.
//   values   [block][row / 2][column][2]
#pragma once

#include "../tq.h"
#include "../tq_blocks.h"

#define TQ_ATTN_TILE 64         // cache rows of a tile
#define TQ_ATTN_ROWS 4          // query rows of one call to the tier
#define TQ_ATTN_NUMBER_MAX 4096 // of a key or a value
#define TQ_ATTN_QUERY_MAX 16383
#define TQ_ATTN_WEIGHT_MAX 32767
#define TQ_ATTN_WEIGHT_SUM 524224 // 2^19 less 64 roundings
#define TQ_ATTN_HEAD_MIN 64       // values of a head of K or V
#define TQ_ATTN_HEAD_MAX 1024     // of V

// Types of K and V: those of enum tq_type, then these.
enum {
    TQ_ATTN_F16 = TQ_TYPE_COUNT,
    TQ_ATTN_Q8_0,
    TQ_ATTN_TYPES,
};

// Strides are in bytes.
struct tq_attn_cache {
    int type;
    const char * data;
    int64_t dim; // values of a head, a multiple of 32
    size_t row_stride, head_stride, stream_stride;
};

struct tq_attn {
    int64_t streams, tokens, heads, kv_streams, kv_heads, kv_rows;
    float scale;    // of the scores
    float max_bias; // of ALiBi, 0 without
    float softcap;  // 0 without

    const char * q; // float [k.dim]
    size_t q_token_stride, q_head_stride, q_stream_stride;
    struct tq_attn_cache k, v;

    const char * mask;                // IEEE halves [kv_rows], or NULL
    int64_t mask_heads, mask_streams; // heads and streams take them in turn
    size_t mask_token_stride, mask_head_stride, mask_stream_stride;

    const float * sinks; // [heads], or NULL
    float * out;         // [streams][tokens][heads][v.dim]
};

#ifdef __cplusplus
extern "C" {
#endif

// --- the driver: every thread takes tasks until none is left, then, after all of them, its part of the merge ---

TQ_API size_t tq_attn_work_size(const struct tq_attn * a, int threads); // bytes, with slack to align to 64
TQ_API int64_t tq_attn_tasks(const struct tq_attn * a);
TQ_API void tq_attn_run_task(const struct tq_attn * a, int64_t task, void * work, int thread, int threads);
TQ_API void tq_attn_merge(const struct tq_attn * a, void * work, int thread, int threads);

#ifdef __cplusplus
}
#endif
