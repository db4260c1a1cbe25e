// Attention for few query columns (query heads of a KV head, times tokens): each block of the cache is unpacked once
// for all of them, straight into the registers that mma wants. Bytes come from memory packed and stay packed in shared
// memory; no value is ever stored unpacked.
//
// A warp works alone on tiles of 32 cache rows, two stages of cp.async deep, with its own running maximum; the warps
// of a block, and then the blocks of a split cache, are merged at the end. Lane = 4g + t.
//
// What is written to the cache first (a.stores), a kernel of its own encodes, beside which all tiles without a new row
// are computed. But to one token of one sequence this kernel does it itself: the block in whose part of the cache the
// row lies, for its KV head, whether or not a query sees the row.
//
//   before other kernels have ended   the encoder's tables come to shared memory
//   then                              so do the numbers of the row, and by four warps, of those without a query if
//                                     there are so many, its values (and the centre of the key); all warps start to
//                                     copy their first tile, and these four turn, rotate and encode, two blocks each,
//                                     to shared memory and to the cache
//   meanwhile                         the others turn and rotate queries. When those are there, each warp goes on with
//                                     its tile;
//   put_rows                          that with the new row, which was read too early, gets it from shared memory
//
//   scores    S^T = K Q^T: rows of the cache are the 16 of mma, columns its 8. A lane must hold 4 values of each of
//             two rows in every step of 16; which, is free as long as Q agrees. So it takes one whole block t (and
//             t + 4) of rows g and g + 8: one scale word and one choice of codebook for 32 values. Eight steps use
//             them up.
//   weights   exp2 of S^T, two columns to a lane, transposed by movmatrix into the operand of the next product
//   values    O^T = V^T P^T: 16 values of the head by 8 columns. Values are unpacked as keys are, and their pairs
//             transposed by movmatrix: row 8i + g of a product is value g & 1 of a pair of block g >> 1.
//
// What limits it is the integer units, which look up, choose and widen, and waiting for them: 1360 instructions of a
// warp for a tile of tq4_0, 710 of them of those units, which take two cycles for each. At 131072 rows 62 % of their
// time is used, and 57 % of all slots, of an H200 whose memory delivers 2.0 of 4.8 TB/s. 88 (77) us there for 32 query
// heads over 8 KV heads of 128, tq4_0 (tq3_0), and 102 (87) before the usual case had kernels of its own. With 256 rows
// it is fetching the code: 6.5 (6.4) us, and 7.9 (7.5) before.
//
// What lost, in us, each against the kernel of its day, on an H100:
//   139 (113)  against 130 (103)  values owned by half blocks, their pairs interleaved as bytes instead of transposed
//   174 (115)  against 130 (103)  five blocks of four warps with 96 registers each, which spill
//   122 (94)   against 119 (96)   both groups of 16 rows unrolled in the general kernel: no faster, with twice the code
//   122 (98)   against 119 (96)   blocks of four warps instead of eight
//   9.8        against 7.7        with 256 rows, 16 warps with half a tile each instead of 8
//   627        against 584        a token of 8 layers in an empty cache: first a rehearsal of the kernel over nothing,
//                                 while the encoder runs, to fetch the code
// On an H200:
//   11.2 against 8.5   a layer in an empty cache: first a rehearsal of encoding, while other kernels run
//   10.1 against 8.5   the same: all warps of a block wait for the encoder, and those that saw nothing are merged, too
//   150 against 114    a layer of 16 sequences of 8192 tokens: encoding in this kernel also there
//   1296, 794 against 1398, 848 tokens/s of 8 layers, one sequence of 32768 and 131072: the encoder's kernel there
//   104.8 (85.6) against 101.6 (86.0)  shifts by 16 as high halves of products, which take four cycles
//   102.2 (82.4) against 100.3 (84.2)  rows copied by the lines of 16 bytes in which they lie: fewer instructions, but
//                                      8.3 against 7.8 with 256 rows
//   90.3 (77.3)  against 87.5 (76.7)   one group of 16 rows at a time in the usual case
//   88.1 (76.2)  against 87.5 (76.7)   levels transposed before they are widened, and their scales: 40 transposes
//                                      instead of 64, but 6.8 against 6.5 with 256 rows

#include <climits>

#include "encode.cuh"
#include "rope.cuh"
#include "rotate.cuh"
#include "split.h"
#include "unpack.cuh"

