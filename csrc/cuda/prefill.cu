// Attention for many query columns (query heads of a KV head, times tokens): a block of warps unpacks tiles of cache
// rows to halves in shared memory, and every warp multiplies its own 16 or 32 columns with them. Heads of 128 have a
// kernel of their own on Hopper, hopper.cu.
//
// While tile i is multiplied, tile i + 1 is unpacked from its packed bytes to the other buffer, and the bytes of tile
// i + 2 are on their way. Odd warps unpack first and even warps multiply first, so that the tensor cores and the
// integer units work at the same time with one barrier for each tile.
//
// Values lie in shared memory as unpacking yields them: position 16 h + 4 r + b of a block is value tq_dev_place(h, r,
// b). Queries are stored in the same order, and results are put back in place when they are written.
//
// A small kernel before looks at the mask once, for all heads: which tiles does a block of columns see not at all, and
// which in full? The first kind is skipped, the second computed without the mask.
//
// Loops over a head must have its size as a constant: a branch between the products of a tile keeps the compiler from
// loading ahead, and 512 tokens at 32768 took 1.45 ms instead of 1.14 on an H100. So smaller heads are filled up with
// zeros. 16 warps of 16 columns instead of 8 of 32 made no difference then.

#include "prefill.cuh"
#include "rotate.cuh"

