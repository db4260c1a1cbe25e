"""Encoder and decoder of FORMAT.md, section by section."""

from __future__ import annotations

import dataclasses

import numpy as np

from .tables import TYPES, TypeSpec

BLOCK = TypeSpec.block_size  # values in a block
SUB = 16  # values under one scale

OCTAVE_MIN, OCTAVE_MAX = 1, 32  # section 2: scale = +-(8 + m) * 2^(octave - 26)
CODE_MIN, CODE_MAX = 8 * OCTAVE_MIN, 8 * OCTAVE_MAX + 7  # code = 8 * octave + m
CODE_BIAS = 832  # (float32 bits of a positive scale) >> 20 == code + CODE_BIAS

MAGNITUDE_MAX = np.float32(121920)  # 127 * the largest scale
MAGNITUDE_MIN = np.float32(2.0**-21)  # a block that stays below is stored as zeros
FINE = 8  # resolution of the final assignment, in steps per codebook unit


def quantize(x: np.ndarray, type: str) -> np.ndarray:
    """Encode rows of numbers.

    :param x: float32 or float16, shape ``(..., n)`` with n a multiple of 32
    :param type: a key of :data:`TYPES`
    :returns: uint8, shape ``(..., n / 32 * block bytes)``
    :raises ValueError: unknown type, or n not a multiple of 32
    :raises TypeError: dtype other than float32 or float16
    """
    x, spec = check_values(x, type)
    halves = x.astype(np.float32).reshape(-1, 2, SUB)
    blocks = pack(*encode(halves, spec), spec)
    return blocks.reshape(*x.shape[:-1], x.shape[-1] // BLOCK * spec.block_bytes)


def dequantize(b: np.ndarray, type: str) -> np.ndarray:
    """Decode rows of blocks.

    :param b: uint8, shape ``(..., m)`` with m a multiple of the type's block bytes
    :param type: a key of :data:`TYPES`
    :returns: float32, shape ``(..., m / block bytes * 32)``
    :raises ValueError: unknown type, or m not a whole number of blocks
    :raises TypeError: dtype other than uint8
    """
    b, spec = check_blocks(b, type)
    words, indices = unpack(b.reshape(-1, spec.block_bytes), spec)
    scales, books = decode_scale_words(words)
    levels = spec.codebook[books[:, None, None], indices].astype(np.float32)
    return (scales[:, :, None] * levels).reshape(*b.shape[:-1], spec.row_values(b.shape[-1]))


def check_values(x: np.ndarray, type: str) -> tuple[np.ndarray, TypeSpec]:
    """Refuse what :func:`quantize` does not take."""
    spec = check_type(type)
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float16):
        raise TypeError(f"x has dtype {x.dtype}; allowed are float32 and float16")
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"x has shape {x.shape}; the last dimension must be a multiple of {BLOCK}")
    return x, spec


def check_blocks(b: np.ndarray, type: str) -> tuple[np.ndarray, TypeSpec]:
    """Refuse what :func:`dequantize` does not take."""
    spec = check_type(type)
    b = np.asarray(b)
    if b.dtype != np.uint8:
        raise TypeError(f"b has dtype {b.dtype}; allowed is uint8")
    if b.ndim == 0 or b.shape[-1] % spec.block_bytes:
        size = spec.block_bytes
        raise ValueError(f"b has shape {b.shape}; the last dimension must be a multiple of {size}")
    return b, spec


def check_type(type: str) -> TypeSpec:
    """Look a type up by its name."""
    if type not in TYPES:
        raise ValueError(f"unknown type {type!r}; allowed are {', '.join(TYPES)}")
    return TYPES[type]


# --- section 2: the scale word ----------------------------------------------------------------------