namespace tq_cuda {

namespace {

constexpr int most_warps = 8; // of a block; fewer where shared memory is short
constexpr int tile = 32;      // rows
constexpr float log2e = 1.44269504f;

// Rows of K or of V that come with the call: id i belongs to row ids[i] + first of the first stream.
struct new_rows {
    const char * ids;
    int bytes; // of an id, 4 or 8
    int count; // at most 32
    int64_t first;
    int64_t stream_rows;
    const float * values; // of the first
    int rotation;
    bool turns;            // as queries do
    tq_cuda_centre centre; // of what is turned
};

struct arguments {
    tq_cuda_attn a;
    staging k, v;
    new_rows added[2]; // to K and to V; counts of 0 if everything is waited for
    bool encodes;      // one of each
    int added_offset;
    int group, columns, column_tiles, splits, tiles, warps;
    int stage_bytes, v_offset, mask_offset, ids_offset; // of a stage of a warp
    int second_stage, constants_offset;
    int q_offset, g_offset, window_offset; // of what follows the stages
    float * partial;                       // [stream, token, head, split, v.dim], where there are several splits
    float2 * partial_state;                // maximum and sum of each of its rows
};

template <int D, int NT> struct work {
    static constexpr int columns = 8 * NT, key_blocks = D / 128, value_blocks = D / 128;
    unsigned q[NT][8 * key_blocks][2];
    float o[NT][8 * value_blocks][4];
    float sum[NT][4]; // of the rounded weights, by the same mma: times ones
    float s[2][NT][4];
};

// Calls use(i, x0, x1) for every step i of 16 values: pairs of values of rows 16 m + g and g + 8, as the mma of a lane
// wants them.
template <int type, int units, class Use>
__device__ __forceinline__ void unpack(place rows, int stride, int blocks, int m, int lane, const Use & use) {
    using F = format<type>;
    const int g = lane >> 2, t = lane & 3;
    const books b = F::load_books();
#pragma unroll
    for (int u = 0; u < units; u++) {
        // past the end the query is zero, and nobody reads the sums of values
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
                use(8 * u + 4 * h + r, x0 + 2 * r, x1 + 2 * r);
            }
        }
    }
}

// `groups` of 16 rows at once. One: half the code, and what the warps of a multiprocessor run has to fit its
// instruction cache. Two: a group fills the gaps of the other.
template <int type, int groups, int D, int NT>
__device__ __forceinline__ void scores(work<D, NT> & w, place rows, int stride, int blocks, int lane) {
#pragma unroll groups
    for (int m = 0; m < 2; m++) {
        float s[2][NT][4] = {}; // two sums, so that a product need not wait for the one before
        unpack<type, work<D, NT>::key_blocks>(
            rows, stride, blocks, m, lane, [&](int i, const half2 * x0, const half2 * x1) {
                const unsigned a[4] = {as_word(x0[0]), as_word(x1[0]), as_word(x0[1]), as_word(x1[1])};
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    mma(s[i & 1][n], a, w.q[n][i]);
                }
            });
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                w.s[0][n][j] = w.s[1][n][j];
                w.s[1][n][j] = s[0][n][j] + s[1][n][j];
            }
        }
    }
}

template <int type, int groups, int D, int NT>
__device__ __forceinline__ void values(work<D, NT> & w, unsigned (&p)[2][NT][2], place rows, int stride, int blocks,
                                       int lane) {
#pragma unroll groups
    for (int m = 0; m < 2; m++) {
        unpack<type, work<D, NT>::value_blocks>(
            rows, stride, blocks, m, lane, [&](int i, const half2 * x0, const half2 * x1) {
                const unsigned a[4] = {transpose(as_word(x0[0])), transpose(as_word(x0[1])), transpose(as_word(x1[0])),
                                       transpose(as_word(x1[1]))};
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    mma(w.o[n][i], a, p[0][n]);
                }
            });
#pragma unroll
        for (int n = 0; n < NT; n++) {
            p[0][n][0] = p[1][n][0];
            p[0][n][1] = p[1][n][1];
        }
    }
}

// The row of the cache where id i of a batch goes, in that stream.
static __device__ __forceinline__ int fresh_row(const new_rows & f, int i, int kv_stream) {
    const int64_t id =
        f.bytes == 8 ? reinterpret_cast<const int64_t *>(f.ids)[i] : reinterpret_cast<const int32_t *>(f.ids)[i];
    return (int) (id + f.first - (int64_t) kv_stream * f.stream_rows);
}

// --- a row that the kernel encodes ---

constexpr int no_row = INT_MIN;

// What it takes, where second stages will be: with more shared memory the first level cache shrinks, and misses what
// copies of 8 bytes leave of a line.
struct encoding {
    encoder_tables tables[2]; // of K and of V
    struct {
        alignas(16) float values[128];     // later those of the warp's query
        alignas(16) float centres[2][128]; // both that may be the key's
        int ids[2];
        int positions[2], centre_id; // of the key and of its centre
    } of[most_warps];
};

// What stays: the rows of K and V as they lie in a stage.
struct added_rows {
    int row[most_warps][2]; // where they go, known to each warp; no_row: not to this block
    alignas(4) char bytes[2 * 4 * tq_dev_bytes(TQ_TYPE_TQ4_0)]; // of the largest type
};

template <int bytes> static __device__ __forceinline__ void fetch(void * to, const void * from) {
    copy_start<bytes>(place_of(to), static_cast<const char *>(from));
}

