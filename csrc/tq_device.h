// FORMAT.md for devices: encoder, decoder, and the look-ups of the attention kernels, in plain C arithmetic on one
// lane's share of a block. CUDA and Metal compile it as it is, and so does a C compiler: tests/device_driver.c plays
// the lanes on the host and compares bytes, so that what a GPU does without one is proven everywhere.
//
//   TQ_FN             storage class of a function
//   TQ_CONST_FN       of one that a compiler evaluates for tables, too
//   TQ_TABLE          storage class of the codebooks
//   TQ_BOOK, TQ_GLOBAL, TQ_SHARED   address spaces of codebooks, of blocks and of what the lanes share
//   TQ_MUL(a, b)      a product that is never contracted into a fused multiply-add
//   TQ_PRMT(a, b, s)  nibble i of s, at most 7, picks byte i of the result among the bytes of a (0-3) and b (4-7);
//                     bits of s above the 16th do not matter
//   TQ_AND_OR(a, m, o)        a & m | o, for constants m and o
//   TQ_BITS(f), TQ_FLOAT(u)   the bits of a float, and back
#pragma once

#if defined(__CUDACC__)
#    define TQ_FN static __device__ __forceinline__
#    define TQ_CONST_FN static constexpr __host__ __device__ __forceinline__
#    define TQ_TABLE static constexpr __constant__
#    define TQ_MUL(a, b) __fmul_rn(a, b)
#    define TQ_PRMT(a, b, s) tq_cuda_prmt(a, b, s)
#    define TQ_AND_OR(a, m, o) tq_cuda_and_or(a, m, o)
static __device__ __forceinline__ unsigned tq_cuda_prmt(unsigned a, unsigned b, unsigned s) {
    unsigned r; // __byte_perm masks its selector first
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(s));
    return r;
}
static __device__ __forceinline__ unsigned tq_cuda_and_or(unsigned a, unsigned m, unsigned o) {
    unsigned r; // the compiler makes two instructions of two constants
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(m), "r"(o));
    return r;
}
#    define TQ_BITS(f) __float_as_uint(f)
#    define TQ_FLOAT(u) __uint_as_float(u)
// |f| < 2^22: adding 1.5 * 2^23 rounds to an integer in the low bits, four times as fast as the conversion
#    define TQ_RINT(f) (__float_as_int(__fadd_rn(f, 12582912.0f)) - 0x4B400000)
#elif defined(__METAL_VERSION__)
#    define TQ_FN static inline
#    define TQ_CONST_FN static inline
#    define TQ_TABLE constant
#    define TQ_BOOK constant
#    define TQ_GLOBAL device
#    define TQ_SHARED threadgroup
#    define TQ_MUL(a, b) ((a) * (b)) // see metal/rows.h
#    define TQ_BITS(f) as_type<unsigned>(f)
#    define TQ_FLOAT(u) as_type<float>((unsigned) (u))
#    define TQ_RINT(f) ((int) rint(f))
#else
#    include <math.h>
#    include <string.h>
#    define TQ_FN static inline
#    if defined(__cplusplus)
#        define TQ_CONST_FN static constexpr
#    else
#        define TQ_CONST_FN static inline
#    endif
#    define TQ_MUL(a, b) ((a) * (b)) // the file is compiled without contraction
#    define TQ_PRMT(a, b, s) tq_host_prmt(a, b, s)
#    define TQ_AND_OR(a, m, o) (((a) & (m)) | (o))
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

#ifndef TQ_BOOK // one address space
#    define TQ_BOOK
#    define TQ_GLOBAL
#    define TQ_SHARED
#endif

#include "tq_blocks.h"
#include "tq_tables.h"

#define TQ_LANES 32 // share the work on a block

// --- types by number ---

TQ_CONST_FN int tq_dev_bits(int type) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        return bits;
#include "types.def"
#undef TQ_TYPE
        default:
            return 0;
    }
}

// Of a block; 0 for other types.
TQ_CONST_FN int tq_dev_bytes(int type) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        return bytes;
#include "types.def"
#undef TQ_TYPE
        default:
            return 0;
    }
}

// Both codebooks, one after the other.
TQ_FN TQ_BOOK const signed char * tq_dev_books(int type) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        return tq_codebook_##name[0];
#include "types.def"
#undef TQ_TYPE
        default:
            return 0;
    }
}

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
TQ_FN unsigned tq_dev_index(int bits, TQ_GLOBAL const unsigned char * body, int v) {
    if (bits == 4) {
        return (unsigned) (body[v & 15] >> (v >> 4) * 4) & 15;
    }
    const unsigned low = (unsigned) (body[v & 7] >> (v >> 3) * 2) & 3;
    return bits == 2 ? low : low | ((unsigned) body[8 + (v & 3)] >> (v >> 2) & 1u) << 2;
}

TQ_FN float tq_dev_value(int bits, TQ_BOOK const signed char * books, TQ_GLOBAL const unsigned char * block, int v) {
    const unsigned word = block[0] | (unsigned) block[1] << 8;
    const int level = books[(int) (word >> 15 << bits) + (int) tq_dev_index(bits, block + 2, v)];
    return TQ_MUL(tq_dev_scale(word, v >> 4), (float) level);
}

// --- encoder ---
// A lane prices one code for one sub-block under both signs and both codebooks at once: the squared distance of an
// integer to its nearest level comes from a table, with both signs in one word.

#define TQ_DISTANCES 512 // of -256..255: what 4.2 rounds stays within +-220

