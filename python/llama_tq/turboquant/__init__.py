"""TurboQuant as in the paper (arXiv 2504.19874), in NumPy: to study, and to compare with.

>>> config = TurboQuantConfig(dimension=256, bits=3, qjl_enabled=True, qjl_dim=0, seed=42)
>>> tq = TurboQuant(config)
>>> c = tq.compress(x)  # (d,) or (n, d), any norm
>>> tq.decompress(c), tq.inner_product(q, c), tq.compression_ratio(), tq.compressed_size_bytes()

>>> cache = TurboQuantKVCache(config)
>>> cache.append(k, v)
>>> cache.attention_scores(q), cache.attend(q), len(cache), cache.nbytes

``python -m llama_tq.turboquant`` measures it against the paper's bounds and against the types of this
project, which are what llama.cpp's caches use.
"""

try:
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "llama_tq.turboquant needs SciPy: pip install 'scipy>=1.11' (the extra [turboquant])"
    ) from error

from .cache import TurboQuantKVCache
from .codebook import codebook, distortion
from .config import TurboQuantConfig
from .quantizer import TurboQuant
from .vectors import CompressedVector

__all__ = [
    "CompressedVector",
    "TurboQuant",
    "TurboQuantConfig",
    "TurboQuantKVCache",
    "codebook",
    "distortion",
]
