// What CUDA C++ has no words for, and what the compiler makes worse: every instruction that is named itself is here.
// tests/host_cuda has the same on the host.
#pragma once

#include "runtime.h"

#define TQ_CUDA_SHARED(name) extern __shared__ __align__(16) char name[] // as much as the launch says

namespace tq_cuda {

__device__ __forceinline__ half2 as_half2(unsigned u) {
    return *reinterpret_cast<half2 *>(&u);
}

__device__ __forceinline__ unsigned as_word(half2 h) {
    return *reinterpret_cast<unsigned *>(&h);
}

// The compiler takes half2 apart, to no gain.
__device__ __forceinline__ half2 multiply(half2 a, half2 b) {
    unsigned r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(as_word(a)), "r"(as_word(b)));
    return as_half2(r);
}

__device__ __forceinline__ half2 multiply_add(half2 a, half2 b, half2 c) {
    unsigned r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(as_word(a)), "r"(as_word(b)), "r"(as_word(c)));
    return as_half2(r);
}

// a b + c. The compiler makes a choice of a product with 0 or 1.
__device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    unsigned r;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// --- memory ---

// A place in shared memory. 32 bits, because the compiler keeps generic pointers in 64 and adds them in two steps.
using place = unsigned;

__device__ __forceinline__ place place_of(const void * p) {
    return (place) __cvta_generic_to_shared(p);
}

__device__ __forceinline__ unsigned load_word(place p) {
    unsigned w;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(w) : "r"(p));
    return w;
}

__device__ __forceinline__ unsigned load_short(place p) {
    unsigned short w;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(w) : "r"(p));
    return w;
}

__device__ __forceinline__ void store_short(place p, unsigned short x) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(p), "h"(x) : "memory");
}

__device__ __forceinline__ void store_words(place p, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Zero-extended at once: a short that is widened later makes the compiler wait for it where it is read.
__device__ __forceinline__ unsigned load_global_short(const void * p) {
    unsigned w;
    asm volatile("ld.global.u16 %0, [%1];" : "=r"(w) : "l"(p));
    return w;
}

// Copies of 4, 8 or 16 bytes from global to shared memory, which run on until copy_wait.
template <int bytes> __device__ __forceinline__ void copy_start(place to, const char * from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(bytes) : "memory");
    }
#else
    for (int i = 0; i < bytes; i += 4) {
        const unsigned x = *reinterpret_cast<const unsigned *>(from + i);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + i), "r"(x) : "memory");
    }
#endif
}

__device__ __forceinline__ void copy_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most `pending` of the groups committed last are under way.
template <int pending> __device__ __forceinline__ void copy_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// --- matrices ---

// d += a b for 16x16 times 16x8 halves. Lane 4g + t holds of a rows g, g + 8 and columns 2t, 2t + 1 (and 8 more), of b
// the same columns as rows and column g, of d rows g, g + 8 and columns 2t, 2t + 1.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if !defined(__CUDA_ARCH__)
    (void) d, (void) a, (void) b;
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
    for (int i = 0; i < 2; i++) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
    }
#else
    (void) d, (void) a, (void) b; // refused by supports_op
#endif
}

// An 8x8 matrix of halves, a row to four lanes, transposed.
__device__ __forceinline__ unsigned transpose(unsigned x) {
    unsigned y = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
#else
    (void) x;
#endif
    return y;
}

// Four 8x8 matrices of halves, each transposed or as it stands; lane 8i + r says where row r of matrix i is.
template <bool transposed = false> __device__ __forceinline__ void load_matrices(unsigned (&x)[4], place p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    if constexpr (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(p));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(p));
    }
#else
    (void) x, (void) p;
#endif
}

} // namespace tq_cuda
