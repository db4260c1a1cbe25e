// The CUDA runtime, or HIP's under the same names.
#pragma once

#if defined(GGML_USE_HIP)
#    include "vendors/hip.h"
#else
#    include <cuda_fp16.h>
#    include <cuda_runtime.h>
#endif
