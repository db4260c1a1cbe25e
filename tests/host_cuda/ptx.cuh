// In place of csrc/cuda/ptx.cuh: its instructions on the host.
#pragma once

#include "runtime.h"

#define TQ_CUDA_SHARED(name) char * const name = host_shared

namespace tq_cuda {

inline half2 as_half2(unsigned u) {
    half2 h;
    std::memcpy(&h, &u, sizeof(h));
    return h;
}

inline unsigned as_word(half2 h) {
    unsigned u;
    std::memcpy(&u, &h, sizeof(u));
    return u;
}

inline half2 multiply(half2 a, half2 b) {
    return __hmul2(a, b);
}

inline half2 multiply_add(half2 a, half2 b, half2 c) { // a double holds the product
    return {(half) ((double) a.x * (double) b.x + (double) c.x), (half) ((double) a.y * (double) b.y + (double) c.y)};
}

inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    return a * b + c;
}

using place = unsigned;

inline place place_of(const void * p) {
    return (place) (static_cast<const char *>(p) - host_shared);
}

template <class T> T host_load(const char * p) {
    if ((size_t) p % sizeof(T) != 0) {
        std::abort(); // as a GPU would
    }
    T x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}

template <class T> T host_load(place p) {
    if (p + sizeof(T) > sizeof(host_shared) || p % sizeof(T) != 0) {
        std::abort();
    }
    return host_load<T>(host_shared + p);
}

template <class T> void host_store(place p, const T & x) {
    if (p + sizeof(T) > sizeof(host_shared) || p % sizeof(T) != 0) {
        std::abort();
    }
    std::memcpy(host_shared + p, &x, sizeof(x));
}

inline unsigned load_word(place p) {
    return host_load<uint32_t>(p);
}

inline unsigned load_short(place p) {
    return host_load<uint16_t>(p);
}

inline void store_short(place p, unsigned short x) {
    host_store(p, x);
}

inline void store_words(place p, unsigned a, unsigned b, unsigned c, unsigned d) {
    host_store(p, uint4 {a, b, c, d});
}

inline unsigned load_global_short(const void * p) {
    return host_load<uint16_t>(static_cast<const char *>(p));
}

// Copies arrive when they are waited for, as late as they may on a GPU.
struct host_copy {
    place to;
    std::array<char, 16> bytes;
    int size;
};

inline std::vector<host_copy> host_copies[1024]; // by thread
inline std::vector<size_t> host_groups[1024];    // sizes

template <int bytes> void copy_start(place to, const char * from) {
    host_copy copy = {to, {}, bytes};
    if ((size_t) from % bytes != 0 || to % bytes != 0) {
        std::abort();
    }
    std::memcpy(copy.bytes.data(), from, bytes);
    host_copies[threadIdx.x].push_back(copy);
}

inline void copy_commit() {
    size_t committed = 0;
    for (const size_t size : host_groups[threadIdx.x]) {
        committed += size;
    }
    host_groups[threadIdx.x].push_back(host_copies[threadIdx.x].size() - committed);
}

template <int pending> void copy_wait() {
    auto & groups = host_groups[threadIdx.x];
    auto & copies = host_copies[threadIdx.x];
    while (groups.size() > pending) {
        for (size_t i = 0; i < groups.front(); i++) {
            const host_copy & copy = copies[i];
            if (copy.to + copy.size > sizeof(host_shared)) {
                std::abort();
            }
            std::memcpy(host_shared + copy.to, copy.bytes.data(), (size_t) copy.size);
        }
        copies.erase(copies.begin(), copies.begin() + (ptrdiff_t) groups.front());
        groups.erase(groups.begin());
    }
}

struct event {
    int missing;
};

inline void start_event(event & e, int count) {
    e.missing = count;
}

inline void arrive(event & e, int lane) {
    __syncwarp();
    e.missing -= lane == 0;
}

inline void await(event & e) {
    while (__any_sync(~0u, e.missing > 0)) {
    }
}

inline float host_half(unsigned word, int second) {
    const half2 h = as_half2(word);
    return (float) (second ? h.y : h.x);
}

inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const auto all_a = host_exchange(std::array<unsigned, 4> {a[0], a[1], a[2], a[3]});
    const auto all_b = host_exchange(std::array<unsigned, 2> {b[0], b[1]});
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            const int lane_a = 4 * (row % 8) + k % 8 / 2, lane_b = 4 * column + k % 8 / 2;
            d[i] += host_half(all_a[lane_a][row / 8 + k / 8 * 2], k % 2) * host_half(all_b[lane_b][k / 8], k % 2);
        }
    }
}

inline unsigned transpose(unsigned x) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    const auto all = host_exchange(x);
    const auto at = [&](int r, int c) { return as_half2(all[4 * r + c / 2]); };
    const half2 first = at(column, row), second = at(column + 1, row);
    return as_word({row % 2 ? first.y : first.x, row % 2 ? second.y : second.x});
}

template <bool transposed = false> void load_matrices(unsigned (&x)[4], place p) {
    const auto rows = host_exchange(p);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        if (transposed) {
            const half first = host_load<half>(rows[8 * i + lane % 4 * 2] + lane / 4 * 2);
            const half second = host_load<half>(rows[8 * i + lane % 4 * 2 + 1] + lane / 4 * 2);
            x[i] = as_word({first, second});
        } else {
            if (rows[8 * i + lane / 4] % 16 != 0) {
                std::abort();
            }
            x[i] = host_load<uint32_t>(rows[8 * i + lane / 4] + lane % 4 * 4);
        }
    }
}

// Products of warpgroups are computed when they are waited for, as late as they may on a GPU.
#define TQ_CUDA_WARPGROUPS

using matrix = uint64_t;

inline matrix matrix_at(place p, int next) {
    if (p % 16 != 0 || next % 16 != 0) {
        std::abort();
    }
    return (matrix) (p >> 4) | (matrix) (next >> 4) << 16 | (matrix) (1024 >> 4) << 32;
}

// The half in row r and column c.
inline float host_at(matrix m, int r, int c) {
    const place first = (place) (m & 0x3FFF) << 4, next = (place) (m >> 16 & 0x3FFF) << 4,
                eight_rows = (place) (m >> 32 & 0x3FFF) << 4;
    const place p = first + c / 64 * next + r / 8 * eight_rows + r % 8 * 128 + c % 64 * 2;
    return (float) host_load<half>(p ^ (p >> 7 & 7) << 4);
}

inline std::vector<std::function<void()>> host_products[1024]; // by thread: of the group that is not committed, and
inline std::vector<std::vector<std::function<void()>>> host_product_groups[1024];

inline void publish() {}

inline void products_start() {}

inline void products_commit() {
    host_product_groups[threadIdx.x].push_back(std::move(host_products[threadIdx.x]));
    host_products[threadIdx.x].clear();
}

template <int pending> void products_wait() {
    auto & groups = host_product_groups[threadIdx.x];
    while (groups.size() > pending) {
        for (const auto & product : groups.front()) {
            product();
        }
        groups.erase(groups.begin());
    }
}

template <int n> void keep(float (&)[n][4]) {}

inline void multiply_64x64(float (&d)[8][4], matrix a, matrix b, bool adds) {
    const int first = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    host_products[threadIdx.x].push_back([&d, a, b, adds, first, t] {
        for (int i = 0; i < 32; i++) {
            float & sum = d[i / 4][i % 4];
            sum = adds ? sum : 0.0f;
            for (int k = 0; k < 16; k++) {
                sum += host_at(a, first + i % 4 / 2 * 8, k) * host_at(b, i / 4 * 8 + 2 * t + i % 2, k);
            }
        }
    });
}

inline void multiply_64x128(float (&d)[16][4], const unsigned (&a)[4], matrix b) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const auto all_a = host_exchange(std::array<unsigned, 4> {a[0], a[1], a[2], a[3]});
    host_products[threadIdx.x].push_back([&d, all_a, b, g, t] {
        for (int i = 0; i < 64; i++) {
            for (int k = 0; k < 16; k++) {
                const unsigned word = all_a[4 * g + k % 8 / 2][i % 4 / 2 + k / 8 * 2];
                d[i / 4][i % 4] += host_half(word, k % 2) * host_at(b, k, i / 4 * 8 + 2 * t + i % 2);
            }
        }
    });
}

} // namespace tq_cuda