// Starts to copy what a warp encodes, and the places.
static __device__ __forceinline__ void start_encoding(const arguments & p, encoding & e, int kv_head, int worker,
                                                      int warp, int lane) {
    auto & mine = e.of[warp];
    if (lane < 2) {
        fetch<4>(&mine.ids[lane], p.added[lane].ids); // the low part, if it has 8 bytes
    }
    if (worker < 4) {
        fetch<16>(mine.values + 4 * lane, p.added[worker >> 1].values + kv_head * 128 + 4 * lane);
    }
    if (worker < 2 && p.added[0].turns) {
        const tq_cuda_centre & centre = p.added[0].centre;
        if (lane == 0) {
            fetch<4>(&mine.positions[0], p.a.rope.positions);
        }
        if (centre.rows) {
            if (lane == 0) {
                fetch<4>(&mine.positions[1], centre.positions);
                fetch<4>(&mine.centre_id, centre.ids);
            }
            for (int i = 0; i < 2; i++) {
                fetch<16>(mine.centres[i] + 4 * lane, centre.rows + (i * p.a.kv_heads + kv_head) * 128 + 4 * lane);
            }
        }
    }
}

// Turns the key, and takes its centre from it.
static __device__ __forceinline__ void turn_key(const arguments & p, encoding & e, int warp, int lane) {
    auto & mine = e.of[warp];
    float * of = mine.values;
#pragma unroll 1
    for (int i = 0; i < (p.added[0].centre.rows ? 2 : 1); i++) {
        turn(p.a.rope, mine.positions[i], of, of, 128, lane);
        of = mine.centres[mine.centre_id];
    }
    __syncwarp();
    if (p.added[0].centre.rows) {
#pragma unroll
        for (int b = 0; b < 4; b++) {
            mine.values[TQ_BLOCK * b + lane] -= of[TQ_BLOCK * b + lane];
        }
        // each lane reads what it has written
    }
}

// Encodes two blocks of a row that lies between `from` and `to`.
template <int k_type, int v_type>
static __device__ __forceinline__ void encode_row(const arguments & p, encoding & e, added_rows & added, int kv_head,
                                                  int from, int to, int worker, int warp, int lane) {
    auto & mine = e.of[warp];
    if (lane < 2) {
        const int row = mine.ids[lane] + (int) p.added[lane].first;
        added.row[warp][lane] = row >= from && row < to ? row : no_row;
    }
    __syncwarp();
    const bool is_v = worker >> 1;
    const int type = is_v ? v_type : k_type, bytes = tq_dev_bytes(type), first = (worker & 1) * 2,
              row = worker < 4 ? added.row[warp][is_v] : no_row;
    if (row == no_row) {
        return;
    }
    if (!is_v && p.added[0].turns) {
        turn_key(p, e, warp, lane);
    }
    float x[4];
#pragma unroll
    for (int b = 0; b < 4; b++) {
        x[b] = mine.values[TQ_BLOCK * b + lane];
    }
    rotate(x, p.added[is_v].rotation, lane);
    __syncwarp();
    mine.values[lane] = tq_dev_clean(first ? x[2] : x[0]);
    mine.values[TQ_BLOCK + lane] = tq_dev_clean(first ? x[3] : x[1]);
    __syncwarp();
    char * const out = added.bytes + (is_v ? 4 * tq_dev_bytes(k_type) : 0) + first * bytes;
    encode_two(type, mine.values, e.tables[is_v], out + (lane >> 4) * bytes, 2, lane);
    __syncwarp();
    const tq_cuda_cache & c = is_v ? p.a.v : p.a.k;
    char * const to_cache = const_cast<char *>(c.data) + kv_head * c.head_stride + row * c.row_stride + first * bytes;
    if (lane < bytes) {
        reinterpret_cast<unsigned short *>(to_cache)[lane] = reinterpret_cast<const unsigned short *>(out)[lane];
    }
}

// Puts them into a tile, which was read before or while they were written.
template <int k_type, int v_type>
static __device__ __forceinline__ void put_rows(const added_rows & added, event & encoded, char * stage, int v_offset,
                                                int first, int warp, int lane) {
    constexpr int k_words = tq_dev_bytes(k_type), v_words = tq_dev_bytes(v_type); // four blocks
    const unsigned k = (unsigned) added.row[warp][0] - (unsigned) first,
                   v = (unsigned) added.row[warp][1] - (unsigned) first;
    if (k < tile || v < tile) {
        await(encoded);
        const unsigned * from = reinterpret_cast<const unsigned *>(added.bytes);
        if (k < tile && lane < k_words) {
            reinterpret_cast<unsigned *>(stage)[k * k_words + lane] = from[lane];
        }
        if (v < tile && lane < v_words) {
            reinterpret_cast<unsigned *>(stage + v_offset)[v * v_words + lane] = from[k_words + lane];
        }
        __syncwarp();
    }
}

// --- the offsets of centred keys ---

constexpr int window = 16; // chunks whose offsets a warp has at hand

