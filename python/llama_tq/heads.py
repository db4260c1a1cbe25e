"""How llama.cpp's cache splits a head before it is encoded (csrc/FORMAT.md, section 5)."""

from __future__ import annotations

from .reference import TypeSpec

KEY = "key"
VALUE = "value"
VALUE_ROTATION = 64  # at most: larger ones do V no good


def rotation_size(side: str, head: int) -> int:
    """Values that are rotated together, by one Hadamard matrix, in a head of K (KEY) or V (VALUE).

    For keys the largest power of two that divides the head, for values at most 64.
    """
    largest = head & -head
    return largest if side == KEY else min(largest, VALUE_ROTATION)


def check_head(head: int, what: str) -> None:
    """Refuse heads that do not fill blocks.

    :raises ValueError: `head` is not a positive multiple of 32
    """
    if head <= 0 or head % TypeSpec.block_size:
        raise ValueError(f"{what} of {head} values; allowed are multiples of {TypeSpec.block_size}")
