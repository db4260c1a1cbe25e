// Softmax attention over a cache of TQ blocks: what a caller describes, and what a tier provides.
//
// The cache goes through in tiles of 64 rows. A tile is unpacked once, to integers, for all query rows that share the
// KV head: the heads of its group times the tokens of a batch. Then, four query rows at a time: scores by integer
// products, exponentials, and a weighted sum of values by integer products again. One path serves decode, small batches
// and prefill.
//
// The numbers of a tile have a float unit, value = unit * number. A tier holds a side of it in one of two formats:
//
//   words   int16, a unit for each block of 32
//     TQ      unit = 2^(e - 26) of the scale word, number = +-(8 + m) * 2^h * level. Exact: |number| <= 30 * 127.
//     q8_0    unit = d, number = the quant. Exact.
//     f16     unit = (largest magnitude) / 4096, number rounded.
//
//   bytes   int8, a unit for each sub-block of 16
//     TQ      unit = the scale, number = the level. Exact.
//     q8_0    unit = d, number = the quant. Exact.
//
// A query row has the format of the keys, under one unit: |number| <= 16383 or 127. The weights of a tile's rows have
// that of the values: a softmax weight times the row's unit, in parts of the column's largest unit, rounded in steps of
// which the largest weight of a query row takes
//
//   words   32767, or less where the sum would exceed 2^19
//   bytes   255; a first token that draws all attention and has tiny values does not make the others vanish
//
// Then sums of products stay inside an int32:
//
//   words   32 * 16383 * 4096 < 2^31 for a block of a score, 2^19 * 4096 for a value
//   bytes   16 * 127 * 255 for a sub-block of a score, 64 * 255 * 128 for a value
//
// Numbers lie in groups of 32 bits, for instructions that multiply two pairs of int16 or four of int8 and add them up.
// Words:
//
//   keys     [block][two][row][2]      two p of a block holds values v and v + 2, v = 4 * (p / 2) + p % 2: they share a
//                                      32-bit word of the packed bytes, 16 bits apart
//   query    [block][two][2]
//   values   [block][row / 2][column][2]
//   weights  [block][row]
//
// Bytes lie as a tier likes best: see avx512.c and neon_dotprod.c. What they share is the query: its numbers
// in order, then for each sub-block an int32, -128 * (sum of its numbers), for keys that are stored 128 more.
#pragma once

#include "../../tq.h"
#include "../../tq_blocks.h"

#define TQ_ATTN_TILE 64         // cache rows of a tile
#define TQ_ATTN_ROWS 4          // query rows of one call to the tier
#define TQ_ATTN_NUMBER_MAX 4096 // of an f16 key or value in words
#define TQ_ATTN_QUERY_WORD 16383
#define TQ_ATTN_QUERY_BYTE 127
#define TQ_ATTN_WEIGHT_WORD 32767
#define TQ_ATTN_WEIGHT_SUM 524224 // of words, 2^19 less 64 roundings
#define TQ_ATTN_WEIGHT_BYTE 255
#define TQ_ATTN_HEAD_MIN 64   // values of a head of K or V
#define TQ_ATTN_HEAD_MAX 1024 // of V

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

// Centred keys (../../CENTRING.md): what a row's key lacks, its score gets back from the query before the rotation,
//
//   offset = sum over i of g_i turns[chunk][i],   g = tq_attn_centre_query(plain, mean)
struct tq_attn_centre {
    const char * plain; // float [k.dim]; NULL where the keys are not centred
    size_t plain_token_stride, plain_head_stride, plain_stream_stride;
    const float * mean;    // [kv_heads][k.dim]
    const float * turns;   // [chunks][k.dim]; row 0 is zeros
    const int32_t * chunk; // [kv_streams][kv_rows], a row of turns
    int rope_dims;         // RoPE turns that many values, in pairs:
    bool neox;             // (i, i + rope_dims / 2), or else (2i, 2i + 1)
};

struct tq_attn {
    int64_t streams, tokens, heads, kv_streams, kv_heads, kv_rows;
    float scale;    // of the scores
    float max_bias; // of ALiBi, 0 without
    float softcap;  // 0 without

    const char * q; // float [k.dim]
    size_t q_token_stride, q_head_stride, q_stream_stride;
    struct tq_attn_cache k, v;
    struct tq_attn_centre centre;

    const char * mask;                // IEEE halves [kv_rows], or NULL
    int64_t mask_heads, mask_streams; // heads and streams take them in turn
    size_t mask_token_stride, mask_head_stride, mask_stream_stride;

    const float * sinks; // [heads], or NULL
    float * out;         // [streams][tokens][heads][v.dim]
    float * lse;         // [streams][tokens][heads], or NULL: log of the sum of e^score, to join it with other rows
};

#ifdef __cplusplus
extern "C" {
#endif

// --- centred keys: dim values, a multiple of 32 ---

TQ_API void tq_attn_centre_query(const struct tq_attn_centre * c, const float * plain, const float * mean, int dim,
                                 float * g);
TQ_API float tq_attn_centre_offset(const float * g, const float * turn, int dim);

// --- the driver: every thread takes tasks until none is left, then, after all of them, its part of the merge ---

TQ_API size_t tq_attn_work_size(const struct tq_attn * a, int threads); // bytes, with slack to align to 64
TQ_API int64_t tq_attn_tasks(const struct tq_attn * a);
TQ_API void tq_attn_run_task(const struct tq_attn * a, int64_t task, void * work, int thread, int threads);
TQ_API void tq_attn_merge(const struct tq_attn * a, void * work, int thread, int threads);

#ifdef __cplusplus
}
#endif
