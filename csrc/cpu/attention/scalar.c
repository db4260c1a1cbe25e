// attention.h in C: the definition. No instruction set assumed.
#include <math.h>

#include "../half.h"
#include "tier.h"

// --- unpacking: 32 values to int16, in order; returns the unit ---

static float unpack_tq(enum tq_type type, const char * block, int16_t out[TQ_BLOCK]) {
    float value[TQ_BLOCK];
    tq_kernels_scalar.dequantize[type](block, value, TQ_BLOCK);
    const float unit = tq_attn_scale((const unsigned char *) block).unit;
    for (int v = 0; v < TQ_BLOCK; v++) {
        out[v] = unit == 0.0f ? 0 : (int16_t) (value[v] / unit); // exact, see attention.h
    }
    return unit;
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                  \
    static float unpack_##name(const char * block, int16_t out[TQ_BLOCK]) { \
        return unpack_tq(TQ_TYPE_##NAME, block, out);                       \
    }
#include "../../types.def"
#undef TQ_TYPE

static float unpack_q8_0(const char * block, int16_t out[TQ_BLOCK]) {
    for (int v = 0; v < TQ_BLOCK; v++) {
        out[v] = (int8_t) block[2 + v];
    }
    return tq_half_to_float((const unsigned char *) block);
}

static float unpack_f16(const char * block, int16_t out[TQ_BLOCK]) {
    float x[TQ_BLOCK], top = 0.0f;
    for (int v = 0; v < TQ_BLOCK; v++) {
        const float f = tq_half_to_float((const unsigned char *) block + 2 * v);
        x[v] = f > -65504.0f ? fminf(f, 65504.0f) : -65504.0f; // as is NaN
        top = fmaxf(top, fabsf(x[v]));
    }
    const float inverse = top > 0.0f ? TQ_ATTN_NUMBER_MAX / top : 0.0f;
    for (int v = 0; v < TQ_BLOCK; v++) {
        out[v] = (int16_t) rintf(x[v] * inverse);
    }
    return top / TQ_ATTN_NUMBER_MAX;
}

// --- tiles ---

typedef float (*unpack_fn)(const char * block, int16_t out[TQ_BLOCK]);

static void load_keys(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                      float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        const char * row = tq_attn_skip(rows, t).first;
        for (int b = 0; b < blocks; b++) {
            int16_t x[TQ_BLOCK];
            unit[b * TQ_ATTN_TILE + t] = unpack(row + bytes * (size_t) b, x);
            for (int p = 0; p < TQ_BLOCK / 2; p++) {
                int16_t * two = tile + 2 * ((b * TQ_BLOCK / 2 + p) * TQ_ATTN_TILE + t);
                two[0] = x[4 * (p / 2) + p % 2];
                two[1] = x[4 * (p / 2) + p % 2 + 2];
            }
        }
    }
}

static void load_values(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                        float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        const char * row = tq_attn_skip(rows, t).first;
        for (int b = 0; b < blocks; b++) {
            int16_t x[TQ_BLOCK];
            unit[b * TQ_ATTN_TILE + t] = unpack(row + bytes * (size_t) b, x);
            for (int d = 0; d < TQ_BLOCK; d++) {
                tile[2 * ((b * TQ_ATTN_TILE + t) / 2 * TQ_BLOCK + d) + t % 2] = x[d];
            }
        }
    }
}

// --- arithmetic ---

static void scores(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    const int16_t *query = q, *key = keys;
    for (int r = 0; r < rows; r++) {
        for (int t = 0; t < TQ_ATTN_TILE; t++) {
            float sum = 0.0f;
            for (int b = 0; b < blocks; b++) {
                int32_t dot = 0;
                for (int i = 0; i < TQ_BLOCK; i++) {
                    dot += query[(r * blocks + b) * TQ_BLOCK + i] *
                           key[2 * ((b * TQ_BLOCK + i) / 2 * TQ_ATTN_TILE + t) + i % 2];
                }
                sum += (float) dot * unit[b * TQ_ATTN_TILE + t];
            }
            score[r * TQ_ATTN_TILE + t] = sum;
        }
    }
}

static void accumulate(const void * weight, int rows, int blocks, const void * values, const float * unit,
                       const float * keep, const float * add, float * acc) {
    const int16_t *w = weight, *value = values;
    for (int r = 0; r < rows; r++) {
        for (int b = 0; b < blocks; b++) {
            for (int d = 0; d < TQ_BLOCK; d++) {
                int32_t sum = 0;
                for (int t = 0; t < TQ_ATTN_TILE; t++) {
                    sum += w[(r * blocks + b) * TQ_ATTN_TILE + t] *
                           value[2 * ((b * TQ_ATTN_TILE + t) / 2 * TQ_BLOCK + d) + t % 2];
                }
                float * at = acc + (r * blocks + b) * TQ_BLOCK + d;
                *at = *at * keep[r] + (float) sum * (add[r] * unit[b]);
            }
        }
    }
}

static float softmax(float * score, const float * offset, const float * mask, const struct tq_attn_softmax * s,
                     float * sum) {
    float top = -INFINITY;
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        float x = score[t] * s->scale + offset[t];
        x = s->softcap != 0.0f ? s->softcap * tanhf(x) : x;
        score[t] = x + s->slope * mask[t];
        top = fmaxf(top, score[t]);
    }
    *sum = 0.0f;
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        score[t] = expf(score[t] - top);
        *sum += score[t];
    }
    return top;
}

static float weights(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    const float steps = tq_attn_word_steps(sum);
    int16_t * w = weight;
    for (int i = 0; i < blocks * TQ_ATTN_TILE; i++) {
        const float x = rintf(p[i % TQ_ATTN_TILE] * steps * ratio[i]);
        w[i] = isnan(x) || isnan(sum) ? 0 : (int16_t) x; // the result is NaN by the sum or the unit
    }
    return steps;
}

static bool load_mask(const uint16_t * mask, int n, float * out) {
    bool open = false;
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        out[t] = t < n ? tq_half_to_float((const unsigned char *) (mask + t)) : -INFINITY;
        open |= out[t] != -INFINITY;
    }
    return open;
}

// --- the table ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    TQ_ATTN_LOADERS(name, load_keys, load_values, unpack_##name, bytes)
#include "../../types.def"
#undef TQ_TYPE
TQ_ATTN_LOADERS(f16, load_keys, load_values, unpack_f16, TQ_BLOCK * 2)
TQ_ATTN_LOADERS(q8_0, load_keys, load_values, unpack_q8_0, sizeof(tq_block_q8_0))

#define TIER scalar
#include "tier.inc"
