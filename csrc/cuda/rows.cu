// A warp encodes a block: its lanes price the candidates, 16 to a codebook (tq_device.h). With a thread for each block
// the 32 blocks of a token's row would fill one warp, and decode would wait for it.
#include "rows.h"

#include "tq.h"
#include "tq_device.h"

namespace {

constexpr int warps = 8; // of a thread block
constexpr unsigned all = 0xFFFFFFFFu;

template <int type> struct spec;

#define TQ_TYPE(NAME, name, id, bits_, bytes_, start_, count_)                          \
    template <> struct spec<TQ_TYPE_##NAME> {                                           \
        static constexpr int bits = bits_, bytes = bytes_, count = count_;              \
        static constexpr float start = start_ / 16384.0f;                               \
        static __device__ const signed char * books() { return tq_codebook_##name[0]; } \
    };
#include "types.def"
#undef TQ_TYPE

// 64-bit division takes a hundred instructions.
static __device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : (int64_t) ((unsigned) a / (unsigned) b);
}

// Offset of value i of the flattened tensor, whose values or blocks of `unit` values have nb[0] bytes.
static __device__ int64_t offset_of(const tq_rows_view & t, int64_t i, int unit) {
    const int64_t row = divide(i, t.ne[0]), i0 = i - row * t.ne[0];
    const int64_t plane = divide(row, t.ne[1]), i1 = row - plane * t.ne[1];
    const int64_t i3 = divide(plane, t.ne[2]), i2 = plane - i3 * t.ne[2];
    return i0 / unit * t.nb[0] + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
}

static __device__ int64_t load_id(const tq_rows_ids & ids, int64_t i0, int64_t i1, int64_t i2) {
    const char * p = ids.data + i0 * ids.nb[0] + i1 * ids.nb[1] + i2 * ids.nb[2];
    return ids.bytes == 8 ? *(const int64_t *) p : *(const int32_t *) p;
}

static __device__ tq_dev_choice cheapest(tq_dev_choice c) {
    for (int step = 8; step > 0; step >>= 1) {
        const tq_dev_choice other = {__shfl_xor_sync(all, c.code, step), __shfl_xor_sync(all, c.order, step),
                                     __shfl_xor_sync(all, c.price, step)};
        c = tq_dev_is_better(other, c) ? other : c;
    }
    return c;
}

// The level nearest to v, at v + 128, in both codebooks. Made by the compiler: in decode, where there is little to
// encode, building it would take as long as all the rest.
struct alignas(16) nearest_levels {
    signed char level[2][256];
};

template <int bits> constexpr nearest_levels nearest_in(const signed char (&books)[2][1 << bits]) {
    nearest_levels r = {};
    for (int c = 0; c < 2; c++) {
        int index = 0;
        for (int v = -128; v < 128; v++) {
            while (index + 1 < 1 << bits && books[c][index] + books[c][index + 1] <= 2 * v) {
                index++;
            }
            r.level[c][v + 128] = books[c][index];
        }
    }
    return r;
}

template <int type> struct nearest_table;

#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                     \
    __device__ constexpr nearest_levels nearest_##name = nearest_in<bits>(tq_codebook_##name); \
    template <> struct nearest_table<TQ_TYPE_##NAME> {                                         \
        static __device__ const nearest_levels & get() { return nearest_##name; }              \
    };
#include "types.def"
#undef TQ_TYPE

