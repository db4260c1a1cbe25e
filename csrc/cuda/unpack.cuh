// From packed blocks in shared memory to halves: the look-ups of tq_device.h, then levels times scales.
//
// A look-up gives bytes of level + 128. A byte under 0x64 is the half 1024 + byte, so fma(half, s, -1152 s) is the
// level times the scale: one prmt and one fma for two values. The product has 4 + 7 significant bits, so nothing is
// rounded. Scales are 2^-5 of what they are, so that 1152 times the largest, 960, fits a half; the kernels give the 32
// back to sums. A scale below 2^-16 (a block whose largest value is below 0.002) is rounded to a multiple of 2^-19, one
// below that possibly to zero.
#pragma once

#include "attention.h"
#include "ptx.cuh"
#include "tq_device.h"

namespace tq_cuda {

constexpr unsigned magic = 0x64646464u;

// What sums of unpacked values are multiplied with.
__device__ __forceinline__ float unit_of(int type) {
    return type < TQ_TYPE_COUNT ? 32.0f : 1.0f;
}

__device__ __forceinline__ half2 widen_low(unsigned levels) { // bytes 0 and 1
    return as_half2(TQ_PRMT(levels, magic, 0x4140));
}

__device__ __forceinline__ half2 widen_high(unsigned levels) { // bytes 2 and 3
    return as_half2(TQ_PRMT(levels, magic, 0x4342));
}

// Both scales of a word; bits above the 16th do not matter. A code less 16, shifted to where a half has its exponent,
// is 2^6 times the scale.
__device__ __forceinline__ half2 decode_scales(unsigned w) {
    const unsigned codes = (w & 0x7C00u) * 0x10001u + ((w << 7 & 0x780u) | (w << 18 & 0x7800000u));
    const unsigned signs = (w << 11 & 0x8000u) | (w << 22 & 0x80000000u);
    const half2 scales = multiply(as_half2(codes + signs - 0x08000800u), as_half2(0x10001000u)); // 2^-11
    return as_half2(w & 0x7800u ? as_word(scales) : 0u);
}

// Both parts of two floats as halves: 22 bits of them.
__device__ __forceinline__ void split_float2(float2 x, unsigned & high, unsigned & low) {
    const half2 h = __floats2half2_rn(x.x, x.y);
    high = as_word(h);
    low = as_word(__floats2half2_rn(x.x - __low2float(h), x.y - __high2float(h)));
}

// Words from a place that is even, but need not be divisible by four.
template <int n> __device__ __forceinline__ void load_words(place p, unsigned (&w)[n]) {
    const unsigned odd = p & 2u;
    unsigned raw[n + 1];
#pragma unroll
    for (int i = 0; i <= n; i++) {
        raw[i] = load_word(p - odd + 4 * i);
    }
#pragma unroll
    for (int i = 0; i < n; i++) {
        w[i] = __funnelshift_rc(raw[i], raw[i + 1], odd * 8);
    }
}

// Of a block `odd` (0, 2) bytes after p: the scale word in the low half of `word`, the n words after it in w.
template <int n> __device__ __forceinline__ void load_block(place p, unsigned odd, unsigned & word, unsigned (&w)[n]) {
    unsigned raw[n + 1];
#pragma unroll
    for (int i = 0; i <= n; i++) {
        raw[i] = load_word(p + 4 * i);
    }
    word = raw[0] >> odd * 8;
#pragma unroll
    for (int i = 0; i < n; i++) {
        w[i] = __funnelshift_rc(raw[i], raw[i + 1], 16 + odd * 8); // by 32 where the block lies at an odd place
    }
}

// What a kernel keeps of the codebooks: biased levels, four to a word.
struct books {
    unsigned w[2][4];
};

template <int bits, int n> constexpr __device__ __forceinline__ books books_of(const signed char (&levels)[2][n]) {
    books b = {};
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 1 << bits; i++) {
            b.w[c][i / 4] |= (unsigned) (levels[c][i] + 128) << i % 4 * 8;
        }
    }
    return b;
}

template <int type> struct format;

#define TQ_TYPE(NAME, name, id, bits_, bytes_, start, count)         \
    template <> struct format<TQ_TYPE_##NAME> {                      \
        static constexpr int bits = bits_, block_bytes = bytes_;     \
        static constexpr bool planes = bits_ < 4, is_tq = true;      \
        static __device__ __forceinline__ books load_books() {       \
            constexpr books b = books_of<bits_>(tq_codebook_##name); \
            return b;                                                \
        }                                                            \
    };
#include "types.def"
#undef TQ_TYPE

template <> struct format<TQ_CUDA_Q8_0> {
    static constexpr int bits = 8, block_bytes = 34;
    static constexpr bool planes = false, is_tq = false;
    static __device__ __forceinline__ books load_books() { return {}; }
};

