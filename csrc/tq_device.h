// FORMAT.md for devices: encoder, decoder, and the look-ups of the attention kernels, in plain C arithmetic on one
// lane's share of a block. CUDA and HIP compile it as it is, and so does a C compiler: tests/device_driver.c plays the
// lanes on the host and compares bytes, so that what a GPU does without one is proven everywhere.
//
//   TQ_FN             storage class of a function
//   TQ_TABLE          storage class of the codebooks
//   TQ_MUL(a, b)      a product that is never contracted into a fused multiply-add
//   TQ_PRMT(a, b, s)  nibble i of s, at most 7, picks byte i of the result among the bytes of a (0-3) and b (4-7);
//                     bits of s above the 16th do not matter
//   TQ_BITS(f), TQ_FLOAT(u)   the bits of a float, and back
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#    define TQ_FN static __device__ __forceinline__
#    define TQ_TABLE static constexpr __constant__
#    define TQ_MUL(a, b) __fmul_rn(a, b)
#    if defined(__HIPCC__)
#        define TQ_PRMT(a, b, s) __byte_perm(a, b, s)
#    else
#        define TQ_PRMT(a, b, s) tq_cuda_prmt(a, b, s)
static __device__ __forceinline__ unsigned tq_cuda_prmt(unsigned a, unsigned b, unsigned s) {
    unsigned r; // __byte_perm masks its selector first
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(s));
    return r;
}
#    endif
#    define TQ_BITS(f) __float_as_uint(f)
#    define TQ_FLOAT(u) __uint_as_float(u)
// |f| < 2^22: adding 1.5 * 2^23 rounds to an integer in the low bits, four times as fast as the conversion
#    define TQ_RINT(f) (__float_as_int(__fadd_rn(f, 12582912.0f)) - 0x4B400000)
#else
#    include <math.h>
#    include <string.h>
#    define TQ_FN static inline
#    define TQ_MUL(a, b) ((a) * (b)) // the file is compiled without contraction
#    define TQ_PRMT(a, b, s) tq_host_prmt(a, b, s)
#    define TQ_BITS(f) tq_host_bits(f)
#    define TQ_FLOAT(u) tq_host_float(u)
#    define TQ_RINT(f) ((int) rintf(f))

