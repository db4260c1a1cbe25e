// Attention for few query columns (query heads of a KV head, times tokens): each block of the cache is unpacked once
// for all of them, straight into the registers that mma wants. Bytes come from memory packed and stay packed in shared
// memory; no value is ever stored unpacked.
//
// A warp works alone on tiles of 32 cache rows, two stages of cp.async deep, with its own running maximum; the warps
// of a block, and then the blocks of a split cache, are merged at the end. Lane = 4g + t.
//
//   scores    S^T = K Q^T: rows of the cache are the 16 of mma, columns its 8. A lane must hold 4 values of each of
//             two rows in every step of 16; which, is free as long as Q agrees. So it takes one whole block t (and
//             t + 4) of rows g and g + 8: one scale word and one choice of codebook for 32 values. Eight steps use
//             them up.
//   weights   exp2 of S^T, two columns to a lane, transposed by movmatrix into the operand of the next product
//   values    O^T = V^T P^T: 16 values of the head by 8 columns. Values are unpacked as keys are, and their pairs
//             transposed by movmatrix: row 8i + g of a product is value g & 1 of a pair of block g >> 1.
//
// What limits it is the integer units, which look up, choose and widen: 55 % busy at 131072 rows on an H100, where
// memory delivers 1.3 of 3.3 TB/s. What lost there, in us for 32 query heads over 8 KV heads of 128, tq4_0 (tq3_0),
// against 130 (103) on the same machine:
//   139 (113)  values owned by half blocks, their pairs interleaved as bytes instead of transposed by movmatrix
//   174 (115)  five blocks of four warps with 96 registers each, which spill
// and against 119 (96):
//   122 (94)   both groups of 16 rows unrolled: no faster, with twice the code
//   122 (98)   blocks of four warps instead of eight; 27 instead of 17 us where there are only 256 rows

#include <cmath>

#include "split.h"
#include "unpack.cuh"

namespace tq_cuda {

namespace {

constexpr int most_warps = 8; // of a block; fewer where shared memory is short
constexpr int tile = 32;      // rows
constexpr int stages = 2;
constexpr unsigned all = 0xFFFFFFFFu;
constexpr float log2e = 1.44269504f;

struct arguments {
    tq_cuda_attn a;
    staging k, v;
    int group, columns, column_tiles, splits, tiles, warps;
    int stage_bytes, v_offset, mask_offset; // of a stage of a warp
    float * partial;                        // [stream, token, head, split, v.dim], where there are several splits
    float2 * partial_state;                 // maximum and sum of each of its rows
};

template <int D, int NT> struct work {
    static constexpr int columns = 8 * NT, key_blocks = D / 128, value_blocks = D / 128;
    unsigned q[NT][8 * key_blocks][2];
    float o[NT][8 * value_blocks][4];
    float sum[NT][4]; // of the rounded weights, by the same mma: times ones
    float s[2][NT][4];
};

template <int type, int D, int NT>
__device__ __forceinline__ void scores(work<D, NT> & w, place rows, int stride, int blocks, int lane) {
    using F = format<type>;
    const int g = lane >> 2, t = lane & 3;
    const books b = F::load_books();
#pragma unroll 1 // half the code: what the warps of a multiprocessor run at once has to fit its instruction cache
    for (int m = 0; m < 2; m++) {
        float s[NT][4];
#pragma unroll
        for (int n = 0; n < NT; n++) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
        }
#pragma unroll
        for (int u = 0; u < w.key_blocks; u++) {
            // past the end the query is zero
            const int offset = (t + 4 * u < blocks ? t + 4 * u : 0) * F::block_bytes;
            const unsigned odd = offset & 2; // rows begin at multiples of four
            const place block0 = rows + (16 * m + g) * stride + (offset - odd), block1 = block0 + 8 * stride;
            half_block r0[2], r1[2];
            if constexpr (type != TQ_CUDA_F16) {
                load_both<type>(block0, odd, b, r0);
                load_both<type>(block1, odd, b, r1);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                half2 x0[8], x1[8];
                if constexpr (type == TQ_CUDA_F16) {
                    values_of_f16(block0, h, x0);
                    values_of_f16(block1, h, x1);
                } else {
                    values_of<type>(r0[h], x0);
                    values_of<type>(r1[h], x1);
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const unsigned a[4] = {as_word(x0[2 * r]), as_word(x1[2 * r]), as_word(x0[2 * r + 1]),
                                           as_word(x1[2 * r + 1])};
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        mma(s[n], a, w.q[n][8 * u + 4 * h + r]);
                    }
                }
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                w.s[0][n][j] = w.s[1][n][j];
                w.s[1][n][j] = s[n][j];
            }
        }
    }
}

