#include "means.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "centre.h"
#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-model.h"
#include "prompt.h"
#include "rope.h"

bool llama_tq_means::empty() const {
    return std::all_of(layers.begin(), layers.end(), [](const layer & l) { return l.heads == 0; });
}

std::string llama_tq_not_centred(const llama_model & model) {
    const llama_hparams & hparams = model.hparams;
    if (hparams.is_mla() || hparams.n_lora_kv > 0) {
        return "latent attention (MLA): heads have no keys of their own";
    }
    if (hparams.n_pos_per_embd() > 1) {
        return "M-RoPE: a position is more than one number";
    }
    if (model.arch == LLM_ARCH_DFLASH) {
        return "DFlash: a pass of its own stores keys";
    }
    if (llama_model_has_encoder(&model)) {
        return "an encoder: the prompt that shows the mean keys is read by decoders only";
    }
    return "";
}

namespace {

// --- the prompt ---

struct prompt {
    std::vector<llama_token> tokens;
    int text = 0; // tokens of text; the special ones behind them show whether they, too, draw attention
};

prompt make_prompt(const llama_model & model) {
    const llama_vocab * vocab = llama_model_get_vocab(&model);
    const int n_vocab = llama_vocab_n_tokens(vocab), n_train = llama_model_n_ctx_train(&model);
    const int most = n_train > 0 ? std::min(n_train, LLAMA_TQ_PROMPT_TOKENS) : LLAMA_TQ_PROMPT_TOKENS;
    prompt p;
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        for (int i = 0; i < most; i++) {
            p.tokens.push_back((llama_token) (i * 7919LL % std::max(1, n_vocab)));
        }
        p.text = (int) p.tokens.size();
        return p;
    }
    std::vector<llama_token> special;
    for (const llama_token token : {llama_vocab_bos(vocab), llama_vocab_eos(vocab), llama_vocab_eot(vocab),
                                    llama_vocab_sep(vocab), llama_vocab_pad(vocab)}) {
        if (token >= 0 && token < n_vocab && std::find(special.begin(), special.end(), token) == special.end()) {
            special.push_back(token);
        }
    }
    const std::string text = LLAMA_TQ_PROMPT;
    p.tokens.resize(text.size() + 8);
    const int n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), p.tokens.data(), (int32_t) p.tokens.size(),
                                 /*add_special =*/true, /*parse_special =*/false);
    p.text = std::min(std::max(n, 0), std::max(0, most - (int) special.size()));
    p.tokens.resize((size_t) p.text);
    p.tokens.insert(p.tokens.end(), special.begin(), special.end());
    return p;
}

// --- the graph ---

// Sees what is stored in each K cache, and whether RoPE turns it on its way from the projection. Hyperparameters do not
// say so of models that leave out every fourth layer, for example.
struct watcher {
    std::map<const ggml_tensor *, bool> turned; // by storage

    static bool look(ggml_tensor * node, bool ask, void * data) {
        if (ask && node->op == GGML_OP_SET_ROWS) {
            const ggml_tensor * t = node->src[0];
            while (t && t->op != GGML_OP_ROPE && t->op != GGML_OP_MUL_MAT && t->op != GGML_OP_NONE) {
                t = t->src[0];
            }
            if (t && t->op != GGML_OP_NONE) { // otherwise it comes from another device, whose graph is another
                static_cast<watcher *>(data)->turned[node->view_src] = t->op == GGML_OP_ROPE;
            }
        }
        return !ask; // nothing is asked for
    }
};

// --- what the model's keys are ---

// The keys of one layer, by position: after RoPE as the cache holds them, and before.
struct keys {
    int heads, head, n;
    std::vector<float> turned, plain; // [n][heads][head]
    std::vector<float> turns;         // of RoPE at the positions from 0 on, [at least n and a chunk][head]
    std::vector<float> mean_turn;     // [head], see llama_tq_mean_turn

    const float * at(const std::vector<float> & x, int pos, int h) const {
        return x.data() + ((size_t) pos * heads + h) * head;
    }
};

