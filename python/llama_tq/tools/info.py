"""What is installed, and what it can do on this machine."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import metadata

import llama_tq

from . import ggml
from .installed import cache_types
from .pairs import bits_per_value

DISTRIBUTION = "llama-cpp-python"


@dataclass(frozen=True)
class Type:
    """A cache type of this project."""

    name: str
    id: int
    bits_per_value: float


@dataclass(frozen=True)
class Tier:
    """An instruction set that the kernels are written for."""

    name: str
    supported: bool
    active: bool


@dataclass(frozen=True)
class Info:
    """Versions and abilities of the installation."""

    version: str
    llama_cpp_commit: str
    ggml_version: str
    types: tuple[Type, ...]
    tiers: tuple[Tier, ...]
    backends: tuple[ggml.Backend, ...]


def info() -> Info:
    """Look at the installation."""
    tiers = {k.isa: k.supported for k in llama_tq.kernels()}
    active = llama_tq.active_isa()
    return Info(
        metadata.version(DISTRIBUTION),
        ctypes.c_char_p.in_dll(ggml.library("llama-common"), "LLAMA_COMMIT").value.decode(),
        ggml.version(),
        tuple(Type(t.name, t.id, bits_per_value(t.name)) for t in llama_tq.types()),
        tuple(Tier(name, able, name == active) for name, able in tiers.items()),
        ggml.backends(tuple(cache_types())),
    )
