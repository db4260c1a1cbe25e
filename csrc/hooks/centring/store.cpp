#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#ifdef _WIN32
#    include <process.h>
#    define getpid _getpid
#else
#    include <unistd.h>
#endif

#include "ggml-backend.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "means.h"

namespace {

constexpr uint32_t version = 1; // of what is stored: the keys below, and how means are measured
const char * const key_version = "tq.centre.version";
const char * const key_first = "tq.centre.first_is_plain";
const char * const key_plain = "tq.centre.plain_tokens";
const char * const key_turned = "tq.centre.turned";
const char * const key_heads = "tq.centre.heads";
const char * const key_before = "tq.centre.energy_before";
const char * const key_after = "tq.centre.energy_after";

std::string key_mean(size_t il) {
    return format("tq.centre.mean.%zu", il);
}

template <typename T>
bool read_array(const gguf_context * gguf, const std::string & key, gguf_type type, std::vector<T> & out) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(gguf, id) != type) {
        return false;
    }
    const T * data = static_cast<const T *>(gguf_get_arr_data(gguf, id));
    out.assign(data, data + gguf_get_arr_n(gguf, id));
    return true;
}

// FNV-1a, 64 bits
struct digest {
    uint64_t value = 0xcbf29ce484222325;

    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; i++) {
            value = (value ^ static_cast<const unsigned char *>(data)[i]) * 0x100000001b3;
        }
    }
    void add(const std::string & s) { add(s.c_str(), s.size() + 1); }
};

// Whether the bytes of a tensor lie in the memory of this process. Of what it has put in another order for the CPU
// (repacked, for AMX) ggml says no, since nothing can get it back.
bool is_here(const ggml_tensor * tensor) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(tensor->buffer));
    return ggml_backend_buffer_is_host(tensor->buffer) ||
           (device && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU);
}

// Bytes of a tensor, in the order in which they lie.
void read(const ggml_tensor * tensor, size_t offset, size_t size, char * out) {
    if (is_here(tensor)) {
        std::memcpy(out, static_cast<const char *>(tensor->data) + offset, size);
    } else {
        ggml_backend_tensor_get(tensor, out, offset, size);
    }
}

std::filesystem::path user_cache() {
    const auto variable = [](const char * name) -> std::filesystem::path {
        const char * value = std::getenv(name);
        return value ? value : "";
    };
#if defined(_WIN32)
    const std::filesystem::path base = variable("LOCALAPPDATA");
#elif defined(__APPLE__)
    const std::filesystem::path base = variable("HOME").empty() ? "" : variable("HOME") / "Library" / "Caches";
#else
    const std::filesystem::path home = variable("HOME"), xdg = variable("XDG_CACHE_HOME");
    const std::filesystem::path base = !xdg.empty() ? xdg : home.empty() ? "" : home / ".cache";
#endif
    const std::filesystem::path named = variable("LLAMA_CACHE"), parent = named.empty() ? base : named;
    return parent.empty() ? "" : parent / "llama-tq";
}

} // namespace

void llama_tq_write_means(gguf_context * gguf, const llama_tq_means & means) {
    std::vector<int32_t> heads, turned;
    std::vector<float> before, after;
    for (size_t il = 0; il < means.layers.size(); il++) {
        const llama_tq_means::layer & layer = means.layers[il];
        heads.push_back(layer.heads);
        turned.push_back(layer.turned);
        before.push_back(layer.before);
        after.push_back(layer.after);
        if (!layer.mean.empty()) {
            gguf_set_arr_data(gguf, key_mean(il).c_str(), GGUF_TYPE_FLOAT32, layer.mean.data(), layer.mean.size());
        }
    }
    gguf_set_val_u32(gguf, key_version, version);
    gguf_set_val_bool(gguf, key_first, means.first_is_plain);
    if (!means.plain.empty()) { // not everything reads empty arrays
        gguf_set_arr_data(gguf, key_plain, GGUF_TYPE_INT32, means.plain.data(), means.plain.size());
    }
    gguf_set_arr_data(gguf, key_turned, GGUF_TYPE_INT32, turned.data(), turned.size());
    gguf_set_arr_data(gguf, key_heads, GGUF_TYPE_INT32, heads.data(), heads.size());
    gguf_set_arr_data(gguf, key_before, GGUF_TYPE_FLOAT32, before.data(), before.size());
    gguf_set_arr_data(gguf, key_after, GGUF_TYPE_FLOAT32, after.data(), after.size());
}