// The offsets of `window` chunks from `first` on for all columns, [chunk][column], by mma: turns times G, each in two
// halves. G lies in shared memory as mma wants it, a word for every lane: high parts, then low ones.
template <int NT>
static __device__ void offsets_of_chunks(float * offsets, const unsigned * G, const float4 * constants,
                                         const tq_cuda_attn & a, int first, int lane) {
    const int g = lane >> 2, t = lane & 3, steps = a.k.dim / 16;
    float sum[NT][4] = {};
    const float * row[2];
    for (int i = 0; i < 2; i++) {
        row[i] = a.turns + (int64_t) min(first + g + 8 * i, a.chunks - 1) * a.k.dim + 2 * t;
    }
#pragma unroll 4 // several loads at a time: they take long
    for (int step = 0; step < steps; step++) {
        unsigned high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            split_float2(*reinterpret_cast<const float2 *>(row[i & 1] + 16 * step + 8 * (i >> 1)), high[i], low[i]);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const unsigned *high_of = G + ((n * steps + step) * 2) * 32 + lane, *low_of = high_of + NT * steps * 64;
            const unsigned g_high[2] = {high_of[0], high_of[32]}, g_low[2] = {low_of[0], low_of[32]};
            mma(sum[n], high, g_high);
            mma(sum[n], low, g_high);
            mma(sum[n], high, g_low);
        }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int column = 8 * n + 2 * t + (j & 1);
            offsets[(g + 8 * (j >> 1)) * 8 * NT + column] = sum[n][j] * constants[column].w;
        }
    }
    __syncwarp();
}

constexpr int any = -1; // type

template <int k_type, int v_type> struct type_pair {
    static constexpr int k = k_type, v = v_type;
};

// Whether `use` answers yes to one of the pairs of types for which the usual case has kernels of its own.
template <class Use> bool any_usual_pair(const Use & use) {
    return use(type_pair<TQ_TYPE_TQ4_0, TQ_TYPE_TQ4_0>()) || use(type_pair<TQ_TYPE_TQ3_0, TQ_TYPE_TQ3_0>()) ||
           use(type_pair<TQ_TYPE_TQ4_0, TQ_TYPE_TQ2_1>());
}

// The usual case, which has kernels of its own: some pairs of types, one token, heads of 128 values, nothing that is
// rare.
static bool is_usual(const arguments & p) {
    const tq_cuda_attn & a = p.a;
    const auto is_packed = [](const tq_cuda_cache & c, const staging & s) {
        return c.dim == 128 && s.chunk == 8 && s.stride == s.row_bytes;
    };
    return any_usual_pair([&](auto pair) { return a.k.type == pair.k && a.v.type == pair.v; }) && a.tokens == 1 &&
           p.column_tiles == 1 && a.mask_heads <= 1 && a.max_bias == 0.0f && a.softcap == 0.0f && is_packed(a.k, p.k) &&
           is_packed(a.v, p.v);
}

// The same arguments, with what the usual case says of them as constants.
template <int k_type, int v_type> __device__ __forceinline__ arguments known(arguments p) {
    if constexpr (k_type != any) {
        constexpr int k_bytes = 128 / TQ_BLOCK * format<k_type>::block_bytes,
                      v_bytes = 128 / TQ_BLOCK * format<v_type>::block_bytes;
        p.a.tokens = p.a.mask_heads = p.column_tiles = 1;
        p.a.max_bias = p.a.softcap = 0.0f;
        p.a.k.type = k_type;
        p.a.v.type = v_type;
        p.a.k.dim = p.a.v.dim = 128;
        p.k = {k_bytes, 8, k_bytes, k_bytes / 8};
        p.v = {v_bytes, 8, v_bytes, v_bytes / 8};
    }
    return p;
}

