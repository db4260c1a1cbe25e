"""The kernels of csrc/metal on an Apple GPU, or where TQ_METAL_EMULATION says: `pytest -m metal`."""

from __future__ import annotations

import os

import numpy as np
import pytest

import attention_checks
import cuda_checks
import devices
import kernel_checks
import metal_checks
import metal_emulation
from ggml_graph import F32, I32, I64, Graph
from llama_tq import reference

pytestmark = pytest.mark.metal
EMULATED = metal_emulation.LIBRARY in os.environ
TYPES = list(reference.TYPES.values())
types = pytest.mark.parametrize("spec", TYPES, ids=lambda spec: spec.name)


@types
def test_the_encoder_writes_the_bytes_of_the_reference(spec):
    x = kernel_checks.values(spec)
    with Graph(devices.METAL) as graph:
        cache, rows = graph.new(spec.id, 32, len(x)), graph.of(F32, x, 32, len(x))
        graph.compute(graph.op("set_rows", cache, rows, graph.of(I64, np.arange(len(x)), len(x))))
        result = graph.read(cache, np.uint8).reshape(len(x), -1)
    np.testing.assert_array_equal(result, reference.quantize(x, spec.name))


@types
def test_the_decoder_returns_the_floats_of_the_reference(spec):
    blocks = kernel_checks.blocks(spec)
    with Graph(devices.METAL) as graph:
        cache = graph.of(spec.id, blocks, 32, len(blocks))
        ids = graph.of(I32, np.arange(len(blocks), dtype=np.int32), len(blocks))
        result = graph.read(graph.compute(graph.op("get_rows", cache, ids)), np.float32)
    np.testing.assert_array_equal(
        result.view(np.uint32), reference.dequantize(blocks, spec.name).view(np.uint32).ravel()
    )


def is_short(case: attention_checks.Case) -> bool:
    """Whether the host, which does one thing after the other, is done at once."""
    return case.streams * case.tokens * case.heads * case.rows <= 1 << 14


CASES = dict.fromkeys(cuda_checks.CASES)


def check(case: attention_checks.Case) -> None:
    problem = attention_checks.make(case)
    heads_first = len(str(case)) % 2 == 0  # as good as any
    result = metal_checks.attention(devices.METAL, problem, heads_first)
    attention_checks.assert_within(result, *metal_checks.solve(problem))


@pytest.mark.parametrize("case", [case for case in CASES if is_short(case) or not EMULATED], ids=str)
def test_attention_is_within_the_bound(case):
    check(case)


@pytest.mark.parametrize("heads", [2, 12])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize(("k", "v"), [("f16", "tq4_0"), ("tq4_0", "f16")])
def test_rows_that_nobody_sees_are_not_looked_at(k, v, tokens, heads):
    """Whole tiles, at the beginning, too, and single rows."""
    problem = attention_checks.make(attention_checks.Case(k=k, v=v, tokens=tokens, rows=330, heads=heads))
    unseen = np.r_[:70, 96:160, 200:205, 224:256, 288:330]
    problem.mask[..., unseen] = -np.inf
    answer, bound = metal_checks.solve(problem)
    problem.k[:, unseen] = problem.v[:, unseen] = 0xFF  # NaN as f16
    result = metal_checks.attention(devices.METAL, problem)
    attention_checks.assert_within(result, answer, bound)


@pytest.mark.parametrize("case", metal_checks.RANDOM, ids=str)
def test_attention_over_random_shapes(case):
    check(case)
