"""What is installed, and what it can do on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata

from .._api import active_isa, kernels, types
from ..runtime import ggml, system
from ..runtime.installed import cache_types
from ..runtime.pairs import bits_per_value
from .centre import Centring, examine

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
    system: tuple[system.Fact, ...]
    packages: tuple[system.Fact, ...]
    variables: tuple[system.Fact, ...]
    """Of the environment."""


@dataclass(frozen=True)
class InfoWithModel(Info):
    """And what a TQ cache would do with a model."""

    centring: Centring


def info(model: str | os.PathLike[str] | None = None, *, n_gpu_layers: int = 0) -> Info:
    """Look at the installation; with a model, return InfoWithModel. Means that are not known yet are measured
    with `n_gpu_layers` on the GPU; -1 for all.

    Raises InputError for a bad model.
    """
    tiers = {k.isa: k.supported for k in kernels()}
    active = active_isa()
    found = Info(
        metadata.version(DISTRIBUTION),
        system.commit(),
        ggml.version(),
        tuple(Type(t.name, t.id, bits_per_value(t.name)) for t in types()),
        tuple(Tier(name, able, name == active) for name, able in tiers.items()),
        ggml.backends(tuple(cache_types())),
        system.system(),
        system.packages(),
        system.variables(),
    )
    return InfoWithModel(**vars(found), centring=examine(model, n_gpu_layers)) if model is not None else found
