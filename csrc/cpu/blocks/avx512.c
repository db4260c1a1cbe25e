// AVX-512 (F, BW, VL, DQ, VBMI) with VNNI: Ice Lake, Zen 4 and later.
//
// Quantise: as in avx2.c with twice the candidates in a register. Each 128-bit lane has, as bytes, 4 values of each:
// sub-block 0 and 1 under one candidate, sub-block 0 and 1 under the next. A VNNI dot product of distances with
// themselves then sums what belongs together and nothing else. Prices stand in float lanes
// [codebook][sign][candidate][sub-block].
//
// Dequantise: 16 indices in 32-bit lanes pick from 16 floats that are already multiplied by the scale; no conversion.
// On rows of 128 values 0-25 % faster than avx2.c; on long rows stores bound both (Zen 5).
//
// Dot: x86_dot.h, with the VNNI instruction for products and sums by fours.
#include <math.h>

#include "../x86.h"
#include "spec.h"

// --- quantise ---

// Codebooks and bins of a type in registers.
struct tables {
    __m512i bins[2][4];
    int16_t cut[2][15]; // FORMAT.md 4.4
};

static inline void load_tables(struct tables * t, const struct tq_spec * s) {
    const __m512i bias = _mm512_set1_epi8(tq_is_wide(s) ? TQ_BIN_BIAS : 0);
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 4; i++) {
            const __m128i bin = _mm_loadu_si128((const __m128i *) s->bins[c][i]);
            t->bins[c][i] = _mm512_add_epi8(_mm512_broadcast_i32x4(bin), bias);
        }
        for (int j = 0; j + 1 < 1 << s->bits; j++) {
            t->cut[c][j] = (int16_t) (TQ_FINE / 2 * (s->codebook[c][j] + s->codebook[c][j + 1]));
        }
    }
}

// |a - level|, which must be below 128 unless `wide` says that TQ_BIN_BIAS was added to both: nothing is negative then.
static inline __m512i distance(__m512i a, __m512i level, bool wide) {
    return wide ? _mm512_or_si512(_mm512_subs_epu8(a, level), _mm512_subs_epu8(level, a))
                : _mm512_abs_epi8(_mm512_sub_epi8(a, level));
}

static inline __m512i nearest_distance(__m512i a, __m512i bin, const __m512i pair[2], bool wide) {
    return _mm512_min_epu8(distance(a, _mm512_shuffle_epi8(pair[0], bin), wide),
                           distance(a, _mm512_shuffle_epi8(pair[1], bin), wide));
}

// Squares of bytes, summed over four neighbours.
static inline __m512i sum_squares(__m512i d, bool wide) {
    const __m512i zero = _mm512_setzero_si512();
    if (wide) {
        const __m512i even = _mm512_and_si512(d, _mm512_set1_epi16(255));
        const __m512i odd = _mm512_srli_epi16(d, 8);
        return _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(zero, even, even), odd, odd);
    }
    return _mm512_dpbusd_epi32(zero, d, d);
}

// Sums pairs of 128-bit lanes: [a0 + a1, a2 + a3, b0 + b1, b2 + b3].
static inline __m512i add_lanes(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}

static inline __m512i to_integers(__m512 x, __m512 inverse) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
}

// FORMAT.md 4.2 for two codes per sub-block, given as [candidate][sub-block] in every 128-bit lane.
static inline __m512 prices(const __m512 x[2], __m512i code, const struct tables * tables, bool wide) {
    const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(TQ_CODE_BIAS)), 20);
    const __m512 scale = _mm512_castsi512_ps(bits);
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), scale);
    const __m512i t0 = _mm512_packs_epi32(to_integers(x[0], _mm512_permute_ps(inverse, 0x00)),
                                          to_integers(x[1], _mm512_permute_ps(inverse, 0x55)));
    const __m512i t1 = _mm512_packs_epi32(to_integers(x[0], _mm512_permute_ps(inverse, 0xAA)),
                                          to_integers(x[1], _mm512_permute_ps(inverse, 0xFF)));
    const __mmask64 negative = _mm512_movepi8_mask(_mm512_packs_epi16(t0, t1));
    __m512i a = _mm512_packus_epi16(_mm512_abs_epi16(t0), _mm512_abs_epi16(t1));
    const __m512i bin =
        _mm512_and_si512(_mm512_srli_epi16(_mm512_min_epu8(a, _mm512_set1_epi8(127)), 3), _mm512_set1_epi8(15));
    a = _mm512_add_epi8(a, _mm512_set1_epi8(wide ? TQ_BIN_BIAS : 0));

    __m512i sum[2];
    for (int c = 0; c < 2; c++) {
        const __m512i plus = nearest_distance(a, bin, tables->bins[c], wide);
        const __m512i minus = nearest_distance(a, bin, tables->bins[c] + 2, wide);
        sum[c] = add_lanes(sum_squares(_mm512_mask_blend_epi8(negative, plus, minus), wide),
                           sum_squares(_mm512_mask_blend_epi8(negative, minus, plus), wide));
    }
    return _mm512_mul_ps(_mm512_mul_ps(scale, scale), _mm512_cvtepi32_ps(add_lanes(sum[0], sum[1])));
}

