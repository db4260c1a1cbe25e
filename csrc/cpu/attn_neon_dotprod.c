// attn.h for NEON with the dot products of ARMv8.2: bytes for TQ and q8_0, attn_neon.h's words for f16.
//
// A vector of a tile is four groups of 32 bits, and four vectors hold four rows of a sub-block. Both operands of a dot
// product have the same sign here, which is where bytes differ from attn.h:
//
//   keys     [sub-block][row / 4][value / 4][row % 4][4]     signed; what lies behind a query is not used
//   values   [sub-block][row / 4][column][4]                 128 more, unsigned
//   weights  [sub-block][row]                                unsigned
//
// What 128 adds to a sum of values, dot products of the weights and 128 count along with it: 4 next to 64.
//
// The packed bytes of four rows are zipped first, words for keys and bytes for values; then indices and levels fall out
// in the order of the tile, by shifts that are the same for all of a vector.
//
// Instructions for a query head and a cache row, 32 / 8 heads of 128, GCC 12, counted in qemu-aarch64. There was no
// machine to time them on.
//
//                      tq4_0, one token     tq4_0, 16 tokens
//                      words     bytes      words     bytes
//   keys               58        20         3.6       1.3
//   scores             81        20         81        20
//   softmax            11        11         11        11
//   ratios, weights    16        17         13        10
//   values             46        23         2.9       1.4
//   sums of values     86        16         86        16
//   all, and attn.c    302       110        199       61
#include "attn_neon.h"

#include "../tq_tables.h"

#define UNITS 2                            // in a block
#define QUADS (TQ_BLOCK / 4)               // of values in a block: vectors of four rows
#define GROUP (4 * TQ_SUB_BLOCK)           // bytes of four rows of a sub-block
#define PART (TQ_ATTN_TILE * TQ_SUB_BLOCK) // and of a tile's
#define VALUE_ZERO 128                     // a value of 0

// An integer n added to the bits of such a float gives the float that is n more.
#define SIGNED_ZERO 0x1.8p23f // -2^22 <= n < 2^22
#define UNSIGNED_ZERO 0x1p23f // 0 <= n < 2^23

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

INLINE void load_tq(int bits, bool values, size_t bytes, const signed char * codebooks, struct tq_attn_rows rows,
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

// --- products ---

INLINE void score_rows_of_bytes(int rows, const int8_t * q, int blocks, const int8_t * keys, const float * unit,
                                float * score) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        float32x4_t sum[TQ_ATTN_ROWS][4];
        for (int r = 0; r < rows; r++) {
            for (int g = 0; g < 4; g++) {
                sum[r][g] = vdupq_n_f32(0.0f);
            }
        }
        for (int u = 0; u < UNITS * blocks; u++) {
            int8x16_t y[TQ_ATTN_ROWS];
            for (int r = 0; r < rows; r++) {
                y[r] = vld1q_s8(q + r * TQ_ATTN_QUERY_BYTES(blocks) + TQ_SUB_BLOCK * u);
            }
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                const int8_t * at = keys + u * PART + (t + 4 * g) * TQ_SUB_BLOCK;
                const int8x16_t x[4] = {vld1q_s8(at), vld1q_s8(at + 16), vld1q_s8(at + 32), vld1q_s8(at + 48)};
                const float32x4_t scale = vld1q_f32(unit + u * TQ_ATTN_TILE + t + 4 * g);
                for (int r = 0; r < rows; r++) {
                    int32x4_t dot = vreinterpretq_s32_f32(vdupq_n_f32(SIGNED_ZERO));
                    dot = vdotq_laneq_s32(dot, x[0], y[r], 0);
                    dot = vdotq_laneq_s32(dot, x[1], y[r], 1);
                    dot = vdotq_laneq_s32(dot, x[2], y[r], 2);
                    dot = vdotq_laneq_s32(dot, x[3], y[r], 3);
                    const float32x4_t number = vsubq_f32(vreinterpretq_f32_s32(dot), vdupq_n_f32(SIGNED_ZERO));
                    sum[r][g] = vfmaq_f32(sum[r][g], number, scale);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            for (int g = 0; g < 4; g++) {
                vst1q_f32(score + r * TQ_ATTN_TILE + t + 4 * g, sum[r][g]);
            }
        }
    }
}

static void score_bytes(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows_of_bytes, q, blocks, keys, unit, score);
}

// Four rows of the tile, whose weights are in a lane of w.
INLINE void add_four(int rows, const uint8_t * values, const uint8x16_t w[TQ_ATTN_ROWS], int lane,
                     uint32x4_t sum[TQ_ATTN_ROWS][4]) {
    for (int i = 0; i < 4; i++) {
        const uint8x16_t x = vld1q_u8(values + GROUP * lane + 16 * i);
        for (int r = 0; r < rows; r++) {
            sum[r][i] = lane == 0   ? vdotq_laneq_u32(sum[r][i], x, w[r], 0)
                        : lane == 1 ? vdotq_laneq_u32(sum[r][i], x, w[r], 1)
                        : lane == 2 ? vdotq_laneq_u32(sum[r][i], x, w[r], 2)
                                    : vdotq_laneq_u32(sum[r][i], x, w[r], 3);
        }
    }
}

