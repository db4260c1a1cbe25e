"""Attention on packed rows: a kernel for decode and prefill, and one that joins the parts of a split cache.

A program has up to ROWS query rows of one KV head, tokens by the heads of its group, and goes through its
part of the cache in tiles. A tile is decoded in registers, once for all of these rows, to halves:

    value = unit * number,  unit = 2^(e - 26) for the largest e of the row's scale words,
                            number = +-(8 + m) 2^(h + e of the block - e of the row) * level

A number has eleven significant bits and is below 2^12: a half holds it, exactly unless another block of the
row is some 2^13 times as large. Queries are divided by their largest value and rounded to halves. Units of
keys go to the scores; units of values go to the weights, which are rounded to halves in parts of the tile's
largest unit. Tensor cores sum in float32.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from ...heads import KEY, VALUE, rotation_size
from ...reference import TYPES
from .blocks import from_slots, load_levels, rotate, spread, tables, to_slots

# Query rows of a program, values of a tile of keys or values (32 rows of heads of 128 are 4096), and warps;
# the first that has all of a KV head's query rows, or the last. On an H100, 32768 rows of tq4_0, 8 KV heads,
# decode of one sequence and of four, us: tiles of 4096 88 and 299, of 8192 91 and 311, of 2048 140 and 442;
# loads that are pipelined 471 and 1715. Prefill of 8192 tokens, ms: the last 4.6, the second 6.0.
SHAPES = ((16, 4096, 4), (64, 4096, 4), (128, 8192, 8))
PROGRAMS = 4  # wanted of a multiprocessor
SPLIT_MIN = 256  # rows of a part of the cache, at least
JOINED = 16  # parts at a time

NO_MASK, BOOL_MASK, FLOAT_MASK = (tl.constexpr(i) for i in range(3))
_LOG2E = tl.constexpr(1.4426950408889634)
_BIAS = tl.constexpr(832)


@triton.jit
def _ratio(word, e_row, k: tl.constexpr):
    """Scale k of scale words, in units of 2^(e_row - 26)."""
    field, e = word >> (5 * k), (word >> 10) & 31
    bits = ((8 * (e + 26 - e_row) + (field & 15) + _BIAS) << 20) | ((field & 16) << 27)
    return tl.where(e == 0, 0, bits).to(tl.float32, bitcast=True)


@triton.jit
def _load(
    rows,
    n,
    stride,
    live,
    books,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows n of a KV head: numbers, halves [rows, 32 WIDTH] in the order of slots, and units [rows]."""
    block = tl.arange(0, WIDTH)
    at = rows + n.to(tl.int64)[:, None] * stride + (block * (BYTES // 2))[None, :]
    word, level = load_levels(at, books, live[:, None] & (block < BLOCKS)[None, :], BITS)
    e = tl.max((word >> 10) & 31, 1)
    ratio = spread(_ratio(word, e[:, None], 0), _ratio(word, e[:, None], 1), BITS)
    # Rounded after reshape and not before: Triton 3.6 fails where a reshape feeds a product of matrices.
    number = tl.reshape(level * ratio, [n.shape[0], 32 * WIDTH]).to(tl.float16)
    return number, tl.where(e == 0, 0, (e + 101) << 23).to(tl.float32, bitcast=True)


# A step of decoding must not compile anything: what grows with the cache is no constant.
@triton.jit(do_not_specialize=["tokens", "rows", "past", "split"])
def attention_kernel(
    q,
    k,
    v,
    k_books,
    v_books,
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
    K_BLOCKS: tl.constexpr,
    K_WIDTH: tl.constexpr,  # blocks, to the next power of two
    K_SIZE: tl.constexpr,  # values that are rotated together
    V_BITS: tl.constexpr,
    V_BYTES: tl.constexpr,
    V_BLOCKS: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_SIZE: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    WHOLE: tl.constexpr,  # the cache is not split: turn the result back and write it
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
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

    K_VALUES: tl.constexpr = 32 * K_WIDTH
    V_VALUES: tl.constexpr = 32 * V_WIDTH
    d = tl.arange(0, K_VALUES)
    query = tl.load(
        q + batch * q_batch + head[:, None] * q_head + token.to(tl.int64)[:, None] * q_token + d[None, :],
        used[:, None] & (d < 32 * K_BLOCKS)[None, :],
        0.0,
    ).to(tl.float32)
    query = tl.reshape(query, [ROWS * K_VALUES // K_SIZE, K_SIZE])
    query = tl.reshape(rotate(query, ROWS * K_VALUES // K_SIZE, K_SIZE), [ROWS, K_VALUES])
    top = tl.max(tl.abs(query), 1)
    query = to_slots(query / tl.where(top == 0, 1.0, top)[:, None], ROWS, K_WIDTH, K_BITS).to(tl.float16)
    if not CAPPED:
        scale *= _LOG2E
    top *= scale

    begin = part * split
    end = tl.minimum(begin + split, rows)
    if CAUSAL:
        last = tl.minimum((tl.program_id(0) * ROWS + ROWS - 1) // group, tokens - 1)
        end = tl.minimum(end, past + last + 1)
    k_rows = k + batch * k_batch + kv_head * k_head
    v_rows = v + batch * v_batch + kv_head * v_head
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_VALUES], tl.float32)
    for first in range(begin, end, TILE):
        n = first + tl.arange(0, TILE)
        live = n < end
        number, unit = _load(k_rows, n, k_row, live, k_books, K_BITS, K_BYTES, K_BLOCKS, K_WIDTH)
        score = tl.dot(query, tl.trans(number)) * top[:, None] * unit[None, :]
        if CAPPED:
            # tanh(x) = 1 - 2 / (e^2x + 1)
            x = score / softcap
            score = (softcap * _LOG2E) * (1.0 - 2.0 / (tl.exp2(x * (2.0 * _LOG2E)) + 1.0))
        seen = live[None, :] & used[:, None]
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
                score += tl.load(place + n[None, :], seen, 0.0).to(tl.float32) * _LOG2E
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(score - base[:, None])
        keep = tl.exp2(best - base)
        best = new
        total = total * keep + tl.sum(p, 1)

        number, unit = _load(v_rows, n, v_row, live, v_books, V_BITS, V_BYTES, V_BLOCKS, V_WIDTH)
        largest = tl.max(unit, 0)
        weight = (p * (unit / tl.where(largest == 0, 1.0, largest))[None, :]).to(tl.float16)
        acc = acc * keep[:, None] + tl.dot(weight, number) * largest

    acc = from_slots(acc / tl.where(total == 0, 1.0, total)[:, None], ROWS, V_WIDTH, V_BITS)
    sums = tl.where(total == 0, float("-inf"), best + tl.log2(tl.where(total == 0, 1.0, total)))
    place = ((batch * tokens + token) * heads + head) * tl.num_programs(2) + part
    if WHOLE:
        acc = tl.reshape(acc, [ROWS * V_VALUES // V_SIZE, V_SIZE])
        acc = tl.reshape(rotate(acc, ROWS * V_VALUES // V_SIZE, V_SIZE), [ROWS, V_VALUES])
        sums = sums / _LOG2E
    c = tl.arange(0, V_VALUES)
    tl.store(
        out + place[:, None] * (32 * V_BLOCKS) + c[None, :],
        acc.to(out.dtype.element_ty),
        used[:, None] & (c < 32 * V_BLOCKS)[None, :],
    )
    tl.store(lse + place, sums, used)


@triton.jit(do_not_specialize=["parts"])
def join_kernel(
    part_out,
    part_lse,
    out,
    lse,
    parts,
    V_BLOCKS: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_SIZE: tl.constexpr,
    JOINED: tl.constexpr,
):
    """A query row's parts [part, value] to its result, turned back."""
    at = tl.program_id(0).to(tl.int64)
    V_VALUES: tl.constexpr = 32 * V_WIDTH
    c = tl.arange(0, V_VALUES)
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([V_VALUES], tl.float32)
    for first in range(0, parts, JOINED):
        part = first + tl.arange(0, JOINED)
        sums = tl.load(part_lse + at * parts + part, part < parts, float("-inf"))
        values = tl.load(
            part_out + (at * parts + part)[:, None] * (32 * V_BLOCKS) + c[None, :],
            (part < parts)[:, None] & (c < 32 * V_BLOCKS)[None, :],
            0.0,
        )
        new = tl.maximum(best, tl.max(sums, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(sums - base)
        keep = tl.exp2(best - base)
        best = new
        total = total * keep + tl.sum(weight, 0)
        acc = acc * keep + tl.sum(weight[:, None] * values, 0)
    acc = acc / tl.where(total == 0, 1.0, total)
    acc = rotate(tl.reshape(acc, [V_VALUES // V_SIZE, V_SIZE]), V_VALUES // V_SIZE, V_SIZE)
    tl.store(
        out + at * (32 * V_BLOCKS) + c,
        tl.reshape(acc, [V_VALUES]).to(out.dtype.element_ty),
        c < 32 * V_BLOCKS,
    )
    tl.store(
        lse + at,
        tl.where(total == 0, float("-inf"), (best + tl.log2(tl.where(total == 0, 1.0, total))) / _LOG2E),
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan(programs: int, rows: int, multiprocessors: int, tile: int) -> int:
    """Rows of a part of the cache, whole tiles, where so many programs would go through all of it."""
    parts = max(1, min(PROGRAMS * multiprocessors // programs, rows // SPLIT_MIN))
    return triton.cdiv(triton.cdiv(rows, parts), tile) * tile


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_type: str,
    v_type: str,
    mask: torch.Tensor | None,
    past: int | None,
    scale: float,
    softcap: float,
    multiprocessors: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the operator. `multiprocessors` says for how many the work is split; those of the device if None."""
    k_spec, v_spec = TYPES[k_type], TYPES[v_type]
    batch, heads, tokens, k_values = q.shape
    kv_heads, rows = k.shape[1], k.shape[2]
    k_blocks, v_blocks = k.shape[-1] // k_spec.block_bytes, v.shape[-1] // v_spec.block_bytes
    k_width, v_width = triton.next_power_of_2(k_blocks), triton.next_power_of_2(v_blocks)
    v_values = 32 * v_blocks
    if q.stride(-1) != 1:
        q = q.contiguous()
    k, v = k.view(torch.int16), v.view(torch.int16)

    group = heads // kv_heads
    block, values, warps = next((s for s in SHAPES if s[0] >= tokens * group), SHAPES[-1])
    tile = max(16, values // (32 * max(k_width, v_width)))
    across = triton.cdiv(tokens * group, block) * batch * kv_heads
    split = plan(across, rows, multiprocessors or _multiprocessors(q.device), tile)
    parts = triton.cdiv(rows, split)

    shape = (batch, tokens, heads)
    out, lse = q.new_empty((*shape, v_values)), q.new_empty(shape, dtype=torch.float32)
    part_out, part_lse = out, lse
    if parts > 1:
        part_out = q.new_empty((*shape, parts, v_values), dtype=torch.float32)
        part_lse = q.new_empty((*shape, parts), dtype=torch.float32)
    kind, mask_strides = NO_MASK, (0, 0, 0)
    if mask is not None:
        kind = BOOL_MASK if mask.dtype == torch.bool else FLOAT_MASK
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        mask_strides = tuple(0 if mask.shape[i] == 1 and i < 2 else mask.stride(i) for i in range(3))
    with torch.cuda.device_of(q):
        attention_kernel[(triton.cdiv(tokens * group, block), batch * kv_heads, parts)](
            q,
            k,
            v,
            tables(k_type, q.device)[2],
            tables(v_type, q.device)[2],
            q if mask is None else mask,
            part_out,
            part_lse,
            heads,
            kv_heads,
            tokens,
            group,
            rows,
            0 if past is None else past,
            split,
            scale,
            softcap,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *mask_strides,
            K_BITS=k_spec.bits,
            K_BYTES=k_spec.block_bytes,
            K_BLOCKS=k_blocks,
            K_WIDTH=k_width,
            K_SIZE=rotation_size(KEY, k_values),
            V_BITS=v_spec.bits,
            V_BYTES=v_spec.block_bytes,
            V_BLOCKS=v_blocks,
            V_WIDTH=v_width,
            V_SIZE=rotation_size(VALUE, v_values),
            MASK=kind,
            CAUSAL=past is not None,
            CAPPED=softcap != 0,
            WHOLE=parts == 1,
            ROWS=block,
            TILE=tile,
            num_warps=warps,
            num_stages=1,
        )
        if parts > 1:
            join_kernel[(batch * tokens * heads,)](
                part_out,
                part_lse,
                out,
                lse,
                parts,
                V_BLOCKS=v_blocks,
                V_WIDTH=v_width,
                V_SIZE=rotation_size(VALUE, v_values),
                JOINED=JOINED,
                num_warps=4,
            )
    return out, lse
