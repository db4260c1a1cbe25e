// NEON, as every AArch64 CPU has it.
//
// Quantise: a register holds, as bytes, the magnitudes |t| of the 16 values of a sub-block under one candidate. Two
// table lookups give the two levels that can be nearest (tq_bins.h), for +|t| and for -|t|; the sign of t says which
// belongs to the positive scale and which to the negative one. Prices of one candidate stand in float lanes
// [codebook][sign].
//
// Dequantise and dot: neon.h gives 16 levels as bytes, all under one scale.
#include <arm_neon.h>
#include <math.h>

#include "../neon.h"
#include "spec.h"

// --- quantise ---

struct tables {
    uint8x16_t bins[2][4]; // plus TQ_BIN_BIAS
    int16_t cut[2][15];    // FORMAT.md 4.4
};

static inline void load_tables(struct tables * t, const struct tq_spec * s) {
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 4; i++) {
            const int8x16_t bins = vld1q_s8(s->bins[c][i]);
            t->bins[c][i] = vaddq_u8(vreinterpretq_u8_s8(bins), vdupq_n_u8(TQ_BIN_BIAS));
        }
        for (int j = 0; j + 1 < 1 << s->bits; j++) {
            t->cut[c][j] = (int16_t) (TQ_FINE / 2 * (s->codebook[c][j] + s->codebook[c][j + 1]));
        }
    }
}

// rint(x * inverse) of a sub-block.
static inline int16x8x2_t to_integers(const float32x4_t x[4], float inverse) {
    int32x4_t t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = vcvtnq_s32_f32(vmulq_n_f32(x[i], inverse));
    }
    return (int16x8x2_t) {{vmovn_high_s32(vmovn_s32(t[0]), t[1]), vmovn_high_s32(vmovn_s32(t[2]), t[3])}};
}

static inline uint8x16_t nearest_distance(uint8x16_t a, uint8x16_t bin, const uint8x16_t pair[2]) {
    return vminq_u8(vabdq_u8(a, vqtbl1q_u8(pair[0], bin)), vabdq_u8(a, vqtbl1q_u8(pair[1], bin)));
}

// No distance exceeds 181, so that two squares fit 16 bits.
static inline uint32x4_t sum_squares(uint8x16_t d) {
    return vpaddlq_u16(vaddq_u16(vmull_u8(vget_low_u8(d), vget_low_u8(d)), vmull_high_u8(d, d)));
}

// FORMAT.md 4.2 for both codebooks and signs.
static inline float32x4_t prices(const float32x4_t x[4], int code, const struct tables * tables) {
    const float scale = tq_scale_of(code);
    const int16x8x2_t t = to_integers(x, 1.0f / scale);
    const uint16x8_t below[2] = {vcltzq_s16(t.val[0]), vcltzq_s16(t.val[1])};
    const uint8x16_t negative = vmovn_high_u16(vmovn_u16(below[0]), below[1]);
    const uint16x8_t magnitude[2] = {vreinterpretq_u16_s16(vabsq_s16(t.val[0])),
                                     vreinterpretq_u16_s16(vabsq_s16(t.val[1]))};
    uint8x16_t a = vmovn_high_u16(vmovn_u16(magnitude[0]), magnitude[1]);
    const uint8x16_t bin = vshrq_n_u8(vminq_u8(a, vdupq_n_u8(127)), 3);
    a = vaddq_u8(a, vdupq_n_u8(TQ_BIN_BIAS));

    uint32x4_t sum[2];
    for (int c = 0; c < 2; c++) {
        const uint8x16_t plus = nearest_distance(a, bin, tables->bins[c]);
        const uint8x16_t minus = nearest_distance(a, bin, tables->bins[c] + 2);
        sum[c] = vpaddq_u32(sum_squares(vbslq_u8(negative, minus, plus)), sum_squares(vbslq_u8(negative, plus, minus)));
    }
    return vmulq_n_f32(vcvtq_f32_u32(vpaddq_u32(sum[0], sum[1])), scale * scale);
}

