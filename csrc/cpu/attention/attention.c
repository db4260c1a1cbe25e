// The driver of attention.h: who computes what, the running softmax, and the merge. No instruction set, no ggml.
//
// A task is some KV heads of one stream, a block of tokens, and a chunk of the cache. Tasks depend on the shapes only
// and chunks merge in order, so the result does not depend on the number of threads.
//
// In decode, tasks take as many heads as they can: their rows lie side by side, and memory is read in order. Two
// threads, 32 / 8 heads of 128, 4096 rows of tq4_0 out of memory, ms for four layers: 1.18 with all eight heads in a
// task, 1.20 with two (which leaves 32 tasks), 1.35 with one.
#include "tier.h"

#include <math.h>
#include <string.h>

#define TASK_ROWS 256  // query rows of a task, about: what one unpacking of the cache serves
#define TASKS 32       // wanted of an operation
#define CHUNK_ROWS 512 // least cache rows of a chunk

static const struct {
    enum tq_isa base;
    const struct tq_attn_kernels * kernels; // NULL on other architectures
} tiers[TQ_ISA_COUNT] = {
#define TQ_ISA(NAME, name, architecture, BASE) \
    {.base = TQ_ISA_##BASE, TQ_IF_##architecture(.kernels = &tq_attn_##name)},
#include "../isa.def"
#undef TQ_ISA
};

static struct tq_attn_loader key_loader(enum tq_isa isa, int type) {
    const struct tq_attn_loader loader = tiers[isa].kernels->keys[type];
    return loader.load ? loader : key_loader(tiers[isa].base, type);
}

static struct tq_attn_loader value_loader(enum tq_isa isa, int type) {
    const struct tq_attn_loader loader = tiers[isa].kernels->values[type];
    return loader.load ? loader : value_loader(tiers[isa].base, type);
}

static size_t block_bytes(int type) {
    return type == TQ_ATTN_F16    ? TQ_BLOCK * sizeof(uint16_t)
           : type == TQ_ATTN_Q8_0 ? sizeof(tq_block_q8_0)
                                  : (size_t) tq_type_info((enum tq_type) type)->block_bytes;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

struct plan {
    int64_t group;  // query heads of a KV head
    int64_t heads;  // KV heads of a task
    int64_t block;  // tokens of a task
    int64_t blocks; // of tokens
    int64_t chunk;  // cache rows of a task
    int64_t chunks;
    int64_t rows; // query rows of a KV head in a task, at most
};

static struct plan make_plan(const struct tq_attn * a) {
    struct plan p;
    p.group = a->heads / a->kv_heads;
    p.blocks = ceil_div(a->tokens * p.group, TASK_ROWS);
    p.block = ceil_div(a->tokens, p.blocks);
    p.blocks = ceil_div(a->tokens, p.block);
    p.rows = p.block * p.group;
    const int64_t most = ceil_div(a->kv_rows, CHUNK_ROWS), whole = a->streams * a->kv_heads * p.blocks;
    for (p.heads = 1; a->kv_heads % (2 * p.heads) == 0; p.heads *= 2) {
        if (a->mask_heads > 1 || 2 * p.heads * p.rows > TASK_ROWS || whole / (2 * p.heads) * most < TASKS) {
            break;
        }
    }
    const int64_t wanted = ceil_div(TASKS, whole / p.heads);
    p.chunk = ceil_div(ceil_div(a->kv_rows, wanted < most ? wanted : most), TQ_ATTN_TILE) * TQ_ATTN_TILE;
    p.chunks = ceil_div(a->kv_rows, p.chunk);
    return p;
}

// --- memory ---

// A query row of a task, and its softmax so far. The sum of values that goes with it is in scratch.acc.
struct row {
    struct tq_attn_softmax softmax;
    float max, sum; // the largest score; the sum of e^(score - max)
    int mask;       // which of the task's
};

struct scratch {
    struct row * row;   // [rows]
    char * query;       // [rows][TQ_ATTN_QUERY_BYTES]
    float * acc;        // [rows][v.dim]
    float * mask;       // [masks][64], at most one for each row
    bool * open;        // [masks]: it lets anything through
    float * live;       // [64]: the largest of the masks; -infinity for a cache row that no query row sees
    char * rows;        // [64] of blocks, of a tile that the cache does not fill
    void * keys;        // a tile
    void * values;      // a tile
    float * key_unit;   // [units][64]
    float * value_unit; // [units + 1][64]; then the ratio to value_top
    float * value_top;  // [units]
    float * score;      // [4][64]
    char * weight;      // [4][TQ_ATTN_WEIGHT_BYTES]
    size_t size;
};

static void * take(char * base, size_t * size, size_t bytes) {
    char * p = base ? base + *size : NULL;
    *size += (bytes + TQ_ATTN_LINE - 1) / TQ_ATTN_LINE * TQ_ATTN_LINE;
    return p;
}

// With base = NULL only the size is of use.
static struct scratch lay_out(const struct tq_attn * a, const struct plan * p, char * base) {
    const size_t rows = (size_t) (p->rows * p->heads), dk = (size_t) a->k.dim, dv = (size_t) a->v.dim;
    struct scratch s = {.size = 0};
    s.row = take(base, &s.size, rows * sizeof(struct row));
    s.query = take(base, &s.size, rows * TQ_ATTN_QUERY_BYTES(dk / TQ_BLOCK));
    s.acc = take(base, &s.size, rows * dv * sizeof(float));
    s.mask = take(base, &s.size, rows * TQ_ATTN_TILE * sizeof(float));
    s.open = take(base, &s.size, rows * sizeof(bool));
    s.live = take(base, &s.size, TQ_ATTN_TILE * sizeof(float));
    s.rows = take(base, &s.size, TQ_ATTN_TILE * (dk > dv ? dk : dv) * sizeof(uint16_t));
    s.keys = take(base, &s.size, TQ_ATTN_TILE * dk * sizeof(int16_t));
    s.values = take(base, &s.size, TQ_ATTN_TILE * dv * sizeof(int16_t));
    s.key_unit = take(base, &s.size, TQ_ATTN_TILE * dk / TQ_SUB_BLOCK * sizeof(float));
    s.value_unit = take(base, &s.size, TQ_ATTN_TILE * (dv / TQ_SUB_BLOCK + 1) * sizeof(float));
    s.value_top = take(base, &s.size, dv / TQ_SUB_BLOCK * sizeof(float));
    s.score = take(base, &s.size, TQ_ATTN_ROWS * TQ_ATTN_TILE * sizeof(float));
    s.weight = take(base, &s.size, TQ_ATTN_ROWS * TQ_ATTN_WEIGHT_BYTES(dv / TQ_BLOCK));
    return s;
}

static char * aligned(void * work) {
    return (char *) work + (TQ_ATTN_LINE - (uintptr_t) work % TQ_ATTN_LINE) % TQ_ATTN_LINE;
}

// What a chunk leaves for the merge: max, sum, and the sum of values. [stream][token][head][chunk][2 + v.dim]
static size_t partial_size(const struct tq_attn * a) {
    return 2 + (size_t) a->v.dim;
}

// They lie behind the scratch of all threads.
static float * partials(const struct tq_attn * a, const struct plan * p, void * work, int threads) {
    return (float *) (aligned(work) + (size_t) threads * lay_out(a, p, NULL).size);
}

size_t tq_attn_work_size(const struct tq_attn * a, int threads) {
    const struct plan p = make_plan(a);
    const size_t results = p.chunks == 1 ? 0 : (size_t) (a->streams * a->tokens * a->heads * p.chunks);
    return TQ_ATTN_LINE + (size_t) threads * lay_out(a, &p, NULL).size + results * partial_size(a) * sizeof(float);
}

int64_t tq_attn_tasks(const struct tq_attn * a) {
    const struct plan p = make_plan(a);
    return a->streams * (a->kv_heads / p.heads) * p.blocks * p.chunks;
}

// --- a task ---

// Powers of two below their neighbours, as the Press et al. paper has it.
static float alibi_slope(const struct tq_attn * a, int64_t head) {
    if (a->max_bias <= 0.0f) {
        return 1.0f;
    }
    int64_t power = 1;
    while (2 * power <= a->heads) {
        power *= 2;
    }
    return head < power ? powf(powf(2.0f, -a->max_bias / (float) power), (float) (head + 1))
                        : powf(powf(2.0f, -a->max_bias / 2.0f / (float) power), (float) (2 * (head - power) + 1));
}

static void write_result(const struct tq_attn * a, int64_t head, float max, float sum, const float * acc, float * out) {
    float keep = 1.0f;
    if (a->sinks != NULL) {
        const float top = fmaxf(max, a->sinks[head]);
        keep = expf(max - top);
        sum = sum * keep + expf(a->sinks[head] - top);
    }
    const float factor = sum != 0.0f ? keep / sum : 0.0f;
    for (int64_t d = 0; d < a->v.dim; d++) {
        out[d] = acc[d] * factor;
    }
}

// K or V of a task, and where its tiles go.
struct side {
    const struct tq_attn_cache * cache;
    tq_attn_load_fn load;
    const struct tq_attn_products * products;
    int blocks; // of a row of a head
    void * tile;
    float * unit;
};

static struct side make_side(const struct tq_attn_kernels * kernels, struct tq_attn_loader loader,
                             const struct tq_attn_cache * cache, void * tile, float * unit) {
    return (struct side) {cache, loader.load, &kernels->products[loader.format], (int) (cache->dim / TQ_BLOCK),
                          tile,  unit};
}

struct task {
    const struct tq_attn * a;
    const struct tq_attn_kernels * kernels;
    struct side k, v;
    struct plan plan;
    struct scratch scratch;
    int64_t stream, first_head, first_token, chunk;
    int rows;       // query rows of a KV head: token by token, the heads of the group within
    int mask_share; // consecutive rows with one mask: the heads of a token, unless there are masks for heads
};

static int64_t token_of(const struct task * k, int r) {
    return k->first_token + r % k->rows / k->plan.group;
}

static int64_t head_of(const struct task * k, int r) {
    return (k->first_head + r / k->rows) * k->plan.group + r % k->plan.group;
}

static void prepare_rows(struct task * k) {
    const struct tq_attn * a = k->a;
    for (int r = 0; r < k->rows * k->plan.heads; r++) {
        struct row * row = &k->scratch.row[r];
        const char * q = a->q + token_of(k, r) * a->q_token_stride + head_of(k, r) * a->q_head_stride +
                         k->stream * a->q_stream_stride;
        char * number = k->scratch.query + r * TQ_ATTN_QUERY_BYTES(k->k.blocks);
        row->softmax.scale = k->k.products->quantise((const float *) q, (int) a->k.dim, number);
        row->softmax.scale *= a->softcap != 0.0f ? a->scale / a->softcap : a->scale;
        row->softmax.softcap = a->softcap;
        row->softmax.slope = alibi_slope(a, head_of(k, r));
        row->max = -INFINITY;
        row->sum = 0.0f * row->softmax.scale; // NaN for a query that is not finite, and so will the result be
        row->mask = r % k->rows / k->mask_share;
    }
    memset(k->scratch.acc, 0, (size_t) (k->rows * k->plan.heads * a->v.dim) * sizeof(float));
}

// The masks of n cache rows from t on; returns whether any of them lets anything through.
static bool load_masks(struct task * k, int64_t t, int n) {
    const struct tq_attn * a = k->a;
    bool any = false;
    float * live = k->scratch.live;
    for (int i = 0; i < TQ_ATTN_TILE; i++) {
        live[i] = -INFINITY;
    }
    for (int r = 0, m = 0; r < k->rows; r += k->mask_share, m++) {
        float * mask = k->scratch.mask + m * TQ_ATTN_TILE;
        if (a->mask != NULL) {
            const char * from = a->mask + token_of(k, r) * a->mask_token_stride +
                                head_of(k, r) % a->mask_heads * a->mask_head_stride +
                                k->stream % a->mask_streams * a->mask_stream_stride;
            k->scratch.open[m] = k->kernels->load_mask((const uint16_t *) from + t, n, mask);
            tq_attn_prefetch(from + (t + n) * sizeof(uint16_t), TQ_ATTN_TILE * sizeof(uint16_t));
        } else {
            for (int i = 0; i < TQ_ATTN_TILE; i++) {
                mask[i] = i < n ? 0.0f : -INFINITY;
            }
            k->scratch.open[m] = true;
        }
        for (int i = 0; i < TQ_ATTN_TILE; i++) {
            live[i] = mask[i] > live[i] ? mask[i] : live[i];
        }
        any |= k->scratch.open[m];
    }
    return any;
}

// Cache rows t to t + n of a KV head. Where they are less than a tile, zeros stand in for the others, in a copy.
static void load_side(struct task * k, const struct side * side, int64_t head, int64_t t, int n) {
    const struct tq_attn_cache * cache = side->cache;
    const int64_t stream = k->stream / (k->a->streams / k->a->kv_streams);
    const bool last = head + 1 == k->plan.heads;
    struct tq_attn_rows rows = {
        .first = cache->data + (size_t) stream * cache->stream_stride +
                 (size_t) (k->first_head + head) * cache->head_stride + (size_t) t * cache->row_stride,
        .stride = cache->row_stride,
        .to_next = last ? TQ_ATTN_TILE * (ptrdiff_t) cache->row_stride - head * (ptrdiff_t) cache->head_stride
                        : (ptrdiff_t) cache->head_stride,
    };
    if (n < TQ_ATTN_TILE) {
        const size_t bytes = (size_t) side->blocks * block_bytes(cache->type);
        memset(k->scratch.rows, 0, TQ_ATTN_TILE * bytes);
        for (int i = 0; i < n; i++) {
            memcpy(k->scratch.rows + (size_t) i * bytes, tq_attn_skip(rows, i).first, bytes);
        }
        rows = (struct tq_attn_rows) {k->scratch.rows, bytes, 0};
    }
    side->load(rows, side->blocks, side->tile, side->unit);
}

// Adds the loaded tile to at most four rows.
static void take_tile(struct task * k, int first, int count) {
    const struct scratch * s = &k->scratch;
    const struct side *keys = &k->k, *values = &k->v;
    float max[TQ_ATTN_ROWS], sum[TQ_ATTN_ROWS], keep[TQ_ATTN_ROWS], add[TQ_ATTN_ROWS];
    const char * query = s->query + first * TQ_ATTN_QUERY_BYTES(keys->blocks);
    keys->products->scores(query, count, keys->blocks, keys->tile, keys->unit, s->score);
    // Rows do not wait for each other here: the processor computes their exponentials at the same time.
    for (int i = 0; i < count; i++) {
        const struct row * row = &s->row[first + i];
        if (s->open[row->mask]) {
            const float * mask = s->mask + row->mask * TQ_ATTN_TILE;
            max[i] = k->kernels->softmax(s->score + i * TQ_ATTN_TILE, mask, &row->softmax, &sum[i]);
        }
    }
    for (int i = 0; i < count; i++) {
        struct row * row = &s->row[first + i];
        char * weight = s->weight + i * TQ_ATTN_WEIGHT_BYTES(values->blocks);
        keep[i] = 1.0f;
        add[i] = 0.0f;
        if (!s->open[row->mask]) {
            memset(weight, 0, TQ_ATTN_WEIGHT_BYTES((size_t) values->blocks));
            continue;
        }
        const float * p = s->score + i * TQ_ATTN_TILE;
        const float steps = values->products->weights(p, sum[i], values->unit, values->blocks, weight);
        if (max[i] > row->max) {
            keep[i] = expf(row->max - max[i]);
            add[i] = 1.0f;
            row->max = max[i];
        } else {
            add[i] = expf(max[i] - row->max);
        }
        row->sum = row->sum * keep[i] + sum[i] * add[i];
        add[i] /= steps;
    }
    values->products->accumulate(s->weight, count, values->blocks, values->tile, s->value_top, keep, add,
                                 s->acc + first * k->a->v.dim);
}

// Adds n cache rows from t on to the query rows of a KV head.
static void take_rows(struct task * k, int64_t head, int64_t t, int n) {
    const struct scratch * s = &k->scratch;
    load_side(k, &k->k, head, t, n);
    load_side(k, &k->v, head, t, n);
    k->kernels->ratios(s->live, (int) k->a->v.dim / k->v.products->under_unit, s->value_unit, s->value_top);
    for (int r = 0; r < k->rows; r += TQ_ATTN_ROWS) {
        const int first = (int) head * k->rows + r;
        const int count = k->rows - r < TQ_ATTN_ROWS ? k->rows - r : TQ_ATTN_ROWS;
        bool open = false;
        for (int i = 0; i < count; i++) {
            open |= s->open[s->row[first + i].mask];
        }
        if (open) {
            take_tile(k, first, count);
        }
    }
}

// To the output, or to what is merged if there is any.
static void store_results(const struct task * k, float * partials) {
    const struct tq_attn * a = k->a;
    for (int r = 0; r < k->rows * k->plan.heads; r++) {
        const struct row * row = &k->scratch.row[r];
        const float * acc = k->scratch.acc + r * a->v.dim;
        const int64_t at = (k->stream * a->tokens + token_of(k, r)) * a->heads + head_of(k, r);
        if (partials == NULL) {
            write_result(a, head_of(k, r), row->max, row->sum, acc, a->out + at * a->v.dim);
        } else {
            float * partial = partials + (size_t) (at * k->plan.chunks + k->chunk) * partial_size(a);
            partial[0] = row->max;
            partial[1] = row->sum;
            memcpy(partial + 2, acc, (size_t) a->v.dim * sizeof(float));
        }
    }
}

void tq_attn_run_task(const struct tq_attn * a, int64_t index, void * work, int thread, int threads) {
    const enum tq_isa isa = tq_isa_active();
    const struct tq_attn_kernels * tier = tiers[isa].kernels;
    const struct plan p = make_plan(a);
    const int64_t parts = a->kv_heads / p.heads; // of the heads
    const int64_t block = index / parts / p.chunks % p.blocks;
    const struct scratch scratch = lay_out(a, &p, aligned(work) + (size_t) thread * lay_out(a, &p, NULL).size);
    struct task task = {
        .a = a,
        .kernels = tier,
        .k = make_side(tier, key_loader(isa, a->k.type), &a->k, scratch.keys, scratch.key_unit),
        .v = make_side(tier, value_loader(isa, a->v.type), &a->v, scratch.values, scratch.value_unit),
        .plan = p,
        .scratch = scratch,
        .stream = index / parts / p.chunks / p.blocks,
        .first_head = index % parts * p.heads,
        .first_token = block * p.block,
        .chunk = index / parts % p.chunks,
        .rows = (int) (p.group * (block + 1 < p.blocks ? p.block : a->tokens - block * p.block)),
        .mask_share = a->mask_heads > 1 ? 1 : (int) p.group,
    };
    prepare_rows(&task);

    const int64_t begin = task.chunk * p.chunk;
    const int64_t end = begin + p.chunk < a->kv_rows ? begin + p.chunk : a->kv_rows;
    for (int64_t t = begin; t < end; t += TQ_ATTN_TILE) {
        const int n = (int) (end - t < TQ_ATTN_TILE ? end - t : TQ_ATTN_TILE);
        if (!load_masks(&task, t, n)) {
            continue;
        }
        for (int64_t head = 0; head < p.heads; head++) {
            take_rows(&task, head, t, n);
        }
    }
    store_results(&task, p.chunks == 1 ? NULL : partials(a, &p, work, threads));
}

void tq_attn_merge(const struct tq_attn * a, void * work, int thread, int threads) {
    const struct plan p = make_plan(a);
    if (p.chunks == 1) {
        return;
    }
    const size_t size = partial_size(a);
    for (int64_t at = thread; at < a->streams * a->tokens * a->heads; at += threads) {
        const float * first = partials(a, &p, work, threads) + (size_t) (at * p.chunks) * size;
        float max = -INFINITY, sum = 0.0f, acc[TQ_ATTN_HEAD_MAX] = {0.0f};
        for (int64_t c = 0; c < p.chunks; c++) {
            max = fmaxf(max, first[(size_t) c * size]);
        }
        for (int64_t c = 0; c < p.chunks; c++) {
            const float * partial = first + (size_t) c * size;
            if (partial[1] == 0.0f) {
                continue; // its max is -infinity, as all of them may be
            }
            const float factor = expf(partial[0] - max);
            sum += partial[1] * factor;
            for (int64_t d = 0; d < a->v.dim; d++) {
                acc[d] += partial[2 + d] * factor;
            }
        }
        write_result(a, at % a->heads, max, sum, acc, a->out + at * a->v.dim);
    }
}
