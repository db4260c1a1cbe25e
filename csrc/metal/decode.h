// Attention for few query columns: a block of the cache is unpacked once for as many of them as a threadgroup takes.
//
// A SIMD group works alone on tiles of 32 rows, with its own running maximum. A lane multiplies a row with all columns,
// straight from its packed bytes. For values it unpacks a block of its row to threadgroup memory, and then sums one
// value of all rows. The SIMD groups of a threadgroup are merged at the end, the splits of a cache by another kernel.
#pragma once

#include "attention.h"

// COLUMNS: of a threadgroup. BLOCKS: of a value at most.
template <int COLUMNS, int BLOCKS>
kernel void kernel_tq_decode_attention(TQ_METAL_ATTENTION, threadgroup char * shared TQ_METAL_SHARED,
                                       uint3 group TQ_METAL_GROUP, uint simd TQ_METAL_SIMD_INDEX,
                                       uint lane TQ_METAL_LANE) {
    const uint threads = TQ_METAL_DECODE_SIMDS * TQ_METAL_SIMD, index = simd * TQ_METAL_SIMD + lane;
    threadgroup float * k_books = (threadgroup float *) shared;
    threadgroup float * v_books = k_books + 32;
    threadgroup float * queries = (threadgroup float *) (shared + TQ_METAL_BOOKS); // [column][value]
    threadgroup char * own = shared + TQ_METAL_BOOKS + COLUMNS * a.k_dim * 4;
    threadgroup float * sums = (threadgroup float *) own; // [SIMD group][value], in the end
    threadgroup float * states = sums + TQ_METAL_DECODE_SIMDS * a.v_dim;
    own += simd * TQ_METAL_DECODE_OWN(COLUMNS);
    threadgroup float * weights = (threadgroup float *) own;                             // [column][row]
    threadgroup half * stage = (threadgroup half *) (own + COLUMNS * TQ_METAL_TILE * 4); // [row][value]

    const int split = (int) group.x, kv_head = (int) group.y / a.column_tiles, stream = (int) group.z;
    const int first = ((int) group.y - kv_head * a.column_tiles) * COLUMNS;
    const int kv_stream = stream / (a.streams / a.kv_streams);
    const int key_blocks = a.k_dim / TQ_BLOCK, value_blocks = a.v_dim / TQ_BLOCK;
    tq_column columns[COLUMNS];
    float slope[COLUMNS], lacking[COLUMNS], most[COLUMNS], total[COLUMNS], o[COLUMNS][BLOCKS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        columns[c] = tq_column_of(a, kv_head, first + c);
        slope[c] = tq_slope(a, columns[c].head);
        lacking[c] = 0.0f;
        most[c] = TQ_NOTHING;
        total[c] = 0.0f;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            o[c][b] = 0.0f;
        }
        device const float * query = tq_query(a, q, columns[c], stream);
        for (int i = (int) index; i < a.k_dim; i += (int) threads) {
            queries[c * a.k_dim + i] = query[i];
        }
    }
    tq_load_books(tq_k, k_books, index, threads);
    tq_load_books(tq_v, v_books, index, threads);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    device const uchar * keys = k + kv_head * a.k_head + kv_stream * a.k_stream;
    device const uchar * cells = v + kv_head * a.v_head + kv_stream * a.v_stream;
    const int tiles = (a.kv_rows + TQ_METAL_TILE - 1) / TQ_METAL_TILE;
    int known = 0; // the chunk that `lacking` is of
    for (int tile = split * TQ_METAL_DECODE_SIMDS + (int) simd; tile < tiles;
         tile += a.splits * TQ_METAL_DECODE_SIMDS) {
        const int row = tile * TQ_METAL_TILE + (int) lane;
        float score[COLUMNS], bias[COLUMNS];
        uint opened = 0; // columns that see the row
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const uint bits = tq_mask(a, mask, columns[c], stream, row);
            opened |= (bits != TQ_CLOSED ? 1u : 0u) << c;
            bias[c] = bits != TQ_CLOSED ? slope[c] * (float) as_type<half>((ushort) bits) : 0.0f;
            score[c] = 0.0f;
        }
        if (!simd_any(opened != 0)) {
            continue;
        }
        if (opened) {
            for (int b = 0; b < key_blocks; b++) {
                const tq_opened r = tq_open(tq_k, keys + row * a.k_row + b * tq_bytes_of(tq_k), k_books);
                for (uint i = 0; i < 8; i++) {
                    float x[4];
                    tq_four(tq_k, r, i, x);
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        threadgroup const float * query = queries + c * a.k_dim + b * TQ_BLOCK + 2 * i;
                        score[c] = fma(x[0], query[0], score[c]);
                        score[c] = fma(x[1], query[1], score[c]);
                        score[c] = fma(x[2], query[16], score[c]);
                        score[c] = fma(x[3], query[17], score[c]);
                    }
                }
            }
        }
        tq_add_lacking(a, plain, mean, turns, columns, kv_head, stream, opened ? tq_chunk(a, ids, kv_stream, row) : 0,
                       lane, known, lacking, score);

