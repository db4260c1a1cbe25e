"""Cache types by name, and pairs of them: one for K, one for V."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import gguf

import llama_tq

from .errors import InputError

# What llama.cpp's own -ctk and -ctv take (kv_cache_types in common/arg.cpp).
UPSTREAM_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def cache_types() -> tuple[str, ...]:
    """Names of all types that a KV cache can have."""
    return UPSTREAM_TYPES + tuple(t.name for t in llama_tq.types())


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
    return int(gguf.GGMLQuantizationType[check_type(name).upper()])


def bits_per_value(name: str) -> float:
    """Bits that one cached value takes."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[check_type(name).upper()]]
    return 8 * size / values


@dataclass(frozen=True, order=True)
class Pair:
    """The types of the K and of the V cache, by name."""

    k: str
    v: str

    def __post_init__(self) -> None:
        check_type(self.k)
        check_type(self.v)

    def __str__(self) -> str:
        return f"{self.k}/{self.v}"

    @property
    def bits_per_value(self) -> float:
        """Mean of K and V, which have the same number of values in most models."""
        return (bits_per_value(self.k) + bits_per_value(self.v)) / 2

    @classmethod
    def parse(cls, text: str) -> Pair:
        """`q8_0/tq3_0`, K first, or one name for both."""
        k, slash, v = text.strip().partition("/")
        return cls(k, v if slash else k)


REFERENCE = Pair("f16", "f16")
YARDSTICKS = (Pair("q8_0", "q8_0"), Pair("q5_0", "q5_0"), Pair("q4_0", "q4_0"))
RECOMMENDED = (
    Pair("q8_0", "tq4_0"),
    Pair("q8_0", "tq3_0"),
    Pair("tq4_0", "tq4_0"),
    Pair("tq4_0", "tq3_0"),
    Pair("tq4_0", "tq2_1"),
    Pair("tq3_0", "tq3_0"),
)


def parse_pairs(text: str) -> tuple[Pair, ...]:
    """Comma-separated pairs, without repetitions, in the order given."""
    return tuple(dict.fromkeys(Pair.parse(item) for item in text.split(",") if item.strip()))
