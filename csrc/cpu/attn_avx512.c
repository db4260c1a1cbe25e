// attn.h for AVX-512 with BW and VNNI.
//
// Nanoseconds for a query head and a cache row, one token, 32 / 8 heads of 128, depth 4096, tq4_0, one core of an EPYC
// 9005 that others used too. What lost:
//
//   4.9   this
//   5.7   values unpacked row by row, as AVX2 does
//   7.2   keys too: the packed words transpose in a quarter of the instructions that int16 needs
//
// And at depth 32768, where the cache is larger than the L3: 5.8 with tq_attn_row's prefetch, 7.0 without the last byte
// of a row, which half of them have in a line of its own, 8.2 from the driver in one burst, 9.3 without any.
//
// Scores and sums run at vpdpwssd's rate, two a cycle, and are half of a prefill. Counted but not built: bytes and
// vpdpbusd for the keys would take 52 instructions instead of 72 for 16 rows and a query, and round queries to 8 bits
// (-43 dB instead of -80). Bytes for the weights lose what is below 1/510 of the tile's largest: up to an eighth of a
// tile. Values made bytes with one scale for a tile's column lose rows that are small but weigh much, as a first token.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "../tq_tables.h"
#include "attn_tier.h"

#define INLINE static inline __attribute__((always_inline))
#define VECTORS (TQ_ATTN_TILE / 16) // of one 32-bit lane per row
#define TWOS (TQ_BLOCK / 2)

// --- unpacking TQ blocks ---
//
// A 32-bit lane holds two int16 of the tile: of one row (keys) or of two rows (values). It starts as the scale word of
// that row twice, or those of the two rows, and one vpermw makes the factors out of their fields. Levels come from a
// vpermw too: the table has both codebooks, and the index has c on top.

struct factors {
    __m512i of[2];    // the sub-blocks
    __m512i codebook; // c << (bits of an index)
};

INLINE struct factors decode_words(__m512i words, int bits) {
    const __m512i table = _mm512_loadu_si512(tq_attn_factors);
    struct factors f;
    f.of[0] = _mm512_permutexvar_epi16(words, table);
    f.of[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 5), table);
    f.codebook = _mm512_slli_epi16(_mm512_srli_epi16(words, 15), (unsigned) bits);
    return f;
}

// The scale words of a block of 64 rows, and the units.
INLINE void load_words(const char * const * row, size_t offset, uint16_t * words, float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        memcpy(&words[t], row[t] + offset, sizeof(uint16_t));
    }
    for (int g = 0; g < VECTORS; g++) {
        const __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (words + 16 * g)));
        const __m512i e = _mm512_and_si512(_mm512_srli_epi32(w, 10), _mm512_set1_epi32(31));
        const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(TQ_ATTN_UNIT_BIAS)), 23);
        _mm512_storeu_si512(unit + 16 * g, _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(e, e), bits));
    }
}

INLINE void find_rows(const char * rows, size_t stride, int n, size_t bytes, const char ** row) {
    for (int t = 0; t < TQ_ATTN_TILE; t++) {
        row[t] = tq_attn_row(rows, stride, n, t, bytes);
    }
}

// The 16 bytes that end with the block. Bytes in front of a row may not exist: zeros then. A row has two blocks at
// least.
INLINE __m128i load_end(const char * row, int b, int bytes) {
    const int missing = b == 0 && bytes < 16 ? 16 - bytes : 0;
    const __m128i x = _mm_loadu_si128((const __m128i *) (row + b * bytes + bytes - 16 + missing));
    return missing == 0 ? x : missing == 2 ? _mm_bslli_si128(x, 2) : _mm_bslli_si128(x, 6);
}

// Word i of these 16 bytes of 16 rows to d[i], a lane for each row.
INLINE void load_transposed(const char * const * row, int b, int bytes, __m512i d[4]) {
    __m512i x[4];
    for (int i = 0; i < 4; i++) { // 128-bit lane l: row 4 * l + i
        x[i] = _mm512_castsi128_si512(load_end(row[i], b, bytes));
        x[i] = _mm512_inserti32x4(x[i], load_end(row[4 + i], b, bytes), 1);
        x[i] = _mm512_inserti32x4(x[i], load_end(row[8 + i], b, bytes), 2);
        x[i] = _mm512_inserti32x4(x[i], load_end(row[12 + i], b, bytes), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]), high01 = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]), high23 = _mm512_unpackhi_epi32(x[2], x[3]);
    d[0] = _mm512_unpacklo_epi64(low01, low23);
    d[1] = _mm512_unpackhi_epi64(low01, low23);
    d[2] = _mm512_unpacklo_epi64(high01, high23);
    d[3] = _mm512_unpackhi_epi64(high01, high23);
}

