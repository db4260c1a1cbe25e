// 64 rows of TQ or q8_0 blocks to the bytes of neon_dotprod.c.
//
// The packed bytes of four rows are zipped first, words for keys and bytes for values; then indices and levels fall out
// in the order of the tile, by shifts that are the same for all of a vector.
#pragma once

#include "neon.h"

#include "../../tq_tables.h"

#define UNITS 2                            // in a block
#define QUADS (TQ_BLOCK / 4)               // of values in a block: vectors of four rows
#define GROUP (4 * TQ_SUB_BLOCK)           // bytes of four rows of a sub-block
#define PART (TQ_ATTN_TILE * TQ_SUB_BLOCK) // and of a tile's
#define VALUE_ZERO 128                     // a value of 0

// --- scale words ---

// Those of a block in eight rows, decoded.
struct scales {
    uint16x8_t upper[UNITS];  // halves of the scales as floats; the lower ones are zero
    uint16x8_t prefix[UNITS]; // of an index
    uint16x8_t factor[UNITS]; // of a level, in the lower byte
};

INLINE uint16x8_t load_words(const char * const row[8]) {
    uint16x8_t x = vdupq_n_u16(0);
#define LANE(i) x = vld1q_lane_u16((const void *) row[i], x, i)
    LANE(0);
    LANE(1);
    LANE(2);
    LANE(3);
    LANE(4);
    LANE(5);
    LANE(6);
    LANE(7);
#undef LANE
    return x;
}

// FORMAT.md, section 2. The sign of a key is in its scale; that of a value in the prefix, above c, or in the factor
// where prefixes would make tables of more than two registers.
INLINE struct scales decode(int bits, bool values, uint16x8_t words) {
    struct scales s;
    const uint16x8_t some = vtstq_u16(words, vdupq_n_u16(31 << 10));
    const uint16x8_t e = vshrq_n_u16(vandq_u16(words, vdupq_n_u16(31 << 10)), 3);
    const uint16x8_t base = vaddq_u16(e, vdupq_n_u16(TQ_CODE_BIAS << 4));
    const uint16x8_t c = vshlq_u16(vshrq_n_u16(words, 15), vdupq_n_s16((int16_t) bits));
    for (int k = 0; k < UNITS; k++) {
        const uint16x8_t field = k == 0 ? words : vshrq_n_u16(words, 5), sign = vdupq_n_u16(16);
        const uint16x8_t code = vandq_u16(vshlq_n_u16(field, 4), vdupq_n_u16(15 << 4));
        s.upper[k] = vandq_u16(vaddq_u16(base, code), some);
        s.prefix[k] = c;
        s.factor[k] = vorrq_u16(vtstq_u16(field, sign), vdupq_n_u16(1));
        if (!values) {
            s.upper[k] = vbslq_u16(vdupq_n_u16(1 << 15), vshlq_n_u16(field, 11), s.upper[k]);
        } else if (bits < 4) {
            s.prefix[k] = vorrq_u16(c, vshlq_u16(vandq_u16(field, sign), vdupq_n_s16((int16_t) (bits - 3))));
        }
    }
    return s;
}

INLINE void store_units(const struct scales * s, float * unit) {
    const uint16x8_t zero = vdupq_n_u16(0);
    for (int k = 0; k < UNITS; k++) {
        vst1q_f32(unit + k * TQ_ATTN_TILE, vreinterpretq_f32_u16(vzip1q_u16(zero, s->upper[k])));
        vst1q_f32(unit + k * TQ_ATTN_TILE + 4, vreinterpretq_f32_u16(vzip2q_u16(zero, s->upper[k])));
    }
}

// --- four rows ---

// What is said of one of the rows 4 * h to 4 * h + 3, for all bytes that are of it.
INLINE uint8x16_t spread(bool values, uint16x8_t x, int h) {
    static const uint8_t of_keys[16] = {0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6};
    static const uint8_t of_values[16] = {0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6};
    const uint8x16_t index = vaddq_u8(vld1q_u8(values ? of_values : of_keys), vdupq_n_u8((uint8_t) (8 * h)));
    return vqtbl1q_u8(vreinterpretq_u8_u16(x), index);
}