// Centred keys have instances of their own: their offsets take registers that the others would spill. So has the usual
// case of some types: a third of the code, and no branches but those that depend on the cache.
template <int D, int NT, bool centred, int k_type, int v_type, bool encodes>
__global__ __launch_bounds__(most_warps * 32, D * NT > 128 ? 1 : 2) void decode(const arguments given) {
    using W = work<D, NT>;
    constexpr int groups = k_type == any ? 1 : 2;
    const arguments p = known<k_type, v_type>(given);
    TQ_CUDA_SHARED(shared);
    const tq_cuda_attn & a = p.a;
    const int warps = p.warps, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    // Divisions are long, and where there is little to read, fetching the code takes half the time.
    const int split = blockIdx.x, stream = blockIdx.z;
    const int kv_head = p.column_tiles == 1 ? blockIdx.y : blockIdx.y / p.column_tiles;
    const int first_column = (blockIdx.y - kv_head * p.column_tiles) * W::columns;
    const int kv_stream = a.streams == a.kv_streams ? stream : stream / (a.streams / a.kv_streams);
    char * const mine = shared + warp * p.stage_bytes; // and second_stage further on
    float4 * const constants = // of the columns: factor of a product, slope, place of the mask, factor of an offset
        reinterpret_cast<float4 *>(shared + p.constants_offset);
    half * const queries = reinterpret_cast<half *>(shared + p.q_offset); // as the mma of a lane wants them
    half * const G = reinterpret_cast<half *>(shared + p.g_offset);
    float * const offsets = reinterpret_cast<float *>(shared + p.window_offset) + warp * window * W::columns;

    const auto token_of = [&](int column) {
        return a.tokens == 1 ? 0 : min(first_column + column, p.columns - 1) / p.group;
    };
    const auto head_of = [&](int column) {
        return kv_head * p.group + min(first_column + column, p.columns - 1) - token_of(column) * p.group;
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
    const int first_token = token_of(0), key_blocks = a.k.dim / TQ_BLOCK, value_blocks = a.v.dim / TQ_BLOCK;
    const float to_score = a.softcap == 0.0f ? a.scale * log2e : a.scale / a.softcap;

    // What other columns hold does not matter, but that it has a place.
    const int present = min(W::columns, p.columns - first_column), columns = encodes ? present : W::columns;
    const int worker = (warp - p.columns) & (warps - 1); // warps without a query encode
    encoding & e = *reinterpret_cast<encoding *>(shared + p.second_stage);
    added_rows & added = *reinterpret_cast<added_rows *>(shared + p.added_offset);
    __shared__ event queries_ready, rows_encoded;
    if constexpr (encodes) {
        if (threadIdx.x == 0) {
            start_event(queries_ready, present);
            start_event(rows_encoded, warps);
        }
        if (warp == 0 && lane >= present && lane < W::columns) {
            constants[lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        start_tables(e.tables[0], k_type);
        start_tables(e.tables[1], v_type);
        copy_commit();
    }

    // The queries of the block, each as halves of at most 2 in magnitude, and the power of two that was taken out.
    const auto prepare = [&]() {
        for (int column = warp; column < columns; column += warps) {
            const bool is_there = first_column + column < p.columns;
            const float * query =
                reinterpret_cast<const float *>(a.q + token_of(column) * a.q_token_stride +
                                                head_of(column) * a.q_head_stride + stream * a.q_stream_stride);
            const float * plain = nullptr;
            if (centred) {
                plain =
                    reinterpret_cast<const float *>(a.q_plain + token_of(column) * a.qp_token_stride +
                                                    head_of(column) * a.qp_head_stride + stream * a.qp_stream_stride);
            }
            if constexpr (k_type != any) {
                if (a.rope.positions) {
                    // Nothing else lies there: tiles come to second stages when all queries are ready.
                    float * const turned =
                        encodes ? e.of[warp].values : reinterpret_cast<float *>(mine + p.second_stage);
                    __syncwarp();
                    turn(a.rope, a.rope.positions[stream], query, turned, 128, lane);
                    __syncwarp();
                    query = plain = turned;
                }
            }
            float x[D / 32], top = 0.0f, down, up;
#pragma unroll
            for (int b = 0; b < D / 32; b++) {
                x[b] = is_there && b < key_blocks ? query[TQ_BLOCK * b + lane] : 0.0f;
            }
            float pairs[D / 32]; // of centred keys: read at the same time
            if (centred) {
#pragma unroll
                for (int b = 0; b < D / 32; b++) {
                    pairs[b] = is_there && b < key_blocks
                                   ? paired(plain, a.mean + kv_head * a.k.dim, TQ_BLOCK * b + lane, a.n_rot, a.neox)
                                   : 0.0f;
                }
            }
            rotate(x, a.k_rotation, lane);
#pragma unroll
            for (int b = 0; b < D / 32; b++) {
                top = fmaxf(top, fabsf(x[b]));
            }
            powers(largest(top), down, up);
            const int position = position_of(planes, lane);
#pragma unroll
            for (int b = 0; b < D / 32; b++) {
                const int word = (column / 8 * W::key_blocks + b / 4) * 16 + position / 2;
                queries[(word * 32 + column % 8 * 4 + b % 4) * 2 + position % 2] = __float2half_rn(x[b] * down);
            }
            float offset_factor = 0.0f;
            if (centred) {
                top = 0.0f;
#pragma unroll
                for (int b = 0; b < D / 32; b++) {
                    top = fmaxf(top, fabsf(pairs[b]));
                }
                float g_up;
                powers(largest(top), down, g_up);
                offset_factor = g_up * to_score;
                const int steps = a.k.dim / 16, low = W::columns / 8 * steps * 128; // halves
#pragma unroll
                for (int b = 0; b < D / 32; b++) {
                    if (b < key_blocks) {
                        const int i = TQ_BLOCK * b + lane;
                        const int word = (column / 8 * steps + i / 16) * 2 + (i >> 3 & 1);
                        half * to = G + (word * 32 + column % 8 * 4 + (i >> 1 & 3)) * 2 + (i & 1);
                        const half high = __float2half_rn(pairs[b] * down);
                        to[0] = high;
                        to[low] = __float2half_rn(pairs[b] * down - __half2float(high));
                    }
                }
            }
            if (lane == 0) {
                const int mask = (a.mask_heads > 1 ? column : token_of(column) - first_token) * tile;
                constants[column] = make_float4(up * unit_of(a.k.type) * to_score, slope_of(column) * log2e,
                                                __int_as_float(mask), offset_factor);
            }
            if constexpr (encodes) {
                arrive(queries_ready, lane);
            }
        }
        if constexpr (encodes) {
            await(queries_ready);
        } else {
            __syncthreads();
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 16 * W::key_blocks; i++) {
                w.q[n][i >> 1][i & 1] =
                    reinterpret_cast<const unsigned *>(queries)[(n * W::key_blocks * 16 + i) * 32 + lane];
            }
        }
    };

    // --- the tiles of this warp ---
    const unsigned share = (unsigned) p.tiles / (p.splits * warps),
                   more = (unsigned) p.tiles - share * p.splits * warps; // so many warps have one tile more
    const auto first_tile = [&](unsigned rank) { return (int) (rank * share + min(rank, more)); };
    int candidate = first_tile(split * warps + warp);
    const int last_tile = first_tile(split * warps + warp + 1);

    // The encoder's kernel, if there is one, had waited for all others. The first tile with rows that it still
    // writes waits for it, and the end.
    int fresh = INT_MAX;
    if (encodes || given.added[0].count == 0) {
        if constexpr (encodes) {
            copy_wait<0>(); // the tables
        }
        wait_for_kernels_before();
        if constexpr (encodes) {
            start_encoding(given, e, kv_head, worker, warp, lane);
            copy_commit();
        }
    } else {
        forget_cached_lines();
#pragma unroll 1
        for (int i = 0; i < 2; i++) {
            if (lane < given.added[i].count) { // the index would bring all arguments to memory
                const int row = fresh_row(given.added[i], lane, kv_stream);
                fresh = row >= candidate * tile && row < last_tile * tile ? min(fresh, row / tile) : fresh;
            }
        }
#pragma unroll 1
        for (int step = 16; step > 0; step >>= 1) {
            fresh = min(fresh, __shfl_xor_sync(all, fresh, step));
        }
    }
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
            return 0xFC00u; // minus infinity
        }
        const char * m = at.open;
        if (!m) {
            return 0u;
        }
        if (a.mask_heads > 1) {
            m += (token_of(i) - first_token) * a.mask_token_stride + head_of(i) % a.mask_heads * a.mask_head_stride;
        } else if (i > 0) {
            m += i * a.mask_token_stride;
        }
        return load_global_short(m + 2 * row);
    };
    // The mask decides which tile is read next, so that of the next candidate is already on its way, and nothing looks
    // at it before its turn.
    const auto id_at = [&](int row) { return centred && row < a.kv_rows ? at.ids[row] : 0; };
    unsigned ahead = candidate < last_tile ? mask_at(0, candidate * tile + lane) : 0;
    int id_ahead = candidate < last_tile ? id_at(candidate * tile + lane) : 0;

    // Starts to read the next tile that a query sees, and answers its first row, or -1.
    const auto start = [&](int stage) {
        char * const to = mine + stage * p.second_stage;
        float * const mask = reinterpret_cast<float *>(to + p.mask_offset);
        int row = -1;
        if (encodes && stage == 1 && candidate < last_tile) {
            await(rows_encoded); // what that takes lies here
        }
        while (row < 0 && candidate < last_tile) {
            const int first = candidate++ * tile;
            bool seen = ahead != 0xFC00;
            mask[lane] = __half2float(__ushort_as_half((unsigned short) ahead));
            if (centred) {
                reinterpret_cast<int *>(to + p.ids_offset)[lane] = id_ahead;
            }
#pragma unroll 1
            for (int i = 1; i < masks; i++) {
                const unsigned m = mask_at(i, first + lane);
                seen |= m != 0xFC00;
                mask[i * tile + lane] = __half2float(__ushort_as_half((unsigned short) m));
            }
            if (__any_sync(all, seen)) {
                row = first;
            }
            if (candidate < last_tile) { // after the last use, so that nothing has to wait for it here
                ahead = mask_at(0, candidate * tile + lane);
                id_ahead = id_at(candidate * tile + lane);
            }
        }
        if (row >= 0) {
            if (row / tile >= fresh) {
                wait_for_kernels_before();
                forget_cached_lines();
                fresh = INT_MAX;
            }
            const int rows = min(tile, a.kv_rows - row);
            stage_rows(to, p.k, at.keys + row * a.k.row_stride, a.k.row_stride, rows, lane);
            stage_rows(to + p.v_offset, p.v, at.cells + row * a.v.row_stride, a.v.row_stride, rows, lane);
        }
        copy_commit();
        return row;
    };

    float top[NT][2];
    int first_chunk = -1; // of the window
    for (int row = -2, stage = 1, next; row != -1; row = next, stage ^= 1) {
        next = start(stage ^ 1);
        if (row < 0) {
            if constexpr (encodes) { // while the first tile is on its way
                copy_wait<1>();
                __syncwarp();
                // the first and the last block own what lies outside of the rows that are attended to
                const int from = split > 0 ? first_tile(split * warps) * tile : INT_MIN;
                const int to = split + 1 < p.splits ? first_tile((split + 1) * warps) * tile : INT_MAX;
                encode_row<k_type, v_type>(given, e, added, kv_head, from, to, worker, warp, lane);
                arrive(rows_encoded, lane);
            }
            prepare(); // so are these
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
        char * const here = mine + stage * p.second_stage;
        if constexpr (encodes) {
            put_rows<k_type, v_type>(added, rows_encoded, here, p.v_offset, row, warp, lane);
        }
        const float * const mask = reinterpret_cast<const float *>(here + p.mask_offset);

        switch (a.k.type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                               \
    case TQ_TYPE_##NAME:                                                                 \
        scores<TQ_TYPE_##NAME, groups>(w, place_of(here), p.k.stride, key_blocks, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
            case TQ_CUDA_Q8_0:
                scores<TQ_CUDA_Q8_0, groups>(w, place_of(here), p.k.stride, key_blocks, lane);
                break;
            default:
                scores<TQ_CUDA_F16, groups>(w, place_of(here), p.k.stride, key_blocks, lane);
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
            const int id = reinterpret_cast<const int *>(here + p.ids_offset)[lane];
            unsigned todo = all;
            while (todo) { // chunks are runs of rows: almost always once
                const int first = __shfl_sync(all, id & -window, __ffs(todo) - 1);
                const unsigned same = __ballot_sync(all, (id & -window) == first);
                todo &= ~same;
                if (first != first_chunk) {
                    offsets_of_chunks<NT>(offsets, reinterpret_cast<const unsigned *>(G), constants, a, first, lane);
                    first_chunk = first;
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int own = __shfl_sync(all, id, 8 * i + g) & (window - 1);
                    const bool has = same >> (8 * i + g) & 1;
#pragma unroll
                    for (int n = 0; n < NT; n++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            const float offset = offsets[own * W::columns + 8 * n + 2 * t + j];
                            w.s[i >> 1][n][(i & 1) * 2 + j] += has ? offset : 0.0f;
                        }
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
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                       \
    case TQ_TYPE_##NAME:                                                                                         \
        values<TQ_TYPE_##NAME, groups>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
            case TQ_CUDA_Q8_0:
                values<TQ_CUDA_Q8_0, groups>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane);
                break;
            default:
                values<TQ_CUDA_F16, groups>(w, weights, place_of(here) + p.v_offset, p.v.stride, value_blocks, lane);
        }
        __syncwarp(); // before the next start() writes to this stage
    }

    // --- the warps of the block, merged ---
    copy_wait<0>();
    wait_for_kernels_before();
    let_next_kernel_load();
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
    for (int column = warp; column < W::columns && first_column + column < p.columns; column += warps) {
        const float own = lane < warps ? state[lane * 2 * W::columns + column] : -INFINITY, most = largest(own);
        const float sum = lane < warps ? state[lane * 2 * W::columns + W::columns + column] : 0.0f;
        float total = 0.0f, x[D / 32] = {};
#pragma unroll 1 // what runs once takes as long as its code is
        for (unsigned saw = __ballot_sync(all, own != -INFINITY); saw; saw &= saw - 1) {
            const int i = __ffs(saw) - 1;
            const float by = exp2f(__shfl_sync(all, own, i) - most);
            total += by * __shfl_sync(all, sum, i);
#pragma unroll
            for (int b = 0; b < D / 32; b++) {
                if (b < value_blocks) {
                    x[b] += by * sums[(i * W::columns + column) * sums_stride + TQ_BLOCK * b + lane];
                }
            }
        }
        const int token = token_of(column), head = head_of(column);
        const int64_t place = ((int64_t) stream * a.tokens + token) * a.heads + head;
        float * out = a.out + place * a.v.dim;
        float scale = unit_of(a.v.type);
        if (p.splits == 1) {
            scale *= finish(most, total, a.sinks, head);
        } else {
            out = p.partial + (place * p.splits + split) * a.v.dim;
            if (lane == 0) {
                p.partial_state[place * p.splits + split] = make_float2(most, total);
            }
        }
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            x[b] *= scale;
        }
        if (p.splits == 1) {
            rotate(x, a.v_rotation, lane);
        }
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            if (b < value_blocks) {
                out[TQ_BLOCK * b + lane] = x[b];
            }
        }
    }
}