struct choice {
    int code;
    bool negative;
    float price;
};

// Of the two signs the negative one wins if it is cheaper, or as cheap at an earlier code.
static inline void merge_signs(struct choice choice[2], float32x4_t price, int32x4_t code) {
    float p[4];
    int32_t u[4];
    vst1q_f32(p, price);
    vst1q_s32(u, code);
    for (int c = 0; c < 2; c++) {
        const int i = 2 * c;
        const bool negative = p[i + 1] < p[i] || (p[i + 1] == p[i] && u[i + 1] < u[i]);
        choice[c] = (struct choice) {u[i + negative], negative, p[i + negative]};
    }
}

// FORMAT.md 4.2 for a sub-block: the best of each codebook.
static inline void search(struct choice choice[2], const float32x4_t x[4], float amax, const struct tables * tables,
                          const struct tq_spec * s) {
    const float anchor = amax * s->start;
    int32_t bits;
    memcpy(&bits, &anchor, sizeof(bits));
    float32x4_t best = vdupq_n_f32(INFINITY);
    int32x4_t best_code = vdupq_n_s32(0);
    for (int k = 0; k < s->count; k++) {
        int code = (bits >> 20) - TQ_CODE_BIAS + k;
        code = code < TQ_CODE_MIN ? TQ_CODE_MIN : code > TQ_CODE_MAX ? TQ_CODE_MAX : code;
        const float32x4_t price = prices(x, code, tables);
        const uint32x4_t better = vcltq_f32(price, best);
        best = vminq_f32(price, best);
        best_code = vbslq_s32(better, vdupq_n_s32(code), best_code);
    }
    merge_signs(choice, best, best_code);
}

// FORMAT.md 4.4 for a sub-block.
static inline uint8x16_t assign(const float32x4_t x[4], struct choice choice, const int16_t * cut, int levels) {
    const float inverse = (float) TQ_FINE * (1.0f / tq_scale_of(choice.code));
    const int16x8x2_t v = to_integers(x, choice.negative ? -inverse : inverse);
    uint16x8_t index[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};
    for (int j = 0; j + 1 < levels; j++) {
        index[0] = vsubq_u16(index[0], vcgeq_s16(v.val[0], vdupq_n_s16(cut[j])));
        index[1] = vsubq_u16(index[1], vcgeq_s16(v.val[1], vdupq_n_s16(cut[j])));
    }
    return vmovn_high_u16(vmovn_u16(index[0]), index[1]);
}

// FORMAT.md 4.1 to 4.4: the scale word and the indices of both sub-blocks. False for a block of zeros.
TQ_INLINE bool encode(const float * input, const struct tables * tables, const struct tq_spec * s, uint8_t word[2],
                      uint8x16x2_t * index) {
    float32x4_t x[2][4];
    float amax[2];
    for (int k = 0; k < 2; k++) {
        float32x4_t largest = vdupq_n_f32(0.0f);
        for (int i = 0; i < 4; i++) {
            const float32x4_t v = vld1q_f32(input + TQ_SUB_BLOCK * k + 4 * i);
            const float32x4_t number = vbslq_f32(vceqq_f32(v, v), v, vdupq_n_f32(0.0f));
            x[k][i] = vmaxq_f32(vminq_f32(number, vdupq_n_f32(TQ_MAGNITUDE_MAX)), vdupq_n_f32(-TQ_MAGNITUDE_MAX));
            largest = vmaxq_f32(largest, vabsq_f32(x[k][i]));
        }
        amax[k] = vmaxvq_f32(largest);
    }
    if (amax[0] < TQ_MAGNITUDE_MIN && amax[1] < TQ_MAGNITUDE_MIN) {
        return false;
    }

    struct choice best[2][2]; // [sub-block][codebook]
    search(best[0], x[0], amax[0], tables, s);
    search(best[1], x[1], amax[1], tables, s);
    int e[2];
    for (int c = 0; c < 2; c++) {
        const int octave = (best[0][c].code > best[1][c].code ? best[0][c].code : best[1][c].code) >> 3;
        e[c] = octave > 2 ? octave - 1 : 1;
        for (int k = 0; k < 2; k++) {
            if (best[k][c].code < 8 * e[c]) {
                struct choice moved[2];
                merge_signs(moved, prices(x[k], 8 * e[c], tables), vdupq_n_s32(8 * e[c]));
                best[k][c] = moved[c];
            }
        }
    }
    const int c = best[0][1].price + best[1][1].price < best[0][0].price + best[1][0].price;

    for (int k = 0; k < 2; k++) {
        index->val[k] = assign(x[k], best[k][c], tables->cut[c], 1 << s->bits);
    }
    const int code[2] = {best[0][c].code, best[1][c].code};
    const unsigned negative[2] = {best[0][c].negative, best[1][c].negative};
    tq_encode_scales(word, e[c], c, code, negative);
    return true;
}

