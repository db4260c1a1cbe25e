// csrc/cuda/rows.cu on the host, against the installed library: strided tensors, both kinds of source and of index.
// Prints what differs; nothing if nothing does.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/rows.h"
#include "tq.h"

static std::mt19937 random_bits(1);

static int below(int n) {
    return (int) (random_bits() % (unsigned) n);
}

// A tensor of blocks or of numbers with gaps between its rows, planes and cubes, and bytes that must stay as they are.
struct tensor {
    tq_rows_view view;
    std::vector<char> bytes;

    tensor(int64_t unit, int64_t unit_bytes, int64_t n, int64_t rows, int64_t planes, int64_t cubes, int gap) {
        view = {nullptr, {n, rows, planes, cubes}, {unit_bytes, 0, 0, 0}};
        view.nb[1] = n / unit * unit_bytes + gap * below(3);
        view.nb[2] = view.nb[1] * rows + gap * below(3);
        view.nb[3] = view.nb[2] * planes + gap * below(3);
        bytes.assign((size_t) (view.nb[3] * cubes), (char) 0x5A);
        view.data = bytes.data();
    }

    char * at(int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
        return bytes.data() + i0 * view.nb[0] + i1 * view.nb[1] + i2 * view.nb[2] + i3 * view.nb[3];
    }
};

static float load(const char * p, bool is_half) {
    half h;
    float f;
    std::memcpy(&h, p, sizeof(h));
    if (is_half) {
        return (float) h;
    }
    std::memcpy(&f, p, sizeof(f));
    return f;
}

static void check(bool holds, const char * what, int type, int trial) {
    if (!holds) {
        std::printf("%s: type %d, trial %d\n", what, type, trial);
    }
}

int main() {
    std::normal_distribution<float> normal;
    for (int type = 0; type < TQ_TYPE_COUNT; type++) {
        const int64_t bytes = (int64_t) tq_type_info(type)->block_bytes;
        const enum tq_type t = (enum tq_type) type;
        for (int trial = 0; trial < 8; trial++) {
            const bool is_half = trial & 1, has_ids = trial < 6, wide = trial & 2;
            const int rows = 9, m = 3, planes = 1 + below(2), cubes = 1 + below(2);
            const int64_t n = 32 * (1 + below(3));

            // numbers to blocks: SET_ROWS and CPY
            tensor numbers(1, is_half ? 2 : 4, n, m, planes, cubes, 4);
            tensor cache(32, bytes, n, has_ids ? rows : m, planes, cubes, 2), expected = cache;
            std::vector<int64_t> ids8((size_t) (m * planes * cubes));
            std::vector<int32_t> ids4(ids8.size());
            for (size_t i = 0; i < ids8.size(); i++) {
                ids4[i] = (int32_t) (ids8[i] = (int64_t) (3 * i) % rows);
            }
            const int width = wide ? 8 : 4;
            const tq_rows_ids ids = {wide ? (char *) ids8.data() : (char *) ids4.data(),
                                     {m, planes, cubes},
                                     {width, width * m, width * m * planes},
                                     has_ids ? width : 0};
            std::vector<float> row((size_t) n);
            for (int i3 = 0; i3 < cubes; i3++) {
                for (int i2 = 0; i2 < planes; i2++) {
                    for (int i1 = 0; i1 < m; i1++) {
                        for (int64_t i = 0; i < n; i++) {
                            const float x = normal(random_bits) * std::exp2f((float) below(9) - 4.0f);
                            const half h = (half) x;
                            std::memcpy(numbers.at(i, i1, i2, i3), is_half ? (const void *) &h : &x, is_half ? 2 : 4);
                            row[(size_t) i] = is_half ? (float) h : x;
                        }
                        const int64_t to = has_ids ? ids4[(size_t) (i1 + m * (i2 + planes * i3))] : i1;
                        tq_quantize_row(t, row.data(), expected.at(0, to, i2, i3), n);
                    }
                }
            }
            const tq_rows_store store = {type, 0, is_half, numbers.view, ids, cache.view};
            tq_cuda_encode(&store, 1, nullptr);
            check(cache.bytes == expected.bytes, "encode", type, trial);

            // blocks to numbers: GET_ROWS and CPY, the latter to another shape
            const int got = has_ids ? m : rows;
            tensor blocks(32, bytes, n, rows, planes, cubes, 2);
            for (char & byte : blocks.bytes) {
                byte = (char) random_bits();
            }
            tensor result = has_ids ? tensor(1, is_half ? 2 : 4, n, got, planes, cubes, 4)
                                    : tensor(1, is_half ? 2 : 4, n * rows, planes, cubes, 1, 4);
            tq_cuda_decode(type, blocks.view, ids, result.view, is_half, nullptr);
            tensor same(32, bytes, n * rows, planes, cubes, 1, 2);
            tq_cuda_copy(type, blocks.view, same.view, nullptr);
            bool is_decoded = true, is_copied = true;
            for (int i3 = 0; i3 < cubes; i3++) {
                for (int i2 = 0; i2 < planes; i2++) {
                    for (int i1 = 0; i1 < got; i1++) {
                        const int from = has_ids ? ids4[(size_t) (i1 + m * (i2 + planes * i3))] : i1;
                        tq_dequantize_row(t, blocks.at(0, from, i2, i3), row.data(), n);
                        for (int64_t i = 0; i < n; i++) {
                            const float want = is_half ? (float) (half) row[(size_t) i] : row[(size_t) i];
                            const float have =
                                load(has_ids ? result.at(i, i1, i2, i3) : result.at(i1 * n + i, i2, i3, 0), is_half);
                            is_decoded &= std::memcmp(&want, &have, sizeof(want)) == 0;
                        }
                    }
                    for (int i1 = 0; i1 < rows; i1++) {
                        is_copied &= std::memcmp(same.at(i1 * n / 32, i2, i3, 0), blocks.at(0, i1, i2, i3),
                                                 (size_t) (n / 32 * bytes)) == 0;
                    }
                }
            }
            check(is_decoded, "decode", type, trial);
            check(is_copied, "copy", type, trial);
        }
    }
    return 0;
}