template <int type>
__global__ void encode(tq_rows_view src, bool src_is_half, tq_rows_ids ids, tq_rows_view dst, int64_t blocks) {
    using T = spec<type>;
    __shared__ signed char books[2][16];
    __shared__ nearest_levels nearest;
    __shared__ __align__(16) float values[warps][TQ_BLOCK];
    const auto & level = nearest.level;
    for (int i = threadIdx.x; i < 2 << T::bits; i += blockDim.x) {
        books[i >> T::bits][i & ((1 << T::bits) - 1)] = T::books()[i];
    }
    for (int i = threadIdx.x; i < (int) sizeof(nearest) / 4; i += blockDim.x) {
        reinterpret_cast<unsigned *>(&nearest)[i] = reinterpret_cast<const unsigned *>(&nearest_table<type>::get())[i];
    }
    __syncthreads();

    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    float * x = values[warp];
    for (int64_t b = (int64_t) blockIdx.x * warps + warp; b < blocks; b += (int64_t) gridDim.x * warps) {
        const int64_t first = b * TQ_BLOCK;
        // a row of a source need not be a whole number of blocks
        const char * p = src.ne[0] % TQ_BLOCK == 0 ? src.data + offset_of(src, first, 1) + lane * src.nb[0]
                                                   : src.data + offset_of(src, first + lane, 1);
        const float value = tq_dev_clean(src_is_half ? __half2float(*(const half *) p) : *(const float *) p);
        float amax = fabsf(value);
        for (int step = 8; step > 0; step >>= 1) {
            amax = fmaxf(amax, __shfl_xor_sync(all, amax, step));
        }
        const float amax0 = __shfl_sync(all, amax, 0), amax1 = __shfl_sync(all, amax, 16);
        __syncwarp();
        x[lane] = value;
        __syncwarp();

        unsigned char byte = 0;
        if (amax0 >= TQ_MAGNITUDE_MIN || amax1 >= TQ_MAGNITUDE_MIN) {
            const tq_dev_spec s = {T::bits, T::count, T::start};
            const int half_warp = lane >> 4;
            tq_dev_choice pair[2];
            pair[0] = cheapest(tq_dev_candidate(s, x, amax0, lane, level[half_warp]));
            pair[1] = cheapest(tq_dev_candidate(s, x + TQ_SUB_BLOCK, amax1, lane, level[half_warp]));
            const int e = tq_dev_settle(x, pair, level[half_warp]);
            const float total = __fadd_rn(pair[0].price, pair[1].price);
            const int book = __shfl_sync(all, total, 16) < __shfl_sync(all, total, 0);
            const unsigned word = __shfl_sync(all, tq_dev_word(e, book, pair), 16 * book);
            tq_dev_choice mine;
            const int code0 = __shfl_sync(all, pair[0].code, 16 * book);
            const int code1 = __shfl_sync(all, pair[1].code, 16 * book);
            const int order0 = __shfl_sync(all, pair[0].order, 16 * book);
            const int order1 = __shfl_sync(all, pair[1].order, 16 * book);
            mine.code = half_warp ? code1 : code0;
            mine.order = half_warp ? order1 : order0;
            mine.price = 0;
            const int index = tq_dev_assign(T::bits, value, mine, books[book]);
            unsigned plane[4] = {0, 0, 0, 0};
#pragma unroll
            for (int bit = 0; bit < T::bits; bit++) {
                plane[bit] = __ballot_sync(all, index >> bit & 1);
            }
            byte = lane < 2 ? (unsigned char) (word >> 8 * lane) : tq_dev_pack(T::bits, plane, lane - 2);
        }
        char * out;
        if (ids.bytes) {
            const int64_t row = divide(first, src.ne[0]), i0 = first - row * src.ne[0];
            const int64_t plane = divide(row, src.ne[1]), i1 = row - plane * src.ne[1];
            const int64_t i3 = divide(plane, src.ne[2]), i2 = plane - i3 * src.ne[2];
            out = dst.data + i0 / TQ_BLOCK * dst.nb[0] +
                  load_id(ids, i1, i2 - divide(i2, ids.ne[1]) * ids.ne[1], i3 - divide(i3, ids.ne[2]) * ids.ne[2]) *
                      dst.nb[1] +
                  i2 * dst.nb[2] + i3 * dst.nb[3];
        } else {
            out = dst.data + offset_of(dst, first, TQ_BLOCK);
        }
        if (lane < T::bytes) {
            out[lane] = (char) byte;
        }
    }
}

