// The driver of attn.h: who computes what, the running softmax, and the merge. No instruction set, no ggml.
//
// A task is one KV head of one stream, a block of tokens, and a chunk of the cache. Tasks depend on the shapes only and
// chunks merge in order, so the result does not depend on the number of threads. Heads come before chunks, because
// their rows lie side by side: 5.8 ns for a query head and a row in decode out of memory, 6.6 the other way round.
#include "attn_tier.h"

#include <math.h>
#include <string.h>

#define TASK_ROWS 256  // query rows of a task, about: what one unpacking of the cache serves
#define TASKS 64       // wanted of an operation
#define CHUNK_ROWS 512 // least cache rows of a chunk

static const struct tq_attn_kernels * const tiers[TQ_ISA_COUNT] = {
#define TQ_ISA(NAME, name, architecture, BASE) TQ_IF_##architecture([TQ_ISA_##NAME] = &tq_attn_##name, )
#include "isa.def"
#undef TQ_ISA
};

static tq_attn_load_fn key_loader(const struct tq_attn_kernels * tier, int type) {
    return tier->load_keys[type] ? tier->load_keys[type] : key_loader(tier->base, type);
}

static tq_attn_load_fn value_loader(const struct tq_attn_kernels * tier, int type) {
    return tier->load_values[type] ? tier->load_values[type] : value_loader(tier->base, type);
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

struct plan {
    int64_t group;  // query heads of a KV head
    int64_t block;  // tokens of a task
    int64_t blocks; // of tokens
    int64_t chunk;  // cache rows of a task
    int64_t chunks;
    int64_t rows; // query rows of a task at most
};

static struct plan make_plan(const struct tq_attn * a) {
    struct plan p;
    p.group = a->heads / a->kv_heads;
    p.blocks = ceil_div(a->tokens * p.group, TASK_ROWS);
    p.block = ceil_div(a->tokens, p.blocks);
    p.blocks = ceil_div(a->tokens, p.block);
    p.rows = p.block * p.group;
    const int64_t whole = a->streams * a->kv_heads * p.blocks;
    const int64_t most = ceil_div(a->kv_rows, CHUNK_ROWS);
    const int64_t wanted = ceil_div(TASKS, whole);
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
    int16_t * query;    // [rows][k.dim]
    float * acc;        // [rows][v.dim]
    float * mask;       // [masks][64], at most one for each row
    bool * open;        // [masks]: it lets anything through
    float * live;       // [64]: the largest of the masks; -infinity for a cache row that no query row sees
    int16_t * keys;     // a tile
    int16_t * values;   // a tile
    float * key_unit;   // [k blocks][64]
    float * value_unit; // [v blocks][64]; then the ratio to value_top
    float * value_top;  // [v blocks]
    float * score;      // [4][64]
    int16_t * weight;   // [4][v blocks][64]
    size_t size;
};

static void * take(char * base, size_t * size, size_t bytes) {
    char * p = base ? base + *size : NULL;
    *size += (bytes + TQ_ATTN_LINE - 1) / TQ_ATTN_LINE * TQ_ATTN_LINE;
    return p;
}

// With base = NULL only the size is of use.
static struct scratch lay_out(const struct tq_attn * a, const struct plan * p, char * base) {
    const size_t rows = (size_t) p->rows, dk = (size_t) a->k.dim, dv = (size_t) a->v.dim;
    struct scratch s = {.size = 0};
    s.row = take(base, &s.size, rows * sizeof(struct row));
    s.query = take(base, &s.size, rows * dk * sizeof(int16_t));
    s.acc = take(base, &s.size, rows * dv * sizeof(float));
    s.mask = take(base, &s.size, rows * TQ_ATTN_TILE * sizeof(float));
    s.open = take(base, &s.size, rows * sizeof(bool));
    s.live = take(base, &s.size, TQ_ATTN_TILE * sizeof(float));
    s.keys = take(base, &s.size, TQ_ATTN_TILE * dk * sizeof(int16_t));
    s.values = take(base, &s.size, TQ_ATTN_TILE * dv * sizeof(int16_t));
    s.key_unit = take(base, &s.size, TQ_ATTN_TILE * dk / TQ_BLOCK * sizeof(float));
    s.value_unit = take(base, &s.size, TQ_ATTN_TILE * dv / TQ_BLOCK * sizeof(float));
    s.value_top = take(base, &s.size, dv / TQ_BLOCK * sizeof(float));
    s.score = take(base, &s.size, TQ_ATTN_ROWS * TQ_ATTN_TILE * sizeof(float));
    s.weight = take(base, &s.size, TQ_ATTN_ROWS * TQ_ATTN_TILE * dv / TQ_BLOCK * sizeof(int16_t));
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
    return a->streams * a->kv_heads * p.blocks * p.chunks;
}

// --- a task ---

// The largest of n numbers that are not negative; their bits compare as integers, which needs no fast-math to
// vectorise.
static float largest_magnitude(const float * x, int64_t n) {
    int32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bits &= INT32_MAX;
        top = bits > top ? bits : top;
    }
    float result;
    memcpy(&result, &top, sizeof(result));
    return result;
}

