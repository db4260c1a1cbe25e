// Half precision for cuda_runtime.h beside this.
#pragma once

using half = _Float16;

inline float __half2float(half h) {
    return (float) h;
}

inline half __float2half_rn(float f) {
    return (half) f;
}