def decode_scale_words(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split scale words into what they say.

    :param words: uint16, shape ``(blocks,)``; every one of the 65536 values is valid
    :returns: scales, float32, shape ``(blocks, 2)``; codebook numbers, shape ``(blocks,)``
    """
    w = words.astype(np.int32)[:, None] >> np.array([0, 5], np.int32)
    mantissa, high, negative = w & 7, w >> 3 & 1, w >> 4 & 1
    exponent = words.astype(np.int32)[:, None] >> 10 & 31
    code = 8 * (exponent + high) + mantissa
    scale = np.where(negative, -1, 1).astype(np.float32) * scale_of(code)
    return np.where(exponent == 0, np.float32(0), scale), words.astype(np.int32) >> 15


def scale_of(code: np.ndarray) -> np.ndarray:
    """The positive float32 scale of a code ``8 * octave + m``."""
    return ((code + CODE_BIAS).astype(np.int32) << 20).view(np.float32)


# --- section 3: the index bits ----------------------------------------------------------------------


def unpack(blocks: np.ndarray, spec: TypeSpec) -> tuple[np.ndarray, np.ndarray]:
    """Blocks, uint8 ``(blocks, bytes)``, to scale words ``(blocks,)`` and indices ``(blocks, 2, 16)``."""
    words = blocks[:, 0].astype(np.uint16) | blocks[:, 1].astype(np.uint16) << 8
    body = blocks[:, 2:]
    if spec.bits == 4:
        indices = np.concatenate([body & 15, body >> 4], axis=1)
    else:
        indices = np.concatenate([body[:, :8] >> 2 * k & 3 for k in range(4)], axis=1)
    if spec.bits == 3:
        indices |= np.concatenate([body[:, 8:] >> k & 1 for k in range(8)], axis=1) << 2
    return words, indices.reshape(-1, 2, SUB)


def pack(words: np.ndarray, indices: np.ndarray, spec: TypeSpec) -> np.ndarray:
    """The inverse of :func:`unpack`."""
    i = indices.reshape(-1, BLOCK).astype(np.uint8)
    parts = [(words & 255).astype(np.uint8)[:, None], (words >> 8).astype(np.uint8)[:, None]]
    if spec.bits == 4:
        parts.append(i[:, :16] | i[:, 16:] << 4)
    else:
        parts.append(np.bitwise_or.reduce([(i[:, 8 * k : 8 * k + 8] & 3) << 2 * k for k in range(4)]))
    if spec.bits == 3:
        parts.append(np.bitwise_or.reduce([i[:, 4 * k : 4 * k + 4] >> 2 << k for k in range(8)]))
    return np.concatenate(parts, axis=1)


# --- section 4: the encoder -------------------------------------------------------------------------


@dataclasses.dataclass
class Choice:
    """The best scale found for each sub-block under one codebook; arrays of shape ``(blocks, 2)``."""

    code: np.ndarray  # int32
    negative: np.ndarray  # bool
    cost: np.ndarray  # float32

    def improve(self, other: Choice, where: np.ndarray | bool = True) -> None:
        """Take over ``other`` where it is strictly cheaper."""
        better = where & (other.cost < self.cost)
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, np.where(better, theirs, mine))


def encode(x: np.ndarray, spec: TypeSpec) -> tuple[np.ndarray, np.ndarray]:
    """Floats ``(blocks, 2, 16)`` to scale words ``(blocks,)`` and indices ``(blocks, 2, 16)``."""
    x = sanitize(x)
    amax = np.abs(x).max(axis=2)
    nonzero = amax.max(axis=1) >= MAGNITUDE_MIN

    per_book = [search(x, amax, book, spec) for book in spec.codebook]
    totals = [choice.cost[:, 0] + choice.cost[:, 1] for choice in per_book]
    second = totals[1] < totals[0]
    code = np.where(second[:, None], per_book[1].code, per_book[0].code)
    negative = np.where(second[:, None], per_book[1].negative, per_book[0].negative)

    indices = assign(x, code, negative, spec.codebook[second.astype(int)])
    exponent = shared_exponent(code)
    fields = (code & 7) | ((code >> 3) - exponent[:, None]) << 3 | negative.astype(np.int32) << 4
    words = fields[:, 0] | fields[:, 1] << 5 | exponent << 10 | second.astype(np.int32) << 15
    return np.where(nonzero, words, 0).astype(np.uint16), np.where(nonzero[:, None, None], indices, 0)


def sanitize(x: np.ndarray) -> np.ndarray:
    """4.1: NaN becomes 0, magnitudes are limited to what the largest scale can hold."""
    return np.clip(np.where(np.isnan(x), np.float32(0), x), -MAGNITUDE_MAX, MAGNITUDE_MAX)


def search(x: np.ndarray, amax: np.ndarray, book: np.ndarray, spec: TypeSpec) -> Choice:
    """4.2 and 4.3: the best writable pair of scales under one codebook."""
    first = (((amax * np.float32(spec.search_start)).view(np.int32)) >> 20) - CODE_BIAS
    best = Choice(np.zeros_like(first), np.zeros(first.shape, bool), np.full(first.shape, np.inf, np.float32))
    for k in range(spec.search_count):
        best.improve(price(x, np.clip(first + k, CODE_MIN, CODE_MAX), book))

    lowest = 8 * shared_exponent(best.code)[:, None] * np.ones((1, 2), np.int32)
    unwritable = best.code < lowest
    best.cost = np.where(unwritable, np.float32(np.inf), best.cost)
    best.improve(price(x, lowest, book), unwritable)
    return best


def price(x: np.ndarray, code: np.ndarray, book: np.ndarray) -> Choice:
    """4.2: squared error of one scale per sub-block, the better of both signs, positive first."""
    scale = scale_of(code)
    t = np.rint(x * (np.float32(1) / scale)[:, :, None])
    costs = []
    for v in (t, -t):
        error = ((v - book[nearest(v, book)]) ** 2).sum(axis=2)
        costs.append((scale * scale) * error.astype(np.float32))
    return Choice(code, costs[1] < costs[0], np.minimum(*costs))


def nearest(v: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Index of the nearest level of an ascending codebook; a midpoint goes to the upper level."""
    return np.searchsorted((book[:-1] + book[1:]) / 2, v.ravel(), side="right").reshape(v.shape)


def shared_exponent(code: np.ndarray) -> np.ndarray:
    """4.3: ``e`` of the scale word, shape ``(blocks,)``, from the codes of both sub-blocks."""
    return np.maximum((code >> 3).max(axis=1) - 1, 1)


def assign(x: np.ndarray, code: np.ndarray, negative: np.ndarray, books: np.ndarray) -> np.ndarray:
    """4.4: indices under the chosen scales, finer than the search; books ``(blocks, levels)``."""
    inverse = np.float32(FINE) * (np.float32(1) / scale_of(code))
    v = np.rint(x * inverse[:, :, None]) * np.where(negative, -1, 1)[:, :, None]
    midpoints = FINE / 2 * (books[:, :-1] + books[:, 1:]).astype(np.float64)
    return (v[:, :, :, None] >= midpoints[:, None, None, :]).sum(axis=3)
