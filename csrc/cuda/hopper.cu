// Attention for many query columns on Hopper, heads of 128: what prefill.cu does, by the products of warpgroups.
//
// There a warp loads every operand to its registers, and for each tile all eight read the same keys and values: shared
// memory is as busy as the tensor cores. Here four warps multiply together, and the tensor cores read by themselves.
//
// A block has two warpgroups of 128 columns, two parts of 64 for each. While the tensor cores have the scores of the
// first part, the threads unpack the next tile; while they have those of the second, the weights of the first; and so
// on:
//
//   tensor cores   scores 0        | scores 1    | values 0    | values 1
//   threads        unpack a tile   | weights 0   | weights 1   | wait
//
// What limits it is that two warps to a scheduler cannot hide how long each instruction takes: the registers hold 256
// columns of results, and leave room for no more warps. Products are under way across no branch that might not be the
// same for all threads, because the compiler would wait for them there.
//
// What lost, in us for 512 tokens at 33280 rows, tq4_0, 32 heads over 8, on an H200, all with queries read one by one:
//   901 against 880     the second warpgroup unpacks at the end, so that both need different units at a time
//   1560 against 880    a third warpgroup that only unpacks, with 40 registers a thread
//   887 against 880     largest scores and sums of weights in four chains instead of one
//   1097 against 880    prefill.cu
//   1603 against 880    centred keys, offsets put into the sums before the products
// Without unpacking it takes 697, without products 755, without exponentials 791.
#include "prefill.cuh"
#include "rotate.cuh"

namespace tq_cuda {

namespace {

constexpr int D = 128, R = 64;          // values of a head, rows of a tile
constexpr int columns = 256, part = 64; // of a block, and that are multiplied together
constexpr int tile_bytes = R * D * 2;

#if defined(TQ_CUDA_WARPGROUPS)
constexpr int columns_bytes = part * 128; // of half a head of 64 rows, of queries, keys or values

// Where eight halves lie, the i-th of row r of a matrix of 64 rows.
static __device__ __forceinline__ place piece(place matrix, int r, int i) {
    return matrix + (i >> 3) * columns_bytes + r * 128 + ((i & 7) ^ (r & 7)) * 16;
}
#endif

} // namespace

template <bool centred> static __global__ __launch_bounds__(most_warps * 32, 1) void hopper(const prefill_arguments p) {
#if defined(TQ_CUDA_WARPGROUPS)
    TQ_CUDA_SHARED(given);
    const place base = (place_of(given) + 1023) & ~1023u; // matrices begin at multiples of 1024
    char * const shared = given + (base - place_of(given));
    const tq_cuda_attn & a = p.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const int split = blockIdx.x, kv_head = blockIdx.y, column_tile = blockIdx.z % p.column_tiles;
    const int stream = blockIdx.z / p.column_tiles, kv_stream = stream / (a.streams / a.kv_streams);
    const int first_column = column_tile * columns;
    const bool planes = a.k.type == TQ_TYPE_TQ3_0 || a.k.type == TQ_TYPE_TQ2_1;
    const bool v_planes = a.v.type == TQ_TYPE_TQ3_0 || a.v.type == TQ_TYPE_TQ2_1;
    const place queries = base + p.q_offset, keys = base + p.k_offset, values = base + p.v_offset;
    float * const factors = reinterpret_cast<float *>(shared); // [2][columns]: of products, of offsets over them
    const int64_t first_pair = (((int64_t) stream * a.kv_heads + kv_head) * p.column_tiles + column_tile) *
                               (columns / pair_columns); // of 16 columns

    const auto token_of = [&](int column) { return min(first_column + column, p.columns - 1) / p.group; };
    const auto head_of = [&](int column) {
        return kv_head * p.group + min(first_column + column, p.columns - 1) % p.group;
    };

    wait_for_kernels_before();

    // --- queries, four at a time: one at a time they took 35 us longer ---
    constexpr int batch = 4, runs = D / TQ_BLOCK;
#    pragma unroll 1
    for (int first = warp * 32; first < (warp + 1) * 32; first += batch) {
        float x[batch * runs];
#    pragma unroll
        for (int i = 0; i < batch; i++) {
            const bool is_there = first_column + first + i < p.columns;
            const float * q =
                reinterpret_cast<const float *>(a.q + token_of(first + i) * a.q_token_stride +
                                                head_of(first + i) * a.q_head_stride + stream * a.q_stream_stride);
#    pragma unroll
            for (int b = 0; b < runs; b++) {
                x[i * runs + b] = is_there ? q[TQ_BLOCK * b + lane] : 0.0f;
            }
        }
        rotate(x, a.k_rotation, lane);
        const int at = position_of(planes, lane);
#    pragma unroll
        for (int i = 0; i < batch; i++) {
            const int column = first + i;
            float top = 0.0f, down, up;
#    pragma unroll
            for (int b = 0; b < runs; b++) {
                top = fmaxf(top, fabsf(x[i * runs + b]));
            }
            powers(largest(top), down, up);
#    pragma unroll
            for (int b = 0; b < runs; b++) {
                const place eight = piece(queries + column / part * tile_bytes, column % part, 4 * b + at / 8);
                store_short(eight + at % 8 * 2, __half_as_ushort(__float2half_rn(x[i * runs + b] * down)));
            }
            if (lane == 0) {
                factors[column] = up * a.scale * log2e * unit_of(a.k.type);
                if (centred) {
                    factors[columns + column] =
                        p.pair_factors[first_pair * pair_columns + column] * down / unit_of(a.k.type);
                }
            }
        }
    }

    // --- tiles ---
    const char * const packed_keys = a.k.data + kv_head * a.k.head_stride + kv_stream * a.k.stream_stride;
    const char * const packed_values = a.v.data + kv_head * a.v.head_stride + kv_stream * a.v.stream_stride;
    const int * const ids = centred ? a.ids + (int64_t) kv_stream * a.kv_rows : nullptr;
    const char * const mask = a.mask ? a.mask + stream % a.mask_streams * a.mask_stream_stride : nullptr;
    tiles_seen tiles = tiles_of(p, split, column_tile, stream);
    const unsigned char * const seen = tiles.seen;
    const auto start = [&](int tile, int slot) {
        if (tile >= 0) {
            char * const to = shared + p.raw_offset + slot * p.raw_bytes;
            stage_tile<R>(to, p, packed_keys, packed_values, tile, warp, lane);
        }
        copy_commit();
    };

    // the first of the 64 columns of a part whose scores this thread has in row g of two of its warp
    const auto column_of = [&](int h) { return warp / 4 * 128 + h * part + warp % 4 * 16 + g; };
    float * const offsets = reinterpret_cast<float *>(shared + p.window_offset) + warp * 2 * window * 16;
    int first_chunk = -1; // of the window
    float top[2][2], sum[2][2], o[2][D / 8][4];
#    pragma unroll
    for (int h = 0; h < 2; h++) {
#    pragma unroll
        for (int j = 0; j < 2; j++) {
            top[h][j] = -INFINITY;
            sum[h][j] = 0.0f;
        }
#    pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[h][n][0] = o[h][n][1] = o[h][n][2] = o[h][n][3] = 0.0f;
        }
    }

