// The encoder of a warp, for the kernel that stores rows (rows.cu) and for the one that attends and stores the rows of
// its tokens on the way (decode.cu): both write the same bytes.
//
// A warp encodes two blocks at once: a lane prices one candidate of one sub-block under both codebooks and both signs
// (tq_device.h). With a thread for each block the 32 blocks of a token's row would fill one warp, and decode would wait
// for it; with a lane for each sign and codebook, a prefill took four times as many instructions for the prices.
#pragma once

#include "ptx.cuh"
#include "tq.h"
#include "tq_device.h"

namespace tq_cuda {

constexpr unsigned all = 0xFFFFFFFFu; // lanes

template <int type> struct spec;

#define TQ_TYPE(NAME, name, id, bits_, bytes_, start_, count_)             \
    template <> struct spec<TQ_TYPE_##NAME> {                              \
        static constexpr int bits = bits_, bytes = bytes_, count = count_; \
        static constexpr float start = start_ / 16384.0f;                  \
    };
#include "types.def"
#undef TQ_TYPE

// tq_dev_distance of every integer under both codebooks. Made by the compiler: in decode, where there is little to
// encode, building it would take as long as all the rest.
struct alignas(16) distance_table {
    tq_dev_distances of[TQ_DISTANCES];
};

template <int bits> constexpr distance_table distances_to(const signed char (&books)[2][1 << bits]) {
    distance_table r = {};
    for (int v = 0; v < TQ_DISTANCES; v++) {
        for (int b = 0; b < 2; b++) {
            r.of[v].book[b] = tq_dev_distance(bits, books[b], v - TQ_DISTANCES / 2);
        }
    }
    return r;
}

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    static __device__ constexpr distance_table distances_##name = distances_to<bits>(tq_codebook_##name);
#include "types.def"
#undef TQ_TYPE

static __device__ __forceinline__ const distance_table & distances_of(int type) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        return distances_##name;
#include "types.def"
#undef TQ_TYPE
    }
    return distances_tq4_0;
}

// What an encoder looks up, in shared memory.
struct encoder_tables {
    distance_table distances;
    signed char books[2][16];
};

// By all threads of a block: there after copy_wait and __syncthreads.
static __device__ __forceinline__ void start_tables(encoder_tables & to, int type) {
    const int bits = tq_dev_bits(type);
    for (int i = threadIdx.x; i < (int) sizeof(distance_table) / 16; i += blockDim.x) {
        copy_start<16>(place_of(&to.distances) + 16 * i, reinterpret_cast<const char *>(&distances_of(type)) + 16 * i);
    }
    for (int i = threadIdx.x; i < 2 << bits; i += blockDim.x) {
        to.books[i >> bits][i & ((1 << bits) - 1)] = tq_dev_books(type)[i];
    }
}

static __device__ __forceinline__ float largest_of_16(float x) {
    for (int step = 8; step > 0; step >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(all, x, step));
    }
    return x;
}

// What a lane of 16 holds of its block, when the search is over.
struct chosen {
    int code, negative, book; // of its sub-block
    unsigned word;            // 0 for a block of zeros
};

// Searches two blocks at once: lane = 16 * block + 8 * sub-block + number of the code. `x` is the sub-block of the
// lane, `amax` its largest magnitude.
template <int type>
static __device__ __forceinline__ chosen search(const float * x, float amax, const tq_dev_distances * distances,
                                                int lane) {
    using T = spec<type>;
    constexpr tq_dev_spec s = {T::bits, T::count, T::start};
    const int first = tq_dev_first_code(s, amax), mine = lane & 7;
    tq_dev_prices prices = tq_dev_price(T::bits, x, tq_dev_limit_code(first + mine), distances);
    int code[2];
    for (int b = 0; b < 2; b++) {
        const float price = mine < T::count ? prices.price[b] : 3.0e38f; // dearer than any
        float least = price;
        for (int step = 4; step > 0; step >>= 1) {
            least = fminf(least, __shfl_xor_sync(all, least, step));
        }
        const unsigned winners = __ballot_sync(all, price == least) >> (lane & 24) & 255u;
        const int winner = __ffs(winners) - 1; // the first of equals
        code[b] = tq_dev_limit_code(first + winner);
        prices.price[b] = least;
        prices.negative[b] = __ballot_sync(all, prices.negative[b] != 0) >> ((lane & 24) + winner) & 1;
    }

    int exponent[2];
    bool settles = false;
    for (int b = 0; b < 2; b++) {
        exponent[b] = tq_dev_exponent(code[b], __shfl_xor_sync(all, code[b], 8));
        settles |= code[b] < 8 * exponent[b];
    }
    if (__ballot_sync(all, settles)) { // rare: sub-blocks of very different size
        for (int b = 0; b < 2; b++) {
            // of its own code where that is large enough: a smaller one would leave the table
            const int larger = code[b] < 8 * exponent[b] ? 8 * exponent[b] : code[b];
            const tq_dev_prices least = tq_dev_price(T::bits, x, larger, distances);
            if (code[b] < larger) {
                code[b] = larger;
                prices.price[b] = least.price[b];
                prices.negative[b] = least.negative[b];
            }
        }
    }
    float total[2];
    for (int b = 0; b < 2; b++) {
        total[b] = __fadd_rn(prices.price[b], __shfl_xor_sync(all, prices.price[b], 8));
    }
    chosen c;
    c.book = total[1] < total[0];
    c.code = c.book ? code[1] : code[0];
    c.negative = c.book ? prices.negative[1] : prices.negative[0];
    const int e = c.book ? exponent[1] : exponent[0];
    const unsigned field = tq_dev_field(c.code, c.negative, e), other = __shfl_xor_sync(all, field, 8);
    c.word = lane & 8 ? tq_dev_word(e, c.book, other, field) : tq_dev_word(e, c.book, field, other);
    if (fmaxf(amax, __shfl_xor_sync(all, amax, 8)) < TQ_MAGNITUDE_MIN) {
        c.word = 0;
    }
    return c;
}

