"""Small numbers as consecutive bits, lowest first; every row begins with a byte of its own."""

from __future__ import annotations

import numpy as np


def row_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take."""
    return -(-count * bits // 8)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below ``2**bits``, uint8 ``(n, count)``, to uint8 ``(n, row_bytes(count, bits))``."""
    rows, count = numbers.shape
    each = np.unpackbits(numbers[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(each.reshape(rows, count * bits), axis=-1, bitorder="little")


def unpack(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The inverse of :func:`pack`."""
    each = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    whole = np.packbits(each.reshape(len(packed), count, bits), axis=-1, bitorder="little")
    return whole[..., 0] if bits else np.zeros((len(packed), count), np.uint8)
