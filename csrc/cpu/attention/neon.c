// attention.h for NEON: a load that takes the two int16 of eight lanes apart, then smlal. A block is unpacked row by
// row to int16, whatever its type; then four rows are transposed (keys), or two interleaved (values).
#include "neon.h"
#include "../half.h"
#include "../neon.h"

// --- unpacking: 32 values to int16, in order; returns the unit ---

INLINE float unpack_tq(const int8x16_t levels[2], const unsigned char word[2], int16x8_t out[4]) {
    const struct tq_attn_scale s = tq_attn_scale(word);
    for (int k = 0; k < 2; k++) {
        out[2 * k] = vmulq_n_s16(vmovl_s8(vget_low_s8(levels[k])), s.factor[k]);
        out[2 * k + 1] = vmulq_n_s16(vmovl_high_s8(levels[k]), s.factor[k]);
    }
    return s.unit;
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                            \
    INLINE float unpack_##name(const char * block, int16x8_t out[4]) {                \
        const tq_block_##name * x = (const tq_block_##name *) block;                  \
        const int8x16_t levels[2] = {tq_levels_##name(x, 0), tq_levels_##name(x, 1)}; \
        return unpack_tq(levels, x->scale, out);                                      \
    }
#include "../../types.def"
#undef TQ_TYPE

INLINE float unpack_q8_0(const char * block, int16x8_t out[4]) {
    for (int i = 0; i < 4; i++) {
        out[i] = vmovl_s8(vld1_s8((const int8_t *) block + 2 + 8 * i));
    }
    return tq_half_to_float((const unsigned char *) block);
}

INLINE float unpack_f16(const char * block, int16x8_t out[4]) {
    const float32x4_t limit = vdupq_n_f32(65504.0f);
    float32x4_t x[8], top = vdupq_n_f32(0.0f);
    for (int i = 0; i < 8; i++) {
        x[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *) block + 8 * i)));
        x[i] = vminnmq_f32(vmaxnmq_f32(x[i], vnegq_f32(limit)), limit); // NaN goes too
        top = vmaxq_f32(top, vabsq_f32(x[i]));
    }
    const float most = vmaxvq_f32(top);
    const float inverse = most > 0.0f ? TQ_ATTN_NUMBER_MAX / most : 0.0f;
    for (int i = 0; i < 4; i++) {
        out[i] = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(x[2 * i], inverse))),
                              vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(x[2 * i + 1], inverse))));
    }
    return most / TQ_ATTN_NUMBER_MAX;
}

// --- tiles ---

INLINE void store_transposed(const int32x4_t x[4], int16_t * at) {
    const int32x4x2_t a = vtrnq_s32(x[0], x[1]), b = vtrnq_s32(x[2], x[3]);
    const int32x4_t rows[4] = {
        vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0])),
        vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1])),
        vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0])),
        vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1])),
    };
    for (int p = 0; p < 4; p++) {
        vst1q_s16(at + 2 * TQ_ATTN_TILE * p, vreinterpretq_s16_s32(rows[p]));
    }
}

typedef float (*unpack_fn)(const char * block, int16x8_t out[4]);

INLINE void load_keys(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                      float * unit) {
    static const uint8_t twos[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    const uint8x16_t order = vld1q_u8(twos);
    for (int t = 0; t < TQ_ATTN_TILE; t += 4) {
        const char * row[4];
        tq_attn_prefetch_rows(tq_attn_skip(rows, t), 4, (size_t) blocks * bytes);
        for (int i = 0; i < 4; i++) {
            row[i] = tq_attn_skip(rows, t + i).first;
        }
        for (int b = 0; b < blocks; b++) {
            int32x4_t x[4][4];
            for (int i = 0; i < 4; i++) {
                int16x8_t y[4];
                unit[b * TQ_ATTN_TILE + t + i] = unpack(row[i] + bytes * (size_t) b, y);
                for (int j = 0; j < 4; j++) {
                    x[j][i] = vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s16(y[j]), order));
                }
            }
            for (int j = 0; j < 4; j++) {
                store_transposed(x[j], tile + 2 * ((b * TWOS + 4 * j) * TQ_ATTN_TILE + t));
            }
        }
    }
}

INLINE void load_values(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                        float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 2) {
        tq_attn_prefetch_rows(tq_attn_skip(rows, t), 2, (size_t) blocks * bytes);
        const char * even = tq_attn_skip(rows, t).first;
        const char * odd = even + rows.stride;
        for (int b = 0; b < blocks; b++) {
            int16x8_t x[4], y[4];
            unit[b * TQ_ATTN_TILE + t] = unpack(even + bytes * (size_t) b, x);
            unit[b * TQ_ATTN_TILE + t + 1] = unpack(odd + bytes * (size_t) b, y);
            for (int j = 0; j < 4; j++) {
                const int16x8x2_t both = {{x[j], y[j]}};
                vst2q_s16(tile + 2 * ((b * TQ_ATTN_TILE + t) / 2 * TQ_BLOCK + 8 * j), both);
            }
        }
    }
}

// --- the table ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    TQ_ATTN_LOADERS(name, load_keys, load_values, unpack_##name, bytes)
#include "../../types.def"
#undef TQ_TYPE
TQ_ATTN_LOADERS(f16, load_keys, load_values, unpack_f16, TQ_BLOCK * 2)
TQ_ATTN_LOADERS(q8_0, load_keys, load_values, unpack_q8_0, sizeof(tq_block_q8_0))

#define TIER neon
#include "tier.inc"
