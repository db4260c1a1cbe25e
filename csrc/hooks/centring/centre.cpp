#include "centre.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "ggml-tq.h"
#include "llama-cparams.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"
#include "llama-tq.h"
#include "prompt.h"

// --- the switch ---

namespace {

std::atomic<int> forced {-1};

std::string variable() {
    const char * value = std::getenv("LLAMA_TQ_CENTRE");
    return value && *value ? value : "on";
}

} // namespace

bool llama_tq_centring_on() {
    const int value = forced;
    return value >= 0 ? value != 0 : variable() != "off";
}

void llama_tq_set_centring(int on) {
    forced = on;
}

std::string llama_tq_centring_error() {
    const std::string value = variable();
    return value == "on" || value == "off" ? "" : format("LLAMA_TQ_CENTRE=%s: it can be on or off", value.c_str());
}

// --- arithmetic on the host ---

std::vector<float> llama_tq_mean_turn(const llama_tq_rope & rope, int head, const std::vector<float> & turns) {
    std::vector<float> mean((size_t) head, 1.0f);
    for (int f = 0; f < rope.n_dims / 2; f++) {
        const int x = rope.first(f), y = rope.second(f);
        double sum_x = 0, sum_y = 0;
        for (int p = 0; p < LLAMA_TQ_CHUNK; p++) {
            sum_x += turns[(size_t) p * head + x];
            sum_y += turns[(size_t) p * head + y];
        }
        const double stretch = turns[x]; // position 0 turns by no angle
        mean[x] = (float) (sum_x / LLAMA_TQ_CHUNK / stretch);
        mean[y] = (float) (sum_y / LLAMA_TQ_CHUNK / stretch);
    }
    return mean;
}

void llama_tq_turn(const llama_tq_rope & rope, int head, const float * x, const float * turn, float * out) {
    for (int f = 0; f < rope.n_dims / 2; f++) {
        const int a = rope.first(f), b = rope.second(f);
        out[a] = x[a] * turn[a] - x[b] * turn[b];
        out[b] = x[b] * turn[a] + x[a] * turn[b];
    }
    for (int i = rope.n_dims; i < head; i++) {
        out[i] = x[i] * turn[i];
    }
}

// --- of a cache ---

std::vector<llama_kv_cache *> llama_tq_caches(llama_memory_i * memory) {
    if (dynamic_cast<llama_memory_hybrid_idx *>(memory)) {
        return {}; // a cache of its own kind, though it is a llama_memory_hybrid too
    }
    if (auto * cache = dynamic_cast<llama_kv_cache *>(memory)) {
        return {cache};
    }
    if (auto * both = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return {both->get_base(), both->get_swa()};
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return llama_tq_caches(hybrid->get_mem_attn());
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return llama_tq_caches(hybrid->get_mem_attn());
    }
    return {};
}

