"""The block formats of csrc/FORMAT.md by operators of MLX, on whatever device is the default.

The bytes are those of :mod:`llama_tq.reference`, whose order this follows. All that one device could round in
another way than the next is looked up: reciprocals by code, errors and indices by the integer they depend on.
Sums of products are left to single operators, so that nothing is contracted: do not put them in
``mx.compile``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..reference import TYPES, TypeSpec, check_type, decode_scale_words
from ..reference import _codec as fmt

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_PART = 1 << 12  # blocks that are encoded at a time: the search takes some 16 KiB for each
_REACH = 256
"""Magnitudes divided by a candidate's scale stay below: the first scale is no less than 8/9 of
``search_start`` times the largest magnitude, and 9/8 of 2^14 / 84 is 220.
"""


def quantize(x: mx.array, type: str) -> mx.array:
    """Encode rows of numbers.

    :param x: float32, float16 or bfloat16, shape ``(..., n)`` with n a multiple of 32
    :param type: name of a type
    :returns: uint8, shape ``(..., n / 32 * block bytes)``
    :raises ValueError: unknown type, another dtype, or n not a multiple of 32
    """
    spec = check_type(type)
    if x.dtype not in FLOATS:
        raise ValueError(f"x has dtype {x.dtype}; allowed are float32, float16 and bfloat16")
    if x.ndim == 0 or x.shape[-1] % fmt.BLOCK:
        raise ValueError(f"x has shape {x.shape}; the last dimension must be a multiple of {fmt.BLOCK}")
    shape = (*x.shape[:-1], x.shape[-1] // fmt.BLOCK * spec.block_bytes)
    if not x.size:
        return mx.zeros(shape, mx.uint8)
    halves = x.astype(mx.float32).reshape(-1, 2, fmt.SUB)
    parts = (halves[i : i + _PART] for i in range(0, len(halves), _PART))
    return mx.concatenate([_pack(*_encode(part, spec), spec) for part in parts]).reshape(shape)


def dequantize(b: mx.array, type: str) -> mx.array:
    """Decode rows of blocks.

    :param b: uint8, shape ``(..., m)`` with m a multiple of the type's block bytes
    :param type: name of a type
    :returns: float32, shape ``(..., m / block bytes * 32)``
    :raises ValueError: unknown type, another dtype, or m not a whole number of blocks
    """
    spec = check_type(type)
    if b.dtype != mx.uint8:
        raise ValueError(f"b has dtype {b.dtype}; allowed is uint8")
    if b.ndim == 0 or b.shape[-1] % spec.block_bytes:
        size = spec.block_bytes
        raise ValueError(f"b has shape {b.shape}; the last dimension must be a multiple of {size}")
    words, indices = _unpack(b.reshape(-1, spec.block_bytes), spec)
    levels = _book(_tables(spec.name).levels, words >> 15, indices)
    values = _constants().scales[words][..., None] * levels
    return values.reshape(*b.shape[:-1], spec.row_values(b.shape[-1]))


# --- tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Constants:
    """What all types share."""

    scale: mx.array  # float32, by code
    inverse: mx.array  # float32, by code, rounded as the specification wants it
    scales: mx.array  # float32 (65536, 2), by scale word


@dataclass(frozen=True)
class _Tables:
    """What depends on the codebooks: a row for each."""

    levels: mx.array  # float32 (2, levels)
    error: mx.array  # int32 (2, ...): squared distance of an integer from its nearest level
    index: mx.array  # uint8 (2, ...): index of a number of FINE-ths


@functools.cache
def _constants() -> _Constants:
    scale = fmt.scale_of(np.arange(fmt.CODE_MAX + 1))
    scales, _ = decode_scale_words(np.arange(1 << 16, dtype=np.uint16))
    return _Constants(mx.array(scale), mx.array(np.float32(1) / scale), mx.array(scales))


@functools.cache
def _tables(type: str) -> _Tables:
    books = TYPES[type].codebook
    v = np.arange(-_REACH, _REACH + 1)
    fine = np.arange(-_REACH * fmt.FINE, _REACH * fmt.FINE + 1)
    error = [(v - book[fmt.nearest(v, book)]) ** 2 for book in books]
    index = [np.searchsorted(fmt.FINE // 2 * (book[:-1] + book[1:]), fine, side="right") for book in books]
    return _Tables(
        mx.array(books.astype(np.float32)),
        mx.array(np.stack(error).astype(np.int32)),
        mx.array(np.stack(index).astype(np.uint8)),
    )


def _book(table: mx.array, book: mx.array, entries: mx.array) -> mx.array:
    """Look entries ``(blocks, 2, 16)`` up in each block's row of a table."""
    return table.reshape(-1)[book.astype(mx.int32)[:, None, None] * table.shape[1] + entries]


# --- section 3: the index bits ----------------------------------------------------------------------


