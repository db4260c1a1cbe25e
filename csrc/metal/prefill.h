// Attention for many query columns: a threadgroup unpacks tiles of 32 cache rows to halves in threadgroup memory, keys
// first, then values into the same place, and every SIMD group multiplies its own eight columns with them, in matrices
// of 8 x 8. Rows that no column of the threadgroup sees are zeros: what lies there may be no number. Tiles of such rows
// are left out.
#pragma once

#include "attention.h"

// The power of two that brings a value of this size below 2, and its inverse.
static inline void tq_powers(float top, thread float & down, thread float & up) {
    const uint exponent = (uint) max(min((int) (as_type<uint>(top) >> 23), 253), 1);
    down = as_type<float>((254 - exponent) << 23);
    up = as_type<float>(exponent << 23);
}

// Eight columns of queries as halves, by a SIMD group; `factor` is what was taken out of them, and the unit of keys.
static inline void tq_prepare_queries(TQ_METAL_ATTENTION, thread const tq_column * columns, int stream,
                                      threadgroup half * to, int stride, thread float * factor, uint lane) {
#pragma unroll
    for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
        device const float * query = tq_query(a, q, columns[c], stream);
        float top = 0.0f, down, up;
        for (int i = (int) lane; i < a.k_dim; i += TQ_METAL_SIMD) {
            top = max(top, fabs(query[i]));
        }
        tq_powers(simd_max(top), down, up);
        factor[c] = up * tq_unit(tq_k);
        for (int i = (int) lane; i < a.k_dim; i += TQ_METAL_SIMD) {
            to[c * stride + i] = (half) (columns[c].is_there ? query[i] * down : 0.0f);
        }
    }
}

// 32 rows of packed blocks to rows of halves, by the whole threadgroup: neighbours take neighbouring rows. `seen`:
// those that are not zeros.
static inline void tq_unpack_rows(int type, device const uchar * from, int64_t row_bytes, int first, uint seen,
                                  int blocks, threadgroup const float * books, threadgroup half * to, int stride,
                                  uint index, uint threads) {
    for (int i = (int) index; i < TQ_METAL_TILE * blocks; i += (int) threads) {
        const int row = i % TQ_METAL_TILE, block = i / TQ_METAL_TILE;
        tq_unpack(type, from + (first + row) * row_bytes + block * tq_bytes_of(type), books, (seen >> row & 1) != 0,
                  to + row * stride + block * TQ_BLOCK);
    }
}

