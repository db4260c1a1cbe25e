// attention.h for NEON with the dot products of ARMv8.2: bytes for TQ and q8_0, neon.h's words for f16.
//
// A vector of a tile is four groups of 32 bits, and four vectors hold four rows of a sub-block. Both factors of a dot
// product are signed, or both unsigned:
//
//   keys     [sub-block][row / 4][value / 4][row % 4][4]     signed; what lies behind a query is not used
//   values   [sub-block][row / 4][column][4]                 128 more, unsigned
//   weights  [sub-block][row]                                unsigned
//
// What 128 adds to a sum of values, dot products of the weights and 128 count along with it: 4 next to 64.
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
//   all, and attention.c    302       110        199       61
#include "neon_dotprod_load.h"

// An integer n added to the bits of such a float gives the float that is n more.
#define SIGNED_ZERO 0x1.8p23f // -2^22 <= n < 2^22
#define UNSIGNED_ZERO 0x1p23f // 0 <= n < 2^23

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

#define TIER neon_dotprod
#define HAS_BYTES
#include "tier.inc"