static void quantise_query(const float * q, int64_t dim, int16_t * out, float * unit) {
    const float top = largest_magnitude(q, dim);
    const float inverse = top > 0.0f ? TQ_ATTN_QUERY_MAX / top : 0.0f;
    for (int64_t i = 0; i < dim; i += 4) {
        static const int order[4] = {0, 2, 1, 3};
        for (int j = 0; j < 4; j++) {
            const float rounded = q[i + order[j]] * inverse + 0x1.8p23f; // the number is in the low bits
            memcpy(&out[i + j], &rounded, sizeof(int16_t));
        }
    }
    *unit = top / TQ_ATTN_QUERY_MAX;
}

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

// Ratios of a tile's units to the largest one of their block of columns. Rows that nobody sees, unused cells with what
// was once in them, must not move the rounding of the others.
static void make_ratios(int blocks, const float * live, float * unit, float * top) {
    for (int b = 0; b < blocks; b++) {
        float * u = unit + b * TQ_ATTN_TILE;
        for (int t = 0; t < TQ_ATTN_TILE; t++) {
            u[t] = live[t] > -INFINITY ? u[t] : 0.0f;
        }
        const float most = largest_magnitude(u, TQ_ATTN_TILE);
        const float inverse = most > 0.0f ? 1.0f / most : 0.0f;
        for (int t = 0; t < TQ_ATTN_TILE; t++) {
            u[t] *= inverse;
        }
        top[b] = most;
    }
}

static void write_result(const struct tq_attn * a, int64_t head, float max, float sum, const float * acc, float * out) {
    float keep = 1.0f;
    if (a->sinks != NULL) {
        const float top = fmaxf(max, a->sinks[head]);
        keep = expf(max - top);
        sum = sum * keep + expf(a->sinks[head] - top);
    }
    const float factor = sum > 0.0f ? keep / sum : 0.0f;
    for (int64_t d = 0; d < a->v.dim; d++) {
        out[d] = acc[d] * factor;
    }
}

struct task {
    const struct tq_attn * a;
    const struct tq_attn_kernels * kernels;
    struct plan plan;
    struct scratch scratch;
    int64_t stream, kv_head, first_token, chunk;
    int rows;       // query rows: token by token, the heads of the group within
    int mask_share; // consecutive rows with one mask: the heads of a token, unless there are masks for heads
};

static int64_t token_of(const struct task * k, int r) {
    return k->first_token + r / k->plan.group;
}

static int64_t head_of(const struct task * k, int r) {
    return k->kv_head * k->plan.group + r % k->plan.group;
}

