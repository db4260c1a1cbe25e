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

// Rows first to end of a tile lack the same offset: that of a turn of the window, or none.
struct run {
    int turn, first, end; // turn -1: none
};

// The turns of the next tiles. The product of all of a task's rows with some turns at once reads each row's g once for
// them; for every tile on its own, g came out of the second level cache: centring cost prefill 9 %, not 4 %.
#define WINDOW_TURNS 8 // wanted; a single tile may have up to 64
struct window {
    int64_t end; // cache row
    int turns;
    int32_t chunk[TQ_ATTN_TILE];
};

struct scratch {
    struct row * row;   // [rows]
    char * query;       // [rows][TQ_ATTN_QUERY_BYTES]
    float * g;          // [rows][k.dim], of centred keys
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
    float * lack;       // [64][rows, a multiple of 4]: offsets of the window's turns
    float * offset;     // [4][64]
    struct run * run;   // [64]
    char * weight;      // [4][TQ_ATTN_WEIGHT_BYTES]
    size_t size;
};

static void * take(char * base, size_t * size, size_t bytes) {
    char * p = base ? base + *size : NULL;
    *size += (bytes + TQ_ATTN_LINE - 1) / TQ_ATTN_LINE * TQ_ATTN_LINE;
    return p;
}

// Each KV head's rows begin at a multiple of four.
static size_t lack_stride(const struct plan * p) {
    return (size_t) (ceil_div(p->rows, TQ_ATTN_ROWS) * TQ_ATTN_ROWS * p->heads);
}