llama_tq_centring::llama_tq_centring(const llama_model & model, const llama_cparams & cparams,
                                     const llama_kv_cache & cache, const llama_tq_means & means)
    : buffers(model.hparams.no_alloc), chunks(1 + (int32_t) ((cparams.n_ctx + LLAMA_TQ_CHUNK - 1) / LLAMA_TQ_CHUNK)),
      first_is_plain(means.first_is_plain), plain(means.plain) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;
    const std::vector<uint32_t> ids = cache.get_layer_ids();
    for (const uint32_t il : ids) {
        const ggml_tensor * storage = cache.get_k_storage((int32_t) il);
        if (layers.count(storage)) {
            continue;
        }
        ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(storage->buffer);
        ggml_context_ptr & ctx = contexts[type];
        if (!ctx) {
            ctx.reset(ggml_init({2 * ids.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true}));
        }
        layer l;
        l.rope = llama_tq_rope(model, cparams, (int) il, il >= means.layers.size() || means.layers[il].turned);
        l.head = (int) model.hparams.n_embd_head_k(il);
        l.heads = (int) model.hparams.n_head_kv(il);
        l.rows = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, l.head * l.heads, 2);
        l.active = buffers.no_alloc; // as far as is known
        for (const auto & [at, other] : layers) {
            if (other.head == l.head && other.rope == l.rope && ggml_backend_buffer_get_type(at->buffer) == type) {
                l.turns = other.turns;
            }
        }
        if (!l.turns) {
            l.turns = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, l.head, chunks);
        }
        layers[storage] = l;
        order.push_back(storage);
    }

    for (auto & [type, ctx] : contexts) {
        buffers.add(std::move(ctx), type);
    }
    if (buffers.no_alloc) {
        return;
    }

    std::vector<int32_t> first(LLAMA_TQ_CHUNK), starts;
    std::iota(first.begin(), first.end(), 0);
    for (int32_t c = 1; c < chunks; c++) {
        starts.push_back((c - 1) * LLAMA_TQ_CHUNK);
    }
    std::map<const ggml_tensor *, std::vector<float>> mean_turns; // by the table of turns that is written
    for (const uint32_t il : ids) {
        const ggml_tensor * storage = cache.get_k_storage((int32_t) il);
        const layer & l = layers.at(storage);
        std::vector<float> & turn = mean_turns[l.turns];
        if (turn.empty()) {
            turn = llama_tq_mean_turn(l.rope, l.head, l.rope.turns(l.head, first));
            const std::vector<float> zeros((size_t) l.head, 0.0f), turns = l.rope.turns(l.head, starts);
            ggml_backend_tensor_set(l.turns, zeros.data(), 0, l.turns->nb[1]);
            ggml_backend_tensor_set(l.turns, turns.data(), l.turns->nb[1], turns.size() * sizeof(float));
        }
        std::vector<float> mean((size_t) (l.head * l.heads), 0.0f);
        if (il < means.layers.size() && means.layers[il].heads > 0) {
            for (int h = 0; h < l.heads; h++) {
                llama_tq_turn(l.rope, l.head, means.layers[il].mean.data() + h * l.head, turn.data(),
                              mean.data() + h * l.head);
            }
        }
        set_rows(storage, mean);
    }
}

void llama_tq_centring::set_rows(const ggml_tensor * storage, const std::vector<float> & mean) {
    ggml_tensor * rows = layers.at(storage).rows;
    const std::vector<float> zeros(mean.size(), 0.0f);
    ggml_backend_tensor_set(rows, zeros.data(), 0, rows->nb[1]);
    ggml_backend_tensor_set(rows, mean.data(), rows->nb[1], rows->nb[1]);
    host[storage] = mean;
    layers.at(storage).active = std::any_of(mean.begin(), mean.end(), [](float x) { return x != 0.0f; });
}

const llama_tq_centring::layer * llama_tq_centring::find(const ggml_tensor * storage) const {
    const auto it = layers.find(storage);
    return it == layers.end() || !it->second.active ? nullptr : &it->second;
}

int32_t llama_tq_centring::chunk(llama_pos pos, llama_token token) const {
    return !plain.empty() && std::binary_search(plain.begin(), plain.end(), token) ? 0 : centred().chunk(pos);
}

ggml_tensor * llama_tq_centring::centres(ggml_context * ctx, const layer & l, ggml_tensor * row, ggml_tensor * pos) {
    ggml_tensor * x = ggml_reshape_3d(ctx, ggml_get_rows(ctx, l.rows, row), l.head, l.heads, row->ne[0]);
    return l.rope.apply(ctx, x, pos);
}

