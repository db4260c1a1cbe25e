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
from ggml_graph import F16, F32, I32, I64, Graph
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


@pytest.mark.parametrize("case", metal_checks.RANDOM, ids=str)
def test_attention_over_random_shapes(case):
    check(case)


@pytest.mark.parametrize("type", [F32, F16, I32, I64])
@types
def test_numbers_that_are_no_floats_are_refused(spec, type):
    with Graph(devices.METAL) as graph:
        copy = graph.op("cpy", graph.new(spec.id, 64, 2), graph.new(type, 64, 2))
        assert graph.supports(copy) == (type in (F32, F16))


def test_pairs_and_sizes_that_attention_takes():
    ids = {**attention_checks.GGML_IDS, "q4_0": 2, "bf16": 30}
    sizes = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
    with Graph(devices.METAL) as graph:
        for k, v in ((k, v) for k in ids for v in ids if {k, v} & {spec.name for spec in TYPES}):
            for k_dim, v_dim in {(128, size) for size in sizes} | {(size, 128) for size in sizes}:
                if k_dim % 32 or v_dim % 32:
                    continue  # no row of blocks
                q = graph.new(F32, k_dim, 2, 4)
                halves = graph.new(ids[k], k_dim, 64, 2), graph.new(ids[v], v_dim, 64, 2)
                op = graph.op("flash_attn_ext", q, *halves, None, 1.0, 0.0, 0.0)
                takes = {k, v}.isdisjoint({"q4_0", "bf16"}) and {k_dim, v_dim} <= {64, 96, 128, 192, 256}
                assert graph.supports(op) == takes, (k, v, k_dim, v_dim)