namespace tq_cuda {

namespace {

template <int R> __global__ void look(const prefill_arguments p) {
    __shared__ unsigned found[2];
    const tq_cuda_attn & a = p.a;
    const int first = blockIdx.x * R, column = blockIdx.y * p.tile_columns;
    const int first_token = column / p.group;
    const int tokens = (min(column + p.tile_columns, p.columns) - 1) / p.group - first_token + 1;
    const char * mask = a.mask + blockIdx.z * a.mask_stream_stride + first_token * a.mask_token_stride;
    if (threadIdx.x < 2) {
        found[threadIdx.x] = 0;
    }
    __syncthreads();
    wait_for_kernels_before();
    bool any_open = false, any_closed = false;
    const auto see = [&](unsigned two) { // halves
        any_open |= (two & 0xFFFF) != 0xFC00 || two >> 16 != 0xFC00;
        any_closed |= (two & 0x7FFF7FFF) != 0;
    };
    if (first + R <= a.kv_rows && (((int64_t) (size_t) mask | a.mask_token_stride) & 15) == 0) {
        for (int i = threadIdx.x; i < tokens * (R / 8); i += blockDim.x) {
            const uint4 x = *reinterpret_cast<const uint4 *>(mask + i / (R / 8) * a.mask_token_stride +
                                                             (first + 8 * (i % (R / 8))) * 2);
            see(x.x);
            see(x.y);
            see(x.z);
            see(x.w);
        }
    } else {
        for (int i = threadIdx.x; i < tokens * R; i += blockDim.x) {
            const int row = first + i % R;
            const unsigned short * m = reinterpret_cast<const unsigned short *>(mask + i / R * a.mask_token_stride);
            see((row < a.kv_rows ? m[row] : 0xFC00u) * 0x10001u);
        }
    }
    if (any_open) {
        found[0] = 1;
    }
    if (any_closed) {
        found[1] = 1;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        p.seen[((int64_t) blockIdx.z * p.column_tiles + blockIdx.y) * p.tiles + blockIdx.x] =
            found[0] ? (found[1] ? partly : open) : unseen;
    }
}

__global__ void pair(const prefill_arguments p) {
    __shared__ float G[pair_columns][256 + 1];
    wait_for_kernels_before();
    let_next_kernel_load();
    const tq_cuda_attn & a = p.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = a.k.dim / 16;
    const int kv_head = blockIdx.y, stream = blockIdx.z;
    const int64_t group = ((int64_t) stream * a.kv_heads + kv_head) * gridDim.x + blockIdx.x;
    for (int i = warp; i < pair_columns; i += pair_warps) {
        const int column = blockIdx.x * pair_columns + i;
        const bool is_there = column < p.columns;
        const int token = min(column, p.columns - 1) / p.group;
        const int head = kv_head * p.group + min(column, p.columns - 1) % p.group;
        const float * plain = reinterpret_cast<const float *>(a.q_plain + token * a.qp_token_stride +
                                                              head * a.qp_head_stride + stream * a.qp_stream_stride);
        float top = 0.0f, down, up;
        for (int x = lane; x < a.k.dim; x += 32) {
            const float value = is_there ? paired(plain, a.mean + kv_head * a.k.dim, x, a.n_rot, a.neox) : 0.0f;
            G[i][x] = value;
            top = fmaxf(top, fabsf(value));
        }
        powers(largest(top), down, up);
        __syncwarp();
        for (int x = lane; x < a.k.dim; x += 32) {
            G[i][x] *= down;
        }
        if (lane == 0) {
            p.pair_factors[group * pair_columns + i] = up;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < steps * 32; i += blockDim.x) {
        const int step = i / 32, g = i % 32 >> 2, t = i & 3;
        uint4 high, low;
        const auto split = [&](int row, int x, unsigned & h, unsigned & l) {
            split_float2(make_float2(G[row][16 * step + x], G[row][16 * step + x + 1]), h, l);
        };
        split(g, 2 * t, high.x, low.x);
        split(g + 8, 2 * t, high.y, low.y);
        split(g, 2 * t + 8, high.z, low.z);
        split(g + 8, 2 * t + 8, high.w, low.w);
        uint4 * to = p.pairs + (group * steps + step) * 64 + i % 32;
        to[0] = high;
        to[32] = low;
    }
}

// R rows of packed blocks to rows of halves. A thread takes whole blocks; neighbours take neighbouring rows.
template <int R>
__device__ __forceinline__ void unpack(int type, place to, int to_stride, place from, int from_stride, int blocks) {
    for (int i = threadIdx.x; i < R * blocks; i += blockDim.x) {
        const int row = i % R, block = i / R;
        const place out = to + row * to_stride + block * TQ_BLOCK * 2;
        unpack_block(type, from + row * from_stride, block, [&](int i, unsigned x, unsigned y, unsigned z, unsigned w) {
            store_words(out + 16 * i, x, y, z, w);
        });
    }
}

// MT: groups of 16 columns of a warp. R: rows of a tile. D: at least either head size. Centred keys have instances of
// their own: their offsets take registers that the others would spill.
template <int D, int MT, int R, bool centred>
__global__ __launch_bounds__(most_warps * 32, 1) void prefill(const prefill_arguments p) {
    TQ_CUDA_SHARED(shared);
    constexpr int stride = (D + 8) * 2; // of a row of halves, in bytes: 16 more, so that rows start in different banks
    const tq_cuda_attn & a = p.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const int split = blockIdx.x, kv_head = blockIdx.y, column_tile = blockIdx.z % p.column_tiles;
    const int stream = blockIdx.z / p.column_tiles, kv_stream = stream / (a.streams / a.kv_streams);
    const int first_column = column_tile * p.tile_columns;
    const bool planes = a.k.type == TQ_TYPE_TQ3_0 || a.k.type == TQ_TYPE_TQ2_1;
    const bool v_planes = a.v.type == TQ_TYPE_TQ3_0 || a.v.type == TQ_TYPE_TQ2_1;
    const int key_blocks = a.k.dim / TQ_BLOCK, value_blocks = a.v.dim / TQ_BLOCK;
    const place base = place_of(shared), queries = base + p.q_offset;
    float * const factors = reinterpret_cast<float *>(shared); // [2][columns]: of products, of offsets over them
    const int64_t first_pair =                                 // of 16 columns
        (((int64_t) stream * a.kv_heads + kv_head) * p.column_tiles + column_tile) * (p.tile_columns / pair_columns);
    const float to_score = a.softcap == 0.0f ? a.scale * log2e : a.scale / a.softcap;

    const auto token_of = [&](int column) { return min(first_column + column, p.columns - 1) / p.group; };
    const auto head_of = [&](int column) {
        return kv_head * p.group + min(first_column + column, p.columns - 1) % p.group;
    };

    wait_for_kernels_before();

    // --- queries: a warp writes its own ---
    for (int column = warp * MT * 16; column < (warp + 1) * MT * 16; column++) {
        const bool is_there = first_column + column < p.columns;
        const float * q = reinterpret_cast<const float *>(
            a.q + token_of(column) * a.q_token_stride + head_of(column) * a.q_head_stride + stream * a.q_stream_stride);
        float x[D / 32], top = 0.0f, down, up;
#pragma unroll
        for (int b = 0; b < D / 32; b++) { // zeros past the end of a smaller head
            x[b] = is_there && b < key_blocks ? q[TQ_BLOCK * b + lane] : 0.0f;
        }
        rotate(x, a.k_rotation, lane);
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            top = fmaxf(top, fabsf(x[b]));
        }
        powers(largest(top), down, up);
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            *reinterpret_cast<half *>(shared + p.q_offset + column * stride +
                                      2 * (TQ_BLOCK * b + position_of(planes, lane))) = __float2half_rn(x[b] * down);
        }
        if (lane == 0) {
            factors[column] = up * to_score * unit_of(a.k.type);
        }
        if (centred && lane == 0) {
            factors[p.tile_columns + column] =
                p.pair_factors[first_pair * pair_columns + column] * down / unit_of(a.k.type);
        }
    }
    __syncwarp();
    if (a.k.dim < D) { // no unpacked key reaches there, and what lies there must be a number
        for (int i = threadIdx.x; i < 2 * R * (D - a.k.dim) / 2; i += blockDim.x) {
            const int row = i / ((D - a.k.dim) / 2), column = a.k.dim * 2 + i % ((D - a.k.dim) / 2) * 4;
            *reinterpret_cast<unsigned *>(shared + p.k_offset + row * stride + column) = 0;
        }
    }