// Byte `lane` of a block, from the index that every lane has of its value.
template <int type> static __device__ __forceinline__ unsigned pack(unsigned word, unsigned index, int lane) {
    constexpr int bits = spec<type>::bits;
    unsigned low, high = 0;
    if (bits == 4) {
        low = index | __shfl_sync(all, index, lane + 16) << 4;
    } else {
        low = index & 3;
        low |= __shfl_sync(all, low, lane + 16) << 4;
        low |= __shfl_sync(all, low, lane + 8) << 2;
    }
    low = __shfl_sync(all, low, lane - 2); // the scale word comes first
    if (bits == 3) {
        high = index >> 2;
        high |= __shfl_sync(all, high, lane + 16) << 4;
        high |= __shfl_sync(all, high, lane + 8) << 2;
        high |= __shfl_sync(all, high, lane + 4) << 1;
        high = __shfl_sync(all, high, lane - 10);
    }
    return lane < 2 ? word >> 8 * lane : bits == 3 && lane >= 10 ? high : low;
}

// Encodes two blocks of values in shared memory, of which `count` exist. `out` is where the block of a lane's half warp
// goes.
template <int type>
static __device__ __forceinline__ void encode_two(const float * x, const encoder_tables & tables, char * out, int count,
                                                  int lane) {
    using T = spec<type>;
    const float value[2] = {x[lane], x[TQ_BLOCK + lane]};
    const float amax[2] = {largest_of_16(fabsf(value[0])), largest_of_16(fabsf(value[1]))};
    const int from = lane & 8 ? 16 : 0; // a lane of the same sub-block
    const float amax0 = __shfl_sync(all, amax[0], from), amax1 = __shfl_sync(all, amax[1], from);
    const chosen c = search<type>(x + TQ_SUB_BLOCK * (lane >> 3), lane & 16 ? amax1 : amax0, tables.distances.of, lane);
    const unsigned mine = (unsigned) c.code | (unsigned) c.negative << 9 | (unsigned) c.book << 10;
    for (int i = 0; i < 2; i++) {
        const unsigned choice = __shfl_sync(all, mine, 16 * i + (lane >> 4) * 8);
        const unsigned word = __shfl_sync(all, c.word, 16 * i);
        const unsigned index =
            tq_dev_assign(T::bits, value[i], choice & 511, choice >> 9 & 1, tables.books[choice >> 10]);
        const unsigned byte = pack<type>(word, index, lane);
        const int64_t low = __shfl_sync(all, (unsigned) (uintptr_t) out, 16 * i);
        const int64_t high = __shfl_sync(all, (unsigned) ((uint64_t) (uintptr_t) out >> 32), 16 * i);
        if (lane < T::bytes && i < count) {
            reinterpret_cast<char *>(high << 32 | low)[lane] = (char) (word ? byte : 0);
        }
    }
}

static __device__ __forceinline__ void encode_two(int type, const float * x, const encoder_tables & tables, char * out,
                                                  int count, int lane) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count_)      \
    case TQ_TYPE_##NAME:                                         \
        encode_two<TQ_TYPE_##NAME>(x, tables, out, count, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}

} // namespace tq_cuda
