// The definition in C: FORMAT.md as it is written, no instruction set assumed. Compiled without contraction.
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../scale.h"
#include "spec.h"

static unsigned load_index(int bits, const uint8_t * body, int v) {
    if (bits == 4) {
        return body[v & 15] >> (v >> 4) * 4 & 15;
    }
    const unsigned low = body[v & 7] >> (v >> 3) * 2 & 3;
    return bits == 2 ? low : low | (body[8 + (v & 3)] >> (v >> 2) & 1u) << 2;
}

static void store_index(int bits, uint8_t * body, int v, unsigned index) {
    if (bits == 4) {
        body[v & 15] |= (uint8_t) (index << (v >> 4) * 4);
        return;
    }
    body[v & 7] |= (uint8_t) ((index & 3) << (v >> 3) * 2);
    if (bits == 3) {
        body[8 + (v & 3)] |= (uint8_t) (index >> 2 << (v >> 2));
    }
}

// --- encoder, FORMAT.md section 4 ---

struct choice {
    int code;
    bool negative;
    float price;
};

static int nearest(const struct tq_spec * s, const int8_t * book, int steps, int v) {
    int index = 0;
    for (int j = 0; j + 1 < 1 << s->bits; j++) {
        index += steps * (book[j] + book[j + 1]) <= 2 * v;
    }
    return index;
}

static void try_code(const struct tq_spec * s, const int8_t * book, const float * x, int code, struct choice * best) {
    const float scale = tq_scale_of(code);
    const float inverse = 1.0f / scale;
    for (int negative = 0; negative < 2; negative++) {
        int error = 0;
        for (int i = 0; i < TQ_SUB_BLOCK; i++) {
            const int t = (int) rintf(x[i] * inverse);
            const int v = negative ? -t : t;
            const int d = v - book[nearest(s, book, 1, v)];
            error += d * d;
        }
        const float price = (scale * scale) * (float) error;
        if (price < best->price) {
            *best = (struct choice) {code, negative, price};
        }
    }
}

static struct choice search(const struct tq_spec * s, const int8_t * book, const float * x, float amax) {
    const float anchor = amax * s->start;
    int32_t bits;
    memcpy(&bits, &anchor, sizeof(bits));
    struct choice best = {0, false, INFINITY};
    for (int k = 0; k < s->count; k++) {
        int code = (bits >> 20) - TQ_CODE_BIAS + k;
        code = code < TQ_CODE_MIN ? TQ_CODE_MIN : code > TQ_CODE_MAX ? TQ_CODE_MAX : code;
        try_code(s, book, x, code, &best);
    }
    return best;
}

static void quantize_block(const struct tq_spec * s, const float * input, uint8_t * y, size_t bytes) {
    float x[TQ_BLOCK];
    float amax[2] = {0.0f, 0.0f};
    memcpy(x, input, sizeof(x));
    for (int i = 0; i < TQ_BLOCK; i++) {
        const float v = isnan(x[i]) ? 0.0f : x[i];
        x[i] = v > TQ_MAGNITUDE_MAX ? TQ_MAGNITUDE_MAX : v < -TQ_MAGNITUDE_MAX ? -TQ_MAGNITUDE_MAX : v;
        const float magnitude = fabsf(x[i]);
        amax[i >> 4] = magnitude > amax[i >> 4] ? magnitude : amax[i >> 4];
    }
    memset(y, 0, bytes);
    if (amax[0] < TQ_MAGNITUDE_MIN && amax[1] < TQ_MAGNITUDE_MIN) {
        return;
    }

    struct choice best[2] = {{0}};
    unsigned exponent = 0, book = 0;
    float best_total = INFINITY;
    for (unsigned c = 0; c < 2; c++) {
        struct choice pair[2];
        int top = 2 * TQ_CODE_MIN; // so that e >= 1
        for (int k = 0; k < 2; k++) {
            pair[k] = search(s, s->codebook[c], x + TQ_SUB_BLOCK * k, amax[k]);
            top = pair[k].code > top ? pair[k].code : top;
        }
        const int e = (top >> 3) - 1;
        for (int k = 0; k < 2; k++) {
            if (pair[k].code < 8 * e) {
                pair[k].price = INFINITY;
                try_code(s, s->codebook[c], x + TQ_SUB_BLOCK * k, 8 * e, &pair[k]);
            }
        }
        const float total = pair[0].price + pair[1].price;
        if (total < best_total) {
            best_total = total;
            memcpy(best, pair, sizeof(best));
            exponent = (unsigned) e;
            book = c;
        }
    }

    unsigned word = exponent << 10 | book << 15;
    for (int k = 0; k < 2; k++) {
        const unsigned code = (unsigned) best[k].code;
        word |= ((code & 7) | ((code >> 3) - exponent) << 3 | (unsigned) best[k].negative << 4) << 5 * k;
        const float inverse = (float) TQ_FINE * (1.0f / tq_scale_of(best[k].code));
        for (int i = TQ_SUB_BLOCK * k; i < TQ_SUB_BLOCK * (k + 1); i++) {
            const int t = (int) rintf(x[i] * inverse);
            const int v = best[k].negative ? -t : t;
            store_index(s->bits, y + 2, i, (unsigned) nearest(s, s->codebook[book], TQ_FINE, v));
        }
    }
    y[0] = (uint8_t) word;
    y[1] = (uint8_t) (word >> 8);
}

