// SET_ROWS, GET_ROWS and copies. As csrc/cuda/rows.cu: a SIMD group encodes two blocks at once, and a lane prices one
// candidate of one sub-block under both codebooks and both signs.
//
// The reference rounds every product and sum. A compiler that ignores the pragmas of tq.metal could still join a
// product and a sum; the only place where it might is the total of two prices, and both of them come out of a shuffle.
#pragma once

#include "arguments.h"
#include "tq_device.h"

TQ_METAL_CONSTANT(int, tq_type, TQ_METAL_TYPE);
TQ_METAL_CONSTANT(bool, tq_half, TQ_METAL_HALF);
TQ_METAL_CONSTANT(int, tq_ids, TQ_METAL_IDS);

static inline tq_dev_spec tq_spec_of(int type) {
    tq_dev_spec s = {0, 0, 0.0f};
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits_, bytes, start_, count_) \
    case TQ_TYPE_##NAME:                                      \
        s.bits = bits_;                                       \
        s.count = count_;                                     \
        s.start = start_ / 16384.0f;                          \
        break;
#include "types.def"
#undef TQ_TYPE
    }
    return s;
}

static inline int tq_bytes_of(int type) {
    return type == TQ_METAL_F16 ? 64 : type == TQ_METAL_Q8_0 ? 34 : tq_dev_bytes(type);
}

// --- places ---

// Block i0 of row (i1, i2, i3).
struct tq_place {
    uint i0, i1, i2, i3;
};

// Of block b of the flattened tensor.
static inline tq_place tq_place_of(constant const tq_metal_tensor & t, uint b) {
    const uint per_row = (uint) t.ne[0] / TQ_BLOCK, rows = (uint) t.ne[1], planes = (uint) t.ne[2];
    tq_place p;
    const uint row = b / per_row, plane = row / rows;
    p.i0 = b - row * per_row;
    p.i1 = row - plane * rows;
    p.i3 = plane / planes;
    p.i2 = plane - p.i3 * planes;
    return p;
}

// `unit`: bytes of a block.
static inline int64_t tq_offset_of(constant const tq_metal_tensor & t, tq_place p, int64_t unit) {
    return p.i0 * unit + p.i1 * t.nb[1] + p.i2 * t.nb[2] + p.i3 * t.nb[3];
}

static inline int64_t tq_load_id(constant const tq_metal_rows & a, device const uchar * ids, uint i0, uint i1,
                                 uint i2) {
    device const uchar * p = ids + i0 * a.ids_nb[0] + i1 * a.ids_nb[1] + i2 * a.ids_nb[2];
    return tq_ids == 8 ? *(device const int64_t *) p : (int64_t) *(device const int32_t *) p;
}

// --- encoder ---

// What a lane holds of its block, when the search is over.
struct tq_chosen {
    int code, negative, book; // of its sub-block
    uint word;                // 0 for a block of zeros
};

