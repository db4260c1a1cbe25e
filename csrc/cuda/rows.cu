// Rows of a cache written from numbers and read back. The encoder itself is in encode.cuh.
#include "rows.h"

#include "encode.cuh"
#include "rope.cuh"
#include "rotate.cuh"

namespace {

using namespace tq_cuda;

constexpr int warps = 8;              // of a thread block
constexpr unsigned few_blocks = 8192; // fewer leave multiprocessors idle unless warps share what they rotate

// A place in a tensor: block i0 of row (i1, i2, i3).
struct position {
    unsigned i0, i1, i2, i3;
};

// Of block b of the flattened tensor. Most tensors have one plane, and a division takes twenty instructions.
static __device__ __forceinline__ position position_of(const tq_rows_view & t, unsigned b) {
    const unsigned per_row = (unsigned) t.ne[0] / TQ_BLOCK, rows = (unsigned) t.ne[1], planes = (unsigned) t.ne[2];
    const bool one_plane = planes * t.ne[3] == 1;
    const unsigned row = one_plane && rows == 1 ? 0 : b / per_row;
    position p = {b - row * per_row, row, 0, 0};
    if (!one_plane) {
        const unsigned plane = row / rows;
        p.i1 = row - plane * rows;
        p.i3 = plane / planes;
        p.i2 = plane - p.i3 * planes;
    }
    return p;
}

// `unit`: bytes of a block.
static __device__ __forceinline__ char * at(const tq_rows_view & t, const position & p, int64_t unit) {
    return t.data + p.i0 * unit + p.i1 * t.nb[1] + p.i2 * t.nb[2] + p.i3 * t.nb[3];
}

static __device__ int64_t load_id(const tq_rows_ids & ids, int64_t i0, int64_t i1, int64_t i2) {
    const char * p = ids.data + i0 * ids.nb[0] + i1 * ids.nb[1] + i2 * ids.nb[2];
    return ids.bytes == 8 ? *(const int64_t *) p : *(const int32_t *) p;
}

// Where block b of the values goes.
static __device__ __forceinline__ char * place_of_block(const tq_rows_store & job, unsigned b) {
    if (job.ids.bytes == 0) {
        return at(job.dst, position_of(job.dst, b), job.dst.nb[0]);
    }
    const position p = position_of(job.src, b);
    const unsigned j1 = p.i2 ? p.i2 % (unsigned) job.ids.ne[1] : 0, j2 = p.i3 ? p.i3 % (unsigned) job.ids.ne[2] : 0;
    return job.dst.data + p.i0 * job.dst.nb[0] + load_id(job.ids, p.i1, j1, j2) * job.dst.nb[1] + p.i2 * job.dst.nb[2] +
           p.i3 * job.dst.nb[3];
}

static __device__ __forceinline__ float load_value(const tq_rows_store & job, unsigned b, int lane) {
    const char * p = at(job.src, position_of(job.src, b), TQ_BLOCK * job.src.nb[0]) + lane * job.src.nb[0];
    return job.src_is_half ? __half2float(*(const half *) p) : *(const float *) p;
}

// Turns a head that starts with block `first` of the values, and takes its centre from it; block i of it is x[i].
// `room` is as large, and the warp's own.
template <int width>
static __device__ __forceinline__ void turn_head(const tq_rows_store & job, unsigned first, float (&x)[width],
                                                 float * room, int lane) {
    const position p = position_of(job.src, first); // of one plane
    const int values = width * TQ_BLOCK;
    const float * from = room;
    int at = job.rope.positions[p.i1];
#pragma unroll
    for (int i = 0; i < width; i++) {
        room[TQ_BLOCK * i + lane] = x[i];
    }
#pragma unroll 1
    for (bool is_centre = false;; is_centre = true) {
        __syncwarp();
        turn(job.rope, at, from, room, values, lane);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < width; i++) {
            const float value = room[TQ_BLOCK * i + lane];
            x[i] = is_centre ? x[i] - value : value;
        }
        if (is_centre || !job.centre.rows) {
            break;
        }
        from = job.centre.rows + job.centre.ids[p.i1] * job.src.ne[0] + p.i0 * TQ_BLOCK;
        at = job.centre.positions[p.i1];
    }
}

struct encode_jobs {
    tq_rows_store of[most_stores];
    unsigned blocks[most_stores];
    unsigned parts; // warps that share the blocks that are rotated together; each rotates them all
};

