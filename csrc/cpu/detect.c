// What the CPU has and the operating system saves: one function per tier of isa.def.
#include "tq_kernels.h"

#if defined(__x86_64__)
#    include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#    include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#    include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(_WIN32)
#    include <windows.h>
#endif

bool tq_detect_scalar(void) {
    return true;
}

#if defined(__x86_64__)
// By hand, because __builtin_cpu_supports needs a library that clang-cl does not link. XCR0 tells which registers the
// operating system saves; macOS lets it grow when a program first uses AVX-512.
#    define XCR0_AVX 0x06
#    if defined(__APPLE__)
#        define XCR0_AVX512 XCR0_AVX
#    else
#        define XCR0_AVX512 0xE6
#    endif

static bool saves(unsigned registers) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

static bool has(unsigned ecx1, unsigned ebx7, unsigned ecx7) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & ecx1) == ecx1 && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (b & ebx7) == ebx7 && (c & ecx7) == ecx7;
}

bool tq_detect_avx2(void) {
    return has(bit_OSXSAVE | bit_FMA | bit_F16C, bit_AVX2, 0) && saves(XCR0_AVX);
}

bool tq_detect_avx512(void) {
    const unsigned ebx7 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    return tq_detect_avx2() && has(0, ebx7, bit_AVX512VBMI | bit_AVX512VNNI) && saves(XCR0_AVX512);
}
#endif

#if defined(__aarch64__)
bool tq_detect_neon(void) {
    return true;
}

bool tq_detect_neon_dotprod(void) {
#    if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#    elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) == 0 && has;
#    elif defined(_WIN32)
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE);
#    else
    return false;
#    endif
}
#endif
