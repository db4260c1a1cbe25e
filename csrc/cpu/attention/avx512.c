// attention.h for AVX-512 with VBMI and VNNI. TQ and q8_0 are bytes, for vpdpbusd; f16 is words, for vpdpwssd.
//
// Of the factors of vpdpbusd, the first is unsigned:
//
//   keys     [sub-block][value / 4][row][4]    128 more, unsigned
//   values   [sub-block][place][column][4]     signed, of rows 4 * f to 4 * f + 3 at place 4 * (f % 4) + f / 4
//   weights  [sub-block][place][4]             unsigned, in the order that packs of lanes leave
//
// Nanoseconds for a query head and a cache row, one token, 32 / 8 heads of 128, depth 4096, tq4_0, one core of an EPYC
// 9005: 3.5. What lost:
//
// - Words for all types: 5.3. Their queries and weights round a hundred times finer, which the KLD of a model does not
//   show. In a prefill, where unpacking costs nothing, they take 2.0 instead of 1.55.
// - Weights in steps of 1/255 of the largest softmax weight, not of the largest product with a unit: 4 dB more error.
// - A pattern added before weights are rounded, so that many small ones are not lost together: more error than it
//   removes.
#include "avx512_load.h"

#include <math.h>

#define VECTORS (TQ_ATTN_TILE / 16) // of one 32-bit lane per row

// --- products ---

// Sums over the groups of two rows or columns of a tile, 16 lanes each, with the groups of x + r * x_stride. Of bytes,
// those of the tile are the unsigned ones.
INLINE void multiply(bool bytes, int rows, int groups, const char * tile, int stride, const char * x, int x_stride,
                     __m512i out[TQ_ATTN_ROWS][2]) {
#pragma GCC unroll 4
    for (int p = 0; p < groups; p++) {
        const __m512i a = _mm512_loadu_si512(tile + stride * p), b = _mm512_loadu_si512(tile + stride * p + 64);
        for (int r = 0; r < rows; r++) {
            const __m512i y = broadcast(x + x_stride * r + 4 * p);
            out[r][0] = bytes ? _mm512_dpbusd_epi32(out[r][0], a, y) : _mm512_dpwssd_epi32(out[r][0], a, y);
            out[r][1] = bytes ? _mm512_dpbusd_epi32(out[r][1], b, y) : _mm512_dpwssd_epi32(out[r][1], b, y);
        }
    }
}

INLINE void score_rows(int rows, bool bytes, const char * q, int blocks, const char * keys, const float * unit,
                       float * score) {
    const int groups = bytes ? TQ_SUB_BLOCK / 4 : TQ_BLOCK / 2, units = bytes ? UNITS * blocks : blocks;
    const int stride = TQ_ATTN_QUERY_BYTES(blocks);
    for (int t = 0; t < TQ_ATTN_TILE; t += 32) {
        __m512 sum[TQ_ATTN_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        }
        for (int u = 0; u < units; u++) {
            __m512i dot[TQ_ATTN_ROWS][2];
            for (int r = 0; r < rows; r++) {
                dot[r][0] = dot[r][1] =
                    bytes ? broadcast(q + stride * r + TQ_BLOCK * blocks + 4 * u) : _mm512_setzero_si512();
            }
            multiply(bytes, rows, groups, keys + 4 * (u * groups * TQ_ATTN_TILE + t), 4 * TQ_ATTN_TILE,
                     q + 4 * u * groups, stride, dot);
            for (int r = 0; r < rows; r++) {
                for (int k = 0; k < 2; k++) {
                    const __m512 scale = _mm512_loadu_ps(unit + u * TQ_ATTN_TILE + t + 16 * k);
                    sum[r][k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][k]), scale, sum[r][k]);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            _mm512_storeu_ps(score + r * TQ_ATTN_TILE + t, sum[r][0]);
            _mm512_storeu_ps(score + r * TQ_ATTN_TILE + t + 16, sum[r][1]);
        }
    }
}

// acc = keep * acc + add * sum
INLINE void add_sum(float * acc, float keep, float add, __m512i sum) {
    const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(acc), _mm512_set1_ps(keep));
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(add), kept));
}

INLINE void accumulate_words(int rows, const char * weight, int blocks, const char * values, const float * unit,
                             const float * keep, const float * add, float * acc) {
    const int groups = TQ_ATTN_TILE / 2;
    for (int b = 0; b < blocks; b++) {
        __m512i sum[TQ_ATTN_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        }
        multiply(false, rows, groups, values + 4 * b * groups * TQ_BLOCK, 4 * TQ_BLOCK, weight + 4 * b * groups,
                 TQ_ATTN_WEIGHT_BYTES(blocks), sum);
        for (int r = 0; r < rows; r++) {
            add_sum(acc + (r * blocks + b) * TQ_BLOCK, keep[r], add[r] * unit[b], sum[r][0]);
            add_sum(acc + (r * blocks + b) * TQ_BLOCK + 16, keep[r], add[r] * unit[b], sum[r][1]);
        }
    }
}

