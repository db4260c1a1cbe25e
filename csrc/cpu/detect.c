// What the CPU has and the operating system saves: one function per tier of isa.def.
#include "tq_kernels.h"

#if defined(__x86_64__)
#    include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#    include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#    include <sys/sysctl.h>
#endif

bool tq_detect_scalar(void) {
    return true;
}

#if defined(__x86_64__)
// Clang 14's builtin does not know the name.
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

// The builtins look at XCR0, the operating system's part, too.
bool tq_detect_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool tq_detect_avx512(void) {
    return tq_detect_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
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
#    else
    return false;
#    endif
}
#endif
