// llama_tq._native: what llama.cpp tells only in C++ (the memory of a context), and its log, collected without Python:
// an interrupt that arrives inside a Python callback is lost.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "llama-ext.h"

namespace py = pybind11;

namespace {

struct {
    std::mutex mutex; // backends may log from threads of their own
    std::vector<std::pair<int, std::string>> lines;
    ggml_log_callback previous = nullptr;
    void * previous_data = nullptr;
} collected;

void collect(ggml_log_level level, const char * text, void *) {
    const std::lock_guard<std::mutex> lock(collected.mutex);
    if (level == GGML_LOG_LEVEL_CONT && !collected.lines.empty()) {
        collected.lines.back().second += text;
    } else {
        collected.lines.emplace_back(level, text);
    }
}

py::tuple memory_of(std::uintptr_t context) {
    llama_memory_breakdown_data sum;
    const auto parts = llama_get_memory_breakdown(reinterpret_cast<const llama_context *>(context));
    for (const auto & [buffer_type, bytes] : parts) {
        sum.model += bytes.model;
        sum.context += bytes.context;
        sum.compute += bytes.compute;
    }
    return py::make_tuple(sum.model, sum.context, sum.compute);
}

void begin_log() {
    llama_log_get(&collected.previous, &collected.previous_data);
    llama_log_set(collect, nullptr);
}

py::list end_log() {
    llama_log_set(collected.previous, collected.previous_data);
    const std::lock_guard<std::mutex> lock(collected.mutex);
    py::list lines;
    for (const auto & [level, text] : collected.lines) {
        lines.append(py::make_tuple(level, py::bytes(text)));
    }
    collected.lines.clear();
    return lines;
}

} // namespace

PYBIND11_MODULE(_native, module) {
    module.attr("LOG_ERROR") = static_cast<int>(GGML_LOG_LEVEL_ERROR);
    module.def("memory_of", memory_of, py::arg("context"),
               "Bytes of weights, cache and compute buffers of the llama_context at this address, over all devices.");
    module.def("begin_log", begin_log, "From now on llama.cpp's log is collected instead of going where it went.");
    module.def("end_log", end_log, "Stop, and return what was collected: (level, bytes) per message.");
}
