// What the AArch64 tiers of attention.h share: the products of words, the softmax and the masks. Needs NEON.
#pragma once

#include <arm_neon.h>
#include <math.h>

#include "tier.h"

#define VECTORS (TQ_ATTN_TILE / 4) // of one 32-bit lane per row
#define TWOS (TQ_BLOCK / 2)

// --- products of words ---

// out[r] = 8 sums over the twos of a tile, `stride` numbers apart, with the twos of x + r * x_stride. Four at a time:
// one load brings a row's factors for 16 smlal by lane.
INLINE void multiply(int rows, int twos, const int16_t * tile, int stride, const int16_t * x, int x_stride,
                     int32x4_t out[TQ_ATTN_ROWS][2]) {
    for (int r = 0; r < rows; r++) {
        out[r][0] = out[r][1] = vdupq_n_s32(0);
    }
    for (int p = 0; p < twos; p += 4) {
        int16x8x2_t y[4];
        for (int i = 0; i < 4; i++) {
            y[i] = vld2q_s16(tile + stride * (p + i));
        }
        for (int r = 0; r < rows; r++) {
            const int16x8_t f = vld1q_s16(x + x_stride * r + 2 * p);
#define ADD(lane)                                                                             \
    out[r][0] = vmlal_laneq_s16(out[r][0], vget_low_s16(y[lane / 2].val[lane % 2]), f, lane), \
    out[r][1] = vmlal_high_laneq_s16(out[r][1], y[lane / 2].val[lane % 2], f, lane)
            ADD(0), ADD(1), ADD(2), ADD(3), ADD(4), ADD(5), ADD(6), ADD(7);
#undef ADD
        }
    }
}

INLINE void score_rows(int rows, const int16_t * q, int blocks, const int16_t * keys, const float * unit,
                       float * score) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        float32x4_t sum[TQ_ATTN_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = vdupq_n_f32(0.0f);
        }
        for (int b = 0; b < blocks; b++) {
            int32x4_t dot[TQ_ATTN_ROWS][2];
            multiply(rows, TWOS, keys + 2 * (b * TWOS * TQ_ATTN_TILE + t), 2 * TQ_ATTN_TILE, q + b * TQ_BLOCK,
                     blocks * TQ_BLOCK, dot);
            for (int r = 0; r < rows; r++) {
                for (int k = 0; k < 2; k++) {
                    const float32x4_t u = vld1q_f32(unit + b * TQ_ATTN_TILE + t + 4 * k);
                    sum[r][k] = vfmaq_f32(sum[r][k], vcvtq_f32_s32(dot[r][k]), u);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            vst1q_f32(score + r * TQ_ATTN_TILE + t, sum[r][0]);
            vst1q_f32(score + r * TQ_ATTN_TILE + t + 4, sum[r][1]);
        }
    }
}

static void scores(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows, q, blocks, keys, unit, score);
}

INLINE void accumulate_rows(int rows, const int16_t * weight, int blocks, const int16_t * values, const float * unit,
                            const float * keep, const float * add, float * acc) {
    for (int d = 0; d < blocks * TQ_BLOCK; d += 8) {
        const int b = d / TQ_BLOCK;
        int32x4_t sum[TQ_ATTN_ROWS][2];
        multiply(rows, TQ_ATTN_TILE / 2, values + b * TQ_ATTN_TILE * TQ_BLOCK + 2 * (d % TQ_BLOCK), 2 * TQ_BLOCK,
                 weight + b * TQ_ATTN_TILE, blocks * TQ_ATTN_TILE, sum);
        for (int r = 0; r < rows; r++) {
            for (int k = 0; k < 2; k++) {
                float * at = acc + r * blocks * TQ_BLOCK + d + 4 * k;
                const float32x4_t kept = vmulq_n_f32(vld1q_f32(at), keep[r]);
                vst1q_f32(at, vfmaq_n_f32(kept, vcvtq_f32_s32(sum[r][k]), add[r] * unit[b]));
            }
        }
    }
}

