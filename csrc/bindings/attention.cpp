#include "attention.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/attention/attention.h"

namespace py = pybind11;

namespace {

// Arguments are checked in Python (llama_tq/hf); what would corrupt memory is checked here once more.
void require(bool condition, const char * what) {
    if (!condition) {
        throw std::invalid_argument(what);
    }
}

// [stream][head][row][value]: any strides, but values lie one after the other.
void require_layout(const py::array & x, char kind, py::ssize_t size, const char * what) {
    require(x.ndim() == 4 && x.dtype().kind() == kind && x.itemsize() == size && x.strides(3) == size, what);
    for (int i = 0; i < 3; i++) {
        require(x.strides(i) >= 0, what);
    }
}

size_t stride(const py::array & x, int dimension) {
    return static_cast<size_t>(x.strides(dimension));
}

tq_attn_cache describe(int type, const py::array & rows) {
    const struct tq_type_info * info = tq_type_info(type); // `struct`: the function has the same name
    require(info != nullptr, "no such type");
    require_layout(rows, 'u', 1, "a cache must be uint8 [stream][head][row][bytes]");
    const int64_t bytes = rows.shape(3), block_bytes = static_cast<int64_t>(info->block_bytes);
    const int64_t dim = bytes / block_bytes * TQ_BLOCK;
    require(bytes % block_bytes == 0 && dim >= TQ_ATTN_HEAD_MIN && dim <= TQ_ATTN_HEAD_MAX, "head size out of range");
    return {type, static_cast<const char *>(rows.data()), dim, stride(rows, 2), stride(rows, 1), stride(rows, 0)};
}

constexpr int64_t values_per_thread = 1 << 20; // of the cache; below, a thread costs more than it brings

// Every thread takes tasks until none is left. What remains is little, and merged by one.
void run(const tq_attn & a, int most) {
    const int64_t tasks = tq_attn_tasks(&a);
    const int64_t values = a.streams * a.kv_heads * a.kv_rows * (a.k.dim + a.v.dim) * a.tokens;
    const int threads =
        static_cast<int>(std::clamp<int64_t>(values / values_per_thread, 1, std::min<int64_t>(most, tasks)));
    std::vector<char> work(tq_attn_work_size(&a, threads));
    std::atomic<int64_t> next {0};
    const auto take = [&](int thread) {
        for (int64_t task = next++; task < tasks; task = next++) {
            tq_attn_run_task(&a, task, work.data(), thread, threads);
        }
    };
    std::vector<std::thread> helpers;
    try {
        while (static_cast<int>(helpers.size()) + 1 < threads) {
            helpers.emplace_back(take, static_cast<int>(helpers.size()) + 1);
        }
    } catch (const std::system_error &) { // no more threads
    }
    take(0);
    for (std::thread & helper : helpers) {
        helper.join();
    }
    for (int thread = 0; thread < threads; thread++) {
        tq_attn_merge(&a, work.data(), thread, threads);
    }
}

void attention(const py::array & q, int k_type, const py::array & k, int v_type, const py::array & v,
               const std::optional<py::array> & mask, float scale, float softcap,
               py::array_t<float, py::array::c_style> & out, py::array_t<float, py::array::c_style> & lse,
               int threads) {
    tq_attn a = {};
    require_layout(q, 'f', sizeof(float), "queries must be float32 [stream][head][token][value]");
    a.k = describe(k_type, k);
    a.v = describe(v_type, v);
    a.streams = a.kv_streams = q.shape(0);
    a.heads = q.shape(1);
    a.tokens = q.shape(2);
    a.kv_heads = k.shape(1);
    a.kv_rows = k.shape(2);
    require(a.streams > 0 && a.heads > 0 && a.tokens > 0 && a.kv_heads > 0 && a.kv_rows > 0 && threads > 0, "empty");
    require(a.heads % a.kv_heads == 0 && q.shape(3) == a.k.dim, "queries do not fit the keys");
    require(k.shape(0) == a.streams && v.shape(0) == a.streams && v.shape(1) == a.kv_heads && v.shape(2) == a.kv_rows,
            "keys and values do not fit each other");
    require(out.size() == a.streams * a.tokens * a.heads * a.v.dim && lse.size() == a.streams * a.tokens * a.heads,
            "results do not fit");
    a.scale = scale;
    a.softcap = softcap;
    a.q = static_cast<const char *>(q.data());
    a.q_stream_stride = stride(q, 0);
    a.q_head_stride = stride(q, 1);
    a.q_token_stride = stride(q, 2);
    if (mask) {
        require_layout(*mask, 'f', 2, "a mask must be float16 [stream][head][token][row]");
        require((mask->shape(0) == 1 || mask->shape(0) == a.streams) &&
                    (mask->shape(1) == 1 || mask->shape(1) == a.heads) && mask->shape(2) == a.tokens &&
                    mask->shape(3) == a.kv_rows,
                "the mask does not fit");
        a.mask = static_cast<const char *>(mask->data());
        a.mask_streams = mask->shape(0);
        a.mask_heads = mask->shape(1);
        a.mask_stream_stride = stride(*mask, 0);
        a.mask_head_stride = stride(*mask, 1);
        a.mask_token_stride = stride(*mask, 2);
    }
    a.out = out.mutable_data();
    a.lse = lse.mutable_data();
    const py::gil_scoped_release release;
    run(a, threads);
}

} // namespace

void bind_attention(py::module_ & m) {
    m.def("attention", &attention, py::arg("q"), py::arg("k_type"), py::arg("k"), py::arg("v_type"), py::arg("v"),
          py::arg("mask"), py::arg("scale"), py::arg("softcap"), py::arg("out").noconvert(), py::arg("lse").noconvert(),
          py::arg("threads"));
}
