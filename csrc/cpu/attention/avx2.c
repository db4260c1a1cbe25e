// attention.h for AVX2 with FMA and F16C: vpmaddwd and vpaddd stand for vpdpwssd.
#include <math.h>

#include "avx2_load.h"

#define VECTORS (TQ_ATTN_TILE / 8) // of one 32-bit lane per row

// --- arithmetic ---

INLINE __m256i add_products(__m256i sum, const int16_t * x, __m256i y) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *) x), y));
}

// out[r] = 16 sums over the twos of a tile, `stride` numbers apart, with the twos of x + r * x_stride
INLINE void multiply(int rows, int twos, const int16_t * tile, int stride, const int16_t * x, int x_stride,
                     __m256i out[TQ_ATTN_ROWS][2]) {
    for (int r = 0; r < rows; r++) {
        out[r][0] = out[r][1] = _mm256_setzero_si256();
    }
    for (int p = 0; p < twos; p++) {
        for (int r = 0; r < rows; r++) {
            const __m256i two = _mm256_set1_epi32(tq_load_i32(x + x_stride * r + 2 * p));
            out[r][0] = add_products(out[r][0], tile + stride * p, two);
            out[r][1] = add_products(out[r][1], tile + stride * p + 16, two);
        }
    }
}

INLINE void score_rows(int rows, const int16_t * q, int blocks, const int16_t * keys, const float * unit,
                       float * score) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        __m256 sum[TQ_ATTN_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        }
        for (int b = 0; b < blocks; b++) {
            __m256i dot[TQ_ATTN_ROWS][2];
            multiply(rows, TWOS, keys + 2 * (b * TWOS * TQ_ATTN_TILE + t), 2 * TQ_ATTN_TILE, q + b * TQ_BLOCK,
                     blocks * TQ_BLOCK, dot);
            for (int r = 0; r < rows; r++) {
                for (int k = 0; k < 2; k++) {
                    const __m256 u = _mm256_loadu_ps(unit + b * TQ_ATTN_TILE + t + 8 * k);
                    sum[r][k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][k]), u, sum[r][k]);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            _mm256_storeu_ps(score + r * TQ_ATTN_TILE + t, sum[r][0]);
            _mm256_storeu_ps(score + r * TQ_ATTN_TILE + t + 8, sum[r][1]);
        }
    }
}

static void scores(const void * q, int rows, int blocks, const void * keys, const float * unit, float * score) {
    TQ_ATTN_BY_ROWS(rows, score_rows, q, blocks, keys, unit, score);
}

INLINE void accumulate_rows(int rows, const int16_t * weight, int blocks, const int16_t * values, const float * unit,
                            const float * keep, const float * add, float * acc) {
    for (int d = 0; d < blocks * TQ_BLOCK; d += 16) {
        const int b = d / TQ_BLOCK;
        __m256i sum[TQ_ATTN_ROWS][2];
        multiply(rows, TQ_ATTN_TILE / 2, values + b * TQ_ATTN_TILE * TQ_BLOCK + 2 * (d % TQ_BLOCK), 2 * TQ_BLOCK,
                 weight + b * TQ_ATTN_TILE, blocks * TQ_ATTN_TILE, sum);
        for (int r = 0; r < rows; r++) {
            const __m256 old = _mm256_set1_ps(keep[r]), now = _mm256_set1_ps(add[r] * unit[b]);
            for (int k = 0; k < 2; k++) {
                float * at = acc + r * blocks * TQ_BLOCK + d + 8 * k;
                const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(at), old);
                _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][k]), now, kept));
            }
        }
    }
}

static void accumulate(const void * weight, int rows, int blocks, const void * values, const float * unit,
                       const float * keep, const float * add, float * acc) {
    TQ_ATTN_BY_ROWS(rows, accumulate_rows, weight, blocks, values, unit, keep, add, acc);
}

