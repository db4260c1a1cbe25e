"""Cache types by name, and pairs of them: one for K, one for V."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import gguf

from ..errors import InputError
from ..reference import TYPES
from .installed import cache_types

UNCENTRED = "uncentred"  # after a pair: its keys are stored as they are


def check_type(name: str) -> str:
    """`name`, if it is a cache type; InputError with the nearest names otherwise."""
    known = cache_types()
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are {', '.join(known)}."
    raise InputError(f"{name!r} is not a cache type. {hint}")


def type_id(name: str) -> int:
    """The `enum ggml_type` value of a cache type."""
    return cache_types()[check_type(name)]


def is_tq(name: str) -> bool:
    """Whether the type is one of this project."""
    return name in TYPES


def block(name: str) -> tuple[int, int]:
    """Values and bytes of a block of the type."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_id(name))]


def bits_per_value(name: str) -> float:
    """Bits that one cached value takes."""
    values, size = block(name)
    return 8 * size / values


@dataclass(frozen=True, order=True)
class Pair:
    """The types of the K and of the V cache, by name."""

    k: str
    v: str
    centred: bool = True
    """False: keys of a TQ type are stored as they are. True: as `llama_tq.centring` and LLAMA_TQ_CENTRE say.
    """

    def __post_init__(self) -> None:
        check_type(self.k)
        check_type(self.v)
        if not self.centred and not is_tq(self.k):
            raise InputError(
                f"{self.k} keys are never centred: {UNCENTRED!r} goes with K of type {', '.join(TYPES)}."
            )

    def __str__(self) -> str:
        return f"{self.k}/{self.v}" + ("" if self.centred else f" {UNCENTRED}")

    @property
    def k_label(self) -> str:
        """The K type, and whether it is stored uncentred."""
        return self.k if self.centred else f"{self.k} {UNCENTRED}"

    @property
    def bits_per_value(self) -> float:
        """Mean of K and V, which have the same number of values in most models."""
        return (bits_per_value(self.k) + bits_per_value(self.v)) / 2

    @classmethod
    def parse(cls, text: str) -> Pair:
        """`q8_0/tq3_0`, K first, or one name for both; `tq4_0/tq3_0 uncentred` without key centring."""
        types, _, word = text.strip().partition(" ")
        if word.strip() not in ("", UNCENTRED):
            raise InputError(f"{word.strip()!r} cannot stand after {types}: only {UNCENTRED!r} can.")
        k, slash, v = types.partition("/")
        return cls(k, v if slash else k, not word)


REFERENCE = Pair("f16", "f16")
FLOOR = Pair("f32", "f32")
"""Differs from the reference by next to nothing, and still not by nothing: see `Evaluation.floor`."""
YARDSTICKS = tuple(map(Pair.parse, ("q8_0", "q5_0", "q4_0")))
RECOMMENDED = tuple(
    map(Pair.parse, ("q8_0/tq4_0", "tq4_0/q8_0", "tq4_0", "tq4_0/tq3_0", "tq3_0/tq4_0", "tq3_0"))
)
"""From large to small; both orders, because some models need the bits in K and others in V: see GUIDE.md."""


def parse_pairs(text: str) -> tuple[Pair, ...]:
    """Comma-separated pairs, without repetitions, in the order given."""
    return tuple(dict.fromkeys(Pair.parse(item) for item in text.split(",") if item.strip()))