// Searches two blocks at once: lane = 16 * block + 8 * sub-block + number of the code. `x` is the sub-block of the
// lane.
static inline tq_chosen tq_search(TQ_SHARED const float * x, TQ_SHARED const tq_dev_distances * distances, uint lane) {
    const tq_dev_spec spec = tq_spec_of(tq_type);
    float amax = 0.0f;
    for (int i = 0; i < TQ_SUB_BLOCK; i++) {
        amax = max(amax, fabs(x[i]));
    }
    const int first = tq_dev_first_code(spec, amax);
    tq_dev_prices prices = tq_dev_price(spec.bits, x, tq_dev_limit_code(first + (int) (lane & 7)), distances);
    int code[2];
    for (int b = 0; b < 2; b++) {
        float least = (int) (lane & 7) < spec.count ? prices.price[b] : 3.0e38f; // dearer than any
        uint mark = (lane & 7) << 1 | (uint) prices.negative[b];                 // the first of equals wins
        for (ushort step = 4; step > 0; step >>= 1) {
            const float price = simd_shuffle_xor(least, step);
            const uint other = simd_shuffle_xor(mark, step);
            if (price < least || (price == least && other < mark)) {
                least = price;
                mark = other;
            }
        }
        code[b] = tq_dev_limit_code(first + (int) (mark >> 1));
        prices.price[b] = least;
        prices.negative[b] = (int) (mark & 1);
    }

    int exponent[2];
    bool settles = false;
    for (int b = 0; b < 2; b++) {
        exponent[b] = tq_dev_exponent(code[b], simd_shuffle_xor(code[b], (ushort) 8));
        settles = settles || code[b] < 8 * exponent[b];
    }
    if (simd_any(settles)) { // rare: sub-blocks of very different size
        for (int b = 0; b < 2; b++) {
            // of its own code where that is large enough: a smaller one would leave the table
            const int larger = max(code[b], 8 * exponent[b]);
            const tq_dev_prices least = tq_dev_price(spec.bits, x, larger, distances);
            if (code[b] < larger) {
                code[b] = larger;
                prices.price[b] = least.price[b];
                prices.negative[b] = least.negative[b];
            }
        }
    }
    float total[2];
    for (int b = 0; b < 2; b++) {
        const float mine = simd_shuffle_xor(prices.price[b], (ushort) 0);
        total[b] = mine + simd_shuffle_xor(prices.price[b], (ushort) 8);
    }
    tq_chosen c;
    c.book = total[1] < total[0];
    c.code = c.book ? code[1] : code[0];
    c.negative = c.book ? prices.negative[1] : prices.negative[0];
    const int e = c.book ? exponent[1] : exponent[0];
    const uint field = tq_dev_field(c.code, c.negative, e), other = simd_shuffle_xor(field, (ushort) 8);
    c.word = lane & 8 ? tq_dev_word(e, c.book, other, field) : tq_dev_word(e, c.book, field, other);
    if (max(amax, simd_shuffle_xor(amax, (ushort) 8)) < TQ_MAGNITUDE_MIN) {
        c.word = 0;
    }
    return c;
}

// Byte n of a block.
static inline uint tq_pack(int bits, uint word, TQ_SHARED const uchar * index, uint n) {
    if (n < 2) {
        return word >> 8 * n & 255;
    }
    const uint j = n - 2;
    if (bits == 4) {
        return index[j] | (uint) index[j + 16] << 4;
    }
    uint byte = 0;
    if (j < 8) {
        for (uint i = 0; i < 4; i++) {
            byte |= (uint) (index[j + 8 * i] & 3) << 2 * i;
        }
    } else {
        for (uint i = 0; i < 8; i++) {
            byte |= (uint) (index[j - 8 + 4 * i] >> 2) << i;
        }
    }
    return byte;
}

