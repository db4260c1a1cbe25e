// Damaged model files, planned as `llama-tq plan` does, and damaged side files with the means of a model's keys.
// LLAMA_TQ_FUZZ_MODEL names a model with its means inside, LLAMA_TQ_FUZZ_MEASURED one without, LLAMA_TQ_FUZZ_SIDE its
// side file in the folder that LLAMA_CACHE names, LLAMA_TQ_FUZZ_FOLDER a folder for files.
#include "aborts.h"
#include "edits.h"
#include "llama.h"

namespace {

constexpr int front = 4096;
const std::string path = variable("LLAMA_TQ_FUZZ_MODEL"), measured = variable("LLAMA_TQ_FUZZ_MEASURED");
const std::string side = variable("LLAMA_TQ_FUZZ_SIDE");
const std::string file = variable("LLAMA_TQ_FUZZ_FOLDER") + "/damaged.gguf";
bytes good_model, good_side;

void open(const std::string & from, bool weights) {
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t none[] = {nullptr};
    params.devices = none;
    params.no_alloc = !weights;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(from.c_str(), params);
    for (const int type : {1, 1040}) { // f16, tq4_0
        llama_context_params how = llama_context_default_params();
        how.n_ctx = 256;
        how.n_threads = how.n_threads_batch = 1;
        how.type_k = how.type_v = (ggml_type) type;
        how.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        llama_context * context = model ? llama_init_from_model(model, how) : nullptr;
        if (context) {
            llama_free(context);
        }
    }
    if (model) {
        llama_model_free(model);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (good_model.empty()) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_backend_init();
        static const llama_tq_aborts aborts(true);
        good_model = read_file(path);
        good_side = read_file(side);
    }
    if (size < 1) {
        return 0;
    }
    if (data[0] % 4 == 0) {
        write_file(side, edited(good_side, data + 1, size - 1, front));
        open(measured, true);
    } else {
        write_file(file, edited(good_model, data + 1, size - 1, front));
        open(file, data[0] % 4 == 1);
    }
    return 0;
}
