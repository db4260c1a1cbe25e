// What the kernels for many query columns share: prefill.cu, hopper.cu.
#pragma once

#include "split.h"
#include "unpack.cuh"

namespace tq_cuda {

constexpr unsigned all = 0xFFFFFFFFu;
constexpr float log2e = 1.44269504f;
constexpr int most_warps = 8;

enum { unseen, partly, open };

struct prefill_arguments {
    tq_cuda_attn a;
    staging k, v;
    int group, columns, column_tiles, splits, tiles, tile_columns;
    int q_offset, k_offset, v_offset, raw_offset, raw_v_offset, raw_bytes, window_offset; // in shared memory
    unsigned char * seen; // [mask stream, column tile, tile]
    uint4 * pairs;        // of centred keys
    float * pair_factors;
    float * partial;
    float2 * partial_state;
};

// A packed block of shared memory, `block` of the row that begins there, to halves: store(i, ...) puts the i-th eight.
template <int type, class Store>
__device__ __forceinline__ void unpack_block(place row, int block, const Store & store) {
    using F = format<type>;
    const unsigned odd = block * F::block_bytes & 2; // rows begin at multiples of four
    const place in = row + (block * F::block_bytes - odd);
    half_block r[2];
    if constexpr (type != TQ_CUDA_F16) {
        load_both<type>(in, odd, F::load_books(), r);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        half2 x[8];
        if constexpr (type == TQ_CUDA_F16) {
            values_of_f16(in, h, x);
        } else {
            values_of<type>(r[h], x);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            store(2 * h + i, as_word(x[4 * i]), as_word(x[4 * i + 1]), as_word(x[4 * i + 2]), as_word(x[4 * i + 3]));
        }
    }
}

template <class Store>
__device__ __forceinline__ void unpack_block(int type, place row, int block, const Store & store) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        unpack_block<TQ_TYPE_##NAME>(row, block, store);   \
        break;
#include "types.def"
#undef TQ_TYPE
        case TQ_CUDA_Q8_0:
            unpack_block<TQ_CUDA_Q8_0>(row, block, store);
            break;
        default:
            unpack_block<TQ_CUDA_F16>(row, block, store);
    }
}

// Centred keys: G of every column, in two halves each, as mma wants it: [stream, kv head, 16 columns, step of 16
// values, high or low, lane]. What takes a factor out of G and gives it to the offsets follows, [stream, kv head,
// column].
constexpr int pair_columns = 16, pair_warps = 8;

constexpr int window = 16; // chunks whose offsets a warp has at hand

// The offsets of `window` chunks from `first` on for the 16 MT columns of a warp, [chunk][column], by mma: G times
// turns, which are split in two halves as well. `ratios` are the factors of offsets over those of products.
template <int MT>
static __device__ __forceinline__ void offsets_of_chunks(float * offsets, const uint4 * pairs, const float * ratios,
                                                         const tq_cuda_attn & a, int first, int lane) {
    const int g = lane >> 2, t = lane & 3, steps = a.k.dim / 16;
    float sum[MT][window / 8][4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        unsigned high_turn[window / 8][2], low_turn[window / 8][2];
#pragma unroll
        for (int n = 0; n < window / 8; n++) {
            const float * turn = a.turns + (int64_t) min(first + 8 * n + g, a.chunks - 1) * a.k.dim + 16 * step + 2 * t;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                split_float2(*reinterpret_cast<const float2 *>(turn + 8 * j), high_turn[n][j], low_turn[n][j]);
            }
        }
#pragma unroll
        for (int m = 0; m < MT; m++) {
            const uint4 h = pairs[(m * steps + step) * 64 + lane], l = pairs[(m * steps + step) * 64 + 32 + lane];
            const unsigned high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int n = 0; n < window / 8; n++) {
                mma(sum[m][n], high, high_turn[n]);
                mma(sum[m][n], high, low_turn[n]);
                mma(sum[m][n], low, high_turn[n]);
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < window / 8; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = 16 * m + g + 8 * (j >> 1);
                offsets[(8 * n + 2 * t + (j & 1)) * 16 * MT + column] = sum[m][n][j] * ratios[column];
            }
        }
    }
    __syncwarp();
}

// The tiles that a column sees, from the candidate on.
struct tiles_seen {
    int candidate, end;
    const unsigned char * seen; // or null: all

    // The next, or -1: the same for all threads.
    __device__ __forceinline__ int next(int lane) {
        while (candidate < end && seen) {
            const unsigned found = __ballot_sync(all, candidate + lane < end && seen[candidate + lane] != unseen);
            if (found) {
                candidate += __ffs(found) - 1;
                break;
            }
            candidate += 32;
        }
        return candidate < end ? candidate++ : -1;
    }
};

// Those of a block: its part of all tiles.
static __device__ __forceinline__ tiles_seen tiles_of(const prefill_arguments & p, int split, int column_tile,
                                                      int stream) {
    const tq_cuda_attn & a = p.a;
    return {(int) ((int64_t) p.tiles * split / p.splits), (int) ((int64_t) p.tiles * (split + 1) / p.splits),
            a.mask ? p.seen + ((int64_t) (stream % a.mask_streams) * p.column_tiles + column_tile) * p.tiles : nullptr};
}

// Starts to copy the packed rows of a tile.
template <int R>
static __device__ __forceinline__ void stage_tile(char * to, const prefill_arguments & p, const char * keys,
                                                  const char * values, int tile, int warp, int lane) {
    const tq_cuda_attn & a = p.a;
    for (int part = warp; part < 2 * (R / 32); part += blockDim.x / 32) {
        const int within = part / 2 * 32, row = tile * R + within;
        const int rows = max(min(a.kv_rows - row, 32), 0);
        if (part & 1) {
            stage_rows(to + p.raw_v_offset + within * p.v.stride, p.v, values + row * a.v.row_stride, a.v.row_stride,
                       rows, lane);
        } else {
            stage_rows(to + within * p.k.stride, p.k, keys + row * a.k.row_stride, a.k.row_stride, rows, lane);
        }
    }
}

// Room for two tiles of packed rows, and how many tiles there are; `offset` and what follows is in shared memory.
inline void place_packed(prefill_arguments & p, int offset, int rows) {
    const auto padded = [](int bytes) { return (bytes + 15) / 16 * 16; };
    p.raw_offset = offset;
    p.raw_v_offset = padded(rows * p.k.stride + 8); // the last block is read four bytes past its end
    p.raw_bytes = p.raw_v_offset + padded(rows * p.v.stride + 8);
    p.window_offset = p.raw_offset + 2 * p.raw_bytes;
    p.tiles = (p.a.kv_rows + rows - 1) / rows;
    p.column_tiles = (p.columns + p.tile_columns - 1) / p.tile_columns;
}

// hopper.cu: whether it takes the shapes, where things lie in how much shared memory, and the kernel.
bool hopper_takes(const tq_cuda_attn & a, const tq_cuda_device & device);
size_t hopper_lay_out(prefill_arguments & p);
void hopper_run(const prefill_arguments & p, size_t shared, cudaStream_t stream);

} // namespace tq_cuda