// With base = NULL only the size is of use.
static struct scratch lay_out(const struct tq_attn * a, const struct plan * p, char * base) {
    const size_t rows = (size_t) (p->rows * p->heads), dk = (size_t) a->k.dim, dv = (size_t) a->v.dim;
    struct scratch s = {.size = 0};
    s.row = take(base, &s.size, rows * sizeof(struct row));
    s.query = take(base, &s.size, rows * TQ_ATTN_QUERY_BYTES(dk / TQ_BLOCK));
    s.g = take(base, &s.size, a->centre.plain != NULL ? rows * dk * sizeof(float) : 0);
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
    s.lack = take(base, &s.size, a->centre.plain != NULL ? TQ_ATTN_TILE * lack_stride(p) * sizeof(float) : 0);
    s.offset = take(base, &s.size, TQ_ATTN_ROWS * TQ_ATTN_TILE * sizeof(float));
    s.run = take(base, &s.size, TQ_ATTN_TILE * sizeof(struct run));
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

// --- centred keys ---

void tq_attn_centre_query(const struct tq_attn_centre * c, const float * plain, const float * mean, int dim,
                          float * g) {
    const int half = c->rope_dims / 2;
    for (int f = 0; f < half; f++) {
        const int x = c->neox ? f : 2 * f, y = c->neox ? f + half : 2 * f + 1;
        g[x] = plain[x] * mean[x] + plain[y] * mean[y];
        g[y] = plain[y] * mean[x] - plain[x] * mean[y];
    }
    for (int i = c->rope_dims; i < dim; i++) {
        g[i] = plain[i] * mean[i];
    }
}

float tq_attn_centre_offset(const float * g, const float * turn, int dim) {
    return tq_attn_offset(g, turn, dim);
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

// Of query row `at`, [stream][token][head]
static void write_result(const struct tq_attn * a, int64_t at, float max, float sum, const float * acc) {
    const int64_t head = at % a->heads;
    float * out = a->out + at * a->v.dim;
    float keep = 1.0f;
    if (a->sinks != NULL) {
        const float top = fmaxf(max, a->sinks[head]);
        keep = expf(max - top);
        sum = sum * keep + expf(a->sinks[head] - top);
        max = top;
    }
    const float factor = sum != 0.0f ? keep / sum : 0.0f;
    if (a->lse != NULL) {
        a->lse[at] = max + logf(sum);
    }
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
    int runs; // of the tile
    struct window window;
    int rows;       // query rows of a KV head: token by token, the heads of the group within
    int mask_share; // consecutive rows with one mask: the heads of a token, unless there are masks for heads
};

static int64_t token_of(const struct task * k, int r) {
    return k->first_token + r % k->rows / k->plan.group;
}

static int64_t head_of(const struct task * k, int r) {
    return (k->first_head + r / k->rows) * k->plan.group + r % k->plan.group;
}

// Of the scores, before soft-capping
static float score_scale(const struct tq_attn * a) {
    return a->softcap != 0.0f ? a->scale / a->softcap : a->scale;
}

static void prepare_rows(struct task * k) {
    const struct tq_attn * a = k->a;
    for (int r = 0; r < k->rows * k->plan.heads; r++) {
        struct row * row = &k->scratch.row[r];
        const char * q = a->q + token_of(k, r) * a->q_token_stride + head_of(k, r) * a->q_head_stride +
                         k->stream * a->q_stream_stride;
        char * number = k->scratch.query + r * TQ_ATTN_QUERY_BYTES(k->k.blocks);
        row->softmax.scale = k->k.products->quantise((const float *) q, (int) a->k.dim, number);
        row->softmax.scale *= score_scale(a);
        row->softmax.softcap = a->softcap;
        row->softmax.slope = alibi_slope(a, head_of(k, r));
        row->max = -INFINITY;
        row->sum = 0.0f * row->softmax.scale; // NaN for a query that is not finite, and so will the result be
        row->mask = r % k->rows / k->mask_share;
        if (a->centre.plain != NULL) {
            const struct tq_attn_centre * c = &a->centre;
            const char * plain = c->plain + token_of(k, r) * c->plain_token_stride +
                                 head_of(k, r) * c->plain_head_stride + k->stream * c->plain_stream_stride;
            const float * mean = c->mean + head_of(k, r) / k->plan.group * a->k.dim;
            tq_attn_centre_query(c, (const float *) plain, mean, (int) a->k.dim, k->scratch.g + r * a->k.dim);
        }
    }
    memset(k->scratch.acc, 0, (size_t) (k->rows * k->plan.heads * a->v.dim) * sizeof(float));
    memset(k->scratch.offset, 0, TQ_ATTN_ROWS * TQ_ATTN_TILE * sizeof(float));
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

static int64_t kv_stream_of(const struct task * k) {
    return k->stream / (k->a->streams / k->a->kv_streams);
}

static const int32_t * chunks_of(const struct task * k, int64_t t) {
    return k->a->centre.chunk + kv_stream_of(k) * k->a->kv_rows + t;
}

// The window's turn of a chunk, or -1. Searched from the end: it is mostly the last.
static int find_turn(const struct window * w, int32_t chunk) {
    int i = w->turns - 1;
    while (i >= 0 && w->chunk[i] != chunk) {
        i--;
    }
    return i;
}

// Adds the turns that n cache rows need to the window; false, and no change, where they do not fit.
static bool extend_window(struct window * w, const int32_t * chunk, int n, int most) {
    const int before = w->turns;
    for (int i = 0; i < n; i++) {
        if (chunk[i] == 0 || (i > 0 && chunk[i] == chunk[i - 1]) || find_turn(w, chunk[i]) >= 0) {
            continue;
        }
        if (w->turns == most) {
            w->turns = before;
            return false;
        }
        w->chunk[w->turns++] = chunk[i];
    }
    return true;
}

// The window from cache row t on.
static void load_window(struct task * k, int64_t t, int64_t end) {
    const struct tq_attn * a = k->a;
    struct window * w = &k->window;
    w->turns = 0;
    for (w->end = t; w->end < end; w->end += TQ_ATTN_TILE) {
        const int n = (int) (end - w->end < TQ_ATTN_TILE ? end - w->end : TQ_ATTN_TILE);
        if (!extend_window(w, chunks_of(k, w->end), n, w->end == t ? TQ_ATTN_TILE : WINDOW_TURNS)) {
            break;
        }
    }
    const size_t stride = lack_stride(&k->plan), head_stride = stride / (size_t) k->plan.heads;
    for (int i = 0; i < w->turns; i += TQ_ATTN_TURNS) {
        const float * turn[TQ_ATTN_TURNS];
        float * lack[TQ_ATTN_TURNS];
        for (int j = 0; j < TQ_ATTN_TURNS; j++) { // behind the last one, that one again
            const int at = i + j < w->turns ? i + j : w->turns - 1;
            turn[j] = a->centre.turns + w->chunk[at] * a->k.dim;
            lack[j] = k->scratch.lack + (size_t) at * stride;
        }
        for (int64_t head = 0; head < k->plan.heads; head++) {
            for (int r = 0; r < k->rows; r += TQ_ATTN_ROWS) {
                float * out[TQ_ATTN_TURNS];
                for (int j = 0; j < TQ_ATTN_TURNS; j++) {
                    out[j] = lack[j] + (size_t) head * head_stride + r;
                }
                const int count = k->rows - r < TQ_ATTN_ROWS ? k->rows - r : TQ_ATTN_ROWS;
                k->kernels->offsets(k->scratch.g + (head * k->rows + r) * a->k.dim, count, (int) a->k.dim, turn, out);
            }
        }
    }
}

// Of n cache rows from t on. Rows of a chunk mostly lie together: a tile has one run or two.
static void load_runs(struct task * k, int64_t t, int n) {
    const int32_t * chunk = chunks_of(k, t);
    struct run * run = k->scratch.run;
    k->runs = 0;
    for (int i = 0; i < n; i++) {
        if (i == 0 || chunk[i] != chunk[i - 1]) {
            run[k->runs++] = (struct run) {.turn = chunk[i] == 0 ? -1 : find_turn(&k->window, chunk[i]), .first = i};
        }
        run[k->runs - 1].end = i + 1;
    }
    run[k->runs - 1].end = TQ_ATTN_TILE;
}

// What the scores of at most four rows of a KV head lack, [4][64]
static const float * take_offsets(struct task * k, int64_t head, int first, int count) {
    const size_t stride = lack_stride(&k->plan), at = (size_t) head * stride / (size_t) k->plan.heads + (size_t) first;
    const float scale = score_scale(k->a);
    for (int i = 0; i < k->runs; i++) {
        const struct run * run = &k->scratch.run[i];
        for (int r = 0; r < count; r++) {
            const float lack = run->turn < 0 ? 0.0f : k->scratch.lack[(size_t) run->turn * stride + at + (size_t) r];
            k->kernels->fill(k->scratch.offset + r * TQ_ATTN_TILE, run->first, run->end, lack * scale);
        }
    }
    return k->scratch.offset;
}

// Cache rows t to t + n of a KV head. Where they are less than a tile, zeros stand in for the others, in a copy.
static void load_side(struct task * k, const struct side * side, int64_t head, int64_t t, int n) {
    const struct tq_attn_cache * cache = side->cache;
    const int64_t stream = kv_stream_of(k);
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

// Adds the loaded tile to at most four rows of a KV head.
static void take_tile(struct task * k, int64_t head, int r, int count) {
    const struct scratch * s = &k->scratch;
    const int first = (int) head * k->rows + r;
    const struct side *keys = &k->k, *values = &k->v;
    float max[TQ_ATTN_ROWS], sum[TQ_ATTN_ROWS], keep[TQ_ATTN_ROWS], add[TQ_ATTN_ROWS];
    const char * query = s->query + first * TQ_ATTN_QUERY_BYTES(keys->blocks);
    keys->products->scores(query, count, keys->blocks, keys->tile, keys->unit, s->score);
    const float * offset = k->a->centre.plain != NULL ? take_offsets(k, head, r, count) : s->offset;
    // Rows do not wait for each other here: the processor computes their exponentials at the same time.
    for (int i = 0; i < count; i++) {
        const struct row * row = &s->row[first + i];
        if (s->open[row->mask]) {
            const float * mask = s->mask + row->mask * TQ_ATTN_TILE;
            max[i] = k->kernels->softmax(s->score + i * TQ_ATTN_TILE, offset + i * TQ_ATTN_TILE, mask, &row->softmax,
                                         &sum[i]);
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
            take_tile(k, head, r, count);
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
            write_result(a, at, row->max, row->sum, acc);
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
        if (a->centre.plain != NULL) {
            if (t >= task.window.end) {
                load_window(&task, t, end);
            }
            load_runs(&task, t, n);
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
        write_result(a, at, max, sum, acc);
    }
}