template <int type>
__global__ void decode(tq_rows_view src, tq_rows_ids ids, tq_rows_view dst, bool dst_is_half, int64_t blocks) {
    using T = spec<type>;
    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    for (int64_t b = (int64_t) blockIdx.x * warps + warp; b < blocks; b += (int64_t) gridDim.x * warps) {
        const int64_t first = b * TQ_BLOCK;
        const char * in;
        if (ids.bytes) {
            const int64_t row = divide(first, dst.ne[0]), i0 = first - row * dst.ne[0];
            const int64_t plane = divide(row, dst.ne[1]), r = row - plane * dst.ne[1];
            const int64_t i2 = divide(plane, dst.ne[2]), i1 = plane - i2 * dst.ne[2];
            in = src.data + i0 / TQ_BLOCK * src.nb[0] + load_id(ids, r, i1, i2) * src.nb[1] + i1 * src.nb[2] +
                 i2 * src.nb[3];
        } else {
            in = src.data + offset_of(src, first, TQ_BLOCK);
        }
        const float value = tq_dev_value(T::bits, T::books(), (const unsigned char *) in, lane);
        char * out = dst.ne[0] % TQ_BLOCK == 0 ? dst.data + offset_of(dst, first, 1) + lane * dst.nb[0]
                                               : dst.data + offset_of(dst, first + lane, 1);
        if (dst_is_half) {
            *(half *) out = __float2half_rn(value);
        } else {
            *(float *) out = value;
        }
    }
}

template <int bytes> __global__ void copy(tq_rows_view src, tq_rows_view dst, int64_t blocks) {
    constexpr int words = bytes / 2; // a block may lie at any even address
    const int64_t n = blocks * words;
    for (int64_t i = (int64_t) blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x * blockDim.x) {
        const int64_t b = i / words, word = i - b * words;
        const char * in = src.data + offset_of(src, b * TQ_BLOCK, TQ_BLOCK);
        char * out = dst.data + offset_of(dst, b * TQ_BLOCK, TQ_BLOCK);
        ((unsigned short *) out)[word] = ((const unsigned short *) in)[word];
    }
}

static int64_t blocks_of(const tq_rows_view & t) {
    return t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3] / TQ_BLOCK;
}

static unsigned grid_for(int64_t blocks) {
    const int64_t needed = (blocks + warps - 1) / warps;
    return (unsigned) (needed < 1 << 16 ? needed : 1 << 16);
}

} // namespace

void tq_cuda_encode(int type, const tq_rows_view & src, bool src_is_half, const tq_rows_ids & ids,
                    const tq_rows_view & dst, cudaStream_t stream) {
    const int64_t blocks = blocks_of(src);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                             \
    case TQ_TYPE_##NAME:                                                                                               \
        encode<TQ_TYPE_##NAME><<<grid_for(blocks), warps * TQ_LANES, 0, stream>>>(src, src_is_half, ids, dst, blocks); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}

void tq_cuda_decode(int type, const tq_rows_view & src, const tq_rows_ids & ids, const tq_rows_view & dst,
                    bool dst_is_half, cudaStream_t stream) {
    const int64_t blocks = blocks_of(dst);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                             \
    case TQ_TYPE_##NAME:                                                                                               \
        decode<TQ_TYPE_##NAME><<<grid_for(blocks), warps * TQ_LANES, 0, stream>>>(src, ids, dst, dst_is_half, blocks); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}

void tq_cuda_copy(int type, const tq_rows_view & src, const tq_rows_view & dst, cudaStream_t stream) {
    const int64_t blocks = blocks_of(src);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                \
    case TQ_TYPE_##NAME:                                                                  \
        copy<bytes><<<grid_for(blocks), warps * TQ_LANES, 0, stream>>>(src, dst, blocks); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}
