// AVX2 with FMA and F16C.
//
// Quantise: an AVX2 register holds, as bytes, the magnitudes |t| of 32 values under one candidate scale per sub-block;
// each 128-bit lane has 8 values of sub-block 0, then 8 of sub-block 1. Two byte shuffles give the two levels that can
// be nearest (tq_bins.h), for +|t| and for -|t|; the sign of t says which belongs to the positive scale and which to
// the negative one, so both signs cost one search. Prices stand in float lanes [codebook][sign][sub-block]: eight
// running minima, and no branch until a scale cannot be written (FORMAT.md 4.3, rare).
//
// Dequantise and dot: x86.h gives 32 levels as bytes. In 256-bit integer sums lanes 0-3 belong to sub-block 0 and lanes
// 4-7 to sub-block 1, so one multiply applies both scales.
//
// scripts/bench_kernels.py on Zen 5, million values a second: quantise 210-290, scalar.c 5-8; dequantise 10000-13000,
// scalar.c 800-1100; dot 20000-25000, scalar.c 500.
#include <math.h>

#include "../x86.h"
#include "spec.h"

// --- quantise ---

// Codebooks and bins of a type in registers.
struct tables {
    __m256i bins[2][4];
    int cut[2][15]; // FORMAT.md 4.4, less one, twice in 16 bits
};

static inline __m256i broadcast16(const int8_t * p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) p));
}

static inline void load_tables(struct tables * t, const struct tq_spec * s) {
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 4; i++) {
            const __m256i bias = _mm256_set1_epi8(tq_is_wide(s) ? TQ_BIN_BIAS : 0);
            t->bins[c][i] = _mm256_add_epi8(broadcast16(s->bins[c][i]), bias);
        }
        for (int j = 0; j + 1 < 1 << s->bits; j++) {
            const int cut = TQ_FINE / 2 * (s->codebook[c][j] + s->codebook[c][j + 1]) - 1;
            t->cut[c][j] = cut * 65536 + (cut & 65535);
        }
    }
}

// |a - level|, which must be below 128 unless `wide` says that TQ_BIN_BIAS was added to both: nothing is negative then.
static inline __m256i distance(__m256i a, __m256i level, bool wide) {
    return wide ? _mm256_or_si256(_mm256_subs_epu8(a, level), _mm256_subs_epu8(level, a))
                : _mm256_abs_epi8(_mm256_sub_epi8(a, level));
}

static inline __m256i nearest_distance(__m256i a, __m256i bin, const __m256i pair[2], bool wide) {
    return _mm256_min_epu8(distance(a, _mm256_shuffle_epi8(pair[0], bin), wide),
                           distance(a, _mm256_shuffle_epi8(pair[1], bin), wide));
}

// Squares of bytes, summed over four neighbours.
static inline __m256i sum_squares(__m256i d, bool wide) {
    if (wide) {
        const __m256i even = _mm256_and_si256(d, _mm256_set1_epi16(255));
        const __m256i odd = _mm256_srli_epi16(d, 8);
        return _mm256_add_epi32(_mm256_madd_epi16(even, even), _mm256_madd_epi16(odd, odd));
    }
    return _mm256_madd_epi16(_mm256_maddubs_epi16(d, d), _mm256_set1_epi16(1));
}

static inline __m256i add_neighbours(__m256i a, __m256i b) {
    const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
    const __m256 odd = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xDD);
    return _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd));
}

static inline __m256 scales_of(__m256i code) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(code, _mm256_set1_epi32(TQ_CODE_BIAS)), 20));
}

