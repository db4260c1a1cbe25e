// What both attention kernels share: blocks to numbers, scores, and the last step.
//
// Nothing is infinite or NaN on purpose, because compilers may assume that nothing is: a query that has seen no row yet
// has TQ_NOTHING as its maximum, and a closed mask is told by its bits.
#pragma once

#include "rows.h"

TQ_METAL_CONSTANT(int, tq_k, TQ_METAL_K);
TQ_METAL_CONSTANT(int, tq_v, TQ_METAL_V);

#define TQ_NOTHING (-1.0e38f)
#define TQ_LOG2E 1.44269504f
#define TQ_CLOSED 0xFC00 // half: minus infinity

// Kernels have these arguments, of which Metal numbers the buffers in their order.
#define TQ_METAL_ATTENTION                                                                                        \
    constant const tq_metal_attn &a, device const uchar *q, device const uchar *k, device const uchar *v,         \
        device const uchar *mask, device const float *sinks, device const uchar *plain, device const float *mean, \
        device const float *turns, device const int *ids, device float *out, device float *scratch

static inline bool tq_is_tq(int type) {
    return type < TQ_METAL_Q8_0;
}

// Values that are kept as halves are 2^-4 of what they are, so that the largest fits. They have 4 + 7 significant bits.
static inline float tq_unit(int type) {
    return tq_is_tq(type) ? 16.0f : 1.0f;
}

// --- blocks ---

static inline uint tq_load_short(device const uchar * p) { // at an even place
    return *(device const ushort *) p;
}

static inline float tq_load_half(device const uchar * p) {
    return (float) *(device const half *) p;
}

// The levels of both codebooks as floats, by all threads.
static inline void tq_load_books(int type, threadgroup float * to, uint thread_index, uint threads) {
    if (tq_is_tq(type)) {
        TQ_BOOK const signed char * from = tq_dev_books(type);
        for (uint i = thread_index; i < (uint) (2 << tq_dev_bits(type)); i += threads) {
            to[i] = (float) from[i];
        }
    }
}

// A block, and what all of its values share.
struct tq_opened {
    device const uchar * body;
    threadgroup const float * book;
    float scale[2];
};

static inline tq_opened tq_open(int type, device const uchar * block, threadgroup const float * books) {
    tq_opened r;
    r.body = type == TQ_METAL_F16 ? block : block + 2;
    r.book = books;
    r.scale[0] = r.scale[1] = 1.0f;
    if (tq_is_tq(type)) {
        const uint word = tq_load_short(block);
        r.book = books + (word >> 15 << tq_dev_bits(type));
        r.scale[0] = tq_dev_scale(word, 0);
        r.scale[1] = tq_dev_scale(word, 1);
    } else if (type == TQ_METAL_Q8_0) {
        r.scale[0] = r.scale[1] = tq_load_half(block);
    }
    return r;
}

// Values 2i, 2i + 1, 2i + 16 and 2i + 17 of a block, i < 8: what lies together in types of four bits and of two.
static inline void tq_four(int type, thread const tq_opened & r, uint i, thread float * x) {
    if (type == TQ_METAL_F16) {
        for (uint j = 0; j < 4; j++) {
            x[j] = tq_load_half(r.body + 2 * (2 * i + (j & 1) + 8 * (j & 2)));
        }
        return;
    }
    if (type == TQ_METAL_Q8_0) {
        for (uint j = 0; j < 4; j++) {
            const uint two = tq_load_short(r.body + 2 * i + 8 * (j & 2));
            x[j] = (float) (((int) (two >> 8 * (j & 1) & 255) ^ 128) - 128) * r.scale[j >> 1];
        }
        return;
    }
    const int bits = tq_dev_bits(type);
    const uint low = tq_load_short(r.body + (bits == 4 ? 2 * i : 2 * (i & 3)));
    const uint high = bits == 3 ? tq_load_short(r.body + 8 + 2 * (i & 1)) : 0;
    for (uint j = 0; j < 4; j++) { // byte j & 1, sub-block j >> 1
        uint index;
        if (bits == 4) {
            index = low >> (8 * (j & 1) + 4 * (j >> 1)) & 15;
        } else {
            index = low >> (8 * (j & 1) + 4 * (j >> 1) + 2 * (i >> 2)) & 3;
            index |= (high >> (8 * (j & 1) + 4 * (j >> 1) + (i >> 1)) & 1) << 2;
        }
        x[j] = r.book[index] * r.scale[j >> 1];
    }
}

// A block to halves, `to` at a place divisible by four; zeros where there is nothing to read.
static inline void tq_unpack(int type, device const uchar * block, threadgroup const float * books, bool is_there,
                             threadgroup half * to) {
    if (!is_there) {
        for (uint i = 0; i < TQ_BLOCK; i++) {
            to[i] = (half) 0.0f;
        }
        return;
    }
    const tq_opened r = tq_open(type, block, books);
    const float unit = 1.0f / tq_unit(type);
    for (uint i = 0; i < 8; i++) {
        float x[4];
        tq_four(type, r, i, x);
        for (uint j = 0; j < 4; j++) {
            to[2 * i + (j & 1) + 8 * (j & 2)] = (half) (x[j] * unit);
        }
    }
}

// --- columns ---

// Query column: which token and head it is.
struct tq_column {
    bool is_there;
    int token, head;
};

