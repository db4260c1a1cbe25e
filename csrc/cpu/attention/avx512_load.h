// 64 rows of TQ or q8_0 blocks to the bytes of attention.h, 16 rows at a time.
//
// Keys transpose as packed words, so that a lane holds the indices of one row; values interleave as packed bytes, so
// that it holds a column of four rows. Then a vpermb makes 64 levels of their indices: the table holds both codebooks,
// and c is on top of the index. So is, for values, the sign of the scale, which keeps their units positive.
//
// Nanoseconds for a query head and a cache row in the L2, keys and values together, four query heads sharing a tile,
// 128 values, tq4_0, one core of an EPYC 9005: 1.5. With the scale words of 64 rows copied one by one: 2.0.
#pragma once

#include "../x86.h"
#include "tier.h"

#define FOURS (TQ_ATTN_TILE / 4) // of rows
#define UNITS 2                  // in a block

// --- rows of a cache ---

// The ends of the blocks of four rows.
INLINE __m512i load_four(struct tq_attn_rows r, int b, int bytes) {
    __m512i x = _mm512_castsi128_si512(tq_load_end(r.first, b, bytes));
    x = _mm512_inserti32x4(x, tq_load_end(r.first + r.stride, b, bytes), 1);
    x = _mm512_inserti32x4(x, tq_load_end(r.first + 2 * r.stride, b, bytes), 2);
    return _mm512_inserti32x4(x, tq_load_end(r.first + 3 * r.stride, b, bytes), 3);
}

// Word i of the 16 bytes of 16 rows to d[i], a lane for each row.
INLINE void load_transposed(struct tq_attn_rows r, int b, int bytes, __m512i d[4]) {
    __m512i x[4];
    for (int i = 0; i < 4; i++) { // 128-bit lane l: row 4 * l + i
        x[i] = load_four((struct tq_attn_rows) {r.first + r.stride * (size_t) i, 4 * r.stride, 0}, b, bytes);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]), high01 = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]), high23 = _mm512_unpackhi_epi32(x[2], x[3]);
    d[0] = _mm512_unpacklo_epi64(low01, low23);
    d[1] = _mm512_unpackhi_epi64(low01, low23);
    d[2] = _mm512_unpacklo_epi64(high01, high23);
    d[3] = _mm512_unpackhi_epi64(high01, high23);
}

// --- scale words ---

// Indices for vpermt2w: words 0 to 3 are those of four blocks in the first operand, 4 to 7 those in the second.
INLINE __m512i words_of_blocks(int bytes) {
    uint16_t index[32] = {0};
    for (int i = 0; i < 8; i++) {
        index[i] = (uint16_t) (i % 4 * bytes / 2 + i / 4 * 32);
    }
    return _mm512_loadu_si512(index);
}

// Likewise of operands [8 rows][4 blocks] each: 16 rows of block b, then of block b + 1.
INLINE __m512i rows_of_block(int b) {
    uint16_t index[32];
    for (int i = 0; i < 32; i++) {
        index[i] = (uint16_t) (i % 16 * 4 + i / 16 + b);
    }
    return _mm512_loadu_si512(index);
}

// Of four blocks at most, from b on, and 16 rows: block b + 2 * i in the lower half of words[i], the next in the upper.
INLINE void load_words(struct tq_attn_rows r, int b, int blocks, int bytes, __m512i words[2]) {
    const int n = blocks - b < 4 ? blocks - b : 4;
    const __mmask32 used = (__mmask32) ((2ull << ((n - 1) * bytes / 2)) - 1);
    __m512i eight[2];
    for (int e = 0; e < 2; e++) {
        __m128i two[4];
        for (int i = 0; i < 4; i++) {
            const char * row = tq_attn_skip(r, 8 * e + 2 * i).first + b * bytes;
            const __m512i x = _mm512_maskz_loadu_epi16(used, row), y = _mm512_maskz_loadu_epi16(used, row + r.stride);
            two[i] = _mm512_castsi512_si128(_mm512_permutex2var_epi16(x, words_of_blocks(bytes), y));
        }
        eight[e] = _mm512_inserti32x4(_mm512_castsi128_si512(two[0]), two[1], 1);
        eight[e] = _mm512_inserti32x4(_mm512_inserti32x4(eight[e], two[2], 2), two[3], 3);
    }
    for (int i = 0; i < 2; i++) {
        words[i] = _mm512_permutex2var_epi16(eight[0], rows_of_block(2 * i), eight[1]);
    }
}

// What is in the words of 16 rows of two blocks, for each sub-block. A prefix belongs above an index: of keys it is c,
// twice in 16 bits; of values c and above it the sign, which is then not in the scale.
struct scales {
    __m512i upper[UNITS]; // halves of the scales as floats; the lower ones are zero
    __m512i of_keys;
    uint8_t of_values[UNITS][2 * 16];
};

INLINE __m512i and16(__m512i x, int mask) {
    return _mm512_and_si512(x, _mm512_set1_epi16((short) mask));
}