keys read_keys(const llama_model & model, const llama_tq_rope & rope, const llama_kv_cache & cache, int il, int n) {
    keys k = {(int) model.hparams.n_head_kv(il), (int) model.hparams.n_embd_head_k(il), n, {}, {}, {}, {}};
    const ggml_tensor * storage = cache.get_k_storage(il);
    const llama_kv_cells & cells = cache.get_cells(0);
    const size_t width = (size_t) k.heads * k.head;
    std::vector<ggml_fp16_t> row(width);
    k.turned.assign(width * n, 0.0f);
    for (uint32_t i = 0; i < cells.size(); i++) {
        if (!cells.is_empty(i) && cells.pos_get(i) < n) {
            ggml_backend_tensor_get(storage, row.data(), i * storage->nb[1], width * sizeof(ggml_fp16_t));
            ggml_fp16_to_fp32_row(row.data(), k.turned.data() + (size_t) cells.pos_get(i) * width, (int64_t) width);
        }
    }

    std::vector<int32_t> positions(std::max(n, LLAMA_TQ_CHUNK));
    std::iota(positions.begin(), positions.end(), 0);
    k.turns = rope.turns(k.head, positions);
    k.mean_turn = llama_tq_mean_turn(rope, k.head, k.turns);
    k.plain = k.turned;
    for (int p = 0; p < n; p++) {
        const float * t = k.turns.data() + (size_t) p * k.head;
        for (int h = 0; h < k.heads; h++) {
            float * u = k.plain.data() + ((size_t) p * k.heads + h) * k.head;
            for (int f = 0; f < rope.n_dims / 2; f++) {
                const int x = rope.first(f), y = rope.second(f);
                const float square = t[x] * t[x] + t[y] * t[y], a = u[x], b = u[y];
                u[x] = (a * t[x] + b * t[y]) / square;
                u[y] = (b * t[x] - a * t[y]) / square;
            }
        }
    }
    return k;
}

// The centres of all positions' chunks for a mean: it turned by a chunk's mean turn, then to where each chunk begins.
class centres {
public:
    centres(const keys & k, const llama_tq_rope & rope, const float * mean) : head(k.head) {
        const int chunks = (k.n + LLAMA_TQ_CHUNK - 1) / LLAMA_TQ_CHUNK;
        std::vector<float> common((size_t) head);
        values.resize((size_t) chunks * head);
        llama_tq_turn(rope, head, mean, k.mean_turn.data(), common.data());
        for (int c = 0; c < chunks; c++) {
            const float * start = k.turns.data() + (size_t) c * LLAMA_TQ_CHUNK * head;
            llama_tq_turn(rope, head, common.data(), start, values.data() + (size_t) c * head);
        }
    }

    const float * at(int pos) const { return values.data() + (size_t) (pos / LLAMA_TQ_CHUNK) * head; }

private:
    int head;
    std::vector<float> values; // [chunks][head]
};

float square_distance(const float * a, const float * b, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) {
        const float d = a[i] - (b ? b[i] : 0.0f);
        sum += d * d;
    }
    return sum;
}

std::vector<float> mean_of(const keys & k, int h, int begin, int end) {
    std::vector<double> sum((size_t) k.head, 0.0);
    for (int p = begin; p < end; p++) {
        const float * u = k.at(k.plain, p, h);
        for (int i = 0; i < k.head; i++) {
            sum[i] += u[i];
        }
    }
    std::vector<float> mean((size_t) k.head);
    for (int i = 0; i < k.head; i++) {
        mean[i] = (float) (sum[i] / std::max(1, end - begin));
    }
    return mean;
}

// Position 0 is left out. Each half of the text judges the mean of the other: how much of it to believe, and whether
// it makes the stored keys shorter at all.
llama_tq_means::layer measure_layer(const keys & k, const llama_tq_rope & rope, int text) {
    llama_tq_means::layer layer;
    layer.mean.assign((size_t) k.heads * k.head, 0.0f);
    const int middle = 1 + (text - 1) / 2;
    const int halves[3] = {1, middle, text};
    for (int h = 0; h < k.heads; h++) {
        const std::vector<float> half[2] = {mean_of(k, h, halves[0], halves[1]), mean_of(k, h, halves[1], halves[2])};
        double dot = 0, square = 0;
        for (int i = 0; i < k.head; i++) {
            dot += (double) half[0][i] * half[1][i];
            square += 0.5 * ((double) half[0][i] * half[0][i] + (double) half[1][i] * half[1][i]);
        }
        const float belief = square > 0 ? (float) std::clamp(dot / square, 0.0, 1.0) : 0.0f;
        float before = 0, after = 0;
        for (int side = 0; side < 2; side++) {
            std::vector<float> other = half[1 - side];
            for (float & x : other) {
                x *= belief;
            }
            const centres centre(k, rope, other.data());
            for (int p = halves[side]; p < halves[side + 1]; p++) {
                before += square_distance(k.at(k.turned, p, h), nullptr, k.head);
                after += square_distance(k.at(k.turned, p, h), centre.at(p), k.head);
            }
        }
        const bool pays = std::isfinite(before) && after < before;
        layer.before += before;
        layer.after += pays ? after : before;
        if (pays) {
            layer.heads++;
            const std::vector<float> mean = mean_of(k, h, 1, text);
            for (int i = 0; i < k.head; i++) {
                layer.mean[(size_t) h * k.head + i] = belief * mean[i];
            }
        }
    }
    return layer;
}