template <int type, int D, int NT>
__device__ __forceinline__ void values(work<D, NT> & w, unsigned (&p)[2][NT][2], place rows, int stride, int blocks,
                                       int lane) {
    using F = format<type>;
    const int g = lane >> 2, t = lane & 3;
    const books b = F::load_books();
#pragma unroll 1
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int u = 0; u < w.value_blocks; u++) {
            // past the end nobody reads the sums
            const int offset = (t + 4 * u < blocks ? t + 4 * u : 0) * F::block_bytes;
            const unsigned odd = offset & 2; // rows begin at multiples of four
            const place block0 = rows + (16 * m + g) * stride + (offset - odd), block1 = block0 + 8 * stride;
            half_block r0[2], r1[2];
            if constexpr (type != TQ_CUDA_F16) {
                load_both<type>(block0, odd, b, r0);
                load_both<type>(block1, odd, b, r1);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                half2 x0[8], x1[8];
                if constexpr (type == TQ_CUDA_F16) {
                    values_of_f16(block0, h, x0);
                    values_of_f16(block1, h, x1);
                } else {
                    values_of<type>(r0[h], x0);
                    values_of<type>(r1[h], x1);
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const unsigned a[4] = {transpose(as_word(x0[2 * r])), transpose(as_word(x0[2 * r + 1])),
                                           transpose(as_word(x1[2 * r])), transpose(as_word(x1[2 * r + 1]))};
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        mma(w.o[n][8 * u + 4 * h + r], a, p[0][n]);
                    }
                }
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            p[0][n][0] = p[1][n][0];
            p[0][n][1] = p[1][n][1];
        }
    }
}

// The offset that centred keys with this id add to the scores of column g (and 8 more), before the scale; to all lanes
// of a column. G is in shared memory, a row of `stride` floats for each column.
template <int NT>
__device__ __forceinline__ void centre(float (&offset)[NT], const float * G, int stride, const float * turns, int id,
                                       int dim, int lane) {
    const int g = lane >> 2, t = lane & 3, quarter = dim / 4;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        offset[n] = 0.0f;
    }
    if (id != 0) {
        const float * row = turns + (int64_t) id * dim + t * quarter;
        const float * column = G + g * stride + t * quarter;
#pragma unroll 2
        for (int i = 0; i < quarter; i += 4) {
            const float4 y = *reinterpret_cast<const float4 *>(row + i);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const float4 x = *reinterpret_cast<const float4 *>(column + 8 * n * stride + i);
                offset[n] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            offset[n] += __shfl_xor_sync(all, offset[n], 1);
            offset[n] += __shfl_xor_sync(all, offset[n], 2);
        }
    }
}

