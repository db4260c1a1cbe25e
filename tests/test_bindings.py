"""llama_tq._core as it is, without what checks arguments before it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import attention_checks
import llama_tq
from attention_checks import Case, Problem
from llama_tq import _core, reference

NUMBERS = {name: number for number, name in enumerate(_core.types())}
CASES = [
    Case(),
    Case(tokens=20, rows=130, heads=6, kv_heads=2, v="tq3_0"),
    Case(k="tq3_0", v="tq2_1", k_dim=64, v_dim=96, streams=3, tokens=4, rows=90, kv_heads=2),
    Case(softcap=3.0, mask="heads", rows=700, kv_heads=2),
    Case(mask="none", k_dim=256, v_dim=256, tokens=3),
]


def run(problem: Problem, threads: int = 2, **wrong: object) -> np.ndarray:
    """The answer [stream, token, head, value]; `wrong` takes the place of arguments."""
    case = problem.case
    shape = (case.streams, case.tokens, case.heads)
    arguments = {
        "q": problem.q.transpose(0, 2, 1, 3),
        "k_type": NUMBERS[case.k],
        "k": problem.k.transpose(0, 2, 1, 3),
        "v_type": NUMBERS[case.v],
        "v": problem.v.transpose(0, 2, 1, 3),
        "mask": problem.mask,
        "scale": problem.scale,
        "softcap": case.softcap,
        "out": np.empty((*shape, case.v_dim), np.float32),
        "lse": np.empty(shape, np.float32),
        "threads": threads,
    } | wrong
    _core.attention(**arguments)
    return arguments["out"]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("isa", _core.supported_isas())
def test_attention_is_within_the_bound(case: Case, isa: str):
    problem = attention_checks.make(case)
    with llama_tq.force_isa(isa):
        results = [run(problem, threads) for threads in (1, 3)]
    attention_checks.check(problem, results[0], isa)
    assert results[0].tobytes() == results[1].tobytes()


def test_arguments_that_would_corrupt_memory_are_refused():
    problem = attention_checks.make(Case(tokens=3, kv_heads=2))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (problem.q, problem.k, problem.v))
    mask = problem.mask
    for wrong in (
        {"k_type": -1},
        {"v_type": len(NUMBERS)},
        {"threads": 0},
        {"q": q[0]},
        {"q": q.astype(np.float64)},
        {"q": q[..., ::2]},
        {"q": q[..., :-32]},
        {"q": q[:, :3]},
        {"q": q[:, :, ::-1]},
        {"k": k[..., :-1]},
        {"k": k[:, :, :-1]},
        {"k": k[:, :, :0], "v": v[:, :, :0], "mask": mask[..., :0]},
        {"k": k[:, :1]},
        {"v": v[..., :0]},
        {"v": np.repeat(v, 9, axis=-1)},
        {"mask": mask[..., :-1]},
        {"mask": mask.astype(np.float32)},
        {"mask": np.repeat(mask, 3, axis=1)},
        {"out": np.empty(8, np.float32)},
        {"lse": np.empty(8, np.float32)},
    ):
        with pytest.raises((ValueError, TypeError)):
            run(problem, **wrong)


@pytest.mark.parametrize("type", reference.TYPES)
def test_sizes_that_do_not_match_are_refused(type: str):
    number, bytes_ = NUMBERS[type], reference.TYPES[type].block_bytes
    x, b = np.zeros(64, np.float32), np.zeros(2 * bytes_, np.uint8)
    for call in (
        lambda: _core.quantize(number, x[:63], b, 1),
        lambda: _core.quantize(number, x, b[:-1], 1),
        lambda: _core.quantize(len(NUMBERS), x, b, 1),
        lambda: _core.dequantize(number, b[:-1], x, 1),
        lambda: _core.dequantize(number, b, x[:32], 1),
        lambda: _core.dot(number, b, x[:32], np.zeros(1, np.float32), 1),
        lambda: _core.dot(number, b, x[:40], np.zeros(1, np.float32), 1),
    ):
        with pytest.raises(ValueError):
            call()


def test_damaged_blocks_are_numbers_or_not_but_no_crash():
    """Whatever the bytes; every tier reads the same values."""
    rng = np.random.default_rng(0)
    for case in (Case(tokens=3), Case(k="tq2_1", v="tq3_0", tokens=70, kv_heads=2)):
        problem = attention_checks.make(case)
        k, v = (rng.integers(0, 256, x.shape, np.uint8) for x in (problem.k, problem.v))
        for isa in _core.supported_isas():
            with llama_tq.force_isa(isa):
                run(dataclasses.replace(problem, k=k, v=v))