// tier.h's, eight at a time
INLINE __m256 exponential(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(TQ_EXP_LEAST));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(TQ_EXP_LOG2E)), 8);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TQ_EXP_LN2_HIGH), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TQ_EXP_LN2_LOW), r);
    __m256 y = _mm256_set1_ps(TQ_EXP_5);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(TQ_EXP_4));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(TQ_EXP_3));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static float softmax(float * score, const float * offset, const float * mask, const struct tq_attn_softmax * s,
                     float * sum) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int g = 0; g < VECTORS; g++) {
        __m256 x = _mm256_loadu_ps(score + 8 * g);
        x = _mm256_fmadd_ps(x, _mm256_set1_ps(s->scale), _mm256_loadu_ps(offset + 8 * g));
        if (s->softcap != 0.0f) { // tanh x = 1 - 2 / (e^2x + 1)
            const __m256 one = _mm256_set1_ps(1.0f);
            const __m256 e = exponential(_mm256_min_ps(_mm256_add_ps(x, x), _mm256_set1_ps(TQ_EXP_MOST)));
            x = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
            x = _mm256_mul_ps(x, _mm256_set1_ps(s->softcap));
        }
        x = _mm256_fmadd_ps(_mm256_loadu_ps(mask + 8 * g), _mm256_set1_ps(s->slope), x);
        _mm256_storeu_ps(score + 8 * g, x);
        top = _mm256_max_ps(top, x);
    }
    const float most = max8(top);
    __m256 total = _mm256_setzero_ps();
    for (int g = 0; g < VECTORS; g++) {
        const __m256 p = exponential(_mm256_sub_ps(_mm256_loadu_ps(score + 8 * g), _mm256_set1_ps(most)));
        _mm256_storeu_ps(score + 8 * g, p);
        total = _mm256_add_ps(total, p);
    }
    *sum = sum8(total);
    return most;
}

static float weights(const float * p, float sum, const float * ratio, int blocks, void * weight) {
    const float steps = tq_attn_word_steps(sum);
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(steps));
        const __m256 y = _mm256_mul_ps(_mm256_loadu_ps(p + t + 8), _mm256_set1_ps(steps));
        for (int i = t; i < blocks * TQ_ATTN_TILE; i += TQ_ATTN_TILE) {
            const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_loadu_ps(ratio + i)));
            const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(y, _mm256_loadu_ps(ratio + i + 8)));
            const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
            _mm256_storeu_si256((__m256i *) ((int16_t *) weight + i), both);
        }
    }
    return steps;
}

static bool load_mask(const uint16_t * mask, int n, float * out) {
    int open = 0;
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        __m128i halves = _mm_set1_epi16((short) 0xfc00);
        if (n - t >= 8) {
            halves = _mm_loadu_si128((const __m128i *) (mask + t));
        } else if (n > t) {
            memcpy(&halves, mask + t, (size_t) (n - t) * sizeof(uint16_t));
        }
        const __m256 x = _mm256_cvtph_ps(halves);
        open |= _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ));
        _mm256_storeu_ps(out + t, x);
    }
    return open != 0;
}

// Two turns at a time: eight sums, which is what registers hold beside their factors.
INLINE void dot_rows(int rows, const float * g, int dim, const float * const * turn, float * const * out) {
    for (int j = 0; j < TQ_ATTN_TURNS; j += 2) {
        __m256 sum[2][TQ_ATTN_ROWS];
        for (int r = 0; r < TQ_ATTN_ROWS; r++) {
            sum[0][r] = sum[1][r] = _mm256_setzero_ps();
        }
        for (int i = 0; i < dim; i += 8) {
            const __m256 a = _mm256_loadu_ps(turn[j] + i), b = _mm256_loadu_ps(turn[j + 1] + i);
            for (int r = 0; r < rows; r++) {
                const __m256 x = _mm256_loadu_ps(g + r * dim + i);
                sum[0][r] = _mm256_fmadd_ps(x, a, sum[0][r]);
                sum[1][r] = _mm256_fmadd_ps(x, b, sum[1][r]);
            }
        }
        for (int two = 0; two < 2; two++) {
            const __m256 * s = sum[two];
            const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
            _mm_storeu_ps(out[j + two], _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
        }
    }
}

static void offsets(const float * g, int rows, int dim, const float * const * turn, float * const * out) {
    TQ_ATTN_BY_ROWS(rows, dot_rows, g, dim, turn, out);
}

#define TIER avx2
#define OFFSETS offsets
#include "tier.inc"