static void prepare_rows(struct task * k) {
    const struct tq_attn * a = k->a;
    for (int r = 0; r < k->rows; r++) {
        struct row * row = &k->scratch.row[r];
        const char * q = a->q + token_of(k, r) * a->q_token_stride + head_of(k, r) * a->q_head_stride +
                         k->stream * a->q_stream_stride;
        quantise_query((const float *) q, a->k.dim, k->scratch.query + r * a->k.dim, &row->softmax.scale);
        row->softmax.scale *= a->softcap != 0.0f ? a->scale / a->softcap : a->scale;
        row->softmax.softcap = a->softcap;
        row->softmax.slope = alibi_slope(a, head_of(k, r));
        row->max = -INFINITY;
        row->sum = 0.0f;
        row->mask = r / k->mask_share;
    }
    memset(k->scratch.acc, 0, (size_t) (k->rows * a->v.dim) * sizeof(float));
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

// Adds the loaded tile to at most four rows.
static void take_tile(struct task * k, int first, int count) {
    const struct scratch * s = &k->scratch;
    const int k_blocks = (int) (k->a->k.dim / TQ_BLOCK), v_blocks = (int) (k->a->v.dim / TQ_BLOCK);
    float max[TQ_ATTN_ROWS], sum[TQ_ATTN_ROWS], keep[TQ_ATTN_ROWS], add[TQ_ATTN_ROWS];
    k->kernels->scores(s->query + first * k->a->k.dim, count, k_blocks, s->keys, s->key_unit, s->score);
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
        int16_t * weight = s->weight + i * v_blocks * TQ_ATTN_TILE;
        keep[i] = 1.0f;
        add[i] = 0.0f;
        if (!s->open[row->mask]) {
            memset(weight, 0, (size_t) v_blocks * TQ_ATTN_TILE * sizeof(int16_t));
            continue;
        }
        const float most = TQ_ATTN_WEIGHT_SUM / sum[i];
        const float steps = most < TQ_ATTN_WEIGHT_MAX ? most : TQ_ATTN_WEIGHT_MAX;
        k->kernels->weights(s->score + i * TQ_ATTN_TILE, steps, s->value_unit, v_blocks, weight);
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
    k->kernels->accumulate(s->weight, count, v_blocks, s->values, s->value_top, keep, add,
                           s->acc + first * k->a->v.dim);
}

void tq_attn_run_task(const struct tq_attn * a, int64_t index, void * work, int thread, int threads) {
    const struct plan p = make_plan(a);
    const int64_t block = index / a->kv_heads / p.chunks % p.blocks;
    struct task task = {
        .a = a,
        .kernels = tiers[tq_isa_active()],
        .plan = p,
        .scratch = lay_out(a, &p, aligned(work) + (size_t) thread * lay_out(a, &p, NULL).size),
        .stream = index / a->kv_heads / p.chunks / p.blocks,
        .kv_head = index % a->kv_heads,
        .first_token = block * p.block,
        .chunk = index / a->kv_heads % p.chunks,
        .rows = (int) (p.group * (block + 1 < p.blocks ? p.block : a->tokens - block * p.block)),
        .mask_share = a->mask_heads > 1 ? 1 : (int) p.group,
    };
    struct scratch * s = &task.scratch;
    prepare_rows(&task);

    const tq_attn_load_fn load_keys = key_loader(task.kernels, a->k.type);
    const tq_attn_load_fn load_values = value_loader(task.kernels, a->v.type);
    const int64_t kv_stream = task.stream / (a->streams / a->kv_streams);
    const char * k = a->k.data + task.kv_head * a->k.head_stride + kv_stream * a->k.stream_stride;
    const char * v = a->v.data + task.kv_head * a->v.head_stride + kv_stream * a->v.stream_stride;
    const int k_blocks = (int) (a->k.dim / TQ_BLOCK), v_blocks = (int) (a->v.dim / TQ_BLOCK);
    const int64_t begin = task.chunk * p.chunk;
    const int64_t end = begin + p.chunk < a->kv_rows ? begin + p.chunk : a->kv_rows;
    for (int64_t t = begin; t < end; t += TQ_ATTN_TILE) {
        const int n = (int) (end - t < TQ_ATTN_TILE ? end - t : TQ_ATTN_TILE);
        if (!load_masks(&task, t, n)) {
            continue;
        }
        load_keys(k + t * a->k.row_stride, a->k.row_stride, n, k_blocks, s->keys, s->key_unit);
        load_values(v + t * a->v.row_stride, a->v.row_stride, n, v_blocks, s->values, s->value_unit);
        make_ratios(v_blocks, s->live, s->value_unit, s->value_top);
        for (int first = 0; first < task.rows; first += TQ_ATTN_ROWS) {
            const int count = task.rows - first < TQ_ATTN_ROWS ? task.rows - first : TQ_ATTN_ROWS;
            bool open = false;
            for (int i = 0; i < count; i++) {
                open |= s->open[s->row[first + i].mask];
            }
            if (open) {
                take_tile(&task, first, count);
            }
        }
    }

    for (int r = 0; r < task.rows; r++) {
        const struct row * row = &s->row[r];
        const float * acc = s->acc + r * a->v.dim;
        const int64_t at = (task.stream * a->tokens + token_of(&task, r)) * a->heads + head_of(&task, r);
        if (p.chunks == 1) {
            write_result(a, head_of(&task, r), row->max, row->sum, acc, a->out + at * a->v.dim);
        } else {
            float * partial = partials(a, &p, work, threads) + (size_t) (at * p.chunks + task.chunk) * partial_size(a);
            partial[0] = row->max;
            partial[1] = row->sum;
            memcpy(partial + 2, acc, (size_t) a->v.dim * sizeof(float));
        }
    }
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
