"""Attention problems as a graph of ggml on a Metal device, emulated or not."""

from __future__ import annotations

import numpy as np

import cuda_checks
from attention_checks import GGML_IDS, Case, Problem
from ggml_graph import F16, F32, I32, Graph, call


def attention(device: str, problem: Problem, heads_first: bool = False) -> np.ndarray:
    """[stream, token, head, value]. K and V lie by rows as in a cache, or by heads."""
    case, centre = problem.case, problem.centre
    with Graph(device) as graph:

        def queries(x: np.ndarray) -> int:
            tensor = graph.of(F32, x, case.k_dim, case.heads, case.tokens, case.streams)
            return graph.op("permute", tensor, 0, 2, 1, 3)

        def cells(type: str, x: np.ndarray, dim: int) -> int:
            if heads_first:
                return graph.of(GGML_IDS[type], x.swapaxes(1, 2), dim, case.rows, case.kv_heads, case.streams)
            tensor = graph.of(GGML_IDS[type], x, dim, case.kv_heads, case.rows, case.streams)
            return graph.op("permute", tensor, 0, 2, 1, 3)

        q, k, v = (
            queries(problem.q),
            cells(case.k, problem.k, case.k_dim),
            cells(case.v, problem.v, case.v_dim),
        )
        mask = None if problem.mask is None else graph.of(F16, problem.mask, *problem.mask.shape[::-1])
        result = graph.op("flash_attn_ext", q, k, v, mask, problem.scale, case.max_bias, case.softcap)
        if problem.sinks is not None:
            sinks = graph.of(F32, problem.sinks, case.heads)
            call("ggml_flash_attn_ext_add_sinks", result, sinks)
        if centre is not None:
            call(
                "ggml_tq_set_centre",
                result,
                queries(centre.plain),
                graph.of(F32, centre.mean, case.k_dim, case.kv_heads),
                graph.of(F32, centre.turns, case.k_dim, len(centre.turns)),
                graph.of(I32, centre.chunk, case.rows, case.streams),
                case.rope_dims or case.k_dim,
                case.neox,
            )
        shape = (case.streams, case.tokens, case.heads, case.v_dim)
        return graph.read(graph.compute(result), np.float32).reshape(shape)


def solve(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The answer, and a bound. Neither kernel rounds weights; that for few columns does not round queries."""
    case = problem.case
    is_decode = (
        case.tokens == 1 or case.tokens * case.heads // case.kv_heads <= 32
    )  # as hooks/metal.cpp has it
    return cuda_checks.solve(problem, halves=(not is_decode, False))


def _random(rng: np.random.Generator) -> Case:
    k, v = cuda_checks.PAIRS[rng.integers(len(cuda_checks.PAIRS))]
    k_dim, v_dim = (int(rng.choice(cuda_checks.SIZES)) for _ in range(2))
    kv_heads, tokens = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 5, 9, 23]))
    heads, streams = kv_heads * int(rng.integers(1, 10)), int(rng.integers(1, 3))
    mask = str(rng.choice(["none", "causal", "heads", "closed"]))
    return Case(
        k=k,
        v=v,
        tokens=tokens,
        rows=int(rng.integers(1, (1 << 14) // (tokens * heads * streams))),
        heads=heads,
        kv_heads=kv_heads,
        k_dim=k_dim,
        v_dim=v_dim,
        streams=streams,
        mask=mask,
        max_bias=float(rng.choice([0, 0, 4])) * (mask != "none"),
        softcap=float(rng.choice([0, 0, 5])),
        sinks=bool(rng.integers(2)),
        centre=str(rng.choice(["", "order", "anyhow"])),
        rope_dims=int(rng.choice([0, 32, k_dim // 2])),
        neox=bool(rng.integers(2)),
    )


RANDOM = [_random(np.random.default_rng(seed)) for seed in range(60)]
