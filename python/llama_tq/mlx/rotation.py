"""The rotation of heads before they are encoded: that of llama.cpp's cache (csrc/FORMAT.md, section 5)."""

from __future__ import annotations

import mlx.core as mx


def rotate(x: mx.array, n: int) -> mx.array:
    """Multiply the last dimension by an orthonormal Hadamard matrix, in parts of n, a power of two.

    :returns: float32, in the shape of `x`; doing it twice gives `x`
    """
    parts = x.astype(mx.float32).reshape(*x.shape[:-1], -1, n)
    return mx.hadamard_transform(parts).reshape(x.shape)