// Adds, for every position, the logarithm of what centring does to the length of its keys, over the centred heads.
void judge_positions(const keys & k, const llama_tq_rope & rope, const llama_tq_means::layer & layer,
                     std::vector<double> & change) {
    for (int h = 0; h < k.heads; h++) {
        const float * mean = layer.mean.data() + (size_t) h * k.head;
        if (square_distance(mean, nullptr, k.head) == 0.0f) {
            continue;
        }
        const centres centre(k, rope, mean);
        for (int p = 0; p < k.n; p++) {
            const float * key = k.at(k.turned, p, h);
            const double after = square_distance(key, centre.at(p), k.head),
                         before = square_distance(key, nullptr, k.head);
            change[p] += std::log((after + 1e-30) / (before + 1e-30));
        }
    }
}

// A prefill of the prompt. Throws std::runtime_error where the model cannot read it.
llama_tq_means measure(const llama_model & model, int n_threads) {
    const prompt text = make_prompt(model);
    const int n = (int) text.tokens.size();
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = LLAMA_TQ_PROMPT_TOKENS;
    params.n_threads = params.n_threads_batch = n_threads;
    params.type_k = params.type_v = GGML_TYPE_F16;
    watcher watched;
    params.cb_eval = watcher::look;
    params.cb_eval_user_data = &watched;
    const llama_context_ptr ctx(llama_init_from_model(const_cast<llama_model *>(&model), params));
    if (!ctx) {
        throw std::runtime_error("no context for measuring the mean keys");
    }
    llama_tq_means means;
    means.source = "measured";
    means.layers.resize(model.hparams.n_layer_all);
    const std::vector<llama_kv_cache *> caches = llama_tq_caches(llama_get_memory(ctx.get()));
    if (caches.empty() || text.text < 8) {
        return means;
    }
    std::vector<llama_token> tokens = text.tokens;
    if (llama_decode(ctx.get(), llama_batch_get_one(tokens.data(), n)) != 0) {
        throw std::runtime_error("the model could not read the prompt that shows its mean keys");
    }
    llama_synchronize(ctx.get());

    std::vector<double> change((size_t) n, 0.0);
    for (const llama_kv_cache * cache : caches) {
        for (const uint32_t il : cache->get_layer_ids()) {
            const auto seen = watched.turned.find(cache->get_k_storage((int) il));
            const bool turned = seen == watched.turned.end() || seen->second;
            const llama_tq_rope rope(model, ctx->get_cparams(), (int) il, turned);
            const keys k = read_keys(model, rope, *cache, (int) il, n);
            means.layers[il] = measure_layer(k, rope, text.text);
            means.layers[il].turned = turned;
            means.layers[il].kv_heads = k.heads;
            judge_positions(k, rope, means.layers[il], change);
        }
    }

    // What centring makes longer on average draws attention: its key is small, and must not drown in noise.
    means.first_is_plain = change[0] > 0;
    std::map<llama_token, double> shortest;
    for (int p = 1; p < n; p++) {
        const auto it = shortest.emplace(tokens[p], change[p]).first;
        it->second = std::min(it->second, change[p]);
    }
    for (const auto & [token, least] : shortest) {
        if (least > 0) {
            means.plain.push_back(token);
        }
    }
    return means;
}

} // namespace

std::shared_ptr<const llama_tq_means> llama_tq_means_of(const llama_model & model, int n_threads) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    if (model.tq_means) {
        return model.tq_means;
    }
    const std::string path = llama_tq_side_file(model);
    std::shared_ptr<llama_tq_means> means = llama_tq_load_side_file(path, model);
    if (!means) {
        LLAMA_LOG_INFO("%s: reading %d tokens to measure the mean keys of the model\n", __func__,
                       LLAMA_TQ_PROMPT_TOKENS);
        means = std::make_shared<llama_tq_means>(measure(model, n_threads));
        const std::string reason = llama_tq_save_side_file(path, *means);
        if (!reason.empty()) {
            LLAMA_LOG_WARN("%s: the mean keys will be measured again at the next start: %s; name a folder that can be "
                           "written in LLAMA_CACHE, or write them into the model with `llama-tq centre`\n",
                           __func__, reason.c_str());
        }
    }
    model.tq_means = means;
    return means;
}