static void accumulate(const void * weight, int rows, int blocks, const void * values, const float * unit,
                       const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, accumulate_rows, weight, blocks, values, unit, keep, add, acc);
}

static float weights(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    const float steps = tq_attn_word_steps(sum);
    for (int t = 0; t < TQ_ATTN_TILE; t += 4) {
        const float32x4_t x = vmulq_n_f32(vld1q_f32(p + t), steps);
        for (int i = t; i < blocks * TQ_ATTN_TILE; i += TQ_ATTN_TILE) {
            vst1_s16((int16_t *) weight + i, vmovn_s32(vcvtnq_s32_f32(vmulq_f32(x, vld1q_f32(ratio + i)))));
        }
    }
    return steps;
}

// --- softmax ---

// tier.h's, four at a time
INLINE float32x4_t exponential(float32x4_t x) {
    x = vmaxq_f32(x, vdupq_n_f32(TQ_EXP_LEAST));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, TQ_EXP_LOG2E));
    float32x4_t r = vfmsq_n_f32(x, n, TQ_EXP_LN2_HIGH);
    r = vfmsq_n_f32(r, n, TQ_EXP_LN2_LOW);
    float32x4_t y = vdupq_n_f32(TQ_EXP_5);
    y = vfmaq_f32(vdupq_n_f32(TQ_EXP_4), y, r);
    y = vfmaq_f32(vdupq_n_f32(TQ_EXP_3), y, r);
    y = vfmaq_f32(vdupq_n_f32(0.5f), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(y, vreinterpretq_f32_s32(power));
}

static float softmax(float * score, const float * offset, const float * mask, const struct tq_attn_softmax * s,
                     float * sum) {
    float32x4_t top = vdupq_n_f32(-INFINITY);
    for (int g = 0; g < VECTORS; g++) {
        float32x4_t x = vfmaq_n_f32(vld1q_f32(offset + 4 * g), vld1q_f32(score + 4 * g), s->scale);
        if (s->softcap != 0.0f) { // tanh x = 1 - 2 / (e^2x + 1)
            const float32x4_t one = vdupq_n_f32(1.0f);
            const float32x4_t e = exponential(vminq_f32(vaddq_f32(x, x), vdupq_n_f32(TQ_EXP_MOST)));
            x = vsubq_f32(one, vdivq_f32(vdupq_n_f32(2.0f), vaddq_f32(e, one)));
            x = vmulq_n_f32(x, s->softcap);
        }
        x = vfmaq_n_f32(x, vld1q_f32(mask + 4 * g), s->slope);
        vst1q_f32(score + 4 * g, x);
        top = vmaxq_f32(top, x);
    }
    const float most = vmaxvq_f32(top);
    float32x4_t total = vdupq_n_f32(0.0f);
    for (int g = 0; g < VECTORS; g++) {
        const float32x4_t p = exponential(vsubq_f32(vld1q_f32(score + 4 * g), vdupq_n_f32(most)));
        vst1q_f32(score + 4 * g, p);
        total = vaddq_f32(total, p);
    }
    *sum = vaddvq_f32(total);
    return most;
}

static bool load_mask(const uint16_t * mask, int n, float * out) {
    uint32_t open = 0;
    for (int t = 0; t < TQ_ATTN_TILE; t += 4) {
        uint16_t halves[4] = {0xfc00, 0xfc00, 0xfc00, 0xfc00};
        if (n > t) {
            memcpy(halves, mask + t, (size_t) (n - t < 4 ? n - t : 4) * sizeof(uint16_t));
        }
        const float32x4_t x = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
        open |= vmaxvq_u32(vmvnq_u32(vceqq_f32(x, vdupq_n_f32(-INFINITY))));
        vst1q_f32(out + t, x);
    }
    return open != 0;
}
