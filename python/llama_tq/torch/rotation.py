"""The rotation of heads before they are encoded: that of llama.cpp's cache (csrc/FORMAT.md, section 5).

An orthonormal Hadamard matrix, which is symmetric and so undoes itself.
"""

from __future__ import annotations

import functools

import torch


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
