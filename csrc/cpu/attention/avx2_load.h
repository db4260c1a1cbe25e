// 64 rows to the words of attention.h. TQ blocks are unpacked eight rows at a time, keys after their packed words were
// transposed; q8_0 and f16 row by row.
//
// Nanoseconds for a query head and a cache row, 32 / 8 heads of 128, tq4_0, to load keys and values; one core of an
// EPYC 9005 that others used too. What lost:
//
//   1.23 + 1.39   this
//   2.23 + 1.67   row by row to int16, then transposed or interleaved
//          1.45   values interleaved as bytes, widened by vpunpckbw, multiplied by vpmulhw
//          1.55   scales of values decoded block by block: they are read back too soon
//   1.26 + 1.45   the second codebook by vpand and vpxor instead of vpblendvb
//   1.37 + 1.54   signed factors of levels + 128, less 128 * factor, instead of vpsignb
#pragma once

#include "../half.h"
#include "../x86.h"
#include "tier.h"

#define TWOS (TQ_BLOCK / 2)

// --- q8_0 and f16: row by row, 32 values to int16, in order; returns the unit ---

INLINE float unpack_q8_0(const char * block, __m256i out[2]) {
    const tq_block_q8_0 * x = (const tq_block_q8_0 *) block;
    out[0] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) x->qs));
    out[1] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) x->qs + 1));
    return _cvtsh_ss(tq_load_u16(x));
}

INLINE float max8(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

INLINE float unpack_f16(const char * block, __m256i out[2]) {
    const __m256 limit = _mm256_set1_ps(65504.0f), magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 x[4], top = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) block + i));
        x[i] = _mm256_min_ps(_mm256_max_ps(x[i], _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit); // NaN goes too
        top = _mm256_max_ps(top, _mm256_and_ps(x[i], magnitude));
    }
    const float most = max8(top);
    const __m256 inverse = _mm256_set1_ps(most > 0.0f ? TQ_ATTN_NUMBER_MAX / most : 0.0f);
    for (int k = 0; k < 2; k++) {
        const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(x[2 * k], inverse));
        const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(x[2 * k + 1], inverse));
        out[k] = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    }
    return most / TQ_ATTN_NUMBER_MAX;
}

INLINE void transpose(__m256i x[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

typedef float (*unpack_fn)(const char * block, __m256i out[2]);

INLINE void load_keys(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                      float * unit) {
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        const char * row[8];
        tq_attn_prefetch_rows(tq_attn_skip(rows, t), 8, (size_t) blocks * bytes);
        for (int i = 0; i < 8; i++) {
            row[i] = tq_attn_skip(rows, t + i).first;
        }
        for (int b = 0; b < blocks; b++) {
            __m256i half[2][8];
            for (int i = 0; i < 8; i++) {
                __m256i x[2];
                unit[b * TQ_ATTN_TILE + t + i] = unpack(row[i] + bytes * (size_t) b, x);
                half[0][i] = _mm256_shuffle_epi8(x[0], order);
                half[1][i] = _mm256_shuffle_epi8(x[1], order);
            }
            for (int k = 0; k < 2; k++) {
                transpose(half[k]);
                for (int p = 0; p < 8; p++) {
                    int16_t * at = tile + 2 * ((b * TWOS + 8 * k + p) * TQ_ATTN_TILE + t);
                    _mm256_storeu_si256((__m256i *) at, half[k][p]);
                }
            }
        }
    }
}

INLINE void load_values(unpack_fn unpack, size_t bytes, struct tq_attn_rows rows, int blocks, int16_t * tile,
                        float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 2) {
        tq_attn_prefetch_rows(tq_attn_skip(rows, t), 2, (size_t) blocks * bytes);
        const char * even = tq_attn_skip(rows, t).first;
        const char * odd = even + rows.stride;
        for (int b = 0; b < blocks; b++) {
            __m256i x[2], y[2];
            unit[b * TQ_ATTN_TILE + t] = unpack(even + bytes * (size_t) b, x);
            unit[b * TQ_ATTN_TILE + t + 1] = unpack(odd + bytes * (size_t) b, y);
            for (int k = 0; k < 2; k++) {
                const __m256i low = _mm256_unpacklo_epi16(x[k], y[k]), high = _mm256_unpackhi_epi16(x[k], y[k]);
                __m256i * at = (__m256i *) (tile + 2 * ((b * TQ_ATTN_TILE + t) / 2 * TQ_BLOCK + 16 * k));
                _mm256_storeu_si256(at, _mm256_permute2x128_si256(low, high, 0x20));
                _mm256_storeu_si256(at + 1, _mm256_permute2x128_si256(low, high, 0x31));
            }
        }
    }
}

// --- TQ: eight rows at a time ---

INLINE __m256i and8(__m256i x, int mask) {
    return _mm256_and_si256(x, _mm256_set1_epi8((char) mask));
}

// The ends of the blocks of two rows.
INLINE __m256i load_two(const char * x, const char * y, int b, int bytes) {
    return _mm256_set_m128i(tq_load_end(y, b, bytes), tq_load_end(x, b, bytes));
}

