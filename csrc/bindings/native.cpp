// llama_tq._native: what llama.cpp tells only in C++ (the memory of a context, the mean keys of a model), and its log,
// collected without Python: an interrupt that arrives inside a Python callback is lost.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "aborts.h"
#include "centring/centre.h"
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

template <typename T> const T & at(std::uintptr_t address) {
    if (!address) {
        throw std::invalid_argument("there is nothing at this address: closed, or never made");
    }
    return *reinterpret_cast<const T *>(address);
}

// Main memory that is pinned for a GPU is the CPU's.
std::string device_of(ggml_backend_buffer_type_t type) {
    ggml_backend_dev_t device = ggml_backend_buft_is_host(type) ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)
                                                                : ggml_backend_buft_get_device(type);
    return device ? ggml_backend_dev_name(device) : ggml_backend_buft_name(type);
}

py::list memory_of(std::uintptr_t context) {
    std::map<std::string, llama_memory_breakdown_data> sums;
    const auto parts = llama_get_memory_breakdown(&at<llama_context>(context));
    for (const auto & [type, bytes] : parts) {
        llama_memory_breakdown_data & sum = sums[device_of(type)];
        sum.model += bytes.model;
        sum.context += bytes.context;
        sum.compute += bytes.compute;
    }
    py::list devices;
    for (const auto & [device, sum] : sums) {
        devices.append(py::make_tuple(device, sum.model, sum.context, sum.compute));
    }
    return devices;
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

std::string not_centred(std::uintptr_t model) {
    return llama_tq_not_centred(at<llama_model>(model));
}

py::dict means_of(std::uintptr_t address, int threads) {
    const llama_model & model = at<llama_model>(address);
    std::shared_ptr<const llama_tq_means> means;
    {
        const py::gil_scoped_release release;
        const llama_tq_aborts aborts(true);
        means = llama_tq_means_of(model, threads);
    }
    py::list layers;
    for (const llama_tq_means::layer & layer : means->layers) {
        layers.append(py::dict(py::arg("mean") = py::array_t<float>(layer.mean.size(), layer.mean.data()),
                               py::arg("kv_heads") = layer.kv_heads, py::arg("heads") = layer.heads,
                               py::arg("before") = layer.before, py::arg("after") = layer.after));
    }
    return py::dict(py::arg("layers") = layers, py::arg("first_is_plain") = means->first_is_plain,
                    py::arg("plain_tokens") = means->plain, py::arg("source") = means->source,
                    py::arg("side_file") = llama_tq_side_file(model));
}

} // namespace

PYBIND11_MODULE(_native, module) {
    module.attr("LOG_ERROR") = static_cast<int>(GGML_LOG_LEVEL_ERROR);
    module.def("memory_of", memory_of, py::arg("context"),
               "For each device of the llama_context at this address: its name, and the bytes of weights, cache and "
               "compute buffers there.");
    module.attr("CENTRING_CHUNK") = LLAMA_TQ_CHUNK;
    module.def("centring_on", llama_tq_centring_on, "Whether contexts made from now on centre the keys of TQ caches.");
    module.def("set_centring", llama_tq_set_centring, py::arg("on"),
               "1: on, 0: off, -1: as LLAMA_TQ_CENTRE says. For the whole process.");
    module.def("not_centred", not_centred, py::arg("model"),
               "Why no context of the llama_model at this address centres its keys, or nothing.");
    module.def(
        "means_of", means_of, py::arg("model"), py::arg("threads"),
        "The mean keys of the llama_model at this address: known, read or measured. RuntimeError where the model "
        "cannot read the prompt that shows them. For each layer: mean, float32 (kv heads * head,), zeros for "
        "heads left as they are; heads that are centred; energy of held-out keys before and after.");
    module.def("begin_log", begin_log, "From now on llama.cpp's log is collected instead of going where it went.");
    module.def("end_log", end_log, "Stop, and return what was collected: (level, bytes) per message.");
}