static inline unsigned tq_host_bits(float f) {
    unsigned u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

static inline float tq_host_float(unsigned u) {
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline unsigned tq_host_prmt(unsigned a, unsigned b, unsigned s) {
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned pick = s >> 4 * i & 7;
        r |= ((pick < 4 ? a >> 8 * pick : b >> 8 * (pick - 4)) & 255) << 8 * i;
    }
    return r;
}
#endif

#include "tq_blocks.h"
#include "tq_tables.h"

#define TQ_LANES 32 // share the work on a block

// --- scales ---

TQ_FN float tq_dev_scale_of(int code) {
    return TQ_FLOAT((unsigned) (code + TQ_CODE_BIAS) << 20);
}

// 1 / tq_dev_scale_of(code), correctly rounded, with no division that a compiler may approximate: the scale is 8 + m
// times a power of two, and only m decides the mantissa.
TQ_FN float tq_dev_inverse_scale(int code) {
    const int m = code & 7;
    const float inverse = m == 0   ? 1.0f / 8
                          : m == 1 ? 1.0f / 9
                          : m == 2 ? 1.0f / 10
                          : m == 3 ? 1.0f / 11
                          : m == 4 ? 1.0f / 12
                          : m == 5 ? 1.0f / 13
                          : m == 6 ? 1.0f / 14
                                   : 1.0f / 15;
    return TQ_FLOAT(TQ_BITS(inverse) + ((unsigned) (26 - (code >> 3)) << 23));
}

// Scale k of a scale word.
TQ_FN float tq_dev_scale(unsigned word, int k) {
    const unsigned field = word >> 5 * k, e = word >> 10 & 31;
    const unsigned bits = (8 * e + (field & 15) + TQ_CODE_BIAS) << 20 | (field & 16) << 27;
    return TQ_FLOAT(e == 0 ? 0 : bits);
}

// --- decoder ---

// Index of value v; body is the bytes after the scale word.
TQ_FN unsigned tq_dev_index(int bits, const unsigned char * body, int v) {
    if (bits == 4) {
        return (unsigned) (body[v & 15] >> (v >> 4) * 4) & 15;
    }
    const unsigned low = (unsigned) (body[v & 7] >> (v >> 3) * 2) & 3;
    return bits == 2 ? low : low | ((unsigned) body[8 + (v & 3)] >> (v >> 2) & 1u) << 2;
}

TQ_FN float tq_dev_value(int bits, const signed char * books, const unsigned char * block, int v) {
    const unsigned word = block[0] | (unsigned) block[1] << 8;
    const int level = books[(int) (word >> 15 << bits) + (int) tq_dev_index(bits, block + 2, v)];
    return TQ_MUL(tq_dev_scale(word, v >> 4), (float) level);
}

// --- encoder ---
// Every lane prices one candidate for both sub-blocks: lane = 16 * codebook + 2 * number of the code + sign.

typedef struct {
    int bits;
    int count;
    float start;
} tq_dev_spec;

// What a lane knows of a candidate; `order` decides between equal prices.
typedef struct {
    int code;
    int order;
    float price;
} tq_dev_choice;

// FORMAT.md 4.1.
TQ_FN float tq_dev_clean(float x) {
    const unsigned magnitude = TQ_BITS(x) & 0x7FFFFFFF;
    const float limited = magnitude > TQ_BITS(TQ_MAGNITUDE_MAX) ? TQ_MAGNITUDE_MAX : TQ_FLOAT(magnitude);
    return magnitude > 0x7F800000 ? 0.0f : TQ_FLOAT(TQ_BITS(limited) | (TQ_BITS(x) & 0x80000000));
}

// The number of neighbouring pairs of levels whose midpoint, in `steps` of a level, is <= v.
TQ_FN int tq_dev_nearest(int bits, const signed char * book, int steps, int v) {
    int index = 0;
    for (int half = 1 << (bits - 1); half > 0; half >>= 1) {
        index += steps * (book[index + half - 1] + book[index + half]) <= 2 * v ? half : 0;
    }
    return index;
}

// `level[v + 128]` is the level nearest to v, for -128 <= v <= 127; past either end the level is the outermost one.
TQ_FN float tq_dev_price(const float * x, int code, int negative, const signed char * level) {
    const float scale = tq_dev_scale_of(code), inverse = tq_dev_inverse_scale(code);
    int error = 0;
    for (int i = 0; i < TQ_SUB_BLOCK; i++) {
        const int t = TQ_RINT(TQ_MUL(x[i], inverse));
        const int v = negative ? -t : t;
        const int d = v - level[(v < -128 ? -128 : v > 127 ? 127 : v) + 128];
        error += d * d;
    }
    return TQ_MUL(TQ_MUL(scale, scale), (float) error);
}

TQ_FN tq_dev_choice tq_dev_candidate(tq_dev_spec s, const float * x, float amax, int lane, const signed char * level) {
    tq_dev_choice c = {0, lane, 3.0e38f}; // dearer than any price
    const int k = lane >> 1 & 7;
    if (k < s.count) {
        const int code = ((int) TQ_BITS(TQ_MUL(amax, s.start)) >> 20) - TQ_CODE_BIAS + k;
        c.code = code < TQ_CODE_MIN ? TQ_CODE_MIN : code > TQ_CODE_MAX ? TQ_CODE_MAX : code;
        c.price = tq_dev_price(x, c.code, lane & 1, level);
    }
    return c;
}

TQ_FN int tq_dev_is_better(tq_dev_choice a, tq_dev_choice b) {
    return a.price < b.price || (a.price == b.price && a.order < b.order);
}

// FORMAT.md 4.3 for the two winners under one codebook: the exponent; a winner that it cannot reach is replaced.
TQ_FN int tq_dev_settle(const float * x, tq_dev_choice pair[2], const signed char * level) {
    const int top = pair[0].code > pair[1].code ? pair[0].code : pair[1].code;
    const int e = (top >> 3) - 1 < 1 ? 1 : (top >> 3) - 1;
    for (int k = 0; k < 2; k++) {
        if (pair[k].code < 8 * e) {
            const float positive = tq_dev_price(x + TQ_SUB_BLOCK * k, 8 * e, 0, level);
            const float negative = tq_dev_price(x + TQ_SUB_BLOCK * k, 8 * e, 1, level);
            pair[k].code = 8 * e;
            pair[k].order = negative < positive;
            pair[k].price = negative < positive ? negative : positive;
        }
    }
    return e;
}

TQ_FN unsigned tq_dev_word(int e, int book, const tq_dev_choice pair[2]) {
    unsigned word = (unsigned) (e << 10 | book << 15);
    for (int k = 0; k < 2; k++) {
        word |= ((unsigned) (pair[k].code - 8 * e) | (unsigned) (pair[k].order & 1) << 4) << 5 * k;
    }
    return word;
}

// FORMAT.md 4.4 for a value.
TQ_FN int tq_dev_assign(int bits, float x, tq_dev_choice c, const signed char * book) {
    const int t = TQ_RINT(TQ_MUL(x, TQ_MUL((float) TQ_FINE, tq_dev_inverse_scale(c.code))));
    return tq_dev_nearest(bits, book, TQ_FINE, c.order & 1 ? -t : t);
}

// Byte j after the scale word, from the bits of all indices: bit v of plane b is bit b of index v.
TQ_FN unsigned char tq_dev_pack(int bits, const unsigned plane[4], int j) {
    unsigned byte = 0;
    if (bits == 4) {
        for (int b = 0; b < 4; b++) {
            byte |= (plane[b] >> j & 1) << b | (plane[b] >> (j + 16) & 1) << (b + 4);
        }
    } else if (j < 8) {
        for (int k = 0; k < 4; k++) {
            byte |= (plane[0] >> (j + 8 * k) & 1) << 2 * k | (plane[1] >> (j + 8 * k) & 1) << (2 * k + 1);
        }
    } else {
        for (int k = 0; k < 8; k++) {
            byte |= (plane[2] >> (j - 8 + 4 * k) & 1) << k;
        }
    }
    return (unsigned char) byte;
}

// --- look-ups of the attention kernels ---
// Half h (0, 1) of a block is 16 values: eight of each sub-block. A look-up answers four words of four biased levels
// (level + 128), of which bytes 0 and 2 belong to sub-block 0, bytes 1 and 3 to sub-block 1; tq_dev_place says which
// value a byte is. Codebooks are in registers: four biased levels to a word, the first codebook first.

#define TQ_BIAS_WORD 0x80808080u

TQ_FN unsigned tq_dev_book_word(const signed char * levels) {
    unsigned word = 0;
    for (int i = 0; i < 4; i++) {
        word |= (unsigned) (levels[i] + 128) << 8 * i;
    }
    return word;
}

// The value in byte b of word r of half h. `planes`: types of two and three bits; others lie as tq4_0 does.
TQ_FN int tq_dev_place(int planes, int h, int r, int b) {
    const int sub = b & 1, low = b >> 1;
    return 16 * sub + (planes ? 4 * h + 2 * (r & 1) + 8 * (r >> 1) : 8 * h + 2 * r) + low;
}

// Eight indices of a tq4_0 word: two look-ups in half a codebook each, then bit 3 of each index picks.
TQ_FN void tq_dev_levels_4(const unsigned book[4], unsigned w, unsigned out[2]) {
    const unsigned low = w & 0x77777777u, pick = (w >> 1 & 0x44444444u) | 0x32103210u;
    out[0] = TQ_PRMT(TQ_PRMT(book[0], book[1], low), TQ_PRMT(book[2], book[3], low), pick);
    out[1] = TQ_PRMT(TQ_PRMT(book[0], book[1], low >> 16), TQ_PRMT(book[2], book[3], low >> 16), pick >> 16);
}

// Bytes 4h..4h+3 of the low bits of tq3_0, and its four bytes of high bits.
TQ_FN void tq_dev_levels_3(const unsigned book[2], unsigned w, unsigned high, int h, unsigned out[4]) {
    const unsigned a = (w & 0x33333333u) | (high << (2 - h) & 0x44444444u);
    const unsigned b = (w >> 2 & 0x33333333u) | (high >> h & 0x44444444u);
    out[0] = TQ_PRMT(book[0], book[1], a);
    out[1] = TQ_PRMT(book[0], book[1], a >> 16);
    out[2] = TQ_PRMT(book[0], book[1], b);
    out[3] = TQ_PRMT(book[0], book[1], b >> 16);
}

// Bytes 4h..4h+3 of tq2_1. Both codebooks fit one look-up: second = 0x44444444 picks the second.
TQ_FN void tq_dev_levels_2(const unsigned books[2], unsigned w, unsigned second, unsigned out[4]) {
    const unsigned a = (w & 0x33333333u) | second, b = (w >> 2 & 0x33333333u) | second;
    out[0] = TQ_PRMT(books[0], books[1], a);
    out[1] = TQ_PRMT(books[0], books[1], a >> 16);
    out[2] = TQ_PRMT(books[0], books[1], b);
    out[3] = TQ_PRMT(books[0], books[1], b >> 16);
}