// FORMAT.md 4.2 for a code per sub-block, given as [sub-block] in lanes 2i, 2i + 1.
static inline __m256 prices(const __m256 x[4], __m256i code, const struct tables * tables, bool wide) {
    const __m256 scale = scales_of(code);
    const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(1.0f), scale);
    const __m256 inverse0 = _mm256_permute_ps(inverse, 0x00);
    const __m256 inverse1 = _mm256_permute_ps(inverse, 0x55);
    const __m256i t0 = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x[0], inverse0)),
                                          _mm256_cvtps_epi32(_mm256_mul_ps(x[1], inverse0)));
    const __m256i t1 = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x[2], inverse1)),
                                          _mm256_cvtps_epi32(_mm256_mul_ps(x[3], inverse1)));
    const __m256i negative = _mm256_packs_epi16(t0, t1);
    __m256i a = _mm256_packus_epi16(_mm256_abs_epi16(t0), _mm256_abs_epi16(t1));
    const __m256i bin =
        _mm256_and_si256(_mm256_srli_epi16(_mm256_min_epu8(a, _mm256_set1_epi8(127)), 3), _mm256_set1_epi8(15));
    a = _mm256_add_epi8(a, _mm256_set1_epi8(wide ? TQ_BIN_BIAS : 0));

    __m256i sum[2];
    for (int c = 0; c < 2; c++) {
        const __m256i plus = nearest_distance(a, bin, tables->bins[c], wide);
        const __m256i minus = nearest_distance(a, bin, tables->bins[c] + 2, wide);
        sum[c] = add_neighbours(sum_squares(_mm256_blendv_epi8(plus, minus, negative), wide),
                                sum_squares(_mm256_blendv_epi8(minus, plus, negative), wide));
    }
    const __m256i error = _mm256_add_epi32(_mm256_permute2x128_si256(sum[0], sum[1], 0x20),
                                           _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
    return _mm256_mul_ps(_mm256_mul_ps(scale, scale), _mm256_cvtepi32_ps(error));
}

// The largest magnitudes of both sub-blocks, [sub-block] in lanes 2i, 2i + 1.
static inline __m256 largest(const __m256 x[4]) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 m0 = _mm256_max_ps(_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1]));
    const __m256 m1 = _mm256_max_ps(_mm256_andnot_ps(sign, x[2]), _mm256_andnot_ps(sign, x[3]));
    __m256 m = _mm256_max_ps(_mm256_unpacklo_ps(m0, m1), _mm256_unpackhi_ps(m0, m1));
    m = _mm256_max_ps(m, _mm256_permute_ps(m, 0x4E));
    return _mm256_max_ps(m, _mm256_permute2f128_ps(m, m, 1));
}

// FORMAT.md 4.4: the index of value v in byte v.
static inline __m256i assign(const __m256 x[4], const int code[2], const unsigned negative[2], const int * cut,
                             int levels) {
    __m256i index[2];
    for (int k = 0; k < 2; k++) {
        const float inverse = (float) TQ_FINE * (1.0f / tq_scale_of(code[k]));
        const __m256 signed_inverse = _mm256_set1_ps(negative[k] ? -inverse : inverse);
        const __m256i v = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x[2 * k], signed_inverse)),
                                             _mm256_cvtps_epi32(_mm256_mul_ps(x[2 * k + 1], signed_inverse)));
        index[k] = _mm256_setzero_si256();
        for (int j = 0; j + 1 < levels; j++) {
            index[k] = _mm256_sub_epi16(index[k], _mm256_cmpgt_epi16(v, _mm256_set1_epi32(cut[j])));
        }
    }
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(index[0], index[1]), order);
}

// The best so far, float lanes [codebook][sign][sub-block].
struct best {
    __m256 price;
    __m256i code;
};

// A sub-block's winners: entry 4c + k is for codebook c and sub-block k.
struct winners {
    float price[8];
    int code[8];
    unsigned negative; // a bit per entry
};

// Of the two signs the negative one wins if it is cheaper, or as cheap at an earlier code.
static inline void merge_signs(struct winners * w, struct best plus) {
    const __m256 price = _mm256_permute_ps(plus.price, 0x4E);
    const __m256i code = _mm256_shuffle_epi32(plus.code, 0x4E);
    const __m256 earlier = _mm256_and_ps(_mm256_cmp_ps(price, plus.price, _CMP_EQ_OQ),
                                         _mm256_castsi256_ps(_mm256_cmpgt_epi32(plus.code, code)));
    const __m256 better = _mm256_or_ps(_mm256_cmp_ps(price, plus.price, _CMP_LT_OQ), earlier);
    _mm256_storeu_ps(w->price, _mm256_blendv_ps(plus.price, price, better));
    _mm256_storeu_si256((__m256i *) w->code, _mm256_blendv_epi8(plus.code, code, _mm256_castps_si256(better)));
    w->negative = (unsigned) _mm256_movemask_ps(better);
}

// FORMAT.md 4.3 for codebook c: moves a sub-block that lies too low to code 8e, and returns e.
static inline int make_writable(struct winners * w, int c, const __m256 x[4], const struct tables * tables, bool wide) {
    int * code = w->code + 4 * c;
    const int octave = (code[0] > code[1] ? code[0] : code[1]) >> 3;
    const int e = octave > 2 ? octave - 1 : 1;
    for (int k = 0; k < 2; k++) {
        if (code[k] < 8 * e) {
            const __m256i lowest = _mm256_set1_epi32(8 * e);
            struct winners moved;
            merge_signs(&moved, (struct best) {prices(x, lowest, tables, wide), lowest});
            const unsigned bit = 1u << (4 * c + k);
            code[k] = 8 * e;
            w->price[4 * c + k] = moved.price[4 * c + k];
            w->negative = (w->negative & ~bit) | (moved.negative & bit);
        }
    }
    return e;
}

