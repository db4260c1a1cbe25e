// usage: attention_driver TIER THREADS < problem > output
//
// Runs the attention of cpu/attention/attention.h on a problem: struct header, then the queries
// [stream][token][head][k_dim], K and V as header.by_row says, the mask [stream][head][token][kv_rows] and the sinks
// [head]; of centred keys the plain queries, the means [kv_head][k_dim], the turns [chunk][k_dim] and the chunks of the
// rows [kv_stream][kv_rows]. K and V lie between pages that cannot be touched, once at the end of the first and once in
// front of the second; both results must be the same, and go to standard output. THREADS are played by one, so that
// which of them does what is known.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/attention/attention.h"
#include "pages.h"

struct header {
    int64_t streams, tokens, heads, kv_streams, kv_heads, kv_rows, k_dim, v_dim;
    int64_t k_type, v_type;           // ids of ggml
    int64_t k_bytes, v_bytes;         // of a row of one head
    int64_t by_row;                   // 0: [stream][head][row], 1: [stream][row][head]
    int64_t mask_streams, mask_heads; // 0: no mask
    int64_t sinks;                    // 0 or 1
    int64_t chunks, rope_dims, neox;  // 0 chunks: the keys are not centred
    float scale, max_bias, softcap;
};

static void fail(const char * what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static char * read_bytes(size_t size) {
    char * p = malloc(size + 1);
    if (p == NULL || fread(p, 1, size, stdin) != size) {
        fail("the problem is too short");
    }
    return p;
}

static char * between_pages(const char * data, size_t size, int at_end) {
    const size_t page = page_size(), room = (size + page - 1) / page * page;
    char * map = map_between_pages(room);
    if (map == NULL) {
        fail("no memory");
    }
    return memcpy(map + (at_end ? room - size : 0), data, size);
}

static int type_of(int64_t id) {
    return id == 1 ? TQ_ATTN_F16 : id == 8 ? TQ_ATTN_Q8_0 : tq_type_from_id((int) id);
}

static struct tq_attn_cache describe(const struct header * h, const char * data, int64_t type, int64_t dim,
                                     int64_t bytes) {
    return (struct tq_attn_cache) {
        .type = type_of(type),
        .data = data,
        .dim = dim,
        .row_stride = (size_t) (h->by_row ? bytes * h->kv_heads : bytes),
        .head_stride = (size_t) (h->by_row ? bytes : bytes * h->kv_rows),
        .stream_stride = (size_t) (bytes * h->kv_heads * h->kv_rows),
    };
}

int main(int argc, char ** argv) {
    use_binary_streams();
    int isa = 0;
    while (argc == 3 && tq_isa_name(isa) != NULL && strcmp(tq_isa_name(isa), argv[1]) != 0) {
        isa++;
    }
    if (argc != 3 || tq_isa_name(isa) == NULL) {
        fail("usage: attention_driver TIER THREADS < problem > output");
    }
    if (!tq_force_isa((enum tq_isa) isa)) {
        fail("not supported");
    }
    const int threads = atoi(argv[2]);

    struct header h;
    if (fread(&h, sizeof(h), 1, stdin) != 1) {
        fail("the problem is too short");
    }
    const size_t cells = (size_t) (h.kv_streams * h.kv_heads * h.kv_rows);
    const char * q = read_bytes((size_t) (h.streams * h.tokens * h.heads * h.k_dim) * sizeof(float));
    const char * k = read_bytes(cells * (size_t) h.k_bytes);
    const char * v = read_bytes(cells * (size_t) h.v_bytes);
    const size_t mask_stride = (size_t) h.kv_rows * sizeof(uint16_t);
    const char * mask = read_bytes((size_t) (h.mask_streams * h.mask_heads * h.tokens) * mask_stride);
    const char * sinks = read_bytes((size_t) (h.sinks * h.heads) * sizeof(float));
    const size_t centred = h.chunks ? 1 : 0;
    const size_t queries = (size_t) (h.streams * h.tokens * h.heads * h.k_dim) * sizeof(float);
    const char * plain = read_bytes(centred * queries);
    const char * mean = read_bytes(centred * (size_t) (h.kv_heads * h.k_dim) * sizeof(float));
    const char * turns = read_bytes((size_t) (h.chunks * h.k_dim) * sizeof(float));
    const char * chunk = read_bytes(centred * (size_t) (h.kv_streams * h.kv_rows) * sizeof(int32_t));
    const size_t result = (size_t) (h.streams * h.tokens * h.heads * h.v_dim);
    float * out[2];
    for (int at_end = 0; at_end < 2; at_end++) {
        out[at_end] = malloc(result * sizeof(float));
        struct tq_attn a = {
            .streams = h.streams,
            .tokens = h.tokens,
            .heads = h.heads,
            .kv_streams = h.kv_streams,
            .kv_heads = h.kv_heads,
            .kv_rows = h.kv_rows,
            .scale = h.scale,
            .max_bias = h.max_bias,
            .softcap = h.softcap,
            .q = q,
            .q_token_stride = (size_t) (h.heads * h.k_dim) * sizeof(float),
            .q_head_stride = (size_t) h.k_dim * sizeof(float),
            .q_stream_stride = (size_t) (h.tokens * h.heads * h.k_dim) * sizeof(float),
            .k = describe(&h, between_pages(k, cells * (size_t) h.k_bytes, at_end), h.k_type, h.k_dim, h.k_bytes),
            .v = describe(&h, between_pages(v, cells * (size_t) h.v_bytes, at_end), h.v_type, h.v_dim, h.v_bytes),
            .centre =
                {
                    .plain = h.chunks ? plain : NULL,
                    .plain_token_stride = (size_t) (h.heads * h.k_dim) * sizeof(float),
                    .plain_head_stride = (size_t) h.k_dim * sizeof(float),
                    .plain_stream_stride = (size_t) (h.tokens * h.heads * h.k_dim) * sizeof(float),
                    .mean = (const float *) mean,
                    .turns = (const float *) turns,
                    .chunk = (const int32_t *) chunk,
                    .rope_dims = (int) h.rope_dims,
                    .neox = h.neox != 0,
                },
            .mask = h.mask_streams ? mask : NULL,
            .mask_heads = h.mask_heads,
            .mask_streams = h.mask_streams,
            .mask_token_stride = mask_stride,
            .mask_head_stride = (size_t) h.tokens * mask_stride,
            .mask_stream_stride = (size_t) (h.mask_heads * h.tokens) * mask_stride,
            .sinks = h.sinks ? (const float *) sinks : NULL,
            .out = out[at_end],
        };
        void * work = malloc(tq_attn_work_size(&a, threads));
        memset(work, 0xA5, tq_attn_work_size(&a, threads));
        for (int64_t task = 0; task < tq_attn_tasks(&a); task++) {
            tq_attn_run_task(&a, task, work, (int) (task % threads), threads);
        }
        for (int thread = 0; thread < threads; thread++) {
            tq_attn_merge(&a, work, thread, threads);
        }
        free(work);
    }
    if (memcmp(out[0], out[1], result * sizeof(float)) != 0) {
        fail("the result depends on what lies around K and V");
    }
    fwrite(out[0], sizeof(float), result, stdout);
    return 0;
}
