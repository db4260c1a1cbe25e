"""The rotation of heads before they are encoded: that of llama.cpp's cache (csrc/FORMAT.md, section 5).

An orthonormal Hadamard matrix of a power of two; a head is rotated in parts of that size. The matrix is
symmetric, so that it undoes itself.
"""

from __future__ import annotations

import functools

import torch

from ..reference import TypeSpec

KEY = "key"
VALUE = "value"


def rotation_size(side: str, head: int) -> int:
    """Values that are rotated together in a head of K (:data:`KEY`) or V (:data:`VALUE`).

    As llama.cpp chooses them: for keys the largest power of two that divides the head, for values at most 64.
    """
    largest = head & -head
    return largest if side == KEY else min(largest, 64)


def check_head(head: int, what: str) -> None:
    """Refuse heads that do not fill blocks.

    :raises ValueError: `head` is not a positive multiple of 32
    """
    if head <= 0 or head % TypeSpec.block_size:
        raise ValueError(f"{what} of {head} values; allowed are multiples of {TypeSpec.block_size}")


@functools.cache
def matrix(n: int, device: torch.device) -> torch.Tensor:
    """float32 ``(n, n)``, n a power of two."""
    h = torch.ones(1, 1)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return (h / n**0.5).to(device)


def rotate(x: torch.Tensor, n: int) -> torch.Tensor:
    """Rotate the last dimension in parts of n; float32 of the same shape. Doing it twice gives `x`."""
    parts = x.float().unflatten(-1, (-1, n))
    return (parts @ matrix(n, x.device)).flatten(-2)
