// What ggml ends a process for, and what C++ throws, as errors of the functions that Python calls.
#pragma once

#include "llama.h"

// While it lives, what ggml would end the process for in this thread is thrown (std::runtime_error), or is not thrown.
// Between the abort and whoever catches there may be C++ and plain C, but no threads that wait for this one.
class LLAMA_API llama_tq_aborts {
public:
    explicit llama_tq_aborts(bool thrown);
    ~llama_tq_aborts();
    llama_tq_aborts(const llama_tq_aborts &) = delete;
    llama_tq_aborts & operator=(const llama_tq_aborts &) = delete;

private:
    const bool before;
};

extern "C" {
// The function of llama.h with that name behind one of the same type that lets no exception out and throws what aborts;
// NULL for others. After it failed it has returned zeros.
LLAMA_API void * llama_tq_guarded(const char * name);
// Why a guarded function of this thread failed since the last question, or NULL.
LLAMA_API const char * llama_tq_failure();
}
