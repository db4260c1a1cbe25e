#include "aborts.h"

#include <cstdio>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "ggml.h"

namespace {

thread_local bool throws = false;
thread_local std::string failure;

void throw_or_tell(const char * message) {
    if (throws) {
        throw std::runtime_error(message);
    }
    std::fprintf(stderr, "%s\n", message);
}

template <typename A> const char * const object = nullptr;
template <> const char * const object<llama_context> = "context";
template <> const char * const object<llama_model> = "model";
template <> const char * const object<llama_vocab> = "vocabulary";
template <> const char * const object<llama_sampler> = "sampler";

// What a function works on has to be there.
template <typename A> void require(A argument) {
    if constexpr (std::is_pointer_v<A>) {
        using type = std::remove_cv_t<std::remove_pointer_t<A>>;
        if (object<type> && !argument) {
            throw std::invalid_argument(std::string("the ") + object<type> + " is NULL: closed, or never made");
        }
    }
}

// What a function needs: its arguments, and what upstream takes for granted.
template <auto function, typename... A> void check(A... arguments) {
    (require(arguments), ...);
}

template <> void check<llama_set_sampler>(llama_context * context, llama_seq_id, llama_sampler *) { // NULL: none
    require(context);
}

template <> void check<llama_decode>(llama_context * context, llama_batch batch) {
    require(context);
    if (batch.n_tokens > 0 && !batch.token && !batch.embd) {
        throw std::invalid_argument("the batch has neither tokens nor embeddings");
    }
}

template <> void check<llama_encode>(llama_context * context, llama_batch batch) {
    check<llama_decode>(context, batch);
    if (llama_get_memory(context) && !llama_model_has_encoder(llama_get_model(context))) {
        throw std::invalid_argument("the model has no encoder");
    }
}

template <> void check<llama_memory_seq_div>(llama_memory_t, llama_seq_id, llama_pos, llama_pos, int divisor) {
    if (divisor == 0) {
        throw std::invalid_argument("positions cannot be divided by 0");
    }
}

template <> void check<llama_batch_init>(int32_t tokens, int32_t embd, int32_t sequences) {
    if (tokens < 0 || embd < 0 || sequences < 0) {
        throw std::invalid_argument("a batch cannot be of " + std::to_string(tokens) + " tokens, " +
                                    std::to_string(embd) + " values or " + std::to_string(sequences) + " sequences");
    }
}

template <> void check<llama_vocab_is_control>(const llama_vocab * vocab, llama_token token) {
    require(vocab);
    if (token < 0 || token >= llama_vocab_n_tokens(vocab)) {
        throw std::out_of_range("there is no token " + std::to_string(token));
    }
}

template <> void check<llama_token_is_control>(const llama_vocab * vocab, llama_token token) {
    check<llama_vocab_is_control>(vocab, token);
}

template <auto function> struct guarded;
template <typename R, typename... A, R (*function)(A...)> struct guarded<function> {
    static R call(A... arguments) {
        const llama_tq_aborts aborts(true);
        try {
            check<function>(arguments...);
            return function(arguments...);
        } catch (const std::exception & error) {
            failure = error.what();
            return R();
        }
    }
};

} // namespace

llama_tq_aborts::llama_tq_aborts(bool thrown) : before(throws) {
    static const ggml_abort_callback_t set = (ggml_set_abort_callback(throw_or_tell), throw_or_tell);
    (void) set;
    throws = thrown;
}

llama_tq_aborts::~llama_tq_aborts() {
    throws = before;
}

void * llama_tq_guarded(const char * name) {
    static const std::map<std::string, void *> functions = {
#define TQ_GUARDED(function) {#function, reinterpret_cast<void *>(guarded<function>::call)},
#include "tq_guarded.inc" // of every function that the bindings declare, by CMakeLists.txt
#undef TQ_GUARDED
    };
    const auto found = functions.find(name);
    return found == functions.end() ? nullptr : found->second;
}

const char * llama_tq_failure() {
    thread_local std::string told;
    told = std::exchange(failure, {});
    return told.empty() ? nullptr : told.c_str();
}
