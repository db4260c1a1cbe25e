// llama_tq._core: tq.h for NumPy arrays. Arguments are checked in Python (llama_tq/_api.py); what would corrupt memory
// is checked here once more.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "attention.h"
#include "tq.h"
#include "tq_blocks.h"

namespace py = pybind11;

namespace {

template <typename T> using array = py::array_t<T, py::array::c_style>;

constexpr int64_t values_per_thread = 1 << 16; // below, a thread costs more than it brings

// Calls work(first, last) for parts of [0, count), in up to `threads` threads, without the GIL.
template <typename Work> void parallel(int64_t count, int64_t values, int threads, const Work & work) {
    const py::gil_scoped_release release;
    const int64_t parts = std::clamp<int64_t>(values / values_per_thread, 1, std::min<int64_t>(threads, count));
    std::vector<std::thread> helpers;
    int64_t first = 0;
    for (int64_t i = 1; i < parts; i++) {
        const int64_t last = count * i / parts;
        try {
            helpers.emplace_back(work, first, last);
        } catch (const std::system_error &) { // no more threads
            break;
        }
        first = last;
    }
    work(first, count);
    for (std::thread & helper : helpers) {
        helper.join();
    }
}

void require(bool condition, const char * what) {
    if (!condition) {
        throw std::invalid_argument(what);
    }
}

tq_type checked_type(int type) {
    require(tq_type_info(type) != nullptr, "no such type");
    return static_cast<tq_type>(type);
}

// Rows are blocks one after the other, so that arrays of any shape are one long row.

void quantize(int type, const array<float> & x, array<uint8_t> & y, int threads) {
    const tq_type t = checked_type(type);
    const int64_t blocks = x.size() / TQ_BLOCK, bytes = static_cast<int64_t>(tq_type_info(t)->block_bytes);
    require(x.size() == blocks * TQ_BLOCK && y.size() == blocks * bytes, "sizes do not match");
    const float * from = x.data();
    uint8_t * to = y.mutable_data();
    parallel(blocks, x.size(), threads, [=](int64_t first, int64_t last) {
        tq_quantize_row(t, from + first * TQ_BLOCK, to + first * bytes, (last - first) * TQ_BLOCK);
    });
}

void dequantize(int type, const array<uint8_t> & x, array<float> & y, int threads) {
    const tq_type t = checked_type(type);
    const int64_t blocks = y.size() / TQ_BLOCK, bytes = static_cast<int64_t>(tq_type_info(t)->block_bytes);
    require(y.size() == blocks * TQ_BLOCK && x.size() == blocks * bytes, "sizes do not match");
    const uint8_t * from = x.data();
    float * to = y.mutable_data();
    parallel(blocks, y.size(), threads, [=](int64_t first, int64_t last) {
        tq_dequantize_row(t, from + first * bytes, to + first * TQ_BLOCK, (last - first) * TQ_BLOCK);
    });
}

void dot(int type, const array<uint8_t> & x, const array<float> & y, array<float> & result, int threads) {
    const tq_type t = checked_type(type);
    const int64_t n = y.size(), rows = result.size();
    const int64_t bytes = n / TQ_BLOCK * static_cast<int64_t>(tq_type_info(t)->block_bytes);
    require(n % TQ_BLOCK == 0 && x.size() == rows * bytes, "sizes do not match");
    std::vector<tq_block_q8_0> activations(static_cast<size_t>(n / TQ_BLOCK));
    tq_quantize_row_q8_0(y.data(), activations.data(), n);
    const uint8_t * from = x.data();
    float * to = result.mutable_data();
    parallel(rows, rows * n, threads, [=, &activations](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            to[row] = tq_vec_dot(t, from + row * bytes, activations.data(), n);
        }
    });
}

// --- types and tiers, by name ---

std::vector<std::string> types() {
    std::vector<std::string> names;
    for (int type = 0; type < TQ_TYPE_COUNT; type++) {
        names.emplace_back(tq_type_info(type)->name);
    }
    return names;
}

std::vector<std::string> isas(bool supported_only) {
    std::vector<std::string> names;
    for (int isa = 0; isa < TQ_ISA_COUNT; isa++) {
        if (!supported_only || tq_isa_supported(static_cast<tq_isa>(isa))) {
            names.emplace_back(tq_isa_name(isa));
        }
    }
    return names;
}

bool force_isa(const std::string & name) {
    for (int isa = 0; isa < TQ_ISA_COUNT; isa++) {
        if (name == tq_isa_name(isa)) {
            return tq_force_isa(static_cast<tq_isa>(isa));
        }
    }
    return false;
}

// (type, operation, tier, the tier whose code it runs, or None where the build lacks the tier)
py::list kernels() {
    py::list all;
    for (int type = 0; type < TQ_TYPE_COUNT; type++) {
        for (int op = 0; op < TQ_OP_COUNT; op++) {
            for (int isa = 0; isa < TQ_ISA_COUNT; isa++) {
                const int code =
                    tq_kernel_isa(static_cast<tq_isa>(isa), static_cast<tq_op>(op), static_cast<tq_type>(type));
                all.append(
                    py::make_tuple(tq_type_info(type)->name, tq_op_name(op), tq_isa_name(isa), tq_isa_name(code)));
            }
        }
    }
    return all;
}

} // namespace

PYBIND11_MODULE(_core, m) {
    if (const char * error = tq_isa_error()) {
        throw py::import_error(error);
    }
    m.def("quantize", &quantize, py::arg("type"), py::arg("x").noconvert(), py::arg("y").noconvert(),
          py::arg("threads"));
    m.def("dequantize", &dequantize, py::arg("type"), py::arg("x").noconvert(), py::arg("y").noconvert(),
          py::arg("threads"));
    m.def("dot", &dot, py::arg("type"), py::arg("x").noconvert(), py::arg("y").noconvert(),
          py::arg("result").noconvert(), py::arg("threads"));
    bind_attention(m);
    m.def("types", &types);
    m.def("isas", [] { return isas(false); });
    m.def("supported_isas", [] { return isas(true); });
    m.def("active_isa", [] { return tq_isa_name(tq_isa_active()); });
    m.def("force_isa", &force_isa);
    m.def("kernels", &kernels);
}