void llama_tq_centre_caches(const llama_model & model, const llama_cparams & cparams, ggml_type type_k,
                            llama_memory_i * memory) {
    const std::vector<llama_kv_cache *> caches = llama_tq_caches(memory);
    if (!llama_tq_is(type_k) || !llama_tq_centring_on() || caches.empty()) {
        return;
    }
    std::string reason = llama_tq_not_centred(model);
    if (cparams.ctx_other || cparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        reason = "a draft context, whose layers no prompt has shown"; // what it shares is centred as in the other
    }
    if (!reason.empty()) {
        LLAMA_LOG_INFO("%s: keys are not centred: %s\n", __func__, reason.c_str());
        return;
    }
    static const llama_tq_means none;
    const auto means = model.hparams.no_alloc ? nullptr : llama_tq_means_of(model, cparams.n_threads_batch);
    if (means && means->empty()) {
        LLAMA_LOG_INFO("%s: keys are not centred: no head of this model gains by it\n", __func__);
    }
    for (llama_kv_cache * cache : caches) {
        if (!cache->tq && !cache->get_layer_ids().empty()) {
            cache->tq = std::make_shared<llama_tq_centring>(model, cparams, *cache, means ? *means : none);
        }
    }
    if (means && !means->empty()) {
        int centred = 0, heads = 0;
        double before = 0, after = 0;
        for (size_t il = 0; il < means->layers.size(); il++) {
            const llama_tq_means::layer & l = means->layers[il];
            if (l.before > 0) {
                centred += l.heads;
                heads += l.kv_heads;
                before += std::log10(l.before);
                after += std::log10(l.after);
            }
        }
        const double layers = (double) std::count_if(means->layers.begin(), means->layers.end(),
                                                     [](const auto & l) { return l.before > 0; });
        LLAMA_LOG_INFO("%s: keys of %d of %d heads are centred, which takes %.1f dB off them (%s)\n", __func__, centred,
                       heads, 10 * (before - after) / layers, means->source.c_str());
    }
}

// --- saved states ---

namespace {

// In front of a TQ cache's cells. The version of the format is part of it.
constexpr uint32_t state_magic = 0x31637174; // "tqc1"

const char * const state_advice =
    "restore it with the settings that it was saved with (LLAMA_TQ_CENTRE, the model file and its side file)";

} // namespace

void llama_tq_write_state(llama_io_write_i & io, const llama_kv_cache & cache) {
    if (!llama_tq_is(cache)) {
        return;
    }
    io.write(&state_magic, sizeof(state_magic));
    const uint32_t centred = cache.tq != nullptr;
    io.write(&centred, sizeof(centred));
    if (centred) {
        cache.tq->write_state(io, cache);
    }
}

void llama_tq_read_state(llama_io_read_i & io, const llama_kv_cache & cache, llama_seq_id seq_id) {
    if (!llama_tq_is(cache)) {
        return;
    }
    uint32_t magic, centred;
    io.read(&magic, sizeof(magic));
    if (magic != state_magic) {
        throw std::runtime_error(format("mismatched key type: the state is of another type than %s, or of llama-tq "
                                        "0.1.0, which did not say whether keys are centred",
                                        ggml_type_name(cache.type_k())));
    }
    io.read(&centred, sizeof(centred));
    if ((centred != 0) != (cache.tq != nullptr)) {
        throw std::runtime_error(format("the state's keys are %scentred, those of this context are%s; %s",
                                        centred ? "" : "not ", cache.tq ? "" : " not", state_advice));
    }
    if (cache.tq) {
        cache.tq->read_state(io, cache, seq_id);
    }
}

void llama_tq_check_cells(uint32_t cell_count, const llama_kv_cache & cache) {
    if (cell_count == state_magic) {
        const char * type = cache.get_layer_ids().empty() ? "none" : ggml_type_name(cache.type_k());
        throw std::runtime_error(format("mismatched key type: the state's is a TQ type, this context's %s", type));
    }
}

void llama_tq_centring::write_state(llama_io_write_i & io, const llama_kv_cache & cache) const {
    llama_pos last = -1;
    for (uint32_t s = 0; s < cache.get_n_seq_max(); s++) {
        last = std::max(last, cache.get_cells((llama_seq_id) s).seq_pos_max((llama_seq_id) s));
    }
    const uint32_t head[] = {LLAMA_TQ_CHUNK, (uint32_t) chunks,       (uint32_t) (last + 1),
                             first_is_plain, (uint32_t) plain.size(), (uint32_t) order.size()};
    io.write(head, sizeof(head));
    io.write(plain.data(), plain.size() * sizeof(llama_token));
    for (const ggml_tensor * storage : order) {
        const std::vector<float> & mean = host.at(storage);
        const uint32_t size = (uint32_t) mean.size();
        io.write(&size, sizeof(size));
        io.write(mean.data(), size * sizeof(float));
    }
}