INLINE __m512i rotate(__m512i x, int right) {
    return right == 0 ? x : _mm512_rorv_epi32(x, _mm512_set1_epi32(right & 31));
}

// Of every int16: x under the mask, y elsewhere.
INLINE __m512i choose(int mask, __m512i x, __m512i y) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16((short) mask), x, y, 0xca);
}

// Indices of the values v and v + 2, v = 4 * (p / 2) + p % 2. In tq4_0's words a byte has v and v + 16; in the others'
// the low bits of v + 8 k, the high bits of v + 4 k.
INLINE __m512i key_index(int bits, const __m512i d[4], __m512i codebook, int p) {
    const int v = 4 * (p >> 1) + (p & 1), byte = 8 * (p & 1);
    if (bits == 4) {
        return choose(15, rotate(d[v % 16 / 4], byte + 4 * (v / 16)), codebook);
    }
    const __m512i low = rotate(d[(bits == 3 ? 1 : 2) + v % 8 / 4], byte + 2 * (v / 8));
    if (bits == 2) {
        return choose(3, low, codebook);
    }
    return choose(7, choose(3, low, rotate(d[3], byte + v / 4 - 2)), codebook);
}

INLINE void load_tq_keys(int bits, int bytes, const int8_t * codebooks, const char * rows, size_t stride, int n,
                         int blocks, int16_t * tile, float * unit) {
    const __m512i levels = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *) codebooks));
    const char * row[TQ_ATTN_TILE];
    find_rows(rows, stride, n, (size_t) (blocks * bytes), row);
    for (int b = 0; b < blocks; b++) {
        uint16_t words[TQ_ATTN_TILE];
        load_words(row, (size_t) (b * bytes), words, unit + b * TQ_ATTN_TILE);
        for (int g = 0; g < VECTORS; g++) {
            const __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (words + 16 * g)));
            const struct factors f = decode_words(_mm512_or_si512(w, _mm512_slli_epi32(w, 16)), bits);
            __m512i d[4];
            load_transposed(row + 16 * g, b, bytes, d);
#pragma GCC unroll 16
            for (int p = 0; p < TWOS; p++) {
                const __m512i level = _mm512_permutexvar_epi16(key_index(bits, d, f.codebook, p), levels);
                _mm512_storeu_si512(tile + 2 * ((b * TWOS + p) * TQ_ATTN_TILE + 16 * g),
                                    _mm512_mullo_epi16(level, f.of[p / 8]));
            }
        }
    }
}

// Indices of one sub-block of two rows, a lane for each column; bits from c on are left undefined.
struct pair {
    __m512i low, high;
};

INLINE struct pair load_pair(int bits, const char * x, const char * y) {
    struct pair r = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    if (bits == 4) {
        const __m512i a = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) (x + 2)));
        const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) (y + 2)));
        r.low = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
        return r;
    }
    // lane j: the byte of value j, of x and, 16 bits higher, of y
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i of8 = _mm512_add_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(7)), _mm512_set1_epi32(0x80088000));
    const __m512i of4 = _mm512_add_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(3)), _mm512_set1_epi32(0x80048000));
    const __m512i of8y = _mm512_or_si512(of8, _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(7)), 16));
    const __m512i of4y = _mm512_or_si512(of4, _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(3)), 16));
    const __m128i low =
        _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *) (x + 2)), _mm_loadl_epi64((const __m128i *) (y + 2)));
    r.low = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(low), of8y);
    r.low = _mm512_srlv_epi32(r.low, _mm512_slli_epi32(_mm512_srli_epi32(lane, 3), 1));
    if (bits == 3) {
        int32_t h[2];
        memcpy(&h[0], x + 10, 4);
        memcpy(&h[1], y + 10, 4);
        const __m128i high = _mm_insert_epi32(_mm_cvtsi32_si128(h[0]), h[1], 1);
        r.high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(high), of4y);
        const __m512i by = _mm512_sub_epi32(_mm512_srli_epi32(lane, 2), _mm512_set1_epi32(2));
        r.high = _mm512_rorv_epi32(r.high, _mm512_and_si512(by, _mm512_set1_epi32(31)));
    }
    return r;
}

INLINE __m512i pair_index(int bits, struct pair r, __m512i codebook, int k) {
    const __m512i low = rotate(r.low, 4 * k);
    return bits == 4   ? choose(15, low, codebook)
           : bits == 3 ? choose(7, choose(3, low, rotate(r.high, 4 * k)), codebook)
                       : choose(3, low, codebook);
}

