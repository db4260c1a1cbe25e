"""TurboQuant KV-cache types for llama.cpp.

>>> import llama_tq
>>> b = llama_tq.quantize(x, "tq4_0")  # float32 (..., n) -> uint8 (..., n / 32 * 18)
>>> llama_tq.dequantize(b, "tq4_0")  # and back to float32 (..., n)

``llama_tq.reference`` is the same in NumPy, and the definition of the bytes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _gguf

if TYPE_CHECKING:
    from . import reference as reference
    from ._api import Kernel, active_isa, dequantize, dot, force_isa, kernels, quantize, types

__all__ = [
    "Kernel",
    "active_isa",
    "dequantize",
    "dot",
    "force_isa",
    "kernels",
    "quantize",
    "reference",
    "types",
]

_gguf.register_after_import()


def __getattr__(name: str) -> object:
    """Import on first use: the programs' launchers need neither NumPy nor the compiled part."""
    if name == "reference":
        return importlib.import_module(".reference", __name__)
    if name in __all__:
        return getattr(importlib.import_module("._api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