// Centred keys have instances of their own: their offsets take registers that the others would spill.
template <int D, int NT, bool centred>
__global__ __launch_bounds__(most_warps * 32, D * NT > 128 ? 1 : 2) void decode(const arguments p) {
    using W = work<D, NT>;
    extern __shared__ __align__(16) char shared[];
    const tq_cuda_attn & a = p.a;
    const int warps = p.warps, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const int split = blockIdx.x, kv_head = blockIdx.y / p.column_tiles, stream = blockIdx.z;
    const int first_column = blockIdx.y % p.column_tiles * W::columns;
    const int kv_stream = stream / (a.streams / a.kv_streams);
    char * const mine = shared + warp * stages * p.stage_bytes;
    float4 * const constants = // of the columns, for each warp: factor of a product, slope, place of the mask, offset
        reinterpret_cast<float4 *>(shared + warps * stages * p.stage_bytes) + warp * W::columns;
    float * const G = reinterpret_cast<float *>(shared + warps * (stages * p.stage_bytes + W::columns * 16));
    const int G_stride = a.k.dim + 4;

    const auto token_of = [&](int column) { return min(first_column + column, p.columns - 1) / p.group; };
    const auto head_of = [&](int column) {
        return kv_head * p.group + min(first_column + column, p.columns - 1) % p.group;
    };
    const auto slope_of = [&](int column) {
        if (a.max_bias == 0.0f) {
            return 1.0f;
        }
        const int head = head_of(column), power = 1 << (31 - __clz(a.heads));
        return exp2f(-a.max_bias / power * (head < power ? head + 1 : head - power + 0.5f));
    };

    W w;
    const bool planes = a.k.type == TQ_TYPE_TQ3_0 || a.k.type == TQ_TYPE_TQ2_1;
    const bool k_is_tq = a.k.type < TQ_TYPE_COUNT, v_is_tq = a.v.type < TQ_TYPE_COUNT;
    const int first_token = token_of(0), key_blocks = a.k.dim / TQ_BLOCK, value_blocks = a.v.dim / TQ_BLOCK;
    const float to_score = a.softcap == 0.0f ? a.scale * log2e : a.scale / a.softcap;

    // The queries, each as halves of at most 2 in magnitude, and the power of two that was taken out. Of a column a
    // lane keeps what it multiplies with its blocks; the constants of columns wait in shared memory.
    const auto prepare = [&]() {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const int column = g + 8 * n;
            const char * q = a.q + token_of(column) * a.q_token_stride + head_of(column) * a.q_head_stride +
                             stream * a.q_stream_stride;
            const bool is_there = first_column + column < p.columns;
            float x[W::key_blocks][TQ_BLOCK], top = 0.0f;
#pragma unroll
            for (int u = 0; u < W::key_blocks; u++) {
#pragma unroll
                for (int i = 0; i < TQ_BLOCK; i++) {
                    x[u][i] = is_there && t + 4 * u < key_blocks
                                  ? reinterpret_cast<const float *>(q)[TQ_BLOCK * (t + 4 * u) + i]
                                  : 0.0f;
                    top = fmaxf(top, fabsf(x[u][i]));
                }
            }
            top = fmaxf(top, __shfl_xor_sync(all, top, 1));
            top = fmaxf(top, __shfl_xor_sync(all, top, 2));
            const unsigned exponent = max(min(__float_as_uint(top) >> 23, 253u), 1u);
            const float down = __uint_as_float((254 - exponent) << 23), up = __uint_as_float(exponent << 23);
#pragma unroll
            for (int u = 0; u < W::key_blocks; u++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const int h = i >> 2, r = i & 3;
                        const float low =
                            planes ? x[u][tq_dev_place(1, h, r, 2 * j)] : x[u][tq_dev_place(0, h, r, 2 * j)];
                        const float high =
                            planes ? x[u][tq_dev_place(1, h, r, 2 * j + 1)] : x[u][tq_dev_place(0, h, r, 2 * j + 1)];
                        w.q[n][8 * u + i][j] = as_word(__floats2half2_rn(low * down, high * down));
                    }
                }
            }
            if (t == 0) {
                const int mask = (a.mask_heads > 1 ? column : token_of(column) - first_token) * tile;
                constants[column] = make_float4(up * (k_is_tq ? 16.0f : 1.0f) * to_score, slope_of(column) * log2e,
                                                __int_as_float(mask), 0.0f);
            }
        }
        __syncwarp();
    };
    if (centred) {
        for (int i = threadIdx.x; i < W::columns * a.k.dim; i += warps * 32) {
            const int column = i / a.k.dim, x = i - column * a.k.dim;
            const float * q =
                reinterpret_cast<const float *>(a.q_plain + token_of(column) * a.qp_token_stride +
                                                head_of(column) * a.qp_head_stride + stream * a.qp_stream_stride);
            const float * mean = a.mean + kv_head * a.k.dim;
            G[column * G_stride + x] = paired(q, mean, x, a.n_rot, a.neox);
        }
        __syncthreads();
    }

    // --- the tiles of this warp ---
    const int64_t unit = (int64_t) p.splits * warps, rank = (int64_t) split * warps + warp;
    const int last_tile = (int) (p.tiles * (rank + 1) / unit);
    int candidate = (int) (p.tiles * rank / unit);

    // Read anew for every tile: registers are short, and a spilled one comes back from the second level cache, because
    // copies pass through the first.
    __shared__ struct {
        const char *keys, *cells,
            *open; // open: the mask of the first token; of its first head, unless each has its own
        const int * ids;
    } at_once;
    const volatile auto & at = at_once;
    if (threadIdx.x == 0) {
        at_once.keys = a.k.data + kv_head * a.k.head_stride + kv_stream * a.k.stream_stride;
        at_once.cells = a.v.data + kv_head * a.v.head_stride + kv_stream * a.v.stream_stride;
        at_once.open = a.mask
                           ? a.mask + stream % a.mask_streams * a.mask_stream_stride + first_token * a.mask_token_stride
                           : nullptr;
        at_once.ids = a.ids + (int64_t) kv_stream * a.kv_rows;
    }
    __syncthreads();
    const int masks = a.mask_heads > 1 ? W::columns : token_of(W::columns - 1) - first_token + 1;
    const auto mask_at = [&](int i, int row) {
        if (row >= a.kv_rows) {
            return (unsigned short) 0xFC00; // minus infinity
        }
        const char * m = at.open;
        if (!m) {
            return (unsigned short) 0;
        }
        if (a.mask_heads > 1) {
            m += (token_of(i) - first_token) * a.mask_token_stride + head_of(i) % a.mask_heads * a.mask_head_stride;
        } else if (i > 0) {
            m += i * a.mask_token_stride;
        }
        return reinterpret_cast<const unsigned short *>(m)[row];
    };
    // The mask decides which tile is read next, so that of the next candidate is already on its way, and nothing looks
    // at it before its turn.
    unsigned short ahead = candidate < last_tile ? mask_at(0, candidate * tile + lane) : 0;

    // Starts to read the next tile that a query sees, and answers its first row, or -1.
    const auto start = [&](int stage) {
        char * const to = mine + stage * p.stage_bytes;
        float * const mask = reinterpret_cast<float *>(to + p.mask_offset);
        int row = -1;
        while (row < 0 && candidate < last_tile) {
            const int first = candidate * tile;
            unsigned short m = ahead;
            candidate++;
            ahead = candidate < last_tile ? mask_at(0, candidate * tile + lane) : 0;
            bool seen = m != 0xFC00;
            mask[lane] = __half2float(__ushort_as_half(m));
#pragma unroll 1
            for (int i = 1; i < masks; i++) {
                m = mask_at(i, first + lane);
                seen |= m != 0xFC00;
                mask[i * tile + lane] = __half2float(__ushort_as_half(m));
            }
            if (__any_sync(all, seen)) {
                row = first;
            }
        }
        if (row >= 0) {
            const int rows = min(tile, a.kv_rows - row);
            stage_rows(to, p.k, at.keys + row * a.k.row_stride, a.k.row_stride, rows, lane);
            stage_rows(to + p.v_offset, p.v, at.cells + row * a.v.row_stride, a.v.row_stride, rows, lane);
        }
        copy_commit();
        return row;
    };

    float top[NT][2];
    int offset_id = 0; // to which the offsets among the constants belong
    for (int row = -2, stage = 1, next; row != -1; row = next, stage ^= 1) {
        next = start(stage ^ 1);
        if (row < 0) {
            prepare(); // while the first tile is on its way
#pragma unroll
            for (int n = 0; n < NT; n++) {
                top[n][0] = top[n][1] = -INFINITY;
                w.sum[n][0] = w.sum[n][1] = w.sum[n][2] = w.sum[n][3] = 0.0f;
#pragma unroll
                for (int i = 0; i < 8 * W::value_blocks; i++) {
                    w.o[n][i][0] = w.o[n][i][1] = w.o[n][i][2] = w.o[n][i][3] = 0.0f;
                }
            }
            continue;
        }
        copy_wait<1>();
        __syncwarp();
        const char * const here = mine + stage * p.stage_bytes;
        const float * const mask = reinterpret_cast<const float *>(here + p.mask_offset);

        switch (a.k.type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                       \
    case TQ_TYPE_##NAME:                                                         \
        scores<TQ_TYPE_##NAME>(w, place_of(here), p.k.stride, key_blocks, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
            case TQ_CUDA_Q8_0:
                scores<TQ_CUDA_Q8_0>(w, place_of(here), p.k.stride, key_blocks, lane);
                break;
            default:
                scores<TQ_CUDA_F16>(w, place_of(here), p.k.stride, key_blocks, lane);
        }

#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float factor = constants[8 * n + 2 * t + j].x;
                    w.s[m][n][j] *= factor;
                    w.s[m][n][j + 2] *= factor;
                }
            }
        }
        if (centred) {
            const int id = row + lane < a.kv_rows ? at.ids[row + lane] : 0;
            unsigned todo = all;
            while (todo) { // chunks are runs of rows: once or twice
                const int this_id = __shfl_sync(all, id, __ffs(todo) - 1);
                const unsigned same = __ballot_sync(all, id == this_id);
                todo &= ~same;
                if (this_id != offset_id) {
                    float by_column[NT];
                    centre(by_column, G, G_stride, a.turns, this_id, a.k.dim, lane);
                    __syncwarp();
                    if (t == 0) {
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            constants[8 * n + g].w = by_column[n] * to_score;
                        }
                    }
                    __syncwarp();
                    offset_id = this_id;
                }
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    const float offset0 = constants[8 * n + 2 * t].w, offset1 = constants[8 * n + 2 * t + 1].w;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const bool has = same >> (8 * i + g) & 1;
                        w.s[i >> 1][n][(i & 1) * 2] += has ? offset0 : 0.0f;
                        w.s[i >> 1][n][(i & 1) * 2 + 1] += has ? offset1 : 0.0f;
                    }
                }
            }
        }
        if (a.softcap != 0.0f) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        w.s[m][n][j] = capped(w.s[m][n][j]) * (a.softcap * log2e);
                    }
                }
            }
        }

        bool moved = false;
        float shrink[NT][2];
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float4 constant = constants[8 * n + 2 * t + j];
                const float * by_row = mask + __float_as_int(constant.z) + g;
                float most = top[n][j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float & s = w.s[i >> 1][n][(i & 1) * 2 + j];
                    s += constant.y * by_row[8 * i];
                    most = fmaxf(most, s);
                }
                most = fmaxf(most, __shfl_xor_sync(all, most, 4));
                most = fmaxf(most, __shfl_xor_sync(all, most, 8));
                most = fmaxf(most, __shfl_xor_sync(all, most, 16));
                moved |= most > top[n][j];
                const float base = most == -INFINITY ? 0.0f : most - headroom;
                shrink[n][j] = exp2f(top[n][j] - most);
                top[n][j] = most;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float & s = w.s[i >> 1][n][(i & 1) * 2 + j];
                    s = exp2f(s - base);
                }
            }
        }
        if (__any_sync(all, moved)) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float by = top[n][j] == -INFINITY ? 1.0f : shrink[n][j];
                    w.sum[n][j] *= by;
