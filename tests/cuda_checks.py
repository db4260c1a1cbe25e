"""Attention on a GPU: problems with centred keys, their answer in float64, and a bound of the error."""

from __future__ import annotations

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
    problem: Problem, rotation: tuple[int, int] = (0, 0), halves: tuple[bool, bool] = (True, True)
) -> tuple[np.ndarray, np.ndarray]:
    """The answer [stream, token, head, value], and a bound of the error of a kernel that rotates queries and
    answer in runs of so many values.

    Queries are rounded to halves, relative to the power of two above their largest value. Weights are rounded
    to halves as well; tensor cores sum in float32, and drop what lies below the last bit of the largest term.
    Where exponentials p are off by d, the answer o moves by sum(d (v - o)) / sum(p + d). `halves`: whether a
    kernel rounds queries and weights so; Metal's may not.
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
            error += size[:, chunk] * (case.k_dim + 8) * step + np.abs(score) * step
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


def pack(problem: Problem, heads_first: bool, rotation: tuple[int, int]) -> bytes:
    """The input of cuda_driver.cu."""
    case, centre = problem.case, problem.centre
    masks = (0, 0) if problem.mask is None else problem.mask.shape[:2]
    numbers = [case.streams, case.tokens, case.heads, case.streams, case.kv_heads, case.rows]
    numbers += [case.k_dim, case.v_dim, TYPES.index(case.k), TYPES.index(case.v)]
    numbers += [problem.k.shape[-1], problem.v.shape[-1], *masks, case.sinks]
    if centre is not None:
        numbers += [1, len(centre.turns), case.rope_dims or case.k_dim, case.neox]
    else:
        numbers += [0] * 4
    numbers += [heads_first, *rotation, 0, 0]
    header = struct.pack("24q3f4x", *map(int, numbers), problem.scale, case.max_bias, case.softcap)
    k, v = (x if heads_first else np.ascontiguousarray(x.swapaxes(1, 2)) for x in (problem.k, problem.v))
    arrays = [problem.q, k, v, problem.mask, problem.sinks]
    if centre is not None:
        arrays += [centre.plain, centre.mean, centre.turns, centre.chunk]
    return header + b"".join(array.tobytes() for array in arrays if array is not None)


def run(
    command: list[str], problem: Problem, heads_first: bool = True, rotation: tuple[int, int] = (0, 0)
) -> np.ndarray:
    data = pack(problem, heads_first, rotation)
    result = subprocess.run([*command, "attention"], input=data, capture_output=True)
    assert result.returncode == 0, f"{problem.case}: {result.returncode}, {result.stderr.decode()}"
    return np.frombuffer(result.stdout, np.float32).reshape(*problem.q.shape[:-1], problem.case.v_dim)


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
        ("tq4_0", "tq4_0", 40, 2300, 96, 32, 32),
        ("tq3_0", "tq2_1", 70, 300, 64, 64, 64),
        ("tq4_0", "tq4_0", 70, 200, 256, 256, 64),
    )
]
