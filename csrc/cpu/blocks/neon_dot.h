// The vec_dot functions of an AArch64 tier, around its dot_quads: products of 16 levels and 16 activations, summed by
// fours.
#pragma once

#include "../neon.h"
#include "../tq_kernels.h"

static inline float half_at(const void * p) {
    __fp16 h;
    memcpy(&h, p, sizeof(h));
    return h;
}

static inline float32x4_t dot_half(int8x16_t levels, const int8_t * q, float scale, float32x4_t sum) {
    return vfmaq_n_f32(sum, vcvtq_f32_s32(dot_quads(levels, vld1q_s8(q))), scale);
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                     \
    static float vec_dot_##name(const void * vx, const void * vy, int64_t n) {                 \
        const tq_block_##name * x = vx;                                                        \
        const tq_block_q8_0 * y = vy;                                                          \
        float32x4_t sum0 = vdupq_n_f32(0.0f), sum1 = sum0;                                     \
        for (int64_t i = 0; i < n; i += TQ_BLOCK, x++, y++) {                                  \
            float scale[2];                                                                    \
            tq_decode_scales(x->scale, scale);                                                 \
            const float d = half_at(y);                                                        \
            sum0 = dot_half(tq_levels_##name(x, 0), y->qs, d * scale[0], sum0);                \
            sum1 = dot_half(tq_levels_##name(x, 1), y->qs + TQ_SUB_BLOCK, d * scale[1], sum1); \
        }                                                                                      \
        return vaddvq_f32(vaddq_f32(sum0, sum1));                                              \
    }
#include "../../types.def"
#undef TQ_TYPE