template <int D, int NT, int k_type = any, int v_type = any, bool encodes = false>
void launch_as(const arguments & p, size_t shared, cudaStream_t stream) {
    const dim3 grid(p.splits, p.a.kv_heads * p.column_tiles, p.a.streams);
    if (p.a.q_plain) {
        launch<decode<D, NT, true, k_type, v_type, encodes>>(grid, p.warps * 32, shared, stream, p);
    } else {
        launch<decode<D, NT, false, k_type, v_type, encodes>>(grid, p.warps * 32, shared, stream, p);
    }
}

// False where it is another case.
static bool launch_usual(const arguments & p, size_t shared, cudaStream_t stream) {
    return is_usual(p) && any_usual_pair([&](auto pair) {
               using types = decltype(pair);
               const bool is_it = p.a.k.type == types::k && p.a.v.type == types::v;
               if (is_it && p.encodes) {
                   launch_as<128, 1, types::k, types::v, true>(p, shared, stream);
               } else if (is_it) {
                   launch_as<128, 1, types::k, types::v>(p, shared, stream);
               }
               return is_it;
           });
}

// Two groups of 8 columns cost half as much again as one, and only small heads leave registers for them.
static int column_groups(const tq_cuda_attn & a) {
    return a.tokens * (a.heads / a.kv_heads) > 8 && a.k.dim <= 128 && a.v.dim <= 128 ? 2 : 1;
}