std::shared_ptr<llama_tq_means> llama_tq_read_means(const gguf_context * gguf, const llama_model & model) {
    const int64_t id = gguf_find_key(gguf, key_version), first = gguf_find_key(gguf, key_first);
    if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_UINT32 || gguf_get_val_u32(gguf, id) != version ||
        first < 0 || gguf_get_kv_type(gguf, first) != GGUF_TYPE_BOOL) {
        return nullptr;
    }
    const auto means = std::make_shared<llama_tq_means>();
    const size_t n_layer = model.hparams.n_layer_all;
    std::vector<int32_t> heads, turned;
    std::vector<float> before, after;
    means->first_is_plain = gguf_get_val_bool(gguf, first);
    if ((gguf_find_key(gguf, key_plain) >= 0 && !read_array(gguf, key_plain, GGUF_TYPE_INT32, means->plain)) ||
        !read_array(gguf, key_heads, GGUF_TYPE_INT32, heads) ||
        !read_array(gguf, key_turned, GGUF_TYPE_INT32, turned) || turned.size() != n_layer ||
        !read_array(gguf, key_before, GGUF_TYPE_FLOAT32, before) ||
        !read_array(gguf, key_after, GGUF_TYPE_FLOAT32, after) || heads.size() != n_layer || before.size() != n_layer ||
        after.size() != n_layer) {
        return nullptr;
    }
    means->layers.resize(n_layer);
    for (size_t il = 0; il < n_layer; il++) {
        llama_tq_means::layer & layer = means->layers[il];
        layer.heads = heads[il];
        layer.turned = turned[il] != 0;
        layer.before = before[il];
        layer.after = after[il];
        layer.kv_heads = layer.before > 0 ? (int) model.hparams.n_head_kv((uint32_t) il) : 0;
        const size_t size = (size_t) model.hparams.n_embd_k_gqa((uint32_t) il);
        if (layer.heads > 0 &&
            (!read_array(gguf, key_mean(il), GGUF_TYPE_FLOAT32, layer.mean) || layer.mean.size() != size)) {
            return nullptr;
        }
        for (const float x : layer.mean) {
            if (!std::isfinite(x)) {
                return nullptr;
            }
        }
    }
    return means;
}

std::string llama_tq_side_file(const llama_model & model) {
    const std::filesystem::path folder = user_cache();
    if (folder.empty()) {
        return "";
    }
    digest d;
    d.add(llm_arch_name(model.arch)); // which may do other things with tensors of the same names
    for (uint32_t il = 0; il < model.hparams.n_layer_all; il++) {
        d.add(model.hparams.has_rope(il) ? "rope" : "");
    }
    for (const auto & [name, tensor] : model.tensors_by_name) {
        d.add(name);
        d.add(ggml_type_name(tensor->type));
        d.add(tensor->ne, sizeof(tensor->ne));
        // 64 bytes from each quarter: all of a model would take seconds to read, and models that differ do so
        // everywhere
        const size_t size = ggml_nbytes(tensor), piece = std::min<size_t>(64, size);
        char bytes[64];
        for (size_t quarter = 0; quarter < 4 && tensor->buffer && !model.hparams.no_alloc; quarter++) {
            read(tensor, (size - piece) / 3 * quarter, piece, bytes);
            d.add(bytes, piece);
        }
    }
    return (folder / format("%016llx.centre.gguf", (unsigned long long) d.value)).string();
}

std::shared_ptr<llama_tq_means> llama_tq_load_side_file(const std::string & path, const llama_model & model) {
    std::error_code error;
    if (path.empty() || !std::filesystem::is_regular_file(path, error)) {
        return nullptr;
    }
    const gguf_context_ptr gguf(gguf_init_from_file(path.c_str(), {/*.no_alloc =*/true, /*.ctx =*/nullptr}));
    const auto means = gguf ? llama_tq_read_means(gguf.get(), model) : nullptr;
    if (means) {
        means->source = path;
    } else {
        LLAMA_LOG_WARN("%s: %s is damaged or of another version; measuring again\n", __func__, path.c_str());
    }
    return means;
}

std::string llama_tq_save_side_file(const std::string & path, const llama_tq_means & means) {
    if (path.empty()) {
        return "no cache folder is known: neither LLAMA_CACHE nor a home is set";
    }
    std::error_code error;
    const std::filesystem::path target(path), folder = target.parent_path();
    std::filesystem::create_directories(folder, error);
    const gguf_context_ptr gguf(gguf_init_empty());
    llama_tq_write_means(gguf.get(), means);
    const std::filesystem::path draft = target.string() + format(".%d", (int) getpid());
    if (!gguf_write_to_file(gguf.get(), draft.string().c_str(), /*only_meta =*/true)) {
        std::filesystem::remove(draft, error);
        return format("%s cannot be written", draft.string().c_str());
    }
    std::filesystem::rename(draft, target, error);
    if (error) {
        const std::string reason = error.message();
        std::filesystem::remove(draft, error);
        return format("%s cannot be written: %s", path.c_str(), reason.c_str());
    }
    return "";
}
