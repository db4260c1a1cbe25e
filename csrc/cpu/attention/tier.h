// What a tier of attention.h provides, and what tiers share.
#pragma once

#include <math.h>
#include <string.h>

#include "../tq_kernels.h"
#include "attention.h"

#define INLINE static inline __attribute__((always_inline))

struct tq_attn_softmax {
    float scale;   // of the raw scores
    float softcap; // 0 without
    float slope;   // of the mask
};

enum tq_attn_format {
    TQ_ATTN_WORDS,
    TQ_ATTN_BYTES,
    TQ_ATTN_FORMATS,
};

#define TQ_ATTN_TURNS 4 // of one call to the tier

#define TQ_ATTN_QUERY_BYTES(blocks) (2 * TQ_BLOCK * (blocks))      // of a query row
#define TQ_ATTN_WEIGHT_BYTES(blocks) (2 * TQ_ATTN_TILE * (blocks)) // of a query row's weights

struct tq_attn_rows {
    const char * first;
    size_t stride;     // bytes to the next row
    ptrdiff_t to_next; // bytes to the same row of the tile after this one
};

// 64 rows to a tile; unit is [units][64].
typedef void (*tq_attn_load_fn)(struct tq_attn_rows rows, int blocks, void * tile, float * unit);

struct tq_attn_loader {
    enum tq_attn_format format;
    tq_attn_load_fn load;
};

// What goes with a format.
struct tq_attn_products {
    int under_unit; // values

    // Of a query row, dim values; returns the unit.
    float (*quantise)(const float * q, int dim, void * out);

    // score[rows][64], in units of the query; q is [rows][TQ_ATTN_QUERY_BYTES(blocks)], 1 <= rows <= 4.
    void (*scores)(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score);

    // weight[units][64] = rint(steps * p * ratio); returns steps, the most that attention.h allows. ratio is [units +
    // 1][64], the last row the largest of the others; sum is that of p.
    float (*weights)(const float * p, float sum, const float * ratio, int blocks, void * weight);

    // acc[rows][32 * blocks] = keep[row] * acc + add[row] * unit * (weight . values); weight is
    // [rows][TQ_ATTN_WEIGHT_BYTES(blocks)].
    void (*accumulate)(const void * weight, int rows, int blocks, const void * values, const float * unit,
                       const float * keep, const float * add, float * acc);
};

struct tq_attn_kernels {
    // The base tier of isa.def has those that are missing.
    struct tq_attn_loader keys[TQ_ATTN_TYPES], values[TQ_ATTN_TYPES];
    struct tq_attn_products products[TQ_ATTN_FORMATS];

    // n halves to float, -infinity behind them; returns whether any of them is above -infinity.
    bool (*load_mask)(const uint16_t * mask, int n, float * out);

    // Units of a tile's values to their ratios to the largest of a column, `top`; [units + 1][64], the last row as said
    // above, and [units]. Rows that nobody sees, unused cells with what was once in them, must not move the rounding of
    // the others.
    void (*ratios)(const float * live, int units, float * unit, float * top);

    // out[turn][row] = g[row] . turn, for four turns and g[rows][dim], 1 <= rows <= 4; four values are written to each
    // out.
    void (*offsets)(const float * g, int rows, int dim, const float * const * turn, float * const * out);

    // out[t] = x for first <= t < end
    void (*fill)(float * out, int first, int end, float x);

    // Scores of one row to e^(x - largest x), where x begins as score * scale + offset; returns the largest x, and the
    // sum. At least one mask is finite.
    float (*softmax)(float * score, const float * offset, const float * mask, const struct tq_attn_softmax * s,
                     float * sum);
};

#define TQ_ISA(NAME, name, architecture, BASE) TQ_IF_##architecture(extern const struct tq_attn_kernels tq_attn_##name;)
#include "../isa.def"
#undef TQ_ISA

// --- what tiers share ---

#define TQ_ATTN_LINE 64 // bytes of a cache line

static inline void tq_attn_prefetch(const char * p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += TQ_ATTN_LINE) {
        __builtin_prefetch(p + i);
    }
    __builtin_prefetch(p + bytes - 1);
}

// The first n rows of the next tile: no hardware foresees rows that lie apart. A loader asks for a few at a time.
static inline void tq_attn_prefetch_rows(struct tq_attn_rows r, int n, size_t bytes) {
    for (size_t i = 0; i < bytes + TQ_ATTN_LINE - 1; i += TQ_ATTN_LINE) {
        const char * p = r.first + r.to_next + (i < bytes ? i : bytes - 1);
        for (int t = 0; t < n; t++) {
            __builtin_prefetch(p + r.stride * (size_t) t);
        }
    }
}

static inline struct tq_attn_rows tq_attn_skip(struct tq_attn_rows r, int t) {
    r.first += r.stride * (size_t) t;
    return r;
}

