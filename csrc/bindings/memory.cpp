// llama_tq._memory: the memory of a context, which llama.cpp knows exactly but tells only in C++.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "llama-ext.h"

PYBIND11_MODULE(_memory, module) {
    module.def(
        "breakdown",
        [](std::uintptr_t context) {
            llama_memory_breakdown_data sum;
            for (const auto & [buffer_type, bytes] :
                 llama_get_memory_breakdown(reinterpret_cast<const llama_context *>(context))) {
                sum.model += bytes.model;
                sum.context += bytes.context;
                sum.compute += bytes.compute;
            }
            return pybind11::make_tuple(sum.model, sum.context, sum.compute);
        },
        pybind11::arg("context"),
        "Bytes of weights, cache and compute buffers of the llama_context at this address, over all devices.");
}