    const bool is_plain = a.softcap == 0.0f && a.scale > 0.0f;
    float factor[MT][2], slope[MT][2], top[MT][2], sum[MT][4], o[MT][D / 8][4];
    int first_chunk = -1; // of the window
    float * const offsets = reinterpret_cast<float *>(shared + p.window_offset) + warp * window * MT * 16;
    int ids_before[R / 32] = {}, ids_now[R / 32] = {}; // of the chunks of the rows of both tiles
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = (warp * MT + m) * 16 + g + 8 * j;
            factor[m][j] = factors[column];
            slope[m][j] = log2e;
            if (a.max_bias != 0.0f) {
                const int head = head_of(column), power = 1 << (31 - __clz(a.heads));
                slope[m][j] *= exp2f(-a.max_bias / power * (head < power ? head + 1 : head - power + 0.5f));
            }
            top[m][j] = -INFINITY;
            sum[m][2 * j] = sum[m][2 * j + 1] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                o[m][n][j] = 0.0f;
            }
        }
    }

    // --- tiles ---
    const char * const keys = a.k.data + kv_head * a.k.head_stride + kv_stream * a.k.stream_stride;
    const char * const cells = a.v.data + kv_head * a.v.head_stride + kv_stream * a.v.stream_stride;
    const int * const ids = centred ? a.ids + (int64_t) kv_stream * a.kv_rows : nullptr;
    const char * const mask = a.mask ? a.mask + stream % a.mask_streams * a.mask_stream_stride : nullptr;
    tiles_seen tiles = tiles_of(p, split, column_tile, stream);
    const unsigned char * const seen = tiles.seen;
    const auto start = [&](int tile, int slot) {
        if (tile >= 0) {
            stage_tile<R>(shared + p.raw_offset + slot * p.raw_bytes, p, keys, cells, tile, warp, lane);
        }
        copy_commit();
    };

    int before = -1, now = -1, next = tiles.next(lane);
    start(next, 0);
    for (int i = 0;; i++) {
        // `now` lies packed in slot i - 1 and is unpacked, `before` lies unpacked and is multiplied
        before = now;
        now = next;
        if (before < 0 && now < 0) {
            break;
        }
        if (centred) {
#pragma unroll
            for (int i = 0; i < R / 32; i++) {
                const int row = now * R + 32 * i + lane;
                ids_before[i] = ids_now[i];
                ids_now[i] = now >= 0 && row < a.kv_rows ? ids[row] : 0;
            }
        }
        next = now < 0 ? -1 : tiles.next(lane);
        copy_wait<0>();
        __syncthreads();
        start(next, (i + 1) & 1);
        const int slot = i & 1;
#pragma unroll 1
        for (int phase = 0; phase < 2; phase++) {
            if ((phase ^ warp) & 1) {
                if (now >= 0) {
                    const place raw = base + p.raw_offset + slot * p.raw_bytes;
                    unpack<R>(a.k.type, base + p.k_offset + slot * R * stride, stride, raw, p.k.stride, key_blocks);
                    unpack<R>(a.v.type, base + p.v_offset + slot * R * stride, stride, raw + p.raw_v_offset, p.v.stride,
                              value_blocks);
                }
                continue;
            }
            if (before < 0) {
                continue;
            }
            const place key_rows = base + p.k_offset + (slot ^ 1) * R * stride;
            const place value_rows = base + p.v_offset + (slot ^ 1) * R * stride;
            const bool is_open = (seen ? seen[before] == open : true) && before * R + R <= a.kv_rows;
#pragma unroll 1
            for (int within = 0; within < R; within += 32) {
                const int row = before * R + within;
                float s[MT][4][4] = {};
                if (centred) { // products are added to the offsets
                    int id = ids_before[0];
#pragma unroll
                    for (int i = 1; i < R / 32; i++) {
                        id = within == 32 * i ? ids_before[i] : id;
                    }
                    unsigned todo = all;
#pragma unroll 1
                    while (todo) { // chunks are runs of rows: almost always once
                        const int chunk = __shfl_sync(all, id, __ffs(todo) - 1);
                        const unsigned same = __ballot_sync(all, id == chunk);
                        todo &= ~same;
                        if ((chunk & -window) != first_chunk) {
                            first_chunk = chunk & -window;
                            const int steps = a.k.dim / 16;
                            offsets_of_chunks<MT>(offsets, p.pairs + (first_pair + warp * MT) * steps * 64,
                                                  factors + p.tile_columns + warp * MT * 16, a, first_chunk, lane);
                        }
#pragma unroll
                        for (int m = 0; m < MT; m++) {
#pragma unroll
                            for (int j = 0; j < 4; j++) {
                                const float offset =
                                    offsets[(chunk & (window - 1)) * MT * 16 + 16 * m + g + 8 * (j >> 1)];
#pragma unroll
                                for (int n = 0; n < 4; n++) {
                                    const bool has = same >> (8 * n + 2 * t + (j & 1)) & 1;
                                    s[m][n][j] = has ? offset : s[m][n][j];
                                }
                            }
                        }
                    }
                }
#pragma unroll
                for (int step = 0; step < D / 16; step++) {
                    unsigned x[MT][4], y[2][4];
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        load_matrices(x[m], queries + ((warp * MT + m) * 16 + (lane & 15)) * stride + 32 * step +
                                                16 * (lane >> 4));
                    }
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        load_matrices(y[n], key_rows + (within + 16 * n + (lane & 7) + 8 * (lane >> 4)) * stride +
                                                32 * step + 16 * (lane >> 3 & 1));
                    }
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        const unsigned z[2] = {y[n >> 1][2 * (n & 1)], y[n >> 1][2 * (n & 1) + 1]};
#pragma unroll
                        for (int m = 0; m < MT; m++) {
                            mma(s[m][n], x[m], z);
                        }
                    }
                }
                // Where nothing is added to a product, the exponential takes its factor along.
                float scale[MT][2];
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        scale[m][j] = is_plain && is_open ? factor[m][j] : 1.0f;
                    }
                }
                if (!(is_plain && is_open)) {
#pragma unroll
                    for (int m = 0; m < MT; m++) {
#pragma unroll
                        for (int n = 0; n < 4; n++) {
#pragma unroll
                            for (int j = 0; j < 4; j++) {
                                s[m][n][j] *= factor[m][j >> 1];
                            }
                        }
                    }
                }

                if (a.softcap != 0.0f) {
#pragma unroll
                    for (int m = 0; m < MT; m++) {
#pragma unroll
                        for (int n = 0; n < 4; n++) {
#pragma unroll
                            for (int j = 0; j < 4; j++) {
                                s[m][n][j] = capped(s[m][n][j]) * (a.softcap * log2e);
                            }
                        }
                    }
                }
                if (!is_open) {
#pragma unroll
                    for (int m = 0; m < MT; m++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            const int column = (warp * MT + m) * 16 + g + 8 * j;
                            const half * by_row = reinterpret_cast<const half *>(
                                mask ? mask + token_of(column) * a.mask_token_stride : nullptr);
#pragma unroll
                            for (int n = 0; n < 8; n++) {
                                const int r = row + 8 * (n >> 1) + 2 * t + (n & 1);
                                const float x = r >= a.kv_rows ? -INFINITY
                                                : mask         ? slope[m][j] * __half2float(by_row[r])
                                                               : 0.0f;
                                s[m][n >> 1][2 * j + (n & 1)] += x;
                            }
                        }
                    }
                }

                float most[MT][2];
                bool moved = false;
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float x = s[m][0][2 * j];
#pragma unroll
                        for (int n = 1; n < 8; n++) {
                            x = fmaxf(x, s[m][n >> 1][2 * j + (n & 1)]);
                        }
                        x = fmaxf(x, __shfl_xor_sync(all, x, 1));
                        x = fmaxf(x, __shfl_xor_sync(all, x, 2));
                        most[m][j] = fmaxf(x * scale[m][j], top[m][j]);
                        moved |= most[m][j] > top[m][j];
                    }
                }
                if (__any_sync(all, moved)) {
#pragma unroll
                    for (int m = 0; m < MT; m++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            const float by = most[m][j] == -INFINITY ? 1.0f : exp2f(top[m][j] - most[m][j]);
                            top[m][j] = most[m][j];
                            sum[m][2 * j] *= by;
#pragma unroll
                            for (int n = 0; n < D / 8; n++) {
                                o[m][n][2 * j] *= by;
                                o[m][n][2 * j + 1] *= by;
                            }
                        }
                    }
                }
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const float zero = top[m][j] == -INFINITY ? 0.0f : top[m][j] - headroom;
#pragma unroll
                        for (int n = 0; n < 8; n++) {
                            float & x = s[m][n >> 1][2 * j + (n & 1)];
                            x = exp2f(x * scale[m][j] - zero);
                        }
                    }
                }
                unsigned weights[MT][2][4];
                const unsigned ones[2] = {0x3C003C00u, 0x3C003C00u};
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            const float * x = s[m][2 * k + (j >> 1)] + 2 * (j & 1);
                            weights[m][k][j] = as_word(__floats2half2_rn(x[0], x[1]));
                        }
                        mma(sum[m], weights[m][k], ones); // of the rounded weights
                    }
                }
