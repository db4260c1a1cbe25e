// The vec_dot functions of an x86-64 tier, around its dot_quads: products of 32 levels and 32 activations, summed by
// fours, so that lanes 0-3 belong to scale 0 and lanes 4-7 to scale 1. Four blocks share the work of decoding scales;
// two running sums hide the latency of the additions. Needs AVX2, FMA and F16C.
#pragma once

#include "../tq_kernels.h"
#include "../x86.h"

// The first 16 bits of four blocks, twice. The integer units put them together, having nothing else to do: inserting
// them into a register one by one cost 7 % of tq4_0's speed under AVX2 and 14 % under AVX-512 (Zen 5).
static inline __m128i first_words(const void * x, size_t bytes) {
    const unsigned char * p = x;
    unsigned long long words = 0;
    for (int i = 0; i < 4; i++) {
        words |= (unsigned long long) tq_load_u16(p + (size_t) i * bytes) << 16 * i;
    }
    return _mm_set1_epi64x((long long) words);
}

// Lane i is scale 0, lane 4 + i is scale 1 of block i, times the d of its q8_0 block.
static inline __m256 dot_scales(const void * x, size_t bytes, const tq_block_q8_0 * y) {
    const __m256i word = _mm256_cvtepu16_epi32(first_words(x, bytes));
    const __m256i exponent = _mm256_and_si256(word, _mm256_set1_epi32(31 << 10));
    const __m256i field = _mm256_sllv_epi32(word, _mm256_setr_epi32(20, 20, 20, 20, 15, 15, 15, 15));
    const __m256i step = _mm256_and_si256(field, _mm256_set1_epi32(15 << 20));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(field, 7), _mm256_set1_epi32(INT32_MIN));
    const __m256i code8e = _mm256_add_epi32(_mm256_slli_epi32(exponent, 13), _mm256_set1_epi32(TQ_CODE_BIAS << 20));
    const __m256i bits = _mm256_or_si256(_mm256_add_epi32(code8e, step), sign);
    const __m256i scale = _mm256_sign_epi32(bits, exponent); // 0 where e is
    return _mm256_mul_ps(_mm256_castsi256_ps(scale), _mm256_cvtph_ps(first_words(y, sizeof(*y))));
}

// The same for one block: lanes 0-3 are scale 0, lanes 4-7 scale 1.
static inline __m256 dot_scale(const unsigned char word[2], const tq_block_q8_0 * y) {
    float scale[2];
    tq_decode_scales(word, scale);
    return _mm256_mul_ps(_mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0])),
                         _mm256_set1_ps(_cvtsh_ss(tq_load_u16(y))));
}

static inline float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline __m256 dot_block(__m256i levels, const tq_block_q8_0 * y, __m256 scale, __m256 sum) {
    const __m256i quads = dot_quads(levels, _mm256_loadu_si256((const __m256i *) y->qs));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads), scale, sum);
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                          \
    static float vec_dot_##name(const void * vx, const void * vy, int64_t n) {                      \
        const tq_block_##name * x = vx;                                                             \
        const tq_block_q8_0 * y = vy;                                                               \
        __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();                              \
        int64_t i = n / TQ_BLOCK;                                                                   \
        for (; i >= 4; i -= 4, x += 4, y += 4) {                                                    \
            const __m256 scale = dot_scales(x->scale, bytes, y);                                    \
            sum0 = dot_block(tq_levels_##name(x), y, _mm256_permute_ps(scale, 0x00), sum0);         \
            sum1 = dot_block(tq_levels_##name(x + 1), y + 1, _mm256_permute_ps(scale, 0x55), sum1); \
            sum0 = dot_block(tq_levels_##name(x + 2), y + 2, _mm256_permute_ps(scale, 0xAA), sum0); \
            sum1 = dot_block(tq_levels_##name(x + 3), y + 3, _mm256_permute_ps(scale, 0xFF), sum1); \
        }                                                                                           \
        for (; i > 0; i--, x++, y++) {                                                              \
            sum0 = dot_block(tq_levels_##name(x), y, dot_scale(x->scale, y), sum0);                 \
        }                                                                                           \
        return sum8(_mm256_add_ps(sum0, sum1));                                                     \
    }
#include "../../types.def"
#undef TQ_TYPE
