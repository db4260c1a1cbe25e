"""A KV cache of TQ types for mlx-lm.

>>> cache = llama_tq.mlx.patch(model, bits_k=4, bits_v=2)  # or types: k="tq4_0", v="tq2_1"
>>> mlx_lm.generate(model, tokenizer, prompt, prompt_cache=cache)

Keys and values are held in the bytes of :mod:`llama_tq.reference`, rotated as in llama.cpp's cache. Keys are
not centred: csrc/CENTRING.md is about llama.cpp. Tested on MLX's CPU backend only.
"""

try:
    import mlx.core  # noqa: F401
    import mlx_lm  # noqa: F401
except ImportError as error:
    raise ImportError(
        "llama_tq.mlx needs MLX and mlx-lm: pip install mlx-lm, on Linux with 'mlx[cpu]' (the extra [mlx])"
    ) from error

from .cache import TurboQuantCache
from .codec import dequantize, quantize
from .patching import patch

__all__ = ["TurboQuantCache", "dequantize", "patch", "quantize"]
