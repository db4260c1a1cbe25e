"""Attention problems, their answer in float64, and how far a computation may be from it."""

from __future__ import annotations

import dataclasses
import struct
import subprocess

import numpy as np

from llama_tq import reference
from llama_tq.reference import _codec

TILE = 64  # cache rows that share the unit of a weight
TASK_ROWS = 256  # of cpu/attention/attention.c
NUMBER_MAX = 4096  # of an f16 block in words
GGML_IDS = {"f16": 1, "q8_0": 8, **{name: spec.id for name, spec in reference.TYPES.items()}}


@dataclasses.dataclass(frozen=True)
class Format:
    """How a tier holds a side of a tile: see cpu/attention/attention.h, from where these numbers are."""

    under_unit: int
    query_max: int
    weight_max: int
    weight_sum: float


WORDS = Format(under_unit=32, query_max=16383, weight_max=32767, weight_sum=524224)
BYTES = Format(under_unit=16, query_max=127, weight_max=255, weight_sum=np.inf)
BYTE_TIERS = ("avx512", "neon_dotprod")


def format_of(tier: str, type: str) -> Format:
    return BYTES if tier in BYTE_TIERS and type != "f16" else WORDS


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and options.

    `centre`: how the rows' chunks follow each other, where the keys are centred: in order (from the middle of
    one on, as after a shift), anyhow, or one. Rows without a centre stand between. `rope_dims`, `neox`: what
    RoPE turns, 0 for all of a head.
    `mask`: none, causal, heads (one for each head), closed (token 0 sees nothing), first (row 0 draws nearly
    all attention, and its values are tiny).
    `largest`: some rows have the largest values that a block can have.
    """

    k: str = "tq4_0"
    v: str = "tq4_0"
    tokens: int = 1
    rows: int = 200
    heads: int = 4
    kv_heads: int = 1
    k_dim: int = 128
    v_dim: int = 128
    streams: int = 1
    mask: str = "causal"
    max_bias: float = 0.0
    softcap: float = 0.0
    sinks: bool = False
    outliers: bool = False
    largest: bool = False
    centre: str = ""
    rope_dims: int = 0
    neox: bool = False

    def __str__(self) -> str:
        changed = (
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return "-".join(changed) or "default"


OTHERS = ("f16", "q8_0")
CASES = [
    *(Case(k=k, v=v) for k in reference.TYPES for v in (*reference.TYPES, *OTHERS)),
    *(Case(k=k, v=v, tokens=9) for k in OTHERS for v in reference.TYPES),
    *(Case(rows=rows) for rows in (1, 2, 63, 64, 65, 513, 1300)),
    *(Case(heads=2 * group, kv_heads=2, tokens=3) for group in (1, 2, 3, 5, 7, 8)),
    *(Case(tokens=tokens, rows=tokens + 40) for tokens in (2, 5, 63, 64, 65, 130)),
    *(Case(k="tq3_0", v="tq2_1", k_dim=dim, v_dim=dim, tokens=2) for dim in (64, 96, 160, 224, 256)),
    Case(k_dim=192, v_dim=128),
    Case(k_dim=64, v_dim=256, v="tq3_0"),
    Case(k_dim=576, v_dim=512, heads=8),
    Case(streams=3, tokens=4, rows=90, kv_heads=2),
    Case(streams=2, rows=700, kv_heads=2, mask="heads", sinks=True),
    Case(mask="none", tokens=3),
    Case(mask="heads", tokens=3, kv_heads=2),
    Case(mask="closed", tokens=3),
    Case(mask="closed", tokens=3, sinks=True),
    *(Case(mask="first", rows=rows, v=v) for rows in (60, 700) for v in ("tq4_0", "tq2_1", "q8_0")),
    Case(max_bias=8.0, heads=6, kv_heads=3, tokens=7),
    Case(softcap=2.0, tokens=7),
    Case(softcap=30.0, max_bias=4.0, sinks=True, tokens=5, heads=12, kv_heads=4),
    Case(sinks=True, rows=1300, tokens=2),
    Case(outliers=True, tokens=6, rows=300),
    Case(outliers=True, k="tq2_1", v="tq3_0", tokens=70, rows=100),
    Case(largest=True, tokens=6),
    *(
        Case(k=k, centre="order", rows=rows, tokens=2)
        for k in (*reference.TYPES, *OTHERS)
        for rows in (63, 1300)
    ),
    *(Case(centre=centre, tokens=70, rows=300, heads=6, kv_heads=2) for centre in ("order", "anyhow", "one")),
    *(
        Case(centre="anyhow", neox=neox, rope_dims=dims, tokens=3)
        for neox in (False, True)
        for dims in (0, 32, 96)
    ),
    *(
        Case(centre="order", k_dim=dim, heads=2 * group, kv_heads=2)
        for dim, group in ((64, 3), (96, 5), (256, 1))
    ),
    Case(centre="order", streams=3, tokens=4, rows=600, kv_heads=2, sinks=True),
    Case(centre="anyhow", softcap=3.0, max_bias=4.0, tokens=5, heads=6, kv_heads=3),
    Case(centre="order", mask="closed", tokens=9, rows=700),
]


@dataclasses.dataclass
class Centre:
    """What the scores of centred keys get back: see cpu/attention/attention.h."""

    plain: np.ndarray  # as Problem.q
    mean: np.ndarray  # [kv head, value]
    turns: np.ndarray  # [chunk, value]
    chunk: np.ndarray  # int32 [stream, row]

    def query(self, case: Case, s: int, t: int | slice, h: int) -> np.ndarray:
        """float64, of a token or several: its product with the turn of a row's chunk is what the row's score
        lacks.
        """
        q = self.plain[s, t, h].astype(np.float64)
        m = self.mean[h // (case.heads // case.kv_heads)].astype(np.float64)
        g = q * m
        x, y = pairs(case)
        g[..., x] = q[..., x] * m[x] + q[..., y] * m[y]
        g[..., y] = q[..., y] * m[x] - q[..., x] * m[y]
        return g


def pairs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The values that RoPE turns together."""
    half = np.arange((case.rope_dims or case.k_dim) // 2)
    return (half, half + len(half)) if case.neox else (2 * half, 2 * half + 1)


@dataclasses.dataclass
class Problem:
    """A case and numbers: queries [stream, token, head, value], K and V [stream, row, kv head, bytes]."""

    case: Case
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray | None  # float16 [stream, head, token, row]
    sinks: np.ndarray | None
    scale: float
    centre: Centre | None = None


def encode(type: str, x: np.ndarray) -> np.ndarray:
    if type == "f16":
        return x.astype(np.float16).view(np.uint8)
    if type != "q8_0":
        return reference.quantize(x.astype(np.float32), type)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    d = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    quants = np.rint(blocks / np.where(d == 0, 1, d).astype(np.float64)).clip(-127, 127).astype(np.int8)
    packed = np.concatenate([d.view(np.uint8), quants.view(np.uint8)], axis=-1)
    return packed.reshape(*x.shape[:-1], -1)


def decode(type: str, rows: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, how far a number of a tile may be from each of them, and the units, one for each value."""
    if type == "f16":
        x = np.ascontiguousarray(rows).view(np.float16).astype(np.float64)
        unit = np.abs(x.reshape(*x.shape[:-1], -1, 32)).max(-1) / NUMBER_MAX
        return x, np.repeat(unit / 2, 32, axis=-1), np.repeat(unit, 32, axis=-1)
    if type == "q8_0":
        blocks = rows.reshape(*rows.shape[:-1], -1, 34)
        unit = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float64)
        x = (unit * blocks[..., 2:].view(np.int8)).reshape(*rows.shape[:-1], -1)
        return x, np.zeros(()), np.repeat(unit[..., 0], 32, axis=-1)
    x = reference.dequantize(rows, type).astype(np.float64)
    blocks = rows.reshape(-1, reference.TYPES[type].block_bytes)
    if format is BYTES:
        words = np.ascontiguousarray(blocks[:, :2]).view(np.uint16)[:, 0]
        unit = np.abs(_codec.decode_scale_words(words)[0].astype(np.float64))
    else:
        exponent = blocks[:, 1] >> 2 & 31
        unit = np.where(exponent == 0, 0.0, np.exp2(exponent.astype(np.float64) - 26))
    return x, np.zeros(()), np.repeat(unit.reshape(*x.shape[:-1], -1), format.under_unit, axis=-1)


def make(case: Case) -> Problem:
    rng = np.random.default_rng(sum(map(ord, str(case))))

    def cells(dim: int) -> np.ndarray:
        x = rng.standard_normal((case.streams, case.rows, case.kv_heads, dim))
        x *= np.exp(0.7 * rng.standard_normal((*x.shape[:-1], 1)))
        if case.outliers:
            x[..., :: dim // 4] *= 60
        x[:, rng.random(case.rows) < 0.1] = 0
        return x

    q = 2 * rng.standard_normal((case.streams, case.tokens, case.heads, case.k_dim))
    k, v, mask = cells(case.k_dim), cells(case.v_dim), None
    if case.largest:
        v[:, ::7] = 127 * 960
    if case.mask == "first":
        mask = np.zeros((case.streams, 1, case.tokens, case.rows))
        mask[..., 0] = 12
        v[:, 0] /= 1000
    elif case.mask != "none":
        row, token = np.arange(case.rows), np.arange(case.tokens)
        open_ = row <= token[:, None] + max(case.rows - case.tokens, 0)
        mask_heads = case.heads if case.mask == "heads" else 1
        value = -np.abs(row - token[:, None]) * 0.25 if case.max_bias else np.zeros(open_.shape)
        mask = np.tile(np.where(open_, value, -np.inf), (case.streams, mask_heads, 1, 1))
        mask[rng.random(mask.shape) < 0.2] = -np.inf
        if case.mask == "closed":
            mask[:, :, 0] = -np.inf
    centre = None
    if case.centre:
        # As large against the keys as the means of real models are.
        plain, mean = rng.standard_normal(q.shape), rng.standard_normal((case.kv_heads, case.k_dim))
        row = np.arange(case.rows)
        chunks = (case.rows + 100) // 64 + 2
        chunk = {"order": 1 + (row + 37) // 64, "one": np.ones(case.rows)}.get(case.centre)
        if chunk is None:
            chunk = rng.integers(0, chunks, (case.streams, case.rows))
        chunk = np.broadcast_to(chunk, (case.streams, case.rows)).astype(np.int32)
        chunk[:, rng.random(case.rows) < 0.02] = 0
        angle = rng.uniform(0, 2 * np.pi, (chunks, len(pairs(case)[0])))
        turns = np.ones((chunks, case.k_dim))
        turns[:, pairs(case)[0]], turns[:, pairs(case)[1]] = np.cos(angle), np.sin(angle)
        turns[0] = 0
        centre = Centre(*(x.astype(np.float32) for x in (plain, mean, turns)), chunk)
    return Problem(
        centre=centre,
        case=case,
        q=q.astype(np.float32),
        k=encode(case.k, k),
        v=encode(case.v, v),
        mask=None if mask is None else mask.astype(np.float16),
        sinks=rng.standard_normal(case.heads).astype(np.float32) if case.sinks else None,
        scale=float(np.float32(case.k_dim**-0.5)),
    )


def slopes(case: Case) -> np.ndarray:
    """ALiBi: powers of 2^(-bias / n) for n heads, n a power of two; odd ones of its root for the rest."""
    if case.max_bias == 0:
        return np.ones(case.heads)
    power = 1 << (case.heads.bit_length() - 1)
    head = np.arange(case.heads)
    exponent = np.where(head < power, head + 1, (2 * (head - power) + 1) / 2)
    return np.exp2(-case.max_bias / power * exponent)


def seen(problem: Problem, s: int, t: int, h: int) -> np.ndarray:
    """The cache rows that queries of a task of cpu/attention see: tokens of a block, heads of a group."""
    case = problem.case
    if problem.mask is None:
        return np.ones(case.rows, bool)
    group = case.heads // case.kv_heads
    block = -(-case.tokens // -(-case.tokens * group // TASK_ROWS))
    first = t // block * block
    heads = [i % problem.mask.shape[1] for i in range(h // group * group, (h // group + 1) * group)]
    return np.isfinite(problem.mask[s, heads, first : first + block]).any((0, 1))


def round_weights(
    p: np.ndarray, error: np.ndarray, unit: np.ndarray, live: np.ndarray, format: Format
) -> tuple[np.ndarray, np.ndarray]:
    """The softmax weights of a tile's rows for each column [row, value], and how far they may be from these.

    `error` is how far p may be, relatively; near a tie it decides to which side a weight is rounded.
    """
    top = np.where(live[:, None], unit, 0).max(0)
    ratio = np.where(live[:, None], unit, 0) / np.where(top == 0, 1, top)
    most = (p * ratio.max(-1)).max() if format is BYTES else p.max()
    if most == 0:
        return np.zeros(unit.shape), np.zeros(unit.shape)
    steps = min(format.weight_max / most, format.weight_sum / p.sum())
    exact = steps * p[:, None] * ratio
    numbers = np.rint(exact)
    past_tie = exact * (error + error.max())[:, None] + 2.0**-20 - (0.5 - np.abs(exact - numbers))
    step = top / np.where(unit == 0, 1, unit) / steps * (unit > 0)
    return numbers * step, np.ceil(np.maximum(past_tie, 0)) * step


def solve(problem: Problem, query_error: np.ndarray, tier: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The answer [stream, token, head, value], and a bound of the error of a computation in float32.

    Its queries may be off by `query_error`. A tier rounds the weights, as `round_weights` does, and the
    numbers of an f16 block in words.

    If the exponentials p have relative errors d, the answer o moves by sum(p d (v - o)) / sum(p (1 + d)).
    """
    case = problem.case
    float_error = 2.0**-22  # of one operation, generously
    format = format_of(tier or "", case.v)
    k, k_error, _ = decode(case.k, problem.k, WORDS)
    v, v_error, unit = decode(case.v, problem.v, format)
    k_error = np.broadcast_to(k_error * bool(tier), k.shape)
    v_error = np.broadcast_to(v_error * bool(tier), v.shape)
    answer = np.zeros((*problem.q.shape[:-1], case.v_dim))
    bound = np.zeros_like(answer)
    slope = slopes(case)
    for s, t, h in np.ndindex(*problem.q.shape[:-1]):
        kv = h // (case.heads // case.kv_heads)
        q, keys, values = problem.q[s, t, h].astype(np.float64), k[s, :, kv], v[s, :, kv]
        score = keys @ q * problem.scale
        error = np.abs(keys) @ query_error[s, t, h] + k_error[s, :, kv] @ np.abs(q)
        error += (np.abs(keys) @ np.abs(q)) * (case.k_dim / 32 + 8) * float_error
        if problem.centre is not None:
            turns = problem.centre.turns[problem.centre.chunk[s]].astype(np.float64)
            g = problem.centre.query(case, s, t, h)
            score = score + turns @ g * problem.scale
            # Both products of a pair round, and neither cancels the other's error.
            size = np.abs(problem.centre.plain[s, t, h]).max() * np.abs(problem.centre.mean[kv]).max()
            error += (np.abs(turns) @ np.abs(g)) * (case.k_dim / 8 + 8) * float_error
            error += np.abs(turns).sum(-1) * size * float_error
        error *= problem.scale
        if case.softcap:
            score = case.softcap * np.tanh(score / case.softcap)
            error += 4 * case.softcap * float_error
        if problem.mask is not None:
            score = score + slope[h] * problem.mask[s, h % problem.mask.shape[1], t].astype(np.float64)
        error += np.where(np.isinf(score), 0, np.abs(score)) * 4 * float_error
        top = max(score.max(), problem.sinks[h] if case.sinks else -np.inf)
        if top == -np.inf:
            continue
        p = np.exp(score - top)
        total = p.sum() + (np.exp(problem.sinks[h] - top) if case.sinks else 0.0)
        relative = np.expm1(error + 16 * float_error)
        weights, unsure = np.repeat(p[:, None], case.v_dim, -1), np.zeros_like(values)
        live = seen(problem, s, t, h)
        for first in range(0, case.rows if tier else 0, TILE):
            tile = slice(first, first + TILE)
            weights[tile], unsure[tile] = round_weights(
                p[tile], relative[tile], unit[s, tile, kv], live[tile], format
            )
        out = (weights * values).sum(0) / total
        moved = (p * relative) @ np.abs(values - out) + case.sinks * (relative * p).sum() * np.abs(out)
        moved += p @ v_error[s, :, kv] + (case.rows / TILE + 8) * float_error * (p @ np.abs(values))
        moved += (unsure * np.abs(values)).sum(0)
        answer[s, t, h] = out
        least = total - p.sum() + p @ np.exp(-error - 16 * float_error)
        bound[s, t, h] = moved / least
    return answer, bound


def round_queries(q: np.ndarray, most: int) -> np.ndarray:
    """To integers of at most `most` times a unit for each row, in float32 up to the integers."""
    top = np.abs(q).max(-1, keepdims=True)
    inverse = np.where(top > 0, np.float32(most) / np.where(top > 0, top, 1), 0).astype(np.float32)
    return np.rint(q * inverse) * (top.astype(np.float64) / most)


def check(problem: Problem, result: np.ndarray, tier: str) -> None:
    """`result` is what cpu/attention/attention.h may answer."""
    q = round_queries(problem.q, format_of(tier, problem.case.k).query_max)
    answer, bound = solve(dataclasses.replace(problem, q=q), np.zeros_like(q), tier)
    assert_within(result.reshape(answer.shape), answer, bound)


def assert_within(result: np.ndarray, answer: np.ndarray, bound: np.ndarray) -> None:
    excess = np.abs(result - answer) - bound
    assert np.all(excess <= 1e-30), f"off by {np.abs(result - answer).max()}, {excess.max()} too much"


def run(command: list[str], problem: Problem, isa: str, threads: int, by_row: bool = True) -> np.ndarray:
    """The answer of the compiled attention_driver.c."""
    case, centre = problem.case, problem.centre
    masks = (0, 0) if problem.mask is None else problem.mask.shape[:2]
    header = struct.pack(
        "19q3f4x",
        *(
            case.streams,
            case.tokens,
            case.heads,
            case.streams,
            case.kv_heads,
            case.rows,
            case.k_dim,
            case.v_dim,
        ),
        *(GGML_IDS[case.k], GGML_IDS[case.v], problem.k.shape[-1], problem.v.shape[-1], by_row),
        *(*masks, case.sinks),
        *((len(centre.turns), case.rope_dims or case.k_dim, case.neox) if centre else (0, 0, 0)),
        *(problem.scale, case.max_bias, case.softcap),
    )
    k, v = (x if by_row else np.ascontiguousarray(x.swapaxes(1, 2)) for x in (problem.k, problem.v))
    arrays = (problem.q, k, v, problem.mask, problem.sinks)
    if centre:
        arrays += (centre.plain, centre.mean, centre.turns, centre.chunk)
    data = header + b"".join(array.tobytes() for array in arrays if array is not None)
    result = subprocess.run([*command, isa, str(threads)], input=data, capture_output=True)
    assert result.returncode == 0, f"{isa}: {result.returncode}, {result.stderr.decode()}"
    return np.frombuffer(result.stdout, np.float32)