kernel void kernel_tq_encode(constant const tq_metal_rows & a, device const uchar * src, device const uchar * ids,
                             device uchar * dst, threadgroup char * shared TQ_METAL_SHARED, uint3 group TQ_METAL_GROUP,
                             uint simd TQ_METAL_SIMD_INDEX, uint lane TQ_METAL_LANE) {
    const uint count = TQ_METAL_ENCODE_BLOCKS, values = count * TQ_BLOCK;
    threadgroup tq_dev_distances * distances = (threadgroup tq_dev_distances *) shared;
    threadgroup float * x = (threadgroup float *) (shared + TQ_METAL_ENCODE_TABLE) + simd * values;
    threadgroup uchar * indices = (threadgroup uchar *) shared + TQ_METAL_ENCODE_TABLE +
                                  TQ_METAL_ROWS_SIMDS * values * sizeof(float) + simd * values;
    const tq_dev_spec spec = tq_spec_of(tq_type);
    TQ_BOOK const signed char * books = tq_dev_books(tq_type);
    const int bytes = tq_bytes_of(tq_type);

    for (uint i = simd * TQ_METAL_SIMD + lane; i < TQ_DISTANCES; i += TQ_METAL_ROWS_SIMDS * TQ_METAL_SIMD) {
        for (int b = 0; b < 2; b++) {
            distances[i].book[b] = tq_dev_distance(spec.bits, books + (b << spec.bits), (int) i - TQ_DISTANCES / 2);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint first = (group.x * TQ_METAL_ROWS_SIMDS + simd) * count; first < a.blocks;
         first += a.groups * TQ_METAL_ROWS_SIMDS * count) {
        for (uint i = 0; i < count; i++) {
            float value = 0.0f;
            if (first + i < a.blocks) {
                device const uchar * p = src +
                                         tq_offset_of(a.src, tq_place_of(a.src, first + i), TQ_BLOCK * a.src.nb[0]) +
                                         lane * a.src.nb[0];
                value = tq_half ? (float) *(device const half *) p : *(device const float *) p;
            }
            x[i * TQ_BLOCK + lane] = tq_dev_clean(value);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        const tq_chosen c = tq_search(x + TQ_SUB_BLOCK * (lane >> 3), distances, lane);
        const uint mine = (uint) c.code | (uint) c.negative << 9 | (uint) c.book << 10;
        uint word[TQ_METAL_ENCODE_BLOCKS];
        for (uint i = 0; i < count; i++) {
            const uint choice = simd_shuffle(mine, (ushort) (16 * i + (lane >> 4) * 8));
            word[i] = simd_shuffle(c.word, (ushort) (16 * i));
            indices[i * TQ_BLOCK + lane] =
                (uchar) tq_dev_assign(spec.bits, x[i * TQ_BLOCK + lane], (int) (choice & 511), (int) (choice >> 9 & 1),
                                      books + (choice >> 10 << spec.bits));
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < count; i++) {
            if (first + i < a.blocks && (int) lane < bytes) {
                device uchar * out = dst;
                if (tq_ids == 0) {
                    out += tq_offset_of(a.dst, tq_place_of(a.dst, first + i), bytes);
                } else { // row r of (r, i2, i3) goes to row ids[r, i2 % ne1, i3 % ne2] of (i2, i3)
                    const tq_place p = tq_place_of(a.src, first + i);
                    const int64_t row = tq_load_id(a, ids, p.i1, p.i2 % (uint) a.ids_ne[1], p.i3 % (uint) a.ids_ne[2]);
                    out += p.i0 * (int64_t) bytes + row * a.dst.nb[1] + p.i2 * a.dst.nb[2] + p.i3 * a.dst.nb[3];
                }
                out[lane] = (uchar) (word[i] ? tq_pack(spec.bits, word[i], indices + i * TQ_BLOCK, lane) : 0);
            }
        }
    }
}
TQ_METAL_PLAIN(kernel_tq_encode)

// --- decoder and copies: a SIMD group takes a block ---

kernel void kernel_tq_decode(constant const tq_metal_rows & a, device const uchar * src, device const uchar * ids,
                             device uchar * dst, uint3 group TQ_METAL_GROUP, uint simd TQ_METAL_SIMD_INDEX,
                             uint lane TQ_METAL_LANE) {
    const uint b = group.x * TQ_METAL_ROWS_SIMDS + simd;
    if (b >= a.blocks) {
        return;
    }
    const int bytes = tq_bytes_of(tq_type);
    const tq_place to = tq_place_of(a.dst, b);
    device const uchar * in = src;
    if (tq_ids == 0) {
        in += tq_offset_of(a.src, tq_place_of(a.src, b), bytes);
    } else { // row r of (i1, i2) comes from row ids[r, i1, i2]
        in += to.i0 * (int64_t) bytes + tq_load_id(a, ids, to.i1, to.i2, to.i3) * a.src.nb[1] + to.i2 * a.src.nb[2] +
              to.i3 * a.src.nb[3];
    }
    const float value = tq_dev_value(tq_dev_bits(tq_type), tq_dev_books(tq_type), in, (int) lane);
    device uchar * out = dst + tq_offset_of(a.dst, to, TQ_BLOCK * a.dst.nb[0]) + lane * a.dst.nb[0];
    if (tq_half) {
        *(device half *) out = (half) value;
    } else {
        *(device float *) out = value;
    }
}
TQ_METAL_PLAIN(kernel_tq_decode)

kernel void kernel_tq_copy(constant const tq_metal_rows & a, device const uchar * src, device const uchar * ids,
                           device uchar * dst, uint3 group TQ_METAL_GROUP, uint simd TQ_METAL_SIMD_INDEX,
                           uint lane TQ_METAL_LANE) {
    const uint b = group.x * TQ_METAL_ROWS_SIMDS + simd;
    const int bytes = tq_bytes_of(tq_type);
    if (b < a.blocks && (int) lane < bytes) {
        dst[tq_offset_of(a.dst, tq_place_of(a.dst, b), bytes) + lane] =
            src[tq_offset_of(a.src, tq_place_of(a.src, b), bytes) + lane];
    }
}
TQ_METAL_PLAIN(kernel_tq_copy)
