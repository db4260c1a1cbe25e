"""Attention of few query rows: every block of the cache is unpacked once for all of them, into the registers
that tensor cores read.

A program has up to COLUMNS query rows of one KV head, tokens by the heads of its group, and a part of the
cache, of which each of its warps takes TILE rows at a time, with its own running maximum. Scores are
S^T = K Q^T and results O^T = V^T P^T: queries are columns, and what is unpacked is the left side of both. A
warp's lanes are [8, 4]:

    keys     lane g, t has block t (of 4, or half of one of 2) of rows g, g + 8, ...
    values   lane g, t has part g (of 8) of rows 4 t to 4 t + 3 of every 16; a pair of rows is a word

That is how an operand of the products lies, but for the order of the values, which is free as long as queries
and results agree; with PAIRS = 1 the rows are 2 t, 2 t + 1, 2 t + 8, 2 t + 9. Nothing passes through shared
memory but the weights. Triton chooses where tensors lie: lanes go along the first dimensions of what is
loaded, or with LAST along the last, warps along the next one, and the rest is registers.

A value is unit * number, where unit = 2^(e - 26) for the largest e in the scale words of a warp's tile, and
number = +-(8 + m) 2^(h + e of the block - largest e) * level, exactly in a half unless another block of the
tile is 2^24 times as large. Queries are divided by their largest value and rounded to halves, as weights are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .queries import load_queries, to_quarters
from .words import (
    choose_book,
    exponent,
    load_block,
    offsets,
    pair_scales,
    permute_bytes,
    place,
    values_of_row,
    values_of_rows,
)

NO_MASK, BOOL_MASK, FLOAT_MASK = (tl.constexpr(i) for i in range(3))
LOG2E = tl.constexpr(1.4426950408889634)
_HEADROOM = tl.constexpr(12.0)  # weights are 2^12 times what they are, so that small ones are normal halves


@triton.jit
def capped(score, softcap):
    """softcap * tanh(score / softcap), to base 2; tanh(x) is 1 - 2 / (e^2x + 1)."""
    return (softcap * LOG2E) * (1.0 - 2.0 / (tl.exp2(score / softcap * (2.0 * LOG2E)) + 1.0))


@triton.jit
def _axis(N: tl.constexpr, AT: tl.constexpr, LAST: tl.constexpr):
    """0 to N - 1 along one of five dimensions: lanes t, g, warps, two of registers; LAST: the other way."""
    x = tl.arange(0, N)
    for d in tl.static_range(5):
        if d != (4 - AT if LAST else AT):
            x = tl.expand_dims(x, d)
    return x


@triton.jit
def _largest(e, LAST: tl.constexpr):
    """Of each warp, of what lies as _axis says; 1 at least. Registers first, then lanes."""
    if LAST:
        e = tl.max(tl.max(tl.max(tl.max(e, 0), 0), 2), 1)
    else:
        e = tl.max(tl.max(tl.max(tl.max(e, 4), 3), 0), 0)
    return tl.maximum(e, 1)


@triton.jit
def _quarters(x0, x1, x2, x3, N: tl.constexpr):
    """The first N of them, as the last dimension."""
    if N == 1:
        x = tl.expand_dims(x0, len(x0.shape))
    elif N == 2:
        x = tl.join(x0, x1)
    else:
        x = tl.join(tl.join(x0, x2), tl.join(x1, x3))
        # Triton has no starred lists.
        x = tl.reshape(x, x.shape[:-2] + [4])  # noqa: RUF005
    return x


# A step of decoding must not compile anything: what grows with the cache is no constant.
@triton.jit(do_not_specialize=["tokens", "rows", "past", "split"])
def decode_kernel(
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
    split,  # rows of a part, a multiple of WARPS * TILE
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
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    WARPS: tl.constexpr,
    ASM: tl.constexpr,
    LAST: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Strides of q and the mask are in elements, of k and v in 16 bits.

    out: [batch, token, head, part, value], float32, still rotated; lse likewise, to base 2.
    """
    K_PARTS: tl.constexpr = 4 // K_WIDTH if K_WIDTH < 4 else 1  # of a block, for a lane each
    K_MORE: tl.constexpr = K_WIDTH * K_PARTS // 4  # of a lane
    K_QUARTERS: tl.constexpr = 4 // K_PARTS
    K_VALUES: tl.constexpr = 32 * K_WIDTH
    V_PARTS: tl.constexpr = 8 // V_WIDTH if V_WIDTH < 8 else 1
    V_MORE: tl.constexpr = V_WIDTH * V_PARTS // 8
    V_QUARTERS: tl.constexpr = 4 // V_PARTS
    V_VALUES: tl.constexpr = 32 * V_WIDTH

    at = tl.program_id(1).to(tl.int64)
    batch, kv_head = at // kv_heads, at % kv_heads
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    token = column // group
    head = kv_head * group + column % group
    used = token < tokens
    part = tl.program_id(2)
    begin = part * split
    end = tl.minimum(begin + split, rows)
    if CAUSAL:
        last = tl.minimum((tl.program_id(0) * COLUMNS + COLUMNS - 1) // group, tokens - 1)
        end = tl.minimum(end, past + last + 1)

    query, top = load_queries(
        q, batch, head, token, used, q_batch, q_head, q_token, COLUMNS, K_BLOCKS, K_WIDTH, K_SIZE
    )
    if not CAPPED:
        scale *= LOG2E
    top *= scale
    # more, block, part, quarter, word, low, sub-block -> more, quarter, word, block, part, low, sub-block
    query = to_quarters(query, COLUMNS, K_WIDTH, K_BITS)
    query = tl.reshape(query, [COLUMNS, K_MORE, 4, 4 * K_QUARTERS // PAIRS, 2 * PAIRS])
    query = tl.permute(query, [0, 1, 3, 2, 4])
    query = tl.trans(tl.reshape(query, [COLUMNS, K_VALUES]).to(tl.float16))
    query = tl.broadcast_to(query[None, :, :], [WARPS, K_VALUES, COLUMNS])

    # Rows begin at multiples of two bytes, words are read at multiples of four.
    k_at = (k + batch * k_batch + kv_head * k_head + begin.to(tl.int64) * k_row).to(tl.int64)
    v_at = (v + batch * v_batch + kv_head * v_head + begin.to(tl.int64) * v_row).to(tl.int64)
    k_words = (k_at & -4).to(tl.pointer_type(tl.int32))
    v_words = (v_at & -4).to(tl.pointer_type(tl.int32))
    t, g, warp = _axis(4, 0, LAST), _axis(8, 1, LAST), _axis(WARPS, 2, LAST)
    i = _axis(TILE // 8, 3, LAST)
    k_row_of = warp * TILE + 8 * i + g + 0 * t
    v_row_of = warp * TILE + 16 * (i >> 1) + 0 * g
    v_row_of += 4 * t + 2 * (i & 1) if PAIRS == 2 else 2 * t + 8 * (i & 1)
    k_unit = 4 * _axis(K_MORE, 4, LAST) + t
    v_unit = 8 * _axis(V_MORE, 4, LAST) + g
    k_block, k_part = k_unit // K_PARTS, k_unit % K_PARTS
    v_block, v_part = v_unit // V_PARTS, v_unit % V_PARTS
    k_byte = (k_at & 2).to(tl.int32) + k_row_of * (2 * k_row) + k_block * K_BYTES
    v_byte = (v_at & 2).to(tl.int32) + v_row_of * (2 * v_row) + v_block * V_BYTES
    row_of = tl.arange(0, WARPS)[:, None] * TILE + tl.arange(0, TILE)[None, :]

    best = tl.full([WARPS, COLUMNS], float("-inf"), tl.float32)
    total = tl.zeros([WARPS, TILE, COLUMNS], tl.float32)
    acc = tl.zeros([WARPS, V_VALUES, COLUMNS], tl.float32)
    acc_top = tl.full([WARPS], 1, tl.int32)  # exponent of the unit that acc is in
    for first in range(begin, end, WARPS * TILE):
        live = (k_row_of < end - first) & (k_block < K_BLOCKS)
        word, x0, x1, x2, x3 = load_block(k_words, k_byte, k_part, live, K_BITS, K_PARTS, ASM)
        live = (v_row_of < end - first) & (v_block < V_BLOCKS)
        word0, y0, y1, y2, y3 = load_block(v_words, v_byte, v_part, live, V_BITS, V_PARTS, ASM)
        live = (v_row_of + 1 < end - first) & (v_block < V_BLOCKS)
        word1, z0, z1, z2, z3 = load_block(v_words, v_byte + 2 * v_row, v_part, live, V_BITS, V_PARTS, ASM)
        k_words += WARPS * TILE // 2 * k_row
        v_words += WARPS * TILE // 2 * v_row

        k_top = _largest(exponent(word), LAST)
        scales = pair_scales(word, k_top[None, None, :, None, None], ASM)
        offset = offsets(scales, ASM)
        book = choose_book(word, K_BOOKS, K_BITS)
        a0 = values_of_row(x0, book, scales, offset, K_BITS, ASM)
        a1, a2, a3 = a0, a0, a0
        if K_QUARTERS > 1:
            a1 = values_of_row(x1, book, scales, offset, K_BITS, ASM)
        if K_QUARTERS > 2:
            a2 = values_of_row(x2, book, scales, offset, K_BITS, ASM)
            a3 = values_of_row(x3, book, scales, offset, K_BITS, ASM)
        number = _quarters(a0, a1, a2, a3, K_QUARTERS)
        if LAST:
            number = tl.permute(number, [4, 3, 2, 1, 0, 5, 6, 7, 8])
        # 0 t, 1 g, 2 warp, 3 i, 4 more, 5 sub-block, 6 low, 7 word, 8 quarter
        if PAIRS == 2:
            number = tl.permute(number, [2, 3, 1, 4, 8, 7, 0, 6, 5])
        else:
            number = tl.permute(number, [2, 3, 1, 4, 8, 7, 6, 0, 5])
        number = tl.reshape(number, [WARPS, TILE, K_VALUES]).to(tl.float16, bitcast=True)
        unit = ((k_top + 101) << 23).to(tl.float32, bitcast=True)
        score = tl.dot(number, query) * (unit[:, None] * top[None, :])[:, None, :]
        if CAPPED:
            score = capped(score, softcap)
        n = first + row_of
        seen = (n < end)[:, :, None] & used[None, None, :]
        if CAUSAL:
            seen &= n[:, :, None] <= past + token[None, None, :]
        if MASK != NO_MASK:
            at_mask = mask + batch * mask_batch + head * mask_head + token.to(tl.int64) * mask_token
            if MASK == BOOL_MASK:
                seen &= tl.load(at_mask[None, None, :] + n[:, :, None], seen, 0) != 0
            else:
                added = tl.load(at_mask[None, None, :] + n[:, :, None], seen, 0.0)
                score += added.to(tl.float32) * LOG2E
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        base = tl.where(new == float("-inf"), 0.0, new - _HEADROOM)
        weight = tl.exp2(score - base[:, None, :])
        keep = tl.exp2(best - tl.where(new == float("-inf"), 0.0, new))
        best = new
        total = total * keep[:, None, :] + weight

        v_top = _largest(tl.maximum(exponent(word0), exponent(word1)), LAST)
        top_of_all = v_top[None, None, :, None, None]
        of0, of1 = pair_scales(word0, top_of_all, ASM), pair_scales(word1, top_of_all, ASM)
        scale0, scale1 = permute_bytes(of0, of1, 0x5410, ASM), permute_bytes(of0, of1, 0x7632, ASM)
        offset0, offset1 = offsets(scale0, ASM), offsets(scale1, ASM)
        book0, book1 = choose_book(word0, V_BOOKS, V_BITS), choose_book(word1, V_BOOKS, V_BITS)
        b0 = values_of_rows(y0, z0, book0, book1, scale0, offset0, scale1, offset1, V_BITS, ASM)
        b1, b2, b3 = b0, b0, b0
        if V_QUARTERS > 1:
            b1 = values_of_rows(y1, z1, book0, book1, scale0, offset0, scale1, offset1, V_BITS, ASM)
        if V_QUARTERS > 2:
            b2 = values_of_rows(y2, z2, book0, book1, scale0, offset0, scale1, offset1, V_BITS, ASM)
            b3 = values_of_rows(y3, z3, book0, book1, scale0, offset0, scale1, offset1, V_BITS, ASM)
        number = _quarters(b0, b1, b2, b3, V_QUARTERS)
        if LAST:
            number = tl.permute(number, [4, 3, 2, 1, 0, 5, 6, 7, 8, 9])
        # 0 t, 1 g, 2 warp, 3 and 4 i, 5 more, 6 row, 7 sub-block, 8 low, 9 word, 10 quarter
        number = tl.reshape(number, [4, 8, WARPS, TILE // 16, 2, V_MORE, 2, 2, 2, 2, V_QUARTERS])
        if PAIRS == 2:
            number = tl.permute(number, [2, 5, 10, 9, 8, 7, 1, 3, 0, 4, 6])
        else:
            number = tl.permute(number, [2, 5, 10, 9, 8, 7, 1, 3, 4, 0, 6])
        number = tl.reshape(number, [WARPS, V_VALUES, TILE]).to(tl.float16, bitcast=True)
        keep *= ((acc_top - v_top + 127) << 23).to(tl.float32, bitcast=True)[:, None]
        acc_top = v_top
        acc = tl.dot(number, weight.to(tl.float16), acc * keep[:, None, :])

    # The warps' results are joined as those of parts are.
    most = tl.max(best, 0)
    share = tl.exp2(best - tl.where(most == float("-inf"), 0.0, most)[None, :])
    sums = tl.sum(tl.sum(total, 1) * share, 0)
    safe = tl.where(sums == 0, 1.0, sums)
    share *= ((acc_top + 101) << 23).to(tl.float32, bitcast=True)[:, None]
    acc = tl.sum(acc * share[:, None, :], 0) / safe[None, :]
    sums = tl.where(sums == 0, float("-inf"), most - _HEADROOM + tl.log2(safe))
    to = ((batch * tokens + token) * heads + head) * tl.num_programs(2) + part
    # In the order of number: more, quarter, word, low, sub-block, g.
    m = tl.arange(0, V_VALUES)
    unit_of = m // (64 * V_QUARTERS) * 8 + m % 8
    quarter = unit_of % V_PARTS * V_QUARTERS + m // 64 % V_QUARTERS
    value = unit_of // V_PARTS * 32 + place(quarter, m // 32 % 2, m // 16 % 2, m // 8 % 2, V_BITS)
    tl.store(
        out + to[None, :] * (32 * V_BLOCKS) + value[:, None],
        acc,
        used[None, :] & (value < 32 * V_BLOCKS)[:, None],
    )
    tl.store(lse + to, sums, used)
