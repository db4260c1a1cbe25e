"""TurboQuant KV-cache types for llama.cpp.

>>> import llama_tq
>>> b = llama_tq.quantize(x, "tq4_0")  # float32 (..., n) -> uint8 (..., n / 32 * 18)
>>> llama_tq.dequantize(b, "tq4_0")  # and back to float32 (..., n)

``llama_tq.reference`` is the same in NumPy, and the definition of the bytes. ``info``, ``demo``, ``plan``,
``evaluate``, ``centre``, ``compare``, ``generate``, ``chat``, ``bench`` and ``benchmark`` do what the
commands of ``llama-tq`` print. ``with llama_tq.centring(False)`` switches key centring off,
``add_rpc_servers`` gives layers to other machines.

``llama_tq.turboquant`` (the paper), ``llama_tq.torch`` (operators), ``llama_tq.hf`` (a cache for
transformers) and ``llama_tq.mlx`` (a cache for mlx-lm) need the extras of these names.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

from . import _gguf

if TYPE_CHECKING:
    from . import reference as reference
    from ._api import Kernel, active_isa, dequantize, dot, force_isa, kernels, quantize, types
    from .commands.bench import bench
    from .commands.benchmark import benchmark
    from .commands.centre import centre
    from .commands.chat import chat
    from .commands.compare import compare
    from .commands.demo import demo
    from .commands.evaluate import evaluate
    from .commands.generate import generate
    from .commands.info import info
    from .commands.plan import plan
    from .errors import InputError
    from .runtime.centring import centring
    from .runtime.pairs import Pair
    from .runtime.rpc import add_rpc_servers

_MODULES = {
    "_api": ("Kernel", "active_isa", "dequantize", "dot", "force_isa", "kernels", "quantize", "types"),
    "errors": ("InputError",),
    "runtime.pairs": ("Pair",),
    "runtime.centring": ("centring",),
    "runtime.rpc": ("add_rpc_servers",),
    **{
        f"commands.{name}": (name,)
        for name in (
            "bench",
            "benchmark",
            "centre",
            "chat",
            "compare",
            "demo",
            "evaluate",
            "generate",
            "info",
            "plan",
        )
    },
}
_PACKAGES = ("hf", "mlx", "reference", "torch", "turboquant")
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "InputError",
    "Kernel",
    "Pair",
    "active_isa",
    "add_rpc_servers",
    "bench",
    "benchmark",
    "centre",
    "centring",
    "chat",
    "compare",
    "demo",
    "dequantize",
    "dot",
    "evaluate",
    "force_isa",
    "generate",
    "info",
    "kernels",
    "plan",
    "quantize",
    "reference",
    "types",
]

_gguf.register_after_import()

if os.name == "nt":  # no rpath: the compiled modules find llama.cpp's libraries so
    _llama_cpp = os.path.dirname(importlib.util.find_spec("llama_cpp").origin)
    os.add_dll_directory(os.path.join(_llama_cpp, "lib"))


def __getattr__(name: str) -> object:
    """Import on first use: the programs' launchers need neither NumPy nor the compiled part."""
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
