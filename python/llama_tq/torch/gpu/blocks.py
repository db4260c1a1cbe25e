"""csrc/FORMAT.md in Triton: encoder, decoder, and the rotation. Functions for tiles of blocks.

Equal bytes need equal roundings: every kernel that encodes is launched with ``enable_fp_fusion=False``, so
that no product and sum become one instruction, and divides by ``div_rn``, which is rounded correctly.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from ...reference import TYPES
from ...reference._codec import (
    BLOCK,
    CODE_BIAS,
    CODE_MAX,
    CODE_MIN,
    FINE,
    MAGNITUDE_MAX,
    MAGNITUDE_MIN,
    SUB,
)

ERRORS = 512  # entries of a table of errors: numbers from -256 to 255, more than a candidate gives (4.2)

_BLOCK, _SUB = tl.constexpr(BLOCK), tl.constexpr(SUB)
_BIAS, _CODE_MIN, _CODE_MAX = tl.constexpr(CODE_BIAS), tl.constexpr(CODE_MIN), tl.constexpr(CODE_MAX)
_MAGNITUDE_MAX, _MAGNITUDE_MIN = tl.constexpr(float(MAGNITUDE_MAX)), tl.constexpr(float(MAGNITUDE_MIN))
_FINE, _ERRORS = tl.constexpr(FINE), tl.constexpr(ERRORS)
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2^23: its sum with a number below 2^22 has no fraction


@functools.cache
def tables(type: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of both codebooks: squared errors, int32 ``(2, ERRORS)``, the midpoints of 4.4, int32
    ``(2, levels - 1)``, and the levels, float32 ``(2, levels)``.
    """
    book = TYPES[type].codebook
    number = np.arange(ERRORS) - ERRORS // 2
    nearest = (number[:, None] >= (book[:, None, :-1] + book[:, None, 1:]) / 2).sum(-1)
    errors = (number - np.take_along_axis(book, nearest, 1)) ** 2
    midpoints = FINE // 2 * (book[:, :-1] + book[:, 1:])
    arrays = (errors.astype(np.int32), midpoints.astype(np.int32), book.astype(np.float32))
    return tuple(torch.from_numpy(x).to(device) for x in arrays)