INLINE void load_tq_values(int bits, int bytes, const int8_t * codebooks, const char * rows, size_t stride, int n,
                           int blocks, int16_t * tile, float * unit) {
    const __m512i levels = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *) codebooks));
    const char * row[TQ_ATTN_TILE];
    find_rows(rows, stride, n, (size_t) (blocks * bytes), row);
    for (int b = 0; b < blocks; b++) {
        uint16_t words[TQ_ATTN_TILE];
        int32_t factor[2][TQ_ATTN_TILE / 2], codebook[TQ_ATTN_TILE / 2];
        load_words(row, (size_t) (b * bytes), words, unit + b * TQ_ATTN_TILE);
        for (int g = 0; g < TQ_ATTN_TILE / 32; g++) {
            const struct factors f = decode_words(_mm512_loadu_si512(words + 32 * g), bits);
            _mm512_storeu_si512(factor[0] + 16 * g, f.of[0]);
            _mm512_storeu_si512(factor[1] + 16 * g, f.of[1]);
            _mm512_storeu_si512(codebook + 16 * g, f.codebook);
        }
        for (int i = 0; i < TQ_ATTN_TILE / 2; i++) {
            const struct pair r = load_pair(bits, row[2 * i] + b * bytes, row[2 * i + 1] + b * bytes);
            for (int k = 0; k < 2; k++) {
                const __m512i index = pair_index(bits, r, _mm512_set1_epi32(codebook[i]), k);
                const __m512i level = _mm512_permutexvar_epi16(index, levels);
                _mm512_storeu_si512(tile + 2 * ((b * TQ_ATTN_TILE / 2 + i) * TQ_BLOCK + 16 * k),
                                    _mm512_mullo_epi16(level, _mm512_set1_epi32(factor[k][i])));
            }
        }
    }
}

// --- arithmetic ---

// out[r] = 32 sums over the twos of a tile, `stride` numbers apart, with the twos of x + r * x_stride
INLINE void multiply(int rows, int twos, const int16_t * tile, int stride, const int16_t * x, int x_stride,
                     __m512i out[TQ_ATTN_ROWS][2]) {
    for (int r = 0; r < rows; r++) {
        out[r][0] = out[r][1] = _mm512_setzero_si512();
    }
#pragma GCC unroll 2
    for (int p = 0; p < twos; p++) {
        const __m512i a = _mm512_loadu_si512(tile + stride * p), b = _mm512_loadu_si512(tile + stride * p + 32);
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, x + x_stride * r + 2 * p, sizeof(two));
            out[r][0] = _mm512_dpwssd_epi32(out[r][0], a, _mm512_set1_epi32(two));
            out[r][1] = _mm512_dpwssd_epi32(out[r][1], b, _mm512_set1_epi32(two));
        }
    }
}

INLINE void score_rows(int rows, const int16_t * q, int blocks, const int16_t * keys, const float * unit,
                       float * score) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 32) {
        __m512 sum[TQ_ATTN_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        }
        for (int b = 0; b < blocks; b++) {
            __m512i dot[TQ_ATTN_ROWS][2];
            multiply(rows, TWOS, keys + 2 * (b * TWOS * TQ_ATTN_TILE + t), 2 * TQ_ATTN_TILE, q + b * TQ_BLOCK,
                     blocks * TQ_BLOCK, dot);
            for (int r = 0; r < rows; r++) {
                for (int k = 0; k < 2; k++) {
                    const __m512 u = _mm512_loadu_ps(unit + b * TQ_ATTN_TILE + t + 16 * k);
                    sum[r][k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][k]), u, sum[r][k]);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            _mm512_storeu_ps(score + r * TQ_ATTN_TILE + t, sum[r][0]);
            _mm512_storeu_ps(score + r * TQ_ATTN_TILE + t + 16, sum[r][1]);
        }
    }
}

static void scores(const int16_t * q, int rows, int blocks, const int16_t * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows, q, blocks, keys, unit, score);
}

INLINE void accumulate_rows(int rows, const int16_t * weight, int blocks, const int16_t * values, const float * unit,
                            const float * keep, const float * add, float * acc) {
    for (int b = 0; b < blocks; b++) {
        __m512i sum[TQ_ATTN_ROWS][2];
        multiply(rows, TQ_ATTN_TILE / 2, values + b * TQ_ATTN_TILE * TQ_BLOCK, 2 * TQ_BLOCK, weight + b * TQ_ATTN_TILE,
                 blocks * TQ_ATTN_TILE, sum);
        for (int r = 0; r < rows; r++) {
            const __m512 old = _mm512_set1_ps(keep[r]), now = _mm512_set1_ps(add[r] * unit[b]);
            for (int k = 0; k < 2; k++) {
                float * at = acc + (r * blocks + b) * TQ_BLOCK + 16 * k;
                const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(at), old);
                _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][k]), now, kept));
            }
        }
    }
}