// FORMAT.md 4.1 to 4.4: the scale word, and the index of value v in byte v. False for a block of zeros.
TQ_INLINE bool encode(const float * input, const struct tables * tables, const struct tq_spec * s, uint8_t word[2],
                      __m256i * index) {
    const __m256 limit = _mm256_set1_ps(TQ_MAGNITUDE_MAX);
    __m256 x[4];
    for (int i = 0; i < 4; i++) {
        const __m256 v = _mm256_loadu_ps(input + 8 * i);
        const __m256 number = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
        x[i] = _mm256_max_ps(_mm256_min_ps(number, limit), _mm256_sub_ps(_mm256_setzero_ps(), limit));
    }
    const __m256 amax = largest(x);
    if (_mm256_movemask_ps(_mm256_cmp_ps(amax, _mm256_set1_ps(TQ_MAGNITUDE_MIN), _CMP_LT_OQ)) == 255) {
        return false;
    }

    const __m256i anchor = _mm256_castps_si256(_mm256_mul_ps(amax, _mm256_set1_ps(s->start)));
    const __m256i first = _mm256_sub_epi32(_mm256_srai_epi32(anchor, 20), _mm256_set1_epi32(TQ_CODE_BIAS));
    struct best best = {_mm256_set1_ps(INFINITY), _mm256_setzero_si256()};
    for (int k = 0; k < s->count; k++) {
        __m256i code = _mm256_add_epi32(first, _mm256_set1_epi32(k));
        code = _mm256_max_epi32(code, _mm256_set1_epi32(TQ_CODE_MIN));
        code = _mm256_min_epi32(code, _mm256_set1_epi32(TQ_CODE_MAX));
        const __m256 price = prices(x, code, tables, tq_is_wide(s));
        const __m256 better = _mm256_cmp_ps(price, best.price, _CMP_LT_OQ);
        best.price = _mm256_min_ps(price, best.price);
        best.code = _mm256_blendv_epi8(best.code, code, _mm256_castps_si256(better));
    }

    struct winners w;
    merge_signs(&w, best);
    const int e[2] = {make_writable(&w, 0, x, tables, tq_is_wide(s)), make_writable(&w, 1, x, tables, tq_is_wide(s))};
    const int c = w.price[4] + w.price[5] < w.price[0] + w.price[1];
    const int * code = w.code + 4 * c;
    const unsigned negative[2] = {w.negative >> 4 * c & 1, w.negative >> (4 * c + 1) & 1};

    tq_encode_scales(word, e[c], c, code, negative);
    *index = assign(x, code, negative, tables->cut[c], 1 << s->bits);
    return true;
}

#define INDICES __m256i
#include "quantize.inc"

// --- dequantise ---

static inline void store8(float * y, __m128i levels, __m256 scale) {
    _mm256_storeu_ps(y, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels))));
}

static inline void store32(float * y, __m256i levels, const uint8_t word[2]) {
    float scale[2];
    tq_decode_scales(word, scale);
    const __m256 scale0 = _mm256_set1_ps(scale[0]), scale1 = _mm256_set1_ps(scale[1]);
    const __m128i half0 = _mm256_castsi256_si128(levels), half1 = _mm256_extracti128_si256(levels, 1);
    store8(y, half0, scale0);
    store8(y + 8, _mm_unpackhi_epi64(half0, half0), scale0);
    store8(y + 16, half1, scale1);
    store8(y + 24, _mm_unpackhi_epi64(half1, half1), scale1);
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                \
    static void dequantize_##name(const void * x, float * y, int64_t n) { \
        const tq_block_##name * block = x;                                \
        for (int64_t i = 0; i < n; i += TQ_BLOCK, block++) {              \
            store32(y + i, tq_levels_##name(block), block->scale);        \
        }                                                                 \
    }
#include "../../types.def"
#undef TQ_TYPE

// --- dot product with q8_0 ---

// |q| * (level with the sign of q): exact, since no level is -128 and two products stay below 2^15.
static inline __m256i dot_quads(__m256i levels, __m256i q) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(levels, q));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "x86_dot.h"

#define TIER avx2
#include "tier.inc"