// --- loops for the compiler to vectorise, with what a tier's file may use ---

// Of n numbers; their bits compare as integers, which needs no fast-math.
static inline float tq_attn_largest(const float * x, int n) {
    int32_t top = 0;
    for (int i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bits &= INT32_MAX;
        top = bits > top ? bits : top;
    }
    float result;
    memcpy(&result, &top, sizeof(result));
    return result;
}

static inline void tq_attn_ratios(const float * live, int units, float * unit, float * top) {
    float * peak = unit + units * TQ_ATTN_TILE;
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        peak[t] = 0.0f;
    }
    for (int i = 0; i < units; i++) {
        float * u = unit + i * TQ_ATTN_TILE;
        for (int t = 0; t < TQ_ATTN_TILE; t++) {
            u[t] = live[t] > -INFINITY ? u[t] : 0.0f;
        }
        top[i] = tq_attn_largest(u, TQ_ATTN_TILE);
        const float inverse = top[i] > 0.0f ? 1.0f / top[i] : 0.0f;
        for (int t = 0; t < TQ_ATTN_TILE; t++) {
            u[t] *= inverse;
            peak[t] = u[t] > peak[t] ? u[t] : peak[t];
        }
    }
}

static inline float tq_attn_offset(const float * g, const float * turn, int dim) {
    float sum[16] = {0.0f};
    for (int i = 0; i < dim; i += 16) {
        for (int j = 0; j < 16; j++) {
            sum[j] += g[i + j] * turn[i + j];
        }
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) {
            sum[j] += sum[j + half];
        }
    }
    return sum[0];
}

static inline void tq_attn_offsets(const float * g, int rows, int dim, const float * const * turn,
                                   float * const * out) {
    for (int i = 0; i < TQ_ATTN_TURNS; i++) {
        for (int r = 0; r < TQ_ATTN_ROWS; r++) {
            out[i][r] = r < rows ? tq_attn_offset(g + r * dim, turn[i], dim) : 0.0f;
        }
    }
}

static inline void tq_attn_fill(float * out, int first, int end, float x) {
    for (int t = first; t < end; t++) {
        out[t] = x;
    }
}

// Nearest integer, in the low bits
static inline int32_t tq_attn_round(float x) {
    int32_t bits;
    x += 0x1.8p23f;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float tq_attn_quantise_words(const float * q, int dim, void * out) {
    const float top = tq_attn_largest(q, dim), inverse = top > 0.0f ? TQ_ATTN_QUERY_WORD / top : 0.0f;
    int16_t * restrict number = out;
    if (!isfinite(top)) { // NaN has bits of its own; the unit says it all
        memset(number, 0, (size_t) dim * sizeof(*number));
        return top / TQ_ATTN_QUERY_WORD;
    }
    for (int i = 0; i < dim; i += 4) {
        number[i] = (int16_t) tq_attn_round(q[i] * inverse);
        number[i + 1] = (int16_t) tq_attn_round(q[i + 2] * inverse);
        number[i + 2] = (int16_t) tq_attn_round(q[i + 1] * inverse);
        number[i + 3] = (int16_t) tq_attn_round(q[i + 3] * inverse);
    }
    return top / TQ_ATTN_QUERY_WORD;
}

static inline float tq_attn_quantise_bytes(const float * q, int dim, void * out) {
    const float top = tq_attn_largest(q, dim), inverse = top > 0.0f ? TQ_ATTN_QUERY_BYTE / top : 0.0f;
    int8_t * restrict number = out;
    int32_t * restrict offset = (int32_t *) (number + dim);
    for (int i = 0; i < dim; i++) {
        number[i] = (int8_t) tq_attn_round(q[i] * inverse);
    }
    for (int i = 0; i < dim / TQ_SUB_BLOCK; i++) {
        int32_t sum = 0;
        for (int j = 0; j < TQ_SUB_BLOCK; j++) {
            sum += number[TQ_SUB_BLOCK * i + j];
        }
        offset[i] = -128 * sum;
    }
    return top / TQ_ATTN_QUERY_BYTE;
}

static inline float tq_attn_word_steps(float sum) {
    const float most = TQ_ATTN_WEIGHT_SUM / sum;
    return most < TQ_ATTN_WEIGHT_WORD ? most : TQ_ATTN_WEIGHT_WORD;
}

// load_keys_<name> and load_values_<name> by inlined functions, which take what is constant for the type first.
#define TQ_ATTN_LOADERS(name, keys, values, ...)                                                      \
    static void load_keys_##name(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {   \
        keys(__VA_ARGS__, rows, blocks, tile, unit);                                                  \
    }                                                                                                 \
    static void load_values_##name(struct tq_attn_rows rows, int blocks, void * tile, float * unit) { \
        values(__VA_ARGS__, rows, blocks, tile, unit);                                                \
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