static void quantize(enum tq_type type, const float * x, uint8_t * y, size_t bytes, int64_t n) {
    for (int64_t b = 0; b < n / TQ_BLOCK; b++) {
        quantize_block(&tq_specs[type], x + b * TQ_BLOCK, y + (size_t) b * bytes, bytes);
    }
}

// --- decoder ---

static void decode_block(const struct tq_spec * s, const uint8_t * x, float scale[2], int8_t levels[TQ_BLOCK]) {
    tq_decode_scales(x, scale);
    for (int v = 0; v < TQ_BLOCK; v++) {
        levels[v] = s->codebook[x[1] >> 7][load_index(s->bits, x + 2, v)];
    }
}

static void dequantize(enum tq_type type, const uint8_t * x, size_t bytes, float * y, int64_t n) {
    for (int64_t b = 0; b < n / TQ_BLOCK; b++) {
        float scale[2];
        int8_t levels[TQ_BLOCK];
        float values[TQ_BLOCK];
        decode_block(&tq_specs[type], x + (size_t) b * bytes, scale, levels);
        for (int v = 0; v < TQ_BLOCK; v++) {
            values[v] = scale[v >> 4] * (float) levels[v];
        }
        memcpy(y + b * TQ_BLOCK, values, sizeof(values));
    }
}

static float vec_dot(enum tq_type type, const uint8_t * x, size_t bytes, const tq_block_q8_0 * y, int64_t n) {
    float sum = 0.0f;
    for (int64_t b = 0; b < n / TQ_BLOCK; b++, y++) {
        float scale[2];
        int8_t levels[TQ_BLOCK];
        decode_block(&tq_specs[type], x + (size_t) b * bytes, scale, levels);
        int dot[2] = {0, 0};
        for (int v = 0; v < TQ_BLOCK; v++) {
            dot[v >> 4] += levels[v] * y->qs[v];
        }
        sum += tq_half_to_float(y->d) * (scale[0] * (float) dot[0] + scale[1] * (float) dot[1]);
    }
    return sum;
}

// --- the table ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                   \
    static void quantize_##name(const float * x, void * y, int64_t n) {      \
        quantize(TQ_TYPE_##NAME, x, y, bytes, n);                            \
    }                                                                        \
    static void dequantize_##name(const void * x, float * y, int64_t n) {    \
        dequantize(TQ_TYPE_##NAME, x, bytes, y, n);                          \
    }                                                                        \
    static float vec_dot_##name(const void * x, const void * y, int64_t n) { \
        return vec_dot(TQ_TYPE_##NAME, x, bytes, y, n);                      \
    }
#include "../../types.def"
#undef TQ_TYPE

#define TIER scalar
#include "tier.inc"
