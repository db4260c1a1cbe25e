// Arbitrary blocks, queries, masks and means: every tier computes attention over them, whatever the numbers are, and
// its result does not depend on the threads.
#include "cpu/attention/attention.h"
#include "fuzz.h"

static size_t row_bytes(int type, size_t dim) {
    const struct tq_type_info * info = tq_type_info(type);
    return info                   ? dim / TQ_BLOCK * info->block_bytes
           : type == TQ_ATTN_Q8_0 ? dim / TQ_BLOCK * sizeof(tq_block_q8_0)
                                  : dim * sizeof(uint16_t);
}

static struct tq_attn_cache cache(struct input * in, int type, size_t dim, size_t heads, size_t rows) {
    const size_t row = row_bytes(type, dim);
    return (struct tq_attn_cache) {
        type, filled(in, heads * rows * row), (int64_t) dim, row, rows * row, heads * rows * row};
}

static void compute(const struct tq_attn * a, int threads) {
    void * work = malloc(tq_attn_work_size(a, threads));
    for (int64_t task = 0; task < tq_attn_tasks(a); task++) {
        tq_attn_run_task(a, task, work, (int) (task % threads), threads);
    }
    for (int thread = 0; thread < threads; thread++) {
        tq_attn_merge(a, work, thread, threads);
    }
    free(work);
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    struct input in = {data, size, 0};
    const int k_type = next(&in) % TQ_ATTN_TYPES, v_type = next(&in) % TQ_ATTN_TYPES;
    const size_t k_dim = 64 + 32 * (next(&in) % 3u), v_dim = 64 + 32 * (next(&in) % 3u);
    const size_t kv_heads = 1 + next(&in) % 2u, heads = kv_heads * (1 + next(&in) % 3u);
    const size_t tokens = 1 + next(&in) % 3u, rows = 1 + next(&in) % 140u;
    const uint8_t options = next(&in);
    const size_t queries = tokens * heads * k_dim, results = tokens * heads * v_dim;
    const size_t chunks = rows / 64 + 2;
    float * q = filled(&in, queries * sizeof(float));
    uint16_t * mask = options & 1 ? filled(&in, tokens * rows * sizeof(uint16_t)) : NULL;
    float * sinks = options & 2 ? filled(&in, heads * sizeof(float)) : NULL;
    float * plain = options & 4 ? filled(&in, queries * sizeof(float)) : NULL;
    float * mean = plain ? filled(&in, kv_heads * k_dim * sizeof(float)) : NULL;
    float * turns = plain ? filled(&in, chunks * k_dim * sizeof(float)) : NULL;
    int32_t * chunk = malloc(rows * sizeof(int32_t));
    for (size_t row = 0; row < rows; row++) {
        chunk[row] = next(&in) % (int32_t) chunks;
    }
    float *out = malloc(results * sizeof(float)), *again = malloc(results * sizeof(float));
    struct tq_attn a = {
        .streams = 1,
        .tokens = (int64_t) tokens,
        .heads = (int64_t) heads,
        .kv_streams = 1,
        .kv_heads = (int64_t) kv_heads,
        .kv_rows = (int64_t) rows,
        .scale = 0.1f,
        .max_bias = options & 8 ? 8.0f : 0.0f,
        .softcap = options & 16 ? 30.0f : 0.0f,
        .q = (const char *) q,
        .q_token_stride = heads * k_dim * sizeof(float),
        .q_head_stride = k_dim * sizeof(float),
        .q_stream_stride = queries * sizeof(float),
        .k = cache(&in, k_type, k_dim, kv_heads, rows),
        .v = cache(&in, v_type, v_dim, kv_heads, rows),
        .centre = {(const char *) plain, heads * k_dim * sizeof(float), k_dim * sizeof(float), queries * sizeof(float),
                   mean, turns, chunk, (int) k_dim - 32 * (options >> 7), (options & 32) != 0},
        .mask = (const char *) mask,
        .mask_heads = 1,
        .mask_streams = 1,
        .mask_token_stride = rows * sizeof(uint16_t),
        .sinks = sinks,
    };
    for (int isa = next_tier(-1); isa >= 0; isa = next_tier(isa)) {
        a.out = out;
        compute(&a, 1);
        a.out = again;
        compute(&a, 3);
        require_equal(out, again, results * sizeof(float), "attention by three threads", isa);
    }
    free(q);
    free(mask);
    free(sinks);
    free(plain);
    free(mean);
    free(turns);
    free(chunk);
    free((void *) (uintptr_t) a.k.data);
    free((void *) (uintptr_t) a.v.data);
    free(out);
    free(again);
    return 0;
}
