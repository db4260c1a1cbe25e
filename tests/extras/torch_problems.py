"""The problems of attention_checks for the operators of llama_tq.torch."""

from __future__ import annotations

import numpy as np
import torch

from attention_checks import Case, Problem, format_of, make, solve
from llama_tq import reference
from llama_tq.heads import KEY, VALUE, rotation_size
from llama_tq.torch.rotation import rotate

FLOAT = 2.0**-22  # relative error of an operation in float32, generously

CASES = [
    *(Case(k=k, v=v) for k in reference.TYPES for v in reference.TYPES),
    *(Case(rows=rows, mask="none") for rows in (1, 63, 64, 65, 513)),
    *(Case(heads=2 * group, kv_heads=2, tokens=3) for group in (1, 3, 8)),
    *(Case(k="tq3_0", v="tq2_1", k_dim=dim, v_dim=dim, tokens=2) for dim in (64, 96, 256)),
    Case(k_dim=192, v_dim=128),
    Case(streams=3, tokens=4, rows=90, kv_heads=2),
    Case(streams=2, rows=700, kv_heads=2, mask="heads"),
    Case(mask="closed", tokens=3),
    Case(softcap=2.0, tokens=7),
    Case(tokens=70, rows=100),
]


def inputs(problem: Problem) -> dict:
    """Arguments of llama_tq.torch.attention. Queries are turned, since the operator turns them again."""
    case = problem.case
    q, k, v = (torch.from_numpy(x).transpose(1, 2) for x in (problem.q, problem.k, problem.v))
    return {
        "q": rotate(q, rotation_size(KEY, case.k_dim)),
        "k": k,
        "v": v,
        "k_type": case.k,
        "v_type": case.v,
        "mask": None if problem.mask is None else torch.from_numpy(problem.mask),
        "scale": problem.scale,
        "softcap": case.softcap,
    }


def check(
    problem: Problem,
    result: torch.Tensor,
    query_error: np.ndarray,
    tier: str | None,
    more: np.ndarray | float = 0.0,
) -> None:
    """`result` is what the operator may answer, where turned queries are off by `query_error`, and results
    before they are turned by `more`.
    """
    size = np.linalg.norm(problem.q, axis=-1, keepdims=True)
    answer, bound = solve(problem, query_error + 8 * FLOAT * size, tier)
    bound += 16 * FLOAT * np.linalg.norm(answer, axis=-1, keepdims=True) + more
    turned = rotate(result, rotation_size(VALUE, problem.case.v_dim)).numpy().reshape(answer.shape)
    excess = np.abs(turned - answer) - bound
    assert np.all(excess <= 1e-30), f"off by {np.abs(turned - answer).max()}, {excess.max()} too much"


def rounded_by(problem: Problem, tier: str) -> np.ndarray:
    """How far the queries of a tier are off: half a step, of a unit for each row."""
    step = np.abs(problem.q).max(-1, keepdims=True) / format_of(tier, problem.case.k).query_max
    return np.broadcast_to(0.51 * step, problem.q.shape)


def log_sums(problem: Problem) -> np.ndarray:
    """The logarithm of the sum of the exponentials [stream, token, head], in float64."""
    case = problem.case
    k = reference.dequantize(problem.k, case.k).astype(np.float64).repeat(case.heads // case.kv_heads, axis=2)
    scores = np.einsum("sthd,srhd->shtr", problem.q, k) * problem.scale
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    if problem.mask is not None:
        scores = scores + problem.mask
    with np.errstate(divide="ignore"):
        return np.log(np.exp(scores).sum(-1)).swapaxes(1, 2)


__all__ = ["CASES", "check", "inputs", "log_sums", "make", "rounded_by"]