INLINE void accumulate_bytes(int rows, const char * weight, int blocks, const char * values, const float * unit,
                             const float * keep, const float * add, float * acc) {
    for (int b = 0; b < blocks; b++) {
        __m512i sum[TQ_ATTN_ROWS][UNITS];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        }
#pragma GCC unroll 4
        for (int f = 0; f < FOURS; f++) {
            for (int k = 0; k < UNITS; k++) {
                const __m512i v = _mm512_loadu_si512(values + 64 * ((UNITS * b + k) * FOURS + f));
                for (int r = 0; r < rows; r++) {
                    const char * w = weight + r * TQ_ATTN_WEIGHT_BYTES(blocks) + 4 * ((UNITS * b + k) * FOURS + f);
                    sum[r][k] = _mm512_dpbusd_epi32(sum[r][k], broadcast(w), v);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            for (int k = 0; k < UNITS; k++) {
                add_sum(acc + (r * blocks + b) * TQ_BLOCK + 16 * k, keep[r], add[r] * unit[UNITS * b + k], sum[r][k]);
            }
        }
    }
}

static void scores(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows, false, q, blocks, keys, unit, score);
}

static void score_bytes(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows, true, q, blocks, keys, unit, score);
}

static void accumulate(const void * weight, int rows, int blocks, const void * values, const float * unit,
                       const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, accumulate_words, weight, blocks, values, unit, keep, add, acc);
}

static void add_bytes(const void * weight, int rows, int blocks, const void * values, const float * unit,
                      const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, accumulate_bytes, weight, blocks, values, unit, keep, add, acc);
}

static float weights(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    const float steps = tq_attn_word_steps(sum);
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(p + t), _mm512_set1_ps(steps));
        for (int i = t; i < blocks * TQ_ATTN_TILE; i += TQ_ATTN_TILE) {
            const __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_loadu_ps(ratio + i)));
            _mm256_storeu_si256((__m256i *) ((int16_t *) weight + i), _mm512_cvtepi32_epi16(w));
        }
    }
    return steps;
}

static float weigh_bytes(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    (void) sum;
    const float * peak = ratio + UNITS * blocks * TQ_ATTN_TILE;
    __m512 x[VECTORS], top = _mm512_setzero_ps();
    for (int g = 0; g < VECTORS; g++) {
        x[g] = _mm512_loadu_ps(p + 16 * g);
        top = _mm512_max_ps(top, _mm512_mul_ps(x[g], _mm512_loadu_ps(peak + 16 * g)));
    }
    const float most = _mm512_reduce_max_ps(top), steps = most > 0.0f ? TQ_ATTN_WEIGHT_BYTE / most : 1.0f;
    for (int g = 0; g < VECTORS; g++) {
        x[g] = _mm512_mul_ps(x[g], _mm512_set1_ps(steps));
    }
    for (int u = 0; u < UNITS * blocks; u++) {
        __m512i w[VECTORS];
        for (int g = 0; g < VECTORS; g++) {
            w[g] = _mm512_cvtps_epi32(_mm512_mul_ps(x[g], _mm512_loadu_ps(ratio + u * TQ_ATTN_TILE + 16 * g)));
        }
        const __m512i first = _mm512_packs_epi32(w[0], w[1]), second = _mm512_packs_epi32(w[2], w[3]);
        _mm512_storeu_si512((char *) weight + u * TQ_ATTN_TILE, _mm512_packus_epi16(first, second));
    }
    return steps;
}

// --- softmax ---

// tier.h's, 16 at a time
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

static float softmax(float * score, const float * offset, const float * mask, const struct tq_attn_softmax * s,
                     float * sum) {
    __m512 x[VECTORS];
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int g = 0; g < VECTORS; g++) {
        x[g] = _mm512_loadu_ps(score + 16 * g);
        x[g] = _mm512_fmadd_ps(x[g], _mm512_set1_ps(s->scale), _mm512_loadu_ps(offset + 16 * g));
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

// --- centred keys ---

// 16 sums at once, and their halves added to each other as in a transposition.
INLINE void dot_rows(int rows, const float * g, int dim, const float * const * turn, float * const * out) {
    __m512 sum[TQ_ATTN_TURNS][TQ_ATTN_ROWS];
    for (int j = 0; j < TQ_ATTN_TURNS; j++) {
        for (int r = 0; r < TQ_ATTN_ROWS; r++) {
            sum[j][r] = _mm512_setzero_ps();
        }
    }
    for (int i = 0; i < dim; i += 16) {
        for (int r = 0; r < rows; r++) {
            const __m512 x = _mm512_loadu_ps(g + r * dim + i);
            for (int j = 0; j < TQ_ATTN_TURNS; j++) {
                sum[j][r] = _mm512_fmadd_ps(x, _mm512_loadu_ps(turn[j] + i), sum[j][r]);
            }
        }
    }
    for (int j = 0; j < TQ_ATTN_TURNS; j++) {
        __m256 half[TQ_ATTN_ROWS];
        for (int r = 0; r < TQ_ATTN_ROWS; r++) {
            half[r] = _mm256_add_ps(_mm512_castps512_ps256(sum[j][r]), _mm512_extractf32x8_ps(sum[j][r], 1));
        }
        const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
        _mm_storeu_ps(out[j], _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    }
}

static void offsets(const float * g, int rows, int dim, const float * const * turn, float * const * out) {
    TQ_ATTN_BY_ROWS(rows, dot_rows, g, dim, turn, out);
}

// Whole stores: what a masked one wrote, the load in softmax would have to wait for.
static void fill(float * out, int first, int end, float x) {
    const uint64_t rows = (end < 64 ? (UINT64_C(1) << end) : 0) - (UINT64_C(1) << first);
    for (int i = 0; i < VECTORS; i++) {
        const __m512 old = _mm512_loadu_ps(out + 16 * i);
        _mm512_storeu_ps(out + 16 * i, _mm512_mask_mov_ps(old, (__mmask16) (rows >> 16 * i), _mm512_set1_ps(x)));
    }
}

#define TIER avx512
#define HAS_BYTES
#define OFFSETS offsets
#define FILL fill
#include "tier.inc"
