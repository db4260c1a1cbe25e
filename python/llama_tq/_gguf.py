"""The TQ types in gguf-py: ``gguf.GGMLQuantizationType.TQ4_0`` and so on, sizes, and ``gguf.quants``.

gguf has no way to add a type, so this extends its enum as :mod:`enum` itself does. ``import llama_tq`` sees
to it, whether gguf is imported before or after.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_LAST_PART = "gguf.quants"  # of gguf to be imported of those that need to know a type


def register_after_import() -> None:
    """Register the types: at once if gguf is there, or else when it is imported."""
    if _LAST_PART in sys.modules:
        _register(sys.modules[_LAST_PART])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _LAST_PART:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec


def _register(quants: ModuleType) -> None:
    from .reference import TYPES

    for spec in TYPES.values():
        member = _add_member(quants.GGMLQuantizationType, spec.name.upper(), spec.id)
        quants.GGML_QUANT_SIZES[member] = (spec.block_size, spec.block_bytes)
        _add_codec(quants, member, spec.name)


def _add_member(enum: type, name: str, value: int) -> int:
    member = int.__new__(enum, value)
    member._name_, member._value_ = name, value
    enum._member_names_.append(name)
    enum._member_map_[name] = enum._value2member_map_[value] = member
    type.__setattr__(enum, name, member)
    return member


def _add_codec(quants: ModuleType, member: int, name: str) -> None:
    import numpy as np

    class Codec(getattr(quants, "__Quant"), qtype=member):  # its __init_subclass__ registers it
        @classmethod
        def quantize_blocks(cls, blocks: np.ndarray) -> np.ndarray:
            from . import _api

            return _api.quantize(blocks, name)

        @classmethod
        def dequantize_blocks(cls, blocks: np.ndarray) -> np.ndarray:
            from . import _api

            return _api.dequantize(blocks, name)