def _unpack(blocks: mx.array, spec: TypeSpec) -> tuple[mx.array, mx.array]:
    """Blocks, uint8 ``(blocks, bytes)``, to scale words ``(blocks,)`` and indices ``(blocks, 2, 16)``."""
    words = blocks[:, 0].astype(mx.int32) | blocks[:, 1].astype(mx.int32) << 8
    body = blocks[:, 2:]
    nibbles = spec.bits == 4
    parts = [body & 15, body >> 4] if nibbles else [body[:, :8] >> 2 * k & 3 for k in range(4)]
    indices = mx.concatenate(parts, axis=1)
    if spec.bits == 3:
        indices = indices | mx.concatenate([(body[:, 8:] >> k & 1) << 2 for k in range(8)], axis=1)
    return words, indices.reshape(-1, 2, fmt.SUB)


def _pack(words: mx.array, indices: mx.array, spec: TypeSpec) -> mx.array:
    """The inverse of :func:`_unpack`."""
    i = indices.reshape(-1, fmt.BLOCK)
    parts = [(words & 255).astype(mx.uint8)[:, None], (words >> 8).astype(mx.uint8)[:, None]]
    if spec.bits == 4:
        parts.append(i[:, :16] | i[:, 16:] << 4)
    else:
        parts.append(_either([(i[:, 8 * k : 8 * k + 8] & 3) << 2 * k for k in range(4)]))
    if spec.bits == 3:
        parts.append(_either([i[:, 4 * k : 4 * k + 4] >> 2 << k for k in range(8)]))
    return mx.concatenate(parts, axis=1)


def _either(parts: list[mx.array]) -> mx.array:
    return functools.reduce(mx.bitwise_or, parts)


# --- section 4: the encoder -------------------------------------------------------------------------

# All candidates are priced at once: a token is one block or few, and operators cost more than numbers do.


def _encode(x: mx.array, spec: TypeSpec) -> tuple[mx.array, mx.array]:
    """float32 ``(blocks, 2, 16)`` to scale words ``(blocks,)`` and indices ``(blocks, 2, 16)``."""
    most = float(fmt.MAGNITUDE_MAX)
    x = mx.clip(mx.where(mx.isnan(x), mx.zeros_like(x), x), -most, most)
    amax = mx.abs(x).max(axis=2)
    nonzero = amax.max(axis=1) >= float(fmt.MAGNITUDE_MIN)

    code, negative, price = _search(x, amax, spec)
    totals = price.sum(axis=2)
    second = totals[1] < totals[0]
    code, negative = (mx.where(second[:, None], choice[1], choice[0]) for choice in (code, negative))

    v = mx.round(x * (fmt.FINE * _constants().inverse[code])[..., None]).astype(mx.int32)
    v = mx.where(negative[..., None], -v, v)
    indices = _book(_tables(spec.name).index, second, v + _REACH * fmt.FINE)
    exponent = _shared_exponent(code)[:, 0]
    fields = code & 7 | (code >> 3) - exponent[:, None] << 3 | negative.astype(mx.int32) << 4
    words = fields[:, 0] | fields[:, 1] << 5 | exponent << 10 | second.astype(mx.int32) << 15
    return mx.where(nonzero, words, 0), mx.where(nonzero[:, None, None], indices, mx.zeros_like(indices))


def _search(x: mx.array, amax: mx.array, spec: TypeSpec) -> tuple[mx.array, mx.array, mx.array]:
    """4.2 and 4.3: the best writable scales, as codes, whether they are negative, and their prices.

    All ``(2, blocks, 2)``, by codebook.
    """
    error = _tables(spec.name).error
    start = ((amax * spec.search_start).view(mx.int32) >> 20) - fmt.CODE_BIAS
    codes = mx.clip(start[..., None] + mx.arange(spec.search_count), fmt.CODE_MIN, fmt.CODE_MAX)
    prices = _prices(x, codes[None], error)
    best = mx.argmin(prices, axis=3, keepdims=True)  # the first of equals
    code = mx.take_along_axis(mx.broadcast_to(codes, (2, *codes.shape)), best // 2, axis=3)[..., 0]
    lowest = mx.broadcast_to(8 * _shared_exponent(code), code.shape)
    again = _prices(x, lowest[..., None], error)
    unwritable = code < lowest
    negative = mx.where(unwritable, again[..., 1] < again[..., 0], best[..., 0] % 2 == 1)
    return mx.maximum(code, lowest), negative, mx.where(unwritable, again.min(axis=3), prices.min(axis=3))


def _prices(x: mx.array, codes: mx.array, error: mx.array) -> mx.array:
    """4.2: the squared error of scales.

    :param codes: ``(2 or 1, blocks, 2, n)``, by codebook or for both
    :returns: float32 ``(2, blocks, 2, 2n)``: of each code with the positive sign, then with the negative
    """
    constants = _constants()
    scale = constants.scale[codes][..., None]
    t = mx.round(x[:, :, None] * constants.inverse[codes][..., None]).astype(mx.int32)
    entries = mx.stack([t, -t], axis=4) + _REACH
    rows = mx.arange(2).reshape(2, 1, 1, 1, 1, 1) * error.shape[1]
    errors = error.reshape(-1)[rows + entries].sum(axis=5).astype(mx.float32)
    return (scale * scale * errors).flatten(3)


def _shared_exponent(code: mx.array) -> mx.array:
    """4.3: ``e`` of the scale word, ``(..., 1)``, from the codes of both sub-blocks."""
    return mx.maximum((code >> 3).max(axis=-1, keepdims=True) - 1, 1)