// FORMAT.md, section 2
INLINE struct scales decode(bool values, int bits, __m512i words) {
    struct scales s;
    const __mmask32 some = _mm512_test_epi16_mask(words, _mm512_set1_epi16(31 << 10));
    const __m512i e = _mm512_srli_epi16(and16(words, 31 << 10), 3);
    const __m512i base = _mm512_add_epi16(e, _mm512_set1_epi16(TQ_CODE_BIAS << 4));
    s.of_keys = and16(_mm512_srai_epi16(words, 15), 0x0101 << bits);
    for (int k = 0; k < UNITS; k++) {
        const __m512i field = k == 0 ? words : _mm512_srli_epi16(words, 5), sign = and16(field, 16);
        s.upper[k] = _mm512_maskz_add_epi16(some, base, _mm512_slli_epi16(and16(field, 15), 4));
        if (values) {
            const __m512i above =
                bits == 4 ? _mm512_slli_epi16(sign, 1) : _mm512_srli_epi16(sign, (unsigned) (3 - bits));
            const __m256i prefix = _mm512_cvtepi16_epi8(_mm512_or_si512(s.of_keys, above));
            _mm256_storeu_si256((__m256i *) s.of_values[k], prefix);
        } else {
            s.upper[k] = _mm512_or_si512(s.upper[k], _mm512_slli_epi16(sign, 11));
        }
    }
    return s;
}

// Indices for vpermw: lanes 2 * i and 2 * i + 1 take number 16 * h + i.
INLINE __m512i twice(int h) {
    uint16_t index[32];
    for (int i = 0; i < 32; i++) {
        index[i] = (uint16_t) (16 * h + i / 2);
    }
    return _mm512_loadu_si512(index);
}

// Block h of the two, 16 rows.
INLINE void store_units(const struct scales * s, int h, float * unit) {
    for (int k = 0; k < UNITS; k++) {
        _mm512_storeu_si512(unit + k * TQ_ATTN_TILE, _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, twice(h), s->upper[k]));
    }
}

// --- indices, and levels by one vpermb ---

INLINE __m512i broadcast(const void * p) {
    int32_t x;
    memcpy(&x, p, sizeof(x));
    return _mm512_set1_epi32(x);
}

// Of 32-bit lanes, to the left by a negative count
INLINE __m512i shift(__m512i x, int right) {
    return right < 0 ? _mm512_slli_epi32(x, (unsigned) -right) : _mm512_srli_epi32(x, (unsigned) right);
}

// Of every byte: x under the mask, y elsewhere.
INLINE __m512i choose(int mask, __m512i x, __m512i y) {
    return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8((char) mask), y, 0xe2);
}

// Of the low bits of an index, and the third bit
INLINE __m512i join(int bits, __m512i low, __m512i high, __m512i prefix) {
    return choose((1 << bits) - 1, bits == 3 ? choose(3, low, high) : low, prefix);
}

// Both codebooks, after each other; then both with the other sign, or all 128 more.
INLINE __m512i load_levels(int bits, const signed char * codebooks, bool is_signed) {
    signed char level[64] = {0};
    const int n = 2 << bits;
    for (int i = 0; i < n; i++) {
        level[i] = is_signed ? codebooks[i] : (signed char) (codebooks[i] ^ -128);
        level[n + i] = (signed char) -codebooks[i];
    }
    return _mm512_loadu_si512(level);
}

// --- 16 rows of a block, the first or the second of those that s is of ---

INLINE void load_keys(int bits, int bytes, __m512i levels, struct tq_attn_rows r, int b, const struct scales * s,
                      uint8_t * tile) {
    const __m512i prefix = _mm512_permutexvar_epi16(twice(b % 2), s->of_keys);
    __m512i d[4];
    load_transposed(r, b, bytes, d);
#pragma GCC unroll 8
    for (int f = 0; f < 8; f++) { // values 4 * f to 4 * f + 3
        const __m512i low = bits == 4   ? shift(d[f % 4], 4 * (f / 4))
                            : bits == 3 ? shift(d[1 + f % 2], 2 * (f / 2))
                                        : shift(d[2 + f % 2], 2 * (f / 2));
        const __m512i index = join(bits, low, shift(d[3], f - 2), prefix);
        _mm512_storeu_si512(tile + 4 * f * TQ_ATTN_TILE, _mm512_permutexvar_epi8(index, levels));
    }
}

// Byte 4 * c + i is byte first + c % columns of 128-bit lane i, for columns c.
INLINE __m512i interleave(int first, int columns) {
    char index[64];
    for (int c = 0; c < 16; c++) {
        for (int i = 0; i < 4; i++) {
            index[4 * c + i] = (char) (16 * i + first + c % columns);
        }
    }
    return _mm512_loadu_si512(index);
}

