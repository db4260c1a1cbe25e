"""Packed words to halves, in registers: the look-ups of csrc/tq_device.h in Triton.

A quarter of a block is 8 values: a word of tq4_0, or every second index of a word of the other types. A
look-up makes two words of four biased levels (level + 128) of it, of which bytes 0 and 2 belong to sub-block
0, bytes 1 and 3 to sub-block 1. A byte under 0x64 is the half 1024 + byte, so that one multiply-add by the
scale s and -1152 s makes a value of it, exactly. Two halves are a word: Triton has instructions for one half
at a time only, and none for bytes, hence the assembly. Without ASM, the same in Triton's own words, for its
interpreter and for other GPUs.
"""

from __future__ import annotations

import functools

import numpy as np
import triton
import triton.language as tl

from ...reference import TYPES

_MAGIC = tl.constexpr(0x64646464)
_BIAS = tl.constexpr(0xE480E480 - (1 << 32))  # -1152, twice
_DOWN = tl.constexpr(0x14001400)  # 2^-10, twice


@functools.cache
def books(type: str) -> tuple[int, ...]:
    """Both codebooks as words of four biased levels: eight, four or two."""
    levels = (TYPES[type].codebook.astype(np.int16) + 128).astype(np.uint8)
    return tuple(int(word) for word in levels.reshape(-1).view(np.int32))


@triton.jit
def permute_bytes(a, b, select, ASM: tl.constexpr):
    """Byte i of each word is the one that nibble i of `select` names, of the four of a and the four of b."""
    if ASM:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, select], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        word = (a + b + select) * 0
        both = (word + a).to(tl.int64) & 0xFFFFFFFF | (word + b).to(tl.int64) << 32
        for i in tl.static_range(4):
            word |= ((both >> (((select >> (4 * i)) & 7) * 8)).to(tl.int32) & 255) << (8 * i)
        return word


@triton.jit
def _low(x):
    return x.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high(x):
    return (x >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _bits(x):
    return x.to(tl.float16).to(tl.int16, bitcast=True)


@triton.jit
def multiply(a, b, ASM: tl.constexpr):
    """Words of two halves."""
    if ASM:
        return tl.inline_asm_elementwise(
            "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        b = a * 0 + b
        low, high = _bits(_low(a) * _low(b)), _bits(_high(a) * _high(b))
        return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


@triton.jit
def _multiply_add(a, b, c, ASM: tl.constexpr):
    """Words of two halves to the bits of both: int16 [..., 2]."""
    if ASM:
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 x; fma.rn.f16x2 x, $2, $3, $4; mov.b32 {$0, $1}, x; }",
            "=h,=h,r,r,r",
            [a, b, c],
            dtype=(tl.int16, tl.int16),
            is_pure=True,
            pack=1,
        )
        return tl.join(low, high)
    else:
        return tl.join(_bits(_low(a) * _low(b) + _low(c)), _bits(_high(a) * _high(b) + _high(c)))


@triton.jit
def exponent(word):
    return (word >> 10) & 31


@triton.jit
def pair_scales(word, top, ASM: tl.constexpr):
    """Both scales of scale words, halves of a word, in units of 2^(top - 26), for `top` not less than any
    exponent among them. Exact, but for scales below 2^-24 of these units.
    """
    e = word & 0x7C00
    code = (e - ((top - 28) << 10)) * 0x10001 + (((word << 7) & 0x780) | ((word << 18) & 0x7800000))
    sign = ((word << 11) & 0x8000) | ((word << 22) & -0x80000000)
    # 2^10 times as much, which a half cannot hold below 2^-14
    return multiply(tl.where(e > (tl.maximum(top - 28, 0) << 10), code | sign, 0), _DOWN, ASM)


@triton.jit
def offsets(scales, ASM: tl.constexpr):
    """-1152 times the scales."""
    return multiply(scales, _BIAS, ASM)


@triton.jit
def load_words(base, at, live, N: tl.constexpr, ASM: tl.constexpr):
    """N words (of four; the rest is undefined) at an even number of bytes after `base`, a pointer to words.
    Of a word that begins in the middle of another, both are read.
    """
    p = base + (at >> 2)
    odd = (at & 2) != 0
    both = live & odd
    select = tl.where(odd, 0x5432, 0x3210)
    a = tl.load(p, live, 0)
    b = tl.load(p + 1, both if N == 1 else live, 0)
    w0 = permute_bytes(a, b, select, ASM)
    w1, w2, w3 = w0, w0, w0
    if N > 1:
        c = tl.load(p + 2, both if N == 2 else live, 0)
        w1 = permute_bytes(b, c, select, ASM)
        if N > 2:
            d = tl.load(p + 3, both if N == 3 else live, 0)
            w2 = permute_bytes(c, d, select, ASM)
            if N > 3:
                w3 = permute_bytes(d, tl.load(p + 4, both, 0), select, ASM)
    return w0, w1, w2, w3