// Word i of the 16 bytes of eight rows to d[i], a lane for each row.
INLINE void load_transposed(struct tq_attn_rows r, int b, int bytes, __m256i d[4]) {
    __m256i x[4];
    for (int i = 0; i < 4; i++) {
        x[i] = load_two(tq_attn_skip(r, i).first, tq_attn_skip(r, i + 4).first, b, bytes);
    }
    const __m256i low01 = _mm256_unpacklo_epi32(x[0], x[1]), high01 = _mm256_unpackhi_epi32(x[0], x[1]);
    const __m256i low23 = _mm256_unpacklo_epi32(x[2], x[3]), high23 = _mm256_unpackhi_epi32(x[2], x[3]);
    d[0] = _mm256_unpacklo_epi64(low01, low23);
    d[1] = _mm256_unpackhi_epi64(low01, low23);
    d[2] = _mm256_unpacklo_epi64(high01, high23);
    d[3] = _mm256_unpackhi_epi64(high01, high23);
}

// The scale words of eight rows, in the lower half of a lane for each.
INLINE __m256i load_words(struct tq_attn_rows r, int at) {
    int32_t x[8];
    for (int i = 0; i < 8; i++) {
        x[i] = tq_load_i32(tq_attn_skip(r, i).first + at);
    }
    return _mm256_setr_epi32(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]);
}

// What is in them, the same in both halves of a lane.
struct scales {
    __m256i factor[2]; // of a sub-block, without its sign
    __m256i sign[2];   // 1 or -1 in every byte
    __m256i c;         // as indices want it: a mask of bytes, or bits 2 and 6
};

// FORMAT.md, section 2
INLINE struct scales decode(int bits, __m256i words, float * unit) {
    const __m256i twice =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
    const __m256i factors =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30));
    words = _mm256_shuffle_epi8(words, twice);
    const __m256i e = _mm256_and_si256(_mm256_srli_epi32(words, 3), _mm256_set1_epi32(31 << 23));
    const __m256i power = _mm256_add_epi32(e, _mm256_set1_epi32(TQ_ATTN_UNIT_BIAS << 23));
    _mm256_storeu_si256((__m256i *) unit, _mm256_sign_epi32(power, e)); // 0 if e is

    const __m256i c = _mm256_srai_epi16(words, 15);
    struct scales s = {.c = bits == 4 ? c : and8(c, 0x44)};
    for (int k = 0; k < 2; k++) {
        const __m256i field = _mm256_and_si256(k == 0 ? words : _mm256_srli_epi16(words, 5), _mm256_set1_epi16(15));
        const __m256i negative = _mm256_srai_epi16(_mm256_slli_epi16(words, k == 0 ? 11 : 6), 15);
        s.factor[k] = _mm256_shuffle_epi8(factors, _mm256_or_si256(field, _mm256_set1_epi16((short) 0x8000)));
        s.sign[k] = _mm256_or_si256(negative, _mm256_set1_epi8(1));
    }
    return s;
}

// All indices become nibbles, those of values v and v + 16 in a byte, as they are in tq4_0. Those of the other types
// have c in bit 2 and the third bit on top, so that one table takes both codebooks.
INLINE void load_tables(int bits, const signed char * codebooks, __m256i table[2]) {
    const __m128i * from = (const __m128i *) codebooks;
    const __m128i first = bits == 2   ? _mm_loadl_epi64(from)
                          : bits == 3 ? _mm_shuffle_epi32(_mm_loadu_si128(from), 0xd8)
                                      : _mm_loadu_si128(from);
    table[0] = _mm256_broadcastsi128_si256(first);
    table[1] = bits == 4 ? _mm256_broadcastsi128_si256(_mm_loadu_si128(from + 1)) : table[0];
}

// Of the low bits and the third bit, in their places; c is yet to come.
INLINE __m256i nibbles(int bits, __m256i low, __m256i high) {
    return bits == 3 ? _mm256_or_si256(and8(low, 0x33), and8(high, 0x88)) : and8(low, 0x33);
}

INLINE __m256i add_c(int bits, __m256i nibbles, __m256i c) {
    return bits == 4 ? nibbles : _mm256_or_si256(nibbles, c);
}

// The numbers of sub-block k: those of even bytes, then those of odd bytes.
INLINE void multiply_levels(int bits, const __m256i table[2], __m256i nibbles, int k, __m256i factor, __m256i sign,
                            __m256i c, __m256i out[2]) {
    const __m256i index = and8(k == 0 ? nibbles : _mm256_srli_epi16(nibbles, 4), 15);
    __m256i level = _mm256_shuffle_epi8(table[0], index);
    if (bits == 4) {
        level = _mm256_blendv_epi8(level, _mm256_shuffle_epi8(table[1], index), c);
    }
    level = _mm256_sign_epi8(level, sign);
    out[0] = _mm256_maddubs_epi16(factor, level);
    out[1] = _mm256_maddubs_epi16(_mm256_slli_epi16(factor, 8), level);
}