#pragma unroll
                for (int k = 0; k < 2; k++) {
#pragma unroll
                    for (int n = 0; n < D / 16; n++) {
                        unsigned y[4];
                        load_matrices<true>(y, value_rows + (within + 16 * k + (lane & 15)) * stride + 32 * n +
                                                   16 * (lane >> 4));
                        const unsigned y0[2] = {y[0], y[1]}, y1[2] = {y[2], y[3]};
#pragma unroll
                        for (int m = 0; m < MT; m++) {
                            mma(o[m][2 * n], weights[m][k], y0);
                            mma(o[m][2 * n + 1], weights[m][k], y1);
                        }
                    }
                }
            }
        }
    }

    // --- results ---
    let_next_kernel_load();
    const float v_unit = unit_of(a.v.type);
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = (warp * MT + m) * 16 + g + 8 * j;
            if (first_column + column >= p.columns) {
                continue;
            }
            const int head = head_of(column);
            const int64_t row = ((int64_t) stream * a.tokens + token_of(column)) * a.heads + head;
            float * out = a.out + row * a.v.dim;
            float scale = v_unit;
            if (p.splits == 1) {
                scale *= finish(top[m][j], sum[m][2 * j], a.sinks, head);
            } else {
                out = p.partial + (row * p.splits + split) * a.v.dim;
                if (t == 0) {
                    p.partial_state[row * p.splits + split] = make_float2(top[m][j], sum[m][2 * j]);
                }
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                if (8 * n >= a.v.dim) {
                    break;
                }
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int at = 8 * n + 2 * t + k;
                    out[(at & ~31) + tq_dev_place(v_planes, at >> 4 & 1, at >> 2 & 3, at & 3)] =
                        o[m][n][2 * j + k] * scale;
                }
            }
        }
    }
}

