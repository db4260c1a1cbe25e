// A layer's attention as llama.cpp's graphs have it, by ggml's CPU backend and by csrc/hooks/gpu-join.cu over the
// kernels on the host, for test_cuda_join.py:
//   join_driver STREAMS CENTRED NEOX FACTORS TWIST
// Prints where nodes were joined and how many, and how far the result and the cache are from the CPU's. TWIST:
// something that the kernels do not do: used, positions, scaled, or none.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "gpu.h"

constexpr int head = 128, heads = 8, kv_heads = 2, cells = 96, rows = 64;

static std::mt19937 generator(1);

static ggml_tensor * random_tensor(ggml_context * ctx, int64_t ne0, int64_t ne1, float size = 1.0f) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1);
    std::normal_distribution<float> normal(0.0f, size);
    for (int64_t i = 0; i < ggml_nelements(t); i++) {
        static_cast<float *>(t->data)[i] = normal(generator);
    }
    return t;
}

static ggml_tensor * integers(ggml_context * ctx, const std::vector<int> & values) {
    ggml_tensor * t = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) values.size());
    std::memcpy(t->data, values.data(), ggml_nbytes(t));
    return t;
}

static ggml_tensor * hadamard(ggml_context * ctx, int n) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n);
    for (int i = 0; i < n * n; i++) {
        const bool is_odd = __builtin_popcount((unsigned) (i / n) & (unsigned) (i % n)) & 1;
        static_cast<float *>(t->data)[i] = (is_odd ? -1.0f : 1.0f) / std::sqrt((float) n);
    }
    return t;
}

static ggml_tensor * rotate(ggml_context * ctx, ggml_tensor * x, ggml_tensor * matrix) {
    const int64_t n = matrix->ne[0];
    ggml_tensor * product = ggml_mul_mat(ctx, matrix, ggml_reshape_2d(ctx, x, n, ggml_nelements(x) / n));
    ggml_mul_mat_set_hint(product, GGML_HINT_SRC0_IS_HADAMARD);
    return ggml_reshape_4d(ctx, product, x->ne[0], x->ne[1], x->ne[2], x->ne[3]);
}

static ggml_tensor * by_stream(ggml_context * ctx, ggml_tensor * x, int streams) {
    const int64_t tokens = x->ne[2] / streams;
    x = ggml_view_4d(ctx, x, x->ne[0], x->ne[1], tokens, streams, x->nb[1], x->nb[2], x->nb[2] * tokens, 0);
    return ggml_permute(ctx, x, 0, 2, 1, 3);
}

static double distance(const std::vector<float> & a, const std::vector<float> & b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += std::pow((double) a[i] - b[i], 2);
        size += std::pow((double) b[i], 2);
    }
    return std::sqrt(difference / size);
}

static std::vector<float> values_of(const ggml_tensor * t) {
    std::vector<float> x((size_t) ggml_nelements(t));
    ggml_get_type_traits(t->type)->to_float(t->data, x.data(), (int64_t) x.size());
    return x;
}

