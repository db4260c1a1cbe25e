// What the x86-64 tiers share: 32 levels of a block as bytes, index packing, scales of four blocks. Needs AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "../tq_tables.h"
#include "scale.h"

static inline unsigned short tq_load_u16(const void * p) {
    unsigned short v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline int tq_load_i32(const void * p) {
    int v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline long long tq_load_i64(const void * p) {
    long long v;
    memcpy(&v, p, sizeof(v));
    return v;
}

// --- indices to levels: byte v of the result is the level of value v ---
//
// The codebook is picked by address, and fills both halves of a register for an in-lane byte shuffle.

static inline __m256i tq_low_bits(const unsigned char * low) {
    const __m256i shift = _mm256_setr_epi64x(0, 2, 4, 6);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(tq_load_i64(low)), shift), _mm256_set1_epi8(3));
}

static inline __m256i tq_levels_tq4_0(const tq_block_tq4_0 * x) {
    const __m128i low = _mm_loadu_si128((const __m128i *) x->low);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_srli_epi16(low, 4), 1);
    const __m128i book = _mm_loadu_si128((const __m128i *) tq_codebook_tq4_0[x->scale[1] >> 7]);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(book), _mm256_and_si256(both, _mm256_set1_epi8(15)));
}

static inline __m256i tq_levels_tq3_0(const tq_block_tq3_0 * x) {
    const __m256i shift = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(tq_load_i32(x->high)), shift);
    const __m256i bit2 = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi8(1)), 2);
    const __m256i book = _mm256_set1_epi64x(tq_load_i64(tq_codebook_tq3_0[x->scale[1] >> 7]));
    return _mm256_shuffle_epi8(book, _mm256_or_si256(tq_low_bits(x->low), bit2));
}

static inline __m256i tq_levels_tq2_1(const tq_block_tq2_1 * x) {
    const __m256i book = _mm256_set1_epi32(tq_load_i32(tq_codebook_tq2_1[x->scale[1] >> 7]));
    return _mm256_shuffle_epi8(book, tq_low_bits(x->low));
}

// --- and back: byte v holds the index of value v ---

static inline void tq_store_low_bits(unsigned char * low, __m256i index) {
    const __m256i bits = _mm256_and_si256(index, _mm256_set1_epi8(3));
    const __m256i parts = _mm256_sllv_epi64(bits, _mm256_setr_epi64x(0, 2, 4, 6));
    const __m128i half = _mm_or_si128(_mm256_castsi256_si128(parts), _mm256_extracti128_si256(parts, 1));
    _mm_storel_epi64((__m128i *) low, _mm_or_si128(half, _mm_unpackhi_epi64(half, half)));
}

static inline void tq_store_tq4_0(tq_block_tq4_0 * y, __m256i index) {
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(index, 1), 4);
    _mm_storeu_si128((__m128i *) y->low, _mm_or_si128(_mm256_castsi256_si128(index), high));
}

static inline void tq_store_tq3_0(tq_block_tq3_0 * y, __m256i index) {
    const __m256i bits = _mm256_and_si256(_mm256_srli_epi16(index, 2), _mm256_set1_epi8(1));
    const __m256i parts = _mm256_sllv_epi32(bits, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m128i sum = _mm_or_si128(_mm256_castsi256_si128(parts), _mm256_extracti128_si256(parts, 1));
    sum = _mm_or_si128(sum, _mm_unpackhi_epi64(sum, sum));
    sum = _mm_or_si128(sum, _mm_srli_epi64(sum, 32));
    const int high = _mm_cvtsi128_si32(sum);
    memcpy(y->high, &high, sizeof(high));
    tq_store_low_bits(y->low, index);
}

static inline void tq_store_tq2_1(tq_block_tq2_1 * y, __m256i index) {
    tq_store_low_bits(y->low, index);
}

// --- scales of a dot product: lane i is scale 0, lane 4 + i is scale 1 of block i, times the d of its q8_0 block ---

static inline __m256 tq_dot_scales(const unsigned char * x, size_t bytes, const tq_block_q8_0 * y) {
    const __m256i word = _mm256_broadcastsi128_si256(_mm_setr_epi32(tq_load_u16(x), tq_load_u16(x + bytes),
                                                                    tq_load_u16(x + 2 * bytes), tq_load_u16(x + 3 * bytes)));
    const __m256i field = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 0, 0, 0, 5, 5, 5, 5));
    const __m256i exponent = _mm256_and_si256(word, _mm256_set1_epi32(31 << 10));
    const __m256i code8e = _mm256_add_epi32(_mm256_slli_epi32(exponent, 13), _mm256_set1_epi32(TQ_CODE_BIAS << 20));
    const __m256i step = _mm256_slli_epi32(_mm256_and_si256(field, _mm256_set1_epi32(15)), 20);
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(field, _mm256_set1_epi32(16)), 27);
    const __m256i bits = _mm256_or_si256(_mm256_add_epi32(code8e, step), sign);
    const __m256i zero = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    const __m128 d = _mm_cvtph_ps(_mm_setr_epi16(tq_load_u16(y), tq_load_u16(y + 1), tq_load_u16(y + 2), tq_load_u16(y + 3),
                                                 0, 0, 0, 0));
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_andnot_si256(zero, bits)), _mm256_set_m128(d, d));
}

// The same for one block: lanes 0-3 are scale 0, lanes 4-7 scale 1.
static inline __m256 tq_dot_scale(const unsigned char word[2], const tq_block_q8_0 * y) {
    float scale[2];
    tq_decode_scales(word, scale);
    return _mm256_mul_ps(_mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0])), _mm256_set1_ps(_cvtsh_ss(tq_load_u16(y))));
}

static inline float tq_sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
