// A warp encodes two blocks at once: a lane prices one candidate of one sub-block under both codebooks and both signs
// (tq_device.h). With a thread for each block the 32 blocks of a token's row would fill one warp, and decode would wait
// for it; with a lane for each sign and codebook, a prefill took four times as many instructions for the prices.
#include "rows.h"

#include "ptx.cuh"
#include "rotate.cuh"
#include "tq.h"
#include "tq_device.h"

namespace {

constexpr int warps = 8;              // of a thread block
constexpr unsigned few_blocks = 8192; // fewer leave multiprocessors idle unless warps share what they rotate
constexpr unsigned all = 0xFFFFFFFFu;

template <int type> struct spec;

#define TQ_TYPE(NAME, name, id, bits_, bytes_, start_, count_)             \
    template <> struct spec<TQ_TYPE_##NAME> {                              \
        static constexpr int bits = bits_, bytes = bytes_, count = count_; \
        static constexpr float start = start_ / 16384.0f;                  \
    };
#include "types.def"
#undef TQ_TYPE

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
    __device__ constexpr distance_table distances_##name = distances_to<bits>(tq_codebook_##name);
#include "types.def"
#undef TQ_TYPE

static __device__ const distance_table & distances_of(int type) {
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    case TQ_TYPE_##NAME:                                   \
        return distances_##name;
#include "types.def"
#undef TQ_TYPE
    }
    return distances_tq4_0;
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
static __device__ __forceinline__ void encode_two(const float * x, const signed char (*books)[16],
                                                  const tq_dev_distances * distances, char * out, int count, int lane) {
    using T = spec<type>;
    const float value[2] = {x[lane], x[TQ_BLOCK + lane]};
    const float amax[2] = {largest_of_16(fabsf(value[0])), largest_of_16(fabsf(value[1]))};
    const int from = lane & 8 ? 16 : 0; // a lane of the same sub-block
    const float amax0 = __shfl_sync(all, amax[0], from), amax1 = __shfl_sync(all, amax[1], from);
    const chosen c = search<type>(x + TQ_SUB_BLOCK * (lane >> 3), lane & 16 ? amax1 : amax0, distances, lane);
    const unsigned mine = (unsigned) c.code | (unsigned) c.negative << 9 | (unsigned) c.book << 10;
    for (int i = 0; i < 2; i++) {
        const unsigned choice = __shfl_sync(all, mine, 16 * i + (lane >> 4) * 8);
        const unsigned word = __shfl_sync(all, c.word, 16 * i);
        const unsigned index = tq_dev_assign(T::bits, value[i], choice & 511, choice >> 9 & 1, books[choice >> 10]);
        const unsigned byte = pack<type>(word, index, lane);
        const int64_t low = __shfl_sync(all, (unsigned) (uintptr_t) out, 16 * i);
        const int64_t high = __shfl_sync(all, (unsigned) ((uint64_t) (uintptr_t) out >> 32), 16 * i);
        if (lane < T::bytes && i < count) {
            reinterpret_cast<char *>(high << 32 | low)[lane] = (char) (word ? byte : 0);
        }
    }
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

struct encode_jobs {
    tq_rows_store of[most_stores];
    unsigned blocks[most_stores];
    unsigned parts; // warps that share the blocks that are rotated together; each rotates them all
};

// `width` blocks are read, and rotated where that is asked for, by a warp, which encodes two at a time.
template <int width> __global__ __launch_bounds__(warps * TQ_LANES, 3) void encode(const encode_jobs jobs) {
    __shared__ signed char books[2][16];
    TQ_CUDA_SHARED(shared); // of copies on the way
    distance_table & distances = *reinterpret_cast<distance_table *>(shared);
    __shared__ __align__(16) float values[warps][2 * TQ_BLOCK];
    const tq_rows_store & job = jobs.of[blockIdx.y];
    const int type = job.type, bits = tq_dev_bits(type);
    for (int i = threadIdx.x; i < (int) sizeof(distances) / 16; i += blockDim.x) {
        tq_cuda::copy_start<16>(tq_cuda::place_of(shared) + 16 * i,
                                reinterpret_cast<const char *>(&distances_of(type)) + 16 * i);
    }
    tq_cuda::copy_commit();
    for (int i = threadIdx.x; i < 2 << bits; i += blockDim.x) {
        books[i >> bits][i & ((1 << bits) - 1)] = tq_dev_books(type)[i];
    }

    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    const unsigned blocks = jobs.blocks[blockIdx.y], units = (blocks + width - 1) / width * jobs.parts;
    const int pairs = width / 2 / (int) jobs.parts;
    tq_cuda::wait_for_kernels_before();
    tq_cuda::let_next_kernel_load(); // not before: attention relies on all kernels before this one
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
            tq_cuda::copy_wait<0>();
            __syncthreads();
            starts = false;
        }
        if (u >= units) {
            break;
        }
        tq_cuda::rotate(x, job.rotation, lane);
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
            switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count_)                              \
    case TQ_TYPE_##NAME:                                                                 \
        encode_two<TQ_TYPE_##NAME>(values[warp], books, distances.of, out, count, lane); \
        break;
#include "types.def"
#undef TQ_TYPE
            }
        }
    }
}

template <int type>
__global__ void decode(tq_rows_view src, tq_rows_ids ids, tq_rows_view dst, bool dst_is_half, unsigned blocks) {
    using T = spec<type>;
    const int warp = threadIdx.x / TQ_LANES, lane = threadIdx.x % TQ_LANES;
    tq_cuda::wait_for_kernels_before();
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
    tq_cuda::wait_for_kernels_before();
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
        tq_cuda::launch<encode<2>>(grid, warps * TQ_LANES, sizeof(distance_table), stream, jobs);
    } else if (width == 4) {
        tq_cuda::launch<encode<4>>(grid, warps * TQ_LANES, sizeof(distance_table), stream, jobs);
    } else {
        tq_cuda::launch<encode<8>>(grid, warps * TQ_LANES, sizeof(distance_table), stream, jobs);
    }
}

void tq_cuda_decode(int type, const tq_rows_view & src, const tq_rows_ids & ids, const tq_rows_view & dst,
                    bool dst_is_half, cudaStream_t stream) {
    const unsigned blocks = blocks_of(dst);
    if (blocks == 0) {
        return;
    }
    switch (type) {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                          \
    case TQ_TYPE_##NAME:                                                                                            \
        tq_cuda::launch<decode<TQ_TYPE_##NAME>>(dim3(grid_for(blocks)), warps * TQ_LANES, 0, stream, src, ids, dst, \
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
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count)                                                   \
    case TQ_TYPE_##NAME:                                                                                     \
        tq_cuda::launch<copy<bytes>>(dim3(grid_for(blocks)), warps * TQ_LANES, 0, stream, src, dst, blocks); \
        break;
#include "types.def"
#undef TQ_TYPE
    }
}