#pragma unroll
                    for (int i = 0; i < 8 * W::value_blocks; i++) {
                        w.o[n][i][j] *= by;
                        w.o[n][i][j + 2] *= by;
                    }
                }
            }
        }
        unsigned weights[2][NT][2];
        const unsigned ones[4] = {0x3C003C00u, 0x3C003C00u, 0x3C003C00u, 0x3C003C00u};
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    weights[m][n][i] = transpose(as_word(__floats2half2_rn(w.s[m][n][2 * i], w.s[m][n][2 * i + 1])));
                }
                mma(w.sum[n], ones, weights[m][n]);
            }
        }

        switch (a.v.type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                               \
    case TQ_TYPE_##NAME:                                                                                 \
        values<TQ_TYPE_##NAME>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
            case TQ_CUDA_Q8_0:
                values<TQ_CUDA_Q8_0>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane);
                break;
            default:
                values<TQ_CUDA_F16>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane);
        }
        __syncwarp(); // before the next start() writes to this stage
    }

    // --- the warps of the block, merged ---
    copy_wait<0>();
    __syncthreads();
    float * const state = reinterpret_cast<float *>(shared); // [warp][maximum, sum][column]
    float * const sums = state + warps * 2 * W::columns;     // [warp][column][value, one more]
    const int sums_stride = a.v.dim + 1;
    const bool v_planes = a.v.type == TQ_TYPE_TQ3_0 || a.v.type == TQ_TYPE_TQ2_1;
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = 8 * n + 2 * t + j;
            if (g == 0) {
                state[warp * 2 * W::columns + column] = top[n][j];
                state[warp * 2 * W::columns + W::columns + column] = w.sum[n][j];
            }
