// What the AArch64 tiers share: the levels of a block as bytes. Needs NEON.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "../tq_tables.h"
#include "scale.h"

static inline uint8x16_t tq_repeat8(const void * p) {
    return vreinterpretq_u8_u64(vld1q_dup_u64(p));
}

static inline uint8x16_t tq_repeat4(const void * p) {
    return vreinterpretq_u8_u32(vld1q_dup_u32(p));
}

// The shift that brings something of values 16k to 16k + 15 in place: `first` for the first `run` of them, then `step`
// more for each further run.
static inline int8x16_t tq_shifts(int first, int step, int run) {
    int8_t shift[16];
    for (int i = 0; i < 16; i++) {
        shift[i] = (int8_t) (first + i / run * step);
    }
    return vld1q_s8(shift);
}

static inline uint8x16_t tq_low_bits(const unsigned char * low, int k) {
    return vandq_u8(vshlq_u8(tq_repeat8(low), tq_shifts(-4 * k, -2, 8)), vdupq_n_u8(3));
}

// Levels of values 16k to 16k + 15, k = 0 or 1. The codebook is picked by address.

static inline int8x16_t tq_levels_tq4_0(const tq_block_tq4_0 * x, int k) {
    const uint8x16_t low = vld1q_u8(x->low);
    const uint8x16_t index = k ? vshrq_n_u8(low, 4) : vandq_u8(low, vdupq_n_u8(15));
    return vqtbl1q_s8(vld1q_s8(tq_codebook_tq4_0[x->scale[1] >> 7]), index);
}

static inline int8x16_t tq_levels_tq3_0(const tq_block_tq3_0 * x, int k) {
    const uint8x16_t bit2 = vandq_u8(vshlq_u8(tq_repeat4(x->high), tq_shifts(2 - 4 * k, -1, 4)), vdupq_n_u8(4));
    const int8x16_t book = vreinterpretq_s8_u8(tq_repeat8(tq_codebook_tq3_0[x->scale[1] >> 7]));
    return vqtbl1q_s8(book, vorrq_u8(tq_low_bits(x->low, k), bit2));
}

static inline int8x16_t tq_levels_tq2_1(const tq_block_tq2_1 * x, int k) {
    const int8x16_t book = vreinterpretq_s8_u8(tq_repeat4(tq_codebook_tq2_1[x->scale[1] >> 7]));
    return vqtbl1q_s8(book, tq_low_bits(x->low, k));
}
