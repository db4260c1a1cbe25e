"""The TQ block formats in NumPy, laid out in the order of ``csrc/FORMAT.md``.

This package is the definition that every compiled kernel is compared with, byte for byte. It imports
nothing compiled and is written to be read next to the specification, not to be fast.
"""

from ._codec import check_blocks, check_type, check_values, decode_scale_words, dequantize, quantize
from .tables import TYPES, TypeSpec

__all__ = [
    "TYPES",
    "TypeSpec",
    "check_blocks",
    "check_type",
    "check_values",
    "decode_scale_words",
    "dequantize",
    "quantize",
]
