"""A KV cache of TQ types for Hugging Face transformers.

>>> cache = llama_tq.hf.patch(model, bits_k=4, bits_v=2)  # or types: k="tq4_0", v="tq2_1"
>>> model.generate(**inputs, past_key_values=cache)

Keys and values are held in the bytes of :mod:`llama_tq.reference`, rotated as in llama.cpp's cache, and
attention runs on these bytes. Keys are not centred: csrc/CENTRING.md is about llama.cpp.
"""

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "llama_tq.hf needs PyTorch and transformers: pip install torch transformers (the extra [hf])"
    ) from error

from .attention import NAME as ATTENTION
from .cache import TurboQuantCache
from .patching import patch

__all__ = ["ATTENTION", "TurboQuantCache", "patch"]