// Which instance, and how much memory it takes.
struct layout {
    int size, groups, warps; // D, MT
    bool is_hopper;
    size_t shared;
};

static bool lay_out(prefill_arguments & p, layout & l, int D, int MT, int R, int warps, const tq_cuda_device & device) {
    const int stride = (D + 8) * 2;
    p.tile_columns = warps * MT * 16;
    p.q_offset = 2 * p.tile_columns * (int) sizeof(float);
    p.k_offset = p.q_offset + p.tile_columns * stride;
    p.v_offset = p.k_offset + 2 * R * stride;
    place_packed(p, p.v_offset + 2 * R * stride, R);
    l = {D, MT, warps, false, (size_t) p.window_offset + (p.a.q_plain ? window * p.tile_columns * sizeof(float) : 0)};
    return l.shared <= (size_t) device.shared;
}

// False where shared memory is too small for any instance.
static bool plan(const tq_cuda_attn & a, const tq_cuda_device & device, prefill_arguments & p, layout & l) {
    p = {};
    p.a = a;
    p.k = staging_of(a.k);
    p.v = staging_of(a.v);
    p.group = a.heads / a.kv_heads;
    p.columns = a.tokens * p.group;
    const int size = a.k.dim > a.v.dim ? a.k.dim : a.v.dim;
    bool fits = false;
    // as many warps as there are columns for, or as fit
    const auto fit = [&](int D, int MT, int R) {
        for (int warps = most_warps; warps > 0 && !fits; warps /= 2) {
            fits = (warps == 1 || warps / 2 * MT * 16 < p.columns) && lay_out(p, l, D, MT, R, warps, device);
        }
    };
    if (size <= 64) {
        fit(64, 2, 64);
    } else if (size <= 128) {
#if defined(TQ_CUDA_HOPPER)
        if (p.columns > 128 && hopper_takes(a, device)) {
            l = {128, 2, most_warps, true, hopper_lay_out(p)};
            fits = l.shared <= (size_t) device.shared;
        }
#endif
        fits = fits || (p.columns > 128 && lay_out(p, l, 128, 2, 64, most_warps, device));
        fit(128, 1, 32);
    } else {
        fit(256, 1, 32);
    }
    if (!fits) {
        return false;
    }
    // Splits that leave the fewest multiprocessors idle, with eight tiles at least.
    const int blocks = a.kv_heads * p.column_tiles * a.streams;
    const int resident = l.groups == 2 ? 1 : (int) (device.shared / (l.shared + 1024));
    const int slots = device.multiprocessors * (resident < 1 ? 1 : resident > 2 ? 2 : resident);
    float best = 0.0f;
    for (int splits = 1; splits <= 16 && (splits == 1 || p.tiles / splits >= 8); splits++) {
        const int waves = (blocks * splits + slots - 1) / slots;
        const float use = (float) blocks * splits / ((float) waves * slots) * (splits == 1 ? 1.1f : 1.0f);
        if (use > best * 1.03f) {
            best = use;
            p.splits = splits;
        }
    }
    return true;
}

