// What a tier of attn.h provides, and what tiers share.
#pragma once

#include <string.h>

#include "attn.h"
#include "tq_kernels.h"

struct tq_attn_softmax {
    float scale;   // of the raw scores
    float softcap; // 0 without
    float slope;   // of the mask
};

typedef void (*tq_attn_load_fn)(const char * rows, size_t stride, int n, int blocks, int16_t * tile, float * unit);

struct tq_attn_kernels {
    const struct tq_attn_kernels * base; // the tier whose loaders serve where this one has none of its own

    // n rows to a tile, 1 <= n <= 64; unit is [blocks][64]. What stands behind row n is finite, no more.
    tq_attn_load_fn load_keys[TQ_ATTN_TYPES];
    tq_attn_load_fn load_values[TQ_ATTN_TYPES];

    // n halves to float, -infinity behind them; returns whether any of them is above -infinity.
    bool (*load_mask)(const uint16_t * mask, int n, float * out);

    // score[rows][64], in units of the query; q is [rows][32 * blocks], 1 <= rows <= 4.
    void (*scores)(const int16_t * q, int rows, int blocks, const int16_t * keys, const float * unit, float * score);

    // Scores of one row to e^(x - largest x); returns the largest x, and the sum. At least one mask is finite.
    float (*softmax)(float * score, const float * mask, const struct tq_attn_softmax * s, float * sum);

    // weight[blocks][64] = rint(p * steps * ratio); ratio is [blocks][64]
    void (*weights)(const float * p, float steps, const float * ratio, int blocks, int16_t * weight);

    // acc[rows][32 * blocks] = keep[row] * acc + add[row] * unit[block] * (weight . values); weight is
    // [rows][blocks][64].
    void (*accumulate)(const int16_t * weight, int rows, int blocks, const int16_t * values, const float * unit,
                       const float * keep, const float * add, float * acc);
};

#define TQ_ISA(NAME, name, architecture, BASE) TQ_IF_##architecture(extern const struct tq_attn_kernels tq_attn_##name;)
#include "isa.def"
#undef TQ_ISA
#define tq_attn_neon_dotprod tq_attn_neon // bytes are too short for the numbers of a tile

// --- what tiers share ---

#define TQ_ATTN_LINE 64 // bytes of a cache line

static inline void tq_attn_prefetch(const char * p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += TQ_ATTN_LINE) {
        __builtin_prefetch(p + i);
    }
    __builtin_prefetch(p + bytes - 1);
}

// Row t of a tile of n, and its `bytes`: the last one again behind n. Its like in the next tile is fetched from memory,
// because no hardware foresees rows that lie apart: a quarter of the time of decode where the cache exceeds the L3.
static inline const char * tq_attn_row(const char * rows, size_t stride, int n, int t, size_t bytes) {
    const char * row = rows + stride * (size_t) (t < n ? t : n - 1);
    tq_attn_prefetch(row + stride * TQ_ATTN_TILE, bytes);
    return row;
}

// Calls an inlined function with its number of rows as a constant.
#define TQ_ATTN_BY_ROWS(rows, function, ...) \
    switch (rows) {                          \
        case 1:                              \
            function(1, __VA_ARGS__);        \
            break;                           \
        case 2:                              \
            function(2, __VA_ARGS__);        \
            break;                           \
        case 3:                              \
            function(3, __VA_ARGS__);        \
            break;                           \
        default:                             \
            function(4, __VA_ARGS__);        \
    }

// --- the scale word as integers ---

// (8 + m) * 2^h with its sign, by the five bits of a field
static const int16_t tq_attn_factors[32] = {
    8,  9,  10,  11,  12,  13,  14,  15,  16,  18,  20,  22,  24,  26,  28,  30,
    -8, -9, -10, -11, -12, -13, -14, -15, -16, -18, -20, -22, -24, -26, -28, -30,
};

#define TQ_ATTN_UNIT_BIAS (127 - 26) // the unit's exponent, less e

struct tq_attn_scale {
    int16_t factor[2];
    float unit;
};

static inline struct tq_attn_scale tq_attn_scale(const unsigned char word[2]) {
    const unsigned w = word[0] | (unsigned) word[1] << 8, e = w >> 10 & 31;
    const uint32_t bits = e == 0 ? 0 : (e + TQ_ATTN_UNIT_BIAS) << 23;
    struct tq_attn_scale s = {{tq_attn_factors[w & 31], tq_attn_factors[w >> 5 & 31]}, 0.0f};
    memcpy(&s.unit, &bits, sizeof(bits));
    return s;
}

// --- e^x, relative error below 6 * 2^-24, for TQ_EXP_LEAST <= x <= TQ_EXP_MOST ---
//
// With n = rint(x * LOG2E) and r = x - n * LN2_HIGH - n * LN2_LOW:
// e^x = 2^n * (1 + r + r^2 / 2 + r^3 * (E_3 + r * (E_4 + r * E_5))), the E being minimax for |r| <= ln(2) / 2.
#define TQ_EXP_LEAST -87.0f
#define TQ_EXP_MOST 88.0f
#define TQ_EXP_LOG2E 0x1.715476p+0f
#define TQ_EXP_LN2_HIGH 0x1.62e4p-1f
#define TQ_EXP_LN2_LOW 0x1.7f7d1cp-20f
#define TQ_EXP_3 0x1.555a96p-3f
#define TQ_EXP_4 0x1.568e36p-5f
#define TQ_EXP_5 0x1.0e8c84p-7f