int main(int argc, char ** argv) {
    if (argc != 6) {
        return 2;
    }
    const int streams = atoi(argv[1]), n = streams;
    const bool centred = atoi(argv[2]), neox = atoi(argv[3]), has_factors = atoi(argv[4]);
    const std::string twist = argv[5];
    ggml_context * ctx = ggml_init({(size_t) 64 << 20, nullptr, false});
    ggml_cgraph * graph = ggml_new_graph(ctx);

    std::vector<int> at, chunk_start, which;
    for (int i = 0; i < n; i++) {
        at.push_back(70 + 100 * i);
        chunk_start.push_back(at.back() / 64 * 64);
        which.push_back(i != 1);
    }
    ggml_tensor *positions = integers(ctx, at), *factors = nullptr;
    if (has_factors) {
        factors = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, head / 2);
        for (int i = 0; i < head / 2; i++) {
            static_cast<float *>(factors->data)[i] = 1.0f + 0.1f * (float) i;
        }
    }
    const auto rope = [&](ggml_tensor * x, ggml_tensor * where) {
        return ggml_rope_ext(ctx, x, where, factors, head, neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL, 4096,
                             1e4f, 0.5f, 1.0f, 1.1f, 32.0f, 1.0f);
    };
    ggml_tensor * plain_q = ggml_reshape_3d(ctx, random_tensor(ctx, head * heads, n, 2.0f), head, heads, n);
    ggml_tensor * plain_k = ggml_reshape_3d(ctx, random_tensor(ctx, head * kv_heads, n), head, kv_heads, n);
    ggml_tensor * v = ggml_reshape_3d(ctx, random_tensor(ctx, head * kv_heads, n), head, kv_heads, n);
    ggml_tensor * q = rope(plain_q, positions);
    ggml_tensor * k = rope(plain_k, twist == "positions" ? integers(ctx, at) : positions);
    if (twist == "scaled") {
        k = ggml_scale(ctx, k, 0.5f);
    }
    ggml_tensor * both = random_tensor(ctx, head * kv_heads, 2);
    if (centred) {
        std::memset(both->data, 0, both->nb[1]);
        ggml_tensor * of_tokens = ggml_get_rows(ctx, both, integers(ctx, which));
        k = ggml_sub(ctx, k, rope(ggml_reshape_3d(ctx, of_tokens, head, kv_heads, n), integers(ctx, chunk_start)));
    }
    ggml_build_forward_expand(graph, q);
    ggml_build_forward_expand(graph, k);
    if (twist == "used") {
        ggml_build_forward_expand(graph, ggml_dup(ctx, q));
    }
    ggml_tensor *large = hadamard(ctx, 128), *small = hadamard(ctx, 64);
    ggml_tensor *turned_q = rotate(ctx, q, large), *turned_k = rotate(ctx, k, large), *turned_v = rotate(ctx, v, small);
    for (ggml_tensor * t : {turned_q, turned_v, turned_k}) {
        ggml_build_forward_expand(graph, t);
    }

    ggml_tensor * places = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n);
    for (int i = 0; i < n; i++) {
        static_cast<int64_t *>(places->data)[i] = i * cells + 5 + 20 * i;
    }
    ggml_tensor * caches[2];
    std::vector<char> before[2];
    for (int i = 0; i < 2; i++) {
        caches[i] = ggml_new_tensor_2d(ctx, GGML_TYPE_TQ4_0, head * kv_heads, cells * streams);
        const ggml_tensor * x = random_tensor(ctx, head * kv_heads, cells * streams);
        ggml_get_type_traits(GGML_TYPE_TQ4_0)
            ->from_float_ref(static_cast<const float *>(x->data), caches[i]->data, ggml_nelements(x));
        before[i].assign((char *) caches[i]->data, (char *) caches[i]->data + ggml_nbytes(caches[i]));
        ggml_tensor * src = ggml_reshape_2d(ctx, i ? turned_v : turned_k, head * kv_heads, n);
        ggml_build_forward_expand(graph, ggml_set_rows(ctx, caches[i], src, places));
    }
    const auto seen = [&](ggml_tensor * cache) {
        const size_t row = cache->nb[1];
        return ggml_permute(ctx,
                            ggml_view_4d(ctx, cache, head, kv_heads, rows, streams, ggml_row_size(cache->type, head),
                                         row, row * cells, 0),
                            0, 2, 1, 3);
    };
    ggml_tensor * mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, rows, 1, 1, streams);
    for (int64_t i = 0; i < ggml_nelements(mask); i++) {
        static_cast<ggml_fp16_t *>(mask->data)[i] = ggml_fp32_to_fp16(i % 7 == 3 ? -INFINITY : 0.0f);
    }
    ggml_tensor * attention = ggml_flash_attn_ext(ctx, by_stream(ctx, turned_q, streams), seen(caches[0]),
                                                  seen(caches[1]), mask, 0.088f, 0.0f, 0.0f);
    ggml_tensor * query = by_stream(ctx, q, streams);
    if (centred) {
        std::vector<int> chunks(rows * (size_t) streams);
        for (size_t i = 0; i < chunks.size(); i++) {
            chunks[i] = 1 + (int) (i % 3);
        }
        ggml_tensor * ids = ggml_reshape_2d(ctx, integers(ctx, chunks), rows, streams);
        ggml_tensor * mean = ggml_view_2d(ctx, both, head, kv_heads, head * sizeof(float), both->nb[1]);
        ggml_tq_set_centre(attention, query, mean, random_tensor(ctx, head, 4), ids, head, neox);
    } else {
        attention->src[GGML_TQ_SRC_QUERY] = query;
    }
    ggml_tensor * out = rotate(ctx, ggml_reshape_2d(ctx, attention, head * heads, n), small);
    ggml_build_forward_expand(graph, out);

    ggml_graph_compute_with_ctx(ctx, graph, 1);
    const std::vector<float> expected((float *) out->data, (float *) out->data + ggml_nelements(out));
    const std::vector<float> cached[2] = {values_of(caches[0]), values_of(caches[1])};

    // What is joined need not be there: nothing between the first node and the last is a number any more.
    for (int i = 0; i < 2; i++) {
        std::memcpy(caches[i]->data, before[i].data(), before[i].size());
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph) && twist == "none"; i++) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (!node->view_src) {
            std::memset(node->data, 0xFF, ggml_nbytes(node));
        }
    }
    ggml_backend_cuda_context device;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const int joined = ggml_cuda_tq_fuse(device, graph, i);
        if (joined > 0) {
            const std::vector<float> result((float *) out->data, (float *) out->data + ggml_nelements(out));
            printf("%s %d %d %g %g %g\n", ggml_op_name(ggml_graph_node(graph, i)->op), i, i + joined,
                   distance(result, expected), distance(values_of(caches[0]), cached[0]),
                   distance(values_of(caches[1]), cached[1]));
            i += joined;
        }
    }
    printf("%d\n", ggml_graph_n_nodes(graph));
    return 0;
}
