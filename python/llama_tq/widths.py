"""Types named by a number of bits, for callers that say ``bits_k=4``."""

from __future__ import annotations

import operator

from .reference import TYPES, TypeSpec, check_type

BITS = {spec.bits: name for name, spec in TYPES.items()}
"""Bits of an index to the type that has it: 4 is tq4_0, 3 is tq3_0, 2 is tq2_1."""


def type_of(bits: int, name: str | None = None) -> TypeSpec:
    """The type called `name`, or where that is None, the one whose indices have `bits` bits.

    Every type can hold keys as well as values, as in llama.cpp.

    :raises ValueError: no such type, or none of so many bits
    """
    if name is not None:
        return check_type(name)
    try:
        known = not isinstance(bits, bool) and operator.index(bits) in BITS
    except TypeError:
        known = False
    if not known:
        allowed = ", ".join(f"{b} ({name})" for b, name in BITS.items())
        raise ValueError(f"no type has {bits!r} bits; allowed are {allowed}")
    return TYPES[BITS[bits]]