// D: at least either head size.
template <int D>
kernel void kernel_tq_prefill_attention(TQ_METAL_ATTENTION, threadgroup char * shared TQ_METAL_SHARED,
                                        uint3 group TQ_METAL_GROUP, uint simd TQ_METAL_SIMD_INDEX,
                                        uint lane TQ_METAL_LANE) {
    const uint simds = TQ_METAL_PREFILL_SIMDS(D), threads = simds * TQ_METAL_SIMD, index = simd * TQ_METAL_SIMD + lane;
    const int k_stride = TQ_METAL_PREFILL_STRIDE(a.k_dim), stride = TQ_METAL_PREFILL_STRIDE(max(a.k_dim, a.v_dim));
    threadgroup float * k_books = (threadgroup float *) shared;
    threadgroup float * v_books = k_books + 32;
    threadgroup uint * flags =
        (threadgroup uint *) (shared + TQ_METAL_BOOKS); // [tile % 2][SIMD group]: rows that it sees
    threadgroup char * next = shared + TQ_METAL_BOOKS + TQ_METAL_PREFILL_FLAGS;
    threadgroup float * scores = (threadgroup float *) (next + simd * TQ_METAL_PREFILL_OWN); // [column][row]
    threadgroup float * diagonal = scores + TQ_METAL_PREFILL_COLUMNS * TQ_METAL_TILE;
    next += simds * TQ_METAL_PREFILL_OWN;
    threadgroup half * queries = (threadgroup half *) next + simd * TQ_METAL_PREFILL_COLUMNS * k_stride;
    threadgroup half * rows = (threadgroup half *) next + simds * TQ_METAL_PREFILL_COLUMNS * k_stride;

    const int kv_head = (int) group.y, stream = (int) group.z, kv_stream = stream / (a.streams / a.kv_streams);
    const int first = (int) (group.x * simds + simd) * TQ_METAL_PREFILL_COLUMNS;
    const int key_blocks = a.k_dim / TQ_BLOCK, value_blocks = a.v_dim / TQ_BLOCK;
    tq_column columns[TQ_METAL_PREFILL_COLUMNS];
    float factor[TQ_METAL_PREFILL_COLUMNS], slope[TQ_METAL_PREFILL_COLUMNS], lacking[TQ_METAL_PREFILL_COLUMNS];
    float most[TQ_METAL_PREFILL_COLUMNS], total[TQ_METAL_PREFILL_COLUMNS];
#pragma unroll
    for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
        columns[c] = tq_column_of(a, kv_head, first + c);
        slope[c] = tq_slope(a, columns[c].head);
        lacking[c] = 0.0f;
        most[c] = TQ_NOTHING;
        total[c] = 0.0f;
    }
    tq_load_books(tq_k, k_books, index, threads);
    tq_load_books(tq_v, v_books, index, threads);
    tq_prepare_queries(a, q, k, v, mask, sinks, plain, mean, turns, ids, out, scratch, columns, stream, queries,
                       k_stride, factor, lane);
    for (uint i = lane; i < 64; i += TQ_METAL_SIMD) {
        diagonal[i] = 0.0f;
    }
    const simdgroup_float8x8 zero = make_filled_simdgroup_matrix<float, 8>(0.0f);
    simdgroup_float8x8 o[D / 8];
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        o[i] = zero;
    }

    device const uchar * keys = k + kv_head * a.k_head + kv_stream * a.k_stream;
    device const uchar * cells = v + kv_head * a.v_head + kv_stream * a.v_stream;
    const int tiles = (a.kv_rows + TQ_METAL_TILE - 1) / TQ_METAL_TILE;
    int known = 0; // the chunk that `lacking` is of
    for (int tile = 0; tile < tiles; tile++) {
        const int first_row = tile * TQ_METAL_TILE, row = first_row + (int) lane;
        uint opened = 0; // columns that see the row
        float bias[TQ_METAL_PREFILL_COLUMNS];
#pragma unroll
        for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
            const uint bits = tq_mask(a, mask, columns[c], stream, row);
            opened |= (bits != TQ_CLOSED ? 1u : 0u) << c;
            bias[c] = bits != TQ_CLOSED ? slope[c] * (float) as_type<half>((ushort) bits) : 0.0f;
        }
        const uint mine = simd_or(opened ? 1u << lane : 0u);
        const bool sees_any = mine != 0;
        threadgroup uint * of_tile = flags + (tile & 1) * 4;
        if (lane == 0) {
            of_tile[simd] = mine;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // the values of the tile before have been used, too
        uint seen = 0;
        for (uint s = 0; s < simds; s++) {
            seen |= of_tile[s];
        }
        if (seen == 0) {
            continue;
        }
        tq_unpack_rows(tq_k, keys, a.k_row, first_row, seen, key_blocks, k_books, rows, stride, index, threads);
        threadgroup_barrier(mem_flags::mem_threadgroup);

        if (sees_any) {
            simdgroup_float8x8 s[TQ_METAL_TILE / 8];
#pragma unroll
            for (int j = 0; j < TQ_METAL_TILE / 8; j++) {
                s[j] = zero;
            }
            for (int i = 0; i < a.k_dim / 8; i++) {
                simdgroup_half8x8 query, key;
                simdgroup_load(query, queries + 8 * i, k_stride);
#pragma unroll
                for (int j = 0; j < TQ_METAL_TILE / 8; j++) {
                    simdgroup_load(key, rows + 8 * j * stride + 8 * i, stride, 0, true);
                    simdgroup_multiply_accumulate(s[j], query, key, s[j]);
                }
            }
#pragma unroll
            for (int j = 0; j < TQ_METAL_TILE / 8; j++) {
                simdgroup_store(s[j], scores + 8 * j, TQ_METAL_TILE);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);

            float score[TQ_METAL_PREFILL_COLUMNS];
#pragma unroll
            for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
                score[c] = scores[c * TQ_METAL_TILE + lane] * factor[c];
            }
            tq_add_lacking(a, plain, mean, turns, columns, kv_head, stream,
                           opened ? tq_chunk(a, ids, kv_stream, row) : 0, lane, known, lacking, score);
            bool grows = false; // whether any maximum does: the same for all lanes
#pragma unroll
            for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
                const bool sees = (opened >> c & 1) != 0;
                const float value = sees ? tq_score(a, score[c]) + bias[c] : TQ_NOTHING;
                const float top = max(most[c], simd_max(value)), by = exp2(most[c] - top);
                const float weight = sees ? exp2(value - top) : 0.0f;
                grows = grows || top != most[c];
                most[c] = top;
                total[c] = fma(total[c], by, weight); // of the lane's rows
                scores[c * TQ_METAL_TILE + lane] = weight;
                if (lane == 0) {
                    diagonal[c * 9] = by;
                }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            if (grows) {
                simdgroup_float8x8 by;
                simdgroup_load(by, diagonal, 8);
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    simdgroup_multiply_accumulate(o[i], by, o[i], zero);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // the keys have been used
        tq_unpack_rows(tq_v, cells, a.v_row, first_row, seen, value_blocks, v_books, rows, stride, index, threads);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sees_any) {
#pragma unroll
            for (int j = 0; j < TQ_METAL_TILE / 8; j++) {
                simdgroup_float8x8 weight;
                simdgroup_half8x8 value;
                simdgroup_load(weight, scores + 8 * j, TQ_METAL_TILE);
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    if (8 * i < a.v_dim) {
                        simdgroup_load(value, rows + 8 * j * stride + 8 * i, stride);
                        simdgroup_multiply_accumulate(o[i], weight, value, o[i]);
                    }
                }
            }
        }
    }

    float unit[TQ_METAL_PREFILL_COLUMNS];
#pragma unroll
    for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
        unit[c] = tq_finish(a, sinks, columns[c].head, most[c], simd_sum(total[c]));
    }
#pragma unroll
    for (int b = 0; b < D / TQ_BLOCK; b++) {
        if (b < value_blocks) {
            simdgroup_barrier(mem_flags::mem_threadgroup); // what lies there has been read
#pragma unroll
            for (int i = 0; i < 4; i++) {
                simdgroup_store(o[4 * b + i], scores + 8 * i, TQ_METAL_TILE);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
            for (int c = 0; c < TQ_METAL_PREFILL_COLUMNS; c++) {
                if (columns[c].is_there) {
                    out[tq_row(a, columns[c], stream) * a.v_dim + b * TQ_BLOCK + lane] =
                        scores[c * TQ_METAL_TILE + lane] * unit[c];
                }
            }
        }
    }
}
TQ_METAL_INSTANCE("kernel_tq_prefill_attention_64", kernel_tq_prefill_attention<64>)
TQ_METAL_INSTANCE("kernel_tq_prefill_attention_128", kernel_tq_prefill_attention<128>)
TQ_METAL_INSTANCE("kernel_tq_prefill_attention_256", kernel_tq_prefill_attention<256>)