// The best so far, in lanes [codebook][sign][candidate][sub-block].
struct best {
    __m512 price;
    __m512i code;
};

// Takes over what is cheaper, or as cheap at an earlier code.
static inline __mmask16 improve(struct best * best, __m512 price, __m512i code) {
    const __mmask16 tie = _mm512_cmp_ps_mask(price, best->price, _CMP_EQ_OQ);
    const __mmask16 better =
        _mm512_cmp_ps_mask(price, best->price, _CMP_LT_OQ) | _mm512_mask_cmplt_epi32_mask(tie, code, best->code);
    best->price = _mm512_mask_mov_ps(best->price, better, price);
    best->code = _mm512_mask_mov_epi32(best->code, better, code);
    return better;
}

// A sub-block's winners: entry 8c + k is for codebook c and sub-block k.
struct winners {
    float price[16];
    int code[16];
    unsigned negative; // a bit per entry
};

static inline void merge(struct winners * w, struct best best) {
    improve(&best, _mm512_permute_ps(best.price, 0x4E), _mm512_shuffle_epi32(best.code, 0x4E));
    const __mmask16 negative = improve(&best, _mm512_shuffle_f32x4(best.price, best.price, 0xB1),
                                       _mm512_shuffle_i32x4(best.code, best.code, 0xB1));
    _mm512_storeu_ps(w->price, best.price);
    _mm512_storeu_si512(w->code, best.code);
    w->negative = negative;
}

// FORMAT.md 4.3 for codebook c: moves a sub-block that lies too low to code 8e, and returns e.
static inline int make_writable(struct winners * w, int c, const __m512 x[2], const struct tables * tables, bool wide) {
    int * code = w->code + 8 * c;
    const int octave = (code[0] > code[1] ? code[0] : code[1]) >> 3;
    const int e = octave > 2 ? octave - 1 : 1;
    for (int k = 0; k < 2; k++) {
        if (code[k] < 8 * e) {
            const __m512i lowest = _mm512_set1_epi32(8 * e);
            struct winners moved;
            merge(&moved, (struct best) {prices(x, lowest, tables, wide), lowest});
            const unsigned bit = 1u << (8 * c + k);
            code[k] = 8 * e;
            w->price[8 * c + k] = moved.price[8 * c + k];
            w->negative = (w->negative & ~bit) | (moved.negative & bit);
        }
    }
    return e;
}

// The largest magnitudes, [sub-block] in lanes 2i, 2i + 1.
static inline __m512 largest(const __m512 x[2]) {
    const __m512 m0 = _mm512_abs_ps(x[0]), m1 = _mm512_abs_ps(x[1]);
    __m512 m = _mm512_max_ps(_mm512_unpacklo_ps(m0, m1), _mm512_unpackhi_ps(m0, m1));
    m = _mm512_max_ps(m, _mm512_permute_ps(m, 0x4E));
    m = _mm512_max_ps(m, _mm512_shuffle_f32x4(m, m, 0xB1));
    return _mm512_max_ps(m, _mm512_shuffle_f32x4(m, m, 0x4E));
}