INLINE void load_values(int bits, int bytes, __m512i levels, struct tq_attn_rows r, int b, const struct scales * s,
                        uint8_t * tile) {
    const __m512i column = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low_bytes = bits == 4 ? interleave(0, 16) : interleave(bits == 3 ? 4 : 8, 8);
    for (int i = 0; i < 4; i++) { // rows 4 * i to 4 * i + 3
        const __m512i x = load_four(tq_attn_skip(r, 4 * i), b, bytes);
        const __m512i high = _mm512_permutexvar_epi8(interleave(12, 4), x);
        __m512i low = _mm512_permutexvar_epi8(low_bytes, x);
        if (bits < 4) {
            low = _mm512_srlv_epi32(low, _mm512_slli_epi32(_mm512_srli_epi32(column, 3), 1));
        }
        for (int k = 0; k < UNITS; k++) {
            const __m512i third = _mm512_srlv_epi32(shift(high, 4 * k - 2), _mm512_srli_epi32(column, 2));
            const __m512i prefix = broadcast(s->of_values[k] + 16 * (b % 2) + 4 * i);
            const __m512i index = join(bits, shift(low, 4 * k), third, prefix);
            _mm512_storeu_si512(tile + 64 * (k * FOURS + 4 * i), _mm512_permutexvar_epi8(index, levels));
        }
    }
}

// --- tiles ---

INLINE void load_tq(bool values, int bits, int bytes, const signed char * codebooks, struct tq_attn_rows rows,
                    int blocks, uint8_t * tile, float * unit) {
    const __m512i levels = load_levels(bits, codebooks, values);
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        const struct tq_attn_rows r = tq_attn_skip(rows, t);
        tq_attn_prefetch_rows(r, 16, (size_t) (blocks * bytes));
        __m512i words[2];
        for (int two = 0; two < blocks; two += 2) {
            if (two % 4 == 0) {
                load_words(r, two, blocks, bytes, words);
            }
            const struct scales s = decode(values, bits, words[two / 2 % 2]);
            for (int b = two; b < two + 2 && b < blocks; b++) {
                store_units(&s, b - two, unit + UNITS * b * TQ_ATTN_TILE + t);
                if (values) {
                    load_values(bits, bytes, levels, r, b, &s, tile + 64 * (UNITS * b * FOURS + t / 16));
                } else {
                    load_keys(bits, bytes, levels, r, b, &s, tile + 4 * (b * 8 * TQ_ATTN_TILE + t));
                }
            }
        }
    }
}

// --- q8_0 ---

// Of 16 rows
INLINE void load_q8_0_units(struct tq_attn_rows r, int b, float * unit) {
    for (int t = 0; t < 16; t++) {
        uint16_t half;
        memcpy(&half, tq_attn_skip(r, t).first + b * (int) sizeof(tq_block_q8_0), sizeof(half));
        unit[t] = unit[TQ_ATTN_TILE + t] = _cvtsh_ss(half);
    }
}

// Rows whose blocks end with sub-block k.
INLINE struct tq_attn_rows to_sub_block(struct tq_attn_rows r, int k) {
    r.first -= TQ_SUB_BLOCK * (UNITS - 1 - k);
    return r;
}

// 16 rows of a sub-block
INLINE void load_q8_0_keys(struct tq_attn_rows r, int b, uint8_t * tile) {
    __m512i d[4];
    load_transposed(r, b, sizeof(tq_block_q8_0), d);
    for (int f = 0; f < 4; f++) {
        _mm512_storeu_si512(tile + 4 * f * TQ_ATTN_TILE, _mm512_xor_si512(d[f], _mm512_set1_epi8(-128)));
    }
}

INLINE void load_q8_0_values(struct tq_attn_rows r, int b, uint8_t * tile) {
    for (int i = 0; i < 4; i++) {
        const __m512i x = load_four(tq_attn_skip(r, 4 * i), b, sizeof(tq_block_q8_0));
        _mm512_storeu_si512(tile + 64 * 4 * i, _mm512_permutexvar_epi8(interleave(0, 16), x));
    }
}

INLINE void load_q8_0(bool values, struct tq_attn_rows rows, int blocks, uint8_t * tile, float * unit) {
    for (int t = 0; t < TQ_ATTN_TILE; t += 16) {
        const struct tq_attn_rows r = tq_attn_skip(rows, t);
        tq_attn_prefetch_rows(r, 16, (size_t) blocks * sizeof(tq_block_q8_0));
        for (int b = 0; b < blocks; b++) {
            load_q8_0_units(r, b, unit + UNITS * b * TQ_ATTN_TILE + t);
            for (int k = 0; k < UNITS; k++) {
                if (values) {
                    load_q8_0_values(to_sub_block(r, k), b, tile + 64 * ((UNITS * b + k) * FOURS + t / 16));
                } else {
                    load_q8_0_keys(to_sub_block(r, k), b, tile + 4 * ((UNITS * b + k) * 4 * TQ_ATTN_TILE + t));
                }
            }
        }
    }
}

static void load_keys_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(false, rows, blocks, tile, unit);
}

static void load_values_q8_0(struct tq_attn_rows rows, int blocks, void * tile, float * unit) {
    load_q8_0(true, rows, blocks, tile, unit);
}

// --- the loaders of the TQ types ---

#define load_tq_keys(...) load_tq(false, __VA_ARGS__)
#define load_tq_values(...) load_tq(true, __VA_ARGS__)

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    TQ_ATTN_LOADERS(name, load_tq_keys, load_tq_values, bits, bytes, tq_codebook_##name[0])
#include "../../types.def"
#undef TQ_TYPE
