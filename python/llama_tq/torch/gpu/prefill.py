"""Attention of many query rows.

A program has ROWS query rows of one KV head, tokens by the heads of its group, and goes through its part of
the cache in tiles. A tile is unpacked in registers, once for all of these rows, to halves:

    value = unit * number,  unit = 2^(e - 26) for the largest e of the row's scale words,
                            number = +-(8 + m) 2^(h + e of the block - e of the row) * level

A half holds a number exactly unless another block of the row is 2^24 times as large. Queries are divided by
their largest value and rounded to halves. Units of keys go to the scores; units of values go to the weights,
which are rounded to halves in parts of the tile's largest unit. Tensor cores sum in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import rotate
from .decode import BOOL_MASK, LOG2E, NO_MASK, capped
from .queries import from_quarters, load_queries, to_quarters
from .words import choose_book, exponent, load_block, offsets, pair_scales, values_of_row


@triton.jit
def _unpack(
    word, x0, x1, x2, x3, BOOKS: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr, LAST: tl.constexpr
):
    """Blocks [blocks, rows], or with LAST [rows, blocks], as load_block has them, to numbers, halves [rows,
    values] in the order of quarters, and units [rows].
    """
    top = tl.maximum(tl.max(exponent(word), 1 if LAST else 0), 1)
    scale = pair_scales(word, top[:, None] if LAST else top[None, :], ASM)
    offset = offsets(scale, ASM)
    book = choose_book(word, BOOKS, BITS)
    a = tl.join(
        values_of_row(x0, book, scale, offset, BITS, ASM), values_of_row(x2, book, scale, offset, BITS, ASM)
    )
    b = tl.join(
        values_of_row(x1, book, scale, offset, BITS, ASM), values_of_row(x3, book, scale, offset, BITS, ASM)
    )
    # 0 block, 1 row (or the other way), 2 sub-block, 3 low, 4 word, 5 and 6 quarter
    number = tl.permute(tl.join(a, b), [0, 1, 5, 6, 4, 3, 2] if LAST else [1, 0, 5, 6, 4, 3, 2])
    # A reshape that feeds a product of matrices fails in Triton 3.6: bits become halves after it.
    number = tl.reshape(number, [number.shape[0], 32 * number.shape[1]]).to(tl.float16, bitcast=True)
    return number, ((top + 101) << 23).to(tl.float32, bitcast=True)


# A step of decoding must not compile anything: what grows with the cache is no constant.
@triton.jit(do_not_specialize=["tokens", "rows", "past", "split"])
def prefill_kernel(
    q,
    k,
    v,
    mask,
    out,
    lse,
    heads,
    kv_heads,
    tokens,
    group,
    rows,
    past,
    split,  # rows of a part
    scale,
    softcap,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    mask_batch,
    mask_head,
    mask_token,
    K_BITS: tl.constexpr,
    K_BYTES: tl.constexpr,
    K_BOOKS: tl.constexpr,
    K_BLOCKS: tl.constexpr,
    K_WIDTH: tl.constexpr,  # blocks, to the next power of two
    K_SIZE: tl.constexpr,  # values that are rotated together
    V_BITS: tl.constexpr,
    V_BYTES: tl.constexpr,
    V_BOOKS: tl.constexpr,
    V_BLOCKS: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_SIZE: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    WHOLE: tl.constexpr,  # the cache is not split: turn the result back and write it
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    ASM: tl.constexpr,
    LAST: tl.constexpr,
):
    """Strides of q and the mask are in elements, of k and v in 16 bits.

    out: [batch, token, head, value], or [batch, token, head, part, value] in float32; lse likewise, to base 2
    where the cache is split.
    """
    at = tl.program_id(1).to(tl.int64)
    batch, kv_head = at // kv_heads, at % kv_heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = row // group
    head = kv_head * group + row % group
    used = token < tokens
    part = tl.program_id(2)

    V_VALUES: tl.constexpr = 32 * V_WIDTH
    query, top = load_queries(
        q, batch, head, token, used, q_batch, q_head, q_token, ROWS, K_BLOCKS, K_WIDTH, K_SIZE
    )
    query = to_quarters(query, ROWS, K_WIDTH, K_BITS).to(tl.float16)
    if not CAPPED:
        scale *= LOG2E
    top *= scale

    begin = part * split
    end = tl.minimum(begin + split, rows)
    if CAUSAL:
        last = tl.minimum((tl.program_id(0) * ROWS + ROWS - 1) // group, tokens - 1)
        end = tl.minimum(end, past + last + 1)
    # Rows begin at multiples of two bytes, words are read at multiples of four.
    k_at = (k + batch * k_batch + kv_head * k_head + begin.to(tl.int64) * k_row).to(tl.int64)
    v_at = (v + batch * v_batch + kv_head * v_head + begin.to(tl.int64) * v_row).to(tl.int64)
    k_words = (k_at & -4).to(tl.pointer_type(tl.int32))
    v_words = (v_at & -4).to(tl.pointer_type(tl.int32))
    row_of = tl.arange(0, TILE)
    along = row_of[:, None] if LAST else row_of[None, :]
    k_block = tl.expand_dims(tl.arange(0, K_WIDTH), 0 if LAST else 1)
    v_block = tl.expand_dims(tl.arange(0, V_WIDTH), 0 if LAST else 1)
    k_byte = (k_at & 2).to(tl.int32) + along * (2 * k_row) + k_block * K_BYTES
    v_byte = (v_at & 2).to(tl.int32) + along * (2 * v_row) + v_block * V_BYTES
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_VALUES], tl.float32)
    # The next tile is on its way while one is unpacked.
    live = along < end - begin
    word, x0, x1, x2, x3 = load_block(k_words, k_byte, 0, live & (k_block < K_BLOCKS), K_BITS, 1, ASM)
    v_word, y0, y1, y2, y3 = load_block(v_words, v_byte, 0, live & (v_block < V_BLOCKS), V_BITS, 1, ASM)
    for first in range(begin, end, TILE):
        k_words += TILE // 2 * k_row
        v_words += TILE // 2 * v_row
        live = along < end - first - TILE
        next_word, next_x0, next_x1, next_x2, next_x3 = load_block(
            k_words, k_byte, 0, live & (k_block < K_BLOCKS), K_BITS, 1, ASM
        )
        next_v_word, next_y0, next_y1, next_y2, next_y3 = load_block(
            v_words, v_byte, 0, live & (v_block < V_BLOCKS), V_BITS, 1, ASM
        )
        n = first + row_of
        number, unit = _unpack(word, x0, x1, x2, x3, K_BOOKS, K_BITS, ASM, LAST)
        score = tl.dot(query, tl.trans(number)) * top[:, None] * unit[None, :]
        if CAPPED:
            score = capped(score, softcap)
        seen = (n < end)[None, :] & used[:, None]
        if CAUSAL:
            seen &= n[None, :] <= past + token[:, None]
        if MASK != NO_MASK:
            place = (
                mask
                + batch * mask_batch
                + head[:, None] * mask_head
                + token.to(tl.int64)[:, None] * mask_token
            )
            if MASK == BOOL_MASK:
                seen &= tl.load(place + n[None, :], seen, 0) != 0
            else:
                score += tl.load(place + n[None, :], seen, 0.0).to(tl.float32) * LOG2E
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(score - base[:, None])
        keep = tl.exp2(best - base)
        best = new
        total = total * keep + tl.sum(p, 1)

        number, unit = _unpack(v_word, y0, y1, y2, y3, V_BOOKS, V_BITS, ASM, LAST)
        largest = tl.max(unit, 0)
        weight = (p * (unit / largest)[None, :]).to(tl.float16)
        acc = acc * keep[:, None] + tl.dot(weight, number) * largest
        word, x0, x1, x2, x3 = next_word, next_x0, next_x1, next_x2, next_x3
        v_word, y0, y1, y2, y3 = next_v_word, next_y0, next_y1, next_y2, next_y3

    acc = from_quarters(acc / tl.where(total == 0, 1.0, total)[:, None], ROWS, V_WIDTH, V_BITS)
    sums = tl.where(total == 0, float("-inf"), best + tl.log2(tl.where(total == 0, 1.0, total)))
    place = ((batch * tokens + token) * heads + head) * tl.num_programs(2) + part
    if WHOLE:
        acc = tl.reshape(acc, [ROWS * V_VALUES // V_SIZE, V_SIZE])
        acc = tl.reshape(rotate(acc, ROWS * V_VALUES // V_SIZE, V_SIZE), [ROWS, V_VALUES])
        sums = sums / LOG2E
    c = tl.arange(0, V_VALUES)
    tl.store(
        out + place[:, None] * (32 * V_BLOCKS) + c[None, :],
        acc.to(out.dtype.element_ty),
        used[:, None] & (c < 32 * V_BLOCKS)[None, :],
    )
    tl.store(lse + place, sums, used)
