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

// --- events ---
// Of a block, in shared memory: warps wait for what others did, not for each other.

struct alignas(8) event {
    unsigned long long state;
};

// One for a warp; but compute-sanitizer's racecheck does not see that __syncwarp brings the other lanes' writes along.
#if defined(TQ_CUDA_RACECHECK)
constexpr int arriving_lanes = 32;
#else
constexpr int arriving_lanes = 1;
#endif

// By one thread, before a barrier: warps wait until so many have arrived.
__device__ __forceinline__ void start_event(event & e, int count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(place_of(&e)), "r"(count * arriving_lanes) : "memory");
#else
    e.state = (unsigned long long) (count * arriving_lanes);
#endif
}

__device__ __forceinline__ void arrive(event & e, int lane) {
    __syncwarp();
    if (lane < arriving_lanes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(place_of(&e)) : "memory");
#else
        __threadfence_block();
        atomicAdd(&e.state, ~0ull);
#endif
    }
}

__device__ __forceinline__ void await(event & e) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    for (unsigned has_come = 0; !has_come;) {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                     : "=r"(has_come)
                     : "r"(place_of(&e))
                     : "memory");
    }
#else
    while (*const_cast<volatile unsigned long long *>(&e.state) > 0) {
    }
    __threadfence_block();
#endif
    __syncwarp();
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

// --- warpgroups ---
// Four warps that multiply together while they do something else, and read matrices of halves from shared memory
// themselves: Hopper's own instructions, which only code for sm_90a may have.
//
// A matrix lies there as 64 columns of all rows, then the next 64. A row of these has 128 bytes, and its pieces of 16
// are exchanged so that eight rows share no banks: piece i of row r lies where piece i ^ (r & 7) would.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#    define TQ_CUDA_WARPGROUPS

using matrix = unsigned long long;

// Begins at p; the columns from 64 on lie `next` bytes further.
__device__ __forceinline__ matrix matrix_at(place p, int next) {
    const matrix address = (p & 0x3FFFFu) >> 4, eight_rows = 1024 >> 4, exchanged = 1;
    return address | (matrix) (next >> 4) << 16 | eight_rows << 32 | exchanged << 62;
}

// What a thread wrote to shared memory, for the products after the next barrier.
__device__ __forceinline__ void publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Before products, after sums or operands in registers were written.
__device__ __forceinline__ void products_start() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `pending` of the groups committed last are under way. The sums must not be touched before, which the
// compiler learns by keep().
template <int pending> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

template <int n> __device__ __forceinline__ void keep(float (&x)[n][4]) {
#    pragma unroll
    for (int i = 0; i < n; i++) {
        asm volatile("" : "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])::"memory");
    }
}

#    define TQ_SUMS(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#    define TQ_SUMS_4(i) TQ_SUMS(i), TQ_SUMS(i + 1), TQ_SUMS(i + 2), TQ_SUMS(i + 3)

// d (64 x 64) = a (64 x 16) b^T (16 x 64), added to what it was where `adds`.
__device__ __forceinline__ void multiply_64x64(float (&d)[8][4], matrix a, matrix b, bool adds) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, p, 1, 1, 0, 0;\n"
                 "}"
                 : TQ_SUMS_4(0), TQ_SUMS_4(4)
                 : "l"(a), "l"(b), "r"((int) adds));
}

// d (64 x 128) += a (64 x 16, as of mma, of each warp 16 rows) b (16 x 128).
__device__ __forceinline__ void multiply_64x128(float (&d)[16][4], const unsigned (&a)[4], matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : TQ_SUMS_4(0), TQ_SUMS_4(4), TQ_SUMS_4(8), TQ_SUMS_4(12)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#    undef TQ_SUMS_4
#    undef TQ_SUMS
#endif

} // namespace tq_cuda