static void accumulate(const int16_t * weight, int rows, int blocks, const int16_t * values, const float * unit,
                       const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, accumulate_rows, weight, blocks, values, unit, keep, add, acc);
}

// attn_tier.h's, 16 at a time
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(TQ_EXP_LEAST));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(TQ_EXP_LOG2E)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TQ_EXP_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TQ_EXP_LN2_LOW), r);
    __m512 y = _mm512_set1_ps(TQ_EXP_5);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(TQ_EXP_4));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(TQ_EXP_3));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

static float softmax(float * score, const float * mask, const struct tq_attn_softmax * s, float * sum) {
    __m512 x[VECTORS];
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int g = 0; g < VECTORS; g++) {
        x[g] = _mm512_mul_ps(_mm512_loadu_ps(score + 16 * g), _mm512_set1_ps(s->scale));
        if (s->softcap != 0.0f) { // tanh x = 1 - 2 / (e^2x + 1)
            const __m512 one = _mm512_set1_ps(1.0f);
            const __m512 e = exponential(_mm512_min_ps(_mm512_add_ps(x[g], x[g]), _mm512_set1_ps(TQ_EXP_MOST)));
            const __m512 t = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
            x[g] = _mm512_mul_ps(t, _mm512_set1_ps(s->softcap));
        }
        x[g] = _mm512_fmadd_ps(_mm512_loadu_ps(mask + 16 * g), _mm512_set1_ps(s->slope), x[g]);
        top = _mm512_max_ps(top, x[g]);
    }
    const float most = _mm512_reduce_max_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int g = 0; g < VECTORS; g++) {
        const __m512 p = exponential(_mm512_sub_ps(x[g], _mm512_set1_ps(most)));
        _mm512_storeu_ps(score + 16 * g, p);
        total = _mm512_add_ps(total, p);
    }
    *sum = _mm512_reduce_add_ps(total);
    return most;
}

static void weights(const float * p, float steps, const float * ratio, int blocks, int16_t * weight) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(p + t), _mm512_set1_ps(steps));
        for (int i = t; i < blocks * TQ_ATTN_TILE; i += TQ_ATTN_TILE) {
            const __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_loadu_ps(ratio + i)));
            _mm256_storeu_si256((__m256i *) (weight + i), _mm512_cvtepi32_epi16(w));
        }
    }
}

static bool load_mask(const uint16_t * mask, int n, float * out) {
    const __m512 closed = _mm512_set1_ps(-INFINITY);
    unsigned open = 0;
    for (int g = 0; g < VECTORS; g++) {
        const int left = n - 16 * g;
        const __mmask16 m = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16) ((1u << left) - 1);
        const __m512 x = _mm512_mask_cvtph_ps(closed, m, _mm256_maskz_loadu_epi16(m, mask + 16 * g));
        _mm512_storeu_ps(out + 16 * g, x);
        open |= _mm512_cmp_ps_mask(x, closed, _CMP_NEQ_UQ);
    }
    return open != 0;
}

// --- the table ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                            \
    static void load_keys_##name(const char * rows, size_t stride, int n, int blocks, int16_t * tile, float * unit) { \
        int8_t codebooks[32] = {0};                                                                                   \
        memcpy(codebooks, tq_codebook_##name, sizeof(tq_codebook_##name));                                            \
        load_tq_keys(bits, bytes, codebooks, rows, stride, n, blocks, tile, unit);                                    \
    }                                                                                                                 \
    static void load_values_##name(const char * rows, size_t stride, int n, int blocks, int16_t * tile,               \
                                   float * unit) {                                                                    \
        int8_t codebooks[32] = {0};                                                                                   \
        memcpy(codebooks, tq_codebook_##name, sizeof(tq_codebook_##name));                                            \
        load_tq_values(bits, bytes, codebooks, rows, stride, n, blocks, tile, unit);                                  \
    }
#include "../types.def"
#undef TQ_TYPE

const struct tq_attn_kernels tq_attn_avx512 = {
    .base = &tq_attn_avx2,
    .load_keys = {load_keys_tq4_0, load_keys_tq3_0, load_keys_tq2_1},
    .load_values = {load_values_tq4_0, load_values_tq3_0, load_values_tq2_1},
    .load_mask = load_mask,
    .scores = scores,
    .softmax = softmax,
    .weights = weights,
    .accumulate = accumulate,
};