// What a store adds to K or V; nothing where the kernel could not tell.
static new_rows added_by(const tq_rows_store & rows, const tq_cuda_cache & c) {
    const int64_t offset = rows.dst.data - c.data, size = rows.dst.nb[1] * rows.dst.ne[1];
    const bool are_known = offset <= 0 && offset > -size && rows.dst.nb[1] == c.row_stride &&
                           offset % c.row_stride == 0 && c.stream_stride % c.row_stride == 0 && rows.ids.ne[0] <= 32 &&
                           rows.ids.ne[1] * rows.ids.ne[2] == 1 && rows.ids.nb[0] == rows.ids.bytes;
    return are_known ? new_rows {rows.ids.data,
                                 rows.ids.bytes,
                                 (int) rows.ids.ne[0],
                                 offset / c.row_stride,
                                 c.stream_stride / c.row_stride,
                                 reinterpret_cast<const float *>(rows.src.data),
                                 rows.rotation,
                                 rows.rope.positions != nullptr,
                                 rows.centre}
                     : new_rows {};
}

// Whether the usual case can encode a row of all heads on the way.
static bool is_plain(const tq_rows_store & rows, const tq_cuda_attn & a, const tq_cuda_cache & c) {
    return rows.type == c.type && !rows.src_is_half && rows.src.nb[0] == (int64_t) sizeof(float) &&
           (size_t) rows.src.data % 16 == 0 && rows.src.ne[0] == (int64_t) a.kv_heads * c.dim &&
           rows.src.ne[1] * rows.src.ne[2] * rows.src.ne[3] == 1 &&
           c.head_stride == rows.dst.nb[0] * (c.dim / TQ_BLOCK) && rows.dst.ne[1] <= INT_MAX &&
           (rows.rotation == 0 || c.dim % rows.rotation == 0) &&
           (!rows.rope.positions || rows.rope.positions == a.rope.positions);
}