static inline tq_column tq_column_of(constant const tq_metal_attn & a, int kv_head, int column) {
    tq_column c;
    c.is_there = column < a.columns;
    column = min(column, a.columns - 1);
    c.token = column / a.group;
    c.head = kv_head * a.group + column - c.token * a.group;
    return c;
}

static inline device const float * tq_query(constant const tq_metal_attn & a, device const uchar * q, tq_column c,
                                            int stream) {
    return (device const float *) (q + c.token * a.q_token + c.head * a.q_head + stream * a.q_stream);
}

// ALiBi: what the mask is multiplied with, and log2(e).
static inline float tq_slope(constant const tq_metal_attn & a, int head) {
    if (a.max_bias == 0.0f) {
        return TQ_LOG2E;
    }
    const int power = 1 << (31 - (int) clz((uint) a.heads));
    return TQ_LOG2E * exp2(-a.max_bias / (float) power * (head < power ? head + 1.0f : head - power + 0.5f));
}

// The mask of a column and a row as the bits of a half.
static inline uint tq_mask(constant const tq_metal_attn & a, device const uchar * mask, tq_column c, int stream,
                           int row) {
    if (!c.is_there || row >= a.kv_rows) {
        return TQ_CLOSED;
    }
    if (a.mask_heads == 0) {
        return 0;
    }
    return *(device const ushort *) (mask + c.token * a.mask_token + c.head % a.mask_heads * a.mask_head +
                                     stream % a.mask_streams * a.mask_stream + row * (int64_t) sizeof(ushort));
}

// A product to a score in log2, without the mask.
static inline float tq_score(constant const tq_metal_attn & a, float product) {
    if (a.softcap == 0.0f) {
        return product * (a.scale * TQ_LOG2E);
    }
    return a.softcap * TQ_LOG2E * precise::tanh(product * (a.scale / a.softcap));
}

// --- centred keys ---

// Value i of G: the query against the mean as RoPE pairs them, so that G . turn is q . (the mean, turned).
static inline float tq_paired(constant const tq_metal_attn & a, device const float * q, device const float * mean,
                              int i) {
    if (i >= a.n_rot) {
        return q[i] * mean[i];
    }
    const bool second = a.neox ? i >= a.n_rot / 2 : (i & 1) != 0;
    const int other = a.neox ? (second ? i - a.n_rot / 2 : i + a.n_rot / 2) : i ^ 1;
    return second ? q[i] * mean[other] - q[other] * mean[i] : q[i] * mean[i] + q[other] * mean[other];
}

// What the product of a column with the keys of a chunk lacks, by a SIMD group.
static inline float tq_lacking(constant const tq_metal_attn & a, device const uchar * plain, device const float * mean,
                               device const float * turns, tq_column c, int kv_head, int stream, int chunk, uint lane) {
    device const float * query =
        (device const float *) (plain + c.token * a.plain_token + c.head * a.plain_head + stream * a.plain_stream);
    device const float * of_head = mean + kv_head * a.k_dim;
    device const float * turn = turns + chunk * (int64_t) a.k_dim;
    float sum = 0.0f;
    for (int i = (int) lane; i < a.k_dim; i += TQ_METAL_SIMD) {
        sum = fma(tq_paired(a, query, of_head, i), turn[i], sum);
    }
    return simd_sum(sum);
}

// The chunk of a row; 0 adds nothing.
static inline int tq_chunk(constant const tq_metal_attn & a, device const int * ids, int kv_stream, int row) {
    return a.is_centred && row < a.kv_rows ? ids[kv_stream * (int64_t) a.kv_rows + row] : 0;
}

// Adds to the scores of a lane's row what their products with centred keys lack. `lacking` is that of chunk `known`,
// and both are kept from tile to tile: a tile has mostly one chunk or two.
template <int N>
static inline void tq_add_lacking(constant const tq_metal_attn & a, device const uchar * plain,
                                  device const float * mean, device const float * turns,
                                  thread const tq_column (&columns)[N], int kv_head, int stream, int chunk, uint lane,
                                  thread int & known, thread float (&lacking)[N], thread float (&score)[N]) {
    while (simd_any(chunk != 0)) {
        const int next = simd_max(chunk);
        if (next != known) {
#pragma unroll
            for (int c = 0; c < N; c++) {
                lacking[c] = tq_lacking(a, plain, mean, turns, columns[c], kv_head, stream, next, lane);
            }
            known = next;
        }
        if (chunk == next) {
#pragma unroll
            for (int c = 0; c < N; c++) {
                score[c] += lacking[c];
            }
            chunk = 0;
        }
    }
}

// --- the last step ---

// What sums of values are multiplied with: 1 / (sum of weights, the sink included). Zero where a query sees nothing.
static inline float tq_finish(constant const tq_metal_attn & a, device const float * sinks, int head, float most,
                              float total) {
    if (most == TQ_NOTHING) {
        return 0.0f;
    }
    if (a.has_sinks) {
        total += exp2(sinks[head] * TQ_LOG2E - most);
    }
    return tq_unit(tq_v) / total;
}

// Row [stream, token, head] of the result.
static inline int64_t tq_row(constant const tq_metal_attn & a, tq_column c, int stream) {
    return (stream * (int64_t) a.tokens + c.token) * a.heads + c.head;
}