typedef struct {
    unsigned book[2]; // tq_dev_distance for both
} tq_dev_distances;

typedef struct {
    int bits;
    int count;
    float start;
} tq_dev_spec;

// The best sign under each codebook.
typedef struct {
    float price[2];
    int negative[2];
} tq_dev_prices;

// FORMAT.md 4.1.
TQ_FN float tq_dev_clean(float x) {
    const unsigned magnitude = TQ_BITS(x) & 0x7FFFFFFF;
    const float limited = magnitude > TQ_BITS(TQ_MAGNITUDE_MAX) ? TQ_MAGNITUDE_MAX : TQ_FLOAT(magnitude);
    return magnitude > 0x7F800000 ? 0.0f : TQ_FLOAT(TQ_BITS(limited) | (TQ_BITS(x) & 0x80000000));
}

// The number of neighbouring pairs of levels whose midpoint, in `steps` of a level, is <= v.
TQ_CONST_FN int tq_dev_nearest(int bits, TQ_BOOK const signed char * book, int steps, int v) {
    int index = 0;
    for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
        index += steps * (book[index + step - 1] + book[index + step]) <= 2 * v ? step : 0;
    }
    return index;
}

// Squared, of v in the low half and of -v in the high half.
TQ_CONST_FN unsigned tq_dev_distance(int bits, TQ_BOOK const signed char * book, int v) {
    const int up = v - book[tq_dev_nearest(bits, book, 1, v)], down = v + book[tq_dev_nearest(bits, book, 1, -v)];
    return (unsigned) (up * up) | (unsigned) (down * down) << 16;
}

// How many distances may be added before a half overflows: 160, 184 and 220 are as far as 4.2 reaches.
TQ_CONST_FN int tq_dev_run(int bits) {
    return bits == 4 ? 16 : bits == 3 ? 4 : 2;
}

TQ_FN int tq_dev_first_code(tq_dev_spec s, float amax) {
    return ((int) TQ_BITS(TQ_MUL(amax, s.start)) >> 20) - TQ_CODE_BIAS;
}

TQ_FN int tq_dev_limit_code(int code) {
    return code < TQ_CODE_MIN ? TQ_CODE_MIN : code > TQ_CODE_MAX ? TQ_CODE_MAX : code;
}

// FORMAT.md 4.2 for one code; `distances` of integers v at v + 256.
TQ_FN tq_dev_prices tq_dev_price(int bits, TQ_SHARED const float * x, int code,
                                 TQ_SHARED const tq_dev_distances * distances) {
    const float scale = tq_dev_scale_of(code), inverse = tq_dev_inverse_scale(code), square = TQ_MUL(scale, scale);
    unsigned error[2][2] = {{0, 0}, {0, 0}};
    for (int i = 0; i < TQ_SUB_BLOCK; i += tq_dev_run(bits)) {
        unsigned sum[2] = {0, 0};
        for (int j = i; j < i + tq_dev_run(bits); j++) {
            TQ_SHARED const tq_dev_distances * d = distances + TQ_RINT(TQ_MUL(x[j], inverse)) + TQ_DISTANCES / 2;
            sum[0] += d->book[0];
            sum[1] += d->book[1];
        }
        for (int b = 0; b < 2; b++) {
            error[b][0] += sum[b] & 0xFFFF;
            error[b][1] += sum[b] >> 16;
        }
    }
    tq_dev_prices p;
    for (int b = 0; b < 2; b++) {
        const float positive = TQ_MUL(square, (float) error[b][0]), negative = TQ_MUL(square, (float) error[b][1]);
        p.negative[b] = negative < positive;
        p.price[b] = negative < positive ? negative : positive;
    }
    return p;
}

// FORMAT.md 4.3: the exponent of two codes.
TQ_FN int tq_dev_exponent(int code0, int code1) {
    const int top = code0 > code1 ? code0 : code1;
    return (top >> 3) - 1 < 1 ? 1 : (top >> 3) - 1;
}

// What the scale word says of one scale.
TQ_FN unsigned tq_dev_field(int code, int negative, int e) {
    return (unsigned) (code - 8 * e) | (unsigned) negative << 4;
}

TQ_FN unsigned tq_dev_word(int e, int book, unsigned field0, unsigned field1) {
    return (unsigned) (e << 10 | book << 15) | field0 | field1 << 5;
}

// FORMAT.md 4.4 for a value.
TQ_FN unsigned tq_dev_assign(int bits, float x, int code, int negative, TQ_BOOK const signed char * book) {
    const int t = TQ_RINT(TQ_MUL(x, TQ_MUL((float) TQ_FINE, tq_dev_inverse_scale(code))));
    return (unsigned) tq_dev_nearest(bits, book, TQ_FINE, negative ? -t : t);
}

#if defined(TQ_PRMT)
// --- look-ups of the attention kernels, where a GPU permutes bytes ---
// Half h (0, 1) of a block is 16 values: eight of each sub-block. A look-up answers four words of four biased levels
// (level + 128), of which bytes 0 and 2 belong to sub-block 0, bytes 1 and 3 to sub-block 1; tq_dev_place says which
// value a byte is. Codebooks are in registers: four biased levels to a word, the first codebook first.

#    define TQ_BIAS_WORD 0x80808080u

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
    const unsigned low = w & 0x77777777u, pick = TQ_AND_OR(w >> 1, 0x44444444u, 0x32103210u);
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
#endif
