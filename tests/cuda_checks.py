"""Attention on a GPU: problems with centred keys, their answer in float64, and a bound of the error."""

from __future__ import annotations

import dataclasses
import struct
import subprocess

import numpy as np

import attention_checks
from attention_checks import Case, Problem
from llama_tq import reference
from llama_tq.reference import _codec

TYPES = [*reference.TYPES, "q8_0", "f16"]  # numbered as csrc/cuda/attention.h does


def decode(type: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far the halves of a kernel may be from them (unpack.cuh)."""
    x, _, _ = attention_checks.decode(type, rows, attention_checks.WORDS)
    if type == "f16":
        return x, np.zeros_like(x)
    if type == "q8_0":
        return x, np.abs(x) * 2.0**-11 + 2.0**-24
    blocks = rows.reshape(-1, reference.TYPES[type].block_bytes)
    words = np.ascontiguousarray(blocks[:, :2]).view(np.uint16)[:, 0]
    scale = np.abs(_codec.decode_scale_words(words)[0].astype(np.float64)).reshape(*x.shape[:-1], -1)
    error = np.where(scale < 2.0**-16, 32 * (128 + 1) * 2.0**-24, 0)
    return x, np.repeat(error, 16, axis=-1)


def hadamard(n: int) -> np.ndarray:
    """The orthonormal Walsh-Hadamard matrix."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def rotate(x: np.ndarray, n: int, matrix: np.ndarray | None = None) -> np.ndarray:
    """Runs of n values times the matrix; n = 0 leaves them as they are."""
    matrix = hadamard(n) if n and matrix is None else matrix
    return (x.reshape(*x.shape[:-1], -1, n) @ matrix).reshape(x.shape) if n else x


def solve(
    problem: Problem,
    rotation: tuple[int, int] = (0, 0),
    halves: tuple[bool, bool] = (True, True),
    turned: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The answer [stream, token, head, value], and a bound of the error of a kernel that rotates queries and
    answer in runs of so many values.

    Queries are rounded to halves, relative to the power of two above their largest value. Weights are rounded
    to halves as well; tensor cores sum in float32, and drop what lies below the last bit of the largest term.
    Where exponentials p are off by d, the answer o moves by sum(d (v - o)) / sum(p + d). `halves`: whether a
    kernel rounds queries and weights so; Metal's may not. `turned`: how far a kernel's own RoPE may move a
    query, against its length.
    """
    case = problem.case
    step = 2.0**-22  # of one float operation, generously
    k, k_error = decode(case.k, problem.k)
    v, v_error = decode(case.v, problem.v)
    answer = np.zeros((*problem.q.shape[:-1], case.v_dim))
    bound = np.zeros_like(answer)
    slope = attention_checks.slopes(case)
    for s, h in np.ndindex(case.streams, case.heads):
        kv = h // (case.heads // case.kv_heads)
        q, keys, values = problem.q[s, :, h].astype(np.float64), k[s, :, kv], v[s, :, kv]
        q = rotate(q, rotation[0])
        q_error = (np.abs(q) * 2.0**-11 + np.abs(q).max(-1, keepdims=True) * 2.0**-24) * halves[0]
        if rotation[0]:
            q_error += np.abs(problem.q[s, :, h]).max(-1, keepdims=True) * 2.0**-19
        q_error += turned * np.linalg.norm(problem.q[s, :, h].astype(np.float64), axis=-1, keepdims=True)
        score = q @ keys.T
        error = q_error @ np.abs(keys).T + (np.abs(q) + q_error) @ k_error[s, :, kv].T
        error += (np.abs(q) @ np.abs(keys).T) * (case.k_dim + 8) * step
        if problem.centre is not None:
            g, chunk = problem.centre.query(case, s, slice(None), h), problem.centre.chunk[s]
            turns = problem.centre.turns.astype(np.float64)
            score = score + (g @ turns.T)[:, chunk]
            # Both products of a pair round, and neither cancels the other's error.
            most = np.abs(problem.centre.plain[s, :, h]).max(-1) * np.abs(problem.centre.mean[kv]).max()
            size = np.abs(g) @ np.abs(turns).T + np.outer(most, np.abs(turns).sum(-1))
            error += size[:, chunk] * ((case.k_dim + 8) * step + 2 * turned) + np.abs(score) * step
        score, error = score * problem.scale, error * problem.scale
        if case.softcap:
            score = case.softcap * np.tanh(score / case.softcap)
            error += 8 * case.softcap * step
        if problem.mask is not None:
            score = score + slope[h] * problem.mask[s, h % problem.mask.shape[1]].astype(np.float64)
        error += np.where(np.isinf(score), 0, np.abs(score)) * 8 * step
        most = score.max(-1, keepdims=True)
        top = np.maximum(most, problem.sinks[h] if case.sinks else -np.inf)
        blind = most[:, 0] == -np.inf  # sees nothing: zeros
        top[blind] = 0
        p = np.exp(score - top)
        sink = np.exp(problem.sinks[h] - top) if case.sinks else np.zeros_like(top)
        total = p.sum(-1, keepdims=True) + sink
        total[blind] = 1
        # exp2 of up to 2^7 in magnitude: the argument is rounded, then the result, then it becomes a half
        off = p * (np.expm1(error + 150 * step) + 2.0**-11 * halves[1]) + np.exp(most - top) * 2.0**-36
        out = p @ values / total
        moved = off @ np.abs(values) + off.sum(-1, keepdims=True) * np.abs(out)
        moved += p @ v_error[s, :, kv] + (case.rows + 64) * step * (p @ np.abs(values))
        answer[s, :, h] = rotate(np.where(blind[:, None], 0, out), rotation[1])
        least = total - off.sum(-1, keepdims=True)
        assert np.all(least > 0), "nothing can be said of so inexact scores"
        bound[s, :, h] = np.where(blind[:, None], 0, moved / least) + 1e-30
        if rotation[1]:
            bound[s, :, h] += np.where(blind[:, None], 0, np.abs(out)) * 16 * step
            bound[s, :, h] = rotate(bound[s, :, h], rotation[1], np.abs(hadamard(rotation[1])))
    return answer, bound


@dataclasses.dataclass
class Added:
    """Rows that attention stores first: float32 [token, kv head, value], and their numbers in the caches of
    all streams, one after the other, each of `cache_rows`.
    """

    k: np.ndarray
    v: np.ndarray
    ids: np.ndarray
    cache_rows: int


@dataclasses.dataclass
class Rope:
    """RoPE of queries and keys that are stored, one token a stream, in float64; and what these keys lack."""

    positions: np.ndarray  # int32 [stream]
    dims: int = 128
    neox: bool = False
    base: float = 10000 ** (-2 / 128)
    scale: float = 1.0
    mix: float = 0.0
    low: float = 0.0
    high: float = 0.0
    stretch: float = 1.0
    factors: np.ndarray | None = None  # float32 [dims / 2]
    centres: np.ndarray | None = None  # float32 [2, kv head, value]
    centre_ids: np.ndarray | None = None  # int32 [stream]
    centre_positions: np.ndarray | None = None  # int32 [stream]

    def error(self) -> float:
        """How far float32 moves a vector, against its length: the angle is rounded, and so is its cosine."""
        return float(self.positions.max()) * 2.0**-21 + 2.0**-18

    def turn(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x [stream, head, value]."""
        pair = np.arange(self.dims // 2)
        factors = 1.0 if self.factors is None else self.factors.astype(np.float64)
        plain = positions[:, None] * self.base ** pair.astype(np.float64) / factors
        past = np.clip((pair - self.low) / max(0.001, self.high - self.low), 0, 1)
        by = (1 - past) * self.mix
        angle = (self.scale * plain * (1 - by) + plain * by)[:, None]
        i, j = (pair, pair + len(pair)) if self.neox else (2 * pair, 2 * pair + 1)
        turned = x.astype(np.float64)
        a, b = x[..., i].astype(np.float64), x[..., j].astype(np.float64)
        turned[..., i] = self.stretch * (a * np.cos(angle) - b * np.sin(angle))
        turned[..., j] = self.stretch * (a * np.sin(angle) + b * np.cos(angle))
        return turned

    def keys(self, k: np.ndarray) -> np.ndarray:
        turned = self.turn(k, self.positions)
        if self.centres is not None:
            turned -= self.turn(self.centres[self.centre_ids], self.centre_positions)
        return turned


def pack(
    problem: Problem,
    heads_first: bool,
    rotation: tuple[int, int],
    added: Added | None = None,
    rope: Rope | None = None,
) -> bytes:
    """The input of cuda_driver.cu."""
    case, centre = problem.case, problem.centre
    cache_rows = added.cache_rows if added else case.rows
    masks = (0, 0) if problem.mask is None else problem.mask.shape[:2]
    numbers = [case.streams, case.tokens, case.heads, case.streams, case.kv_heads, case.rows]
    numbers += [case.k_dim, case.v_dim, TYPES.index(case.k), TYPES.index(case.v)]
    numbers += [problem.k.shape[-1], problem.v.shape[-1], *masks, case.sinks]
    if centre is not None:
        numbers += [1, len(centre.turns), case.rope_dims or case.k_dim, case.neox]
    else:
        numbers += [0] * 4
    numbers += [
        heads_first,
        *rotation,
        *((len(added.ids), added.ids.itemsize) if added else (0, 0)),
        cache_rows,
    ]
    floats = [problem.scale, case.max_bias, case.softcap]
    if rope is not None:
        numbers += [1, rope.dims, rope.neox, rope.factors is not None, rope.centres is not None]
        floats += [rope.base, rope.scale, rope.mix, rope.low, rope.high, rope.stretch]
    else:
        numbers += [0] * 5
        floats += [0.0] * 6
    header = struct.pack("30q9f4x", *map(int, numbers), *floats)
    k, v = (x if heads_first else np.ascontiguousarray(x.swapaxes(1, 2)) for x in (problem.k, problem.v))
    arrays = [problem.q, k, v, problem.mask, problem.sinks]
    if centre is not None:
        arrays += [centre.plain, centre.mean, centre.turns, centre.chunk]
    if added is not None:
        arrays += [added.ids, added.k, added.v]
    if rope is not None:
        arrays += [rope.positions, rope.factors, rope.centres, rope.centre_ids, rope.centre_positions]
    return header + b"".join(array.tobytes() for array in arrays if array is not None)


def run(
    command: list[str], problem: Problem, heads_first: bool = True, rotation: tuple[int, int] = (0, 0)
) -> np.ndarray:
    return answer_of(problem, output(command, problem, pack(problem, heads_first, rotation)))


def output(command: list[str], problem: Problem, data: bytes) -> bytes:
    result = subprocess.run([*command, "attention"], input=data, capture_output=True)
    assert result.returncode == 0, f"{problem.case}: {result.returncode}, {result.stderr.decode()}"
    return result.stdout


def answer_of(problem: Problem, data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(*problem.q.shape[:-1], problem.case.v_dim)


def check_added(
    command: list[str],
    case: Case,
    rows: list[list[int]],
    rotation: tuple[int, int] = (0, 0),
    id_bytes: int = 8,
    rope: Rope | None = None,
) -> None:
    """Attention that stores `rows`, those of each stream: the caches hold what the encoder writes (the
    driver compares rotated rows, too), all else is as it was, and the answer is that over these caches. Rows
    from case.rows on are stored and not attended to. With `rope`, the kernel turns queries and new keys.
    """
    problem = attention_checks.make(case)
    rng = np.random.default_rng(len(rows))
    cache_rows = max(case.rows, *(row + 1 for stream in rows for row in stream)) + 2
    stream = np.repeat(np.arange(case.streams), [len(r) for r in rows])
    row = np.concatenate([np.array(r, int) for r in rows])
    caches, values = [], []
    for type, dim, seen in ((case.k, case.k_dim, problem.k), (case.v, case.v_dim, problem.v)):
        cache = np.full((case.streams, cache_rows, *seen.shape[2:]), 0xA5, np.uint8)
        cache[:, : case.rows] = seen
        values.append(rng.standard_normal((len(row), case.kv_heads, dim)).astype(np.float32))
        caches.append(cache)
        if type in reference.TYPES:
            cache[stream, row] = 0xFF
    added = Added(*values, (stream * cache_rows + row).astype(f"i{id_bytes}"), cache_rows)
    problem = dataclasses.replace(problem, k=caches[0], v=caches[1])
    data = output(command, problem, pack(problem, True, rotation, added, rope))
    if rope is not None:
        turned = rope.turn(problem.q[:, 0], rope.positions)[:, None].astype(np.float32)
        centre = problem.centre and dataclasses.replace(problem.centre, plain=turned)
        problem = dataclasses.replace(problem, q=turned, centre=centre)
        values[0] = rope.keys(values[0]).astype(np.float32)
    size = problem.q[..., 0].size * case.v_dim * 4
    for i, (type, runs) in enumerate(zip((case.k, case.v), rotation, strict=True)):
        begin = size + i * caches[0].size
        stored = np.frombuffer(data[begin : begin + caches[i].size], np.uint8).reshape(caches[i].shape)
        if type in reference.TYPES and runs == 0:
            caches[i][stream, row] = reference.quantize(values[i], type)
        elif type in reference.TYPES:
            caches[i][stream, row] = stored[stream, row]
            expected = rotate(values[i].astype(np.float64), runs)
            off = [
                reference.dequantize(x, type) - expected
                for x in (stored[stream, row], attention_checks.encode(type, expected))
            ]
            assert np.linalg.norm(off[0]) <= 1.01 * np.linalg.norm(off[1])
        assert np.array_equal(stored, caches[i])
    problem = dataclasses.replace(problem, k=caches[0][:, : case.rows], v=caches[1][:, : case.rows])
    answer, bound = solve(problem, rotation, turned=rope.error() if rope else 0.0)
    attention_checks.assert_within(answer_of(problem, data[:size]), answer, bound)


PAIRS = [(k, v) for k in TYPES for v in TYPES if k in reference.TYPES or v in reference.TYPES]
SIZES = (64, 96, 128, 192, 256)
CASES = [
    *(Case(k=k, v=v, tokens=tokens) for k, v in PAIRS for tokens in (1, 3)),
    *(Case(k=k, v=v, tokens=70, rows=150, heads=2) for k, v in PAIRS),
    *(Case(k=k, v=v, k_dim=dim, v_dim=dim, tokens=2, kv_heads=2) for k, v in PAIRS for dim in SIZES),
    *(Case(k_dim=k, v_dim=v, tokens=2) for k in SIZES for v in SIZES),
    *(Case(k_dim=k, v_dim=v, tokens=40, k="tq3_0") for k in SIZES for v in SIZES),
    *(Case(rows=rows, tokens=tokens) for rows in (1, 2, 31, 32, 33, 65, 513, 1300) for tokens in (1, 20)),
    *(Case(heads=2 * group, kv_heads=2, tokens=t) for group in (1, 2, 3, 5, 7, 8, 12) for t in (1, 3, 33)),
    *(Case(tokens=tokens, rows=tokens + 40) for tokens in (2, 5, 17, 63, 64, 65, 130, 300)),
    Case(streams=3, tokens=4, rows=90, kv_heads=2),
    Case(streams=3, tokens=64, rows=90, kv_heads=2),
    Case(streams=2, rows=700, kv_heads=2, mask="heads", sinks=True),
    *(Case(mask="none", tokens=tokens) for tokens in (1, 3, 80)),
    *(Case(mask="heads", tokens=tokens, kv_heads=2) for tokens in (3, 80)),
    *(Case(mask="closed", tokens=tokens, sinks=sinks) for tokens in (1, 3, 80) for sinks in (False, True)),
    *(Case(mask="first", rows=rows, v=v) for rows in (60, 700) for v in ("tq4_0", "tq2_1", "q8_0")),
    *(Case(max_bias=8.0, heads=6, kv_heads=3, tokens=tokens) for tokens in (7, 100)),
    *(Case(softcap=2.0, tokens=tokens) for tokens in (7, 100)),
    *(Case(softcap=30.0, max_bias=4.0, sinks=True, tokens=t, heads=12, kv_heads=4) for t in (5, 70)),
    *(Case(sinks=True, rows=1300, tokens=tokens) for tokens in (2, 66)),
    Case(outliers=True, tokens=6, rows=300),
    Case(outliers=True, k="tq2_1", v="tq3_0", tokens=70, rows=100),
    *(Case(largest=True, tokens=tokens, rows=40, v=v) for tokens in (2, 70) for v in reference.TYPES),
    *(
        Case(
            k=k,
            tokens=t,
            rows=rows,
            heads=8,
            kv_heads=2,
            k_dim=dim,
            v_dim=dim,
            centre=c,
            rope_dims=n,
            neox=neox,
        )
        for k, t, rows, dim, c, n, neox in (
            ("tq4_0", 1, 300, 128, "order", 0, True),
            ("tq4_0", 1, 300, 128, "one", 0, False),
            ("tq3_0", 2, 1500, 128, "order", 0, True),
            ("tq2_1", 5, 200, 128, "anyhow", 64, True),
            ("tq4_0", 3, 200, 64, "order", 0, False),
            ("tq4_0", 2, 200, 256, "order", 128, True),
            ("tq3_0", 1, 200, 96, "anyhow", 0, True),
            ("tq4_0", 70, 300, 128, "order", 0, True),
            ("tq3_0", 70, 300, 128, "order", 64, False),
            ("tq4_0", 40, 700, 128, "anyhow", 0, True),
            ("tq4_0", 70, 200, 256, "order", 0, False),
            ("tq4_0", 70, 200, 64, "one", 0, True),
        )
    ),
    *(Case(centre="order", streams=3, tokens=t, rows=600, kv_heads=2, sinks=True) for t in (1, 70)),
    *(Case(centre="anyhow", softcap=3.0, max_bias=4.0, tokens=t, heads=6, kv_heads=3) for t in (5, 70)),
    *(Case(centre="order", mask="closed", tokens=t, rows=700) for t in (9, 70)),
]
WIDE = [  # more than 128 query columns, which Hopper has a kernel of its own for
    *(Case(k=k, v=v, tokens=40, rows=100) for k, v in PAIRS),
    *(Case(k="tq3_0", tokens=34, rows=rows) for rows in (1, 63, 64, 65, 130, 300)),
    Case(tokens=90, rows=200, heads=6, kv_heads=2),
    Case(tokens=28, rows=90, heads=10, kv_heads=2, mask="none"),
    Case(streams=2, tokens=40, rows=100, mask="closed", sinks=True),
    Case(tokens=40, rows=150, mask="first", v="tq2_1"),
    Case(tokens=40, rows=90, outliers=True),
    *(Case(tokens=40, rows=40, largest=True, v=v) for v in reference.TYPES),
    *(Case(k=k, tokens=40, rows=200, centre="order") for k in ("tq4_0", "tq3_0")),
    Case(tokens=40, rows=70, centre="anyhow", neox=True, rope_dims=64),
    Case(tokens=80, rows=150, centre="one", heads=4, kv_heads=2, sinks=True),
    Case(tokens=40, rows=1500, centre="order"),
]
OLDER = ("env", "TQ_TEST_CAPABILITY=80")  # runs cuda_driver as on a GPU before Hopper
ROTATED = [
    (Case(k=k, v=v, tokens=tokens, rows=rows, heads=8, kv_heads=2, k_dim=dim, v_dim=dim), (k_run, v_run))
    for k, v, tokens, rows, dim, k_run, v_run in (
        ("tq4_0", "tq4_0", 1, 100, 128, 128, 64),
        ("tq3_0", "tq3_0", 1, 400, 128, 128, 64),
        ("tq4_0", "tq2_1", 2, 1500, 128, 128, 64),
        ("tq4_0", "tq4_0", 1, 40, 96, 32, 32),
        ("tq4_0", "tq4_0", 3, 900, 96, 32, 32),
        ("tq3_0", "tq4_0", 2, 300, 64, 64, 64),
        ("tq4_0", "q8_0", 2, 300, 256, 256, 64),
        ("tq4_0", "tq3_0", 4, 1300, 192, 64, 64),
        ("q8_0", "tq4_0", 1, 300, 128, 0, 64),
        ("tq4_0", "tq4_0", 70, 300, 128, 128, 64),
        ("tq3_0", "tq2_1", 34, 60, 128, 128, 64),
        ("tq4_0", "tq4_0", 40, 2300, 96, 32, 32),
        ("tq3_0", "tq2_1", 70, 300, 64, 64, 64),
        ("tq4_0", "tq4_0", 70, 200, 256, 256, 64),
    )
]
ADDED = [  # rows of each stream, rotation, bytes of a number
    # on the way: one token, one stream; at 310 and 905 it is not attended to
    *((Case(rows=300, kv_heads=2), [[row]], (128, 64), 8) for row in (0, 31, 32, 150, 288, 299, 310)),
    *((Case(rows=900, heads=8), [[row]], (0, 0), 4) for row in (0, 400, 899, 905)),
    *((Case(k=k, v=v, rows=100), [[40]], (0, 0), 8) for k, v in PAIRS),
    *((Case(rows=290, heads=2 * group, kv_heads=2), [[280]], (32, 32), 8) for group in (1, 3, 8)),
    (Case(rows=90, mask="closed", sinks=True), [[50]], (0, 0), 8),
    (Case(rows=90, mask="none"), [[89]], (0, 0), 8),
    *(
        (Case(k=k, v=v, rows=400, centre="order", heads=8, kv_heads=2), [[row]], (128, 64), 8)
        for k, v, row in (("tq4_0", "tq4_0", 120), ("tq3_0", "tq3_0", 399), ("tq4_0", "tq2_1", 0))
    ),
    # by the encoder's kernel
    *(
        (Case(k=k, v=v, rows=70, k_dim=dim, v_dim=dim), [[69]], (0, 0), 4)
        for k, v, dim in (("tq4_0", "tq3_0", 64), ("tq3_0", "tq2_1", 96), ("tq2_1", "tq4_0", 192))
    ),
    (Case(rows=100, k_dim=192, v_dim=128), [[33]], (64, 64), 8),
    (Case(rows=700, tokens=4, kv_heads=2), [[350, 351, 352, 353]], (128, 64), 8),
    (Case(rows=96, tokens=8, heads=2, kv_heads=2), [[*range(60, 68)]], (0, 0), 8),
    (Case(rows=100, tokens=40, heads=2), [[*range(60, 100)]], (0, 0), 8),
    (Case(rows=64, streams=3, kv_heads=2), [[10], [63], [0]], (128, 64), 8),
    (Case(rows=64, streams=3, tokens=2, kv_heads=2), [[10, 40], [63, 12], [0, 1]], (0, 0), 4),
    (Case(rows=600, streams=2, kv_heads=2), [[650, 599], [600]], (0, 0), 8),
    (Case(rows=90, mask="heads", kv_heads=2, max_bias=4.0), [[50]], (0, 0), 8),
]


def turned(case: Case, rows: list[int], positions: list[int], centred: bool = False, **options) -> tuple:
    """Arguments of check_added: one row a stream."""
    rng = np.random.default_rng(positions)
    rope = Rope(np.array(positions, np.int32), **options)
    if centred:
        rope.centres = rng.standard_normal((2, case.kv_heads, case.k_dim)).astype(np.float32)
        rope.centre_ids = rng.integers(0, 2, len(positions)).astype(np.int32)
        rope.centre_positions = rope.positions // 64 * 64
    return case, [[row] for row in rows], (128, 64), 8, rope


FACTORS = np.linspace(1, 8, 64, dtype=np.float32)
YARN = {"scale": 0.25, "mix": 1.0, "low": 20.0, "high": 45.0, "stretch": 1.14}
TURNED = [
    # on the way
    turned(Case(rows=100, heads=8, kv_heads=2), [40], [40]),
    *(
        turned(Case(rows=rows, heads=2 * group, kv_heads=2, k=k, v=v), [row], [position], neox=neox)
        for k, v, rows, group, row, position, neox in (
            ("tq4_0", "tq4_0", 90, 1, 89, 0, False),
            ("tq3_0", "tq3_0", 300, 4, 299, 299, True),
            ("tq4_0", "tq2_1", 300, 8, 310, 200, False),
        )
    ),
    turned(Case(rows=100, heads=4, kv_heads=1), [99], [200], dims=64, neox=True),
    turned(Case(rows=100, heads=4, kv_heads=1), [99], [200], dims=96),
    turned(Case(rows=100, heads=4, kv_heads=1), [50], [300], factors=FACTORS),
    turned(Case(rows=100, heads=4, kv_heads=1, sinks=True), [50], [300], neox=True, **YARN),
    *(
        turned(Case(rows=200, heads=8, kv_heads=2, centre="order", neox=neox), [199], [at], True, neox=neox)
        for neox, at in ((False, 199), (True, 70))
    ),
    turned(
        Case(rows=200, heads=8, kv_heads=2, centre="order", k="tq3_0", v="tq3_0", rope_dims=64),
        [150],
        [150],
        True,
        dims=64,
    ),
    # by the encoder's kernel
    turned(Case(rows=64, streams=3, heads=8, kv_heads=2), [10, 63, 0], [10, 200, 0]),
    turned(
        Case(rows=64, streams=3, heads=8, kv_heads=2, centre="anyhow", neox=True),
        [10, 63, 40],
        [100, 200, 0],
        True,
        neox=True,
        factors=FACTORS,
    ),
]
