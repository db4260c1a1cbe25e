"""The llama_cpp that is installed: whether it is the patched one, and which cache types it has."""

from __future__ import annotations

import functools

import llama_cpp

from ..errors import InputError


@functools.cache
def cache_types() -> dict[str, int]:
    """Name and `enum ggml_type` value of every type that a KV cache can have.

    Raises InputError where llama_cpp, or the library that it loads, lacks ours: asking it would crash.
    """
    try:
        from llama_cpp import _tq
    except ImportError:
        patched = False
    else:
        patched = bool(_tq.tq_types(llama_cpp.llama_cpp._lib))
    if not patched:
        raise InputError(
            f"llama_cpp {llama_cpp.__version__} in {llama_cpp.__path__[0]} is not the patched one. "
            "Install llama-tq again with pip install --force-reinstall, and nothing over it after that."
        )
    return _tq.cache_types()