void llama_tq_centring::read_state(llama_io_read_i & io, const llama_kv_cache & cache, llama_seq_id seq_id) {
    const auto refuse = [](const char * what) {
        throw std::runtime_error(format("the state's keys were centred with %s; %s", what, state_advice));
    };
    uint32_t head[6];
    io.read(head, sizeof(head));
    const uint32_t chunk_size = head[0], state_chunks = head[1], positions = head[2], n_plain = head[4],
                   n_layer = head[5];
    const bool state_first = head[3] != 0;
    if (chunk_size != LLAMA_TQ_CHUNK) {
        refuse("chunks of another size");
    }
    // Past the end of the table keys are stored as they are.
    if (state_chunks != (uint32_t) chunks &&
        positions > (uint64_t) (std::min<uint32_t>(chunks, state_chunks) - 1) * LLAMA_TQ_CHUNK) {
        refuse("a smaller context (or this one is), which its positions exceed");
    }
    if (n_layer != order.size() || n_plain > LLAMA_TQ_PROMPT_TOKENS) {
        refuse("other layers");
    }
    std::vector<llama_token> state_plain(n_plain);
    io.read(state_plain.data(), state_plain.size() * sizeof(llama_token));
    std::vector<std::vector<float>> means;
    bool same = state_first == first_is_plain && state_plain == plain;
    for (const ggml_tensor * storage : order) {
        const std::vector<float> & mine = host.at(storage);
        uint32_t size;
        io.read(&size, sizeof(size));
        if (size != mine.size()) {
            refuse("heads of another size");
        }
        means.emplace_back(size);
        io.read(means.back().data(), size * sizeof(float));
        for (const float x : means.back()) {
            if (!std::isfinite(x)) {
                refuse("means that are not finite: it is damaged");
            }
        }
        same = same && std::memcmp(means.back().data(), mine.data(), size * sizeof(float)) == 0;
    }
    if (!same) {
        for (uint32_t s = 0; s < cache.get_n_seq_max(); s++) {
            const llama_kv_cells & cells = cache.get_cells((llama_seq_id) s);
            for (uint32_t i = 0; i < cells.size(); i++) {
                const bool mine =
                    seq_id == -1 || (!cells.is_empty(i) && cells.seq_has(i, seq_id) && cells.seq_count(i) == 1);
                if (!cells.is_empty(i) && !mine) {
                    refuse("other means, and other sequences of this context need theirs");
                }
            }
        }
        first_is_plain = state_first;
        plain = state_plain;
        for (size_t i = 0; i < order.size(); i++) {
            set_rows(order[i], means[i]);
        }
    }
}

// --- in a graph ---

namespace {

void fill(ggml_tensor * tensor, const std::vector<int32_t> & values) {
    if (tensor && tensor->buffer) {
        ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(int32_t));
    }
}

// Rows of llama_tq_centring::layer::rows and the positions to turn them to
struct places {
    std::vector<int32_t> row, pos;

    void add(const llama_tq_centring & centring, llama_pos p, llama_token token) {
        const int32_t chunk = centring.chunk(p, token);
        row.push_back(chunk > 0);
        pos.push_back(chunk > 0 ? (chunk - 1) * LLAMA_TQ_CHUNK : 0);
    }
};

ggml_tensor * new_input(ggml_context * ctx, int64_t n, int64_t m = 1) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n, m);
    ggml_set_input(t);
    return t;
}

// The tokens of a batch, and the cells that they see.
class input : public llm_graph_input_i {
public:
    input(ggml_context * ctx, const llama_kv_cache & cache, int64_t n_tokens, int64_t n_kv, int64_t n_stream,
          bool flash_attn)
        : cache(cache), row(new_input(ctx, n_tokens)), pos(new_input(ctx, n_tokens)),
          chunk(new_input(ctx, n_kv, n_stream)), cell_row(flash_attn ? nullptr : new_input(ctx, n_kv * n_stream)),
          cell_pos(flash_attn ? nullptr : new_input(ctx, n_kv * n_stream)) {}

    void set_input(const llama_ubatch * ubatch) override {
        const llama_tq_centring & centring = *cache.tq;
        places tokens, cells;
        for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
            tokens.add(centring, ubatch->pos[i], ubatch->token ? ubatch->token[i] : LLAMA_TOKEN_NULL);
        }
        fill(row, tokens.row);
        fill(pos, tokens.pos);