// How the rows of a.stores come to K and V: by this kernel, or by one whose end only their tiles wait for.
static void plan_stores(arguments & p) {
    const tq_cuda_attn & a = p.a;
    if (a.store_count != 2 || !a.stores_are_apart) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        p.added[0] = added_by(a.stores[i], a.k);
        p.added[1] = added_by(a.stores[1 - i], a.v);
        if (p.added[0].count > 0 && p.added[1].count > 0) {
            p.encodes = is_usual(p) && a.streams == 1 && is_plain(a.stores[i], a, a.k) &&
                        is_plain(a.stores[1 - i], a, a.v) && !p.added[1].turns;
            return;
        }
    }
    p.added[0] = p.added[1] = {};
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
    p.ids_offset = p.mask_offset + masks * tile * (int) sizeof(float);
    p.stage_bytes = p.ids_offset + (a.q_plain ? tile * (int) sizeof(int) : 0);
    const bool is_large = a.k.dim > 128 || a.v.dim > 128;
    plan_stores(p);
    for (p.warps = most_warps;;) {
        p.second_stage = p.warps * p.stage_bytes;
        const int encoding_bytes = p.encodes ? (int) sizeof(encoding) : 0;
        p.constants_offset = p.second_stage + (p.second_stage > encoding_bytes ? p.second_stage : encoding_bytes);
        p.q_offset = p.constants_offset + columns * 16;
        p.g_offset = p.q_offset + columns * (is_large ? 512 : 256);
        p.window_offset = p.g_offset + (a.q_plain ? columns * a.k.dim * 4 : 0);
        p.added_offset = p.window_offset + (a.q_plain ? p.warps * window * columns * (int) sizeof(float) : 0);
        const size_t working = p.added_offset + (p.encodes ? sizeof(added_rows) : 0);
        const size_t merging = (size_t) p.warps * columns * (a.v.dim + 3) * sizeof(float);
        shared = working > merging ? working : merging;
        if (shared <= (size_t) device.shared || p.warps == 1) {
            break;
        }
        p.warps /= p.encodes ? 1 : 2;
        p.encodes = false; // takes all warps
    }

    // As many blocks as run at once, but none with less than a tile for each warp.
    const int fit = device.shared / (int) (shared + 1024),
              resident = columns == 8 && !is_large && fit > 1 ? 2 : 1; // by registers
    const int others = a.kv_heads * p.column_tiles * a.streams, encoders = p.added[0].count > 0 && !p.encodes ? 4 : 0;
    const int wanted = (device.multiprocessors * resident - encoders) / others, most = p.tiles / p.warps;
    p.splits = wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
    return p;
}

} // namespace

bool decode_turns(const tq_cuda_attn & a, const tq_cuda_device & device) {
    size_t shared;
    return is_usual(plan(a, device, shared));
}

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
    if (!p.encodes) {
        tq_cuda_encode(a.stores, a.store_count, stream);
    }
    if (a.k.dim > 128 || a.v.dim > 128) {
        launch_as<256, 1>(p, shared, stream);
    } else if (column_groups(a) == 2) {
        launch_as<128, 2>(p, shared, stream);
    } else if (!launch_usual(p, shared, stream)) {
        launch_as<128, 1>(p, shared, stream);
    }
    if (p.splits > 1) {
        merge_run(a, p.splits, p.partial, p.partial_state, stream);
    }
}

} // namespace tq_cuda