INLINE uint8x16_t zip1(bool values, uint8x16_t a, uint8x16_t b) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    return values ? vzip1q_u8(a, b) : vreinterpretq_u8_u32(vzip1q_u32(x, y));
}

INLINE uint8x16_t zip2(bool values, uint8x16_t a, uint8x16_t b) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    return values ? vzip2q_u8(a, b) : vreinterpretq_u8_u32(vzip2q_u32(x, y));
}

// The rows' words (keys) or bytes (values) in turn.
INLINE void mix(bool values, const uint8x16_t x[4], uint8x16_t out[4]) {
    const uint8x16_t a = zip1(values, x[0], x[2]), b = zip1(values, x[1], x[3]);
    const uint8x16_t c = zip2(values, x[0], x[2]), d = zip2(values, x[1], x[3]);
    out[0] = zip1(values, a, b);
    out[1] = zip2(values, a, b);
    out[2] = zip1(values, c, d);
    out[3] = zip2(values, c, d);
}

// Of n bytes from `offset` on, 16 or 8.
INLINE void load_mixed(bool values, const char * const row[4], int offset, int n, uint8x16_t out[4]) {
    uint8x16_t x[4];
    for (int i = 0; i < 4; i++) {
        const uint8_t * at = (const uint8_t *) row[i] + offset;
        x[i] = n == 16 ? vld1q_u8(at) : vcombine_u8(vld1_u8(at), vdup_n_u8(0));
    }
    mix(values, x, out);
}

// Of four bytes.
INLINE uint8x16_t load_mixed_four(bool values, const char * const row[4], int offset) {
    static const uint8_t columns[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    uint32x4_t x = vld1q_dup_u32((const void *) (row[0] + offset));
    x = vld1q_lane_u32((const void *) (row[1] + offset), x, 1);
    x = vld1q_lane_u32((const void *) (row[2] + offset), x, 2);
    x = vld1q_lane_u32((const void *) (row[3] + offset), x, 3);
    const uint8x16_t y = vreinterpretq_u8_u32(x);
    return values ? vqtbl1q_u8(y, vld1q_u8(columns)) : y;
}

// An instruction's count is a literal.
INLINE uint8x16_t shift(uint8x16_t x, int right) {
    switch (right) {
        case -2:
            return vshlq_n_u8(x, 2);
        case -1:
            return vshlq_n_u8(x, 1);
        case 0:
            return x;
        case 1:
            return vshrq_n_u8(x, 1);
        case 2:
            return vshrq_n_u8(x, 2);
        case 3:
            return vshrq_n_u8(x, 3);
        case 4:
            return vshrq_n_u8(x, 4);
        case 5:
            return vshrq_n_u8(x, 5);
        default:
            return vshrq_n_u8(x, 6);
    }
}

// Both codebooks, after each other; then, for less than 4 bits, both with the other sign. Were this inlined, GCC 12
// would load its constants anew for every look-up.
static __attribute__((noinline)) uint8x16x2_t load_levels(int bits, bool values, const signed char * codebooks) {
    const uint8x16_t zero = vdupq_n_u8(values ? VALUE_ZERO : 0);
    const int8x8_t eight = vld1_s8(codebooks);
    const int8x16_t first = bits == 2 ? vcombine_s8(eight, vneg_s8(eight)) : vld1q_s8(codebooks);
    const int8x16_t second = bits == 4 ? vld1q_s8(codebooks + 16) : vnegq_s8(first);
    return (uint8x16x2_t) {{veorq_u8(vreinterpretq_u8_s8(first), zero), veorq_u8(vreinterpretq_u8_s8(second), zero)}};
}

// A block of rows 4 * h to 4 * h + 3 of those that s is of.
INLINE void unpack(int bits, bool values, const char * const row[4], uint8x16x2_t levels, const struct scales * s,
                   int h, uint8x16_t out[QUADS]) {
    const int low_bytes = bits == 4 ? 16 : 8;
    const bool in_two = bits == 4 || (bits == 3 && values);
    uint8x16_t low[4], high;
    load_mixed(values, row, 2, low_bytes, low);
    if (bits == 3) {
        high = load_mixed_four(values, row, 2 + low_bytes);
    }
#pragma GCC unroll 8
    for (int f = 0; f < QUADS; f++) { // values 4 * f to 4 * f + 3
        const int k = f / 4;
        const uint8x16_t prefix = spread(values, s->prefix[k], h);
        uint8x16_t index = bits == 4 ? shift(low[f % 4], 4 * k) : shift(low[f % 2], 2 * (f / 2));
        if (bits == 3) {
            index = vbslq_u8(vdupq_n_u8(3), index, shift(high, f - 2));
        }
        index = vbslq_u8(vdupq_n_u8((uint8_t) ((1 << bits) - 1)), index, prefix);
        out[f] = in_two ? vqtbl2q_u8(levels, index) : vqtbl1q_u8(levels.val[0], index);
        if (bits == 4 && values) {
            out[f] = vmulq_u8(out[f], spread(values, s->factor[k], h));
        }
    }
}

// --- tiles ---

// Rows t to t + 7.
INLINE void find_rows(struct tq_attn_rows rows, int t, size_t bytes, const char * row[8]) {
    tq_attn_prefetch_rows(tq_attn_skip(rows, t), 8, bytes);
    for (int i = 0; i < 8; i++) {
        row[i] = tq_attn_skip(rows, t + i).first;
    }
}

// A block of four rows from t on.
INLINE void store_block(const uint8x16_t x[QUADS], int b, int t, uint8_t * tile) {
    for (int f = 0; f < QUADS; f++) {
        vst1q_u8(tile + (UNITS * b + f / 4) * PART + t / 4 * GROUP + 16 * (f % 4), x[f]);
    }
}

INLINE void load_tq(bool values, int bits, size_t bytes, const signed char * codebooks, struct tq_attn_rows rows,
                    int blocks, void * tile, float * unit) {
    const uint8x16x2_t levels = load_levels(bits, values, codebooks);
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        const char * row[8];
        find_rows(rows, t, (size_t) blocks * bytes, row);
        for (int b = 0; b < blocks; b++) {
            const struct scales s = decode(bits, values, load_words(row));
            store_units(&s, unit + UNITS * b * TQ_ATTN_TILE + t);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                uint8x16_t x[QUADS];
                unpack(bits, values, row + 4 * h, levels, &s, h, x);
                store_block(x, b, t + 4 * h, tile);
            }
            for (int i = 0; i < 8; i++) {
                row[i] += bytes;
            }
        }
    }
}

