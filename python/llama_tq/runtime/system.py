"""What somebody who helps from afar has to know about a machine and a build."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata

import llama_cpp

from .._api import threads
from . import ggml

_PACKAGES = ("numpy", "gguf", "torch", "triton", "transformers", "accelerate", "mlx", "mlx-lm")
VARIABLES = (
    "LLAMA_TQ_ISA",
    "LLAMA_TQ_CENTRE",
    "LLAMA_CACHE",
    "XDG_CACHE_HOME",
    "LLAMA_ATTN_ROT_DISABLE",
    "LLAMA_CPP_LIB_PATH",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
"""Those that change what this project does."""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str | None
    """None: not set."""


def commit() -> str:
    """Of the llama.cpp that was patched."""
    return _build("LLAMA_COMMIT")


def system() -> tuple[Fact, ...]:
    """The platform, and how the libraries were built."""
    return (
        Fact("platform", platform.platform()),
        Fact("processors", str(threads())),
        Fact("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        Fact("compiler", _build("LLAMA_COMPILER")),
        Fact("built for", _build("LLAMA_BUILD_TARGET")),
        *(Fact(f"{backend} has", " ".join(features)) for backend, features in _features().items()),
    )


def packages() -> tuple[Fact, ...]:
    """Versions of what is installed, none of which is imported for that."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(Fact(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def variables() -> tuple[Fact, ...]:
    """The environment."""
    return tuple(Fact(name, os.environ.get(name)) for name in VARIABLES)


def _build(name: str) -> str:
    return ctypes.c_char_p.in_dll(ggml.library("llama-common"), name).value.decode()


def _features() -> dict[str, list[str]]:
    """What llama_print_system_info says: `CPU : AVX = 1 | OPENMP = 1 | CUDA : ARCHS = 900 |`."""
    ggml.start()
    found: dict[str, list[str]] = {}
    backend = ""
    for part in llama_cpp.llama_print_system_info().decode().split("|"):
        if match := re.fullmatch(r"(?:(\S+) : )?(\S+) = (\S+)", part.strip()):
            backend = match[1] or backend
            found.setdefault(backend, []).append(match[2] if match[3] == "1" else f"{match[2]}={match[3]}")
    return found