template <> struct format<TQ_CUDA_F16> {
    static constexpr int bits = 16, block_bytes = 64;
    static constexpr bool planes = false, is_tq = false;
    static __device__ __forceinline__ books load_books() { return {}; }
};

// Of the place where unpacking a block puts value v: 16 h + 4 r + b of tq_dev_place.
__device__ __forceinline__ int position_of(bool planes, int v) {
    const int sub = v >> 4, low = v & 1;
    return planes ? 16 * (v >> 2 & 1) + 4 * ((v >> 1 & 1) + 2 * (v >> 3 & 1)) + 2 * low + sub
                  : 16 * (v >> 3 & 1) + 4 * (v >> 1 & 3) + 2 * low + sub;
}

// Half h of a block as levels: four words as tq_device.h describes them, and the scales of both sub-blocks.
struct half_block {
    unsigned level[4];
    half2 scale, offset; // -1152 times the scale
};

__device__ __forceinline__ half_block load_q8_0(place block, int h) {
    half_block r;
    unsigned low[2], high[2];
    load_words(block + 2 + 8 * h, low);
    load_words(block + 18 + 8 * h, high);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        r.level[2 * i] = TQ_PRMT(low[i], high[i], 0x5140) ^ TQ_BIAS_WORD;
        r.level[2 * i + 1] = TQ_PRMT(low[i], high[i], 0x7362) ^ TQ_BIAS_WORD;
    }
    r.scale = as_half2(load_short(block) * 0x10001u);
    return r;
}

// Word a of the first codebook, or b of the second: a product, because look-ups leave no time for choices.
__device__ __forceinline__ unsigned pick(unsigned second, unsigned a, unsigned b) {
    return multiply_add(second, b - a, a);
}

// A whole block, `odd` bytes after p.
template <int type>
__device__ __forceinline__ void load_both(place p, unsigned odd, const books & b, half_block (&r)[2]) {
    using F = format<type>;
    if constexpr (!F::is_tq) {
        r[0] = load_q8_0(p + odd, 0);
        r[1] = load_q8_0(p + odd, 1);
    } else {
        unsigned word, w[F::bits];
        load_block(p, odd, word, w);
        const unsigned second = word << 16 >> 31;
        if constexpr (F::bits == 4) {
            unsigned book[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                book[i] = pick(second, b.w[0][i], b.w[1][i]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                tq_dev_levels_4(book, w[2 * h], r[h].level);
                tq_dev_levels_4(book, w[2 * h + 1], r[h].level + 2);
            }
        } else if constexpr (F::bits == 3) {
            const unsigned book[2] = {pick(second, b.w[0][0], b.w[1][0]), pick(second, b.w[0][1], b.w[1][1])};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                tq_dev_levels_3(book, w[h], w[2], h, r[h].level);
            }
        } else {
            const unsigned both[2] = {b.w[0][0], b.w[1][0]};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                tq_dev_levels_2(both, w[h], second ? 0x44444444u : 0u, r[h].level);
            }
        }
        r[0].scale = r[1].scale = decode_scales(word);
        r[0].offset = r[1].offset = multiply(r[0].scale, as_half2(0xE480E480u));
    }
}

// Two widened levels times their scales.
template <int type> __device__ __forceinline__ half2 scaled(half2 levels, half2 scale, half2 offset) {
    if constexpr (format<type>::is_tq) {
        return multiply_add(levels, scale, offset);
    } else {
        // the scale of q8_0 has eleven bits: 1152 times it would be rounded
        return __hmul2(__hadd2(levels, __float2half2_rn(-1152.0f)), scale);
    }
}

// Values of half h as eight pairs (value of sub-block 0, value of sub-block 1): pair 2r + p is bytes 2p, 2p + 1 of word
// r.
template <int type> __device__ __forceinline__ void values_of(const half_block & r, half2 (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = scaled<type>(widen_low(r.level[i]), r.scale, r.offset);
        out[2 * i + 1] = scaled<type>(widen_high(r.level[i]), r.scale, r.offset);
    }
}

// The same of 32 halves, for which there is nothing to look up.
__device__ __forceinline__ void values_of_f16(place block, int h, half2 (&out)[8]) {
    unsigned low[4], high[4];
    load_words(block + 16 * h, low);
    load_words(block + 32 + 16 * h, high);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = as_half2(TQ_PRMT(low[i], high[i], 0x5410));
        out[2 * i + 1] = as_half2(TQ_PRMT(low[i], high[i], 0x7632));
    }
}

