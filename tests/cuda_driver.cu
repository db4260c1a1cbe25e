// The kernels of csrc/cuda without ggml, for tests/test_cuda_device.py. Reads standard input, writes standard output.
//   encode TYPE, decode TYPE          float32 to blocks and back, rows of 32 values
//   attention [REPEAT]                a header of 30 int64 and 10 float32, then q, k, v, mask, sinks, q_plain, mean,
//                                     turns, ids, and of rows that are added: the numbers, K, V, and of RoPE:
//                                     positions, factors, centres, their numbers and positions. Writes the answer, and
//                                     the caches if rows are added; with REPEAT, its time in microseconds on standard
//                                     error
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "cuda/rows.h"

static void check(cudaError_t error, const char * what) {
    if (error != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}

#define CHECK(x) check(x, #x)

static std::vector<char> input(size_t bytes) {
    std::vector<char> data(bytes);
    if (fread(data.data(), 1, bytes, stdin) != bytes) {
        fprintf(stderr, "the input is too short\n");
        exit(2);
    }
    return data;
}

// On the device, between guards; an empty one is null.
static char * upload(const std::vector<char> & data) {
    if (data.empty()) {
        return nullptr;
    }
    char * p;
    CHECK(cudaMalloc(&p, data.size()));
    CHECK(cudaMemcpy(p, data.data(), data.size(), cudaMemcpyHostToDevice));
    return p;
}

static int type_of(const char * name) {
    const char * const names[] = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) #name,
#include "types.def"
#undef TQ_TYPE
    };
    for (int i = 0; i < TQ_TYPE_COUNT; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    exit(2);
}

static int64_t bytes_of(int type) {
    const int64_t bytes[] = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) bytes,
#include "types.def"
#undef TQ_TYPE
        34, 64};
    return bytes[type];
}

static int convert(bool encode, int type) {
    std::vector<char> data;
    char buffer[1 << 16];
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), stdin)) > 0;) {
        data.insert(data.end(), buffer, buffer + n);
    }
    const int64_t from = encode ? 128 : bytes_of(type), to = encode ? bytes_of(type) : 128;
    const int64_t n = (int64_t) data.size() / from;
    std::vector<char> result(n * to, (char) 0xA5);
    char *in = upload(data), *out = upload(result);
    const tq_rows_view values = {encode ? in : out, {32, n, 1, 1}, {4, 128, 128 * n, 128 * n}};
    const int64_t row = bytes_of(type);
    const tq_rows_view blocks = {encode ? out : in, {32, n, 1, 1}, {row, row, row * n, row * n}};
    if (encode) {
        const tq_rows_store store = {type, 0, false, values, {}, blocks};
        tq_cuda_encode(&store, 1, nullptr);
    } else {
        tq_cuda_decode(type, blocks, {}, values, false, nullptr);
    }
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(result.data(), out, result.size(), cudaMemcpyDeviceToHost));
    fwrite(result.data(), 1, result.size(), stdout);
    return 0;
}

struct header {
    int64_t streams, tokens, heads, kv_streams, kv_heads, kv_rows, k_dim, v_dim, k_type, v_type;
    int64_t k_bytes, v_bytes; // of a row
    int64_t mask_streams, mask_heads, sinks;
    int64_t centred, turns, n_rot, neox;
    int64_t heads_first; // the cache: rows of all heads of a token are neighbours
    int64_t k_rotation, v_rotation;
    int64_t added, id_bytes; // rows of all heads that come with the call
    int64_t cache_rows;      // of a stream; kv_rows of them are attended to
    int64_t rope, rope_dims, rope_neox, rope_factors, rope_centre;
    float scale, max_bias, softcap, rope_base, rope_scale, rope_mix, rope_low, rope_high, rope_stretch, unused;
};