INLINE void load_q8_0(bool values, struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        const char * row[8];
        find_rows(rows, t, (size_t) blocks * sizeof(tq_block_q8_0), row);
        for (int b = 0; b < blocks; b++) {
            const float16x8_t d = vreinterpretq_f16_u16(load_words(row));
            for (int k = 0; k < UNITS; k++) {
                float * at = unit + (UNITS * b + k) * TQ_ATTN_TILE + t;
                vst1q_f32(at, vcvt_f32_f16(vget_low_f16(d)));
                vst1q_f32(at + 4, vcvt_high_f32_f16(d));
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                uint8x16_t x[QUADS];
                for (int k = 0; k < UNITS; k++) {
                    load_mixed(values, row + 4 * h, 2 + TQ_SUB_BLOCK * k, 16, x + 4 * k);
                }
                for (int f = 0; f < QUADS; f++) {
                    x[f] = values ? veorq_u8(x[f], vdupq_n_u8(VALUE_ZERO)) : x[f];
                }
                store_block(x, b, t + 4 * h, tile);
            }
            for (int i = 0; i < 8; i++) {
                row[i] += sizeof(tq_block_q8_0);
            }
        }
    }
}

// --- the loaders ---

#define load_tq_keys(...) load_tq(false, __VA_ARGS__)
#define load_tq_values(...) load_tq(true, __VA_ARGS__)

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    TQ_ATTN_LOADERS(name, load_tq_keys, load_tq_values, bits, bytes, tq_codebook_##name[0])
#include "../../types.def"
#undef TQ_TYPE

static void load_keys_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(false, rows, blocks, tile, unit);
}

static void load_values_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(true, rows, blocks, tile, unit);
}