// 32 rows of n chunks, by one warp: 2^i chunks of 2^(5-i) rows at a time for every bit i of n, so that no lane divides
// by the length of a row. In shared memory rows lie one after the other, so that places are constants.
template <int bytes, int n, bool whole, int i = 4>
__device__ __forceinline__ void copy_columns(place to, const char * from, int64_t stride, int rows, int lane) {
    if constexpr (n >> i & 1) {
        constexpr int per_step = 32 >> i, first = n >> (i + 1) << (i + 1);
        const int row = lane >> i, column = first + (lane & ((1 << i) - 1));
        const place there = to + (row * n + column) * bytes;
        const char * here = from + row * stride + column * bytes;
#pragma unroll
        for (int s = 0; s < 1 << i; s++) {
            if (whole || row + s * per_step < rows) {
                copy_start<bytes>(there + s * per_step * n * bytes, here);
            }
            here += per_step * stride;
        }
    }
    if constexpr (i > 0) {
        copy_columns<bytes, n, whole, i - 1>(to, from, stride, rows, lane);
    }
}

// How the rows of a cache lie in shared memory, and in which pieces they are copied.
struct staging {
    int row_bytes;
    int chunk; // 16, 8 or 4 bytes, as the addresses allow; 2: heads of 96 values at odd places, copied without cp.async
    int stride; // of a row in shared memory
    int chunks; // of a row if there is a case for them in copy_rows, or 0
};

template <int bytes>
__device__ __forceinline__ void copy_any(place to, const staging & s, const char * from, int64_t stride, int rows,
                                         int lane) {
    const int chunks = s.row_bytes / bytes;
#pragma unroll 1
    for (int i = lane; i < chunks * rows; i += 32) {
        const int row = i / chunks, column = i - row * chunks;
        copy_start<bytes>(to + row * s.stride + column * bytes, from + row * stride + column * bytes);
    }
}

// Heads of 64, 128 and 256 values have 9, 7 and 5 chunks of 4, 8 and 16 bytes.
template <int bytes>
__device__ __forceinline__ void copy_some(place to, const staging & s, const char * from, int64_t stride, int rows,
                                          int lane) {
    if (rows < 32) {
        copy_any<bytes>(to, s, from, stride, rows, lane);
    } else if (s.chunks == 9) {
        copy_columns<bytes, 9, true>(to, from, stride, rows, lane);
    } else if (s.chunks == 7) {
        copy_columns<bytes, 7, true>(to, from, stride, rows, lane);
    } else if (s.chunks == 5) {
        copy_columns<bytes, 5, true>(to, from, stride, rows, lane);
    } else {
        copy_any<bytes>(to, s, from, stride, rows, lane);
    }
}

__device__ __forceinline__ void copy_rows(place to, const staging & s, const char * from, int64_t stride, int rows,
                                          int lane) {
    if (s.chunk == 8) {
        copy_some<8>(to, s, from, stride, rows, lane);
    } else if (s.chunk == 16) {
        copy_some<16>(to, s, from, stride, rows, lane);
    } else if (s.chunk == 4) {
        copy_some<4>(to, s, from, stride, rows, lane);
    } else {
        const int shorts = s.row_bytes / 2;
#pragma unroll 1
        for (int row = 0; row < rows; row++) {
#pragma unroll 1
            for (int i = lane; i < shorts; i += 32) {
                const unsigned short x = reinterpret_cast<const unsigned short *>(from + row * stride)[i];
                store_short(to + row * s.stride + 2 * i, x);
            }
        }
    }
}

// The same, and zeros in the rest of 32 rows: what lies there may be no number.
__device__ __forceinline__ void stage_rows(char * to, const staging & s, const char * from, int64_t stride, int rows,
                                           int lane) {
    copy_rows(place_of(to), s, from, stride, rows, lane);
    if (rows < 32) {
#pragma unroll 1
        for (int i = rows * s.stride + 4 * lane; i < 32 * s.stride; i += 128) {
            *reinterpret_cast<unsigned *>(to + i) = 0;
        }
    }
}

inline int block_bytes(int type) {
    return type == TQ_CUDA_F16 ? 64 : type == TQ_CUDA_Q8_0 ? 34 : tq_dev_bytes(type);
}

inline staging staging_of(const tq_cuda_cache & c) {
    staging s;
    s.row_bytes = c.dim / TQ_BLOCK * block_bytes(c.type);
    const int64_t bits = (int64_t) (size_t) c.data | c.row_stride | c.head_stride | c.stream_stride | s.row_bytes;
    s.chunk = bits & 2 ? 2 : bits & 4 ? 4 : bits & 8 ? 8 : 16;
    s.stride = s.chunk >= 4 ? s.row_bytes : (s.row_bytes + 3) / 4 * 4;
    if (s.stride % 64 == 0) { // all rows would start in two banks
        s.stride += 16;
    }
    const int chunks = s.row_bytes / s.chunk;
    s.chunks = s.stride == s.row_bytes && s.chunk >= 4 && (chunks == 9 || chunks == 7 || chunks == 5) ? chunks : 0;
    return s;
}

} // namespace tq_cuda