@triton.jit
def rotate(x, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """Each of [PARTS, SIZE] times the Hadamard matrix: log2(SIZE) butterflies of neighbours. After each, the
    lowest bit of the index becomes the highest: all bits have their turn, and are back in the end.
    """
    rounds: tl.constexpr = tl.standard._log2(SIZE)
    for _ in tl.static_range(rounds):
        a, b = tl.split(tl.reshape(x, [PARTS, SIZE // 2, 2]))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), [0, 2, 1]), [PARTS, SIZE])
    return x * (1.0 / (SIZE**0.5))


@triton.jit
def scale_of(code):
    return ((code + _BIAS) << 20).to(tl.float32, bitcast=True)


@triton.jit
def scales(word, k: tl.constexpr):
    """Section 2: scale k of scale words, int32."""
    field, e = word >> (5 * k), (word >> 10) & 31
    bits = ((8 * e + (field & 15) + _BIAS) << 20) | ((field & 16) << 27)
    return tl.where(e == 0, 0, bits).to(tl.float32, bitcast=True)


@triton.jit
def _rint(x):
    return ((x + _TO_INTEGER) - _TO_INTEGER).to(tl.int32)


@triton.jit
def _inverse(code):
    scale = scale_of(code)
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def _price(x, code, errors):
    """4.2: x [N, 2, 16] under codes [N, 2]; the price of the better sign, positive first, and whether it is
    the negative.
    """
    t = _rint(x * _inverse(code)[:, :, None])
    middle = errors + _ERRORS // 2
    scale = scale_of(code)
    square = scale * scale
    positive = square * tl.sum(tl.load(middle + t), 2).to(tl.float32)
    negative = square * tl.sum(tl.load(middle - t), 2).to(tl.float32)
    return tl.minimum(positive, negative), negative < positive


@triton.jit
def _exponent(code):
    """4.3: of the scale word [N], from the codes [N, 2]."""
    return tl.maximum((tl.max(code, 1) >> 3) - 1, 1)


@triton.jit
def _search(x, amax, errors, START: tl.constexpr, COUNT: tl.constexpr):
    """4.2 and 4.3 under one codebook: prices, codes and signs, [N, 2]."""
    first = ((amax * START).to(tl.int32, bitcast=True) >> 20) - _BIAS
    code = tl.minimum(tl.maximum(first, _CODE_MIN), _CODE_MAX)
    price, negative = _price(x, code, errors)
    for k in range(1, COUNT):
        other = tl.minimum(tl.maximum(first + k, _CODE_MIN), _CODE_MAX)
        other_price, other_negative = _price(x, other, errors)
        better = other_price < price
        price = tl.where(better, other_price, price)
        code = tl.where(better, other, code)
        negative = tl.where(better, other_negative, negative)
    lowest = tl.broadcast_to((8 * _exponent(code))[:, None], code.shape)
    other_price, other_negative = _price(x, lowest, errors)
    beyond = code < lowest
    price = tl.where(beyond, other_price, price)
    negative = tl.where(beyond, other_negative, negative)
    return price, tl.maximum(code, lowest), negative


@triton.jit
def encode(x, errors, midpoints, START: tl.constexpr, COUNT: tl.constexpr, BITS: tl.constexpr):
    """Section 4: x [N, 2, 16] to scale words [N] and indices [N, 2, 16], int32."""
    x = tl.where(x == x, x, 0.0)
    x = tl.minimum(tl.maximum(x, -_MAGNITUDE_MAX), _MAGNITUDE_MAX)
    amax = tl.max(tl.abs(x), 2)
    price, code, negative = _search(x, amax, errors, START, COUNT)
    other_price, other_code, other_negative = _search(x, amax, errors + _ERRORS, START, COUNT)
    second = tl.sum(other_price, 1) < tl.sum(price, 1)
    code = tl.where(second[:, None], other_code, code)
    negative = tl.where(second[:, None], other_negative, negative)

    v = _rint(x * (_inverse(code) * _FINE)[:, :, None])
    v = tl.where(negative[:, :, None], -v, v)
    levels: tl.constexpr = 1 << BITS
    index = tl.zeros_like(v)
    for j in tl.static_range(levels - 1):
        middle = tl.load(midpoints + second.to(tl.int32) * (levels - 1) + j)
        index += (middle[:, None, None] <= v).to(tl.int32)

    e = _exponent(code)
    field = (code & 7) | (((code >> 3) - e[:, None]) << 3) | (negative.to(tl.int32) << 4)
    word = tl.sum(field << (5 * tl.arange(0, 2))[None, :], 1) | (e << 10) | (second.to(tl.int32) << 15)
    used = tl.max(amax, 1) >= _MAGNITUDE_MIN
    return tl.where(used, word, 0), tl.where(used[:, None, None], index, 0)


@triton.jit
def write(block, word, index, mask, N: tl.constexpr, BITS: tl.constexpr):
    """Section 3: scale words [N] and indices [N, 2, 16] to blocks at the pointers `block` [N]."""
    tl.store(block, (word & 255).to(tl.uint8), mask)
    tl.store(block + 1, (word >> 8).to(tl.uint8), mask)
    if BITS == 4:
        byte = tl.sum(index << (4 * tl.arange(0, 2))[None, :, None], 1)
        tl.store(block[:, None] + 2 + tl.arange(0, 16)[None, :], byte.to(tl.uint8), mask[:, None])
    else:
        low = tl.reshape(index & 3, [N, 4, 8]) << (2 * tl.arange(0, 4))[None, :, None]
        tl.store(block[:, None] + 2 + tl.arange(0, 8)[None, :], tl.sum(low, 1).to(tl.uint8), mask[:, None])
    if BITS == 3:
        high = tl.reshape(index >> 2, [N, 8, 4]) << tl.arange(0, 8)[None, :, None]
        tl.store(block[:, None] + 10 + tl.arange(0, 4)[None, :], tl.sum(high, 1).to(tl.uint8), mask[:, None])


# --- the decoder ---
# Blocks are read as 16-bit words: the scale word, then words of which each has SLOTS indices. A tile of rows
# comes as [N, blocks, words, SLOTS], which is not the order of the values: word j, slot s is
#
#   tq4_0           8 words of 4    value 2 j + (s / 2) + 16 (s % 2)
#   tq3_0, tq2_1    4 words of 8    value 2 j + (s / 4) + 8 (s % 4)
#
# from_slots puts them in order.


@triton.jit
def load_levels(block, books, mask, BITS: tl.constexpr):
    """Blocks at the pointers (to 16 bits) [N, blocks] to scale words [N, blocks] and levels, float32
    [N, blocks, words, SLOTS].
    """
    WORDS: tl.constexpr = 8 if BITS == 4 else 4
    SLOTS: tl.constexpr = 4 if BITS == 4 else 8
    word = tl.load(block, mask, 0).to(tl.int32) & 0xFFFF
    j = tl.arange(0, WORDS)[None, None, :]
    low = tl.load(block[:, :, None] + 1 + j, mask[:, :, None], 0).to(tl.int32) & 0xFFFF
    slot = tl.arange(0, SLOTS)[None, None, None, :]
    WIDTH: tl.constexpr = 4 if BITS == 4 else 2  # bits of an index that are in `low`
    index = (low[:, :, :, None] >> (WIDTH * slot)) & ((1 << WIDTH) - 1)
    if BITS == 3:
        high = tl.load(block[:, :, None] + 5 + (j & 1), mask[:, :, None], 0).to(tl.int32) & 0xFFFF
        bit = 8 * (slot >> 2) + (j >> 1)[:, :, :, None] + 2 * (slot & 3)
        index |= ((high[:, :, :, None] >> bit) & 1) << 2
    book = ((word >> 15) << BITS)[:, :, None, None]
    return word, tl.load(books + book + index)


@triton.jit
def spread(first, second, BITS: tl.constexpr):
    """What belongs to sub-blocks 0 and 1, [N, blocks], to [N, blocks, 1, SLOTS]."""
    SLOTS: tl.constexpr = 4 if BITS == 4 else 8
    slot = tl.arange(0, SLOTS)[None, None, None, :]
    sub = slot & 1 if BITS == 4 else (slot & 3) >> 1
    return tl.where(sub == 0, first[:, :, None, None], second[:, :, None, None])


@triton.jit
def from_slots(x, N: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr):
    """[N, slots], as load_levels has them, in the order of the values."""
    if BITS == 4:
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 8, 2, 2]), [0, 1, 4, 2, 3])
    else:
        x = tl.permute(tl.reshape(x, [N, BLOCKS, 4, 2, 4]), [0, 1, 4, 2, 3])
    return tl.reshape(x, [N, BLOCKS * _BLOCK])