INLINE void load_tq_keys(int bits, int bytes, const signed char * codebooks, struct tq_attn_rows rows, int blocks,
                         int16_t * tile, float * unit) {
    __m256i table[2];
    load_tables(bits, codebooks, table);
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        const struct tq_attn_rows r = tq_attn_skip(rows, t);
        tq_attn_prefetch_rows(r, 8, (size_t) (blocks * bytes));
        for (int b = 0; b < blocks; b++) {
            __m256i d[4];
            load_transposed(r, b, bytes, d);
            const __m256i words = bits == 4 ? load_words(r, b * bytes) : _mm256_srli_epi32(d[bits == 3 ? 0 : 1], 16);
            const struct scales s = decode(bits, words, unit + b * TQ_ATTN_TILE + t);
            for (int i = 0; i < 4; i++) { // values 4 * i to 4 * i + 3 of each sub-block
                const __m256i low = _mm256_srli_epi32(d[(bits == 3 ? 1 : 2) + i % 2], i / 2 * 2);
                const __m256i high = _mm256_slli_epi32(d[3], 3 - i);
                const __m256i x = add_c(bits, bits == 4 ? d[i] : nibbles(bits, low, high), s.c);
                for (int k = 0; k < 2; k++) {
                    __m256i out[2];
                    multiply_levels(bits, table, x, k, s.factor[k], s.sign[k], s.c, out);
                    int16_t * at = tile + 2 * ((b * TWOS + 8 * k + 2 * i) * TQ_ATTN_TILE + t);
                    _mm256_storeu_si256((__m256i *) at, out[0]);
                    _mm256_storeu_si256((__m256i *) (at + 2 * TQ_ATTN_TILE), out[1]);
                }
            }
        }
    }
}

// Numbers of rows 2 * i and 2 * i + 1, each in a half of every lane: they are neighbours in memory.
INLINE __m256i broadcast_two(const __m256i * x, int i) {
    return _mm256_set1_epi32(tq_load_i32((const char *) x + 8 * i + 2));
}

INLINE void load_tq_values(int bits, int bytes, const signed char * codebooks, struct tq_attn_rows rows, int blocks,
                           int16_t * tile, float * unit) {
    // Columns c and c + 8 of a row, then of the next one, go to lane c.
    const int f = bits == 3 ? 1 : 2;
    const __m256i words = bits == 4 ? _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)
                                    : _mm256_setr_epi32(f, f, f + 4, f + 4, f + 1, f + 1, f + 5, f + 5);
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i table[2];
    load_tables(bits, codebooks, table);
    for (int t = 0; t < TQ_ATTN_TILE; t += 8) {
        const struct tq_attn_rows r = tq_attn_skip(rows, t);
        tq_attn_prefetch_rows(r, 8, (size_t) (blocks * bytes));
        struct scales scales[TQ_ATTN_HEAD_MAX / TQ_BLOCK];
        for (int b = 0; b < blocks; b++) {
            scales[b] = decode(bits, load_words(r, b * bytes), unit + b * TQ_ATTN_TILE + t);
        }
        for (int b = 0; b < blocks; b++) {
            const struct scales * s = &scales[b];
            for (int i = 0; i < 4; i++) {
                const char * row = tq_attn_skip(r, 2 * i).first;
                const __m256i both = load_two(row, row + r.stride, b, bytes);
                __m256i x = _mm256_permutevar8x32_epi32(both, words);
                if (bits < 4) {
                    const __m256i high = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(3, 3, 7, 7, 3, 3, 7, 7));
                    x = nibbles(bits, _mm256_srlv_epi32(x, _mm256_setr_epi32(0, 2, 0, 2, 0, 2, 0, 2)),
                                _mm256_sllv_epi32(high, _mm256_setr_epi32(3, 1, 3, 1, 2, 0, 2, 0)));
                }
                const __m256i c = broadcast_two(&s->c, i);
                x = add_c(bits, _mm256_shuffle_epi8(x, order), c);
                for (int k = 0; k < 2; k++) {
                    __m256i out[2];
                    multiply_levels(bits, table, x, k, broadcast_two(&s->factor[k], i), broadcast_two(&s->sign[k], i),
                                    c, out);
                    __m256i * at = (__m256i *) (tile + (b * TQ_ATTN_TILE + t + 2 * i) * TQ_BLOCK + 32 * k);
                    _mm256_storeu_si256(at, out[0]);
                    _mm256_storeu_si256(at + 1, out[1]);
                }
            }
        }
    }
}

// --- the loaders ---

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    TQ_ATTN_LOADERS(name, load_tq_keys, load_tq_values, bits, bytes, tq_codebook_##name[0])
#include "../../types.def"
#undef TQ_TYPE
TQ_ATTN_LOADERS(f16, load_keys, load_values, unpack_f16, TQ_BLOCK * 2)
TQ_ATTN_LOADERS(q8_0, load_keys, load_values, unpack_q8_0, sizeof(tq_block_q8_0))