static int attention(int repeat) {
    header h;
    const std::vector<char> head = input(sizeof(h));
    memcpy(&h, head.data(), sizeof(h));
    const size_t queries = h.streams * h.tokens * h.heads, cells = h.kv_streams * h.kv_heads * h.cache_rows;
    const auto q = input(queries * h.k_dim * 4), k = input(cells * h.k_bytes), v = input(cells * h.v_bytes);
    const auto mask = input(h.mask_streams * h.mask_heads * h.tokens * h.kv_rows * 2),
               sinks = input(h.sinks ? h.heads * 4 : 0);
    const auto plain = input(h.centred ? q.size() : 0), mean = input(h.centred ? h.kv_heads * h.k_dim * 4 : 0);
    const auto turns = input(h.turns * h.k_dim * 4), ids = input(h.centred ? h.kv_streams * h.kv_rows * 4 : 0);
    const auto places = input(h.added * h.id_bytes), k_added = input(h.added * h.kv_heads * h.k_dim * 4),
               v_added = input(h.added * h.kv_heads * h.v_dim * 4);
    const size_t tokens = h.rope ? h.streams * h.tokens * 4 : 0;
    const auto positions = input(tokens), factors = input(h.rope_factors ? h.rope_dims / 2 * 4 : 0);
    const auto centres = input(h.rope_centre ? 2 * h.kv_heads * h.k_dim * 4 : 0),
               centre_ids = input(h.rope_centre ? tokens : 0), centre_positions = input(h.rope_centre ? tokens : 0);

    tq_cuda_attn a = {};
    a.streams = (int) h.streams, a.tokens = (int) h.tokens, a.heads = (int) h.heads;
    a.kv_streams = (int) h.kv_streams, a.kv_heads = (int) h.kv_heads, a.kv_rows = (int) h.kv_rows;
    const auto cache = [&](int64_t type, int64_t dim, int64_t bytes, const std::vector<char> & data) {
        tq_cuda_cache c = {
            (int) type, (int) dim, upload(data), bytes, bytes * h.cache_rows, bytes * h.cache_rows * h.kv_heads};
        if (h.heads_first) {
            c.row_stride = bytes * h.kv_heads;
            c.head_stride = bytes;
        }
        return c;
    };
    a.k = cache(h.k_type, h.k_dim, h.k_bytes, k);
    a.v = cache(h.v_type, h.v_dim, h.v_bytes, v);
    a.q = upload(q);
    a.q_head_stride = h.k_dim * 4;
    a.q_token_stride = a.q_head_stride * h.heads;
    a.q_stream_stride = a.q_token_stride * h.tokens;
    a.mask = upload(mask);
    a.mask_heads = (int) h.mask_heads, a.mask_streams = (int) h.mask_streams;
    a.mask_token_stride = h.kv_rows * 2;
    a.mask_head_stride = a.mask_token_stride * h.tokens;
    a.mask_stream_stride = a.mask_head_stride * h.mask_heads;
    a.sinks = (const float *) upload(sinks);
    a.scale = h.scale, a.max_bias = h.max_bias, a.softcap = h.softcap;
    a.q_plain = upload(plain);
    a.qp_token_stride = a.q_token_stride, a.qp_head_stride = a.q_head_stride, a.qp_stream_stride = a.q_stream_stride;
    a.mean = (const float *) upload(mean), a.turns = (const float *) upload(turns), a.ids = (const int *) upload(ids);
    a.chunks = (int) h.turns, a.n_rot = (int) h.n_rot, a.neox = h.neox != 0;
    a.k_rotation = (int) h.k_rotation, a.v_rotation = (int) h.v_rotation;
    // What is not of a TQ type was written before, as in llama.cpp.
    std::vector<tq_rows_store> stores;
    const auto add = [&](const tq_cuda_cache & c, int64_t rotation, const std::vector<char> & values, char * data) {
        const int64_t n = h.kv_heads * c.dim, rows = h.kv_streams * h.cache_rows, bytes = c.row_stride * rows;
        const int64_t size = n * 4 * h.added, numbers = h.id_bytes * h.added;
        if (h.added > 0 && c.type < TQ_TYPE_COUNT) {
            stores.push_back({c.type,
                              (int) rotation,
                              false,
                              {upload(values), {n, h.added, 1, 1}, {4, n * 4, size, size}},
                              {upload(places), {h.added, 1, 1}, {h.id_bytes, numbers, numbers}, (int) h.id_bytes},
                              {data, {n, rows, 1, 1}, {bytes_of(c.type), c.row_stride, bytes, bytes}}});
        }
    };
    add(a.k, h.k_rotation, k_added, const_cast<char *>(a.k.data));
    add(a.v, h.v_rotation, v_added, const_cast<char *>(a.v.data));
    if (h.rope) {
        a.rope = {(const int *) upload(positions),
                  (const float *) upload(factors),
                  (int) h.rope_dims,
                  h.rope_neox != 0,
                  h.rope_base,
                  h.rope_scale,
                  h.rope_mix,
                  h.rope_low,
                  h.rope_high,
                  h.rope_stretch};
        stores[0].rope = a.rope;
        stores[0].centre = {(const float *) upload(centres), (const int *) upload(centre_ids),
                            (const int *) upload(centre_positions)};
    }
    a.stores = stores.data();
    a.store_count = (int) stores.size();
    a.stores_are_apart = true;
    std::vector<char> result(queries * h.v_dim * 4, (char) 0xFF); // NaN where nothing is written
    a.out = (float *) upload(result);

    int id;
    cudaDeviceProp properties;
    CHECK(cudaGetDevice(&id));
    CHECK(cudaGetDeviceProperties(&properties, id));
    tq_cuda_device device = {properties.major * 10 + properties.minor, properties.multiProcessorCount,
                             (int) properties.sharedMemPerBlockOptin};
    if (getenv("TQ_TEST_CAPABILITY")) { // as an older GPU would
        device.capability = atoi(getenv("TQ_TEST_CAPABILITY"));
    }
    if (!tq_cuda_attn_supports(a, device) || (h.rope && !tq_cuda_attn_turns(a, device))) {
        fprintf(stderr, "not supported\n");
        return 3;
    }
    char * scratch = upload(std::vector<char>(tq_cuda_attn_scratch(a, device), (char) 0xFF));
    tq_cuda_attn_run(a, device, scratch, nullptr);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(result.data(), a.out, result.size(), cudaMemcpyDeviceToHost));
    if (repeat > 0) {
        cudaEvent_t from, to;
        CHECK(cudaEventCreate(&from));
        CHECK(cudaEventCreate(&to));
        std::vector<float> times;
        for (int i = 0; i < repeat; i++) {
            CHECK(cudaEventRecord(from));
            tq_cuda_attn_run(a, device, scratch, nullptr);
            CHECK(cudaEventRecord(to));
            CHECK(cudaEventSynchronize(to));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, from, to));
            times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        fprintf(stderr, "%.2f\n", times[times.size() / 2] * 1000);
    } else {
        fwrite(result.data(), 1, result.size(), stdout);
        if (h.added > 0) {
            std::vector<char> rows(k.size() + v.size()), expected = rows;
            CHECK(cudaMemcpy(rows.data(), a.k.data, k.size(), cudaMemcpyDeviceToHost));
            CHECK(cudaMemcpy(rows.data() + k.size(), a.v.data, v.size(), cudaMemcpyDeviceToHost));
            fwrite(rows.data(), 1, rows.size(), stdout);
            // the encoder on its own, in caches of their own
            const char * const copies[2] = {upload(k), upload(v)};
            for (tq_rows_store & store : stores) {
                store.dst.data = const_cast<char *>(copies[store.dst.data == a.k.data ? 0 : 1]);
            }
            tq_cuda_encode(stores.data(), (int) stores.size(), nullptr);
            CHECK(cudaMemcpy(expected.data(), copies[0], k.size(), cudaMemcpyDeviceToHost));
            CHECK(cudaMemcpy(expected.data() + k.size(), copies[1], v.size(), cudaMemcpyDeviceToHost));
            if (rows != expected) {
                fprintf(stderr, "the caches are not what the encoder writes\n");
                return 4;
            }
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "attention") {
        return attention(argc > 2 ? atoi(argv[2]) : 0);
    }
    if (argc != 3 || (what != "encode" && what != "decode")) {
        return 2;
    }
    return convert(what == "encode", type_of(argv[2]));
}
