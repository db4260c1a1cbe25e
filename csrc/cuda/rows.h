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

// RoPE, as ggml's operation has it: values (x, y) of a head become (x cos - y sin, x sin + y cos).
struct tq_cuda_rope {
    const int * positions; // of tokens; null: nothing is turned
    const float * factors; // [dims / 2], that divide the angles, or null
    int dims;              // of a head, the first; the others stay
    bool neox;             // pairs (i, i + dims / 2), otherwise (2i, 2i + 1)
    float base;            // pair i turns by base^i at position 1
    float scale;           // of an angle that YaRN interpolates,
    float mix, low, high;  // which it does for pairs past `high`, for those before `low` by 1 - mix, and in between
    float stretch;         // of what is turned
};

// What turned keys lack: token t that of row ids[t] of two, turned as at positions[t].
struct tq_cuda_centre {
    const float * rows; // of all heads, each as long as what it is taken from; null: nothing is
    const int * ids;
    const int * positions;
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
    // Of token r in row r, before the rotation, where every head is one run of `rotation`; by tq_cuda_encode only where
    // no other store has longer ones.
    tq_cuda_rope rope;
    tq_cuda_centre centre;
};

constexpr int most_stores = 2;    // by one kernel: the keys and the values of a batch
constexpr int most_rotated = 256; // values together

void tq_cuda_encode(const tq_rows_store * stores, int count, cudaStream_t stream);
// The other way: with ids, row r of (i1, i2) comes from row ids[r, i1, i2] of (i1, i2), as GET_ROWS wants it.
void tq_cuda_decode(int type, const tq_rows_view & src, const tq_rows_ids & ids, const tq_rows_view & dst,
                    bool dst_is_half, cudaStream_t stream);
// Blocks as they are.
void tq_cuda_copy(int type, const tq_rows_view & src, const tq_rows_view & dst, cudaStream_t stream);
