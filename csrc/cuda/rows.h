// Reading and writing TQ rows on a GPU: SET_ROWS, GET_ROWS and copies. Knows no ggml.
#pragma once

#include <cstdint>

#include "runtime.h"

// A tensor: sizes in values, strides in bytes. A row is a whole number of blocks, also where it holds numbers; blocks
// have no gaps between them. At most 2^32 - 1 blocks.
struct tq_rows_view {
    char * data;
    int64_t ne[4];
    int64_t nb[4];
};

// Where row numbers come from, if from anywhere: ids [rows, ne[1], ne[2]] of 4 or 8 bytes.
struct tq_rows_ids {
    const char * data;
    int64_t ne[3];
    int64_t nb[3];
    int bytes; // 0: row r goes to row r
};

// Values that are encoded. With ids, row r of (r, i2, i3) goes to row ids[r, i2 % ne1, i3 % ne2] of (i2, i3). Without,
// values keep their number in the flattened tensors, as in a copy.
struct tq_rows_store {
    int type;
    int rotation;     // runs of so many values are rotated first, 0 or a power of two from 32 to most_rotated
    bool src_is_half; // otherwise f32
    tq_rows_view src;
    tq_rows_ids ids;
    tq_rows_view dst;
};

constexpr int most_stores = 2;    // by one kernel: the keys and the values of a batch
constexpr int most_rotated = 256; // values together

void tq_cuda_encode(const tq_rows_store * stores, int count, cudaStream_t stream);
// The other way: with ids, row r of (i1, i2) comes from row ids[r, i1, i2] of (i1, i2), as GET_ROWS wants it.
void tq_cuda_decode(int type, const tq_rows_view & src, const tq_rows_ids & ids, const tq_rows_view & dst,
                    bool dst_is_half, cudaStream_t stream);
// Blocks as they are.
void tq_cuda_copy(int type, const tq_rows_view & src, const tq_rows_view & dst, cudaStream_t stream);