        const int64_t n_kv = chunk->ne[0], n_stream = chunk->ne[1];
        std::vector<int32_t> chunks((size_t) (n_kv * n_stream));
        for (int64_t s = 0; s < n_stream; s++) {
            const llama_kv_cells & all = cache.get_cells(ubatch->seq_id[s * ubatch->n_tokens / n_stream][0]);
            if (!centring.needs_tokens() && !cell_row) {
                std::transform(all.pos_data(), all.pos_data() + n_kv, chunks.begin() + s * n_kv,
                               [in = centring.centred()](llama_pos pos) { return in.chunk(pos); });
                continue;
            }
            for (int64_t i = 0; i < n_kv; i++) {
                const uint32_t cell = (uint32_t) i;
                const bool empty = all.is_empty(cell);
                const llama_pos p = empty ? -1 : all.pos_get(cell);
                const llama_token token = empty ? LLAMA_TOKEN_NULL : all.ext_get(cell).tok;
                chunks[(size_t) (s * n_kv + i)] = centring.chunk(p, token);
                if (cell_row) {
                    cells.add(centring, p, token);
                }
            }
        }
        fill(chunk, chunks);
        fill(cell_row, cells.row);
        fill(cell_pos, cells.pos);
    }

    // The mask, which always goes with this, compares the number of cells.
    bool can_reuse(const llm_graph_params & params) override { return row->ne[0] == params.ubatch.n_tokens; }

    const llama_kv_cache & cache;
    ggml_tensor *const row, *const pos, *const chunk, *const cell_row, *const cell_pos;
};

// All cells, before and after a shift.
class shift_input : public llm_graph_input_i {
public:
    shift_input(const llama_kv_cache & cache, const llama_tq_shift & shift) : cache(cache), shift(shift) {}

    void set_input(const llama_ubatch *) override {
        places before, after;
        for (uint32_t s = 0; s < cache.get_n_stream(); s++) {
            const llama_kv_cells & cells = cache.get_cells((llama_seq_id) s);
            for (uint32_t i = 0; i < cells.size(); i++) {
                const bool empty = cells.is_empty(i);
                const llama_token token = empty ? LLAMA_TOKEN_NULL : cells.ext_get(i).tok;
                after.add(*cache.tq, empty ? -1 : cells.pos_get(i), token);
                before.add(*cache.tq, empty ? -1 : cells.pos_get(i) - cells.get_shift(i), token);
            }
        }
        fill(shift.old_row, before.row);
        fill(shift.old_pos, before.pos);
        fill(shift.new_row, after.row);
        fill(shift.new_pos, after.pos);
    }

    const llama_kv_cache & cache;
    const llama_tq_shift shift;
};

} // namespace

static llama_tq_offsets offsets_of(ggml_context * ctx, llm_graph_result * res, const llama_kv_cache_context & context,
                                   const ggml_tensor * mask, ggml_tensor * query, ggml_tensor ** keys,
                                   const llama_cparams & cparams, int il) {
    const llama_kv_cache & cache = context.get_kv();
    const llama_tq_centring::layer * layer = cache.tq ? cache.tq->find(cache.get_k_storage(il)) : nullptr;
    if (!layer || cparams.training) { // which attends to the keys of the batch, not of the cache
        return {nullptr, query};
    }
    input * in = nullptr;
    for (const auto & other : res->inputs) {
        auto * candidate = dynamic_cast<input *>(other.get());
        in = candidate && &candidate->cache == &cache ? candidate : in;
    }
    if (!in) {
        // A mask may have fewer streams than the keys, in a graph that is only reserved.
        const int64_t n_stream = context.get_k(ctx, il)->ne[3];
        in = static_cast<input *>(res->add_input(
            std::make_unique<input>(ctx, cache, query->ne[2], mask->ne[0], n_stream, cparams.flash_attn)));
    }
    if (*keys) {
        *keys = ggml_sub(ctx, *keys, llama_tq_centring::centres(ctx, *layer, in->row, in->pos));
    }
    return {layer, query, in->chunk, in->cell_row, in->cell_pos};
}

// What RoPE turns, unless a norm comes before, with which ggml-cuda joins it.
static ggml_tensor * before_rope(ggml_tensor * t) {
    return t && t->op == GGML_OP_ROPE && t->src[0]->op != GGML_OP_MUL ? t->src[0] : t;
}