#pragma unroll
            for (int u = 0; u < W::value_blocks; u++) {
                const int block = (g >> 1) + 4 * u, odd = g & 1;
                if (block < value_blocks) {
                    float * to = sums + (warp * W::columns + column) * sums_stride + block * TQ_BLOCK;
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        to[tq_dev_place(v_planes, i >> 2, i & 3, odd)] = w.o[n][8 * u + i][j];
                        to[tq_dev_place(v_planes, i >> 2, i & 3, 2 + odd)] = w.o[n][8 * u + i][j + 2];
                    }
                }
            }
        }
    }
    __syncthreads();
    const float v_unit = v_is_tq ? 16.0f : 1.0f;
    for (int column = warp; column < W::columns && first_column + column < p.columns; column += warps) {
        float most = -INFINITY, total = 0.0f, by[most_warps];
        for (int i = 0; i < warps; i++) {
            most = fmaxf(most, state[i * 2 * W::columns + column]);
        }
#pragma unroll
        for (int i = 0; i < most_warps; i++) {
            const float own = i < warps ? state[i * 2 * W::columns + column] : -INFINITY;
            by[i] = own == -INFINITY ? 0.0f : exp2f(own - most);
            total += i < warps ? by[i] * state[i * 2 * W::columns + W::columns + column] : 0.0f;
        }
        const int token = token_of(column), head = head_of(column);
        const int64_t place = ((int64_t) stream * a.tokens + token) * a.heads + head;
        float * out = a.out + place * a.v.dim;
        float scale = v_unit;
        if (p.splits == 1) {
            scale *= finish(most, total, a.sinks, head);
        } else {
            out = p.partial + (place * p.splits + split) * a.v.dim;
            if (lane == 0) {
                p.partial_state[place * p.splits + split] = make_float2(most, total);
            }
        }
        for (int i = lane; i < a.v.dim; i += 32) {
            float x = 0.0f;
#pragma unroll
            for (int k = 0; k < most_warps; k++) {
                // a warp that saw nothing has zeros
                x += k < warps ? by[k] * sums[(k * W::columns + column) * sums_stride + i] : 0.0f;
            }
            out[i] = x * scale;
        }
    }
}

