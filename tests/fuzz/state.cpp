// Damaged states of a TQ cache, restored from memory and from files; afterwards the context decodes, whatever it took.
// LLAMA_TQ_FUZZ_MODEL names a model, LLAMA_TQ_FUZZ_FOLDER a folder for files.
#include "edits.h"
#include "llama.h"

namespace {

constexpr int prompt = 40, front = 512;
const std::string folder = variable("LLAMA_TQ_FUZZ_FOLDER") + "/", file = folder + "damaged";
llama_model * model;
llama_context * context;
bytes whole, sequence, session, slot;

bool decode(int first, int count, llama_seq_id seq) {
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch.token[i] = (first + i) % llama_vocab_n_tokens(llama_model_get_vocab(model));
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i] = i + 1 == count;
    }
    const bool done = llama_decode(context, batch) == 0;
    llama_batch_free(batch);
    return done;
}

void make() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    model = llama_model_load_from_file(variable("LLAMA_TQ_FUZZ_MODEL").c_str(), llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_batch = params.n_ubatch = 64;
    params.n_seq_max = 2;
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = (ggml_type) 1040; // tq4_0
    params.type_v = (ggml_type) 1041; // tq3_0
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context = model ? llama_init_from_model(model, params) : nullptr;
    if (!context || !decode(0, prompt, 0) || !decode(0, prompt / 2, 1)) {
        std::fprintf(stderr, "the model does not decode\n");
        std::exit(2);
    }
    whole.resize(llama_state_get_size(context));
    whole.resize(llama_state_get_data(context, whole.data(), whole.size()));
    sequence.resize(llama_state_seq_get_size(context, 0));
    sequence.resize(llama_state_seq_get_data(context, sequence.data(), sequence.size(), 0));
    const llama_token tokens[3] = {1, 2, 3};
    llama_state_save_file(context, file.c_str(), tokens, 3);
    session = read_file(file);
    llama_state_seq_save_file(context, file.c_str(), 0, tokens, 3);
    slot = read_file(file);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (!model) {
        make();
    }
    if (size < 1) {
        return 0;
    }
    llama_memory_clear(llama_get_memory(context), true);
    const int how = data[0] % 4;
    const bytes damaged = edited(how == 0   ? whole
                                 : how == 1 ? sequence
                                 : how == 2 ? session
                                            : slot,
                                 data + 1, size - 1, front);
    const llama_seq_id seq = data[0] >> 7;
    llama_token tokens[8];
    size_t count = 0;
    if (how == 0) {
        llama_state_set_data(context, damaged.data(), damaged.size());
    } else if (how == 1) {
        llama_state_seq_set_data(context, damaged.data(), damaged.size(), seq);
    } else {
        write_file(file, damaged);
        if (how == 2) {
            llama_state_load_file(context, file.c_str(), tokens, 8, &count);
        } else { // as llama-server does
            if (llama_state_seq_load_file(context, file.c_str(), seq, nullptr, 0, &count) != 0) {
                std::vector<llama_token> all(count ? count : 1);
                llama_state_seq_load_file(context, file.c_str(), seq, all.data(), all.size(), &count);
            }
        }
    }
    for (llama_seq_id s = 0; s < 2; s++) {
        const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(context), s);
        if (last < 1000) {
            decode(last + 1, 1, s);
        }
    }
    return 0;
}
