// What the x86-64 tiers share: the levels of a block as bytes, and their indices back into a block. Needs AVX2.
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

// The 16 bytes that end with block b of a row. Bytes in front of a row may not exist: zeros then. A row has two blocks
// at least.
static inline __m128i tq_load_end(const char * row, int b, int bytes) {
    const int missing = b == 0 && bytes < 16 ? 16 - bytes : 0;
    const __m128i x = _mm_loadu_si128((const __m128i *) (row + b * bytes + bytes - 16 + missing));
    return missing == 0 ? x : missing == 2 ? _mm_bslli_si128(x, 2) : _mm_bslli_si128(x, 6);
}

// --- indices to levels: byte v of the result is the level of value v ---
//
// The codebook is picked by address, and fills both halves of a register for an in-lane byte shuffle.

static inline __m256i tq_low_bits(const unsigned char * low) {
    const __m256i shift = _mm256_setr_epi64x(0, 2, 4, 6);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(tq_load_i64(low)), shift), _mm256_set1_epi8(3));
}

static inline __m256i tq_levels_tq4_0(const tq_block_tq4_0 * x) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) x->low));
    const __m256i both = _mm256_srlv_epi64(low, _mm256_setr_epi64x(0, 0, 4, 4));
    const __m128i book = _mm_loadu_si128((const __m128i *) tq_codebook_tq4_0[x->scale[1] >> 7]);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(book), _mm256_and_si256(both, _mm256_set1_epi8(15)));
}

// The high bit goes to the top of its byte, where it chooses between the two halves of the codebook.
static inline __m256i tq_levels_tq3_0(const tq_block_tq3_0 * x) {
    const signed char * book = tq_codebook_tq3_0[x->scale[1] >> 7];
    const __m256i shift = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i high = _mm256_sllv_epi32(_mm256_set1_epi32(tq_load_i32(x->high)), shift);
    const __m256i low = tq_low_bits(x->low);
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(_mm256_set1_epi32(tq_load_i32(book)), low),
                              _mm256_shuffle_epi8(_mm256_set1_epi32(tq_load_i32(book + 4)), low), high);
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