@triton.jit
def load_block(base, at, part, live, BITS: tl.constexpr, PARTS: tl.constexpr, ASM: tl.constexpr):
    """The scale word of the block `at` bytes after `base`, and the indices of `part` of its PARTS (1, 2 or
    4): a word for each of its 4 / PARTS quarters.
    """
    word = tl.load(base.to(tl.pointer_type(tl.int16)) + (at >> 1), live, 0).to(tl.int32)
    if BITS == 4:
        w0, w1, w2, w3 = load_words(base, at + 2 + part * (16 // PARTS), live, 4 // PARTS, ASM)
    else:
        # quarter 2 h + r: bits 2 r and 2 r + 1 of every nibble of word h, and bit h + 2 r of the last word's
        if PARTS == 1:
            low0, low1, high, _ = load_words(base, at + 2, live, BITS, ASM)
        else:
            low0, low1, high, _ = load_words(base, at + 2 + part // (PARTS // 2) * 4, live, 1, ASM)
            if BITS == 3:
                high, _, _, _ = load_words(base, at + 10, live, 1, ASM)
        if PARTS == 4:
            low0 = low0 >> (2 * (part & 1))
        w0, w1 = low0 & 0x33333333, (low0 >> 2) & 0x33333333
        w2, w3 = low1 & 0x33333333, (low1 >> 2) & 0x33333333
        if BITS == 3:
            if PARTS == 1:
                w0, w1 = w0 | ((high << 2) & 0x44444444), w1 | (high & 0x44444444)
                w2, w3 = w2 | ((high << 1) & 0x44444444), w3 | ((high >> 1) & 0x44444444)
            elif PARTS == 2:
                w0, w1 = w0 | ((high << (2 - part)) & 0x44444444), w1 | ((high >> part) & 0x44444444)
            else:
                half = part >> 1
                w0 |= tl.where((part & 1) == 0, high << (2 - half), high >> half) & 0x44444444
    return word, w0, w1, w2, w3


@triton.jit
def choose_book(word, BOOKS: tl.constexpr, BITS: tl.constexpr):
    """Of the codebooks, the words that look_up wants for scale words."""
    second = (word & 0x8000) != 0
    if BITS == 4:
        return (
            tl.where(second, BOOKS[4], BOOKS[0]),
            tl.where(second, BOOKS[5], BOOKS[1]),
            tl.where(second, BOOKS[6], BOOKS[2]),
            tl.where(second, BOOKS[7], BOOKS[3]),
        )
    elif BITS == 3:
        a, b = tl.where(second, BOOKS[2], BOOKS[0]), tl.where(second, BOOKS[3], BOOKS[1])
        return a, b, a, b
    else:  # both fit one look-up
        zero = word * 0
        return zero + BOOKS[0], zero + BOOKS[1], tl.where(second, 0x44444444, 0), zero


@triton.jit
def look_up(index, book, BITS: tl.constexpr, ASM: tl.constexpr):
    """Two words of levels of a quarter."""
    if BITS == 4:
        low = index & 0x77777777
        pick = ((index >> 1) & 0x44444444) | 0x32103210
        a = permute_bytes(
            permute_bytes(book[0], book[1], low, ASM), permute_bytes(book[2], book[3], low, ASM), pick, ASM
        )
        low, pick = low >> 16, pick >> 16
        b = permute_bytes(
            permute_bytes(book[0], book[1], low, ASM), permute_bytes(book[2], book[3], low, ASM), pick, ASM
        )
        return a, b
    else:
        if BITS == 2:
            index |= book[2]
        return (
            permute_bytes(book[0], book[1], index, ASM),
            permute_bytes(book[0], book[1], index >> 16, ASM),
        )


@triton.jit
def _two(levels, scale, offset, HIGH: tl.constexpr, ASM: tl.constexpr):
    """Bytes 0 and 1 (HIGH: 2 and 3) of levels times the halves of scale."""
    select: tl.constexpr = 0x4342 if HIGH else 0x4140
    return _multiply_add(permute_bytes(levels, _MAGIC, select, ASM), scale, offset, ASM)


@triton.jit
def values_of_row(index, book, scale, offset, BITS: tl.constexpr, ASM: tl.constexpr):
    """A quarter's values, bits of halves [..., 2 sub-blocks, 2, 2 words]."""
    a, b = look_up(index, book, BITS, ASM)
    return tl.join(
        tl.join(_two(a, scale, offset, False, ASM), _two(a, scale, offset, True, ASM)),
        tl.join(_two(b, scale, offset, False, ASM), _two(b, scale, offset, True, ASM)),
    )


@triton.jit
def _of_rows(a, b, scale0, offset0, scale1, offset1, ASM: tl.constexpr):
    """Levels of the same values in two rows: [..., 2 rows, 2 sub-blocks, 2]."""
    first, second = permute_bytes(a, b, 0x5140, ASM), permute_bytes(a, b, 0x7362, ASM)
    return tl.join(
        tl.join(_two(first, scale0, offset0, False, ASM), _two(first, scale1, offset1, True, ASM)),
        tl.join(_two(second, scale0, offset0, False, ASM), _two(second, scale1, offset1, True, ASM)),
    )


@triton.jit
def values_of_rows(
    index0, index1, book0, book1, scale0, offset0, scale1, offset1, BITS: tl.constexpr, ASM: tl.constexpr
):
    """A quarter's values in two rows, bits of halves [..., 2 rows, 2 sub-blocks, 2, 2 words]. Words of scales
    and offsets have a row's in each half; 0 and 1 are the sub-blocks.
    """
    a0, b0 = look_up(index0, book0, BITS, ASM)
    a1, b1 = look_up(index1, book1, BITS, ASM)
    return tl.join(
        _of_rows(a0, a1, scale0, offset0, scale1, offset1, ASM),
        _of_rows(b0, b1, scale0, offset0, scale1, offset1, ASM),
    )


@triton.jit
def place(quarter, word, low, sub, BITS: tl.constexpr):
    """Number of a value in its block."""
    if BITS != 4:
        quarter = (quarter & 1) * 2 + (quarter >> 1)
    return 16 * sub + 4 * quarter + 2 * word + low