#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const bool sees = (opened >> c & 1) != 0;
            const float value = sees ? tq_score(a, score[c]) + bias[c] : TQ_NOTHING;
            const float next = max(most[c], simd_max(value)), by = exp2(most[c] - next);
            const float weight = sees ? exp2(value - next) : 0.0f;
            most[c] = next;
            total[c] = fma(total[c], by, weight); // of the lane's rows
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                o[c][b] *= by;
            }
            weights[c * TQ_METAL_TILE + lane] = weight;
        }
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            if (b < value_blocks) {
                tq_unpack(tq_v, cells + row * a.v_row + b * tq_bytes_of(tq_v), v_books, opened != 0,
                          stage + lane * TQ_METAL_STAGE_STRIDE);
                simdgroup_barrier(mem_flags::mem_threadgroup);
                for (int i = 0; i < TQ_METAL_TILE; i++) {
                    const float x = (float) stage[i * TQ_METAL_STAGE_STRIDE + lane];
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        o[c][b] = fma(weights[c * TQ_METAL_TILE + i], x, o[c][b]);
                    }
                }
                simdgroup_barrier(mem_flags::mem_threadgroup);
            }
        }
    }

    // --- merging the SIMD groups ---
    const int64_t places = a.streams * (int64_t) a.tokens * a.heads;
    threadgroup_barrier(mem_flags::mem_threadgroup); // everybody has read the tiles
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const float mine = simd_sum(total[c]);
        if (lane == 0) {
            states[2 * simd] = most[c];
            states[2 * simd + 1] = mine;
        }
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            if (b < value_blocks) {
                sums[simd * a.v_dim + b * TQ_BLOCK + lane] = o[c][b];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float top = TQ_NOTHING, sum = 0.0f, by[TQ_METAL_DECODE_SIMDS];
#pragma unroll
        for (int s = 0; s < TQ_METAL_DECODE_SIMDS; s++) {
            top = max(top, states[2 * s]);
        }
#pragma unroll
        for (int s = 0; s < TQ_METAL_DECODE_SIMDS; s++) {
            by[s] = exp2(states[2 * s] - top);
            sum = fma(by[s], states[2 * s + 1], sum);
        }
        const int64_t place = tq_row(a, columns[c], stream);
        const float unit = a.splits == 1 ? tq_finish(a, sinks, columns[c].head, top, sum) : 1.0f;
        device float * to = a.splits == 1 ? out + place * a.v_dim : scratch + (place * a.splits + split) * a.v_dim;
        if (columns[c].is_there) {
            for (int i = (int) index; i < a.v_dim; i += (int) threads) {
                float x = 0.0f;
#pragma unroll
                for (int s = 0; s < TQ_METAL_DECODE_SIMDS; s++) {
                    x = fma(by[s], sums[s * a.v_dim + i], x);
                }
                to[i] = x * unit;
            }
            if (a.splits > 1 && index == 0) {
                device float * state = scratch + places * a.splits * a.v_dim + 2 * (place * a.splits + split);
                state[0] = top;
                state[1] = sum;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // before the next column overwrites
    }
}
TQ_METAL_INSTANCE("kernel_tq_decode_attention_1_4", kernel_tq_decode_attention<1, 4>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_2_4", kernel_tq_decode_attention<2, 4>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_4_4", kernel_tq_decode_attention<4, 4>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_8_4", kernel_tq_decode_attention<8, 4>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_1_8", kernel_tq_decode_attention<1, 8>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_2_8", kernel_tq_decode_attention<2, 8>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_4_8", kernel_tq_decode_attention<4, 8>)
TQ_METAL_INSTANCE("kernel_tq_decode_attention_8_8", kernel_tq_decode_attention<8, 8>)

// A SIMD group for each row of the result; a lane knows the state of a split.
kernel void kernel_tq_merge_attention(TQ_METAL_ATTENTION, uint3 group TQ_METAL_GROUP, uint simd TQ_METAL_SIMD_INDEX,
                                      uint lane TQ_METAL_LANE) {
    const int64_t places = a.streams * (int64_t) a.tokens * a.heads, place = group.x;
    device const float * state = scratch + places * a.splits * a.v_dim + 2 * place * a.splits;
    const bool has_split = (int) lane < a.splits;
    const float mine = has_split ? state[2 * lane] : TQ_NOTHING;
    const float most = simd_max(mine), by = has_split ? exp2(mine - most) : 0.0f;
    const float total = simd_sum(has_split ? by * state[2 * lane + 1] : 0.0f);
    const float unit = tq_finish(a, sinks, (int) (place % a.heads), most, total);
    for (int i = (int) lane; i < a.v_dim; i += TQ_METAL_SIMD) {
        float sum = 0.0f;
        for (int s = 0; s < a.splits; s++) {
            sum = fma(simd_shuffle(by, (ushort) s), scratch[(place * a.splits + s) * a.v_dim + i], sum);
        }
        out[place * a.v_dim + i] = sum * unit;
    }
}
TQ_METAL_PLAIN(kernel_tq_merge_attention)