    const auto find_offsets = [&](float (&offset)[2][2], int chunk) { // for the columns of this thread
        if ((chunk & -window) != first_chunk) {
            first_chunk = chunk & -window;
#    pragma unroll 1
            for (int h = 0; h < 2; h++) {
                const int of = column_of(h) / pair_columns;
                offsets_of_chunks<1>(offsets + h * window * pair_columns, p.pairs + (first_pair + of) * (D / 16) * 64,
                                     factors + columns + of * pair_columns, a, first_chunk, lane);
            }
        }
#    pragma unroll
        for (int h = 0; h < 2; h++) {
#    pragma unroll
            for (int j = 0; j < 2; j++) {
                offset[h][j] = offsets[(h * window + (chunk & (window - 1))) * pair_columns + g + 8 * j];
            }
        }
    };
    const auto score = [&](int h, float (&s)[R / 8][4], int slot) {
        const place q = queries + (warp / 4 * 2 + h) * tile_bytes, k = keys + slot * tile_bytes;
        products_start();
#    pragma unroll
        for (int step = 0; step < D / 16; step++) {
            const int at = step / 4 * columns_bytes + step % 4 * 32;
            multiply_64x64(s, matrix_at(q + at, columns_bytes), matrix_at(k + at, columns_bytes), step > 0);
        }
        products_commit();
    };
    // Rows of one chunk or of two have these offsets; others do not count. A chunk is as long as a tile, and where
    // cells lie in order from its start, it is one.
    float offset[2][2][2] = {};
    unsigned of_first[2] = {all, all}, counts[2] = {all, all}; // rows, by bits
    // Scores become weights, pairs of halves.
    const auto weigh = [&](int h, float (&s)[R / 8][4], unsigned (&weights)[R / 16][4], int row, bool is_open,
                           bool is_one) {
        const int column = column_of(h);
        float scale[2], most[2], added[2];
        bool moved = false;
#    pragma unroll
        for (int j = 0; j < 2; j++) {
            scale[j] = factors[column + 8 * j];
            if (!(is_open && is_one)) {
                const half * by_row = reinterpret_cast<const half *>(
                    mask && !is_open ? mask + token_of(column + 8 * j) * a.mask_token_stride : nullptr);
#    pragma unroll
                for (int n = 0; n < R / 4; n++) {
                    const int r = row + 8 * (n >> 1) + 2 * t + (n & 1);
                    float & x = s[n >> 1][2 * j + (n & 1)];
                    bool has = r < a.kv_rows;
                    if (centred) {
                        x += of_first[n / 8] >> (r & 31) & 1 ? offset[0][h][j] : offset[1][h][j];
                        has &= counts[n / 8] >> (r & 31) & 1;
                    }
                    x *= scale[j];
                    x += !has ? -INFINITY : by_row ? log2e * __half2float(by_row[r]) : 0.0f;
                }
                scale[j] = 1.0f;
            }
            float x = s[0][2 * j];
#    pragma unroll
            for (int n = 1; n < R / 4; n++) {
                x = fmaxf(x, s[n >> 1][2 * j + (n & 1)]);
            }
            x = fmaxf(x, __shfl_xor_sync(all, x, 1));
            x = fmaxf(x, __shfl_xor_sync(all, x, 2));
            added[j] = centred && is_open && is_one ? offset[0][h][j] * scale[j] : 0.0f;
            most[j] = fmaxf(x * scale[j] + added[j], top[h][j]);
            moved |= most[j] > top[h][j];
        }
        if (__any_sync(all, moved)) {
#    pragma unroll
            for (int j = 0; j < 2; j++) {
                const float by = most[j] == -INFINITY ? 1.0f : exp2f(top[h][j] - most[j]);
                top[h][j] = most[j];
                sum[h][j] *= by;
#    pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    o[h][n][2 * j] *= by;
                    o[h][n][2 * j + 1] *= by;
                }
            }
        }
#    pragma unroll
        for (int j = 0; j < 2; j++) {
            const float zero = (top[h][j] == -INFINITY ? 0.0f : top[h][j] - headroom) - added[j];
#    pragma unroll
            for (int n = 0; n < R / 4; n++) {
                float & x = s[n >> 1][2 * j + (n & 1)];
                x = exp2f(x * scale[j] - zero);
                sum[h][j] += x;
            }
        }
#    pragma unroll
        for (int k = 0; k < R / 16; k++) {
#    pragma unroll
            for (int j = 0; j < 4; j++) {
                const float * x = s[2 * k + (j >> 1)] + 2 * (j & 1);
                weights[k][j] = as_word(__floats2half2_rn(x[0], x[1]));
            }
        }
    };
    const auto attend = [&](int h, const unsigned (&weights)[R / 16][4], int slot) {
        products_start();
#    pragma unroll
        for (int k = 0; k < R / 16; k++) {
            multiply_64x128(o[h], weights[k], matrix_at(values + slot * tile_bytes + k * 16 * 128, columns_bytes));
        }
        products_commit();
    };

    // A thread takes a block of keys and one of values; neighbours take neighbouring rows.
    const auto unpack = [&](int slot) {
        const int row = threadIdx.x % R, block = threadIdx.x / R;
        const place raw = base + p.raw_offset + slot * p.raw_bytes;
        const auto to = [&](place first) {
            return [=](int i, unsigned x, unsigned y, unsigned z, unsigned w) {
                store_words(piece(first + slot * tile_bytes, row, 4 * block + i), x, y, z, w);
            };
        };
        unpack_block(a.k.type, raw + row * p.k.stride, block, to(keys));
        unpack_block(a.v.type, raw + p.raw_v_offset + row * p.v.stride, block, to(values));
    };
    const auto arrived = [&](int next, int slot) { // what was copied and unpacked, everywhere
        copy_wait<0>();
        publish();
        __syncthreads();
        start(next, slot);
    };

    int now = tiles.next(lane), next = now < 0 ? -1 : tiles.next(lane);
    start(now, 0);
    arrived(next, 1);
    unpack(0);
    for (int i = 1; now >= 0; i++) { // `before` lies unpacked in slot i - 1, `now` packed in slot i
        const int before = now, slot = i & 1, row = before * R;
        now = next;
        next = now < 0 ? -1 : tiles.next(lane);
        arrived(next, slot ^ 1);
        const bool is_open = (seen ? seen[before] == open : true) && row + R <= a.kv_rows;
        int chunks[2] = {};
        unsigned todo[2] = {};
        if constexpr (centred) {
#    pragma unroll
            for (int k = 0; k < 2; k++) {
                const int r = row + 32 * k + lane;
                chunks[k] = r < a.kv_rows ? ids[r] : 0;
                todo[k] = __ballot_sync(all, r < a.kv_rows);
            }
        }
        bool is_first = true;
        do {
            bool is_one = true;
            if constexpr (centred) {
                const auto take = [&](float (&to)[2][2], unsigned (&rows)[2]) { // the next chunk
                    const bool is_second = todo[0] == 0;
                    const int chunk = __shfl_sync(all, is_second ? chunks[1] : chunks[0],
                                                  __ffs((int) (is_second ? todo[1] : todo[0])) - 1);
#    pragma unroll
                    for (int k = 0; k < 2; k++) {
                        rows[k] = __ballot_sync(all, chunks[k] == chunk);
                        todo[k] &= ~rows[k];
                    }
                    find_offsets(to, chunk);
                };
                take(offset[0], of_first);
                is_one = (of_first[0] & of_first[1]) == all;
                counts[0] = of_first[0];
                counts[1] = of_first[1];
                if (todo[0] | todo[1]) {
                    unsigned others[2];
                    take(offset[1], others);
                    counts[0] |= others[0];
                    counts[1] |= others[1];
                }
            }
            float s[2][R / 8][4];
            unsigned weights[2][R / 16][4];
            score(0, s[0], slot ^ 1);
            if (!centred || is_first) {
                unpack(slot); // of nothing, at the end
            }
            is_first = false;
            products_wait<0>();
            keep(s[0]);
            score(1, s[1], slot ^ 1);
            weigh(0, s[0], weights[0], row, is_open, is_one);
            attend(0, weights[0], slot ^ 1);
            products_wait<1>();
            keep(s[1]);
            weigh(1, s[1], weights[1], row, is_open, is_one);
            attend(1, weights[1], slot ^ 1);
            products_wait<0>();
            keep(o[0]);
            keep(o[1]);
        } while (centred && (todo[0] | todo[1]));
    }

    // --- results ---
    let_next_kernel_load();
    const float v_unit = unit_of(a.v.type);