static size_t all_pairs(const prefill_arguments & p) { // groups of 16 columns
    return p.a.q_plain ? (size_t) p.a.streams * p.a.kv_heads * p.column_tiles * (p.tile_columns / pair_columns) : 0;
}

static size_t pair_bytes(const prefill_arguments & p) {
    return all_pairs(p) * (p.a.k.dim / 16 * 64 * sizeof(uint4) + pair_columns * sizeof(float));
}

static size_t seen_bytes(const prefill_arguments & p) {
    return p.a.mask ? ((size_t) p.a.mask_streams * p.column_tiles * p.tiles + 15) / 16 * 16 : 0;
}

template <int D, int MT, int R> void launch_as(const prefill_arguments & p, const layout & l, cudaStream_t stream) {
    if (p.a.mask) {
        launch<look<R>>(dim3(p.tiles, p.column_tiles, p.a.mask_streams), 256, 0, stream, p);
    }
    if (p.a.q_plain) {
        const dim3 grid(p.column_tiles * (p.tile_columns / pair_columns), p.a.kv_heads, p.a.streams);
        launch<pair>(grid, pair_warps * 32, 0, stream, p);
    }
    if (l.is_hopper) {
#if defined(TQ_CUDA_HOPPER)
        hopper_run(p, l.shared, stream);
#endif
        return;
    }
    const dim3 grid(p.splits, p.a.kv_heads, p.column_tiles * p.a.streams);
    if (p.a.q_plain) {
        launch<prefill<D, MT, R, true>>(grid, l.warps * 32, l.shared, stream, p);
    } else {
        launch<prefill<D, MT, R, false>>(grid, l.warps * 32, l.shared, stream, p);
    }
}

} // namespace