INLINE void add_rows_of_bytes(int rows, const uint8_t * weight, int blocks, const uint8_t * values, const float * unit,
                              const float * keep, const float * add, float * acc) {
    const uint32x4_t zero = vreinterpretq_u32_f32(vdupq_n_f32(UNSIGNED_ZERO));
    for (int u = 0; u < UNITS * blocks; u++) {
        uint32x4_t sum[TQ_ATTN_ROWS][4], offset[TQ_ATTN_ROWS];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = zero;
            offset[r] = vsetq_lane_u32(vgetq_lane_u32(zero, 0), vdupq_n_u32(0), 0);
        }
        for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
            const uint8_t * at = values + u * PART + t * TQ_SUB_BLOCK;
            uint8x16_t w[TQ_ATTN_ROWS];
            for (int r = 0; r < rows; r++) {
                w[r] = vld1q_u8(weight + r * TQ_ATTN_WEIGHT_BYTES(blocks) + u * TQ_ATTN_TILE + t);
                offset[r] = vdotq_u32(offset[r], w[r], vdupq_n_u8(VALUE_ZERO));
            }
            add_four(rows, at, w, 0, sum);
            add_four(rows, at, w, 1, sum);
            add_four(rows, at, w, 2, sum);
            add_four(rows, at, w, 3, sum);
        }
        for (int r = 0; r < rows; r++) {
            const uint32x4_t half = vpaddq_u32(offset[r], offset[r]);
            const float32x4_t from = vreinterpretq_f32_u32(vpaddq_u32(half, half));
            const float old = keep[r], more = add[r] * unit[u];
            float * at = acc + r * blocks * TQ_BLOCK + u * TQ_SUB_BLOCK;
            for (int i = 0; i < 4; i++) {
                const float32x4_t number = vsubq_f32(vreinterpretq_f32_u32(sum[r][i]), from);
                const float32x4_t kept = vmulq_n_f32(vld1q_f32(at + 4 * i), old);
                vst1q_f32(at + 4 * i, vfmaq_n_f32(kept, number, more));
            }
        }
    }
}

static void add_bytes(const void * weight, int rows, int blocks, const void * values, const float * unit,
                      const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, add_rows_of_bytes, weight, blocks, values, unit, keep, add, acc);
}

// The low bytes.
INLINE uint8x16_t narrow(const uint32x4_t x[4]) {
    const uint16x8_t a = vuzp1q_u16(vreinterpretq_u16_u32(x[0]), vreinterpretq_u16_u32(x[1]));
    const uint16x8_t b = vuzp1q_u16(vreinterpretq_u16_u32(x[2]), vreinterpretq_u16_u32(x[3]));
    return vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b));
}

static float weigh_bytes(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    (void) sum;
    const float * peak = ratio + UNITS * blocks * TQ_ATTN_TILE;
    float32x4_t x[VECTORS], top = vdupq_n_f32(0.0f);
    for (int g = 0; g < VECTORS; g++) {
        x[g] = vld1q_f32(p + 4 * g);
        top = vmaxq_f32(top, vmulq_f32(x[g], vld1q_f32(peak + 4 * g)));
    }
    const float most = vmaxvq_f32(top), steps = most > 0.0f ? TQ_ATTN_WEIGHT_BYTE / most : 1.0f;
    for (int g = 0; g < VECTORS; g++) {
        x[g] = vmulq_n_f32(x[g], steps);
    }
    for (int u = 0; u < UNITS * blocks; u++) {
#pragma GCC unroll 4
        for (int h = 0; h < 4; h++) {
            uint32x4_t w[4];
            for (int i = 0; i < 4; i++) {
                const float32x4_t y = vld1q_f32(ratio + u * TQ_ATTN_TILE + 16 * h + 4 * i);
                w[i] = vreinterpretq_u32_f32(vfmaq_f32(vdupq_n_f32(SIGNED_ZERO), x[4 * h + i], y));
            }
            vst1q_u8((uint8_t *) weight + u * TQ_ATTN_TILE + 16 * h, narrow(w));
        }
    }
    return steps;
}

// --- the table ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                            \
    static void load_keys_##name(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {   \
        load_tq(bits, false, bytes, tq_codebook_##name[0], rows, blocks, tile, unit);                 \
    }                                                                                                 \
    static void load_values_##name(struct tq_attn_rows rows, int blocks, void * tile, float * unit) { \
        load_tq(bits, true, bytes, tq_codebook_##name[0], rows, blocks, tile, unit);                  \
    }
#include "../types.def"
#undef TQ_TYPE

static void load_keys_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(false, rows, blocks, tile, unit);
}

static void load_values_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(true, rows, blocks, tile, unit);
}

const struct tq_attn_kernels tq_attn_neon_dotprod = {
    .base = &tq_attn_neon,
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) [TQ_TYPE_##NAME] = {TQ_ATTN_BYTES, load_keys_##name},
    .keys =
        {
#include "../types.def"
            [TQ_ATTN_Q8_0] = {TQ_ATTN_BYTES, load_keys_q8_0},
        },
#undef TQ_TYPE
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) [TQ_TYPE_##NAME] = {TQ_ATTN_BYTES, load_values_##name},
    .values =
        {
#include "../types.def"
            [TQ_ATTN_Q8_0] = {TQ_ATTN_BYTES, load_values_q8_0},
        },
#undef TQ_TYPE
    .load_mask = load_mask,
    .ratios = tq_attn_ratios,
    .softmax = softmax,
    .products =
        {
            [TQ_ATTN_WORDS] = {TQ_BLOCK, tq_attn_quantise_words, scores, weights, accumulate},
            [TQ_ATTN_BYTES] = {TQ_SUB_BLOCK, tq_attn_quantise_bytes, score_bytes, weigh_bytes, add_bytes},
        },
};
