"""The TQ types as PyTorch operators, on the CPU and on NVIDIA GPUs.

>>> import llama_tq.torch
>>> b = llama_tq.torch.quantize(x, "tq4_0")  # float (..., n) -> uint8 (..., n / 32 * 18)
>>> llama_tq.torch.dequantize(b, "tq4_0")  # and back to float32 (..., n)

They are ``torch.ops.llama_tq``, with the shapes that ``torch.compile`` asks for. On the CPU they are the
kernels of llama.cpp's cache, on a GPU they are written in Triton; both write the bytes of
:mod:`llama_tq.reference`. None has a gradient.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("llama_tq.torch needs PyTorch: pip install torch (the extra [torch])") from error

from .operators import attention, dequantize, quantize, store

__all__ = ["attention", "dequantize", "quantize", "store"]