static inline void store_low_bits(uint8_t * low, uint8x16x2_t index) {
    uint8x8_t sum = vdup_n_u8(0);
    for (int k = 0; k < 2; k++) {
        const uint8x16_t part = vshlq_u8(vandq_u8(index.val[k], vdupq_n_u8(3)), tq_shifts(4 * k, 2, 8));
        sum = vorr_u8(sum, vorr_u8(vget_low_u8(part), vget_high_u8(part)));
    }
    vst1_u8(low, sum);
}

static inline void tq_store_tq4_0(tq_block_tq4_0 * y, uint8x16x2_t index) {
    vst1q_u8(y->low, vorrq_u8(index.val[0], vshlq_n_u8(index.val[1], 4)));
}

static inline void tq_store_tq3_0(tq_block_tq3_0 * y, uint8x16x2_t index) {
    const uint8x16_t part0 = vshlq_u8(vshrq_n_u8(index.val[0], 2), tq_shifts(0, 1, 4));
    const uint8x16_t part1 = vshlq_u8(vshrq_n_u8(index.val[1], 2), tq_shifts(4, 1, 4));
    const uint8x16_t both = vorrq_u8(part0, part1);
    const uint32x2_t half = vreinterpret_u32_u8(vorr_u8(vget_low_u8(both), vget_high_u8(both)));
    const uint32_t high = vget_lane_u32(half, 0) | vget_lane_u32(half, 1);
    memcpy(y->high, &high, sizeof(high));
    store_low_bits(y->low, index);
}

static inline void tq_store_tq2_1(tq_block_tq2_1 * y, uint8x16x2_t index) {
    store_low_bits(y->low, index);
}

#define INDICES uint8x16x2_t
#include "quantize.inc"

// --- dequantise ---

static inline void store16(float * y, int8x16_t levels, float scale) {
    const int16x8_t half[2] = {vmovl_s8(vget_low_s8(levels)), vmovl_high_s8(levels)};
    for (int i = 0; i < 2; i++) {
        vst1q_f32(y + 8 * i, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[i]))), scale));
        vst1q_f32(y + 8 * i + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(half[i])), scale));
    }
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                       \
    static void dequantize_##name(const void * x, float * y, int64_t n) {        \
        const tq_block_##name * block = x;                                       \
        for (int64_t i = 0; i < n; i += TQ_BLOCK, block++) {                     \
            float scale[2];                                                      \
            tq_decode_scales(block->scale, scale);                               \
            store16(y + i, tq_levels_##name(block, 0), scale[0]);                \
            store16(y + i + TQ_SUB_BLOCK, tq_levels_##name(block, 1), scale[1]); \
        }                                                                        \
    }
#include "../../types.def"
#undef TQ_TYPE

// --- dot product with q8_0 ---

// Exact: no level is -128, so two products stay below 2^15.
static inline int32x4_t dot_quads(int8x16_t levels, int8x16_t q) {
    const int16x8_t low = vmull_s8(vget_low_s8(levels), vget_low_s8(q));
    return vpaddlq_s16(vaddq_s16(low, vmull_high_s8(levels, q)));
}

#include "neon_dot.h"

#define TIER neon
#include "tier.inc"