llama_tq_offsets llama_tq_centre(ggml_context * ctx, ggml_cgraph * graph, llm_graph_result * res,
                                 const llama_kv_cache_context * context, const ggml_tensor * mask, ggml_tensor * query,
                                 ggml_tensor ** keys, ggml_tensor * values, const llama_cparams & cparams, int il) {
    if (!llama_tq_is(context->type_k()) && !llama_tq_is(context->type_v())) {
        return {};
    }
    ggml_tensor * const plain = *keys;
    const llama_tq_offsets offsets = offsets_of(ctx, res, *context, mask, query, keys, cparams, il);
    for (ggml_tensor * t : {before_rope(query), values, before_rope(plain), query, *keys}) {
        if (t) {
            ggml_build_forward_expand(graph, t);
        }
    }
    return offsets;
}

static ggml_tensor * by_stream(ggml_context * ctx, ggml_tensor * query, int64_t n_stream) {
    const int64_t n = query->ne[2] / n_stream;
    query = ggml_view_4d(ctx, query, query->ne[0], query->ne[1], n, n_stream, query->nb[1], query->nb[2],
                         query->nb[2] * n, 0);
    return ggml_permute(ctx, query, 0, 2, 1, 3);
}

void llama_tq_attach(ggml_context * ctx, ggml_tensor * op, const llama_tq_offsets * o) {
    if (!o || !o->query) {
        return;
    }
    ggml_tensor * query = by_stream(ctx, o->query, op->src[1]->ne[3]);
    if (!o->layer) {
        op->src[GGML_TQ_SRC_QUERY] = query;
    } else {
        const llama_tq_centring::layer & l = *o->layer;
        ggml_tensor * mean = ggml_view_2d(ctx, l.rows, l.head, l.heads, l.head * sizeof(float), l.rows->nb[1]);
        ggml_tq_set_centre(op, query, mean, l.turns, o->chunk, l.rope.n_dims, l.rope.is_neox());
    }
}

ggml_tensor * llama_tq_add(ggml_context * ctx, ggml_tensor * scores, const llama_tq_offsets * o) {
    if (!o || !o->layer) {
        return scores;
    }
    const llama_tq_centring::layer & l = *o->layer;
    const int64_t n_stream = o->chunk->ne[1];
    ggml_tensor * centres = llama_tq_centring::centres(ctx, l, o->row, o->pos);
    centres = ggml_permute(ctx, ggml_reshape_4d(ctx, centres, l.head, l.heads, o->chunk->ne[0], n_stream), 0, 2, 1, 3);
    return ggml_add(ctx, scores, ggml_mul_mat(ctx, centres, by_stream(ctx, o->query, n_stream)));
}

bool llama_tq_shift::turns(const ggml_tensor * storage) const {
    const llama_tq_centring::layer * l = centring ? centring->find(storage) : nullptr;
    return !l || l->rope.n_dims > 0;
}

llama_tq_shift llama_tq_build_shift(ggml_context * ctx, llm_graph_result * res, const llama_kv_cache & cache) {
    llama_tq_shift shift;
    if (cache.tq) {
        const int64_t n = (int64_t) cache.get_size() * cache.get_n_stream();
        shift = {cache.tq.get(), new_input(ctx, n), new_input(ctx, n), new_input(ctx, n), new_input(ctx, n)};
        res->add_input(std::make_unique<shift_input>(cache, shift));
    }
    return shift;
}

ggml_tensor * llama_tq_shift::restore(ggml_context * ctx, ggml_tensor * keys, const ggml_tensor * storage) const {
    const llama_tq_centring::layer * l = centring ? centring->find(storage) : nullptr;
    return l ? ggml_add(ctx, keys, llama_tq_centring::centres(ctx, *l, old_row, old_pos)) : keys;
}

ggml_tensor * llama_tq_shift::centre(ggml_context * ctx, ggml_tensor * keys, const ggml_tensor * storage) const {
    const llama_tq_centring::layer * l = centring ? centring->find(storage) : nullptr;
    return l ? ggml_sub(ctx, keys, llama_tq_centring::centres(ctx, *l, new_row, new_pos)) : keys;
}