template <int D, int NT, bool centred> void launch_as(const arguments & p, size_t shared, cudaStream_t stream) {
    const dim3 grid(p.splits, p.a.kv_heads * p.column_tiles, p.a.streams);
    // set for every launch: it holds for the current device only
    cudaFuncSetAttribute(decode<D, NT, centred>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared);
    decode<D, NT, centred><<<grid, p.warps * 32, shared, stream>>>(p);
}

template <int D, int NT> void launch(const arguments & p, size_t shared, cudaStream_t stream) {
    if (p.a.q_plain) {
        launch_as<D, NT, true>(p, shared, stream);
    } else {
        launch_as<D, NT, false>(p, shared, stream);
    }
}

// Two groups of 8 columns cost half as much again as one, and only small heads leave registers for them.
static int column_groups(const tq_cuda_attn & a) {
    return a.tokens * (a.heads / a.kv_heads) > 8 && a.k.dim <= 128 && a.v.dim <= 128 ? 2 : 1;
}

static arguments plan(const tq_cuda_attn & a, const tq_cuda_device & device, size_t & shared) {
    arguments p = {};
    const int columns = 8 * column_groups(a);
    p.a = a;
    p.k = staging_of(a.k);
    p.v = staging_of(a.v);
    p.group = a.heads / a.kv_heads;
    p.columns = a.tokens * p.group;
    p.column_tiles = (p.columns + columns - 1) / columns;
    p.tiles = (a.kv_rows + tile - 1) / tile;
    const auto padded = [](int bytes) { return (bytes + 15) / 16 * 16; };
    p.v_offset = padded(tile * p.k.stride + 8); // the last block is read four bytes past its end
    p.mask_offset = p.v_offset + padded(tile * p.v.stride + 8);
    const int tokens = (columns + p.group - 2) / p.group + 1;
    const int masks = a.mask_heads > 1 || tokens > columns ? columns : tokens;
    p.stage_bytes = p.mask_offset + masks * tile * (int) sizeof(float);
    for (p.warps = most_warps;; p.warps /= 2) {
        const size_t working = (size_t) p.warps * (stages * p.stage_bytes + columns * 16) +
                               (a.q_plain ? columns * (a.k.dim + 4) * sizeof(float) : 0);
        const size_t merging = (size_t) p.warps * columns * (a.v.dim + 3) * sizeof(float);
        shared = working > merging ? working : merging;
        if (shared <= (size_t) device.shared || p.warps == 1) {
            break;
        }
    }

    // As many blocks as run at once, but none with less than a tile for each warp.
    const int most_blocks = columns == 8 && a.k.dim <= 128 && a.v.dim <= 128 ? 2 : 1; // by their registers
    const int fit = device.shared / (int) (shared + 1024), resident = fit < 1             ? 1
                                                                      : fit > most_blocks ? most_blocks
                                                                                          : fit;

    const int others = a.kv_heads * p.column_tiles * a.streams;
    const int wanted = device.multiprocessors * resident / others, most = p.tiles / p.warps;
    p.splits = wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
    return p;
}

} // namespace

size_t decode_scratch(const tq_cuda_attn & a, const tq_cuda_device & device) {
    size_t shared;
    const arguments p = plan(a, device, shared);
    return p.splits == 1 ? 0 : (size_t) a.streams * a.tokens * a.heads * p.splits * (a.v.dim + 2) * sizeof(float) + 16;
}

void decode_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream) {
    size_t shared;
    arguments p = plan(a, device, shared);
    const size_t rows = (size_t) a.streams * a.tokens * a.heads * p.splits;
    p.partial_state = static_cast<float2 *>(scratch);
    p.partial = reinterpret_cast<float *>(p.partial_state + (rows + 1) / 2 * 2); // read four at a time
    if (a.k.dim > 128 || a.v.dim > 128) {
        launch<256, 1>(p, shared, stream);
    } else if (column_groups(a) == 2) {
        launch<128, 2>(p, shared, stream);
    } else {
        launch<128, 1>(p, shared, stream);
    }
    if (p.splits > 1) {
        merge_run(a, p.splits, p.partial, p.partial_state, stream);
    }
}

} // namespace tq_cuda