// `width` blocks are read, and rotated where that is asked for, by a warp, which encodes two at a time.
template <int width> __global__ __launch_bounds__(warps * TQ_LANES, 3) void encode(const encode_jobs jobs) {
    TQ_CUDA_SHARED(shared); // of copies on the way
    encoder_tables & tables = *reinterpret_cast<encoder_tables *>(shared);
    __shared__ __align__(16) float values[warps][width * TQ_BLOCK];
    const tq_rows_store & job = jobs.of[blockIdx.y];
    start_tables(tables, job.type);
    copy_commit();

    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    const unsigned blocks = jobs.blocks[blockIdx.y], units = (blocks + width - 1) / width * jobs.parts;
    const int pairs = width / 2 / (int) jobs.parts;
    wait_for_kernels_before();
    let_next_kernel_load(); // not before: attention relies on all kernels before this one
    bool starts = true;
    for (unsigned u = blockIdx.x * warps + warp; starts || u < units; u += gridDim.x * warps) {
        const unsigned first = u / jobs.parts * width, end = first + width < blocks ? first + width : blocks;
        unsigned b = first + u % jobs.parts * pairs * 2;
        float x[width];
        char * out; // of the lane's block of two
        const auto aim = [&]() { out = place_of_block(job, b + (b + 1 < blocks ? lane >> 4 : 0)); };
        if (u < units) {
#pragma unroll
            for (int i = 0; i < width; i++) {
                x[i] = first + i < blocks ? load_value(job, first + i, lane) : 0.0f;
            }
            if (b < end) {
                aim();
            }
        }
        if (starts) { // the tables were on their way, too
            copy_wait<0>();
            __syncthreads();
            starts = false;
        }
        if (u >= units) {
            break;
        }
        if (job.rope.positions) {
            turn_head(job, first, x, values[warp], lane);
        }
        rotate(x, job.rotation, lane);
        for (int pair = 0; pair < pairs && b < end; pair++, b += 2) {
            if (pair > 0) {
                aim();
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < width; i++) {
                if (first + i / 2 * 2 == b) {
                    values[warp][i % 2 * TQ_BLOCK + lane] = tq_dev_clean(x[i]);
                }
            }
            __syncwarp();
            const int count = b + 1 < blocks ? 2 : 1;
            encode_two(job.type, values[warp], tables, out, count, lane);
        }
    }
}

template <int type>
__global__ void decode(tq_rows_view src, tq_rows_ids ids, tq_rows_view dst, bool dst_is_half, unsigned blocks) {
    using T = spec<type>;
    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    wait_for_kernels_before();
    for (unsigned b = blockIdx.x * warps + warp; b < blocks; b += gridDim.x * warps) {
        const position to = position_of(dst, b);
        const char * in;
        if (ids.bytes) { // row r of (i1, i2) comes from row ids[r, i1, i2]
            in = src.data + to.i0 * src.nb[0] + load_id(ids, to.i1, to.i2, to.i3) * src.nb[1] + to.i2 * src.nb[2] +
                 to.i3 * src.nb[3];
        } else {
            in = at(src, position_of(src, b), src.nb[0]);
        }
        const float value = tq_dev_value(T::bits, tq_dev_books(type), (const unsigned char *) in, lane);
        char * out = at(dst, to, TQ_BLOCK * dst.nb[0]) + lane * dst.nb[0];
        if (dst_is_half) {
            *(half *) out = __float2half_rn(value);
        } else {
            *(float *) out = value;
        }
    }
}

template <int bytes> __global__ void copy(tq_rows_view src, tq_rows_view dst, unsigned blocks) {
    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    wait_for_kernels_before();
    for (unsigned b = blockIdx.x * warps + warp; b < blocks; b += gridDim.x * warps) {
        const char * in = at(src, position_of(src, b), bytes);
        char * out = at(dst, position_of(dst, b), bytes);
        if (lane < bytes / 2) { // a block may lie at any even address
            ((unsigned short *) out)[lane] = ((const unsigned short *) in)[lane];
        }
    }
}

static unsigned blocks_of(const tq_rows_view & t) {
    return (unsigned) (t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3] / TQ_BLOCK);
}

static unsigned grid_for(unsigned blocks) {
    const unsigned needed = (blocks + warps - 1) / warps;
    return needed < 1 << 16 ? needed : 1 << 16;
}

} // namespace

void tq_cuda_encode(const tq_rows_store * stores, int count, cudaStream_t stream) {
    encode_jobs jobs = {};
    unsigned most = 0;
    int width = 2;
    for (int i = 0; i < count; i++) {
        jobs.of[i] = stores[i];
        jobs.blocks[i] = blocks_of(stores[i].src);
        most = jobs.blocks[i] > most ? jobs.blocks[i] : most;
        width = stores[i].rotation > TQ_BLOCK * width ? stores[i].rotation / TQ_BLOCK : width;
    }
    if (most == 0) {
        return;
    }
    jobs.parts = most < few_blocks ? width / 2 : 1;
    const dim3 grid(grid_for((most + width - 1) / width * jobs.parts), (unsigned) count);
    if (width == 2) {
        launch<encode<2>>(grid, warps * TQ_LANES, sizeof(encoder_tables), stream, jobs);
    } else if (width == 4) {
        launch<encode<4>>(grid, warps * TQ_LANES, sizeof(encoder_tables), stream, jobs);
    } else {
        launch<encode<8>>(grid, warps * TQ_LANES, sizeof(encoder_tables), stream, jobs);
    }
}

void tq_cuda_decode(int type, const tq_rows_view & src, const tq_rows_ids & ids, const tq_rows_view & dst,
                    bool dst_is_half, cudaStream_t stream) {
    const unsigned blocks = blocks_of(dst);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                 \
    case TQ_TYPE_##NAME:                                                                                   \
        launch<decode<TQ_TYPE_##NAME>>(dim3(grid_for(blocks)), warps * TQ_LANES, 0, stream, src, ids, dst, \
                                       dst_is_half, blocks);                                               \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}

void tq_cuda_copy(int type, const tq_rows_view & src, const tq_rows_view & dst, cudaStream_t stream) {
    const unsigned blocks = blocks_of(src);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                          \
    case TQ_TYPE_##NAME:                                                                            \
        launch<copy<bytes>>(dim3(grid_for(blocks)), warps * TQ_LANES, 0, stream, src, dst, blocks); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}