bool prefill_takes(const tq_cuda_attn & a, const tq_cuda_device & device) {
    prefill_arguments p;
    layout l;
    return a.tokens * (a.heads / a.kv_heads) > 16 && a.mask_heads <= 1 && plan(a, device, p, l);
}

size_t prefill_scratch(const tq_cuda_attn & a, const tq_cuda_device & device) {
    prefill_arguments p;
    layout l;
    plan(a, device, p, l);
    const size_t rows = p.splits == 1 ? 0 : (size_t) a.streams * a.tokens * a.heads * p.splits;
    return pair_bytes(p) + seen_bytes(p) + rows * (a.v.dim + 2) * sizeof(float) + 16;
}

void prefill_run(const tq_cuda_attn & a, const tq_cuda_device & device, void * scratch, cudaStream_t stream) {
    prefill_arguments p;
    layout l;
    plan(a, device, p, l);
    p.pairs = static_cast<uint4 *>(scratch);
    p.pair_factors = reinterpret_cast<float *>(p.pairs + all_pairs(p) * (a.k.dim / 16 * 64));
    p.seen = static_cast<unsigned char *>(scratch) + pair_bytes(p);
    p.partial_state = reinterpret_cast<float2 *>(p.seen + seen_bytes(p));
    const size_t rows = (size_t) a.streams * a.tokens * a.heads * p.splits;
    p.partial = reinterpret_cast<float *>(p.partial_state + (rows + 1) / 2 * 2); // read four at a time
    if (l.size == 64) {
        launch_as<64, 2, 64>(p, l, stream);
    } else if (l.size == 256) {
        launch_as<256, 1, 32>(p, l, stream);
    } else if (l.groups == 2) {
        launch_as<128, 2, 64>(p, l, stream);
    } else {
        launch_as<128, 1, 32>(p, l, stream);
    }
    if (p.splits > 1) {
        merge_run(a, p.splits, p.partial, p.partial_state, stream);
    } else {
        rotate_back_run(a, stream);
    }
}

} // namespace tq_cuda