// FORMAT.md 4.4: the index of value v in byte v.
static inline __m256i assign(const __m512 x[2], const int code[2], const unsigned negative[2], const int16_t * cut,
                             int levels) {
    __m512i t[2];
    for (int k = 0; k < 2; k++) {
        const float inverse = (float) TQ_FINE * (1.0f / tq_scale_of(code[k]));
        t[k] = to_integers(x[k], _mm512_set1_ps(negative[k] ? -inverse : inverse));
    }
    const __m512i v = _mm512_packs_epi32(t[0], t[1]);
    __m512i index = _mm512_setzero_si512();
    for (int j = 0; j + 1 < levels; j++) {
        const __mmask32 above = _mm512_cmpge_epi16_mask(v, _mm512_set1_epi16(cut[j]));
        index = _mm512_sub_epi16(index, _mm512_movm_epi16(above));
    }
    return _mm256_permutevar8x32_epi32(_mm512_cvtepi16_epi8(index), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

// FORMAT.md 4.1 to 4.4: the scale word, and the index of value v in byte v. False for a block of zeros.
TQ_INLINE bool encode(const float * input, const struct tables * tables, const struct tq_spec * s, uint8_t word[2],
                      __m256i * index) {
    const __m512 limit = _mm512_set1_ps(TQ_MAGNITUDE_MAX);
    __m512 x[2];
    for (int i = 0; i < 2; i++) {
        const __m512 v = _mm512_loadu_ps(input + 16 * i);
        const __m512 number = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
        x[i] = _mm512_max_ps(_mm512_min_ps(number, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
    }
    const __m512 amax = largest(x);
    if (_mm512_cmp_ps_mask(amax, _mm512_set1_ps(TQ_MAGNITUDE_MIN), _CMP_LT_OQ) == 0xFFFF) {
        return false;
    }

    const __m512i anchor = _mm512_castps_si512(_mm512_mul_ps(amax, _mm512_set1_ps(s->start)));
    const __m512i second = _mm512_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1);
    const __m512i first =
        _mm512_add_epi32(_mm512_sub_epi32(_mm512_srai_epi32(anchor, 20), _mm512_set1_epi32(TQ_CODE_BIAS)), second);
    struct best best = {_mm512_set1_ps(INFINITY), _mm512_setzero_si512()};
    for (int k = 0; k < s->count; k += 2) {
        __m512i code = _mm512_add_epi32(first, _mm512_set1_epi32(k));
        code = _mm512_max_epi32(code, _mm512_set1_epi32(TQ_CODE_MIN));
        code = _mm512_min_epi32(code, _mm512_set1_epi32(TQ_CODE_MAX));
        __m512 price = prices(x, code, tables, tq_is_wide(s));
        if (k + 1 == s->count) { // an odd count leaves half of the last register without a candidate
            price = _mm512_mask_mov_ps(price, 0xCCCC, _mm512_set1_ps(INFINITY));
        }
        const __mmask16 better = _mm512_cmp_ps_mask(price, best.price, _CMP_LT_OQ);
        best.price = _mm512_min_ps(price, best.price);
        best.code = _mm512_mask_mov_epi32(best.code, better, code);
    }

    struct winners w;
    merge(&w, best);
    const int e[2] = {make_writable(&w, 0, x, tables, tq_is_wide(s)), make_writable(&w, 1, x, tables, tq_is_wide(s))};
    const int c = w.price[8] + w.price[9] < w.price[0] + w.price[1];
    const int * code = w.code + 8 * c;
    const unsigned negative[2] = {w.negative >> 8 * c & 1, w.negative >> (8 * c + 1) & 1};

    tq_encode_scales(word, e[c], c, code, negative);
    *index = assign(x, code, negative, tables->cut[c], 1 << s->bits);
    return true;
}

#define INDICES __m256i
#include "quantize.inc"

// --- dequantise ---

// Indices of sub-block k in the low bits of 16 lanes, and the 16 bytes of codebook that the low four bits address: the
// smaller codebooks are repeated, so that the bits above an index do not matter.

static inline __m512i indices_tq4_0(const tq_block_tq4_0 * x, int k) {
    return _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) x->low)), 4 * k);
}

static inline __m512i indices_tq2_1(const tq_block_tq2_1 * x, int k) {
    const __m512i shift = _mm512_inserti64x4(_mm512_set1_epi32(4 * k), _mm256_set1_epi32(4 * k + 2), 1);
    return _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_set1_epi64x(tq_load_i64(x->low))), shift);
}

static inline __m512i indices_tq3_0(const tq_block_tq3_0 * x, int k) {
    const __m512i shift = _mm512_inserti64x4(_mm512_set1_epi32(4 * k), _mm256_set1_epi32(4 * k + 2), 1);
    const __m512i low = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_set1_epi64x(tq_load_i64(x->low))), shift);
    const __m512i quad = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i bytes = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_set1_epi32(tq_load_i32(x->high))), 2);
    const __m512i high = _mm512_srlv_epi32(bytes, _mm512_add_epi32(quad, _mm512_set1_epi32(4 * k)));
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(3), low, high, 0xCA); // mask ? low : high
}

static inline __m128i book_tq4_0(int c) {
    return _mm_loadu_si128((const __m128i *) tq_codebook_tq4_0[c]);
}

static inline __m128i book_tq3_0(int c) {
    return _mm_set1_epi64x(tq_load_i64(tq_codebook_tq3_0[c]));
}

static inline __m128i book_tq2_1(int c) {
    return _mm_set1_epi32(tq_load_i32(tq_codebook_tq2_1[c]));
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                 \
    static void dequantize_##name(const void * x, float * y, int64_t n) {                                  \
        const tq_block_##name * block = x;                                                                 \
        __m512 book[2];                                                                                    \
        for (int c = 0; c < 2; c++) {                                                                      \
            book[c] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(book_##name(c)));                            \
        }                                                                                                  \
        for (int64_t i = 0; i < n; i += TQ_BLOCK, block++) {                                               \
            float scale[2];                                                                                \
            tq_decode_scales(block->scale, scale);                                                         \
            for (int k = 0; k < 2; k++) {                                                                  \
                const __m512 values = _mm512_mul_ps(book[block->scale[1] >> 7], _mm512_set1_ps(scale[k])); \
                _mm512_storeu_ps(y + i + 16 * k, _mm512_permutexvar_ps(indices_##name(block, k), values)); \
            }                                                                                              \
        }                                                                                                  \
    }
#include "../../types.def"
#undef TQ_TYPE

// --- dot product with q8_0 ---

// |q| * (level with the sign of q): no level is -128.
static inline __m256i dot_quads(__m256i levels, __m256i q) {
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(q), _mm256_sign_epi8(levels, q));
}

#include "x86_dot.h"

#define TIER avx512
#include "tier.inc"