#    pragma unroll
    for (int h = 0; h < 2; h++) {
#    pragma unroll
        for (int j = 0; j < 2; j++) {
            sum[h][j] += __shfl_xor_sync(all, sum[h][j], 1);
            sum[h][j] += __shfl_xor_sync(all, sum[h][j], 2);
            const int column = column_of(h) + 8 * j;
            if (first_column + column >= p.columns) {
                continue;
            }
            const int head = head_of(column);
            const int64_t row = ((int64_t) stream * a.tokens + token_of(column)) * a.heads + head;
            float * out = a.out + row * D;
            float scale = v_unit;
            if (p.splits == 1) {
                scale *= finish(top[h][j], sum[h][j], a.sinks, head);
            } else {
                out = p.partial + (row * p.splits + split) * D;
                if (t == 0) {
                    p.partial_state[row * p.splits + split] = make_float2(top[h][j], sum[h][j]);
                }
            }
#    pragma unroll
            for (int n = 0; n < D / 8; n++) {
#    pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int at = 8 * n + 2 * t + k;
                    out[(at & ~31) + tq_dev_place(v_planes, at >> 4 & 1, at >> 2 & 3, at & 3)] =
                        o[h][n][2 * j + k] * scale;
                }
            }
        }
    }
#endif
}

bool hopper_takes(const tq_cuda_attn & a, const tq_cuda_device & device) {
    return device.capability == 90 && a.k.dim == D && a.v.dim == D && a.softcap == 0.0f && a.max_bias == 0.0f &&
           a.scale > 0.0f;
}

size_t hopper_lay_out(prefill_arguments & p) {
    p.tile_columns = columns;
    p.q_offset = 2 * columns * (int) sizeof(float);
    p.k_offset = p.q_offset + columns / part * tile_bytes;
    p.v_offset = p.k_offset + 2 * tile_bytes;
    place_packed(p, p.v_offset + 2 * tile_bytes, R);
    return (size_t) p.window_offset + (p.a.q_plain ? columns * window * sizeof(float) : 0) + 1024;
}

void hopper_run(const prefill_arguments & p, size_t shared, cudaStream_t stream) {
    const dim3 grid(p.splits, p.a.kv_heads, p.column_tiles * p.a.streams);
    if (p.a.q_plain) {
        launch<hopper<true>>(grid, most_warps * 32, shared, stream, p);
    } else {
        launch<hopper<false>>(grid, most_warps * 32, shared, stream, p);
    }
}

} // namespace tq_cuda
